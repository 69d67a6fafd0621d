"""The run folder: its files and whose it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from tips_nni.core import TipsError, write_text
from tips_nni.latency import LATENCY_TABLE
from tips_nni.specs import ARCHITECTURE, RUN_SPEC, RunSpec

ANYTIME_MODEL = "anytime.safetensors"
# Tells the resolved spec of a run from one that somebody wrote and keeps in the output folder.
_MARK = "# The run in this folder, every default written out by tips-nni.\n"
# What a run writes; files of others in its folder are never deleted.
_WRITTEN = (
    ANYTIME_MODEL,
    ARCHITECTURE,
    "checkpoints",
    "evaluated.csv",
    "explain*.png",
    "explain.json",
    "front.*",
    LATENCY_TABLE,
    "measurements.json",
    "onnx",
    "report.html",
    "run.json",
    "space.json",
    "training.csv",
    RUN_SPEC,
)


def claim(spec: RunSpec, *, resume: bool, overwrite: bool) -> Path:
    """Make the output folder ready for this run and return it.

    Raises:
        TipsError: it holds another run and neither `resume` nor `overwrite` is given, or it holds a run of another
            spec, or something that is no run.
    """
    folder = Path(spec.output)
    record = folder / RUN_SPEC
    if folder.exists() and not folder.is_dir():
        raise TipsError(f"output = {folder} is a file; choose a folder")
    occupied = folder.is_dir() and any(folder.iterdir())
    if occupied and not is_run(folder):
        raise TipsError(f"output = {folder} is not empty and holds no run; choose another folder")
    if occupied and overwrite:
        _delete_run(folder)
        occupied = False
    if occupied and not resume:
        raise TipsError(f"{folder} already holds a run; add --resume to go on with it, --overwrite to start again")
    if occupied:
        _same(record, spec)
    write_text(record, _MARK + spec.to_yaml())
    return folder


def is_run(folder: Path) -> bool:
    """Tell whether a folder holds a run."""
    try:
        with (folder / RUN_SPEC).open("rb") as file:
            return file.read(len(_MARK)) == _MARK.encode()
    except OSError:
        return False


def _delete_run(folder: Path) -> None:
    """Delete what a run wrote, its spec last, so that what an interruption leaves is still a run."""
    for path in [path for pattern in _WRITTEN for path in sorted(folder.glob(pattern))]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _same(record: Path, spec: RunSpec) -> None:
    """Refuse to resume under another spec."""
    try:
        before = yaml.safe_load(record.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        before = None
    if not isinstance(before, dict):
        raise TipsError(f"{record} is damaged; put it back to resume, or add --overwrite to start again")
    now = yaml.safe_load(spec.to_yaml())
    for key in sorted({*before, *now} - {"output"}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            for inner in sorted({*old, *new}):
                if old.get(inner) != new.get(inner):
                    _refuse(record, f"{key}.{inner}", old.get(inner), new.get(inner))
        elif old != new:
            _refuse(record, key, old, new)


def _refuse(record: Path, key: str, old: object, new: object) -> None:
    raise TipsError(
        f"{record.parent} was run with {key} = {old!r}, the spec now says {new!r}; put it back to resume, "
        "or add --overwrite to start again"
    )
