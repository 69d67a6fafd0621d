"""What is compared, and at which scale: rivals, networks, lengths of training, sizes of measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import timm
from torch import nn

from anytime.policies import CheapOptions, CheapPolicy
from tips_nni.core import Architecture, Policy, make_policy
from tips_nni.elastic import Supernet, convert
from tips_nni.specs import SamplingSpec, SpaceSpec, load_space


@dataclass(frozen=True)
class Rival:
    """A way to train a supernet: who is drawn, how many a step, and from what they learn.

    Attributes:
        name: short, for tables.
        label: for the page.
        policy: registered name of the policy that draws the random subnets, or ``uniform_cheap``, the control.
        options: of the policy.
        largest: the largest subnet trains in every step.
        smallest: the smallest does.
        random: subnets that the policy draws for a step.
        distill: the others learn from the largest subnet's output.
        divergence: of distillation, ``kl`` or ``alpha``.
        single_first: the first share of the training, 0 to 1: there a step trains one drawn subnet, from the labels.
        group: ``main`` for the comparison, ``control`` for what is no method but isolates a part of one, ``ablation``
            for options of TIPS.
        tuned_as: the rival whose tuned learning rate it takes; its own where empty.
    """

    name: str
    label: str
    policy: str = "uniform"
    options: Mapping[str, Any] = field(default_factory=dict)
    largest: bool = True
    smallest: bool = True
    random: int = 2
    distill: bool = True
    divergence: str = "kl"
    single_first: float = 0.0
    group: str = "main"
    tuned_as: str = ""

    @property
    def ours(self) -> bool:
        """Whether it is a form of TIPS in the comparison."""
        return self.group == "main" and self.policy == "path_importance"

    @property
    def rate_of(self) -> str:
        """Name of the rival whose tuned learning rate it takes."""
        return self.tuned_as or self.name

    def make_policy(self, architecture: Architecture) -> Policy:
        """Return a new policy."""
        if self.policy == "uniform_cheap":
            return CheapPolicy(architecture, CheapOptions(**self.options))
        return make_policy(self.policy, architecture, self.options)

    @property
    def sampling(self) -> SamplingSpec:
        """The subnets of one step, as a strategy names them."""
        return SamplingSpec(largest=self.largest, smallest=self.smallest, random=self.random, distill=self.distill)

    @property
    def step(self) -> str:
        """The subnets of one step: M the largest, m the smallest, r a drawn one."""
        step = " ".join(["M"] * self.largest + ["m"] * self.smallest + ["r"] * self.random)
        return f"r, from {self.single_first:.0%} on {step}" if self.single_first else step


#: These tune their own learning rate; the others take the one of the same step: the sandwich's or two_random's.
_TUNED = ("us_nets", "two_random", "two_cheap", "two_budgets", "tips_budget_two", "tips_growth_two")


def _sandwich(
    name: str, label: str, policy: str = "uniform", options: Mapping[str, Any] | None = None, **more: Any
) -> Rival:
    """A rival whose step is the sandwich's; its learning rate is the one tuned for that step."""
    return Rival(name, label, policy, options or {}, tuned_as="us_nets", **more)


def _free(name: str, label: str, policy: str, random: int = 2, **options: Any) -> Rival:
    """A rival that trains drawn subnets only, from labels; see `_TUNED` for its learning rate."""
    tuned_as = "" if name in _TUNED else "two_random"
    return Rival(
        name, label, policy, options, largest=False, smallest=False, random=random, distill=False, tuned_as=tuned_as
    )


def _control(name: str, label: str, policy: str, random: int = 2, **options: Any) -> Rival:
    """No method, but what isolates a part of one."""
    return replace(_free(name, label, policy, random, **options), group="control")


def _tips(name: str, label: str, random: int = 1, **options: Any) -> Rival:
    """A form of TIPS that trains drawn subnets only."""
    return _free(name, f"TIPS: {label}", "path_importance", random, **options)


def _ablation(of: Rival, name: str, label: str, **options: Any) -> Rival:
    """A rival with other options, at its learning rate."""
    return replace(of, name=name, label=label, options={**of.options, **options}, group="ablation", tuned_as=of.rate_of)


#: What the others are compared with.
REFERENCE = "us_nets"
#: The simplest rival, the form of TIPS in strategies/tips.yaml, and the same with all importances equal.
BASELINE, DEFAULT, SCHEDULE = "spos", "tips_budget", "one_budgets"

