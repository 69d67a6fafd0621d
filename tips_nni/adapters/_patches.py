"""What is broken in NNI 3.0, which is archived, and stands in the way: every change to NNI's own code is here.

Each patch names its symptom; a test shows that NNI fails without it. On another version of NNI nothing is changed.
Processes of trials import this module too, by way of the model space that they receive.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nni
import numpy as np
import torch
from nni.common import serializer
from nni.mutable.utils import label
from nni.nas.experiment import NasExperiment
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from nni.nas.strategy.evolution import Individual
from nni.nas.utils.serializer import TorchSerializer, _find_path_with_prefix
from nni.runtime.tuner_command_channel import TunerCommandChannel
from nni.runtime.tuner_command_channel.command_type import CommandType

VERSION = "3.0"
_log = logging.getLogger(__name__)
_lock = threading.Lock()


@dataclass(frozen=True)
class Patch:
    """A function that takes the place of one of NNI's.

    Attributes:
        owner: the class or module.
        name: of the method or function.
        make: returns the new one, given the old one.
    """

    owner: Any
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


def _load_own_state(original: Callable[..., Any]) -> Callable[..., Any]:
    """Resuming fails: since torch 2.6 `torch.load` refuses what NNI's strategies put into their state.

    Symptom: ``Weights only load failed``. Only these classes are let in; the file still cannot run code.
    """

    def load(self: TorchSerializer, path: Path) -> Any:
        file = _find_path_with_prefix(path, self.suffix)
        with torch.serialization.safe_globals(_STATE_CLASSES):
            return torch.load(file, map_location=self._map_location, weights_only=True)

    return load


def _save_in_one_piece(original: Callable[..., Any]) -> Callable[..., Any]:
    """A process that is killed while it saves leaves a truncated state, which no resume can read."""

    def save(self: TorchSerializer, checkpoint: Any, path: Path) -> None:
        file = Path(f"{path}{self.suffix}")
        temporary = file.with_name(f".{file.name}.new")
        torch.save(checkpoint, temporary)
        os.replace(temporary, file)

    return save


def _note_failed_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """A resume that fails goes on to save the empty state over the good one; see `_keep_good_state`."""

    def load_checkpoint(self: NasExperiment) -> None:
        self._state_unread = self._engine is not None
        original(self)
        self._state_unread = False

    return load_checkpoint


def _keep_good_state(original: Callable[..., Any]) -> Callable[..., Any]:
    """Stopping saves the state even where a resume could not read it: the search is lost."""

    def save_checkpoint(self: NasExperiment) -> None:
        if getattr(self, "_state_unread", False):
            _log.warning("the state of experiment %s could not be read and is left as it is", self.id)
        else:
            original(self)

    return save_checkpoint


def _skip_unknown_commands(original: Callable[..., Any]) -> Callable[..., Any]:
    """A resumed experiment sends what its trials reported and which never ran; NNI's own channel knows neither.

    Symptom: ``Unknown command type: CommandType.ImportData`` ends the listening thread, and the experiment hangs. The
    strategies keep both in their own state.
    """

    def receive(self: TunerCommandChannel) -> tuple[CommandType | None, str | None]:
        while True:
            command, data = original(self)
            if command not in (CommandType.ImportData, CommandType.AddCustomizedTrialJob):
                return command, data

    return receive


def _hide_comment_signs(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a script goes to trials as base64; where that has ``//``, NNI takes the rest for a comment.

    Symptom: ``JSONDecodeError: Unterminated string`` and ``Dispatcher stream error``, for some functions and not for
    others. Decoding skips what is not base64, so a space between the signs is enough.
    """

    def get_hybrid_cls_or_func_name(*args: Any, **kwargs: Any) -> str:
        name: str = original(*args, **kwargs)
        return name.replace("//", "/ /").replace("//", "/ /") if name.startswith("bytes:") else name

    return get_hybrid_cls_or_func_name


# What the states of NNI's own strategies are made of.
_STATE_CLASSES: list[Any] = [
    Individual,
    label,
    frozenset,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
]

PATCHES = {
    "freeze without bias": Patch(MixedOperation, "freeze", _freeze_without_bias),
    "load own state": Patch(TorchSerializer, "load", _load_own_state),
    "save in one piece": Patch(TorchSerializer, "save", _save_in_one_piece),
    "note failed load": Patch(NasExperiment, "load_checkpoint", _note_failed_load),
    "keep good state": Patch(NasExperiment, "save_checkpoint", _keep_good_state),
    "skip unknown commands": Patch(TunerCommandChannel, "_receive", _skip_unknown_commands),
    "hide comment signs": Patch(serializer, "get_hybrid_cls_or_func_name", _hide_comment_signs),
}


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
