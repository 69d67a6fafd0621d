"""Packs: what they predict everywhere, and what is no pack."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tips_nni.cli import main
from tips_nni.core import TipsError
from tips_nni.latency import KERNEL_TYPES, Kernel, PredictorPack, Shapes, load_pack, pack_names, read_pack

_PACKS = [load_pack(name) for name in pack_names()]
_CHANNELS = st.integers(1, 4096)


def time_of(pack: PredictorPack, kernel: Kernel, cin: int, cout: int, side: int, per_group: int | None = None) -> float:
    out = -(-side // kernel.stride)
    grouped = {"dwconv": 1, "groupconv": 8}
    values = cin, cout, [side, side], [out, out], per_group or grouped.get(kernel.type, cin)
    return float(pack.kernel_ms(kernel, Shapes(*(np.array([value]) for value in values)))[0])


def shapes(cin: int, side: int = 14) -> Shapes:
    return Shapes(*(np.array([value]) for value in (cin, 64, [side, side], [side, side], cin)))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(_PACKS),
    st.sampled_from(KERNEL_TYPES),
    st.sampled_from([1, 2, 3, 4, 5, 7, 9, 11]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 300),
    _CHANNELS,
    _CHANNELS,
    st.integers(0, 512),
    st.integers(0, 512),
)
def test_more_channels_never_take_less_time(
    pack: PredictorPack, kind: str, size: int, stride: int, side: int, cin: int, cout: int, more_in: int, more_out: int
) -> None:
    kernel = Kernel(kind, size, stride)
    if kind == "dwconv":
        cin = cout
        more_in = more_out
    narrow = time_of(pack, kernel, cin, cout, side)
    assert np.isfinite(narrow)
    assert narrow >= 0
    assert time_of(pack, kernel, cin + more_in, cout + more_out, side) >= narrow * (1 - 1e-12)


@pytest.mark.parametrize("pack", _PACKS, ids=pack_names())
@pytest.mark.parametrize("kind", ["conv", "dwconv", "groupconv", "fc", "avgpool", "mul", "act", "norm", "concat"])
def test_no_kernel_is_free(pack: PredictorPack, kind: str) -> None:
    for size, stride in ((1, 1), (2, 2), (4, 4), (9, 1), (11, 4)):
        assert time_of(pack, Kernel(kind, size, stride), 64, 64, 28) > 0


@pytest.mark.parametrize("pack", _PACKS, ids=pack_names())
def test_larger_images_take_longer(pack: PredictorPack) -> None:
    """Between the measured sides as well, where models are interpolated."""
    for window in (1, 3, 5, 7):
        times = [time_of(pack, Kernel("conv", window), 64, 64, side) for side in (4, 7, 14, 20, 28, 40, 56, 80, 112)]
        assert times == sorted(times)


@pytest.mark.parametrize("pack", _PACKS, ids=pack_names())
def test_where_a_time_comes_from_is_said(pack: PredictorPack) -> None:
    assert pack.source_of(Kernel("conv", 3), shapes(64)) == "fitted"
    assert pack.source_of(Kernel("conv", 9), shapes(64)) == "neighbour"
    assert pack.source_of(Kernel("conv", 3, 1, 1), shapes(64)) == "neighbour"
    assert pack.source_of(Kernel("conv", 3, 2), shapes(3)) == "fitted"
    assert pack.source_of(Kernel("conv", 3, 2), shapes(64)) == "neighbour"  # only first layers had that stride
    assert pack.source_of(Kernel("groupconv", 3), shapes(64)) == "estimate"
    assert pack.source_of(Kernel("act"), shapes(64)) == "estimate"


@pytest.mark.parametrize("pack", _PACKS, ids=pack_names())
def test_a_stride_only_seen_in_first_layers_costs_like_its_neighbour(pack: PredictorPack) -> None:
    """Many input channels with stride 2: of the order of the same multiply-adds with stride 1."""
    strided = time_of(pack, Kernel("conv", 3, 2), 256, 256, 28)
    plain = time_of(pack, Kernel("conv", 3, 1), 256, 256, 14)
    assert plain <= strided < 3 * plain


def test_all_packs_are_small_and_plain() -> None:
    folder = Path(load_pack.__code__.co_filename).parent / "packs"
    files = list(folder.iterdir())
    assert {file.suffix for file in files} == {".json"}
    assert sum(file.stat().st_size for file in files) < 200_000


def test_a_carried_pack_is_the_same(tmp_path: Path) -> None:
    for pack in _PACKS:
        pack.save(tmp_path / "carried.json")
        assert load_pack(str(tmp_path / "carried.json")) == pack


def test_positions_of_a_linear_layer_are_a_convolution(planted: PredictorPack) -> None:
    assert time_of(planted, Kernel("fc"), 32, 48, 8) == time_of(planted, Kernel("conv"), 32, 48, 8)


class _Code:
    """Pickled code: loading it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.mkdir, (self.path,)


def sealed(content: dict[str, Any], **changes: Any) -> str:
    """A pack file whose digest is right."""
    body = {**content, "types": ["add", "conv", "dwconv", "fc"], **changes}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"format": "tips-nni latency pack 2", "unit": "ms", "digest": digest, **body})


def kernels_without(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in content["kernels"].items() if key != name}


BAD: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "truncated": (lambda c: sealed(c)[:300], "is cut short"),
    "altered": (lambda c: sealed(c).replace("known times", "other times"), "was altered"),
    "missing kernel": (lambda c: sealed(c, kernels=kernels_without(c, "fc-1-1")), "lacks the kernel 'fc'"),
    "no convolution": (
        lambda c: sealed({**c, "types": []}, kernels={"add-1-1": c["kernels"]["add-1-1"]}, types=["add"]),
        "lacks the kernel 'conv'",
    ),
    "seconds": (lambda c: sealed(c).replace('"unit": "ms"', '"unit": "s"'), "unit = 's'; latencies must be in 'ms'"),
    "negative": (lambda c: sealed(c, per_mac_ms=-1.0), "per_mac_ms = -1.0"),
    "unknown feature": (
        lambda c: sealed(c, kernels={"conv-1-1": {**c["kernels"]["conv-1-1"], "ms": {"__import__": 1.0}}}),
        "unknown feature '__import__'",
    ),
    "another format": (lambda c: json.dumps({"format": "other"}), "no latency pack of this version"),
    "a list": (lambda c: "[1, 2]", "no latency pack of this version"),
    "a key too few": (lambda c: sealed({k: v for k, v in c.items() if k != "networks"}), "not a latency pack"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_packs_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], planted_content: dict[str, Any], case: str
) -> None:
    make, message = BAD[case]
    (tmp_path / "bad.json").write_text(make(planted_content))
    assert main(["latency", "check", str(tmp_path / "bad.json")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_a_pickle_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made by code"
    for number, protocol in enumerate(range(pickle.HIGHEST_PROTOCOL + 1)):
        file = tmp_path / f"{number}.json"
        file.write_bytes(pickle.dumps(_Code(made), protocol))
        assert main(["latency", "check", str(file)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not made.exists()


def test_a_sealed_pack_is_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], planted_content: dict[str, Any], planted: PredictorPack
) -> None:
    (tmp_path / "good.json").write_text(sealed(planted_content))
    assert main(["latency", "check", str(tmp_path / "good.json")]) == 0
    assert "a valid latency pack 'planted'" in capsys.readouterr().out
    assert read_pack(tmp_path / "good.json") == planted


def test_an_unknown_target_is_named_with_the_closest() -> None:
    with pytest.raises(TipsError, match="did you mean 'pixel4_cpu'"):
        load_pack("pixel4cpu")
