"""One training step against a slow reference: every subnet extracted and differentiated on its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tips_nni.core import Policy, SubnetConfig, TipsError, make_policy
from tips_nni.elastic import Supernet
from tips_nni.specs import SamplingSpec, TrainingSpec
from tips_nni.training import SupernetModule, gradient_norms
from tips_nni.training._trainer import quiet_lightning


class Catch(pl.Callback):
    """Keeps the gradients that the optimizer sees, and the weights after its step."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: SupernetModule, optimizer: object) -> None:
        named = pl_module.supernet.backbone.named_parameters()
        self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}


def make_module(supernet: Supernet, policy: Policy | None = None, sampling: SamplingSpec | None = None, **keys: object):
    training = TrainingSpec(**{"steps": 1, "lr": 0.05, **keys})
    policy = policy or make_policy("uniform", supernet.architecture)
    return SupernetModule(supernet, policy, sampling or SamplingSpec(), training, seed=3, steps_per_epoch=4)


def step(module: SupernetModule, batches: Sequence[tuple[Tensor, Tensor]], folder: Path) -> dict[str, Tensor]:
    """Train on the batches with Lightning; return the gradients of the last step."""
    catch = Catch()
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=len(batches),
            max_epochs=-1,
            callbacks=[catch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None))
    return catch.gradients


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 1, 32, 32, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 10, (8,), generator=generator)


def reference(
    supernet: Supernet, configs: Sequence[SubnetConfig], images: Tensor, targets: Tensor, distill: bool
) -> dict[str, Tensor]:
    """Sum the gradients of every subnet, extracted as a plain module; `targets` (N, classes) are probabilities.

    Extracting a supernet whose weights are their own flat positions says where each weight of a subnet came from.
    """
    positions = copy.deepcopy(supernet)
    for parameter in positions.backbone.parameters():
        parameter.data = torch.arange(parameter.numel(), dtype=parameter.dtype).view(parameter.shape)
    total = {name: torch.zeros_like(p) for name, p in supernet.backbone.named_parameters()}
    soft = supernet.extract(supernet.space.largest).train()(images).detach().softmax(dim=1)
    for config in configs:
        module = supernet.extract(config).train()
        mine = targets if config == supernet.space.largest or not distill else soft
        loss = -(mine * module(images).log_softmax(dim=1)).sum(dim=1).mean()
        loss.backward()
        places = dict(positions.extract(config).named_parameters())
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            total[name].view(-1).index_add_(0, places[name].detach().view(-1).long(), parameter.grad.view(-1))
    return total


