"""Fits of known times give the known times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tips_nni.core import TipsError
from tips_nni.latency import (
    Kernel,
    KernelModel,
    PredictorPack,
    Record,
    Shapes,
    fit_pack,
    held_out,
    predict_records,
    read_records,
    write_records,
)

Make = Callable[..., list[Record]]


def test_planted_times_are_predicted_on_new_networks(
    planted: PredictorPack, records: list[Record], make_networks: Make, measure_with: Make
) -> None:
    pack = fit_pack(records, "planted", "planted", "", ridge=1e-5)
    new = measure_with(make_networks(50, 7), planted)
    np.testing.assert_allclose(predict_records(pack, new), [r.latency_ms["planted"] for r in new], rtol=1e-3)
    assert pack.families == ("mobilenetv2", "vgg")
    assert pack.image_size == (16, 16)


def test_planted_coefficients_are_recovered() -> None:
    """Of one kind of kernel at one resolution: the features differ, so the data leave nothing open."""
    everywhere, at_side = {"launch": 0.02, "input": 0.5, "output": 0.3}, {"macs": 0.05, "macs if cin>48": 0.01}
    model = KernelModel(everywhere, {16: at_side}, (8, 96), (8, 96))
    rng = np.random.default_rng(0)
    records = []
    for number, (cin, cout) in enumerate(rng.integers(8, 97, (400, 2)).tolist()):
        entry = ("conv", 16, cin, cout, 1, 1)
        values = (np.array([value]) for value in (cin, cout, [16, 16], [16, 16], cin))
        time = float(model.evaluate(Kernel("conv"), Shapes(*values))[0])
        records.append(Record(f"net_{number}", [entry], {"d": time}))
    found = fit_pack(records, "p", "d", "", ridge=1e-7).kernels["conv-1-1"]
    # At one resolution a weight is 16 · 16 multiply-adds.
    own = dict(found.everywhere)
    side = {**found.sides[16], "macs": found.sides[16]["macs"] + own.pop("weights", 0.0) / 256}
    for expected, row in ((everywhere, own), (at_side, side)):
        kept = {name: value for name, value in row.items() if value > 1e-4}
        assert kept == pytest.approx(expected, rel=1e-2)


def test_times_of_kernels_settle_what_whole_networks_leave_open(planted: PredictorPack) -> None:
    """All networks have as many dense as depthwise convolutions of one shape: only their own times tell them apart."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(40):
        width = int(rng.integers(8, 97))
        kernels = [("conv", 16, width, width, 1, 1), ("dwconv", 16, width, width, 3, 1)]
        parts = [float(predict_records(planted, [Record("x_0", [kernel], {})])[0]) for kernel in kernels]
        records.append(Record(f"net_{number}", kernels, {"planted": sum(parts)}, {"planted": parts}))
    pack = fit_pack(records, "p", "planted", "", ridge=1e-5)
    for kernel in [("conv", 16, 50, 50, 1, 1), ("dwconv", 16, 50, 50, 3, 1)]:
        alone = [Record("x_0", [kernel], {})]
        np.testing.assert_allclose(predict_records(pack, alone), predict_records(planted, alone), rtol=0.02)


def test_a_network_far_off_bends_the_others_little(planted: PredictorPack, records: list[Record]) -> None:
    spoilt = [Record(r.name, r.kernels, {"planted": 5 * r.latency_ms["planted"]}) for r in records[:5]] + records[5:]
    pack = fit_pack(spoilt, "planted", "planted", "")
    truth = np.array([r.latency_ms["planted"] for r in records[5:]])
    assert np.abs(predict_records(pack, records[5:]) / truth - 1).mean() < 0.03


def test_the_same_records_give_the_same_file(tmp_path: Path, records: list[Record]) -> None:
    for name in ("first.json", "second.json"):
        fit_pack(records[:80], "p", "planted", "").save(tmp_path / name)
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    other = fit_pack(records[:79], "p", "planted", "")
    assert other.digest != json.loads((tmp_path / "first.json").read_text())["digest"]


def test_held_out_networks_are_counted_once_each(records: list[Record]) -> None:
    every = list(held_out(records, "p", "planted", folds=3, every=True))
    assert {(q.family, q.networks) for q in every} == {("mobilenetv2", 150), ("vgg", 150)}
    assert all(q.within_10 == 1 and q.rank_correlation > 0.999 and q.folds == 3 for q in every)
    split = list(held_out(records, "p", "planted", folds=3))
    assert {(q.fitted_on, q.family) for q in split} == {
        ("all", "mobilenetv2"),
        ("all", "vgg"),
        ("mobilenetv2", "vgg"),
        ("vgg", "mobilenetv2"),
    }
    assert sum(q.networks for q in split if q.fitted_on == "all") == 100


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    kernels = [("conv", 8, 3, 4, 3, 2), ("groupconv", 4, 8, 8, 3, 1, 2)]
    record = Record("net_1", kernels, {"a": 2.0}, {"a": [0.5, 1.5]}, {"a": 2.1})
    write_records(tmp_path / "r.jsonl", [record])
    assert read_records(tmp_path / "r.jsonl") == [record]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "r.jsonl:1: no latency record"),
        ('{"id": "a_1", "kernels": [], "latency_ms": {"d": 1}}', "has no kernels"),
        ('{"id": "a_1", "kernels": [["pool", 8, 1, 1, 1, 1]], "latency_ms": {"d": 1}}', "unknown kernel 'pool'"),
        ('{"id": "a_1", "kernels": [["conv", 8, 0, 1, 1, 1]], "latency_ms": {"d": 1}}', "number below 1"),
        ('{"id": "a_1", "kernels": [["conv", 8, 1, 1, 1, 1]], "latency_ms": {"d": -1}}', "must be above 0"),
        (
            '{"id": "a_1", "kernels": [["conv", 8, 1, 1, 1, 1]], "latency_ms": {"d": 1}, "kernel_ms": {"d": [1, 2]}}',
            "for each of 1 kernels",
        ),
    ],
)
def test_bad_records_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "r.jsonl").write_text(line + "\n")
    with pytest.raises(TipsError, match=r"r\.jsonl:1") as caught:
        read_records(tmp_path / "r.jsonl")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_device_that_was_not_measured_is_refused(records: list[Record]) -> None:
    with pytest.raises(TipsError, match="no record was measured on 'mine'; the records have planted"):
        fit_pack(records, "p", "mine", "")
