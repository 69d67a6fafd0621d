"""The command line: every command, and every wrong input as one line and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tips_nni import __version__
from tips_nni.cli import main
from tips_nni.core import TipsError
from tips_nni.elastic import AnytimeModel

ROOT = Path(__file__).parents[2]
COMMANDS = ("run", "check", "spaces", "strategies", "convert", "explain", "export", "report")


class Terminal:
    """Runs commands as typed, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def ok(self, *arguments: object) -> str:
        """Return what a command that succeeds prints."""
        assert main([str(argument) for argument in arguments]) == 0
        out, err = self._capsys.readouterr()
        assert err == ""
        return out

    def refused(self, *arguments: object) -> str:
        """Return the one line of a command that refuses its input."""
        assert main([str(argument) for argument in arguments]) == 2
        out, err = self._capsys.readouterr()
        assert out == ""
        assert err.startswith("tips-nni: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that nothing is found or written by accident."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"example:\n  tips-nni {command}" in out
    assert "--debug" in out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(f"\n    {command}" in out for command in COMMANDS)
    assert "tips-nni run examples/digits/run.yaml" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"tips-nni {__version__}\n"


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom tips_nni.cli import main\n"
        "try:\n    main(['run', '--help'])\nexcept SystemExit:\n    assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("arguments", [[], ["rum"], ["run"], ["export", "x"], ["spaces", "--loud"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# Wrong input


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("backbone.name=test_resnett", ["test_resnett", "test_resnet'"]),
        ("space=resnett", ["resnett", "resnet'"]),
        ("strategy=tipps", ["tipps", "tips'"]),
        ("training.epoch=3", ["epoch", "epochs"]),
        ("trainin.epochs=3", ["trainin", "training"]),
        ("training.epochs=0", ["epochs", "0"]),
        ("training.optimizer=sgdd", ["sgdd", "sgd"]),
        ("training.schedule=cosin", ["cosin", "cosine"]),
        ("training.lr=fast", ["lr", "number"]),
        ("data.kind=digit", ["kind", "digits"]),
        ("data.image_size=3", ["image_size", "8"]),
        ("constraints.target=pixel", ["pixel", "pixel4_cpu"]),
        ("constraints.mflops=0.001", ["mflops", "0.001"]),
        ("constraints.latency_ms=0.001", ["latency_ms", "0.001"]),
        ("training.epochs", ["training.epochs"]),
        ("=3", ["=3"]),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_wrong_spec(
    terminal: Terminal, elsewhere: Path, spec: Path, command: str, override: str, words: list[str]
) -> None:
    line = terminal.refused(command, spec, "--set", f"output={elsewhere / 'out'}", "--set", override)
    for word in words:
        assert word in line
    assert list(elsewhere.iterdir()) == []


def test_missing_files(terminal: Terminal, elsewhere: Path) -> None:
    for arguments in (
        ["run", "no.yaml"],
        ["check", "no.yaml"],
        ["explain", "nothing"],
        ["export", "nothing", "--output", "x.onnx"],
        ["report", "nothing"],
    ):
        assert arguments[1] in terminal.refused(*arguments)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("content", ["", "a: [", "- 1", "\x00", "backbone: !!python/object:os.system {}"])
def test_files_that_are_no_spec(terminal: Terminal, elsewhere: Path, content: str) -> None:
    (elsewhere / "bad.yaml").write_text(content)
    assert "bad.yaml" in terminal.refused("run", "bad.yaml")
    assert "bad.yaml" in terminal.refused("check", "bad.yaml")


def test_folders_that_hold_no_run(terminal: Terminal, elsewhere: Path) -> None:
    (elsewhere / "empty").mkdir()
    for arguments in (["explain", "empty"], ["export", "empty", "--output", "x.onnx"], ["report", "empty"]):
        assert "empty" in terminal.refused(*arguments)
    assert list((elsewhere / "empty").iterdir()) == []


def test_debug_raises(elsewhere: Path) -> None:
    with pytest.raises(TipsError, match=r"no\.yaml"):
        main(["check", "no.yaml", "--debug"])


def test_run_of_an_occupied_folder(terminal: Terminal, spec: Path, finished: Path) -> None:
    assert "--resume" in terminal.refused("run", spec, "--set", f"output={finished}")
    changed = terminal.refused("run", spec, "--resume", "--set", f"output={finished}", "--set", "training.lr=0.2")
    assert "training.lr = 0.05" in changed
    for flag in ("--overwrite", "--resume"):  # the folder of the spec itself, whose name is run.yaml too
        assert "choose another folder" in terminal.refused("run", spec, flag, "--set", f"output={spec.parent}")
    assert [path.name for path in spec.parent.iterdir()] == ["run.yaml"]


# Check and lists


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_check_of_shipped_spaces(terminal: Terminal, path: Path) -> None:
    assert "a valid search space" in terminal.ok("check", path)


@pytest.mark.parametrize("path", sorted((ROOT / "strategies").glob("*.yaml")), ids=lambda path: path.stem)
def test_check_of_shipped_strategies(terminal: Terminal, path: Path) -> None:
    assert "a valid strategy" in terminal.ok("check", path)


def test_check_of_the_demo(terminal: Terminal, elsewhere: Path) -> None:
    out = terminal.ok("check", ROOT / "examples" / "digits" / "run.yaml")
    assert "a valid run of resnet" in out
    assert list(elsewhere.iterdir()) == [], "check writes nothing"


def test_check_of_a_wrong_space(terminal: Terminal, elsewhere: Path) -> None:
    (elsewhere / "mine.yaml").write_text("family: mine\nwidth: {ratios: [0.5, 0.9]}\n")
    assert "mine.yaml" in terminal.refused("check", "mine.yaml")
    (elsewhere / "plan.yaml").write_text("name: plan\npolicy: {name: unifrom}\n")
    assert "uniform" in terminal.refused("check", "plan.yaml")


def test_spaces_and_strategies(terminal: Terminal) -> None:
    spaces, strategies = terminal.ok("spaces"), terminal.ok("strategies")
    assert all(path.stem in spaces for path in (ROOT / "search_spaces").glob("*.yaml"))
    assert all(path.stem in strategies for path in (ROOT / "strategies").glob("*.yaml"))


# Explain


def test_explain_a_space(terminal: Terminal, elsewhere: Path) -> None:
    out = terminal.ok("explain", "resnet", "--backbone", "test_resnet", "--image-size", 64)
    assert "test_resnet" in out
    assert (elsewhere / "explain.png").read_bytes().startswith(b"\x89PNG")


def test_explain_without_path_importance(terminal: Terminal, elsewhere: Path) -> None:
    arguments = ["--backbone", "test_resnet", "--image-size", 32, "--strategy", "uniform", "--picture", "here/p.png"]
    assert "uniform" in terminal.ok("explain", "resnet", *arguments)
    assert not (elsewhere / "explain.png").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["resnett"], "resnet'"),
        (["resnet", "--backbone", "test_resnett"], "test_resnet'"),
        (["resnet", "--backbone", "test_resnet", "--strategy", "tipps"], "tips'"),
        (["resnet", "--backbone", "test_resnet", "--image-size", "0"], "image"),
    ],
)
def test_explain_wrong_input(terminal: Terminal, elsewhere: Path, arguments: list[str], word: str) -> None:
    assert word in terminal.refused("explain", *arguments)
    assert list(elsewhere.iterdir()) == []