@pytest.mark.parametrize("distill", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradients_are_the_sum_over_the_subnets(
    make_supernet: Callable[..., Supernet], tmp_path: Path, distill: bool, smoothing: float
) -> None:
    supernet = make_supernet().double()
    before = copy.deepcopy(supernet)
    sampling = SamplingSpec(random=3, distill=distill)
    images, labels = batch()
    module = make_module(supernet, sampling=sampling, label_smoothing=smoothing)
    drawn = make_module(before, sampling=sampling).draw()  # the same generator: the same subnets
    found = step(module, [(images, labels)], tmp_path)
    assert len(set(drawn)) >= 4
    targets = torch.full((8, 10), smoothing / 10, dtype=torch.float64)
    targets[torch.arange(8), labels] += 1 - smoothing
    expected = reference(before, drawn, images, targets, distill)
    assert set(found) == set(expected), "the largest subnet trains every parameter"
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_a_gradient_weighted_policy_gets_the_norms_of_the_step(
    make_supernet: Callable[..., Supernet], tmp_path: Path
) -> None:
    supernet = make_supernet().double()
    policy = make_policy("path_importance", supernet.architecture, {"edge_weight": "gradient"})
    gradients = step(make_module(supernet, policy), [batch()], tmp_path)
    fed = policy.state_dict()["gradients"]
    layers = [op.name for op in supernet.architecture.operations if op.kind in ("conv", "linear")]
    assert sorted(fed) == sorted(layers)
    assert fed == pytest.approx({name: float(gradients[f"{name}.weight"].norm()) for name in layers}, rel=1e-9)
    scaled = gradient_norms(supernet, scale=4.0)
    assert scaled == pytest.approx({name: value / 4 for name, value in fed.items()}, rel=1e-9)


def test_only_the_sampled_kinds_are_trained(make_supernet: Callable[..., Supernet]) -> None:
    supernet = make_supernet()
    space = supernet.space
    assert make_module(supernet, sampling=SamplingSpec(random=0)).draw() == [space.largest, space.smallest]
    only = SamplingSpec(largest=False, smallest=False, random=2, distill=False)
    drawn = make_module(supernet, sampling=only).draw()
    assert len(drawn) == 2
    assert not {space.largest, space.smallest} & set(drawn)


def test_clip_grad_bounds_the_norm_and_keeps_the_direction(
    make_supernet: Callable[..., Supernet], tmp_path: Path
) -> None:
    free = step(make_module(make_supernet().double()), [batch()], tmp_path)
    supernet = make_supernet().double()
    start = copy.deepcopy(supernet.backbone)
    module = make_module(supernet, clip_grad=0.01, momentum=0.0, weight_decay=0.0, schedule="none")
    clipped = step(module, [batch()], tmp_path)
    norm = torch.stack([g.norm() for g in free.values()]).norm()
    assert norm > 0.01
    for (name, old), new in zip(start.named_parameters(), supernet.backbone.parameters(), strict=True):
        torch.testing.assert_close(clipped[name], free[name] * 0.01 / norm, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(old - new, 0.05 * clipped[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [1, 5, 8])
def test_mixup_blends_images_and_targets_alike(make_supernet: Callable[..., Supernet], n: int) -> None:
    module = make_module(make_supernet(), mixup=0.5)
    # The image's only pixel is its number, so the blend of images must be the blend of the one-hot targets.
    numbers = torch.arange(float(n))
    images = numbers.view(n, 1, 1, 1)
    for _ in range(20):
        mixed, targets = module._mix(images, torch.eye(n))
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(n))
        torch.testing.assert_close(targets @ numbers, mixed.view(n))
        assert (targets >= 0).all()
        paired = n - n % 2
        assert (mixed.view(n)[:paired] != numbers[:paired]).all()
        assert torch.equal(mixed.view(n)[paired:], numbers[paired:])


def test_mixup_of_a_part_is_the_part_of_mixup(make_supernet: Callable[..., Supernet]) -> None:
    images, targets = torch.rand(8, 1, 4, 4), torch.eye(8)
    supernet = make_supernet()
    whole, *parts = (make_module(supernet, mixup=0.5) for _ in range(3))
    mixed = whole._mix(images, targets)
    halves = [part._mix(images[4 * i : 4 * i + 4], targets[4 * i : 4 * i + 4]) for i, part in enumerate(parts)]
    for both, expected in zip(zip(*halves, strict=True), mixed, strict=True):
        assert torch.equal(torch.cat(both), expected)


def test_the_policy_sees_what_was_trained(make_supernet: Callable[..., Supernet], tmp_path: Path) -> None:
    supernet = make_supernet()
    seen: list[list[SubnetConfig]] = []

    class Recording(type(make_policy("uniform", supernet.architecture))):
        def observe(self, configs: Sequence[SubnetConfig]) -> None:
            seen.append(list(configs))

    plain = make_policy("uniform", supernet.architecture)
    policy = Recording(supernet.architecture, plain.options)
    images, labels = batch()
    step(make_module(supernet, policy, SamplingSpec(random=1)), [(images.float(), labels)] * 3, tmp_path)
    assert [len(configs) for configs in seen] == [3, 3, 3]
    for configs in seen:
        assert configs[:2] == [supernet.space.largest, supernet.space.smallest]


@pytest.mark.parametrize(("key", "value"), [("optimizer", "sgdd"), ("schedule", "cosinus")])
def test_unknown_optimizer_or_schedule(make_supernet: Callable[..., Supernet], key: str, value: str) -> None:
    with pytest.raises(TipsError, match=value) as caught:
        make_module(make_supernet(), **{key: value}).configure_optimizers()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_other_optimizers(make_supernet: Callable[..., Supernet], tmp_path: Path, optimizer: str) -> None:
    supernet = make_supernet()
    before = {name: p.clone() for name, p in supernet.backbone.named_parameters()}
    images, labels = batch()
    step(make_module(supernet, optimizer=optimizer, lr=1e-3), [(images.float(), labels)], tmp_path)
    changed = [name for name, p in supernet.backbone.named_parameters() if not torch.equal(before[name], p)]
    assert len(changed) == len(before)
    assert all(bool(torch.isfinite(p).all()) for p in supernet.backbone.parameters())


def test_cosine_falls_from_lr_to_nearly_nothing(make_supernet: Callable[..., Supernet]) -> None:
    module = make_module(make_supernet(), steps=None, epochs=5, warmup_epochs=1)
    optimizer = module.configure_optimizers()
    rates = []
    for i in range(20):
        module._schedule.step_update(i)
        rates.append(optimizer.param_groups[0]["lr"])
    assert int(np.argmax(rates)) == 4, "4 steps of warm-up"
    assert np.all(np.diff(rates[:5]) > 0)
    assert np.all(np.diff(rates[4:]) < 0)
    assert rates[-1] < 0.1 * max(rates)
