"""A timm backbone as a model space of NNI."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nni
import numpy as np
import pytest
import timm
import torch
from nni.mutable import SampleValidationError
from nni.nas.space import RawFormatModelSpace, SimplifiedModelSpace
from nni.nas.strategy import RandomOneShot

from tips_nni.adapters import TimmSpace, timm_space
from tips_nni.core import TipsError, make_policy
from tips_nni.specs import SamplingSpec, TrainingSpec
from tips_nni.training import SupernetModule

Make = Callable[..., TimmSpace]


def test_labels_are_dimensions_and_values_their_choices(make_space: Make) -> None:
    space = make_space()
    assert {str(label): tuple(m.values) for label, m in space.simplify().items()} == {
        dim.name: dim.choices for dim in space.supernet.space.dims
    }
    default: dict[str, int] = {}
    space.default(default)
    assert default == space.supernet.space.largest.as_dict()


def test_a_frozen_sample_is_the_subnet_in_the_mode_of_the_space(make_space: Make) -> None:
    space = make_space()
    config = space.supernet.space.smallest
    images = torch.randn(4, 1, 16, 16)
    frozen = space.eval().freeze(config.as_dict())
    assert type(frozen) is type(timm.create_model("test_resnet"))
    torch.testing.assert_close(frozen(images), space.supernet(images, config), rtol=0, atol=1e-6)
    assert not frozen.training
    assert space.train().freeze(config.as_dict()).training


def test_the_space_itself_runs_as_the_backbone(make_space: Make) -> None:
    space = make_space().eval()
    images = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(space(images), space.supernet.backbone(images))


def test_trials_make_the_same_subnet_from_what_nni_sends(make_space: Make, space_file: Path) -> None:
    """The arguments and the sample cross as JSON; the trial converts again, in another folder."""
    space = make_space()
    sample: dict[str, int] = {}
    model = SimplifiedModelSpace.from_model(space).random(memo=sample, random_state=np.random.RandomState(3))
    sent = nni.dump(model)
    assert len(sent) < 4096, "arguments, not weights"
    received = nni.load(sent).executable_model()
    assert type(received) is type(timm.create_model("test_resnet"))
    assert received.training, "a new module is in training mode: Lightning would leave its BatchNorm frozen otherwise"
    expected = space.freeze(sample).state_dict()
    assert {k: v.shape for k, v in received.state_dict().items()} == {k: v.shape for k, v in expected.items()}


def test_paths_are_recorded_as_absolute_ones(make_space: Make, space_file: Path, monkeypatch) -> None:
    monkeypatch.chdir(space_file.parent)
    space = timm_space("test_resnet", "./tiny.yaml", image_size=16, in_chans=1, num_classes=10)
    assert space.trace_kwargs["space"] == str(space_file)
    named = timm_space("test_resnet", "resnet", image_size=16, in_chans=1, num_classes=10)
    assert named.trace_kwargs["space"] == "resnet"


def test_trained_weights_go_into_trials(make_space: Make, tmp_path: Path) -> None:
    trained = make_space(seed=1)
    trained.save_weights(tmp_path / "w" / "supernet.safetensors")
    assert os.listdir(tmp_path / "w") == ["supernet.safetensors"]
    space = make_space(seed=2, weights=tmp_path / "w" / "supernet.safetensors")
    sample = space.supernet.space.smallest.as_dict()
    model = nni.load(nni.dump(SimplifiedModelSpace.from_model(space).freeze(sample))).executable_model()
    images = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(model.eval()(images), trained.eval().freeze(sample)(images))


def test_the_checkpoint_of_a_run_is_a_start(make_space: Make, tmp_path: Path) -> None:
    import pytorch_lightning as pl

    trained = make_space(seed=1)
    policy = make_policy("uniform", trained.supernet.architecture)
    module = SupernetModule(trained.supernet, policy, SamplingSpec(), TrainingSpec(steps=1), seed=0, steps_per_epoch=1)
    trainer = pl.Trainer(
        max_steps=1,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.strategy.connect(module)
    (tmp_path / "checkpoints").mkdir()
    trainer.save_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    space = make_space(seed=2, weights=tmp_path)
    for name, tensor in trained.supernet.backbone.state_dict().items():
        torch.testing.assert_close(space.supernet.backbone.state_dict()[name], tensor)


@pytest.mark.parametrize("damage", ["absent", "truncated", "another"])
def test_wrong_weights_are_one_line(make_space: Make, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "supernet.safetensors"
    if damage != "absent":
        make_space(num_classes=10 if damage == "truncated" else 7).save_weights(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TipsError, match=r"supernet\.safetensors") as caught:
        make_space(weights=path)
    assert "\n" not in str(caught.value)


def test_unknown_names_are_one_line(make_space: Make) -> None:
    with pytest.raises(TipsError, match=r"pixel4_cpu"):
        make_space(target="pixel4")
    with pytest.raises(TipsError, match="mobilenetv2"):
        timm_space("mobilenetv2_100", "mobilenet_v2")


def test_a_value_that_is_no_choice_is_refused(make_space: Make) -> None:
    space = make_space()
    sample = {**space.supernet.space.largest.as_dict(), "width.layer1": 17}
    with pytest.raises(SampleValidationError):
        RawFormatModelSpace(space, None).freeze(sample)
    with pytest.raises(TipsError, match="17"):
        space.freeze(sample)


def test_costs_are_those_of_the_subnets(make_space: Make) -> None:
    space = make_space()
    config = space.supernet.space.smallest
    code = space.supernet.space.encode(config)[None]
    params = sum(p.numel() for p in space.freeze(config.as_dict()).parameters())
    assert space.costs["params_m"].evaluate(code)[0] * 1e6 == pytest.approx(params)
    assert set(space.costs) == {"mflops", "params_m", "memory_mb", "latency_ms"}


def test_nnis_supernet_runs_the_sampled_subnet(make_space: Make) -> None:
    """`RandomOneShot.mutate_model` is NNI's own door: after it a resample decides what runs."""
    space = make_space().eval()
    RandomOneShot().mutate_model(space)
    images = torch.randn(3, 1, 16, 16)
    for config in (space.supernet.space.smallest, space.supernet.space.largest):
        assert space.elastic.resample(dict(config.as_dict())) == config.as_dict()
        torch.testing.assert_close(space(images), space.supernet(images, config))
    drawn = {tuple(space.elastic.resample({}).values()) for _ in range(20)}
    assert len(drawn) > 10
    with space.elastic.choosing(space.supernet.space.smallest):
        torch.testing.assert_close(space(images), space.supernet(images, space.supernet.space.smallest))
    half = {"width.layer1": 16}
    assert "width.layer1" not in space.elastic.export(half)
