"""What is broken in NNI 3.0, which is archived, and stands in the way: every change to NNI's own code is here.

Each patch names its symptom; a test shows that NNI fails without it. On another version of NNI nothing is changed.
"""

from __future__ import annotations

from typing import Any

import nni

VERSION = "3.0"


def tell_tuner_of_resumed_trials() -> None:
    """After a resume NNI starts the trials again that were running, and tells its dispatcher but not the tuner.

    Symptom: the tuner proposes their subnets too, and they are measured twice. `resumed_trials` of a tuner that has
    such a method is called with the trials.
    """
    from nni.runtime.msg_dispatcher import MsgDispatcher

    original: Any = MsgDispatcher.handle_add_customized_trial
    if nni.__version__ != VERSION or hasattr(original, "_replaces"):
        return

    def handle_add_customized_trial(self: Any, data: Any) -> None:
        original(self, data)
        if hasattr(self.tuner, "resumed_trials"):
            trials = data if isinstance(data, list) else [data]
            self.tuner.resumed_trials([nni.load(trial) if isinstance(trial, str) else trial for trial in trials])

    handle_add_customized_trial._replaces = original  # type: ignore[attr-defined]
    MsgDispatcher.handle_add_customized_trial = handle_add_customized_trial
