"""What is compared: who is drawn, how many a step, and from what they learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from anytime.policies import CheapOptions, CheapPolicy
from tips_nni.core import Architecture, Policy, make_policy
from tips_nni.specs import SamplingSpec


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
        ablates: the rival that it is but for some options, where it is an ablation.
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
    ablates: str = ""

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
    options = {**of.options, **options}
    return replace(of, name=name, label=label, options=options, group="ablation", tuned_as=of.rate_of, ablates=of.name)


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

RIVALS = (
    Rival("us_nets", "US-Nets: sandwich, a width per layer"),
    _sandwich("us_nets_global", "US-Nets: sandwich, one global width", "global_width"),
    Rival("alphanet", "sandwich with AlphaNet's divergence", divergence="alpha"),  # diverges at the sandwich's rate
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
    replace(
        _ablation(_BUDGET, "budget_then_sandwich", "budgets, from the half on in a sandwich"),
        largest=True,
        smallest=True,
        random=2,
        distill=True,
        single_first=0.5,
    ),
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
RIVALS_BY_NAME = {rival.name: rival for rival in RIVALS}
