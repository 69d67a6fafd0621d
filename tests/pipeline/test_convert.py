"""`tips-nni convert`: the space that it writes is the one that it shows, and a file to go on with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tips_nni.cli import main
from tips_nni.elastic import convert
from tips_nni.specs import load_space


def converted(path: Path, backbone: str, size: int = 64):
    return convert(backbone, load_space(str(path)), image_size=size)


def test_the_written_space_is_the_shown_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    command = ["convert", "resnext26ts", "--image-size", "64", "--output", str(path), "--arg", "num_classes=10"]
    assert main(command) == 0
    out = capsys.readouterr().out
    supernet = converted(path, "resnext26ts")
    text = path.read_text()
    assert len(supernet.space.dims) > 10
    for dim in supernet.space.dims:
        kind, _, name = dim.name.partition(".")
        assert dim.name in out
        assert re.search(rf"^#   {re.escape(name)}: {' '.join(map(str, dim.choices))}\b", text, re.M), (kind, name)
    for name, reason in supernet.fixed.items():
        assert reason in " ".join(text.replace("#", " ").split()), name
    assert f"{len(supernet.space.dims)} elastic dimensions" in out
    assert main([*command[:4], "--output", str(path)]) == 2
    assert (
        capsys.readouterr().err
        == f"tips-nni: {path} exists; add --overwrite to replace it, or choose another --output\n"
    )
    # An edited file, looked at again.
    path.write_text(text.replace("fixed: []", 'fixed: ["stages.3*"]'))
    assert (
        main(
            ["convert", "resnext26ts", "--image-size", "64", "--space", str(path), "--output", str(path), "--overwrite"]
        )
        == 0
    )
    assert "the space fixes 'stages.3*'" in " ".join(capsys.readouterr().out.split())
    assert load_space(str(path)).fixed == ("stages.3*",)


def test_heads_of_a_transformer_get_a_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    (tmp_path / "general.yaml").write_text("family: general\nhidden: {ratios: [0.5, 1.0]}\n")
    arguments = ["--arg", "img_size=32", "--arg", "patch_size=8", "--arg", "depth=2"]
    command = ["convert", "deit_tiny_patch16_224", "--image-size", "32", *arguments, "--output", str(path)]
    assert main([*command, "--space", str(tmp_path / "general.yaml")]) == 0
    out = capsys.readouterr().out
    assert "heads.blocks.1.attn" in out
    assert "blocks.1.attn.qkv" in out
    written = load_space(str(path))
    assert written.heads is not None
    assert written.heads.ratios == (0.5, 1.0)
    assert written.description == "hidden width per block, heads per attention"


def test_loaded_weights_are_sorted_and_the_function_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    weights = timm.create_model("resnet10t").state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    path = tmp_path / "mine.yaml"
    command = ["convert", "resnet10t", "--image-size", "64", "--output", str(path)]
    assert main([*command, "--checkpoint-path", str(tmp_path / "weights.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "space resnet" in out
    difference = float(re.search(r"outputs differ by at most (\S+)", out)[1])
    assert 0 < difference <= 1e-5  # the channels have moved, so sums are taken in another order


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet19"], "resnet18"),
        (["resnet18", "--space", "resnett"], "resnet"),
        (["resnet18", "--image-size", "0"], "image"),
        (["resnet18", "--arg", "pretrained=true"], "--pretrained"),
        (["resnet18", "--arg", "widht=3"], "widht"),
        (["resnet18", "--arg", "widht"], "key=value"),
        (["resnet18", "--checkpoint-path", "nowhere.safetensors"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("tips-nni: ")
    assert err.count("\n") == 1
    assert words in err
    assert not list(tmp_path.iterdir())
