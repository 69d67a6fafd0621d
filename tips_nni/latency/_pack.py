"""Predictor packs: plain data for one device and runtime, no code in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import TipsError, unknown, write_json
from tips_nni.latency._kernels import MOVING, Kernel, Shapes, feature
from tips_nni.latency._model import KernelModel

#: Where a predicted time comes from, see `PredictorPack.source_of`.
Source = Literal["fitted", "neighbour", "estimate"]

FORMAT = "tips-nni latency pack 2"
_FOLDER = Path(__file__).parent / "packs"
#: Up to that many times the most input channels measured, a convolution's own model holds.
_REACH = 2


@dataclass(frozen=True)
class PredictorPack:
    """A model of the kernels of one device.

    Attributes:
        name: of the pack.
        description: device and runtime, for people.
        device: its name in the measurements.
        families: network families that it was fitted on.
        networks: how many networks it was fitted on.
        image_size: smallest and largest side of the input of those.
        types: types of kernels that were measured.
        kernels: kernel (``conv-3-1``: type, window, stride) -> its model.
        per_element_ms: ms per 1e6 elements moved, for types of kernels that the measurements lack.
        per_mac_ms: ms per 1e6 multiply-adds, for the same.
        digest: SHA-256 of the content.
    """

    name: str
    description: str
    device: str
    families: tuple[str, ...]
    networks: int
    image_size: tuple[int, int]
    types: tuple[str, ...]
    kernels: Mapping[str, KernelModel]
    per_element_ms: float
    per_mac_ms: float
    digest: str

    @classmethod
    def create(cls, **content: Any) -> PredictorPack:
        """Check the content, compute its digest and return the pack.

        Raises:
            TipsError: a key is missing, a kernel that it was fitted on is, or a number is negative or not finite.
        """
        try:
            name = str(content["name"])
            kernels = {str(key): KernelModel.from_json(row) for key, row in content["kernels"].items()}
            smallest, largest = content["image_size"]
            pack = cls(
                name,
                str(content["description"]),
                str(content["device"]),
                tuple(map(str, content["families"])),
                int(content["networks"]),
                (int(smallest), int(largest)),
                tuple(map(str, content.get("types", sorted({key.split("-")[0] for key in kernels})))),
                kernels,
                float(content["per_element_ms"]),
                float(content["per_mac_ms"]),
                "",
            )
            keys = {key: _parse(key) for key in kernels}
        except TipsError as error:
            raise TipsError(f"latency pack {content.get('name')!r}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TipsError(f"not a latency pack ({error!r}); make one with `tips-nni latency measure`") from None
        for kind in pack.types:
            if kind not in {key[0] for key in keys.values()}:
                raise TipsError(f"latency pack {name!r} lacks the kernel {kind!r} that it was fitted on; get it again")
        if not any(keys[key][0] == "conv" and model.costs for key, model in kernels.items()):
            raise TipsError(f"latency pack {name!r} lacks the kernel 'conv'; fit it on networks with convolutions")
        for key in ("per_element_ms", "per_mac_ms"):
            if not 0 <= getattr(pack, key) < np.inf:
                raise TipsError(f"latency pack {name!r}: {key} = {getattr(pack, key)}; it must be 0 or more")
        body = json.dumps(pack._content(), sort_keys=True).encode()
        return replace(pack, digest=hashlib.sha256(body).hexdigest())

    def _content(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "description": self.description,
            "device": self.device,
            "families": list(self.families),
            "networks": self.networks,
            "image_size": list(self.image_size),
            "types": list(self.types),
            "kernels": {key: model.to_json() for key, model in self.kernels.items()},
            "per_element_ms": self.per_element_ms,
            "per_mac_ms": self.per_mac_ms,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the pack as plain JSON data, as its file holds it."""
        return {"format": FORMAT, "unit": "ms", "digest": self.digest, **self._content()}

    def save(self, path: Path) -> None:
        """Write the pack's file."""
        write_json(path, self.to_json())

    def kernel_ms(self, kernel: Kernel, shapes: Shapes) -> NDArray[np.float64]:
        """Return the predicted time in ms of kernels of one kind, shape (M,).

        It is nondecreasing in every channel count.
        """
        if kernel.type == "fc" and (shapes.side > 1).any():
            # A linear layer at many positions reuses its weights as a convolution of window 1 does.
            result = np.empty(len(shapes.cin))
            for mask, kind in ((shapes.side > 1, Kernel("conv")), (shapes.side <= 1, kernel)):
                if mask.any():
                    part = shapes.pick(mask)
                    result[mask] = self._own_ms(kind, part)
            return result
        return self._own_ms(kernel, shapes)

    def _own_ms(self, kernel: Kernel, shapes: Shapes) -> NDArray[np.float64]:
        model, _ = self._model_of(kernel)
        if model is None:
            moved = feature("input", kernel, shapes) + feature("output", kernel, shapes)
            return np.asarray(moved * self.per_element_ms + feature("macs", kernel, shapes) * self.per_mac_ms)
        times = model.evaluate(kernel, shapes)
        beyond = self._beyond(kernel, model, shapes.per_group)
        if beyond.any():
            far = shapes.pick(beyond)
            # The own model up to where it holds keeps the time nondecreasing in the input channels.
            most = np.full_like(far.per_group, _REACH * model.cin[1])
            own = model.evaluate(kernel, replace(far, cin=most, per_group=most))
            times[beyond] = np.maximum(own, self._widest(kernel).evaluate(kernel, far))
        return times

    @property
    def widest(self) -> tuple[int, int]:
        """Most input and output channels of a measured convolution."""
        dense = [model for key, model in self.kernels.items() if _parse(key)[0] == "conv"]
        return max(model.cin[1] for model in dense), max(model.cout[1] for model in dense)

    def source_of(self, kernel: Kernel, shapes: Shapes) -> Source:
        """Return where the time of kernels of one kind comes from; of several shapes the least certain.

        ``fitted``; ``neighbour``: the window or stride was never measured, or only with far fewer input channels (a
        network's first convolution is), so that the nearest kernel of the type stands for it, multiply-adds and sizes
        counted in full; ``estimate``: the type was never measured: the elements moved count, and multiply-adds at
        the price of dense convolutions.

        Args:
            kernel: the kernel.
            shapes: their shapes.
        """
        if kernel.type == "fc" and (shapes.side > 1).any():
            kernel = Kernel("conv")
        model, source = self._model_of(kernel)
        if model is not None and source == "fitted" and self._beyond(kernel, model, shapes.per_group).any():
            return "neighbour"
        return source

    def _model_of(self, kernel: Kernel) -> tuple[KernelModel | None, Source]:
        """Return the model that stands for a kernel, None where it is estimated, and where it comes from."""
        own = self.kernels.get(str(kernel))
        if own is not None and (own.costs or kernel.type in MOVING):  # moving may be free: with the kernel before it
            return own, "fitted"
        near = self._nearest(kernel, kernel.type)
        if near is not None:
            return near, "neighbour"
        return None, "estimate"

    def _nearest(self, kernel: Kernel, kind: str) -> KernelModel | None:
        """Return the model of the nearest kernel of a type: of many widths, then by window, then by stride."""

        def distance(key: str) -> tuple[bool, float, int]:
            _, window, stride = _parse(key)
            return not self.kernels[key].wide, abs(float(np.log(window / kernel.window))), abs(stride - kernel.stride)

        keys = [key for key, model in self.kernels.items() if _parse(key)[0] == kind and model.costs]
        return self.kernels[min(keys, key=distance)] if keys else None

    def _beyond(self, kernel: Kernel, model: KernelModel, per_group: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return where a convolution has far more input channels than its own model was measured with."""
        wider = kernel.type == "conv" and self._widest(kernel).cin[1] > model.cin[1]
        return (per_group > _REACH * model.cin[1]) & wider

    def _widest(self, kernel: Kernel) -> KernelModel:
        near = self._nearest(kernel, "conv")
        if near is None:
            raise TipsError(f"latency pack {self.name!r} knows no convolution; fit it on networks that have some")
        return near


def _parse(key: str) -> tuple[str, int, int]:
    """Return type, positions of the window and stride of a kernel's name."""
    kind, size, stride = key.split("-")
    height, _, width = size.partition("x")
    window = int(height) * int(width or height)
    if window < 1 or int(stride) < 1:
        raise ValueError(f"kernel {key!r} has a number below 1")
    return kind, window, int(stride)


def pack_names() -> list[str]:
    """Return the names of the packs that ship with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_pack(name: str) -> PredictorPack:
    """Load a pack by its name or from a file (a path that ends with ``.json``).

    Raises:
        TipsError: unknown name, or a file that is truncated, altered or no pack.
    """
    if name.endswith(".json"):
        return read_pack(Path(name))
    if name not in pack_names():
        raise unknown("latency target", name, pack_names())
    return _embedded(name)


@cache
def _embedded(name: str) -> PredictorPack:
    return read_pack(_FOLDER / f"{name}.json")


def read_pack(path: Path) -> PredictorPack:
    """Read a pack's file; see `load_pack`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TipsError(f"latency pack {path}: {error.strerror or error}; check the path") from None
    if raw[:1] == b"\x80" or raw[:2] == b"\x1f\x8b":
        raise TipsError(f"{path} is a pickle or an archive, not a latency pack (plain JSON); it was not opened")
    try:
        data = json.loads(raw)
    except ValueError as error:
        raise TipsError(f"{path} is no latency pack or is cut short: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise TipsError(f"{path} is no latency pack of this version ({FORMAT!r}); make it again")
    if data.get("unit") != "ms":
        raise TipsError(f"{path}: unit = {data.get('unit')!r}; latencies must be in 'ms'")
    pack = PredictorPack.create(**{k: v for k, v in data.items() if k not in ("format", "unit", "digest")})
    if data.get("digest") != pack.digest:
        raise TipsError(f"{path} was altered: its content does not have the digest that it states; get it again")
    return pack
