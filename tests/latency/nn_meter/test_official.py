"""nn-Meter's own packs: downloaded by nn-Meter from an archive of the same form; nothing stays in the home folder."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tips_nni
from tips_nni.core import TipsError
from tips_nni.latency.nn_meter import load_nn_meter, official_packs

from .conftest import forest, write_pack

NAME = "myriadvpu_openvino2019r2"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder that is served on this machine, and its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = tmp_path / "served"
    served.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        yield served, f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()
        thread.join()


def archive(path: Path, name: str, tmp_path: Path, kernels: list[str]) -> None:
    """Zip a pack as nn-Meter's releases are: one folder with the pack's name."""
    home = write_pack(tmp_path / "made" / name, {kernel: forest(2) for kernel in kernels}).path
    with zipfile.ZipFile(path, "w") as file:
        for item in home.iterdir():
            file.write(item, f"{name}/{item.name}")


def listed(folder: Path, name: str, kernels: list[str], url: str) -> None:
    folder.mkdir(exist_ok=True)
    text = f"- name: {name}\n  version: 1.0\n  kernel_predictors: {kernels}\n  download: {url}\n"
    (folder / "predictors.yaml").write_text(text)


def test_the_four_packs_are_known_by_name() -> None:
    known = official_packs()
    assert set(known) == {"cortexA76cpu_tflite21", "adreno640gpu_tflite21", "adreno630gpu_tflite21", NAME}
    assert all(pack.url.startswith("https://github.com/microsoft/nn-Meter/releases/") for pack in known.values())
    assert "conv-bn-relu" in known[NAME].kernels


def test_nn_meter_downloads_a_pack_once(server: tuple[Path, str], tmp_path: Path) -> None:
    served, address = server
    kernels = ["bn", "relu", "hswish"]
    archive(served / "pack.zip", NAME, tmp_path, kernels)
    folder = tmp_path / "folder"
    listed(folder, NAME, kernels, f"{address}/pack.zip")
    pack = load_nn_meter(NAME, folder=folder)
    assert pack.name == NAME
    assert set(pack.kernels) == set(kernels)
    assert np.isfinite(pack.kernels["bn"].predict([[3, 4]])).all()
    (served / "pack.zip").unlink()
    assert load_nn_meter(NAME, folder=folder).digest == pack.digest
    assert sorted(path.name for path in folder.iterdir()) == ["cache", NAME, "predictors.yaml"]
    # A kernel that nn-Meter's list names must be there.
    (folder / NAME / "relu.pkl").unlink()
    with pytest.raises(TipsError, match=r"lacks relu\.pkl"):
        load_nn_meter(NAME, folder=folder)


def test_a_failed_download_is_one_line_and_leaves_nothing(server: tuple[Path, str], tmp_path: Path) -> None:
    served, address = server
    folder = tmp_path / "folder"
    archive(served / "other.zip", "another", tmp_path, ["bn"])
    archive(served / "whole.zip", NAME, tmp_path, ["bn"])
    whole = (served / "whole.zip").read_bytes()
    (served / "short.zip").write_bytes(whole[: len(whole) // 2])
    said = {"absent.zip": "could not be downloaded", "short.zip": "not a zip file", "other.zip": "has no folder"}
    for file, text in said.items():
        listed(folder, NAME, ["bn"], f"{address}/{file}")
        with pytest.raises(TipsError, match=text) as error:
            load_nn_meter(NAME, folder=folder)
        assert "\n" not in str(error.value)
        assert [path.name for path in folder.iterdir()] == ["predictors.yaml"]
    listed(folder, NAME, ["bn"], "http://127.0.0.1:9/pack.zip")
    with pytest.raises(TipsError, match="could not be downloaded"):
        load_nn_meter(NAME, folder=folder)
    listed(folder, NAME, ["bn"], f"{address}/whole.zip")
    assert load_nn_meter(NAME, folder=folder).name == NAME


def test_a_list_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "predictors.yaml").write_text("- name: x\n  download: y\n")
    with pytest.raises(TipsError, match="no list of predictors"):
        load_nn_meter("x", folder=tmp_path)


def run(code: str, home: Path) -> str:
    """Run Python with another home folder and no bytecode written."""
    root = str(Path(tips_nni.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(home), "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_nothing_is_written_into_the_home_folder(tmp_path: Path) -> None:
    code = """
import logging
from tips_nni.latency.nn_meter._library import load_part
load_part("kernel_detector"), load_part("ir_converter.onnx_converter"), load_part("predictor.prediction")
import nn_meter
print(len(nn_meter.list_latency_predictors.__doc__) > 0, callable(nn_meter.bench_dataset), logging.getLogger().handlers)
"""
    home = tmp_path / "home"
    home.mkdir()
    assert run(code, home).split() == ["True", "True", "[]"]
    assert list(home.iterdir()) == []


def test_packs_and_tables_need_neither_torch_nor_nn_meter(tmp_path: Path, folder: Any) -> None:
    code = f"""
import sys
from tips_nni.core import TipsError
from tips_nni.latency.nn_meter import NnMeterTable, load_nn_meter
pack = load_nn_meter({str(folder.path)!r})
heavy = {{"torch", "timm", "nn_meter", "onnxsim", "onnx", "sklearn"}}
print(len(pack.kernels), NnMeterTable.load is not None, heavy & set(sys.modules))
sys.modules.update(dict.fromkeys(heavy))
from tips_nni.latency.nn_meter._library import load_library, load_simplifier
for load in (load_library, load_simplifier):
    try:
        load()
    except TipsError as error:
        print('pip install "tips-nni[nn-meter]"' in str(error))
"""
    assert run(code, tmp_path).split() == ["16", "True", "set()", "True", "True"]
