"""TIPS as a policy: path importance in the Markov chain of the subnets trained before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._architecture import Architecture
from tips_nni.core._benefits import OptionBenefits
from tips_nni.core._budgets import Spending, spending_of
from tips_nni.core._dtmc import Chain, Coupling
from tips_nni.core._errors import TipsError, unknown
from tips_nni.core._explanation import Explanation, NodeScore, OptionTable
from tips_nni.core._graph import PathGraph
from tips_nni.core._growth_form import GrowthForm
from tips_nni.core._importance import (
    PathScores,
    Score,
    accumulated_scores,
    operation_importance,
    option_importance,
)
from tips_nni.core._path_forms import BudgetForm, MarginalForm, PathForm
from tips_nni.core._policy import Policy, PolicyInfo, PolicyOptions, register_policy
from tips_nni.core._space import Codes, SubnetConfig
from tips_nni.core._unlocks import Unlocks

EdgeWeight = Literal["topology", "width", "gradient", "loss"]
Form = Literal["marginal", "path", "budget", "growth"]


@dataclass(frozen=True)
class PathImportanceOptions(PolicyOptions):
    """Options of `PathImportancePolicy`; but for the undirected graph and the coupled chain all our reconstruction.

    Attributes:
        form: ``marginal`` draws the options of each dimension independently; ``path`` draws whole paths; ``budget``
            draws a budget of multiply-adds (of operations, where only the path graph is known) and gives every layer
            its share by importance; ``growth`` draws a budget and spends it on the options of the highest importance
            per multiply-add.
        directed: False is the paper's graph: information flows forwards, gradients back.
        edge_weight: ``topology`` 1, ``width`` share of channels, ``gradient`` running mean of gradient norms, ``loss``
            the fall of the training loss that the options bring, spread over their edges.
        coupling: ``constant`` λ for every pair of subnets, ``shared`` λ over all of them.
        lambda_: λ > 0, strength of the coupling.
        score: TPS as the ``mean`` or ``sum`` of TAS.
        temperature: > 0; low follows the importance closely, high is nearly uniform.
        refresh: steps between two estimates, at least 1.
        window: T, the number of latest subnets that the chain is built from, at least 1.
        paths: form ``path``: the most paths that one subnet joins, at least 1.
        jitter: form ``budget``: standard deviation of a layer's own share around the common one, at least 0.
        noise: form ``growth``: how far chains stray from the order of importance per multiply-add, at least 0.
        thrift: forms ``budget`` and ``growth``: budgets are drawn ∝ budget^(−thrift) on the logarithmic scale, at
            least 0; 0 trains every budget as often, 1 spends as many multiply-adds on every budget.
        decay: of the running mean of gradient norms, 0 to below 1.
        memory: edge weight ``loss``: steps that the estimate remembers, at least 1.
    """

    form: Form = "marginal"
    directed: bool = False
    edge_weight: EdgeWeight = "topology"
    coupling: Coupling = "constant"
    lambda_: float = 1.0
    score: Score = "mean"
    temperature: float = 1.0
    refresh: int = 100
    window: int = 64
    paths: int = 4
    jitter: float = 0.2
    noise: float = 0.5
    thrift: float = 0.0
    decay: float = 0.9
    memory: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, allowed in (("form", Form), ("edge_weight", EdgeWeight), ("coupling", Coupling), ("score", Score)):
            if getattr(self, key) not in get_args(allowed):
                raise unknown(f"{key} of policy 'path_importance'", str(getattr(self, key)), get_args(allowed))
        for key, value in (("lambda", self.lambda_), ("temperature", self.temperature)):
            if not (np.isfinite(value) and value > 0):
                raise TipsError(f"{key} = {value} of policy 'path_importance'; it must be finite and above 0")
        for key in ("refresh", "window", "paths", "memory"):
            if getattr(self, key) < 1:
                raise TipsError(f"{key} = {getattr(self, key)} of policy 'path_importance'; it must be at least 1")
        for key, value in (("jitter", self.jitter), ("noise", self.noise), ("thrift", self.thrift)):
            if not (np.isfinite(value) and value >= 0):
                raise TipsError(f"{key} = {value} of policy 'path_importance'; it must be finite and at least 0")
        if not 0 <= self.decay < 1:
            raise TipsError(f"decay = {self.decay} of policy 'path_importance'; it must be from 0 to below 1")


class PathImportancePolicy(Policy):
    """TIPS: subnets by the importance of their paths in the Markov chain of the subnets trained before.

    Before the first refresh the chain is built from the smallest and the largest subnet.

    Attributes:
        tas: score of every node, accumulated over the subnets of the chain, shape (V,).
        worth: the same for each subnet that has the node, shape (V,): what the forms ``budget`` and ``growth`` go by,
            our reconstruction.
    """

    options: PathImportanceOptions

    def __init__(self, network: Architecture | PathGraph, options: PathImportanceOptions) -> None:
        super().__init__(network, options)
        self.refresh_every = options.refresh
        self.window = options.window
        self.wants_gradients = options.edge_weight == "gradient"
        self.graph = network if isinstance(network, PathGraph) else PathGraph.from_architecture(network)
        self.wants_losses = options.edge_weight == "loss"
        self._gradients: dict[str, float] = {}
        self._unlocks = Unlocks(self.graph)
        self._benefits = OptionBenefits(self._unlocks, 1 - 1 / options.memory) if self.wants_losses else None
        self._estimate()

    @cached_property
    def _spending(self) -> Spending:
        return spending_of(self.network)

    def observe_gradients(self, norms: Mapping[str, float]) -> None:
        """Update the running mean of every operation's gradient norm.

        Raises:
            TipsError: a norm is negative or not finite.
        """
        decay = self.options.decay
        for name, value in norms.items():
            if not (np.isfinite(value) and value >= 0):
                raise TipsError(f"the gradient norm of {name} is {value}; it must be finite and not negative")
            before = self._gradients.get(name)
            self._gradients[name] = value if before is None else decay * before + (1 - decay) * value

    def observe_losses(self, configs: Sequence[SubnetConfig], losses: Sequence[float]) -> None:
        """Take note of the losses of subnets that learnt from the same images and the same targets.

        Raises:
            TipsError: a loss is not finite.
        """
        if self._benefits is not None:
            self._benefits.observe(self.space.encode_many(configs), np.array(losses, dtype=np.float64))

    def edge_weights(self) -> NDArray[np.float64]:
        """Return w(e) of every edge, shape (E,), positive.

        With ``gradient`` an operation's norm, divided by the mean norm, is kept above 1e-3; operations without a norm
        (additions) weigh 1. With ``loss`` every option spreads its benefit over the edges at its nodes, in units of
        the mean edge's; edges that every subnet has weigh 1.
        """
        if self.options.edge_weight == "width":
            return self.graph.width
        weights = np.ones(len(self.graph.source))
        if self.options.edge_weight == "gradient" and self._gradients:
            scale = float(np.mean(list(self._gradients.values()))) or 1.0
            weights = np.array([self._gradients.get(name, scale) / scale for name in self.graph.operations])
        if self.options.edge_weight == "loss":
            spread = self._unlocks.edge_values(self.benefits)
            weights = np.where(spread > 0, spread / max(float(spread[spread > 0].mean()), 1e-12), 1.0)
        return np.maximum(weights, 1e-3)

    def _codes(self) -> Codes:
        """Return the subnets of the chain: the window, with the ends of the space."""
        ends = self.space.encode_many([self.space.smallest, self.space.largest])
        if not self._recent:
            return ends
        return np.concatenate([ends, np.array(self._recent, dtype=np.int64)])

    def _estimate(self) -> None:
        """Run the chain and turn its scores into probabilities."""
        options = self.options
        codes = self._codes()
        if self._benefits is not None:
            self.benefits = self._benefits.estimate()
        mask = self.graph.node_mask(codes)
        chain = Chain(
            self.graph,
            mask,
            self.edge_weights(),
            options.lambda_,
            options.directed,
            options.coupling,
        )
        self.tas = accumulated_scores(chain.stationary())
        # What a node is worth to a subnet that has it. TAS also counts how many have it: sizes drawn by TAS would feed
        # themselves, as what is drawn seldom would be drawn ever less.
        self.worth = self.tas / np.maximum(mask.sum(axis=0), 1)
        self.scores = PathScores(self.graph, self.tas, options.score)
        self.through = self.scores.through_edges()
        self.importances = option_importance(self.graph, self.through)
        self._form = self._make_form()

    def _make_form(self) -> MarginalForm | PathForm | BudgetForm | GrowthForm:
        """Return what draws subnets from the present scores."""
        options = self.options
        if options.form == "path":
            length = len(self.scores.best()[0].nodes) if options.score == "mean" else 1
            return PathForm(self.graph, self.space, self.tas, options.temperature * length, options.paths)
        marginal = MarginalForm(self.importances, options.temperature)
        if options.form == "growth":
            rng = np.random.default_rng(self._refreshes)
            gains = self._unlocks.per_option(self.worth)
            gains = np.maximum(gains, 1e-3 * gains.mean()) ** (1 / options.temperature)
            return GrowthForm(
                self._unlocks, self.space, self._spending, marginal, gains, options.noise, options.thrift, rng
            )
        if options.form == "budget":
            return BudgetForm(
                self.graph,
                self.space,
                self._spending,
                self.worth,
                marginal,
                options.temperature,
                options.jitter,
                options.thrift,
            )
        return marginal

    def _refreshed(self) -> None:
        self._estimate()

    def _draw(self, rng: np.random.Generator, n: int) -> Codes:
        return self._form.draw(rng, n)

    def _option_tables(self) -> tuple[OptionTable, ...]:
        if isinstance(self._form, MarginalForm) and not self.options.compute_neutral:
            share = self.options.exploration
            drawn: Sequence[Sequence[float]] = [
                ((1 - share) * p + share / len(p)).tolist() for p in self._form.probabilities
            ]
        else:
            drawn = [table.probabilities for table in super()._option_tables()]
        return tuple(
            OptionTable(dim.name, dim.kind, dim.choices, tuple(p), tuple(values.tolist()))
            for dim, p, values in zip(self.space.dims, drawn, self.importances, strict=True)
        )

    def explain(self) -> Explanation:
        """Return TAS, the three best paths, importance of operations, and the probability of every option."""
        nodes = tuple(
            NodeScore(node.name, node.feature_map, node.chunk, float(tas))
            for node, tas in zip(self.graph.nodes, self.tas, strict=True)
        )
        settings = {key.rstrip("_"): value for key, value in asdict(self.options).items()}
        return Explanation(
            policy=self.name,
            refreshes=self._refreshes,
            dims=self._option_tables(),
            nodes=nodes,
            best_paths=tuple((path.score, path.nodes) for path in self.scores.best(3)),
            operations=tuple(operation_importance(self.graph, self.through).items()),
            subnets=len(self._codes()),
            settings=settings,
        )

    def state_dict(self) -> dict[str, Any]:
        """See `Policy.state_dict`."""
        estimate: dict[str, Any] = {
            "tas": self.tas.tolist(),
            "importances": [values.tolist() for values in self.importances],
            "worth": self.worth.tolist(),
        }
        if self._benefits is not None:
            estimate["benefits"] = self._benefits.state_dict()
        return {**super().state_dict(), "gradients": dict(self._gradients), **estimate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Policy.load_state_dict`."""
        super().load_state_dict(state)
        try:
            self._gradients = {str(name): float(value) for name, value in state["gradients"].items()}
            self.tas = np.array(state["tas"], dtype=np.float64)
            self.importances = [np.array(values, dtype=np.float64) for values in state["importances"]]
            self.worth = np.array(state["worth"], dtype=np.float64)
            if self._benefits is not None:
                self._benefits.load_state_dict(state["benefits"])
        except (KeyError, TypeError, AttributeError) as error:
            raise TipsError(f"this is no state of a {type(self).__name__} ({error!r})") from error
        # The estimate is older than the window: it is restored, not made anew.
        self.scores = PathScores(self.graph, self.tas, self.options.score)
        self.through = self.scores.through_edges()
        self._form = self._make_form()


def lambda_sweep(
    policy: PathImportancePolicy, lambdas: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
) -> list[dict[str, Any]]:
    """Return how the importance of operations depends on λ: one ``{"lambda", "operations"}`` for each λ.

    From λ → 0 (subnets apart) to λ → ∞ (one aggregated graph), with all else as in `policy`.
    """
    mask = policy.graph.node_mask(policy._codes())
    rows = []
    for value in lambdas:
        chain = Chain(
            policy.graph, mask, policy.edge_weights(), value, policy.options.directed, policy.options.coupling
        )
        scores = PathScores(policy.graph, accumulated_scores(chain.stationary()), policy.options.score)
        rows.append({"lambda": value, "operations": operation_importance(policy.graph, scores.through_edges())})
    return rows


register_policy(
    PolicyInfo("path_importance", "important paths more often (TIPS)", PathImportancePolicy, PathImportanceOptions)
)
