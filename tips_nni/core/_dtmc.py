"""The discrete-time Markov chain over (subnet, node) and its stationary distribution.

Symbols follow the paper where it names them: A_k the edges that subnet k keeps, Z_ij the coupling of a node in subnet i
with itself in subnet j, H(λ) the hyper-adjacency, P its row-normalised form, π = πP. The exact weights are our
reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve

from tips_nni.core._errors import TipsError, unknown
from tips_nni.core._graph import PathGraph

Coupling = Literal["constant", "shared"]
Floats = NDArray[np.float64]

#: ‖πP − π‖₁ at which the solver stops: half of the 1e-12 that is promised, so that rounding in a check has room.
TOLERANCE = 5e-13
_SWEEPS = 500


@dataclass(frozen=True)
class Chain:
    """The Markov chain of T subnets on a path graph of V nodes.

    A state is a pair (subnet, node on a path from r to d in that subnet). Within a subnet an edge weighs `weights`;
    undirected, both ways; directed, forwards only, and d leads back to r with weight 1. Across subnets a node is
    coupled with itself in every other subnet that holds it: by λ for each of them (`constant`), or by λ in all, spread
    evenly (`shared`). Row-normalised this is P. The T² blocks are never formed.

    With λ = 0 the chain falls apart into its subnets; π is then defined as the mean of their own distributions. The
    undirected chain is periodic where its graph is bipartite: π is the unique solution of π = πP all the same.

    Attributes:
        graph: the path graph.
        mask: nodes of every subnet, shape (T, V), bool, from `PathGraph.node_mask`.
        weights: positive weight of every edge, shape (E,).
        lam: λ >= 0.
        directed: see above.
        coupling: see above.
    """

    graph: PathGraph
    mask: NDArray[np.bool_]
    weights: Floats
    lam: float = 1.0
    directed: bool = False
    coupling: Coupling = "constant"

    def __post_init__(self) -> None:
        if self.coupling not in get_args(Coupling):
            raise unknown("coupling", str(self.coupling), get_args(Coupling))
        if not np.isfinite(self.lam) or self.lam < 0:
            raise TipsError(f"lambda = {self.lam}; it must be finite and at least 0")
        if self.mask.ndim != 2 or not len(self.mask):
            raise TipsError(f"the chain needs at least one subnet; the mask has shape {self.mask.shape}")
        if self.mask.shape[1] != len(self.graph.nodes) or self.weights.shape != self.graph.source.shape:
            raise TipsError(
                f"mask {self.mask.shape} or weights {self.weights.shape} do not fit a graph of "
                f"{len(self.graph.nodes)} nodes and {len(self.graph.source)} edges"
            )
        if not np.isfinite(self.weights).all() or (self.weights <= 0).any():
            bad = float(self.weights[~(np.isfinite(self.weights) & (self.weights > 0))][0])
            raise TipsError(f"an edge weighs {bad}; weights must be finite and positive")

    def _pair_coupling(self) -> Floats:
        """Return the weight that couples a node with itself in one other subnet, shape (V,)."""
        holders = self.mask.sum(axis=0)
        if self.coupling == "constant":
            return np.where(holders > 1, self.lam, 0.0)
        return np.where(holders > 1, self.lam / np.maximum(holders - 1, 1), 0.0)

    def _outgoing(self) -> Floats:
        """Return the weight of the edges that leave every state, coupling not counted, shape (V, T)."""
        present = self.mask.T.astype(np.float64)
        shape = (len(self.graph.nodes),) * 2
        forward = sp.csr_array((self.weights, (self.graph.source, self.graph.target)), shape=shape)
        out: Floats = np.asarray(forward @ present)
        if self.directed:
            out[self.graph.d] += 1.0
        else:
            out = out + np.asarray(forward.T @ present)
        return np.asarray(out * present)

    def stationary(self) -> Floats:
        """Return π, shape (T, V): at least 0, zero where a subnet lacks the node, summing to 1.

        Undirected: closed form, π ∝ weighted degree. Directed: aggregation and disaggregation, to ‖πP − π‖₁ ≤
        1e-12; each sweep solves the aggregated chain over nodes, then every subnet's own chain with the inflow
        from the others given, both exactly by forward substitution (each is acyclic but for d → r), in O(T·E).

        Raises:
            TipsError: the sweeps did not converge.
        """
        if self.lam == 0 or len(self.mask) == 1:
            rows = [self._alone(row) for row in self.mask]
            return np.stack(rows) / len(rows)
        if self.directed:
            return self._directed().T
        present = self.mask.T
        degree = self._outgoing() + (self._pair_coupling() * (present.sum(axis=1) - 1))[:, None] * present
        return np.asarray((degree / degree.sum()).T)

    def _alone(self, row: NDArray[np.bool_]) -> Floats:
        """Return the stationary distribution of one subnet's own chain, shape (V,)."""
        alone = Chain(self.graph, row[None], self.weights, 0.0, self.directed, self.coupling)
        out = alone._outgoing()[:, 0]
        if not self.directed:
            return np.asarray(out / out.sum())
        y = np.zeros((len(row), 1))
        y = self._substitute(np.where(row, out, 1.0)[:, None], np.zeros_like(y), np.ones(1), row[:, None])
        pi = y[:, 0] * out
        return np.asarray(pi / pi.sum())

    def _substitute(self, scale: Floats, inflow: Floats, entry: Floats, present: NDArray[np.bool_]) -> Floats:
        """Solve scale·y = Aᵀy + inflow + entry at r by forward substitution, all arrays (V, T), `entry` (T,)."""
        y = np.zeros(scale.shape)
        graph = self.graph
        for v in range(len(graph.nodes)):
            edges = graph.incoming(v)
            total = inflow[v] + (self.weights[edges] @ y[graph.source[edges]] if edges.stop > edges.start else 0.0)
            if v == graph.r:
                total = total + entry
            y[v] = np.where(present[v], total / scale[v], 0.0)
        return y

    def _directed(self) -> Floats:
        """Return π of the coupled directed chain, shape (V, T).

        With y = π / (row sum), the balance of state (k, v) reads (out + λ_v·n_v)·y(k, v) = Σ_u w(u, v) y(k, u) +
        λ_v Σ_l y(l, v): given the node sums on the right, every subnet is solved by itself.
        """
        graph, present = self.graph, self.mask.T
        holders = present.sum(axis=1)
        pair = self._pair_coupling()
        out = self._outgoing()
        scale = np.where(present, out + (pair * np.where(holders > 1, holders, 0))[:, None], 1.0)
        row_sum = out + (pair * np.maximum(holders - 1, 0))[:, None] * present
        zeros, none = np.zeros(scale.shape), np.zeros(scale.shape[1])
        # The response to one unit that enters at r; the loop d -> r is closed with it.
        unit = self._substitute(scale, zeros, np.ones(scale.shape[1]), present)
        y = np.where(present, 1.0, 0.0)
        for _ in range(_SWEEPS):
            y = y * self._aggregate(y, out)[:, None]
            given = self._substitute(scale, (pair * y.sum(axis=1))[:, None] * present, none, present)
            y = given + unit * (given[graph.d] / (1.0 - unit[graph.d]))
            y /= (y * row_sum).sum()
            if self._residual(y, row_sum, pair) <= TOLERANCE:
                return np.asarray(y * row_sum)
        raise TipsError(
            f"the stationary distribution did not converge (residual {self._residual(y, row_sum, pair):.1e}, lambda "
            f"{self.lam:g}, {len(self.mask)} subnets); choose a lambda between 1e-6 and 1e6"
        )

    def _aggregate(self, y: Floats, out: Floats) -> Floats:
        """Return the factor for every node that balances the flow between nodes, subnets taken together, (V,)."""
        graph = self.graph
        leaving = (y * out).sum(axis=1)
        flow = self.weights * np.einsum("et,et->e", y[graph.source], self.mask.T[graph.target])
        factor = np.zeros(len(graph.nodes))
        factor[graph.r] = 1.0
        for v in range(len(graph.nodes)):
            if v != graph.r and leaving[v] > 0:
                edges = graph.incoming(v)
                factor[v] = factor[graph.source[edges]] @ flow[edges] / leaving[v]
        return factor

    def _residual(self, y: Floats, row_sum: Floats, pair: Floats) -> float:
        """Return ‖πP − π‖₁ for π = y·(row sum)."""
        graph = self.graph
        shape = (len(graph.nodes),) * 2
        backward = sp.csr_array((self.weights, (graph.target, graph.source)), shape=shape)
        after = np.asarray(backward @ y) * self.mask.T
        after[graph.r] += y[graph.d]
        after += pair[:, None] * (y.sum(axis=1)[:, None] - y) * self.mask.T
        return float(np.abs(after - y * row_sum).sum())

    def transition_matrix(self) -> tuple[sp.csr_array, NDArray[np.int64]]:
        """Return P, sparse of shape (S, S), and the states (subnet, node), shape (S, 2): for tests and small chains.

        It forms the couplings of all pairs: O(T²·V) entries.
        """
        states = np.argwhere(self.mask)
        number = np.full(self.mask.shape, -1, dtype=np.int64)
        number[self.mask] = np.arange(len(states))
        rows, columns, values = [], [], []
        for k in range(len(self.mask)):
            both = self.mask[k, self.graph.source] & self.mask[k, self.graph.target]
            u, v = number[k, self.graph.source[both]], number[k, self.graph.target[both]]
            rows += [u] if self.directed else [u, v]
            columns += [v] if self.directed else [v, u]
            values += [self.weights[both]] * (1 if self.directed else 2)
            if self.directed:
                rows.append(number[k, [self.graph.d]])
                columns.append(number[k, [self.graph.r]])
                values.append(np.ones(1))
        for v, pair in enumerate(self._pair_coupling()):
            holders = number[self.mask[:, v], v]
            if pair > 0 and len(holders) > 1:
                i, j = np.nonzero(~np.eye(len(holders), dtype=np.bool_))
                rows.append(holders[i])
                columns.append(holders[j])
                values.append(np.full(len(i), pair))
        hyper = sp.csr_array(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(len(states),) * 2
        )
        inverse = sp.diags_array(1.0 / np.asarray(hyper.sum(axis=1)).ravel())
        return sp.csr_array(inverse @ hyper), states


