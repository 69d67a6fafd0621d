"""The errors a user sees as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TipsError(ValueError):
    """Wrong input: the message is one line with the value, what is allowed and the remedy.

    The command line prints it without a traceback and ends with exit code 2.
    """


class InfeasibleError(TipsError):
    """No subnet satisfies the constraints; the message names the nearest feasible value."""


def closest(value: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest match of `value`, or an empty string."""
    matches = difflib.get_close_matches(value, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def unknown(what: str, value: str, allowed: Iterable[str]) -> TipsError:
    """Build the error for an unknown name: the value, the closest match and all that is allowed."""
    names = sorted(allowed)
    return TipsError(f"unknown {what} {value!r}{closest(value, names)} (allowed: {', '.join(names)})")
