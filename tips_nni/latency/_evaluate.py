"""How well packs predict networks that they were not fitted on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from tips_nni.latency._fit import fit_pack
from tips_nni.latency._kernels import Kernel
from tips_nni.latency._pack import PredictorPack
from tips_nni.latency._records import Record, parse_entry, shapes_of


@dataclass(frozen=True)
class Quality:
    """Errors of predictions on networks that were not fitted.

    Attributes:
        fitted_on: families of the fit.
        device: name of the pack.
        family: of the networks.
        networks: how many.
        within_10: share of them within ±10% of the measurement.
        median_error: median of the relative error.
        rank_correlation: Spearman's, predicted against measured.
        folds: 1 for a single split, else the number of parts that were held out in turn.
    """

    fitted_on: str
    device: str
    family: str
    networks: int
    within_10: float
    median_error: float
    rank_correlation: float
    folds: int = 1


def predict_records(pack: PredictorPack, records: Sequence[Record]) -> NDArray[np.float64]:
    """Return the predicted latency in ms of every record, shape (N,)."""
    grouped: dict[Kernel, list[tuple[int, tuple[int, int, int, int, int]]]] = {}
    for i, record in enumerate(records):
        for entry in record.kernels:
            kernel, numbers = parse_entry(entry)
            grouped.setdefault(kernel, []).append((i, numbers))
    total = np.zeros(len(records))
    for kernel, used in grouped.items():
        distinct = list(dict.fromkeys(numbers for _, numbers in used))
        times = pack.kernel_ms(kernel, shapes_of(distinct))
        place = {numbers: number for number, numbers in enumerate(distinct)}
        np.add.at(total, [i for i, _ in used], times[[place[numbers] for _, numbers in used]])
    return total


def quality(
    predicted: NDArray[np.float64], records: Sequence[Record], device: str, fitted_on: str, name: str, folds: int = 1
) -> Quality:
    """Return the errors of predictions, shape (N,), for records of one family measured on the device."""
    measured = np.array([record.latency_ms[device] for record in records])
    error = np.abs(predicted / measured - 1)
    ranks = float(spearmanr(predicted, measured).statistic) if len(records) > 2 else float("nan")
    family = ", ".join(sorted({record.family for record in records}))
    within, median = float((error <= 0.1).mean()), float(np.median(error))
    return Quality(fitted_on, name, family, len(records), within, median, ranks, folds)


def held_out(
    records: Sequence[Record], name: str, device: str, *, folds: int = 5, seed: int = 0, every: bool = False
) -> Iterator[Quality]:
    """Yield the errors of packs on networks that they were not fitted on, for each family.

    First on a random part (one of `folds`), then, with more families than one, on the other families from packs that
    were fitted on one family alone. With `every`, all parts are held out in turn instead, and every network counts.

    Args:
        records: measured networks.
        name: of the pack.
        device: key of `Record.latency_ms`.
        folds: number of parts.
        seed: of the split.
        every: k-fold cross-validation.
    """
    order = np.random.default_rng(seed).permutation(len(records))
    parts = [
        [records[i] for i in chosen if device in records[i].latency_ms]
        for chosen in np.split(order, [len(records) * k // folds for k in range(1, folds)])
    ]
    families = sorted({record.family for part in parts for record in part})
    joint = "all" if len(families) > 1 else families[0]
    turns = range(folds) if every else range(1)
    seen: dict[str, list[tuple[list[Record], NDArray[np.float64]]]] = {family: [] for family in families}
    for turn in turns:
        kept = [record for k, part in enumerate(parts) if k != turn for record in part]
        pack = fit_pack(kept, name, device, "")
        for family in families:
            own = [record for record in parts[turn] if record.family == family]
            seen[family].append((own, predict_records(pack, own)))
    for family in families:
        own = [record for part, _ in seen[family] for record in part]
        if own:
            predicted = np.concatenate([values for _, values in seen[family]])
            yield quality(predicted, own, device, joint, name, len(turns))
    if every or len(families) < 2:
        return
    for family in families:
        alone = fit_pack([r for part in parts[1:] for r in part if r.family == family], name, device, "")
        for other in families:
            own = [record for record in parts[0] if record.family == other]
            if other != family and own:
                yield quality(predict_records(alone, own), own, device, family, name)
