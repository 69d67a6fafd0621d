"""Reading pickled regressors without running anything that a pickle names."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any, Never

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import TipsError
from tips_nni.latency.nn_meter._forest import Forest, Regressor
from tips_nni.latency.nn_meter._regressor import PackRegressor


class _Stub:
    """Stands for a class that a pickle names: keeps the arguments and the state, runs nothing."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any) -> _Stub:
        stub = super().__new__(cls)
        stub.args = args
        return stub

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _RandomForest(_Stub):
    pass


class _DecisionTree(_Stub):
    pass


class _Tree(_Stub):
    pass


class _PackRegressor(_Stub):
    pass


class _Array(_Stub):
    pass


class _RefusedError(TipsError):
    """A pickle names something that is not read."""


def _empty(kind: Any, shape: tuple[int, ...], code: Any) -> NDArray[Any]:
    """Stand for numpy's `_reconstruct`: an array whose content the pickle sets next."""
    if kind is not _Array or shape != (0,):
        raise _RefusedError(f"it makes an array of the class {kind!r} and the shape {shape}")
    return np.ndarray(shape, code)


def _of_buffer(data: bytes, dtype: Any, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    """Stand for numpy's `_frombuffer`."""
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: bytes) -> Any:
    """Stand for numpy's `scalar`."""
    return np.frombuffer(data, dtype=dtype)[0]


def _bytes(text: str, codec: str) -> bytes:
    """Stand for `codecs.encode`, by which protocol 2 writes bytes."""
    if codec != "latin1":
        raise _RefusedError(f"it holds text in the codec {codec!r}")
    return text.encode("latin1")


#: All that a pickle may name. Folders moved in scikit-learn 0.22 and in numpy 2.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("sklearn.ensemble._forest", "RandomForestRegressor"): _RandomForest,
    ("sklearn.ensemble.forest", "RandomForestRegressor"): _RandomForest,
    ("sklearn.tree._classes", "DecisionTreeRegressor"): _DecisionTree,
    ("sklearn.tree.tree", "DecisionTreeRegressor"): _DecisionTree,
    ("sklearn.tree._tree", "Tree"): _Tree,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy._core.multiarray", "_reconstruct"): _empty,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _of_buffer,
    ("numpy._core.numeric", "_frombuffer"): _of_buffer,
    ("_codecs", "encode"): _bytes,
    (PackRegressor.__module__, PackRegressor.__qualname__): _PackRegressor,
}

#: What a pickle that is cut short or damaged raises in Python's and numpy's readers.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    struct.error,
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(f"it names {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Never:
        raise _RefusedError(f"it refers to the outside object {pid!r}")


def read_regressor(data: bytes, file: str) -> Regressor:
    """Read a pickled random forest or decision tree (scikit-learn 0.23 or later), or a regressor of an exported pack.

    Nothing that the pickle names is imported or called.

    Args:
        data: the pickle.
        file: its name, for messages.

    Raises:
        TipsError: the pickle is cut short, names anything else, or holds something else; the message says which.
    """
    try:
        return _regressor(_Unpickler(io.BytesIO(data)).load())
    except _RefusedError as error:
        raise TipsError(
            f"{file} is refused: {error}; only scikit-learn's RandomForestRegressor and DecisionTreeRegressor and "
            "exported packs are read, and nothing in the file was run"
        ) from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TipsError(
            f"{file} is cut short or no predictor ({reason}); get it again, nothing in it was run"
        ) from error


def _regressor(item: Any) -> Regressor:
    if isinstance(item, _PackRegressor):
        return PackRegressor.of_state(item.state)
    if isinstance(item, _RandomForest):
        trees = item.state["estimators_"]
    elif isinstance(item, _DecisionTree):
        trees = [item]
    else:
        raise _RefusedError(f"it holds a {type(item).__name__.lstrip('_')}, not a regressor")
    if not isinstance(trees, list) or not all(isinstance(tree, _DecisionTree) for tree in trees):
        raise _RefusedError("its forest is not one of decision trees")
    inner = [tree.state["tree_"] for tree in trees]
    if not inner or not all(isinstance(tree, _Tree) and isinstance(tree.state, dict) for tree in inner):
        raise _RefusedError("its trees are not fitted")
    features = int(inner[0].args[0])
    if any(int(tree.args[0]) != features for tree in inner):
        raise _RefusedError("its trees take different numbers of features")
    return Forest.of_trees(features, [(tree.state["nodes"], tree.state["values"]) for tree in inner])
