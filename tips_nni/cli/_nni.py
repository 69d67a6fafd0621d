"""Commands on NNI: `register`, `unregister`, `nni-config`, `nni-trial`, `nni-front`.

The handlers import what they need when they are called: `--help` and a misspelt option answer at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tips_nni.cli._command import Commands, need_nni
from tips_nni.core import TipsError


def add_to(commands: Commands) -> None:
    """Add these commands."""
    commands.add(
        "register",
        _register,
        "make NNI know the tuner TIPS, once for each environment",
        "Add the tuner TIPS to this environment's NNI, so that an experiment file can say `tuner: {name: TIPS}`.\n"
        "The same as `nnictl algo register`.",
        "  tips-nni register && nnictl algo list",
    )
    commands.add(
        "unregister",
        _unregister,
        "take the tuner TIPS out of NNI again",
        "Undo `tips-nni register`.",
        "  tips-nni unregister",
    )
    config = commands.add(
        "nni-config",
        _config,
        "write an NNI experiment over the subnets of a run",
        "Write config.yaml and search_space.json for `nnictl create`, with all that the tuner needs beside them.\n"
        "Its trials measure subnets of the run's trained supernet, in seconds each, or with --train they train\n"
        "each subnet alone.",
        "  tips-nni run examples/digits/run.yaml\n"
        "  tips-nni nni-config examples/digits/run.yaml --output runs/digits-nni\n"
        "  nnictl create --config runs/digits-nni/config.yaml",
    )
    config.add_argument("spec", metavar="SPEC", help="run spec (YAML)")
    config.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the spec")
    config.add_argument("--output", metavar="DIR", help="folder to write (default: the run's folder with -nni behind)")
    config.add_argument("--train", action="store_true", help="trials train their subnet alone")
    config.add_argument("--platform", choices=("local", "remote"), default="local", help="where trials run")
    config.add_argument("--trials", type=int, default=32, metavar="N", help="subnets to measure (%(default)s)")
    config.add_argument("--concurrency", type=int, default=2, metavar="N", help="trials at once (%(default)s)")

    trial = commands.add(
        "nni-trial",
        _trial,
        "what a trial runs: measure the subnet that NNI proposes",
        "NNI starts this command for every trial; it stands in the experiment's config.yaml as trialCommand.\n"
        "It reports the accuracy on the run's validation images with the subnet's costs and its code.",
        "  trialCommand: python3 -m tips_nni.cli nni-trial runs/digits",
    )
    trial.add_argument("run", metavar="RUN", help="run folder, or the folder of nni-config")
    trial.add_argument("--weights", metavar="RUN", help="run folder with the trained supernet, if it is another one")
    trial.add_argument("--train", action="store_true", help="train the subnet alone instead")
    trial.add_argument("--epochs", type=int, metavar="N", help="with --train: epochs (default: the run's)")

    front = commands.add(
        "nni-front",
        _front,
        "print the front that an NNI experiment found",
        "Print the front of an experiment with the tuner TIPS, running or stopped. With --model, also measure it\n"
        "on the test images of the run and write the anytime model.",
        "  tips-nni nni-front latest --wait\n"
        "  tips-nni nni-front b8smx4ke --csv front.csv --run runs/digits --model anytime.safetensors",
    )
    front.add_argument("experiment", metavar="EXPERIMENT", help="NNI's id, `latest`, or the experiment's folder")
    front.add_argument("--wait", action="store_true", help="wait until the experiment is done")
    front.add_argument("--csv", metavar="FILE", help="also write the front as CSV")
    front.add_argument("--model", metavar="FILE", help="also write the anytime model (needs --run)")
    front.add_argument("--run", metavar="RUN", help="folder of the run with the trained supernet")


def _register(_arguments: argparse.Namespace) -> None:
    need_nni()
    from tips_nni.adapters import register

    print(f"registered: tuner TIPS, in {register()}")


def _unregister(_arguments: argparse.Namespace) -> None:
    need_nni()
    from tips_nni.adapters import unregister

    print("unregistered: tuner TIPS" if unregister() else "the tuner TIPS was not registered; nothing changed")


def _config(arguments: argparse.Namespace) -> None:
    from tips_nni.adapters import machine_paths, write_experiment
    from tips_nni.specs import load_run
    from tips_nni.training import CHECKPOINT

    for name in ("trials", "concurrency"):
        if getattr(arguments, name) < 1:
            raise TipsError(f"--{name} {getattr(arguments, name)}; it must be at least 1")
    spec = load_run(arguments.spec, arguments.set)
    folder = Path(arguments.output or f"{spec.output.rstrip('/')}-nni")
    config = write_experiment(
        spec,
        folder,
        train=arguments.train,
        platform=arguments.platform,
        trials=arguments.trials,
        concurrency=arguments.concurrency,
    )
    print(f"experiment     {config}")
    if not arguments.train and not (Path(spec.output) / CHECKPOINT).is_file():
        print(f"note           the supernet is not trained yet: tips-nni run {arguments.spec}")
    if arguments.platform == "remote":
        print(f"note           fill in machineList in {config}; every machine needs tips-nni and the same Python path")
        for place in machine_paths(spec):
            print(f"note           {place} must be there on every machine")
    print(f"next           tips-nni register && nnictl create --config {config}")


def _trial(arguments: argparse.Namespace) -> None:
    need_nni()
    if arguments.epochs is not None and (arguments.epochs < 1 or not arguments.train):
        raise TipsError(f"--epochs {arguments.epochs}; it must be at least 1, and goes with --train")
    from tips_nni.adapters import run_trial

    value = run_trial(
        Path(arguments.run),
        weights=Path(arguments.weights) if arguments.weights else None,
        train=arguments.train,
        epochs=arguments.epochs,
    )
    print(f"accuracy {value:.4f}")


def _front(arguments: argparse.Namespace) -> None:
    need_nni()
    if bool(arguments.model) != bool(arguments.run):
        raise TipsError("--model and --run go together: the anytime model is made of a run's trained supernet")
    from tips_nni.adapters import find_experiment, show_front, wait

    folder = find_experiment(arguments.experiment)
    if arguments.wait:
        wait(folder, quiet=arguments.quiet)
    show_front(
        folder,
        csv=Path(arguments.csv) if arguments.csv else None,
        model=Path(arguments.model) if arguments.model else None,
        run=Path(arguments.run) if arguments.run else None,
    )
