"""The entry point ``tips-nni``: parsing, errors and exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from tips_nni import __version__
from tips_nni.cli import _convert, _export, _latency, _listing, _nni, _runs
from tips_nni.cli._command import Commands
from tips_nni.core import TipsError

_EPILOG = """\
first steps:
  tips-nni run examples/digits/run.yaml     make an anytime network from handwritten digits, in minutes
  tips-nni spaces                           which backbones have a ready search space
  tips-nni convert resnext50_32x4d          what can be elastic in a backbone, and a search space for it
  tips-nni check mine.yaml                  is my run spec right? (runs nothing)
  tips-nni run mine.yaml                    train, search, export, report

Every command has its own --help. Wrong input ends with one line and exit code 2; --debug shows the traceback.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 2 for wrong input, 130 after Ctrl-C.

    Of several processes that train together (``LOCAL_RANK`` numbers them) the first one speaks, and Ctrl-C is for it.
    """
    arguments = _parser().parse_args(argv)
    follows = os.environ.get("LOCAL_RANK", "0") != "0"
    if follows:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        warnings.simplefilter("ignore")
    logging.basicConfig(format="%(levelname)s %(message)s")
    logging.getLogger("tips_nni").setLevel(logging.DEBUG if arguments.debug else logging.WARNING)
    try:
        return int(arguments.handler(arguments) or 0)
    except (TipsError, OSError, KeyboardInterrupt) as error:
        if arguments.debug:
            raise
        if not follows:
            print(f"tips-nni: {_line(error)}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2


def _line(error: BaseException) -> str:
    """Return what the user reads."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped; add --resume to the same command to go on"
    if isinstance(error, OSError):
        place, reason = error.filename or "a file", error.strerror or error
        return f"{place}: {reason}; check the path, its permissions and the free space"
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tips-nni",
        description="Turn a timm backbone into an anytime neural network: one set of weights, many subnets, switched "
        "at run time to fit the budget (TIPS, ICML 2023).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tips-nni {__version__}")
    commands = Commands(parser)
    for group in (_runs, _listing, _convert, _export, _latency, _nni):
        group.add_to(commands)
    return parser
