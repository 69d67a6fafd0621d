"""A vision transformer through the whole pipeline: no BatchNorm, heads among the dimensions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from tips_nni.core import CostTable
from tips_nni.elastic import AnytimeModel, compare_onnx, example_images
from tips_nni.pipeline import prepare, run
from tips_nni.specs import load_run

SPACE = """\
family: tiny
width: {ratios: [0.5, 1.0]}
hidden: {ratios: [0.25, 1.0]}
heads: {ratios: [0.5, 1.0]}
depth: {min: 1}
"""
STRATEGY = """\
name: labels
policy: {name: path_importance, refresh: 10}
sampling: {random: 1, distill: false}
"""
RUN = """\
backbone:
  name: vit_tiny_patch16_224
  args: {img_size: 16, patch_size: 4, embed_dim: 32, depth: 2, num_heads: 4}
space: ./space.yaml
strategy: ./strategy.yaml
data: {kind: digits, image_size: 16, batch_size: 64, augment: none}
training: {epochs: 8, optimizer: adamw, lr: 0.01, weight_decay: 0.05, calibration_images: 64, accelerator: cpu}
search: {population: 6, generations: 1, images: 64}
export: {onnx: 1}
output: never-used
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("transformer")
    for name, text in (("space.yaml", SPACE), ("strategy.yaml", STRATEGY), ("run.yaml", RUN)):
        (home / name).write_text(text)
    return run(load_run(home / "run.yaml", [f"output={home / 'out'}"]), quiet=True, source="run.yaml")


def test_it_learns(folder: Path) -> None:
    with (folder / "training.csv").open() as file:
        history = list(csv.DictReader(file))
    assert float(history[-1]["train_loss"]) < 0.9 * float(history[0]["train_loss"])
    assert float(history[-1]["accuracy_largest"]) > 0.25, "a tenth is what guessing gives"


def test_heads_are_in_the_front_and_the_explanation(folder: Path) -> None:
    front = json.loads((folder / "front.json").read_text())
    assert all("heads.blocks.0.attn" in row["subnet"] for row in front)
    operations = dict(json.loads((folder / "explain.json").read_text())[-1]["operations"])
    assert operations["blocks.0.attn"] > 0


def test_the_anytime_model_equals_its_export(folder: Path) -> None:
    model = AnytimeModel.load(folder / "anytime.safetensors").eval()
    net = prepare(load_run(folder / "run.yaml")).supernet
    table = CostTable(net.architecture)
    for row, entry in enumerate(model.front):
        images = example_images(model, row, 3)
        model.set_budget(mflops=entry["mflops"])
        with torch.no_grad():
            torch.testing.assert_close(model(images), model.extract(row)(images))
        codes = net.space.encode(net.space.config(entry["subnet"]))[None]
        assert entry["mflops"] == pytest.approx(table.flops(codes)[0] / 1e6)
    (path,) = (folder / "onnx").glob("*.onnx")
    row = int(path.stem.split("_")[1])
    assert compare_onnx(model.extract(row), example_images(model, row, 3), path)[0] < 1e-4
