"""A written search space is read back as it was."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tips_nni.specs import (
    DepthSpec,
    HeadsSpec,
    RatioSpec,
    ResolutionSpec,
    SpaceSpec,
    load_space,
    space_names,
    space_yaml,
)

shares = st.floats(0.01, 0.99).map(lambda value: round(value, 3))
ratios = st.sets(shares, max_size=4).map(lambda values: (*sorted(values), 1.0))
texts = st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable())
widths = st.none() | st.builds(RatioSpec, ratios=ratios, divisor=st.integers(1, 64))
sides = st.sets(st.integers(8, 512), min_size=1, max_size=4).map(lambda values: tuple(sorted(values)))
resolutions = (
    st.none()
    | st.builds(ResolutionSpec, ratios=ratios, divisor=st.integers(1, 64))
    | st.builds(ResolutionSpec, choices=sides)
)
spaces = st.builds(
    SpaceSpec,
    family=texts,
    description=st.just("") | texts,
    matches=st.lists(texts, max_size=3).map(tuple),
    width=widths,
    hidden=widths,
    heads=st.none() | st.builds(HeadsSpec, ratios=ratios),
    depth=st.builds(DepthSpec, min=st.integers(1, 9)),
    resolution=resolutions,
    fixed=st.lists(texts, max_size=3).map(tuple),
)
lines = st.lists(st.text(max_size=200).filter(str.isprintable), max_size=3)


@given(spaces, lines)
def test_a_space_comes_back(tmp_path_factory, space: SpaceSpec, header: list[str]) -> None:
    path: Path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(
        space_yaml(space, header, dict.fromkeys(("width", "heads", "depth", "resolution", "fixed"), header))
    )
    assert load_space(str(path)) == space
    assert max(map(len, path.read_text().splitlines())) <= 210  # long words stay whole


def test_the_spaces_that_ship_come_back(tmp_path: Path) -> None:
    for name in space_names():
        path = tmp_path / "space.yaml"
        path.write_text(space_yaml(load_space(name), ["as it ships"], {}))
        assert load_space(str(path)) == load_space(name)
