"""Commands on predicted latency: `latency list|predict|measure|fit|check|export`.

The handlers import what they need when they are called: `--help` and a misspelt option answer at once.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from tips_nni.cli._command import Commands
from tips_nni.core import TipsError

_DETAILS = """\
Latency of one image on a device, predicted from the device's measured kernels.
  list      devices that ship with the package, and what they were fitted on
  predict   how fast is a network there, and how much of that was measured?
  measure   this machine: time its kernels, fit a pack that any machine can use
  fit       fit packs to measurements, and see their error on networks they have not seen
  check     is a pack or look-up table valid? runs nothing of it
  export    a pack as nn-Meter's own folder
A target in a run spec is a name of `list` or a path: constraints: {target: ./mydevice.json, latency_ms: 30}."""


def add_to(commands: Commands) -> None:
    """Add these commands."""
    latency = commands.add_group("latency", "predicted latency: devices, predictions, your own device", _DETAILS)
    latency.add("list", _list, "list the devices", "List the devices that ship.", "  tips-nni latency list")

    predict = latency.add(
        "predict",
        _predict,
        "predict the latency of a backbone or run, with its coverage",
        "Print the latency of one subnet on every device, or on those that you name, beside the share of its kernels,\n"
        "multiply-adds and time that was measured. `neighbour`: another window or stride of the same type stands for\n"
        "a kernel; `estimate`: only the data that it moves (and dense multiply-adds) count.",
        "  tips-nni latency predict mobilenetv2_100\n"
        "  tips-nni latency predict runs/digits --subnet smallest --target ./mydevice.json --detail",
    )
    predict.add_argument("subject", metavar="BACKBONE|RUN|SPEC", help="timm backbone, run folder or run spec")
    predict.add_argument(
        "--target",
        action="append",
        default=[],
        help="name, pack (.json), table (.csv) or folder of nn-Meter's; repeatable (default: all that ship)",
    )
    predict.add_argument("--packs", metavar="DIR", help="folder for nn-Meter's own predictors, 1 to 3 GB each")
    predict.add_argument("--subnet", default="largest", help="largest, smallest or a code such as 0-3-1 (%(default)s)")
    _add_network(predict)
    predict.add_argument("--detail", action="store_true", help="also every kernel")

    measure = latency.add(
        "measure",
        _measure,
        "time this machine's kernels and fit a pack",
        "Time subnets of a search space here, one image at a time: all in turn, round after round, the smallest time\n"
        "of each; their kernels with the runtime's profiler. Every second round is a measurement of its own, so that\n"
        "the table shows how well this machine repeats itself beside the error of the pack on subnets it did not\n"
        "see. The same command again adds rounds to the records. To measure another device, run this there: the pack\n"
        "is a file to carry away.",
        "  tips-nni latency measure --backbone mobilenetv2_100 --image-size 64 --output mydevice.json\n"
        "  tips-nni latency measure mine.yaml --seconds 600 --threads 4 --output mydevice.json --table mydevice.csv",
    )
    measure.add_argument("spec", nargs="?", metavar="SPEC|RUN", help="run spec or run folder, instead of --backbone")
    measure.add_argument("--backbone", metavar="NAME", help="timm backbone")
    _add_network(measure)
    measure.add_argument("--networks", type=int, default=24, metavar="N", help="subnets to time (%(default)s)")
    measure.add_argument("--seconds", type=float, default=120.0, metavar="S", help="how long to time (%(default)s)")
    measure.add_argument("--runtime", default="onnxruntime", help="onnxruntime or torch (%(default)s)")
    measure.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the runtime (%(default)s)")
    measure.add_argument("--output", required=True, metavar="JSON", help="pack to write; the records stand beside it")
    measure.add_argument("--table", metavar="CSV", help="also write the kernels as a look-up table")
    measure.add_argument("--seed", type=int, default=0, help="of the sampled subnets (%(default)s)")

    fit = latency.add(
        "fit",
        _fit,
        "fit packs to measured networks, and print their error on others",
        "Fit a pack for every device in the records (JSON lines with id, kernels and latency_ms by device; what\n"
        "`measure` writes, or nn-Meter's benchmark data) and print its error on a random part that the fit has not\n"
        "seen, for each family of networks, and the error when one family predicts another. The same records give\n"
        "the same pack, byte for byte.",
        "  tips-nni latency fit mydevice.jsonl\n  tips-nni latency fit device_latency.jsonl.gz --every --write packs",
    )
    fit.add_argument("data", metavar="DATA", help="measured networks (.jsonl or .jsonl.gz)")
    fit.add_argument("--device", action="append", default=[], help="only this one of the records; repeatable")
    fit.add_argument("--folds", type=int, default=5, metavar="N", help="hold out one of N parts (%(default)s)")
    fit.add_argument("--every", action="store_true", help="hold out every part in turn (cross-validation)")
    fit.add_argument("--seed", type=int, default=0, help="of the split (%(default)s)")
    fit.add_argument("--write", metavar="FOLDER", help="write packs fitted on all networks")

    check = latency.add(
        "check",
        _check,
        "validate a pack or look-up table",
        "Read a pack (.json), a look-up table (.csv) or a folder of nn-Meter's and say what it is. Nothing in it runs.",
        "  tips-nni latency check mydevice.json",
    )
    check.add_argument("file", metavar="FILE|DIR", help="pack, look-up table, or folder in nn-Meter's format")

    export = latency.add(
        "export",
        _export,
        "write a pack as nn-Meter's own folder",
        "Write fusion rules, a regressor for every kernel and the yaml with which nn-Meter registers a predictor.",
        "  tips-nni latency export pixel4_cpu pixel4_nn_meter",
    )
    export.add_argument("pack", metavar="NAME|FILE", help="pack by name, or its file")
    export.add_argument("folder", metavar="DIR", help="folder to write")


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--space", metavar="NAME", help="search space of a backbone (default: its family's)")
    parser.add_argument(
        "--image-size", type=int, default=224, metavar="PIXELS", help="side of a backbone's input (%(default)s)"
    )


def _list(_arguments: argparse.Namespace) -> None:
    from tips_nni.pipeline import print_targets

    print_targets()


def _predict(arguments: argparse.Namespace) -> None:
    from tips_nni.pipeline import predict_latency

    predict_latency(
        arguments.subject,
        arguments.target,
        arguments.subnet,
        space=arguments.space,
        image_size=arguments.image_size,
        detail=arguments.detail,
        packs=arguments.packs,
    )


def _measure(arguments: argparse.Namespace) -> None:
    if (arguments.spec is None) == (arguments.backbone is None):
        raise TipsError("give either a run spec or --backbone, e.g. --backbone mobilenetv2_100 --image-size 224")
    from tips_nni.pipeline import MeasureOptions, measure_latency

    options = MeasureOptions(
        subject=arguments.spec or arguments.backbone,
        output=Path(arguments.output),
        space=arguments.space,
        image_size=arguments.image_size,
        networks=arguments.networks,
        seconds=arguments.seconds,
        runtime=arguments.runtime,
        threads=arguments.threads,
        table=Path(arguments.table) if arguments.table else None,
        seed=arguments.seed,
    )
    measure_latency(options, quiet=arguments.quiet)


def _fit(arguments: argparse.Namespace) -> None:
    from tips_nni.pipeline import fit_packs

    fit_packs(
        arguments.data,
        arguments.device,
        folds=arguments.folds,
        every=arguments.every,
        seed=arguments.seed,
        write=arguments.write,
    )


def _check(arguments: argparse.Namespace) -> None:
    from tips_nni.pipeline import check_target

    check_target(arguments.file)


def _export(arguments: argparse.Namespace) -> None:
    from tips_nni.latency import load_pack

    pack = load_pack(arguments.pack)
    try:
        nn_meter = importlib.import_module("tips_nni.latency.nn_meter")
    except ModuleNotFoundError as error:
        raise TipsError(f"this installation cannot write nn-Meter's folders ({error})") from None
    nn_meter.export_pack(pack, Path(arguments.folder))
    print(f"nn-Meter pack  {arguments.folder}")
