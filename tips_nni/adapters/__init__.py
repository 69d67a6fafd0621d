"""TIPS inside NNI 3.0. The only package that imports nni; each part is imported when it is asked for.

NNI's tuner process must connect within ten seconds, so it may not import torch: nothing is imported here.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "TIPS": "strategies._one_shot",
    "TIPSSearch": "strategies._multi_trial",
    "TIPSTuner": "tuner._tuner",
    "TimmSpace": "strategies._space",
    "check_experiment": "tuner._check",
    "code_of": "tuner._task",
    "find_experiment": "tuner._results",
    "machine_paths": "tuner._config",
    "read_results": "tuner._results",
    "register": "tuner._register",
    "run_trial": "tuner._trial",
    "show_front": "tuner._show",
    "timm_space": "strategies._space",
    "unregister": "tuner._register",
    "wait": "tuner._results",
    "write_experiment": "tuner._config",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    """Import the part that `name` belongs to."""
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
