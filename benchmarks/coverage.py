"""Convert a small member of every convolutional family of timm, and compare each supernet with timm and with itself.

    python benchmarks/coverage.py [--family NAME] [--json] [--markdown search_spaces/COVERAGE.md] [--subnets 20]

Every normalisation, bias and layer scale is randomised first, so that nothing constant hides a mistake. A family
passes if all of this holds, in one run: it converts in less than five seconds of one core (all checks of a conversion
and the ordering of channels included, timm's making of the model not); at least half of its multiply-adds are in
elastic layers; the largest subnet is the timm model (float32); ordering the channels by importance leaves the function
as it is, and random subnets equal their extracted modules (both in float64, relative to the largest logit where that
is above 1); multiply-adds and parameters counted are those of the extraction; a subnet exported to ONNX gives the same
in onnxruntime. In the last column Torch-Pruning alone cuts half of every group, and the result runs.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from coverage_families import CONVOLUTIONAL, OTHER_MODULES, TRANSFORMERS, Family
from coverage_peer import prune_alone
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tips_nni.core import CostTable, replacing
from tips_nni.elastic import Supernet, convert, export_onnx
from tips_nni.elastic._narrow import materialise
from tips_nni.specs import DepthSpec, RatioSpec, SpaceSpec

CLASSES = 8
SECONDS, TOLERANCE, EXACT, ELASTIC = 5.0, 1e-5, 1e-9, 0.5
RATIOS = RatioSpec(ratios=(0.5, 0.75, 1.0))
SPACE = SpaceSpec(family="coverage", width=RATIOS, hidden=RATIOS, depth=DepthSpec(min=1))


@dataclass
class Row:
    """What was found out about one family.

    Attributes:
        reasons: what does not hold; empty where the family passes.
        width, hidden, depth: numbers of elastic dimensions.
        log10_size: of the number of subnets.
        elastic: share of the largest subnet's multiply-adds that are in layers with an elastic axis.
        smallest: multiply-adds of the smallest subnet over those of the largest.
        seconds: of one core, for the conversion.
        largest, ordered, subnets, onnx: largest absolute differences, see the module's text.
        peer: what goes wrong with Torch-Pruning alone, "" where nothing does.
        fixed: how many groups and stages stay fixed, by reason.
    """

    family: str
    model: str
    size: int
    reasons: list[str] = field(default_factory=list)
    width: int = 0
    hidden: int = 0
    depth: int = 0
    log10_size: float = 0.0
    elastic: float = 0.0
    smallest: float = 1.0
    seconds: float = math.nan
    largest: float = math.nan
    ordered: float = math.nan
    subnets: float = math.nan
    flops_exact: bool = False
    onnx: float = math.nan
    peer: str = ""
    fixed: dict[str, int] = field(default_factory=dict)

    @property
    def passes(self) -> bool:
        """Whether everything holds."""
        return not self.reasons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", help="only this one (a family's or a model's name)")
    parser.add_argument("--subnets", type=int, default=20, help="random subnets compared for each family")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    check_list()

    def wanted(families: Sequence[Family]) -> list[Family]:
        return [f for f in families if not arguments.family or {f.name, f.model} & set(arguments.family)]

    rows = {kind: [measured(family, arguments.subnets) for family in wanted(families)] for kind, families in KINDS}
    console = Console(width=200)
    for kind, _ in KINDS:
        if rows[kind]:
            console.print(table(kind, rows[kind]))
            for row in rows[kind]:
                console.print(f"{row.family}: {'; '.join(row.reasons) or 'passes'}", highlight=False)
                for reason, count in row.fixed.items() if arguments.family else ():
                    console.print(f"    fixed {count} times: {reason}", highlight=False)
    bars = totals(rows["convolutional"], rows["transformer"])
    for bar in bars:
        console.print(f"{bar['name']}: {bar['value']} (bar {bar['bar']}): {'holds' if bar['holds'] else 'FAILS'}")
    if arguments.markdown:
        with replacing(arguments.markdown) as temporary:
            Path(temporary).write_text(markdown(rows, bars), encoding="utf-8")
    if arguments.json:
        print(json.dumps({"rows": {kind: [asdict(row) for row in rows[kind]] for kind in rows}, "bars": bars}))


KINDS = (("convolutional", CONVOLUTIONAL), ("transformer", TRANSFORMERS))


def check_list() -> None:
    """Stop where timm has a module that the lists know nothing about."""
    modules = {name for name in timm.list_modules() if timm.list_models(module=name)}
    listed = {family.module for family in (*CONVOLUTIONAL, *TRANSFORMERS)}
    listed.update(*OTHER_MODULES.values())
    if modules - listed:
        raise SystemExit(f"coverage_families.py lacks timm's modules {sorted(modules - listed)}; add them")


def measured(family: Family, subnets: int) -> Row:
    """Measure one family; what fails is in the row."""
    row = Row(family.name, family.model, family.size)
    torch.manual_seed(0)
    try:
        plain = timm.create_model(family.model, num_classes=CLASSES, **family.arguments).eval()
        images = torch.randn(1, 3, family.size, family.size)
        row.peer = prune_alone(plain, images, CLASSES)
        randomise(plain)
        model = copy.deepcopy(plain)
        gc.collect()
        start = time.process_time()
        net = convert(model, SPACE, image_size=family.size)
        row.seconds = time.process_time() - start
        net.eval()
        with torch.no_grad():
            # A conversion orders the channels of a module with weights.
            ordered, before = copy.deepcopy(net.backbone).double(), copy.deepcopy(plain).double()
            row.ordered = distance(ordered(images.double()), before(images.double()))
        plain.load_state_dict(net.backbone.state_dict())
        describe(row, net)
        compare(row, net, plain, images, subnets)
    except Exception as error:  # noqa: BLE001 - a family's failure is its row
        row.reasons.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    judge(row)
    gc.collect()
    print(f"{row.family}: {'passes' if row.passes else '; '.join(row.reasons)}", flush=True)
    return row


def judge(row: Row) -> None:
    """Add to a row what does not hold."""
    if row.reasons:
        return
    limits = (
        (row.seconds < SECONDS, f"conversion takes {row.seconds:.1f} s"),
        (row.width + row.hidden > 0, "no elastic width"),
        (row.elastic >= ELASTIC, f"only {row.elastic:.0%} of the multiply-adds are in elastic layers"),
        (row.largest <= TOLERANCE, f"the largest subnet differs from timm by {row.largest:.1e}"),
        (row.ordered <= TOLERANCE, f"ordering the channels changes the function by {row.ordered:.1e}"),
        (row.subnets <= EXACT, f"subnets differ from their extraction by {row.subnets:.1e}"),
        (row.flops_exact, "multiply-adds or parameters counted differ from the extraction's"),
        (row.onnx <= 1e-4, f"onnxruntime differs by {row.onnx:.1e}"),
    )
    row.reasons += [reason for holds, reason in limits if not holds]


def randomise(model: nn.Module) -> None:
    """Make normalisations, layer scales and biases differ from channel to channel; in place."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        data = tensor.data
        if not data.is_floating_point():
            continue
        if name.endswith("running_var"):
            data.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            data.normal_(0.0, 0.3, generator=generator)
        elif max(data.shape, default=1) == data.numel():
            data.normal_(1.0, 0.2, generator=generator)


