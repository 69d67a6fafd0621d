"""What options bring, measured, beside importance."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import importance
import numpy as np
import pytest
from importance import ESTIMATORS, benefits_of


def test_benefits_are_found_where_losses_are_sums_of_them() -> None:
    rng = np.random.default_rng(0)
    presence, truth = rng.integers(0, 2, (5000, 6)).astype(float), np.array([0.3, 0.0, 1.0, -0.2, 0.05, 2.0])
    found = benefits_of(presence, 3.0 - presence @ truth)
    np.testing.assert_allclose(found, truth, atol=2e-3)  # the pull to zero is one subnet's


def test_every_estimator_is_compared_and_a_seed_is_measured_once(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importance, "_MEASURED", 24)
    monkeypatch.setattr(importance, "_STEPS", 4)
    monkeypatch.setattr(importance, "_DRAWN", 256)
    command = ["importance.py", "--data", str(npz), "--scale", "smoke", "--share", "0.2", "--out", str(tmp_path)]
    for seeds in ("1", "2", "2"):
        monkeypatch.setattr(sys, "argv", [*command, "--seeds", seeds, "--json"])
        importance.main()
    rows = [json.loads(line) for line in (tmp_path / "importance_smoke.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1]
    for row in rows:
        assert len(row["options"]) == len(row["benefits"]) > 20
        assert set(row["importance"]) == set(ESTIMATORS)
        assert set(row["worth"]) == {*ESTIMATORS, "multiply-adds", "early"}
        ranks = [value for kind in ("worth", "importance", "per_cost") for value in row[kind].values()]
        assert all(0 <= part <= 1 for by_weight in row["moved"].values() for part in by_weight.values())
        assert row["moved"]["growth"]["topology"] > 0.02
        assert all(-1 <= value <= 1 for value in [*ranks, row["repeated"]])
    (bar,) = json.loads(capsys.readouterr().out.splitlines()[-1])["bars"]
    reading = ["importance.py", "--scale", "smoke", "--out", str(tmp_path), "--seeds", "3"]
    monkeypatch.setattr(sys, "argv", reading)  # of another length nothing is measured
    with pytest.raises(SystemExit, match=r"seeds \[0, 1, 2\] are not measured yet"):
        importance.main()
    monkeypatch.setattr(sys, "argv", [*reading, "--share", "0.2"])
    with pytest.raises(SystemExit, match=r"seeds \[2\] are not measured yet: --data FILE is needed"):
        importance.main()
    assert bar["value"] == pytest.approx(np.mean([row["worth"]["topology"] for row in rows]))
