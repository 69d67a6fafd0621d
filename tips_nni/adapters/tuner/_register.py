"""Registration of the tuner in NNI, and its undoing."""

from __future__ import annotations

from pathlib import Path

import nni
from nni.runtime.config import get_config_file
from nni.tools.package_utils import AlgoMeta, get_algo_meta, register_algo_meta, unregister_algo_meta

from tips_nni.core import TipsError

NAME = "TIPS"
CLASS = "tips_nni.adapters.TIPSTuner"


def register() -> Path:
    """Add the tuner under the name TIPS to this environment's NNI; return NNI's file of registered algorithms.

    The same as ``nnictl algo register --meta META``. Doing it twice changes nothing.

    Raises:
        TipsError: another algorithm has the name.
    """
    found = get_algo_meta(NAME)
    if found is not None and found.class_name != CLASS:
        raise TipsError(
            f"NNI has another algorithm {NAME!r} ({found.class_name}); remove it first: nnictl algo unregister {NAME}"
        )
    meta = {"algoType": "tuner", "builtinName": NAME, "className": CLASS, "nniVersion": nni.__version__}
    register_algo_meta(AlgoMeta.load(meta))
    return Path(get_config_file("registered_algorithms.yml"))


def unregister() -> bool:
    """Take the tuner out of this environment's NNI; return whether it was there.

    Raises:
        TipsError: the name belongs to another algorithm.
    """
    found = get_algo_meta(NAME)
    if found is None:
        return False
    if found.class_name != CLASS:
        raise TipsError(f"NNI's algorithm {NAME!r} is {found.class_name}, not ours; it was left")
    unregister_algo_meta(found.name)
    return True
