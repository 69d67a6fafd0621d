"""`tips-nni latency list|predict|fit|check`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tips_nni.core import Architecture, Codes, SearchSpace, TipsError
from tips_nni.elastic import Supernet, convert
from tips_nni.latency import (
    DEVICES,
    NN_METER,
    LatencyTable,
    Quality,
    fit_pack,
    held_out,
    is_nn_meter,
    latency_model,
    load_pack,
    pack_names,
    read_pack,
    read_records,
    read_table,
)
from tips_nni.latency.nn_meter import load_nn_meter
from tips_nni.pipeline._prepare import prepare
from tips_nni.specs import ARCHITECTURE, RUN_SPEC, load_run, load_space, space_for


def print_targets() -> None:
    """Print the packs that ship with the package."""
    table = Table(
        title="latency targets",
        caption="target: NAME in a run spec's constraints, or a path: ./pack.json, ./table.csv, ./nn-meter-folder",
    )
    for column in ("name", "device and runtime", "fitted on", "image size", "kernels"):
        table.add_column(column)
    for name in pack_names():
        pack = load_pack(name)
        families = f"{pack.networks:,} networks: {', '.join(pack.families)}"
        table.add_row(name, pack.description, families, _span(pack.image_size), ", ".join(pack.types))
    Console().print(table)
    print(f"nn-Meter's own predictors, with a folder to keep them in (packs, 1 to 3 GB each): {', '.join(NN_METER)}")


def predict_latency(
    subject: str,
    targets: Sequence[str],
    subnet: str,
    *,
    space: str | None,
    image_size: int,
    detail: bool,
    packs: str | None = None,
) -> None:
    """Print the predicted latency of a subnet on targets, with its coverage.

    Args:
        subject: run folder, run spec or timm backbone.
        targets: names or paths; all packs that ship where empty.
        subnet: ``largest``, ``smallest`` or a code such as ``0-3-1``.
        space: search space of a backbone; by default that of its family.
        image_size: of a backbone.
        detail: also every kernel, on each target whose kernels are known one by one.
        packs: folder for predictors of nn-Meter's, downloaded at the first use.

    Raises:
        TipsError: there is no such subject, target or subnet.
    """
    architecture, backbone, supernet = _network(subject, space, image_size)
    code = parse_subnet(architecture.space, subnet)
    table = Table(
        title=f"predicted latency of one image, {backbone}, subnet {subnet}",
        caption="how much of the largest subnet's kernels, multiply-adds and predicted time was measured there",
    )
    for column in ("target", "ms", "kernels", "multiply-adds", "time", "not measured"):
        table.add_column(column, justify="left" if column in ("target", "not measured") else "right", overflow="fold")
    details, notes = [], []
    for target in targets or pack_names():
        model = latency_model(
            target, architecture, supernet=supernet, backbone=backbone, packs=packs, run=Path(subject)
        )
        found = model.coverage()
        shares = [f"{found[key]:.0%}" for key in ("covered_kernels_share", "covered_flops_share", "covered_ms_share")]
        others = [f"{name} (neighbour)" for name in found["neighbours"]] + found["estimates"]
        others += [f"{name} (not counted)" for name in found.get("missing", ())]
        table.add_row(model.target, f"{model.evaluate(code[None])[0]:.4g}", *shares, ", ".join(others) or "none")
        notes += found["warnings"]
        if detail and isinstance(model, LatencyTable):
            details.append(_kernel_table(target, model.breakdown(code[None])))
    console = Console(highlight=False)
    for part in [*details, table]:
        console.print(part)
    for note in notes:
        print(f"note           {note}")


def fit_packs(
    data: str, devices: Sequence[str], *, folds: int, every: bool, seed: int, write: str | None
) -> list[Quality]:
    """Print how well packs predict networks that they were not fitted on, and write packs fitted on all.

    Args:
        data: measured networks, JSON lines.
        devices: as the records name them; all where empty.
        folds: one of so many random parts is held out.
        every: hold out every part in turn.
        seed: of the split.
        write: folder for the packs, or None.

    Raises:
        TipsError: no such data or device.
    """
    records = read_records(data)
    names = {device: name for name, (device, _) in DEVICES.items()}
    found = list(dict.fromkeys(device for record in records for device in record.latency_ms))
    wrong = [device for device in devices if device not in found]
    if wrong:
        raise TipsError(f"no record was measured on {wrong[0]!r}; the records have {', '.join(found)}")
    if not 2 <= folds <= len(records):
        raise TipsError(f"--folds {folds} for {len(records)} networks; choose 2 to {len(records)}")
    how = f"each of {folds} parts in turn" if every else f"a random part, 1 of {folds}"
    rows: list[Quality] = []
    for device in devices or found:
        rows += held_out(records, names.get(device, device), device, folds=folds, seed=seed, every=every)
    Console(highlight=False).print(quality_table(rows, f"networks not seen in the fit ({how})"))
    for device in (devices or found) if write is not None else ():
        name = names.get(device, device)
        pack = fit_pack(records, name, device, DEVICES[name][1] if name in DEVICES else device)
        path = Path(str(write)) / f"{name}.json"
        pack.save(path)
        print(f"pack           {path}")
    return rows


def quality_table(rows: Sequence[Quality], title: str) -> Table:
    """Return errors on unseen networks as a table."""
    table = Table(title=title)
    for column in ("fitted on", "device", "family", "networks", "within ±10%", "median error", "rank correlation"):
        text = column in ("fitted on", "device", "family")
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    for row in rows:
        numbers = f"{row.networks}", f"{row.within_10:.1%}", f"{row.median_error:.1%}", f"{row.rank_correlation:.4f}"
        table.add_row(row.fitted_on, row.device, row.family, *numbers)
    return table


def check_target(path: str) -> None:
    """Validate a pack, look-up table or folder of nn-Meter's and say what it is; runs nothing of it.

    Raises:
        TipsError: it is not valid.
    """
    if path.endswith(".csv"):
        table = read_table(Path(path))
        kinds = sorted({row.kernel.type for row in table.rows})
        print(f"{path}: a valid look-up table with {len(table.rows)} kernels: {', '.join(kinds)}")
        return
    if is_nn_meter(path):
        folder = load_nn_meter(path)
        print(
            f"{path}: a valid nn-Meter pack {folder.name!r} with {len(folder.kernels)} kernels: "
            + ", ".join(folder.kernels)
        )
        return
    pack = read_pack(Path(path))
    print(
        f"{path}: a valid latency pack {pack.name!r} ({pack.description}) with {len(pack.kernels)} kernels, fitted on "
        f"{pack.networks} networks of {', '.join(pack.families)} at {_span(pack.image_size)} pixels"
    )


def parse_subnet(space: SearchSpace, text: str) -> Codes:
    """Return the code of ``largest``, ``smallest`` or ``0-3-1``, shape (D,).

    Raises:
        TipsError: it is no subnet of the space.
    """
    if text in ("largest", "smallest"):
        return space.encode(space.largest if text == "largest" else space.smallest)
    try:
        return space.encode(space.decode([int(part) for part in text.split("-")]))
    except ValueError as error:
        raise TipsError(
            f"subnet {text!r} is not of this space ({error}); write largest, smallest or a code of {len(space.dims)} "
            "numbers, e.g. 0-3-1"
        ) from None


def supernet_of(subject: str, space: str | None, image_size: int) -> tuple[Supernet, str]:
    """Return the supernet of a run spec, run folder or backbone, with initial weights, and the backbone's name."""
    path = Path(subject)
    if path.is_dir() or subject.endswith((".yaml", ".yml")):
        # The network does not depend on the target, which may be what is about to be measured.
        overrides = ["constraints.target=pixel4_cpu", "constraints.coverage=warn"]
        parts = prepare(load_run(path / RUN_SPEC if path.is_dir() else path, overrides))
        return parts.supernet, parts.spec.backbone.name
    return convert(
        subject, load_space(space if space is not None else space_for(subject)), image_size=image_size
    ), subject


