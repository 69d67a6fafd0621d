"""nn-Meter and onnxsim, imported when needed; nn-Meter 2.0 is repaired here only."""

from __future__ import annotations

import importlib
import logging
import sys
import types
import warnings
from functools import cache
from typing import Any

from tips_nni.core import TipsError


@cache
def load_library() -> types.ModuleType:
    """Import nn-Meter without its writing to the user's home, and return it.

    Raises:
        TipsError: it is not installed.
    """
    if sys.modules.get("nn_meter") is not None:
        return importlib.import_module("nn_meter")
    # As it is imported, its data set module writes nn-Meter's configuration into the home folder. Its place is held
    # until it is asked for.
    placeholder = types.ModuleType("nn_meter.dataset")
    placeholder.bench_dataset = _bench_dataset  # type: ignore[attr-defined]
    sys.modules[placeholder.__name__] = placeholder
    try:
        with warnings.catch_warnings():
            # It asks for its version by way of pkg_resources.
            warnings.simplefilter("ignore")
            library = importlib.import_module("nn_meter")
            features = importlib.import_module("nn_meter.predictor.prediction.extract_feature")
    except ImportError as error:
        raise missing_extra(error) from error
    finally:
        del sys.modules[placeholder.__name__]
    log = logging.getLogger("nn-Meter")
    # What it warns of (versions, nodes without a shape) is mended or reported here.
    log.setLevel(logging.ERROR)
    # It logs every kernel by the root logger, which sets handlers up for the whole process.
    features.logging = log  # type: ignore[attr-defined]
    return library


def _bench_dataset(*arguments: Any, **options: Any) -> Any:
    return importlib.import_module("nn_meter.dataset").bench_dataset(*arguments, **options)


def load_part(name: str) -> Any:
    """Import a module of nn-Meter, e.g. ``kernel_detector``.

    Raises:
        TipsError: nn-Meter is not installed.
    """
    load_library()
    return importlib.import_module(f"nn_meter.{name}")


@cache
def load_simplifier() -> Any:
    """Import onnxsim and return its `simplify`.

    Raises:
        TipsError: it is not installed.
    """
    try:
        return importlib.import_module("onnxsim").simplify
    except ImportError as error:
        raise missing_extra(error) from error


def missing_extra(error: ImportError) -> TipsError:
    """Return the error for a package of the extra that is not there."""
    return TipsError(f'nn-Meter\'s packs need more packages ({error}); pip install "tips-nni[nn-meter]"')
