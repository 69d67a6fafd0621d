import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tips_nni.core import Architecture, ElasticDim, Gate, Operation, SearchSpace, SubnetConfig, TipsError

SPACE = SearchSpace((ElasticDim("width.a", "width", (8, 16)), ElasticDim("depth.b", "depth", (1, 2, 3))))


def spaces() -> st.SearchStrategy[SearchSpace]:
    choices = st.sets(st.integers(1, 64), min_size=1, max_size=5).map(lambda values: tuple(sorted(values)))
    return st.lists(choices, min_size=1, max_size=6).map(
        lambda rows: SearchSpace(tuple(ElasticDim(f"width.{i}", "width", row) for i, row in enumerate(rows)))
    )


@given(spaces(), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_encoding_is_a_bijection(space, seed):
    codes = space.sample(np.random.default_rng(seed), 20)
    assert (codes >= 0).all()
    assert (codes < space.sizes).all()
    configs = [space.decode(code) for code in codes]
    np.testing.assert_array_equal(space.encode_many(configs), codes)
    assert SearchSpace.from_json(space.to_json()) == space
    assert all(space.config(config.as_dict()) == config for config in configs)


def test_enumeration_has_every_subnet_once():
    configs = list(SPACE.enumerate())
    assert len(configs) == len(set(configs)) == SPACE.size == 6
    assert configs[0] == SPACE.smallest
    assert configs[-1] == SPACE.largest


def test_sampling_is_uniform():
    codes = SPACE.sample(np.random.default_rng(0), 60_000)
    counts = np.bincount(codes[:, 0] * 3 + codes[:, 1], minlength=6)
    chi_squared = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_squared < 20.5  # 0.1% point of chi-squared with 5 degrees of freedom


def test_a_subnet_is_hashable_and_reads_by_name():
    config = SPACE.config({"depth.b": 2, "width.a": 16})
    assert {config: 1}[SubnetConfig(("width.a", "depth.b"), (16, 2))] == 1
    assert config["depth.b"] == 2


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: SearchSpace(()), "the search space is empty"),
        (lambda: SearchSpace((SPACE.dims[0], SPACE.dims[0])), "declared twice: width.a"),
        (lambda: ElasticDim("a", "width", (16, 8)), "ascending order"),
        (lambda: ElasticDim("a", "width", (0, 8)), "positive"),
        (lambda: ElasticDim("a", "heigth", (8,)), "'heigth'"),
        (lambda: SPACE.config({"width.a": 8}), "lacks a value for depth.b"),
        (lambda: SPACE.config({"width.a": 8, "depht.b": 1, "depth.b": 1}), "did you mean 'depth.b'"),
        (lambda: SPACE.config({"width.a": 9, "depth.b": 1}), r"width.a = 9 is not .* \[8, 16\]"),
        (lambda: SPACE.encode(SubnetConfig(("x",), (1,))), "another search space"),
        (lambda: SPACE.decode([0, 3]), "does not fit"),
        (lambda: SPACE.decode([0]), "does not fit"),
        (lambda: SPACE.check_codes(np.zeros((2, 3))), r"needs \(N, 2\)"),
        (lambda: SPACE.check_codes(np.array([[0, 3]])), "out of range"),
        (lambda: SearchSpace.from_json([{"name": "a"}]), "not a search space"),
    ],
)
def test_wrong_input_gets_one_clear_line(action, message):
    with pytest.raises(TipsError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


def test_an_architecture_out_of_order_is_refused(architecture):
    with pytest.raises(TipsError, match="out of order"):
        Architecture(architecture.space, architecture.feature_maps, architecture.operations[::-1])
    stray = Operation("x", "conv", ("input",), "stem", gate=Gate("depth.x", 1))
    with pytest.raises(TipsError, match="out of order"):
        Architecture(architecture.space, architecture.feature_maps, (*architecture.operations, stray))
