"""Our packs as nn-Meter's folder: registered with nn-Meter, and the same numbers from its own `predict`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from tips_nni.core import Operation, TipsError
from tips_nni.latency import LatencyTable, PredictorPack, kernel_of, load_pack
from tips_nni.latency.nn_meter import NnMeterTable, export_pack, load_nn_meter, predict
from tips_nni.latency.nn_meter._library import load_library, load_part
from tips_nni.latency.nn_meter._onnx import export_graph
from tips_nni.latency.nn_meter._regressor import KERNELS, PackRegressor
from tips_nni.latency.nn_meter._unpickle import read_regressor

from .conftest import KERNELS as FEATURES
from .conftest import supernet


class _AsTold(LatencyTable):
    """Our own table, of what nn-Meter tells its predictors: no activations and products, pooled maps of one pixel."""

    def operation_ms(self, operation: Operation, *shapes: NDArray[np.int64]) -> NDArray[np.float64]:
        cin, cout, size_in, size_out = shapes
        kernel = kernel_of(operation)
        if kernel is None or kernel.type in ("act", "mul"):
            return np.zeros(len(cin))
        if kernel.type == "avgpool" and (size_out == 1).all():
            size_in = size_out
        return super().operation_ms(operation, cin, cout, size_in, size_out)


@pytest.fixture(scope="module", params=["pixel4_cpu", "myriad_vpu"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PredictorPack, Path]:
    pack = load_pack(request.param)
    folder = tmp_path_factory.mktemp("exported") / pack.name
    export_pack(pack, folder)
    return pack, folder


@pytest.fixture
def nn_meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """nn-Meter with a configuration of its own."""
    library = load_library()
    for part in ("utils.config_manager", "predictor.utils", "utils.nn_meter_cli.registry"):
        monkeypatch.setattr(load_part(part), "__user_config_folder__", str(tmp_path / "config"))
    monkeypatch.setattr(load_part("utils.config_manager"), "__default_user_data_folder__", str(tmp_path / "data"))
    return library


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_050", "tinynet_e"])
def test_nn_meter_predicts_what_we_do(name: str, exported: tuple[PredictorPack, Path], nn_meter: Any) -> None:
    pack, folder = exported
    nn_meter.utils.create_user_configs()
    load_part("utils.nn_meter_cli.registry").register_predictor(str(folder / "predictor.yaml"))
    predictor = nn_meter.load_latency_predictor(pack.name, 1.0)
    net = supernet(name, resolution=False)
    ours = _AsTold(net.architecture, pack)
    for code in net.space.sample(np.random.default_rng(3), 2):
        model = export_graph(net.extract(net.space.decode(code)), 64)
        assert predictor.predict(model, "onnx") == pytest.approx(ours.evaluate(code[None])[0], rel=1e-9)


def test_the_restricted_reader_takes_what_was_written(exported: tuple[PredictorPack, Path]) -> None:
    pack, folder = exported
    read = load_nn_meter(folder)
    assert read.name == pack.name
    assert set(read.kernels) == set(KERNELS)
    rng = np.random.default_rng(0)
    for kernel, features in FEATURES.items():
        rows = rng.integers(1, 60, size=(50, features))
        if kernel in ("conv-bn-relu", "dwconv-bn-relu", "maxpool", "avgpool"):
            rows[:, 3], rows[:, 4] = rng.choice([1, 2, 3, 5], 50), rng.choice([1, 2], 50)
        plain = pickle.loads((folder / f"{kernel}.pkl").read_bytes())  # noqa: S301 -- as nn-Meter reads it
        expected = PackRegressor(kernel, pack).predict(rows)
        assert np.isfinite(expected).all()
        assert (expected >= 0).all()
        for regressor in (plain, read.kernels[kernel]):
            assert np.array_equal(regressor.predict(rows.tolist()), expected)


def test_kernels_that_nn_meter_lacks_are_named(exported: tuple[PredictorPack, Path]) -> None:
    pack, folder = exported
    net = supernet("tinynet_e", resolution=False)
    found = predict(net.extract(net.space.largest), load_nn_meter(folder), 64)
    assert set(found.coverage.missing) == {"Sigmoid", "mul"}
    ours = LatencyTable(net.architecture, pack).evaluate(net.space.encode(net.space.largest)[None])[0]
    assert found.latency_ms < ours


def test_the_table_takes_an_exported_pack(exported: tuple[PredictorPack, Path]) -> None:
    pack, folder = exported
    net = supernet("resnet10t", resolution=False)
    codes = net.space.sample(np.random.default_rng(1), 100)
    table = NnMeterTable(net, load_nn_meter(folder))
    assert table.evaluate(codes) == pytest.approx(_AsTold(net.architecture, pack).evaluate(codes), rel=1e-9)


def test_altered_regressors_are_refused(exported: tuple[PredictorPack, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pack, _ = exported
    whole = PackRegressor("fc", pack).__getstate__()
    for state, said in (
        ({**whole, "pack": whole["pack"].replace('"networks": ', '"networks": 1')}, "altered"),
        ({**whole, "pack": whole["pack"].replace('"unit": "ms"', '"unit": "s"')}, "no pack of this version"),
        ({**whole, "pack": "{"}, "holds no pack"),
        ({**whole, "kernel": "fcc"}, "did you mean 'fc'"),
        ({"kernel": "fc"}, "holds no pack"),
        (None, "holds no pack"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(PackRegressor, "__getstate__", lambda _, state=state: state)
            data = pickle.dumps(PackRegressor("fc", pack))
        with pytest.raises(TipsError, match=said) as error:
            read_regressor(data, "fc.pkl")
        assert "\n" not in str(error.value)


def test_the_description_is_nn_meters(exported: tuple[PredictorPack, Path]) -> None:
    pack, folder = exported
    data = yaml.safe_load((folder / "predictor.yaml").read_text())
    assert data["name"] == pack.name
    assert Path(data["package_location"]) == folder
    assert {f"{kernel}.pkl" for kernel in data["kernel_predictors"]} == {path.name for path in folder.glob("*.pkl")}
