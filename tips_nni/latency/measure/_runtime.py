"""Runtimes that are timed: onnxruntime with all graph optimisations, and torch."""

from __future__ import annotations

import json
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from tips_nni.core import Operation, TipsError
from tips_nni.elastic import export_onnx
from tips_nni.latency._kernels import Kernel
from tips_nni.latency._lookup import KernelRow
from tips_nni.latency._records import Record, parse_entry

Parts = Sequence[tuple[Operation, Kernel]]
#: ONNX operators by the type of kernel that they are.
_OPERATORS = {
    "Conv": ("conv", "dwconv", "groupconv"),
    "Gemm": ("fc",),
    "MatMul": ("fc",),
    "Add": ("add",),
    "Mul": ("mul",),
    "Concat": ("concat",),
    "MaxPool": ("maxpool",),
    "GlobalAveragePool": ("avgpool",),
    "ReduceMean": ("avgpool",),
    "AveragePool": ("avgpool",),
}


class Timed(ABC):
    """A network on a runtime, ready to be timed."""

    @abstractmethod
    def run(self) -> None:
        """Run it on one image."""

    @abstractmethod
    def kernel_times(self, runs: int) -> list[float]:
        """Return the smallest time in ms of every kernel over some runs; 0 where it is part of another."""


class OnnxNetwork(Timed):
    """A network in onnxruntime, optimised as by default.

    Args:
        module: the network.
        images: one image, (1, C, H, W).
        parts: its kernels in order.
        threads: of the runtime.
        folder: for the ONNX file and profiles.
    """

    def __init__(self, module: nn.Module, images: torch.Tensor, parts: Parts, threads: int, folder: Path) -> None:
        self._path = folder / "network.onnx"
        self._folder = folder
        self._threads = threads
        export_onnx(module, images, self._path)
        self._model = self._path.read_bytes()
        self._owner = _owners(onnx.load(self._path).graph, [kernel for _, kernel in parts])
        self._count = len(parts)
        self._session = self._make(profile=False)
        self._feed = {self._session.get_inputs()[0].name: images.numpy()}

    def _make(self, *, profile: bool) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.enable_profiling = profile
        options.profile_file_prefix = str(self._folder / "profile")
        return onnxruntime.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])

    def run(self) -> None:
        """Run it on one image."""
        self._session.run(None, self._feed)

    def kernel_times(self, runs: int) -> list[float]:
        """Return the smallest time in ms of every kernel over some runs, as the profiler says."""
        session = self._make(profile=True)
        for _ in range(runs + 2):
            session.run(None, self._feed)
        profile = Path(session.end_profiling())
        events = json.loads(profile.read_text(encoding="utf-8"))
        profile.unlink()
        durations: dict[str, list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                durations.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] / 1e3)
        times = [0.0] * self._count
        for name, values in durations.items():
            owner = self._owner.get(name.removesuffix("_nchwc"))
            if owner is not None:
                times[owner] += min(values)
        return times


class TorchNetwork(Timed):
    """A network in torch (eager).

    Args:
        module: the network.
        images: one image, (1, C, H, W).
        parts: its kernels in order.
        threads: of torch, while it runs.
        folder: not needed.
    """

    def __init__(self, module: nn.Module, images: torch.Tensor, parts: Parts, threads: int, folder: Path) -> None:
        self._module = module.eval()
        self._images = images
        self._threads = threads
        names = {operation.name: place for place, (operation, _) in enumerate(parts)}
        self._count = len(parts)
        self._places = {child: names[name] for name, child in module.named_modules() if name in names}
        lost = [
            name
            for name, place in names.items()
            if parts[place][1].type == "conv" and place not in self._places.values()
        ]
        if lost:
            raise TipsError(
                f"torch cannot time {lost[0]}, which is no module of the network; use --runtime onnxruntime"
            )

    def run(self) -> None:
        """Run it on one image."""
        with _threads(self._threads), torch.inference_mode():
            self._module(self._images)

    def kernel_times(self, runs: int) -> list[float]:
        """Return the smallest time in ms of every kernel that is a module; the others' is 0."""
        best = [float("inf")] * self._count
        started: dict[nn.Module, float] = {}

        def before(module: nn.Module, _inputs: object) -> None:
            started[module] = time.perf_counter()

        def after(module: nn.Module, _inputs: object, _output: object) -> None:
            place = self._places[module]
            best[place] = min(best[place], 1e3 * (time.perf_counter() - started[module]))

        hooks = [child.register_forward_pre_hook(before) for child in self._places]
        hooks += [child.register_forward_hook(after) for child in self._places]
        try:
            for _ in range(runs + 2):
                self.run()
        finally:
            for hook in hooks:
                hook.remove()
        return [value if value < float("inf") else 0.0 for value in best]


#: Runtimes by name.
RUNTIMES: dict[str, Callable[[nn.Module, torch.Tensor, Parts, int, Path], Timed]] = {
    "onnxruntime": OnnxNetwork,
    "torch": TorchNetwork,
}


def table_rows(records: Iterable[Record], device: str) -> Iterator[KernelRow]:
    """Yield every kernel that occurs in measured networks with the median of its times, for a look-up table."""
    times: dict[tuple[object, ...], list[float]] = {}
    for record in records:
        for entry, value in zip(record.kernels, record.kernel_ms.get(device, ()), strict=False):
            times.setdefault(entry[:6], []).append(value)
    for entry, values in sorted(times.items(), key=str):
        kernel, _ = parse_entry(entry)
        _, side, cin, cout, _, _ = entry
        yield KernelRow(kernel, int(cin), int(cout), int(side), int(side), statistics.median(values))  # type: ignore[call-overload]


def _owners(graph: onnx.GraphProto, kernels: Sequence[Kernel]) -> dict[str, int]:
    """Return the kernel of every node and of every tensor that follows from it.

    The exporter writes nodes in the order in which the network runs them, as the kernels are. onnxruntime names what it
    has fused after the first node or after the last tensor.
    """
    wanted: dict[tuple[str, ...], list[int]] = {}
    for place, kernel in enumerate(kernels):
        for types in set(_OPERATORS.values()):
            if kernel.type in types:
                wanted.setdefault(types, []).append(place)
    found: dict[tuple[str, ...], list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type in _OPERATORS:
            found.setdefault(_OPERATORS[node.op_type], []).append(node)
    owner: dict[str, int] = {}
    made: dict[str, int] = {}
    for types, places in wanted.items():
        nodes = found.get(types, [])
        if len(nodes) == len(places):
            owner |= {node.name: place for node, place in zip(nodes, places, strict=True)}
        elif "conv" in types:
            raise TipsError(
                f"the exported network has {len(nodes)} convolutions, its description {len(places)}; "
                "measure another space"
            )
    for node in graph.node:
        own = owner.get(node.name)
        if own is None or node.op_type in ("Add", "Mul"):
            # Fused behind what makes its first input.
            own = next((made[name] for name in node.input if name in made), own)
        if own is not None:
            made |= dict.fromkeys(node.output, own)
    return {**made, **owner}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_image(channels: int, side: int) -> torch.Tensor:
    """Return one random image, (1, C, H, W)."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((1, channels, side, side)).astype(np.float32))
