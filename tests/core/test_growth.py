"""What options bring, what they cost, and the subnets that grow by both."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from tips_nni.core import CostTable, PathGraph, TipsError, make_policy
from tips_nni.core._benefits import OptionBenefits
from tips_nni.core._budgets import draw_budgets
from tips_nni.core._growth_form import GrowthForm
from tips_nni.core._path_forms import MarginalForm
from tips_nni.core._unlocks import Unlocks


@pytest.fixture
def unlocks(architecture):
    return Unlocks(PathGraph.from_architecture(architecture))


def evenly(space):
    """Every option of every dimension as likely as the others."""
    return MarginalForm([np.zeros(len(dim.choices)) for dim in space.dims], 1.0)


@given(st.integers(1, 9), st.floats(0, 3), st.floats(0.1, 5), st.integers(0, 99))
def test_budgets_are_stratified_by_their_distribution(n, thrift, span, seed):
    low, high = np.full(n, 2.0), np.full(n, 2.0 + span)
    budgets = np.sort(draw_budgets(np.random.default_rng(seed), low, high, thrift))
    # The distribution function of a density ∝ exp(−thrift · x) on [2, 2 + span].
    power = max(thrift, 1e-9)
    below = np.expm1(-power * (budgets - 2)) / np.expm1(-power * span)
    for i, value in enumerate(below):
        assert i / n - 1e-6 <= value <= (i + 1) / n + 1e-6


def test_thrift_one_spends_as_much_on_every_budget():
    low, high = np.zeros(200_000), np.full(200_000, np.log(30.0))
    log_budgets = draw_budgets(np.random.default_rng(0), low, high, 1.0)
    spent = np.histogram(log_budgets, bins=6, range=(0, np.log(30.0)), weights=np.exp(log_budgets))[0]
    np.testing.assert_allclose(spent / spent.sum(), 1 / 6, rtol=0.02)


def test_every_node_belongs_to_the_option_that_brings_it(architecture, unlocks):
    graph, space = PathGraph.from_architecture(architecture), architecture.space
    for node, owner in zip(graph.nodes, unlocks.owner.tolist(), strict=True):
        present = graph.node_mask(space.encode_many([space.smallest]))[0][graph.nodes.index(node)]
        assert (owner == -1) == bool(present)
        if owner >= 0:
            dim, level = unlocks.options[owner]
            below = (space.sizes - 1).copy()
            below[dim] = level - 1
            assert not graph.node_mask(below[None])[0][graph.nodes.index(node)]


def test_presence_is_the_share_of_nodes(architecture, unlocks):
    graph, space = PathGraph.from_architecture(architecture), architecture.space
    codes = space.sample(np.random.default_rng(0), 20)
    mask, presence = graph.node_mask(codes), unlocks.presence(codes)
    for u in range(len(unlocks.options)):
        own = unlocks.owner == u
        np.testing.assert_allclose(presence[:, u], mask[:, own].mean(axis=1))
    ends = unlocks.presence(space.encode_many([space.smallest, space.largest]))
    assert (ends[0] == 0).all()
    assert (ends[1] == 1).all()


def test_edges_share_the_values_of_their_options(unlocks):
    values = np.arange(1.0, len(unlocks.options) + 1)
    assert unlocks.edge_values(values).sum() == pytest.approx(values.sum())
    assert (unlocks.edge_values(np.zeros_like(values)) == 0).all()


def steps(space, unlocks, rng, count, benefits, noise):
    """Losses that fall by `benefits` where options are present, and that the images shift by any amount."""
    for _ in range(count):
        codes = space.sample(rng, 3)
        losses = rng.normal() - unlocks.presence(codes) @ benefits + noise * rng.normal(size=3)
        yield codes, losses


def test_benefits_are_the_bounded_least_squares_solution(architecture, unlocks):
    rng, decay, count = np.random.default_rng(0), 0.98, 40
    truth = rng.uniform(0, 1, len(unlocks.options)) * (rng.random(len(unlocks.options)) < 0.6)
    estimate = OptionBenefits(unlocks, decay)
    rows, targets, total = [], [], 0.0
    for i, (codes, losses) in enumerate(steps(architecture.space, unlocks, rng, count, truth, 0.1)):
        estimate.observe(codes, losses)
        if i == 17:  # an estimate in between changes nothing
            estimate.estimate()
        presence = unlocks.presence(codes)
        scale = decay ** ((count - 1 - i) / 2)
        rows.append(scale * (presence - presence.mean(axis=0)))
        targets.append(scale * (losses.mean() - losses))
        total = decay * total + 2
    rows, targets = np.concatenate(rows), np.concatenate(targets)
    common = (rows.T @ targets).sum() / np.square(rows.sum(axis=1)).sum()
    pull = np.sqrt(0.02 * total)
    rows = np.concatenate([rows, pull * np.eye(len(truth))])
    targets = np.concatenate([targets, np.full(len(truth), pull * common)])
    expected = lsq_linear(rows, targets, (0, np.inf), method="bvls", tol=1e-14).x
    np.testing.assert_allclose(estimate.estimate(), np.maximum(expected / expected.mean(), 0.02), atol=1e-6)


def test_benefits_are_found_in_noise_and_remembered(architecture, unlocks):
    rng = np.random.default_rng(1)
    truth = np.linspace(0.1, 1.0, len(unlocks.options))
    estimate = OptionBenefits(unlocks, 1 - 1 / 500)
    assert (estimate.estimate() == 1).all()
    for codes, losses in steps(architecture.space, unlocks, rng, 600, truth, 0.2):
        estimate.observe(codes, losses)
    copy = OptionBenefits(unlocks, 1 - 1 / 500)
    copy.load_state_dict(json.loads(json.dumps(estimate.state_dict())))
    found = estimate.estimate()
    assert np.corrcoef(found, truth)[0, 1] > 0.95
    np.testing.assert_array_equal(copy.estimate(), found)


def test_steps_of_one_subnet_are_compared_with_their_neighbours(architecture, unlocks):
    rng = np.random.default_rng(2)
    truth = np.linspace(0.1, 1.0, len(unlocks.options))
    single, together = OptionBenefits(unlocks, 0.999), OptionBenefits(unlocks, 0.999**32)
    for part in range(60):
        codes = architecture.space.sample(rng, 32)
        # The loss falls in training, and every step sees other images.
        losses = 5.0 - 0.05 * part - unlocks.presence(codes) @ truth + rng.normal(0, 0.2, 32)
        together.observe(codes, losses)
        for code, loss in zip(codes, losses, strict=True):
            if part == 30:  # stopped and taken up again in the middle of a group
                state = json.loads(json.dumps(single.state_dict()))
                single = OptionBenefits(unlocks, 0.999)
                single.load_state_dict(state)
            single.observe(code[None], np.array([loss]))
    np.testing.assert_allclose(single.estimate(), together.estimate(), rtol=1e-9)
    assert np.corrcoef(single.estimate(), truth)[0, 1] > 0.95


def test_few_losses_say_nothing_and_a_loss_must_be_finite(architecture, unlocks):
    estimate = OptionBenefits(unlocks, 0.99)
    codes = architecture.space.sample(np.random.default_rng(0), 2)
    for _ in range(31):
        estimate.observe(codes[:1], np.array([1.0]))
    assert (estimate.estimate() == 1).all()
    with pytest.raises(TipsError, match="must be finite"):
        estimate.observe(codes, np.array([1.0, np.nan]))


def test_without_noise_the_chain_is_greedy(architecture, unlocks):
    space, table = architecture.space, CostTable(architecture)
    gains = np.random.default_rng(3).uniform(0.1, 2.0, len(unlocks.options))
    form = GrowthForm(
        unlocks, space, table.flops, evenly(space), gains, noise=0.0, thrift=0.0, rng=np.random.default_rng(0)
    )
    ordered = [i for i, dim in enumerate(space.dims) if dim.kind != "resolution"]
    value = dict(zip(unlocks.options, gains.tolist(), strict=True))
    for chain in form.codes:
        assert (chain[0, ordered] == 0).all()
        assert (chain[-1, ordered] == space.sizes[ordered] - 1).all()
        for before, after in itertools.pairwise(chain):
            if (before == after).all():
                continue
            ratios = {}
            for dim in ordered:
                if before[dim] + 1 < space.sizes[dim]:
                    wider = before.copy()
                    wider[dim] += 1
                    added = int(np.diff(table.flops(np.stack([before, wider])))[0])
                    if added > 0:
                        ratios[dim] = value[dim, int(wider[dim])] / added
            (changed,) = np.flatnonzero(before != after)
            assert ratios[changed] == pytest.approx(max(ratios.values()))
    flops = table.flops(form.codes.reshape(-1, len(space.dims)))
    np.testing.assert_allclose(np.exp(form.log_spent).ravel(), flops)


def test_noise_makes_chains_differ_and_subnets_stay_near_their_budget(architecture, unlocks):
    table = CostTable(architecture)
    form = GrowthForm(
        unlocks,
        architecture.space,
        table.flops,
        evenly(architecture.space),
        np.ones(len(unlocks.options)),
        2.0,
        0.0,
        np.random.default_rng(0),
    )
    assert len({chain.tobytes() for chain in form.codes}) > 3
    codes = form.draw(np.random.default_rng(0), 500)
    known = {tuple(code) for chain in form.codes for code in chain.tolist()}
    assert {tuple(code) for code in codes.tolist()} <= known


def test_losses_raise_what_lowers_them(architecture):
    """An option that lowers the loss much more than the others comes early in the chains."""
    options = {"form": "growth", "edge_weight": "loss", "coupling": "shared", "noise": 0.0, "exploration": 0.0}
    orders = {}
    for favoured in (0, 1):
        policy = make_policy("path_importance", architecture, {**options, "lambda": 0.01})
        rng = np.random.default_rng(0)
        widths = [i for i, dim in enumerate(policy.space.dims) if dim.kind != "resolution"][:2]
        for _ in range(100):
            configs = [policy.space.decode(code) for code in policy.space.sample(rng, 2)]
            codes = policy.space.encode_many(configs)
            policy.observe(configs)
            policy.observe_losses(configs, (2.0 - 1.0 * codes[:, widths[favoured]]).tolist())
        policy.refresh()
        orders[favoured] = [int((chain[:, widths[favoured]] > 0).argmax()) for chain in policy._form.codes]
        others = [int((chain[:, widths[1 - favoured]] > 0).argmax()) for chain in policy._form.codes]
        assert np.mean(orders[favoured]) < np.mean(others)
