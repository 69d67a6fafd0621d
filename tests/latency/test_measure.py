"""Measuring this machine, for real."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tips_nni.cli import main
from tips_nni.core import TipsError
from tips_nni.elastic import Supernet
from tips_nni.latency import fit_pack, kernels_in, latency_model, predict_records, read_records, read_table
from tips_nni.latency.measure import (
    Measurement,
    entries_of,
    measure_device,
    repeatability,
    sample_subnets,
    table_rows,
)


def test_sampled_subnets_differ_and_hold_both_ends(mobilenet: Supernet) -> None:
    space = mobilenet.space
    codes = sample_subnets(space, 20, 0)
    assert len({tuple(code) for code in codes.tolist()}) == 20
    np.testing.assert_array_equal(codes[0], space.encode(space.largest))
    np.testing.assert_array_equal(codes[1], space.encode(space.smallest))
    np.testing.assert_array_equal(codes, sample_subnets(space, 20, 0))
    assert space.check_codes(codes) is not None


def test_entries_predict_what_the_table_predicts(mobilenet: Supernet) -> None:
    """A record of a subnet and the table over its space are the same model."""
    from tips_nni.latency import Record, load_pack

    pack = load_pack("pixel4_cpu")
    codes = sample_subnets(mobilenet.space, 10, 1)
    records = [Record("m_0", [entry for *_, entry in entries_of(mobilenet.architecture, code)], {}) for code in codes]
    table = latency_model("pixel4_cpu", mobilenet.architecture).evaluate(codes)
    np.testing.assert_allclose(predict_records(pack, records), table, rtol=1e-9)


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_a_small_network_is_timed_kernel_by_kernel(supernet: Supernet, tmp_path: Path, runtime: str) -> None:
    codes = sample_subnets(supernet.space, 3, 0)
    plan = Measurement("here", "test", runtime, seconds=0.2)
    stages = []
    records = measure_device(
        supernet, codes, plan, tmp_path / "r.jsonl", lambda stage, share: stages.append((stage, share))
    )
    assert read_records(tmp_path / "r.jsonl") == records
    assert {stage for stage, _ in stages} == {"prepare", "measure"}
    assert all(0 <= share <= 1 for _, share in stages)
    for record, code in zip(records, codes, strict=True):
        kernels = list(kernels_in(supernet.architecture, code[None]))
        assert len(record.kernels) == len(kernels) == len(record.kernel_ms["here"])
        assert sum(record.kernel_ms["here"]) == pytest.approx(record.latency_ms["here"], rel=1e-4)
        times = zip(kernels, record.kernel_ms["here"], strict=True)
        assert all(time > 0 for (_, kernel, _), time in times if kernel.type in ("conv", "dwconv", "fc"))
    repeated = repeatability(records, "here")
    print(f"repeatability on this machine: {repeated.max():.1%}")
    assert repeated.shape == (3,)
    again = measure_device(supernet, codes, plan, tmp_path / "r.jsonl")
    assert all(b.latency_ms["here"] <= a.latency_ms["here"] for a, b in zip(records, again, strict=True))
    pack = fit_pack(again, "here", "here", "")
    assert (predict_records(pack, again) > 0).all()
    assert {row.kernel.type for row in table_rows(again, "here")} >= {"conv", "fc"}


def test_records_of_other_networks_are_kept_apart(supernet: Supernet, tmp_path: Path) -> None:
    codes = sample_subnets(supernet.space, 2, 0)
    path = tmp_path / "r.jsonl"
    name = f"test_{'-'.join(map(str, codes[0].tolist()))}"
    row = {"id": name, "kernels": [["conv", 8, 3, 4, 1, 1]], "latency_ms": {"here": 1.0}}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(TipsError, match="has other kernels than now"):
        measure_device(supernet, codes, Measurement("here", "test", seconds=0.1), path)
    row["id"] = "other_1"
    path.write_text(json.dumps(row) + "\n")
    measure_device(supernet, codes, Measurement("here", "test", seconds=0.1), path)
    assert read_records(path)[0].name == "other_1"


def test_the_command_makes_a_pack_that_a_run_can_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack, table = tmp_path / "here.json", tmp_path / "here.csv"
    network = ["--space", "resnet", "--image-size", "32"]
    command = ["latency", "measure", "--backbone", "test_resnet", *network, "--networks", "8", "--seconds", "0.5"]
    assert main([*command, "--output", str(pack), "--table", str(table), "--quiet"]) == 0
    out = capsys.readouterr().out
    for words in ("measured twice: difference", "predicted unseen: error", f"target: {pack}"):
        assert words in out
    assert main(["latency", "check", str(pack)]) == 0
    assert main(["latency", "check", str(table)]) == 0
    assert main(["latency", "fit", str(pack.with_suffix(".jsonl")), "--folds", "4", "--write", str(tmp_path)]) == 0
    both = ["--target", str(pack), "--target", str(table)]
    assert main(["latency", "predict", "test_resnet", *network, *both]) == 0
    assert "test_resnet is of another family" not in capsys.readouterr().out
    assert len(read_table(table).rows) > 5


def test_a_spec_may_name_the_pack_that_is_measured_for_it(tmp_path: Path) -> None:
    spec = tmp_path / "run.yaml"
    spec.write_text(
        "backbone: {name: test_resnet}\nspace: resnet\ndata: {kind: digits, image_size: 32, limit: 256}\n"
        "training: {epochs: 1}\nconstraints: {target: ./here.json, latency_ms: 1000, coverage: refuse}\noutput: out\n"
    )
    measure = ["latency", "measure", str(spec), "--networks", "8", "--seconds", "0.2", "--quiet"]
    assert main([*measure, "--output", str(tmp_path / "here.json")]) == 0
    assert main(["check", str(spec)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x.json"], "give either a run spec or --backbone"),
        (["--backbone", "test_resnet", "--output", "x.pkl"], "must end with .json"),
        (["--backbone", "test_resnet", "--output", "x.json", "--networks", "2"], "--networks 2; it must be at least 8"),
        (["--backbone", "test_resnet", "--output", "x.json", "--runtime", "tvm"], "choose from onnxruntime, torch"),
        (["--backbone", "test_resnet", "--output", "x.json", "--seconds", "0"], "it must be above 0"),
    ],
)
def test_wrong_arguments_get_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["latency", "measure", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