def test_explain_a_run(terminal: Terminal, finished: Path, elsewhere: Path) -> None:
    assert str(finished / "explain.png") in terminal.ok("explain", finished)
    assert (finished / "explain.png").read_bytes().startswith(b"\x89PNG")
    terminal.ok("explain", finished, "--picture", elsewhere / "mine.png")
    assert (elsewhere / "mine.png").is_file()


# Export and report


def test_export_onnx_within_a_limit(terminal: Terminal, finished: Path, elsewhere: Path) -> None:
    model = AnytimeModel.load(finished / "anytime.safetensors")
    row = len(model.front) - 1
    limit = model.front[row]["mflops"] * 1.001
    assert f"row {row}:" in terminal.ok("export", finished, "--max", f"mflops={limit}", "--output", "x.onnx")
    onnx.checker.check_model(onnx.load("x.onnx"))
    images = np.random.default_rng(0).standard_normal((5, 1, 32, 32), dtype=np.float32)
    session = onnxruntime.InferenceSession("x.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images})
    with torch.no_grad(), model.budget(mflops=limit):
        expected = model(torch.from_numpy(images))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)
    assert [path.name for path in elsewhere.iterdir()] == ["x.onnx"]


def test_export_program_of_a_row(terminal: Terminal, finished: Path, elsewhere: Path) -> None:
    source = finished / "anytime.safetensors"
    assert "row 0:" in terminal.ok("export", source, "--row", 0, "--output", "deep/er/x.pt2")
    program = torch.export.load(elsewhere / "deep" / "er" / "x.pt2").module()
    model = AnytimeModel.load(source)
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(program(images), model(images), rtol=1e-4, atol=1e-4)
    assert [path.name for path in (elsewhere / "deep" / "er").iterdir()] == ["x.pt2"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--max", "mflops", "--output", "x.onnx"], "COST=NUMBER"),
        (["--max", "mflops=few", "--output", "x.onnx"], "COST=NUMBER"),
        (["--max", "=3", "--output", "x.onnx"], "--max"),
        (["--max", "mflop=3", "--output", "x.onnx"], "did you mean 'mflops'"),
        (["--max", "mflops=0.001", "--output", "x.onnx"], "the cheapest on the front has mflops"),
        (["--max", "mflops=nan", "--output", "x.onnx"], "--max"),
        (["--row", "99", "--output", "x.onnx"], "no row 99"),
        (["--row", "-1", "--output", "x.onnx"], "no row -1"),
        (["--row", "0", "--max", "mflops=3", "--output", "x.onnx"], "not both"),
        (["--output", "x.tflite"], "choose .onnx or .pt2"),
        (["--output", "x"], "choose .onnx or .pt2"),
    ],
)
def test_export_wrong_input(
    terminal: Terminal, finished: Path, elsewhere: Path, arguments: list[str], word: str
) -> None:
    assert word in terminal.refused("export", finished, *arguments)
    assert list(elsewhere.iterdir()) == []


def test_export_where_nothing_can_be_written(terminal: Terminal, finished: Path, elsewhere: Path) -> None:
    (elsewhere / "file").write_text("")
    for name in ("file/x.onnx", "file/x.pt2"):
        assert "file" in terminal.refused("export", finished, "--row", 0, "--output", name)


def test_report_again(terminal: Terminal, finished: Path) -> None:
    page = finished / "report.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    assert terminal.ok("report", finished) == f"{page}\n"
    assert len(page.read_text(encoding="utf-8")) == pytest.approx(len(before), rel=0.05)


def test_a_run_prints_where_everything_is(terminal: Terminal, spec: Path, finished: Path) -> None:
    out = terminal.ok("run", spec, "--resume", "--quiet", "--set", f"output={finished}")
    for name in ("anytime.safetensors", "report.html", "onnx"):
        assert str(finished / name) in out
    next_command = next(line for line in out.splitlines() if line.startswith("next")).split()[2:]
    assert next_command[0] == "export"
    terminal.ok(*next_command[:-1], finished / "subnet.onnx")
