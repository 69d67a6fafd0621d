"""What is broken in NNI 3.0, which is archived, and stands in the way: every change to NNI's own code is here.

Each patch names its symptom; a test shows that NNI fails without it. On another version of NNI nothing is changed.
The tuner's process takes its own patches only and must start without torch, so what a patch is for is imported when it
is applied. Processes of trials take theirs by way of the model space that they receive.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import nni

VERSION = "3.0"
_log = logging.getLogger(__name__)
_lock = threading.Lock()
Function = Callable[..., Any]


@dataclass(frozen=True)
class Patch:
    """A function that takes the place of one of NNI's.

    Attributes:
        place: ``module:Class`` or ``module``.
        name: of the method or function.
        make: returns the new one, given the old one.
    """

    place: str
    name: str
    make: Callable[[Any], Function]

    @property
    def owner(self) -> Any:
        """The class or module."""
        module, _, name = self.place.partition(":")
        return getattr(import_module(module), name) if name else import_module(module)

    @property
    def applied(self) -> bool:
        """Whether it is in place."""
        return hasattr(getattr(self.owner, self.name), "_replaces")

    def apply(self) -> None:
        """Put it in place."""
        original = getattr(self.owner, self.name)
        function: Any = self.make(original)
        function._replaces = original
        setattr(self.owner, self.name, function)

    def undo(self) -> None:
        """Put NNI's own function back."""
        setattr(self.owner, self.name, getattr(self.owner, self.name)._replaces)


def _tell_tuner_of_resumed_trials(original: Function) -> Function:
    """After a resume NNI starts the trials again that were running, and tells its dispatcher but not the tuner.

    Symptom: the tuner proposes their subnets too, and they are measured twice. `resumed_trials` of a tuner that has
    such a method is called with the trials.
    """

    def handle_add_customized_trial(self: Any, data: Any) -> None:
        original(self, data)
        if hasattr(self.tuner, "resumed_trials"):
            trials = data if isinstance(data, list) else [data]
            self.tuner.resumed_trials([nni.load(trial) if isinstance(trial, str) else trial for trial in trials])

    return handle_add_customized_trial


def _freeze_without_bias(original: Function) -> Function:
    """Freezing a layer with bias=False fails: its slices say None for the bias, which no module can load.

    Symptom: ``Unexpected key(s) in state_dict: "bias"``.
    """

    def freeze(self: Any, sample: dict[str, Any]) -> Any:
        arguments = {**self.init_arguments}
        for name, mutable in self.mutable_arguments.items():
            arguments[name] = mutable.freeze(sample)
        operation = self.bound_type(**arguments)
        weights = {name: value for name, value in self.freeze_weight(**arguments).items() if value is not None}
        operation.load_state_dict(weights)
        return operation

    return freeze


def _load_own_state(original: Function) -> Function:
    """Resuming fails: since torch 2.6 `torch.load` refuses what NNI's strategies put into their state.

    Symptom: ``Weights only load failed``. Only these classes are let in; the file still cannot run code.
    """
    import numpy as np
    import torch
    from nni.mutable.utils import label
    from nni.nas.strategy.evolution import Individual
    from nni.nas.utils.serializer import _find_path_with_prefix

    reconstruct: Any = np.empty(0).__reduce__()[0]
    classes = [Individual, label, frozenset, np.ndarray, np.dtype, type(np.dtype(np.uint32)), reconstruct]

    def load(self: Any, path: Path) -> Any:
        file = _find_path_with_prefix(path, self.suffix)
        with torch.serialization.safe_globals(classes):
            return torch.load(file, map_location=self._map_location, weights_only=True)

    return load


def _save_in_one_piece(original: Function) -> Function:
    """A process that is killed while it saves leaves a truncated state, which no resume can read."""
    import torch

    def save(self: Any, checkpoint: Any, path: Path) -> None:
        file = Path(f"{path}{self.suffix}")
        temporary = file.with_name(f".{file.name}.new")
        torch.save(checkpoint, temporary)
        os.replace(temporary, file)

    return save


def _note_failed_load(original: Function) -> Function:
    """A resume that fails goes on to save the empty state over the good one; see `_keep_good_state`."""

    def load_checkpoint(self: Any) -> None:
        self._state_unread = self._engine is not None
        original(self)
        self._state_unread = False

    return load_checkpoint


def _keep_good_state(original: Function) -> Function:
    """Stopping saves the state even where a resume could not read it: the search is lost."""

    def save_checkpoint(self: Any) -> None:
        if getattr(self, "_state_unread", False):
            _log.warning("the state of experiment %s could not be read and is left as it is", self.id)
        else:
            original(self)

    return save_checkpoint


def _skip_unknown_commands(original: Function) -> Function:
    """A resumed experiment sends what its trials reported and which never ran; NNI's own channel knows neither.

    Symptom: ``Unknown command type: CommandType.ImportData`` ends the listening thread, and the experiment hangs. The
    strategies keep both in their own state.
    """
    from nni.runtime.tuner_command_channel.command_type import CommandType

    def receive(self: Any) -> tuple[Any, str | None]:
        while True:
            command, data = original(self)
            if command not in (CommandType.ImportData, CommandType.AddCustomizedTrialJob):
                return command, data

    return receive


def _hide_comment_signs(original: Function) -> Function:
    """A function of a script goes to trials as base64; where that has ``//``, NNI takes the rest for a comment.

    Symptom: ``JSONDecodeError: Unterminated string`` and ``Dispatcher stream error``, for some functions and not for
    others. Decoding skips what is not base64, so a space between the signs is enough.
    """

    def get_hybrid_cls_or_func_name(*args: Any, **kwargs: Any) -> str:
        name: str = original(*args, **kwargs)
        return name.replace("//", "/ /").replace("//", "/ /") if name.startswith("bytes:") else name

    return get_hybrid_cls_or_func_name


_EXPERIMENT = "nni.nas.experiment:NasExperiment"
_SERIALIZER = "nni.nas.utils.serializer:TorchSerializer"
_CHANNEL = "nni.runtime.tuner_command_channel:TunerCommandChannel"
_OPERATION = "nni.nas.oneshot.pytorch.supermodule.operation:MixedOperation"

TUNER = {
    "tell tuner of resumed trials": Patch(
        "nni.runtime.msg_dispatcher:MsgDispatcher", "handle_add_customized_trial", _tell_tuner_of_resumed_trials
    ),
}
NAS = {
    "freeze without bias": Patch(_OPERATION, "freeze", _freeze_without_bias),
    "load own state": Patch(_SERIALIZER, "load", _load_own_state),
    "save in one piece": Patch(_SERIALIZER, "save", _save_in_one_piece),
    "note failed load": Patch(_EXPERIMENT, "load_checkpoint", _note_failed_load),
    "keep good state": Patch(_EXPERIMENT, "save_checkpoint", _keep_good_state),
    "skip unknown commands": Patch(_CHANNEL, "_receive", _skip_unknown_commands),
    "hide comment signs": Patch("nni.common.serializer", "get_hybrid_cls_or_func_name", _hide_comment_signs),
}
PATCHES = {**TUNER, **NAS}


def tell_tuner_of_resumed_trials() -> None:
    """Put the patches of the tuner's process in place, once."""
    _apply(list(TUNER.values()))


def apply() -> None:
    """Put the patches of model spaces and strategies in place, once."""
    _apply(list(NAS.values()))


def _apply(patches: Sequence[Patch]) -> None:
    if nni.__version__ != VERSION:
        _log.warning("NNI is %s; the repairs for %s are left out", nni.__version__, VERSION)
        return
    with _lock:
        for patch in patches:
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