_SANDWICH = _sandwich("tips_sandwich", "TIPS: marginal, sandwich", "path_importance")
_PATH_SANDWICH = _sandwich("tips_path_sandwich", "TIPS: paths, sandwich", "path_importance", {"form": "path"})
_BUDGET = _tips("tips_budget", "budgets, one drawn subnet", form="budget", coupling="shared", thrift=1.0)
_GROWTH = _tips(
    "tips_growth",
    "growth by gradients, one drawn subnet",
    form="growth",
    edge_weight="gradient",
    coupling="shared",
    thrift=1.0,
)
#: With all importances equal what is left of TIPS by budgets is its schedule.
_EQUAL: dict[str, Any] = {"form": "budget", "temperature": 1e6, "thrift": 1.0}

#: The share of the compute after which one drawn subnet a step gives way to the sandwich, where it does.
_SWITCH = 0.5

RIVALS = (
    Rival("us_nets", "US-Nets: sandwich, a width per layer"),
    _sandwich("us_nets_global", "US-Nets: sandwich, one global width", "global_width"),
    _sandwich("alphanet", "sandwich with AlphaNet's divergence", divergence="alpha"),
    _sandwich("attentive", "AttentiveNAS: sandwich, budgets drawn evenly", "attentive"),
    Rival(
        "largest_random",
        "largest and one random, labels only",
        smallest=False,
        random=1,
        distill=False,
        tuned_as="two_random",
    ),
    _free("spos", "SPOS: one random subnet", "uniform", random=1),
    _free("two_random", "two random subnets", "uniform"),
    _free("two_random_global", "two random subnets of one global width", "global_width"),
    _control("one_cheap", "control: one random subnet at half the price", "uniform_cheap", random=1, share=0.5),
    _control("two_cheap", "control: two random subnets at half the price", "uniform_cheap", share=0.5),
    _control("one_budgets", "control: budgets, nothing learnt, one subnet", "path_importance", random=1, **_EQUAL),
    _control(
        "one_growth",
        "control: growth, nothing learnt, one subnet",
        "path_importance",
        random=1,
        **{**_EQUAL, "form": "growth"},
    ),
    replace(
        _sandwich("spos_us_nets", "control: one random subnet, then the sandwich", single_first=_SWITCH),
        group="control",
    ),
    replace(
        _sandwich(
            "budgets_sandwich",
            "control: budgets, nothing learnt, one subnet, then the sandwich",
            "path_importance",
            _EQUAL,
            single_first=_SWITCH,
        ),
        group="control",
    ),
    _control("two_budgets", "control: budgets, nothing learnt, two subnets", "path_importance", **_EQUAL),
    _SANDWICH,
    _PATH_SANDWICH,
    _tips("tips_two", "marginal, two drawn subnets", random=2),
    _tips("tips_path_two", "paths, two drawn subnets", random=2, form="path"),
    _tips("tips_budget_two", "budgets, two drawn subnets", random=2, form="budget", coupling="shared", thrift=1.0),
    _tips(
        "tips_growth_two",
        "growth by losses, two drawn subnets",
        random=2,
        form="growth",
        edge_weight="loss",
        coupling="shared",
        thrift=1.0,
    ),
    _BUDGET,
    _GROWTH,
    _sandwich(
        "tips_budget_sandwich",
        "TIPS: budgets, one drawn subnet, then the sandwich",
        "path_importance",
        _BUDGET.options,
        single_first=_SWITCH,
    ),
    _ablation(_SANDWICH, "sandwich_neutral", "marginal, sandwich, compute-neutral", compute_neutral=True),
    _ablation(_PATH_SANDWICH, "path_neutral", "paths, sandwich, compute-neutral", compute_neutral=True),
    _ablation(_BUDGET, "budget_neutral", "budgets, compute-neutral", compute_neutral=True),
    _ablation(_BUDGET, "budget_calm", "budgets, no jitter", jitter=0.0),
    _ablation(_BUDGET, "budget_lively", "budgets, jitter 0.4", jitter=0.4),
    _ablation(_BUDGET, "budget_even", "budgets, thrift 0", thrift=0.0),
    _ablation(_BUDGET, "budget_thrifty", "budgets, thrift 2", thrift=2.0),
    _ablation(_BUDGET, "budget_gradient", "budgets, gradients", edge_weight="gradient"),
    _ablation(_BUDGET, "budget_width", "budgets, widths", edge_weight="width"),
    _ablation(_BUDGET, "budget_directed", "budgets, directed", directed=True),
    _ablation(_BUDGET, "budget_constant", "budgets, constant coupling", coupling="constant"),
    _ablation(_BUDGET, "budget_lambda_low", "budgets, λ = 0.01", **{"lambda": 0.01}),
    _ablation(_BUDGET, "budget_lambda_high", "budgets, λ = 100", **{"lambda": 100.0}),
    _ablation(_BUDGET, "budget_cool", "budgets, temperature 0.5", temperature=0.5),
    _ablation(_BUDGET, "budget_warm", "budgets, temperature 2", temperature=2.0),
    _ablation(_GROWTH, "growth_topology", "growth, topology", edge_weight="topology"),
    _ablation(_GROWTH, "growth_loss", "growth, losses", edge_weight="loss", memory=1500),
    _ablation(_GROWTH, "growth_calm", "growth, no noise", noise=0.0),
    _ablation(_GROWTH, "growth_lively", "growth, noise 1", noise=1.0),
    _ablation(_GROWTH, "growth_even", "growth, thrift 0", thrift=0.0),
    _ablation(_SANDWICH, "sandwich_sum", "marginal, sandwich, score sum", score="sum"),
    _ablation(_SANDWICH, "sandwich_gradient", "marginal, sandwich, gradients", edge_weight="gradient"),
    _ablation(_SANDWICH, "sandwich_width", "marginal, sandwich, widths", edge_weight="width"),
    _ablation(_SANDWICH, "sandwich_directed", "marginal, sandwich, directed", directed=True),
    _ablation(_SANDWICH, "sandwich_shared", "marginal, sandwich, shared coupling", coupling="shared"),
    _ablation(_SANDWICH, "sandwich_lambda_low", "marginal, sandwich, λ = 0.01", **{"lambda": 0.01}),
    _ablation(_SANDWICH, "sandwich_lambda_high", "marginal, sandwich, λ = 100", **{"lambda": 100.0}),
    _ablation(_SANDWICH, "sandwich_cool", "marginal, sandwich, temperature 0.5", temperature=0.5),
    _ablation(_SANDWICH, "sandwich_budget", "budgets, sandwich", **_BUDGET.options),
    _ablation(_SANDWICH, "sandwich_growth", "growth by gradients, sandwich", **_GROWTH.options),
)


