"""Pickled regressors: read to the bit, or refused in one line with nothing run."""

from __future__ import annotations

import copyreg
import io
import json
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeRegressor
from sklearn.tree._tree import Tree

from tips_nni.core import TipsError
from tips_nni.latency.nn_meter import NnMeterPack, load_nn_meter
from tips_nni.latency.nn_meter._forest import Forest
from tips_nni.latency.nn_meter._unpickle import read_regressor

from .conftest import KERNELS, Folder, forest, write_pack


def rows(features: int, count: int = 200) -> list[list[float]]:
    """Rows like nn-Meter's: integers and floats, most of them between the values of the fit."""
    rng = np.random.default_rng(9)
    x = np.exp(rng.uniform(-1, 7, size=(count, features)))
    return [[int(value) if i < features - 1 else float(value) for i, value in enumerate(row)] for row in x]


class _Old(pickle.Pickler):
    """Writes a fitted model as scikit-learn 0.23 with numpy 1 does: nodes without a place for missing values."""

    def reducer_override(self, item: Any) -> Any:
        if not isinstance(item, Tree):
            return NotImplemented
        _, arguments, state = item.__reduce__()
        nodes = state["nodes"]
        names = [name for name in nodes.dtype.names if name != "missing_go_to_left"]
        offsets = [nodes.dtype.fields[name][1] for name in names]
        kinds = [nodes.dtype.fields[name][0] for name in names]
        old = np.dtype({"names": names, "formats": kinds, "offsets": offsets, "itemsize": 56})
        plain = np.zeros(len(nodes), dtype=old)
        for name in names:
            plain[name] = nodes[name]
        return Tree, arguments, {**state, "nodes": plain}


def old_pickle(model: Any) -> bytes:
    buffer = io.BytesIO()
    _Old(buffer, protocol=3).dump(model)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [RandomForestRegressor, DecisionTreeRegressor])
def test_predicts_to_the_bit_what_scikit_learn_does(kind: type, protocol: int) -> None:
    model = forest(7) if kind is RandomForestRegressor else forest(7).estimators_[3]
    x = rows(7)
    mine = read_regressor(pickle.dumps(model, protocol), "f").predict(x)
    assert mine.dtype == np.float64
    assert np.array_equal(mine, model.predict(x))


def test_a_threshold_is_met_in_single_precision() -> None:
    # 0.1 in single precision is above 0.1 in double: which side it goes to depends on the rounding.
    x = np.array([[0.1], [0.1 + 1e-7], [0.30000001], [0.2], [5.0]])
    model = RandomForestRegressor(n_estimators=20, random_state=0).fit(x, np.arange(5.0))
    thresholds = np.concatenate([tree.tree_.threshold for tree in model.estimators_])[:, None]
    near = np.concatenate([thresholds, np.nextafter(thresholds, 9), np.nextafter(thresholds, -9), x])
    mine = read_regressor(pickle.dumps(model), "f").predict(near)
    assert np.array_equal(mine, model.predict(near))


def test_reads_the_format_that_later_scikit_learn_does_not() -> None:
    model, x = forest(7), rows(7)
    data = old_pickle(model)
    with pytest.raises(ValueError, match="incompatible dtype"):
        pickle.loads(data)  # noqa: S301 -- made two lines above
    assert np.array_equal(read_regressor(data, "f").predict(x), model.predict(x))


def test_many_rows_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = forest(4), rows(4, 1000)
    monkeypatch.setattr("tips_nni.latency.nn_meter._forest._CHUNK", 64)
    assert np.array_equal(read_regressor(pickle.dumps(model), "f").predict(x), model.predict(x))


def test_rows_that_do_not_fit_are_refused() -> None:
    mine = read_regressor(pickle.dumps(forest(7)), "f")
    with pytest.raises(TipsError, match="rows of 7 features"):
        mine.predict([[1.0, 2.0]])
    with pytest.raises(TipsError, match="finite"):
        mine.predict([[float("nan")] * 7])


class _Runs:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path, function: Any) -> None:
        self.mark = mark
        self.function = function

    def __reduce__(self) -> Any:
        return self.function, (f"touch {self.mark}",)


