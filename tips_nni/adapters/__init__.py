"""TIPS inside NNI 3.0. The only package that imports nni; each part is imported when it is asked for.

NNI's tuner process must connect within ten seconds, so it may not import torch: nothing is imported here.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "TIPS": "_one_shot",
    "TIPSSearch": "_multi_trial",
    "TIPSTuner": "_tuner",
    "TimmSpace": "_space",
    "check_experiment": "_check",
    "code_of": "_task",
    "find_experiment": "_results",
    "machine_paths": "_config",
    "read_results": "_results",
    "register": "_register",
    "run_trial": "_trial",
    "show_front": "_show",
    "timm_space": "_space",
    "unregister": "_register",
    "wait": "_results",
    "write_experiment": "_config",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    """Import the part that `name` belongs to."""
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
