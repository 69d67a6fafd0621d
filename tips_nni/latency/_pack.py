"""Predictor packs: plain data for one device and runtime, no code in them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import TipsError, unknown
from tips_nni.latency._kernels import ESTIMATED, FEATURES, FITTED, MULTIPLYING, Kernel, features

FORMAT = "tips-nni latency pack 1"
_FOLDER = Path(__file__).parent / "packs"


@dataclass(frozen=True)
class PredictorPack:
    """A model of the kernels of one device.

    Attributes:
        name: of the pack.
        description: device and runtime, for people.
        device: its name in nn-Meter's benchmark.
        families: network families that it was fitted on.
        networks: how many networks it was fitted on.
        coefficients: kernel (``conv-3-1``: type, window, stride) -> ms per feature, see `FEATURES`.
        per_element_ms: ms per 1e6 elements moved, for kernels that the measurements lack.
        digest: SHA-256 of the content.
    """

    name: str
    description: str
    device: str
    families: tuple[str, ...]
    networks: int
    coefficients: Mapping[str, tuple[float, ...]]
    per_element_ms: float
    digest: str

    @classmethod
    def create(cls, *, strict: bool = True, **content: Any) -> PredictorPack:
        """Check the content, compute its digest and return the pack; `strict`: it must know every fitted kernel.

        Raises:
            TipsError: a key is missing, or a coefficient is negative or not finite.
        """
        try:
            coefficients = {str(k): tuple(float(v) for v in row) for k, row in content["coefficients"].items()}
            pack = cls(
                str(content["name"]),
                str(content["description"]),
                str(content["device"]),
                tuple(map(str, content["families"])),
                int(content["networks"]),
                coefficients,
                float(content["per_element_ms"]),
                "",
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TipsError(f"not a latency pack: {error!r}; see `tips_nni/latency/packs` for the form") from error
        for kernel, row in pack.coefficients.items():
            if len(row) != len(FEATURES):
                raise TipsError(
                    f"latency pack {pack.name!r}: {kernel} has {len(row)} coefficients, not {len(FEATURES)}"
                )
            bad = [value for value in row if not (math.isfinite(value) and value >= 0)]
            if bad:
                raise TipsError(f"latency pack {pack.name!r}: {kernel} has the coefficient {bad[0]}; they must be >= 0")
        for kind in FITTED if strict else ():
            if not any(key.split("-")[0] == kind for key in pack.coefficients):
                raise TipsError(f"latency pack {pack.name!r} lacks the kernel {kind!r}; it needs {', '.join(FITTED)}")
        if not (math.isfinite(pack.per_element_ms) and pack.per_element_ms >= 0):
            raise TipsError(f"latency pack {pack.name!r}: per_element_ms = {pack.per_element_ms}; it must be >= 0")
        body = json.dumps(pack._content(), sort_keys=True).encode()
        return cls(**{**pack.__dict__, "digest": hashlib.sha256(body).hexdigest()})

    def _content(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "description": self.description,
            "device": self.device,
            "families": list(self.families),
            "networks": self.networks,
            "coefficients": {kernel: list(row) for kernel, row in self.coefficients.items()},
            "per_element_ms": self.per_element_ms,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the pack as plain JSON data, as its file holds it."""
        return {"format": FORMAT, "unit": "ms", "digest": self.digest, **self._content()}

    def kernel_ms(
        self,
        kernel: Kernel,
        cin: NDArray[np.int64],
        cout: NDArray[np.int64],
        size_in: NDArray[np.int64],
        size_out: NDArray[np.int64],
        per_group: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Return the predicted time in ms of kernels of one kind, shape (M,); arguments as of `features`."""
        return np.asarray(features(kernel, cin, cout, size_in, size_out, per_group) @ self.coefficients_of(kernel)[0])

    def coefficients_of(self, kernel: Kernel) -> tuple[NDArray[np.float64], str]:
        """Return ms per feature, shape (len(FEATURES),), and where they come from.

        ``fitted``; ``neighbour``: the window or stride was never measured, the nearest one of the type stands for it
        (multiply-adds and sizes still count in full); ``estimate``: only the bytes moved count.
        """
        own = self.coefficients.get(str(kernel))
        moves_only = kernel.type in ("add", "maxpool")  # may cost nothing: devices run it with its neighbour
        if own is not None and (any(own) or moves_only):
            return np.array(own), "fitted"
        moved = np.zeros(len(FEATURES))
        moved[FEATURES.index("input")] = moved[FEATURES.index("output")] = self.per_element_ms
        if moves_only or (kernel.type in ESTIMATED and kernel.type not in MULTIPLYING):
            return moved, "estimate"
        # A type that was never measured goes by the dense convolutions.
        rows = [(key, row) for key, row in self.coefficients.items() if any(row)]
        near = [item for item in rows if item[0].split("-")[0] == kernel.type]
        source = "neighbour" if near else "estimate"
        near = near or [item for item in rows if item[0].startswith("conv-")]
        if not near:
            raise TipsError(f"latency pack {self.name!r} knows no convolution; fit it on networks that have some")

        def distance(item: tuple[str, Sequence[float]]) -> tuple[int, int]:
            _, size, stride = item[0].split("-")
            return abs(int(size) - kernel.size), abs(int(stride) - kernel.stride)

        return np.array(min(near, key=distance)[1]), source


def pack_names() -> list[str]:
    """Return the names of the packs that ship with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


@cache
def load_pack(name: str) -> PredictorPack:
    """Load a pack by its name or from a file.

    Raises:
        TipsError: unknown name, or a file that is truncated, altered or no pack.
    """
    path = Path(name) if name.endswith(".json") else _FOLDER / f"{name}.json"
    if not path.is_file():
        raise unknown("latency target", name, pack_names())
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TipsError(f"{path} is no latency pack or is cut short: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise TipsError(f"{path} is no latency pack of this version ({FORMAT!r})")
    if data.get("unit") != "ms":
        raise TipsError(f"{path}: unit = {data.get('unit')!r}; latencies must be in 'ms'")
    pack = PredictorPack.create(**{k: v for k, v in data.items() if k not in ("format", "unit", "digest")})
    if data.get("digest") != pack.digest:
        raise TipsError(f"{path} was altered: its content does not have the digest that it states; get it again")
    return pack