@dataclass(frozen=True)
class Scale:
    """Sizes of a study.

    Attributes:
        name: for tables.
        build: makes the backbone for a number of classes.
        space: its search space.
        image_size: pixels.
        classes: how many of the data's classes are used, from `first_class` on; None for all.
        validation: training images kept for the search and for the choice of learning rates.
        batch: images of one step.
        compute: multiply-adds of the longest training, in 1e12; a backward pass counts as two forward passes.
        shares: lengths of training as shares of `compute`; each is a training of its own with a whole schedule.
        rates: learning rates that every rival tries.
        population: of the search.
        generations: of the search.
        search_images: validation images of one measurement.
        calibration: training images for BatchNorm statistics.
        measured_batch: images of one batch of a measurement.
        panel: random subnets, the same for all.
        panel_images: test images of the panel; None for all.
        first_class: the classes begin with this one.
        images: training images that are kept; None for all.
    """

    name: str
    build: Callable[[int], nn.Module]
    space: Callable[[], SpaceSpec]
    image_size: int
    classes: int | None
    validation: int
    batch: int
    compute: float
    shares: tuple[float, ...]
    rates: tuple[float, ...]
    population: int
    generations: int
    search_images: int
    calibration: int
    measured_batch: int = 250
    panel: int = 40
    panel_images: int | None = None
    first_class: int = 0
    images: int | None = None

    def supernet(self, classes: int) -> Supernet:
        """Return a new supernet with PyTorch's random weights."""
        return convert(self.build(classes), self.space(), image_size=self.image_size)


def small_resnet(classes: int) -> nn.Module:
    """Timm's ResNet-18 with a quarter of its channels, for small images: the stem keeps the resolution."""
    model = timm.create_model(
        "resnet18", num_classes=classes, channels=(16, 32, 64, 128), stem_type="deep", stem_width=8
    )
    model.conv1[0].stride = (1, 1)
    model.maxpool = nn.Identity()
    return model


def tiny_resnet(classes: int) -> nn.Module:
    """Timm's ResNet-18-D with an eighth of its channels, for 16 pixels: so cheap that it trains until flat."""
    model = timm.create_model(
        "resnet18", num_classes=classes, channels=(8, 16, 32, 64), stem_type="deep", stem_width=8, avg_down=True
    )
    model.maxpool = nn.Identity()
    return model


