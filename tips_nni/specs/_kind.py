"""Telling YAML files apart."""

from __future__ import annotations

from pathlib import Path

import yaml


def kind_of_file(path: Path) -> str:
    """Tell by its keys what a file describes: ``space``, ``strategy``, ``experiment`` (NNI's) or ``run``.

    What is unclear counts as a run spec.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return "run"  # its loader gives the error, with the line
    if isinstance(data, dict) and "family" in data:
        return "space"
    if isinstance(data, dict) and ("trialCommand" in data or "tuner" in data):
        return "experiment"
    return "strategy" if isinstance(data, dict) and "policy" in data else "run"
