"""One forward of a model space's supernet: which operations ran, and which fed which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

INPUT = "input"
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


def _convolution(args: Any, kwargs: Any, output: Tensor) -> int:
    weight: Tensor = args[1] if len(args) > 1 else kwargs["weight"]
    return output.numel() * weight[0].numel()


def _product(args: Any, kwargs: Any, output: Tensor) -> int:
    return output.numel() * int(args[0].shape[-1])


_PRODUCTS: dict[Any, Callable[[Any, Any, Tensor], int]] = {
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    nn.functional.linear: _product,
    torch.matmul: _product,
    torch.bmm: _product,
    Tensor.matmul: _product,
    Tensor.__matmul__: _product,
}


@dataclass
class Trace:
    """What one forward did.

    Attributes:
        channels: operation -> channels of its output; operations are named by their module's path, or by the path of
            the module whose forward calls a function, and the function. What comes out of a choice is one too.
        edges: (from, to) operations.
        dense: operations that mix channels: convolutions and linear layers that are not depthwise.
        weighted: operations with a weight, and functions of several inputs.
        multiply_adds: operation -> multiply-adds of one image, for convolutions and products of matrices.
        modules: paths of all modules that ran.
        labels: labels of the choices that mattered.
        output: the operations that the result consists of.
    """

    channels: dict[str, int] = field(default_factory=dict)
    edges: set[tuple[str, str]] = field(default_factory=set)
    dense: set[str] = field(default_factory=set)
    weighted: set[str] = field(default_factory=set)
    multiply_adds: dict[str, int] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    output: tuple[str, ...] = ()


@torch.no_grad()
def trace_forward(model: nn.Module, images: Tensor) -> Trace:
    """Run `model`, whose choices are made, on images (N, C, H, W) and return what ran; its mode is left as it is."""
    recorder = _Recorder(len(images))
    handles = [handle for path, module in model.named_modules() for handle in recorder.watch(path, module)]
    mode = model.training
    model.eval()
    try:
        recorder.own(images, (INPUT,))
        recorder.trace.channels[INPUT] = _channels(images)
        with recorder:
            result = model(images)
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    recorder.trace.output = recorder.producers(result)
    return recorder.trace


class _Recorder(TorchFunctionMode):
    """Follows tensors by their identity through modules and functions."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.trace = Trace()
        self._images = images
        self._owners: dict[int, tuple[str, ...]] = {}
        self._alive: list[Tensor] = []  # an identity is free for others once its tensor is gone
        self._path: list[str] = [""]
        self._leaf = 0
        self._calls: Counter[str] = Counter()
        self._multiply_adds = 0

    def own(self, value: Any, producers: tuple[str, ...]) -> None:
        """Note that all tensors of `value` come from `producers`."""
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                self._owners[id(tensor)] = producers
                self._alive.append(tensor)

    def producers(self, value: Any) -> tuple[str, ...]:
        """Return the operations that the tensors of `value` come from, each once."""
        found = (self._owners.get(id(t), ()) for t in tree_leaves(value) if isinstance(t, Tensor))
        return tuple(dict.fromkeys(name for names in found for name in names))

    def watch(self, path: str, module: nn.Module) -> Iterator[Any]:
        """Hook a module and yield the handles."""
        supernet = isinstance(module, BaseSuperNetModule)
        leaf = not list(module.children()) and not (supernet and not list(module.parameters()))
        mutables = module.mutables if isinstance(module, BaseSuperNetModule) else []
        labels = {str(label) for mutable in mutables for label in mutable.simplify()}

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            self.trace.modules.add(path)
            if not self._leaf:
                self.trace.labels.update(labels)
            self._path.append(path)
            self._leaf += leaf
            if leaf and self._leaf == 1:
                self._multiply_adds = 0

        def after(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            self._path.pop()
            self._leaf -= leaf
            if self._leaf or not (leaf or supernet):
                return output
            weights = [p for p in module.parameters(recurse=False) if p.ndim > 1] if leaf else []
            inputs = self.producers((args, kwargs) if leaf else output)  # of a choice: where its alternatives meet
            fresh = tree_map(self._distinct, output)
            self._add(path, inputs, fresh, weights)
            return fresh

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after, with_kwargs=True)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Follow a function that a module's own forward calls."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _PRODUCTS:
            self._multiply_adds += _PRODUCTS[func](args, kwargs, output) // self._images
        if self._leaf or not any(isinstance(value, Tensor) for value in tree_leaves(output)):
            return output
        inputs = self.producers((args, kwargs))
        weights = [t for t in tree_leaves((args, kwargs)) if isinstance(t, nn.Parameter) and t.ndim > 1]
        if weights or (len(inputs) > 1 and func not in _CONCATENATIONS and self._several(args, kwargs)):
            name = getattr(func, "__name__", "function").strip("_")
            self._add(f"{self._path[-1]}.{name}".lstrip("."), inputs, output, weights, function=True)
        elif inputs:
            self.own(output, inputs)
        return output

    def _distinct(self, value: Any) -> Any:
        """Return another tensor with the same content for one that is known: an identity hands on its input."""
        if not isinstance(value, Tensor) or id(value) not in self._owners:
            return value
        self._leaf += 1
        try:
            return value.view_as(value)
        finally:
            self._leaf -= 1

    def _several(self, args: Any, kwargs: Any) -> bool:
        """Whether a function got tensors of different origin, not one tensor that has several origins."""
        return len({self._owners[id(t)] for t in tree_leaves((args, kwargs)) if id(t) in self._owners}) > 1

    def _add(
        self, place: str, inputs: tuple[str, ...], output: Any, weights: list[nn.Parameter], function: bool = False
    ) -> None:
        """Add an operation; further ones at the same place are numbered."""
        number = self._calls[place]
        self._calls[place] += 1
        name = f"{place}#{number}" if number else place
        tensor = next((t for t in tree_leaves(output) if isinstance(t, Tensor)), None)
        if tensor is None or not inputs:
            return
        self.trace.channels[name] = _channels(tensor)
        if self._multiply_adds:
            self.trace.multiply_adds[name] = self._multiply_adds
            self._multiply_adds = 0
        self.trace.edges.update((source, name) for source in inputs)
        if weights or function:
            self.trace.weighted.add(name)
        depthwise = any(w.ndim > 2 and w.shape[1] == 1 for w in weights) and self.trace.channels[name] > 1
        if weights and not (depthwise and self.trace.channels[name] == sum(self.trace.channels[i] for i in inputs)):
            self.trace.dense.add(name)
        self.own(output, (name,))


def _channels(tensor: Tensor) -> int:
    """Return the channels: the second axis of images and of vectors, the last one of tokens (N, L, C)."""
    return int(tensor.shape[-1] if tensor.ndim in (1, 3) else tensor.shape[1]) if tensor.ndim else 1
