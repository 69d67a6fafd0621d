"""Latency of every subnet by a pack of nn-Meter, by table look-up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import Codes, SearchSpace, TabulatedCost, Term, TipsError, replacing
from tips_nni.latency._table import LatencyModel, check_coverage
from tips_nni.latency.nn_meter._pack import NnMeterPack

if TYPE_CHECKING:
    from tips_nni.elastic import Supernet
    from tips_nni.latency.nn_meter._layout import Layout

FORMAT = "tips-nni nn-Meter table 1"
#: Subnets beside the smallest whose own exports are compared with the table as it is built.
_CHECKS = 3
_TOLERANCE = 1e-9


class NnMeterTable(LatencyModel):
    """Latency of one image in ms: what nn-Meter's `predict` gives for the exported subnet.

    The table is built from one export of the largest subnet and then compared with nn-Meter's own split of other
    subnets, at every resolution; a supernet for which they differ is refused. Building needs torch and nn-Meter;
    `load` needs neither.

    Attributes:
        space: the search space.
        target: name of the pack.
        pack_digest: its digest.
    """

    def __init__(
        self, supernet: Supernet, pack: NnMeterPack, *, cache: Path | None = None, refuse: bool = False
    ) -> None:
        """Build the table, or take it from the cache.

        Args:
            supernet: the subnets.
            pack: the predictors.
            cache: a folder for finished tables, by a digest of all that they depend on; nothing is kept without one.
            refuse: refuse a pack that covers less than 95% of the largest subnet's multiply-adds.

        Raises:
            TipsError: nn-Meter is not installed, it would read the network wrongly, the network cannot be tabulated,
                or the pack does not cover it and `refuse` is set.
        """
        path = None if cache is None else cache / f"{_digest(supernet, pack)}.npz"
        if path is not None and path.is_file():
            self._adopt(*_read(path, supernet.space))
        else:
            self._adopt(*_build(supernet, pack))
            if path is not None:
                self.save(path)
        if refuse:
            check_coverage(self)

    def _adopt(self, header: dict[str, Any], space: SearchSpace, terms: Sequence[Term]) -> None:
        self.space = space
        self.target = str(header["pack"])
        self.pack_digest = str(header["digest"])
        self._coverage: dict[str, Any] = header["coverage"]
        self._terms = list(terms)
        self._total = TabulatedCost(self.name, self.unit, space, self._terms)

    def evaluate(self, codes: Codes) -> NDArray[np.float64]:
        """Return the predicted latency of every subnet in ms, shape (N,)."""
        return self._total.evaluate(codes)

    def coverage(self) -> dict[str, Any]:
        """Return how much of the largest subnet the pack predicts.

        Returns:
            ``covered_flops_share`` and ``covered_kernels_share``, 0 to 1; ``missing``, kernels without a predictor and
            their number, which count as 0 ms; ``warnings``, one line each; and what tables of other packs have:
            ``estimates``, ``neighbours`` and ``families``, empty, and ``covered_ms_share``, 1.
        """
        return self._coverage

    def save(self, path: Path) -> None:
        """Write the table as npz, without pickle.

        Raises:
            TipsError: the file cannot be written.
        """
        header = {
            "format": FORMAT,
            "pack": self.target,
            "digest": self.pack_digest,
            "space": self.space.to_json(),
            "coverage": self._coverage,
            "dims": [list(term.dims) for term in self._terms],
        }
        arrays: dict[str, Any] = {f"table{i}": term.table for i, term in enumerate(self._terms)}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)

    @classmethod
    def load(cls, path: Path, space: SearchSpace) -> NnMeterTable:
        """Read what `save` wrote, for the same search space.

        Raises:
            TipsError: the file cannot be read, is cut short, or is of another search space.
        """
        table = cls.__new__(cls)
        table._adopt(*_read(path, space))
        return table


def _read(path: Path, space: SearchSpace) -> tuple[dict[str, Any], SearchSpace, list[Term]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            header = json.loads(data["header"].tobytes())
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise TipsError(f"{path} is no table of this version ({FORMAT!r}); build it again")
            terms = [Term(tuple(dims), data[f"table{i}"]) for i, dims in enumerate(header["dims"])]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        if isinstance(error, TipsError):
            raise
        raise TipsError(f"{path} is no latency table or is cut short ({error}); build it again") from error
    if header["space"] != space.to_json():
        raise TipsError(f"{path} belongs to another search space; build the table for this one")
    shapes = [tuple(len(space.dims[dim].choices) for dim in term.dims) for term in terms]
    if any(term.table.shape != shape for term, shape in zip(terms, shapes, strict=True)):
        raise TipsError(f"{path} was altered: a table does not have the shape of its dimensions; build it again")
    return header, space, terms


def _build(supernet: Supernet, pack: NnMeterPack) -> tuple[dict[str, Any], SearchSpace, list[Term]]:
    from tips_nni.latency.nn_meter._layout import Layout
    from tips_nni.latency.nn_meter._predict import coverage_json, coverage_of, predict_blocks

    space = supernet.space
    layout = Layout(supernet, pack.rules)
    terms = _terms(layout, pack)
    codes = _checked(space)
    total = TabulatedCost("latency_ms", "ms", space, terms).evaluate(codes)
    for blocks, expected in zip(layout.verify(supernet, pack.rules, codes), total, strict=True):
        actual = predict_blocks(blocks, pack).latency_ms
        if abs(actual - expected) > _TOLERANCE * abs(actual):
            raise TipsError(f"the latency table gives {expected} ms where nn-Meter predicts {actual} ms")
    work = [(block, block.reading()) for block in layout.largest if not block.view]
    header = {"pack": pack.name, "digest": pack.digest, "coverage": coverage_json(coverage_of(work, pack))}
    return header, space, terms


def _checked(space: SearchSpace) -> Codes:
    """Return the subnets to compare: the smallest, and random ones, at every resolution."""
    resolutions = len(space["resolution"].choices) if "resolution" in space else 1
    codes = space.sample(np.random.default_rng(0), max(_CHECKS, resolutions))
    if resolutions > 1:
        codes[:, space.position("resolution")] = np.arange(len(codes)) % resolutions
    return np.concatenate([space.encode(space.smallest)[None], codes])


def _terms(layout: Layout, pack: NnMeterPack) -> list[Term]:
    """Predict every kernel for all choices that it sees."""
    rows: dict[str, dict[tuple[float, ...], float]] = {}
    for kernel in layout.kernels:
        for reading in kernel.readings:
            if reading is not None and reading.features is not None and reading.predictor in pack.kernels:
                rows.setdefault(reading.predictor, {})[reading.features] = 0.0
    for name, features in rows.items():
        features.update(zip(features, pack.kernels[name].predict(list(features)).tolist(), strict=True))
    terms: dict[tuple[int, ...], NDArray[np.float64]] = {}
    for kernel in layout.kernels:
        values = [
            0.0 if item is None or item.features is None else rows.get(item.predictor, {}).get(item.features, 0.0)
            for item in kernel.readings
        ]
        shape = [len(layout.space.dims[dim].choices) for dim in kernel.dims]
        terms[kernel.dims] = terms.get(kernel.dims, 0.0) + np.array(values).reshape(shape)
    return [Term(dims, table) for dims, table in terms.items() if table.any()]


def _digest(supernet: Supernet, pack: NnMeterPack) -> str:
    """Return a digest of all that a table depends on."""
    content = {
        "format": FORMAT,
        "architecture": supernet.architecture.to_json(),
        "plan": supernet.plan.to_json(),
        # Layers' arguments that the description lacks, such as padding.
        "modules": str(supernet.backbone),
        "pack": [pack.name, pack.digest],
        "versions": {name: _version(name) for name in ("tips-nni", "nn-meter", "onnx", "onnxsim", "torch")},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