def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    model = forest(4)
    inside = forest(4)
    inside.estimators_[2].note = _Runs(mark, os.system)
    cases = {
        "system": _Runs(mark, os.system),
        "subprocess.Popen": _Runs(mark, subprocess.Popen),
        "builtins.eval": _Runs(mark, eval),
        "posix.system": [model, _Runs(mark, os.system)],
        "names posix.system": inside,
    }
    for named, item in cases.items():
        for protocol in (0, 2, 4, 5):
            try:
                data = pickle.dumps(item, protocol)
            except TypeError:
                continue
            with pytest.raises(TipsError, match=r"refused") as error:
                read_regressor(data, "conv-bn-relu.pkl")
            text = str(error.value)
            assert text.startswith("conv-bn-relu.pkl")
            # Older protocols ask for other classes before, and call modules by Python 2's names.
            assert named in text or protocol < 4
            assert "\n" not in text
    assert not mark.exists()
    pickle.loads(pickle.dumps(cases["system"]))  # noqa: S301 -- shows that the same bytes do run in a plain reader
    assert mark.exists()


def test_names_by_registered_numbers_are_refused_as_well(tmp_path: Path) -> None:
    copyreg.add_extension("posix", "system", 240)
    try:
        data = pickle.dumps(_Runs(tmp_path / "ran", os.system), 4)
        assert b"system" not in data
        with pytest.raises(TipsError, match=r"names posix\.system"):
            read_regressor(data, "f")
    finally:
        copyreg.remove_extension("posix", "system", 240)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"a": 1}, "holds a dict"),
        ([1.0, 2.0], "holds a list"),
        (np.arange(3.0), "holds a ndarray"),
        (RandomForestRegressor(), "estimators_"),
        (DecisionTreeRegressor(), "tree_"),
        (LinearRegression().fit([[1.0], [2.0]], [1.0, 2.0]), "LinearRegression"),
        (ExtraTreesRegressor(2).fit([[1.0], [2.0]], [1.0, 2.0]), "ExtraTreesRegressor"),
        (forest(4).estimators_[0].tree_, "holds a Tree"),
        (forest(4).predict, "builtins.getattr"),
    ],
)
def test_other_objects_are_refused_by_name(item: Any, said: str) -> None:
    with pytest.raises(TipsError, match=said) as error:
        read_regressor(pickle.dumps(item), "fc.pkl")
    assert "\n" not in str(error.value)


def test_several_outputs_are_refused() -> None:
    model = RandomForestRegressor(2).fit([[1.0], [2.0]], [[1.0, 2.0], [2.0, 3.0]])
    with pytest.raises(TipsError, match="several outputs"):
        read_regressor(pickle.dumps(model), "f")


