"""The run folder: who may write into it, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tips_nni.core import TipsError, write_csv, write_json, write_text
from tips_nni.pipeline import run
from tips_nni.pipeline._files import claim
from tips_nni.specs import RunSpec, load_run


def spec_for(spec: Path, folder: Path, *keys: str) -> RunSpec:
    return load_run(spec, [f"output={folder}", *keys])


def refused(spec: RunSpec, match: str, **keys: bool) -> None:
    folder = Path(spec.output)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(TipsError, match=match) as caught:
        claim(spec, **{"resume": False, "overwrite": False, **keys})
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("resume", [False, True])
def test_a_new_or_empty_folder_is_claimed(spec: Path, tmp_path: Path, made: bool, resume: bool) -> None:
    wanted = spec_for(spec, tmp_path / "a" / "b")
    if made:
        Path(wanted.output).mkdir(parents=True)
    assert claim(wanted, resume=resume, overwrite=False) == tmp_path / "a" / "b"
    assert load_run(tmp_path / "a" / "b" / "run.yaml") == wanted


def test_a_run_is_kept_unless_asked(spec: Path, tmp_path: Path) -> None:
    wanted = spec_for(spec, tmp_path / "run")
    claim(wanted, resume=False, overwrite=False)
    (tmp_path / "run" / "front.json").write_text("[]")
    refused(wanted, r"already holds a run; add --resume .* --overwrite")
    claim(wanted, resume=True, overwrite=False)
    assert (tmp_path / "run" / "front.json").exists()
    claim(wanted, resume=False, overwrite=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.yaml"]


def test_overwriting_deletes_what_the_run_wrote_and_nothing_else(finished: Path) -> None:
    mine = finished / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    (finished / "small.onnx").write_bytes(b"exported")
    claim(load_run(finished / "run.yaml", [f"output={finished}"]), resume=False, overwrite=True)
    assert sorted(path.name for path in finished.iterdir()) == ["mine", "run.yaml", "small.onnx"]
    assert (mine / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("training.lr=0.1", r"training\.lr = 0\.05, the spec now says 0\.1"),
        ("training.epochs=9", r"training\.epochs = 3, the spec now says 9"),
        ("seed=5", "seed = 0, the spec now says 5"),
        ("strategy=uniform", "strategy = 'tips', the spec now says 'uniform'"),
        ("data.limit=128", r"data\.limit = 256, the spec now says 128"),
        ("constraints.mflops=3", r"constraints\.mflops = None, the spec now says 3\.0"),
    ],
)
def test_resume_under_another_spec_is_refused(spec: Path, tmp_path: Path, key: str, message: str) -> None:
    claim(spec_for(spec, tmp_path / "run"), resume=False, overwrite=False)
    refused(spec_for(spec, tmp_path / "run", key), message, resume=True)


def test_resume_of_a_moved_folder(spec: Path, tmp_path: Path) -> None:
    claim(spec_for(spec, tmp_path / "run"), resume=False, overwrite=False)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    claim(spec_for(spec, tmp_path / "moved"), resume=True, overwrite=False)
    assert load_run(tmp_path / "moved" / "run.yaml").output == str(tmp_path / "moved")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_touched(spec: Path, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    refused(spec_for(spec, tmp_path / "photos"), "holds no run; choose another folder", overwrite=overwrite)
    refused(spec_for(spec, tmp_path / "photos"), "holds no run; choose another folder", resume=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_spec_in_the_output_folder_is_no_run(spec: Path, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "mine").mkdir()
    shutil.copy(spec, tmp_path / "mine" / "run.yaml")
    refused(spec_for(spec, tmp_path / "mine"), "holds no run", overwrite=overwrite, resume=not overwrite)


def test_output_is_a_file(spec: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(spec_for(spec, tmp_path / "file"), "is a file; choose a folder")


def test_run_refuses_before_it_writes(spec: Path, finished: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    for keys, resume in ([], False), (["training.lr=0.1"], True):
        with pytest.raises(TipsError):
            run(spec_for(spec, finished, *keys), resume=resume, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == times


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [", "hello"])
def test_damaged_record(spec: Path, tmp_path: Path, text: str) -> None:
    wanted = spec_for(spec, tmp_path / "run")
    claim(wanted, resume=False, overwrite=False)
    record = tmp_path / "run" / "run.yaml"
    record.write_text(record.read_text().splitlines()[0] + "\n" + text)
    refused(wanted, r"run\.yaml.*--overwrite", resume=True)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_damaged_measurements(finished: Path, text: str) -> None:
    (finished / "measurements.json").write_text(text)
    with pytest.raises(TipsError, match=r"measurements\.json is damaged.*delete it"):
        run(load_run(finished / "run.yaml", [f"output={finished}"]), resume=True, quiet=True)


def test_files_appear_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    write_json(path, {"a": [1, 2.5, "ü"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, 2.5, "ü"]}
    write_csv(tmp_path / "x.csv", [{"a": 1, "b": "x,y"}, {"a": 2, "b": ""}])
    assert (tmp_path / "x.csv").read_text() == 'a,b\n1,"x,y"\n2,\n'
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["x.csv", "x.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(TipsError, match="No space left on device; free the place"):
        write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
    assert path.read_text() == "old"


def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TipsError, match="cannot write"):
        write_text(tmp_path / "file" / "x.txt", "new")