def cifar_resnet(classes: int) -> nn.Module:
    """Timm's ResNet-18 for images of 32 pixels: the stem keeps the resolution."""
    model = timm.create_model("resnet18", num_classes=classes, stem_type="deep", stem_width=32)
    model.conv1[0].stride = (1, 1)
    model.maxpool = nn.Identity()
    return model


def cifar_mobilenet(classes: int) -> nn.Module:
    """Timm's MobileNetV2 for images of 32 pixels: the first two reductions are left out."""
    model = timm.create_model("mobilenetv2_100", num_classes=classes)
    model.conv_stem.stride = (1, 1)
    model.blocks[1][0].conv_dw.stride = (1, 1)
    return model


def small_mobilenet(classes: int) -> nn.Module:
    """Timm's MobileNetV2 with about a third of its channels, for images of 32 pixels: the stem keeps the resolution."""
    model = timm.create_model("mobilenetv2_035", num_classes=classes)
    model.conv_stem.stride = (1, 1)
    return model


def mobilenet(classes: int) -> nn.Module:
    """Timm's MobileNetV2 as it is."""
    return timm.create_model("mobilenetv2_100", num_classes=classes)


def resnet_space(divisor: int) -> SpaceSpec:
    """Return the space of ResNets with other multiples of channels: those of narrow networks are finer than 8."""
    space = load_space("resnet")
    finer = {name: getattr(space, name).model_copy(update={"divisor": divisor}) for name in ("width", "hidden")}
    return space.model_copy(update=finer)


_CPU = Scale(
    name="cpu",
    build=small_resnet,
    space=lambda: resnet_space(4),
    image_size=16,
    classes=10,
    validation=500,
    batch=64,
    compute=4.0,
    shares=(0.25, 0.5, 1.0),
    rates=(0.1, 0.2, 0.4),
    population=16,
    generations=5,
    search_images=500,
    calibration=250,
)

_GPU = Scale(
    name="resnet",
    build=cifar_resnet,
    space=lambda: load_space("resnet"),
    image_size=32,
    classes=None,
    validation=5000,
    batch=128,
    compute=4e3,
    shares=(0.125, 0.25, 0.5, 1.0),
    rates=(0.03, 0.1, 0.3),
    population=64,
    generations=20,
    search_images=5000,
    calibration=2000,
    measured_batch=1000,
)

SCALES = {
    scale.name: scale
    for scale in (
        _CPU,
        # Three times ten other classes, for choices: the figures of `cpu` see none of their images.
        *(replace(_CPU, name=f"cpu_dev{i}", first_class=10 * i) for i in (1, 2, 3)),
        # The same network on images of twice the size, at the learning rate chosen on the small ones.
        replace(_CPU, name="cpu32", image_size=32, compute=2.0, shares=(1.0,), rates=(0.2,), panel_images=500),
        # A smaller network on few images: the scale at which every rival is trained until it is flat.
        replace(
            _CPU,
            name="cpu_flat",
            build=tiny_resnet,
            space=lambda: resnet_space(2),
            batch=128,
            images=500,
            compute=0.6,
            rates=(0.1, 0.2, 0.4, 0.8),
        ),
        # Another backbone confirms what the ResNet says, at rates of its own: at 0.2 it trains to chance at times.
        replace(
            _CPU,
            name="cpu_mobilenetv2",
            build=small_mobilenet,
            space=lambda: load_space("mobilenetv2"),
            image_size=32,
            shares=(0.25, 1.0),
            compute=0.6,
            rates=(0.03, 0.1),
            panel_images=500,
        ),
        # Other data do, at the learning rate chosen on CIFAR-100.
        replace(_CPU, name="imagenette16", classes=None, compute=1.0, shares=(1.0,), rates=(0.2,), panel_images=1000),
        replace(
            _CPU,
            name="smoke",
            classes=4,
            validation=100,
            batch=16,
            compute=0.01,
            shares=(1.0,),
            rates=(0.1,),
            population=4,
            generations=1,
            search_images=50,
            calibration=32,
            panel=8,
            panel_images=50,
        ),
        _GPU,
        replace(
            _GPU,
            name="mobilenetv2",
            build=cifar_mobilenet,
            space=lambda: load_space("mobilenetv2"),
            compute=1.2e3,
        ),
        replace(
            _GPU,
            name="imagenette",
            build=mobilenet,
            space=lambda: load_space("mobilenetv2"),
            image_size=96,
            validation=1000,
            batch=64,
            compute=1e3,
            shares=(0.25, 0.5, 1.0),
            search_images=1000,
            calibration=1000,
        ),
    )
}