def test_a_file_cut_short_anywhere_is_one_line() -> None:
    data = pickle.dumps(forest(4))
    for end in [*range(40), *range(40, len(data), len(data) // 200)]:
        with pytest.raises(TipsError) as error:
            read_regressor(data[:end], "add.pkl")
        assert str(error.value).startswith("add.pkl is")
        assert "\n" not in str(error.value)


def test_damage_never_gives_another_error_or_an_endless_walk() -> None:
    data = pickle.dumps(forest(2))
    rng = np.random.default_rng(1)
    read = 0
    for place in rng.integers(0, len(data), 400):
        spoiled = bytearray(data)
        spoiled[place] ^= 1 << int(rng.integers(8))
        try:
            model = read_regressor(bytes(spoiled), "f")
        except TipsError:
            continue
        read += 1
        assert np.isfinite(model.predict([[3.0, 5.0]])).all()
    assert 0 < read < 400


def test_a_tree_that_turns_back_is_refused() -> None:
    kind = [("left_child", "i8"), ("right_child", "i8"), ("feature", "i8"), ("threshold", "f8")]
    nodes = np.array([(1, 2, 0, 0.5), (0, 2, 0, 0.5), (-1, -1, -2, -2.0)], dtype=kind)
    with pytest.raises(TipsError, match="out of order"):
        Forest.of_trees(1, [(nodes, np.zeros((3, 1, 1)))])


def test_a_folder_is_a_pack(folder: Folder, pack: NnMeterPack) -> None:
    assert pack.name == "forests"
    assert set(pack.kernels) == set(KERNELS)
    assert set(pack.files) == {"fusion_rules.json", *(f"{name}.pkl" for name in KERNELS)}
    for name, features in KERNELS.items():
        x = rows(features, 20)
        assert np.array_equal(pack.kernels[name].predict(x), folder.models[name].predict(x))


def test_the_digest_follows_every_file(tmp_path: Path, models: dict[str, Any]) -> None:
    few = {name: models[name] for name in ("fc", "add")}
    write_pack(tmp_path, few)
    digests = {load_nn_meter(tmp_path).digest}
    (tmp_path / "fusion_rules.json").write_text("{}")
    digests.add(load_nn_meter(tmp_path).digest)
    (tmp_path / "fc.pkl").write_bytes(pickle.dumps(forest(4, seed=77)))
    digests.add(load_nn_meter(tmp_path).digest)
    (tmp_path / "fc.pkl").rename(tmp_path / "hswish.pkl")
    digests.add(load_nn_meter(tmp_path).digest)
    assert len(digests) == 4


def test_forests_are_kept_as_plain_arrays(tmp_path: Path, models: dict[str, Any]) -> None:
    home = write_pack(tmp_path / "pack", {"fc": models["fc"]}).path
    first = load_nn_meter(home, folder=tmp_path / "kept")
    (kept,) = (tmp_path / "kept" / "cache").glob("*.npz")
    assert kept.stem == first.files["fc.pkl"]
    with np.load(kept, allow_pickle=False) as data:
        assert all(data[name].dtype.kind in "if" for name in data)
    stamp = kept.stat().st_mtime_ns
    x = rows(4)
    again = load_nn_meter(home, folder=tmp_path / "kept")
    assert np.array_equal(again.kernels["fc"].predict(x), models["fc"].predict(x))
    assert kept.stat().st_mtime_ns == stamp
    kept.write_bytes(kept.read_bytes()[:1000])
    mended = load_nn_meter(home, folder=tmp_path / "kept")
    assert np.array_equal(mended.kernels["fc"].predict(x), models["fc"].predict(x))
    assert kept.stat().st_size > 1000


def test_bad_folders_get_one_line(tmp_path: Path, models: dict[str, Any]) -> None:
    home = write_pack(tmp_path / "pack", {"fc": models["fc"], "add": models["add"]}).path
    meta = home / "meta.yaml"

    def refusal() -> str:
        with pytest.raises(TipsError) as error:
            load_nn_meter(home)
        assert "\n" not in str(error.value)
        return str(error.value)

    meta.write_text("name: mine\nkernel_predictors: [fc, add, conv-bn-relu, se]\n")
    assert "lacks conv-bn-relu.pkl, se.pkl" in refusal()
    meta.write_text("name: mine\nunit: s\nkernel_predictors: [fc, add]\n")
    assert "unit = 's'" in refusal()
    meta.write_text("name: [")
    assert "no yaml" in refusal()
    meta.write_text("name: mine\nkernel_predictors: [fc, add]\n")
    assert load_nn_meter(home).name == "mine"
    rules = home / "fusion_rules.json"
    for text, said in (('{"BF_conv_relu": {"ob', "cut short"), ("[1]", "no fusion rules"), ('{"MON": 1}', "no JSON")):
        rules.write_text(text)
        assert said in refusal()
    rules.unlink()
    assert "fusion_rules.json" in refusal()
    rules.write_text("{}")
    (home / "fc.pkl").write_bytes(b"")
    assert "fc.pkl is cut short" in refusal()
    for path in home.glob("*.pkl"):
        path.unlink()
    meta.unlink()
    assert "lacks predictors" in refusal()


def test_unknown_names_get_the_closest(tmp_path: Path) -> None:
    with pytest.raises(TipsError, match="did you mean 'cortexA76cpu_tflite21'"):
        load_nn_meter("cortexA76_tflite21")
    with pytest.raises(TipsError, match="is no folder"):
        load_nn_meter(tmp_path / "nowhere")
    with pytest.raises(TipsError, match="give a folder"):
        load_nn_meter("cortexA76cpu_tflite21")


def test_json_is_no_pack(tmp_path: Path) -> None:
    (tmp_path / "fusion_rules.json").write_text(json.dumps({"MON": {"obey": 0}}))
    with pytest.raises(TipsError, match="lacks predictors"):
        load_nn_meter(tmp_path)
