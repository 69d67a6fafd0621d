"""The trainings of a study, in order of worth, and the file that keeps what they gave."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anytime.evaluation import front_accuracy
from anytime.rivals import REFERENCE, RIVALS
from anytime.scales import Scale

TUNING_SEED = 1000
#: Rival -> the one whose tuned learning rate it takes.
RATE_OF = {rival.name: rival.rate_of for rival in RIVALS}
_STANDALONE = 8


@dataclass(frozen=True)
class Task:
    """One training and its measurement.

    Attributes:
        kind: ``tune`` (validation only), ``compute`` or ``steps`` (the two protocols), ``alone``.
        rival: name; for ``alone`` the panel's subnet, ``#0`` to ``#7``.
        seed: of weights, order of images, draws and search.
        share: length, as a share of the longest.
        rate: learning rate; None for the tuned one.
    """

    kind: str
    rival: str
    seed: int
    share: float
    rate: float | None = None

    @property
    def key(self) -> str:
        """Name in the file of results."""
        return "/".join(str(value) for value in asdict(self).values())


def tasks(
    scale: Scale,
    groups: Sequence[str],
    names: Sequence[str] | None,
    seeds: int,
    protocols: Sequence[str] = ("compute", "steps"),
    shares: Sequence[float] | None = None,
) -> list[Task]:
    """Return all trainings: learning rates first, then seed by seed, so that a study cut short is balanced.

    `shares` are the lengths at equal compute; all of the scale's by default.
    """
    rivals = [r for r in RIVALS if r.group in groups and (names is None or r.name in names)]
    tuned = {r.rate_of for r in rivals} | ({REFERENCE} if "alone" in groups else set())
    rates = scale.rates if len(scale.rates) > 1 else ()
    planned = [
        Task("tune", r.name, TUNING_SEED, scale.shares[0], rate) for r in RIVALS if r.name in tuned for rate in rates
    ]
    for seed in range(seeds):
        if "compute" in protocols:
            planned += [
                Task("compute", r.name, seed, share) for share in sorted(shares or scale.shares)[::-1] for r in rivals
            ]
        if "steps" in protocols:
            # The reference's longest training is the same in both protocols: its steps set the length.
            planned += [
                Task("steps", r.name, seed, 1.0) for r in rivals if r.group != "ablation" and r.name != REFERENCE
            ]
    if "alone" in groups:
        planned += [Task("alone", f"#{i}", 0, 1.0) for i in range(_STANDALONE)]
    return planned


class Results:
    """Results of one scale, a JSON line for each finished task."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """Return all finished rows; of a line that a crash cut off nothing is taken."""
        if not self.path.is_file():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def done(self) -> set[str]:
        """Return the keys of the finished tasks."""
        return {row["key"] for row in self.rows()}

    def add(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", encoding="utf-8") as file:
            # A line that a crash cut off must not swallow this one.
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            cut = file.read(1) not in ("", "\n")
            file.write("\n" * cut + json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rate(self, scale: Scale, rival: str) -> float | None:
        """Return the learning rate with the highest validation front accuracy; None while one is not tried.

        Subnets trained alone take the reference's.
        """
        if len(scale.rates) == 1:
            return scale.rates[0]
        name = RATE_OF.get(rival, REFERENCE)
        tried = {
            row["rate"]: front_accuracy(row, part="validation")
            for row in self.rows()
            if row["kind"] == "tune" and row["rival"] == name
        }
        return max(tried, key=lambda rate: tried[rate]) if set(tried) >= set(scale.rates) else None