def stationary_distribution(transition: sp.csr_array) -> Floats:
    """Return the stationary distribution of any finite chain, by sparse elimination.

    Reducible chains are handled by definition: the long-run average of a walk that starts in a uniformly drawn state.
    Transient states get 0; each closed class gets the probability that the walk ends in it. Period does not matter.

    Args:
        transition: P, shape (S, S), rows summing to 1.

    Returns:
        π, shape (S,).

    Raises:
        TipsError: P is not a transition matrix.
    """
    transition = sp.csr_array(transition)
    size = transition.shape[0]
    sums = np.asarray(transition.sum(axis=1)).ravel()
    if transition.shape != (size, size) or not size or transition.data.min(initial=0.0) < 0:
        raise TipsError(f"a transition matrix is square and not negative; this one has shape {transition.shape}")
    if not np.allclose(sums, 1.0, rtol=0, atol=1e-9):
        raise TipsError(
            f"the rows of a transition matrix sum to 1; one of these sums to {sums[np.abs(sums - 1).argmax()]}"
        )
    count, labels = connected_components(transition, directed=True, connection="strong")
    coo = transition.tocoo()
    crossing = coo.data * (labels[coo.row] != labels[coo.col])
    open_classes = np.unique(labels[coo.row[crossing > 0]])
    closed = np.setdiff1d(np.arange(count), open_classes)
    shares = np.array([(labels == c).mean() for c in closed])
    transient = np.isin(labels, open_classes)
    if len(closed) > 1 and transient.any():
        inner = transition[transient][:, transient]
        reach = sp.csc_array(sp.eye_array(int(transient.sum())) - inner)
        for i, c in enumerate(closed):
            entering = np.asarray(transition[transient][:, labels == c].sum(axis=1)).ravel()
            shares[i] += spsolve(reach, entering).sum() / size
    elif len(closed) == 1:
        shares[:] = 1.0
    pi = np.zeros(size)
    for share, c in zip(shares, closed, strict=True):
        members = np.flatnonzero(labels == c)
        pi[members] = share * _irreducible(transition[members][:, members])
    return pi


def _irreducible(transition: sp.csr_array) -> Floats:
    """Return π of an irreducible chain: fix one entry, solve the balance of the others, normalise."""
    size = transition.shape[0]
    if size == 1:
        return np.ones(1)
    balance = sp.csc_array(sp.eye_array(size) - transition.T)
    rest = spsolve(sp.csc_array(balance[1:, 1:]), -np.asarray(balance[1:, [0]].todense()).ravel())
    pi = np.concatenate([[1.0], np.atleast_1d(rest)])
    pi = np.maximum(pi / pi.sum(), 0.0)
    return np.asarray(pi / pi.sum())