def _network(subject: str, space: str | None, image_size: int) -> tuple[Architecture, str, Supernet | None]:
    """Return the network, the backbone's name and, where the subject is no run folder, the supernet."""
    folder = Path(subject)
    if (folder / ARCHITECTURE).is_file() and (folder / RUN_SPEC).is_file():
        data = json.loads((folder / ARCHITECTURE).read_text(encoding="utf-8"))
        return Architecture.from_json(data), load_run(folder / RUN_SPEC, check_paths=False).backbone.name, None
    supernet, backbone = supernet_of(subject, space, image_size)
    return supernet.architecture, backbone, supernet


def _kernel_table(target: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=f"kernels on {target}")
    for column in ("operation", "kernel", "input", "channels", "MFLOPs", "ms", "source"):
        table.add_column(column, justify="right" if column in ("MFLOPs", "ms") else "left", overflow="fold")
    for row in rows:
        height, width = row["size_in"]
        shape = f"{height}×{width}", f"{row['cin']} → {row['cout']}"
        table.add_row(
            row["operation"], row["kernel"], *shape, f"{row['mflops']:.4g}", f"{row['ms']:.3g}", row["source"]
        )
    table.add_row(
        "sum", "", "", "", f"{sum(r['mflops'] for r in rows):.4g}", f"{np.sum([r['ms'] for r in rows]):.4g}", ""
    )
    return table


def _span(sides: tuple[int, int]) -> str:
    return f"{sides[0]}" if sides[0] == sides[1] else f"{sides[0]}–{sides[1]}"
