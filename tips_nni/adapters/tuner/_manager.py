"""What a trial asks NNI's manager about itself."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import nni
import requests

_PATIENCE = 10.0


def own_parameters() -> Any:
    """Return the parameters that NNI has on record for this trial.

    NNI 3.0 hands parameters to whichever trial asks first (one queue in its node server, see nni issues 5693 and 5726):
    where several start at once, `nni.get_next_parameter` gives a trial those of another one, and the page, the export
    and a resume then show or run the wrong subnet. The record is asked for by the trial's own id. Where the manager
    cannot be reached (trials on other machines), it is what `nni.get_next_parameter` gave; the code that a trial
    reports is right in both cases.
    """
    received = nni.get_next_parameter()
    end = time.monotonic() + _PATIENCE
    while True:
        # The record is written just after the trial has been started: it may be behind.
        job = _get(f"trial-jobs/{nni.get_trial_id()}")
        if job is None:
            return received
        if job.get("hyperParameters"):
            return json.loads(job["hyperParameters"][-1])["parameters"]
        if time.monotonic() > end:
            return received
        time.sleep(0.2)


def final_result() -> Any:
    """Return the final metric that this trial has reported before, None where it has not.

    A resumed experiment starts again what was running when it was stopped, also what had just been measured.
    """
    for row in _get(f"metric-data/{nni.get_trial_id()}?type=FINAL") or []:
        return json.loads(json.loads(row["data"]))
    return None


def _get(path: str) -> Any:
    """Return the manager's answer, None where there is no manager to ask."""
    channel = os.environ.get("NNI_TRIAL_COMMAND_CHANNEL", "")
    server, found, _ = channel.partition("/env/")
    if not found:
        return None
    try:
        answer = requests.get(f"{server}/api/v1/nni/{path}", timeout=_PATIENCE)
    except requests.RequestException:
        return None
    if answer.status_code != requests.codes.ok or not answer.content:
        return None
    try:
        content = answer.json()
    except ValueError:
        return None  # the server of a remote machine, which is no manager
    return content if isinstance(content, Mapping | list) else None