def describe(row: Row, net: Supernet) -> None:
    """Fill in what is elastic."""
    kinds = [dim.kind for dim in net.space.dims]
    row.width, row.hidden, row.depth = (kinds.count(kind) for kind in ("width", "hidden", "depth"))
    row.log10_size = sum(math.log10(len(dim.choices)) for dim in net.space.dims)
    ends = net.space.encode_many([net.space.smallest, net.space.largest])
    smallest, largest = CostTable(net.architecture).flops(ends)
    row.smallest = float(smallest / largest)
    modules = dict(net.backbone.named_modules())
    elastic = total = 0
    for op in net.architecture.operations:
        if op.kind in ("conv", "linear") and op.name in modules:
            weight, size = modules[op.name].weight, net.architecture.spatial(op.output, ends[1:])[0]
            work = weight.numel() * int(size.prod())
            total += work
            elastic += work if op.name in net.plan.layers else 0
    row.elastic = elastic / total
    for reason in net.fixed.values():
        row.fixed[reason] = row.fixed.get(reason, 0) + 1


@torch.no_grad()
def compare(row: Row, net: Supernet, plain: nn.Module, images: Tensor, subnets: int) -> None:
    """Fill in the differences."""
    table, space = CostTable(net.architecture), net.space
    row.largest = max(distance(net(images), plain(images)), distance(net.extract(space.largest)(images), plain(images)))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = net.extract(space.smallest)
        scale = max(1.0, float(exported(images).abs().max()))
        row.onnx = export_onnx(exported, images, Path(folder) / "subnet.onnx") / scale
    net.double()
    images = images.double()
    codes = space.sample(np.random.default_rng(0), subnets)
    row.subnets, row.flops_exact = 0.0, True
    for code in codes:
        config = space.decode(code)
        view = net.view(config)
        extracted = materialise(view).eval()
        with FlopCounterMode(display=False) as counter:
            alone = extracted(images)
        row.subnets = max(row.subnets, distance(view(images), alone))
        counted = (int(table.flops(code[None])[0]), int(table.params(code[None])[0]))
        found = (counter.get_total_flops() // 2, sum(p.numel() for p in extracted.parameters()))
        row.flops_exact &= counted == found


def distance(one: Tensor, two: Tensor) -> float:
    """Return the largest absolute difference, relative to the largest magnitude where that is above 1."""
    return float((one - two).abs().max() / max(1.0, float(two.abs().max())))


def table(kind: str, rows: Sequence[Row]) -> Table:
    result = Table(title=f"{kind} families: {sum(row.passes for row in rows)} of {len(rows)} pass")
    for column in HEADER:
        result.add_column(column, justify="left" if column in ("family", "model", "passes") else "right")
    for row in rows:
        result.add_row(*cells(row))
    return result


HEADER = (
    "family", "model", "px", "passes", "width", "hidden", "depth", "log10 size", "elastic", "smallest", "seconds",
    "= timm", "ordered", "= extracted", "costs", "ONNX", "Torch-Pruning alone",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row as text."""
    numbers = (row.largest, row.ordered, row.subnets)
    return (
        row.family,
        row.model,
        str(row.size),
        "yes" if row.passes else "no",
        str(row.width),
        str(row.hidden),
        str(row.depth),
        f"{row.log10_size:.1f}",
        f"{row.elastic:.0%}",
        f"{row.smallest:.0%}",
        f"{row.seconds:.1f}",
        *(f"{number:.0e}" if number else "0" for number in numbers),
        "exact" if row.flops_exact else "no",
        f"{row.onnx:.0e}",
        "yes" if not row.peer else "no",
    )


def totals(rows: Sequence[Row], transformers: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the bars."""
    passing = sum(row.passes for row in rows)
    slowest = max((row.seconds for row in (*rows, *transformers) if not math.isnan(row.seconds)), default=math.nan)
    peer = sum(not row.peer for row in rows)
    needed = math.ceil(len(rows) * 58 / 60) if len(rows) >= 60 else 58
    return [
        {
            "name": f"convolutional families passing every column, of {len(rows)}",
            "value": passing,
            "bar": needed,
            "holds": passing >= needed and len(rows) >= 60,
        },
        {"name": "slowest conversion, s of one core", "value": round(slowest, 2), "bar": 5, "holds": slowest < SECONDS},
        {
            "name": f"transformers passing every column, of {len(transformers)}",
            "value": sum(row.passes for row in transformers),
            "bar": len(TRANSFORMERS),
            "holds": sum(row.passes for row in transformers) == len(TRANSFORMERS),
        },
        {
            "name": f"more than Torch-Pruning alone, which cuts {peer} of {len(rows)} in half",
            "value": passing,
            "bar": peer,
            "holds": passing >= peer,
        },
    ]


def markdown(rows: dict[str, list[Row]], bars: Sequence[dict[str, Any]]) -> str:
    """Return the page of the table."""
    text = ["# Coverage of timm\n", "Made by `python benchmarks/coverage.py --markdown search_spaces/COVERAGE.md`.\n"]
    text.append((__doc__ or "").split("\n\n", 2)[2])
    for kind, found in rows.items():
        text.append(f"\n## {kind.capitalize()} families: {sum(row.passes for row in found)} of {len(found)} pass\n")
        text += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
        text += ["| " + " | ".join(cells(row)) + " |" for row in found]
        missing = [row for row in found if not row.passes]
        if missing:
            text.append("\nWhat does not pass, and why:\n")
            text += [f"- {row.family}: {'; '.join(row.reasons)}" for row in missing]
    text.append("\n## Totals\n")
    text += [f"- {bar['name']}: {bar['value']} (bar {bar['bar']})" for bar in bars]
    text.append("\n## Modules of timm without a convolutional family\n")
    text += [f"- {what}: {', '.join(names)}" for what, names in OTHER_MODULES.items()]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
