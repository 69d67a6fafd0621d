"""What is broken in NNI 3.0, which is archived, and stands in the way: every change to NNI's own code is here.

Each patch names its symptom; a test shows that NNI fails without it. On another version of NNI nothing is changed.
Processes of trials import this module too, by way of the model space that they receive.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import nni
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation

VERSION = "3.0"
_log = logging.getLogger(__name__)
_lock = threading.Lock()


@dataclass(frozen=True)
class Patch:
    """A method that takes the place of one of NNI's.

    Attributes:
        owner: the class.
        name: the method.
        make: returns the new method, given the old one.
    """

    owner: type
    name: str
    make: Callable[[Callable[..., Any]], Callable[..., Any]]

    @property
    def applied(self) -> bool:
        """Whether it is in place."""
        return hasattr(getattr(self.owner, self.name), "_replaces")

    def apply(self) -> None:
        """Put it in place."""
        original = getattr(self.owner, self.name)
        method: Any = self.make(original)
        method._replaces = original
        setattr(self.owner, self.name, method)

    def undo(self) -> None:
        """Put NNI's own method back."""
        setattr(self.owner, self.name, getattr(self.owner, self.name)._replaces)


def _freeze_without_bias(original: Callable[..., Any]) -> Callable[..., Any]:
    """Freezing a layer with bias=False fails: its slices say None for the bias, which no module can load.

    Symptom: ``Unexpected key(s) in state_dict: "bias"``.
    """

    def freeze(self: MixedOperation, sample: dict[str, Any]) -> Any:
        arguments = {**self.init_arguments}
        for name, mutable in self.mutable_arguments.items():
            arguments[name] = mutable.freeze(sample)
        operation = self.bound_type(**arguments)
        weights = {name: value for name, value in self.freeze_weight(**arguments).items() if value is not None}
        operation.load_state_dict(weights)
        return operation

    return freeze


PATCHES = {"freeze without bias": Patch(MixedOperation, "freeze", _freeze_without_bias)}


def apply() -> None:
    """Put every patch in place, once."""
    if nni.__version__ != VERSION:
        _log.warning("NNI is %s; the repairs for %s are left out", nni.__version__, VERSION)
        return
    with _lock:
        for patch in PATCHES.values():
            if not patch.applied:
                patch.apply()


@contextmanager
def without(name: str) -> Iterator[None]:
    """Take a patch away for the block, to see whether it is still needed."""
    PATCHES[name].undo()
    try:
        yield
    finally:
        PATCHES[name].apply()
