"""Sampling policies: which subnets a training step trains. Life cycle in the base class, registry of descriptors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._architecture import Architecture
from tips_nni.core._cost import CostTable
from tips_nni.core._errors import TipsError, unknown
from tips_nni.core._explanation import Explanation, OptionTable
from tips_nni.core._graph import PathGraph
from tips_nni.core._options import read_options
from tips_nni.core._space import Codes, SearchSpace, SubnetConfig

_POOL = 1024


@dataclass(frozen=True)
class PolicyOptions:
    """Options that every policy has.

    Attributes:
        compute_neutral: tilt the probabilities so that the expected multiply-adds equal uniform sampling's.
        exploration: share of uniform draws, 0 to 1; with a compute-neutral policy above 0, so that every subnet keeps
            a positive probability.
    """

    compute_neutral: bool = False
    exploration: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.exploration <= 1:
            raise TipsError(f"exploration = {self.exploration}; it must be from 0 to 1")
        if self.compute_neutral and self.exploration == 0:
            raise TipsError("exploration = 0 with compute_neutral; choose exploration above 0, e.g. 0.1")


class Policy(ABC):
    """Draws subnets for training.

    A subclass defines `_draw`; one that learns from what was trained also `_refreshed` and ``refresh_every``. Policies
    get their randomness as an argument, return subnets and never touch the network.

    Attributes:
        network: what subnets are drawn of: an architecture, or only its path graph, which knows no multiply-adds.
        space: its search space.
        options: see the subclass's options.
    """

    #: refresh after this many steps; 0 for never
    refresh_every: int = 0
    #: how many of the latest subnets are remembered
    window: int = 0
    #: whether `observe_gradients` should be called after every step
    wants_gradients: bool = False
    #: whether `observe_losses` should be called after every step
    wants_losses: bool = False

    def __init__(self, network: Architecture | PathGraph, options: PolicyOptions) -> None:
        if network.space is None:
            raise TipsError("this path graph belongs to no search space, so it has no subnets to draw")
        self.network = network
        self.space: SearchSpace = network.space
        self.options = options
        if options.compute_neutral:
            cost_table(network, "compute_neutral: true")
        self._recent: list[tuple[int, ...]] = []
        self._pool: tuple[Codes, NDArray[np.float64]] | None = None
        self._refreshes = 0

    @abstractmethod
    def _draw(self, rng: np.random.Generator, n: int) -> Codes:
        """Return `n` codes of the policy proper, shape (n, D), without exploration and tilt."""

    def sample(self, rng: np.random.Generator, n: int) -> list[SubnetConfig]:
        """Draw `n` subnets."""
        if n == 0:
            return []
        codes = self._tilted(rng, n) if self.options.compute_neutral else self._draw(rng, n)
        explore = rng.random(n) < self.options.exploration
        uniform = self.space.sample(rng, n)
        return [self.space.decode(code) for code in np.where(explore[:, None], uniform, codes)]

    def _tilted(self, rng: np.random.Generator, n: int) -> Codes:
        """Draw from a pool around the policy's own draws, weighted by exp(−θ·FLOPs); θ makes it compute-neutral."""
        if self._pool is None:
            # From the policy's own draws to uniform ones, so that uniform's mean lies within the pool.
            blend = np.linspace(0, 1, _POOL)[:, None]
            uniform = self.space.sample(rng, _POOL)
            codes = np.where(rng.random(uniform.shape) < blend, uniform, self._draw(rng, _POOL))
            table = cost_table(self.network, "compute_neutral: true")
            target = float(table.flops(self.space.sample(rng, 4 * _POOL)).mean())
            self._pool = codes, tilt(table.flops(codes).astype(np.float64), target)
        codes, weights = self._pool
        return codes[rng.choice(len(codes), size=n, p=weights)]

    def observe(self, configs: Sequence[SubnetConfig]) -> None:
        """Take note of the subnets that a step trained, the largest and the smallest among them."""
        if self.window:
            self._recent += [tuple(code) for code in self.space.encode_many(configs).tolist()]
            del self._recent[: -self.window]

    def observe_gradients(self, norms: Mapping[str, float]) -> None:  # noqa: B027
        """Take note of the gradient norm of operations, by name; ignored where `wants_gradients` is False."""

    def observe_losses(self, configs: Sequence[SubnetConfig], losses: Sequence[float]) -> None:  # noqa: B027
        """Take note of the losses of subnets that learnt from the same images and the same targets.

        Ignored where `wants_losses` is False.
        """

    def due(self, step: int) -> bool:
        """Whether to refresh after `step` steps."""
        return self.refresh_every > 0 and step > 0 and step % self.refresh_every == 0

    def refresh(self) -> None:
        """Estimate anew from the subnets really trained."""
        self._refreshes += 1
        self._refreshed()
        self._pool = None

    def _refreshed(self) -> None:  # noqa: B027
        """Do the subclass's part of `refresh`."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides further draws, as plain JSON data."""
        pool = None if self._pool is None else [self._pool[0].tolist(), self._pool[1].tolist()]
        return {"recent": [list(code) for code in self._recent], "pool": pool, "refreshes": self._refreshes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave.

        Raises:
            TipsError: the state belongs to another policy or search space.
        """
        try:
            recent = [tuple(map(int, code)) for code in state["recent"]]
            if recent:
                self.space.check_codes(np.array(recent))
            pool = state["pool"]
            self._pool = None if pool is None else (np.array(pool[0], dtype=np.int64), np.array(pool[1]))
            self._recent = recent
            self._refreshes = int(state["refreshes"])
        except (KeyError, TypeError) as error:
            raise TipsError(f"this is no state of a {type(self).__name__} ({error!r})") from error

    def explain(self) -> Explanation:
        """Return what the policy knows: by default the probability of every option."""
        return Explanation(policy=self.name, refreshes=self._refreshes, dims=self._option_tables())

    @property
    def name(self) -> str:
        """The registered name."""
        return next((info.name for info in POLICIES.values() if info.create is type(self)), type(self).__name__)

    def _option_tables(self) -> tuple[OptionTable, ...]:
        """Return the probability of every option, estimated from 2,000 seeded draws where it is not known."""
        rng = np.random.default_rng(0)
        saved, codes = self._pool, self.space.encode_many(self.sample(rng, 2000))
        self._pool = saved
        tables = []
        for i, dim in enumerate(self.space.dims):
            shares = np.bincount(codes[:, i], minlength=len(dim.choices)) / len(codes)
            tables.append(OptionTable(dim.name, dim.kind, dim.choices, tuple(shares.tolist()), ()))
        return tuple(tables)


def cost_table(network: Architecture | PathGraph, what: str) -> CostTable:
    """Return the exact costs of a network's subnets.

    Args:
        network: of the policy.
        what: the option that needs them, for the message.

    Raises:
        TipsError: the network is known by its path graph only.
    """
    if isinstance(network, PathGraph):
        raise TipsError(f"{what} needs multiply-adds, and of this network only the path graph is known; turn it off")
    return CostTable(network)


def tilt(flops: NDArray[np.float64], target: float) -> NDArray[np.float64]:
    """Return weights ∝ exp(−θ·flops) with mean `target`, shape (N,), summing to 1.

    Where `target` is outside the range of `flops` the weights fall on the nearest ones.
    """
    scaled = (flops - flops.mean()) / max(float(flops.std()), 1e-12)
    goal = float(np.clip(target, flops.min(), flops.max()))

    def weights(theta: float) -> NDArray[np.float64]:
        logits = -theta * scaled
        values = np.exp(logits - logits.max())
        return np.asarray(values / values.sum())

    low, high = -1e4, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if weights(middle) @ flops > goal else (low, middle)
    return weights((low + high) / 2)


@dataclass(frozen=True)
class PolicyInfo:
    """A registered policy.

    Attributes:
        name: in strategies.
        summary: one sentence.
        create: the class; called with (network, options).
        options: its options' class, a frozen dataclass that checks itself.
    """

    name: str
    summary: str
    create: Callable[[Architecture | PathGraph, Any], Policy]
    options: type[PolicyOptions]


#: The registered policies, by name.
POLICIES: dict[str, PolicyInfo] = {}


def register_policy(info: PolicyInfo) -> None:
    """Add a policy under its name.

    Raises:
        TipsError: the name is taken.
    """
    if info.name in POLICIES:
        raise TipsError(f"a policy {info.name!r} is registered already; choose another name")
    POLICIES[info.name] = info


def policy_names() -> list[str]:
    """Return the names of the registered policies."""
    return sorted(POLICIES)


def check_policy(name: str, options: Mapping[str, Any]) -> PolicyOptions:
    """Check a policy's name and options and return the options.

    ``lambda`` is a reserved word in Python: the attribute of the options is ``lambda_``.

    Raises:
        TipsError: unknown policy or option, or a value that is not allowed.
    """
    if name not in POLICIES:
        raise unknown("policy", name, POLICIES)
    return read_options(POLICIES[name].options, options, f"policy {name!r}")


def make_policy(name: str, network: Architecture | PathGraph, options: Mapping[str, Any] | None = None) -> Policy:
    """Create a policy.

    Args:
        name: see `policy_names`.
        network: whose subnets are drawn; with a path graph alone, nothing that needs multiply-adds can be had.
        options: see the policy's options class; defaults where left out.

    Raises:
        TipsError: see `check_policy`; or multiply-adds are needed and not known.
    """
    checked = check_policy(name, options or {})
    return POLICIES[name].create(network, checked)
