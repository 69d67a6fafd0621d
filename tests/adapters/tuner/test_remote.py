"""Trials on another machine over ssh: a real sshd on the loopback, with keys made for the test."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")

pytestmark = [
    pytest.mark.nni,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(SSHD is None, reason="no sshd here; on Debian: apt-get install openssh-server"),
]


@pytest.fixture
def machine(nnictl, tmp_path: Path) -> Iterator[dict]:
    """A machine to log in to, with a home of its own; NNI's entry for it."""
    home = nnictl.home / "other-machine"
    keys = tmp_path / "keys"
    home.mkdir()
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        # PEM is what NNI's ssh client reads in all its versions.
        command = ["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "", "-f", str(keys / name)]
        subprocess.run(command, check=True)
    port = nnictl.free_port()
    # NNI runs `pip install nni --upgrade` there: it is there already, and no index needs to be asked.
    environment = {"HOME": home, "PIP_NO_INDEX": 1, "OMP_NUM_THREADS": 1, "PYTHONWARNINGS": "ignore"}
    (keys / "sshd_config").write_text(
        "\n".join(
            [
                f"Port {port}",
                "ListenAddress 127.0.0.1",
                f"HostKey {keys / 'host'}",
                f"AuthorizedKeysFile {keys / 'user.pub'}",
                f"PidFile {keys / 'pid'}",
                "PasswordAuthentication no",
                "UsePAM no",
                "StrictModes no",
                "PermitRootLogin prohibit-password",
                "Subsystem sftp internal-sftp",
                "SetEnv " + " ".join(f"{name}={value}" for name, value in environment.items()),
                "",
            ]
        )
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, started by root, puts away its privileges
    log = (keys / "log").open("w")
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", keys / "sshd_config"], stderr=log)
    try:
        end = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < end, (keys / "log").read_text()
            time.sleep(0.1)
        yield {
            "host": "127.0.0.1",
            "port": port,
            "user": getpass.getuser(),
            "sshKeyFile": str(keys / "user"),
            "pythonPath": str(Path(sys.executable).parent),
        }
    finally:
        server.terminate()
        server.wait(10)
        log.close()


def test_trials_run_on_another_machine(nnictl, machine, spec_file, trained, tmp_path):
    nnictl("tips-nni register")
    folder = nnictl.home / "experiment"
    options = "--platform remote --trials 3 --concurrency 2"
    printed = nnictl(f"tips-nni nni-config {spec_file} --set output={trained} --output {folder} {options}")
    assert "fill in machineList" in printed
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["trainingService"]["machineList"] = [machine]
    config["nniManagerIp"] = "127.0.0.1"
    path.write_text(yaml.safe_dump(config))
    assert "3 trials, 2 at once" in nnictl(f"tips-nni check {path}")

    experiment = nnictl.create(path)
    nnictl(f"tips-nni nni-front {experiment} --wait --quiet")
    results = nnictl.results()
    assert len(results) == len({metric["code"] for metric in results.values()}) == 3
    # The code and the supernet were uploaded: the trials ran there, not here.
    trials = list((nnictl.home / "other-machine" / "nni-experiments" / experiment).glob("environments/*/trials/*"))
    assert {trial.name for trial in trials} == set(results)
    measured = {metric["code"]: metric["default"] for metric in results.values()}
    nnictl.until(lambda: nnictl.recorded(experiment) == measured)
    nnictl(f"nnictl stop {experiment}")
