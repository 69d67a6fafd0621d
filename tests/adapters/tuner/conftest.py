"""A trained run, and NNI's own command line with a home, a port and a registry of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tips_nni.pipeline import run
from tips_nni.specs import load_run

SPEC = """\
backbone: {name: test_resnet}
space: ./space.yaml
data: {kind: digits, image_size: 16, batch_size: 64, limit: 256}
training: {epochs: 2, lr: 0.05, calibration_images: 128, accelerator: cpu}
search: {population: 4, generations: 0, images: 128}
constraints: {mflops: 100}
export: {onnx: 0}
output: never-used
"""
SPACE = """\
family: tiny
width: {ratios: [0.5, 1.0], divisor: 4}
hidden: {ratios: [0.25, 0.5, 1.0], divisor: 4}
fixed: ["conv1*", "layer2*", "layer3.0.conv2"]
"""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def spec_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spec")
    (folder / "space.yaml").write_text(SPACE)
    path = folder / "run.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, spec_file: Path) -> Path:
    """The folder of a finished run; to be left as it is."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    return run(load_run(spec_file, [f"output={folder}"]), quiet=True)


@pytest.fixture
def trained_copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


class Nnictl:
    """``nnictl`` and ``tips-nni`` as a user of a new account types them.

    Attributes:
        home: the account's home.
        port: of the experiment that was started last.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = 0
        scripts = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "HOME": str(home),
            "NNI_CONFIG_DIR": str(home / "config"),
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }

    def __call__(self, command: str, *, status: int | None = 0, cwd: Path | None = None) -> str:
        """Run a command line, check its exit code and return what it printed."""
        done = subprocess.run(
            command,
            shell=True,
            cwd=cwd or self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        output = done.stdout + done.stderr
        assert status is None or done.returncode == status, output
        return output

    @staticmethod
    def free_port() -> int:
        """Return a port that is free, and the next one too: some training services take it."""
        while True:
            with socket.socket() as first, socket.socket() as second:
                first.bind(("127.0.0.1", 0))
                port = int(first.getsockname()[1])
                try:
                    second.bind(("127.0.0.1", port + 1))
                except OSError:
                    continue
                return port

    def create(self, config: Path, command: str = "create --config") -> str:
        """Start an experiment and return its id."""
        self.port = self.free_port()
        self(f"nnictl {command} {config} --port {self.port}")
        return str(self.profile()["id"])

    def resume(self, experiment: str) -> None:
        self.port = self.free_port()
        self(f"nnictl resume {experiment} --port {self.port}")

    def rest(self, path: str) -> Any:
        """Ask the experiment's REST API, which is what the web portal shows."""
        with urllib.request.urlopen(f"http://localhost:{self.port}/api/v1/nni/{path}", timeout=20) as answer:
            return json.loads(answer.read())

    def profile(self) -> Any:
        return self.rest("experiment")

    def trials(self) -> list[dict[str, Any]]:
        return list(self.rest("trial-jobs"))

    def results(self) -> dict[str, Any]:
        """Final metrics by trial."""
        return {row["trialJobId"]: json.loads(json.loads(row["data"])) for row in self.rest("metric-data?type=FINAL")}

    def until(self, what: Any, seconds: float = 300) -> None:
        """Wait until `what()` holds."""
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                logs = [path.read_text() for path in self.home.rglob("*.stderr")]
                logs += [path.read_text()[-3000:] for path in self.home.rglob("dispatcher.log")]
                raise AssertionError(f"waited {seconds} s in vain:\n" + "\n".join(logs))
            time.sleep(0.5)

    def folder(self, experiment: str) -> Path:
        return self.home / "nni-experiments" / experiment

    def recorded(self, experiment: str) -> dict[str, float]:
        """Accuracy by subnet code, as the tuner keeps them.

        NNI's manager has a result before it hands it to the tuner, so a record may come a moment after the result.
        """
        state = json.loads((self.folder(experiment) / "checkpoint" / "tips.json").read_text())
        return {"-".join(map(str, code)): value for code, value, _ in state["search"]["known"]}

    def stop_everything(self) -> None:
        """End what the commands started, whatever became of it."""
        for process in psutil.process_iter(["pid", "environ"]):
            environment = process.info["environ"] or {}
            if environment.get("HOME", "").startswith(str(self.home)) and process.pid != os.getpid():
                process.send_signal(signal.SIGKILL)


@pytest.fixture
def nnictl(tmp_path: Path) -> Iterator[Nnictl]:
    home = tmp_path / "home"
    home.mkdir()
    control = Nnictl(home)
    try:
        yield control
    finally:
        control.stop_everything()
