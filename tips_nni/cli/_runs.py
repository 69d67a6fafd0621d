"""Commands on whole runs: `run`, `check`, `report`.

The handlers import what they need when they are called: `--help` and a misspelt option answer at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tips_nni.cli._command import Commands, need_nni


def add_to(commands: Commands) -> None:
    """Add these commands."""
    run = commands.add(
        "run",
        _run,
        "train, search, export and report, from one YAML file",
        "Train the supernet, search its front under the constraints, measure the front on test images that\n"
        "neither saw, and write the anytime model, ONNX files, front.csv and report.html to the output folder.",
        "  tips-nni run examples/digits/run.yaml --set training.epochs=5 --set output=runs/short\n"
        "  tips-nni run mine.yaml --resume          after Ctrl-C, a crash or a power cut",
    )
    run.add_argument("spec", metavar="SPEC", help="run spec (YAML)")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the spec")
    run.add_argument("--resume", action="store_true", help="go on with the run in the output folder, if there is one")
    run.add_argument("--overwrite", action="store_true", help="delete the run in the output folder first")

    check = commands.add(
        "check",
        _check,
        "validate a run spec, search space, strategy or NNI experiment without running it",
        "Check a YAML file: keys, values, names and paths; for a run spec also that the backbone converts, and\n"
        "that some subnet keeps the constraints; for an NNI experiment also the arguments of the tuner, which\n"
        "NNI itself never checks. Trains nothing.",
        "  tips-nni check mine.yaml\n  tips-nni check examples/nni/config.yaml",
    )
    check.add_argument("spec", metavar="FILE", help="run spec, search space, strategy or NNI experiment (YAML)")
    check.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of a run spec")

    report = commands.add(
        "report",
        _report,
        "write the HTML report of a run again",
        "Make report.html from the files of a run folder.",
        "  tips-nni report runs/digits",
    )
    report.add_argument("run", metavar="RUN", help="run folder")


def _run(arguments: argparse.Namespace) -> None:
    from tips_nni.pipeline import run
    from tips_nni.specs import load_run

    spec = load_run(arguments.spec, arguments.set)
    run(spec, resume=arguments.resume, overwrite=arguments.overwrite, quiet=arguments.quiet, source=arguments.spec)


def _check(arguments: argparse.Namespace) -> None:
    from tips_nni.specs import kind_of_file

    if kind_of_file(Path(arguments.spec)) == "experiment":
        need_nni()
        from tips_nni.adapters import check_experiment

        print(check_experiment(Path(arguments.spec)))
    else:
        from tips_nni.pipeline import check

        check(arguments.spec, arguments.set)


def _report(arguments: argparse.Namespace) -> None:
    from tips_nni.report import write_report

    print(write_report(Path(arguments.run)))
