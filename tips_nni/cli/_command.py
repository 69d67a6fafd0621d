"""How a command is declared."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

from tips_nni.core import TipsError

Handler = Callable[[argparse.Namespace], int | None]


class Commands:
    """The subcommands of a parser; each gets ``--quiet`` and ``--debug``."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._common = argparse.ArgumentParser(add_help=False)
        self._common.add_argument("--quiet", action="store_true", help="no progress bars, only results")
        self._common.add_argument("--debug", action="store_true", help="log details, show tracebacks")
        self._added: Any = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(self, name: str, handler: Handler, summary: str, details: str, example: str) -> argparse.ArgumentParser:
        """Add a command and return its parser, for arguments.

        Args:
            name: as typed.
            handler: does the work; None and 0 are success, other numbers the exit code.
            summary: a line for the list of commands.
            details: some lines for the command's own help.
            example: command lines, indented by two spaces.
        """
        parser: argparse.ArgumentParser = self._added.add_parser(
            name,
            parents=[self._common],
            help=summary,
            description=details,
            epilog=f"example:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(handler=handler)
        return parser

    def add_group(self, name: str, summary: str, details: str) -> Commands:
        """Add a command that only has subcommands, and return those."""
        parser: argparse.ArgumentParser = self._added.add_parser(
            name, help=summary, description=details, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        return Commands(parser)


def need_nni() -> None:
    """Check that NNI is installed.

    Raises:
        TipsError: it is not.
    """
    if importlib.util.find_spec("nni") is None:
        raise TipsError("this command needs NNI, which is not installed; run: pip install 'tips-nni[nni]'")
