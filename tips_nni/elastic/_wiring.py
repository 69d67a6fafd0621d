"""How channels go from layer to layer: one run of a network, followed operation by operation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tips_nni.elastic._labels import Labels, follow, varying
from tips_nni.elastic._meta import QuickNorms
from tips_nni.elastic.rules import LayerRule, channel_axis, find_rule

#: (path of a module or bare parameter, whether outputs) -> what each position of that channel axis is cut together
#: with, as the number of a component; -1 for what no layer of the network makes. Shape (channels,), int64.
Components = Mapping[tuple[str, bool], NDArray[np.int64]]


class Wiring(TorchDispatchMode):
    """Follows the channels of a network while it runs once on the meta device.

    Attributes:
        labels: all labels.
        axes: the labels on the channel axis of each module and bare parameter, by (path, whether outputs).
        blocks: axes that are kept or cut by blocks: (path, whether outputs) -> positions of a block.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.labels = Labels()
        self.axes: dict[tuple[str, bool], Tensor] = {}
        self.blocks: dict[tuple[str, bool], int] = {}
        self._own: set[tuple[str, bool]] = set()
        self._inside = 0
        # Tensors are kept, so that no other one gets the identity of one that is gone.
        self._known: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._bare: dict[int, str] = {}
        self._handles: list[Any] = []
        self._followers: dict[str, str] = {}
        self._grouped_layers: list[tuple[str, int, Tensor | None, Tensor]] = []
        leaves: set[str] = set()
        for path, module in model.named_modules():
            rule = find_rule(module)
            if rule is None or _inside(path, leaves):
                continue
            if rule.composite:
                followed = rule.follows(module)
                if followed == "":
                    self._handles.append(module.register_forward_pre_hook(self._reader(path, rule)))
                elif followed is not None:
                    self._followers[path] = f"{path}.{followed}"
                continue
            leaves.add(path)
            self._handles += [
                module.register_forward_pre_hook(self._enter),
                module.register_forward_hook(self._leaver(path, rule), always_call=True),
            ]
        for path, parameter in model.named_parameters():
            if not _inside(path, leaves):
                self._bare[id(parameter)] = path

    def run(self, model: nn.Module, images: Tensor) -> None:
        """Run the network; what it returns are the classes."""
        try:
            with torch.no_grad(), QuickNorms(), self:
                output = model(images)
        finally:
            for handle in self._handles:
                handle.remove()
        # At the end, when it is known whether later layers couple the groups with each other.
        for layer in self._grouped_layers:
            self._grouped(*layer)
        for path, child in self._followers.items():
            if (child, True) in self.axes:
                self.axes[path, True] = self.axes[child, True]
        found = self._get(output) if isinstance(output, Tensor) else None
        if found is not None:
            self.labels.pin(found, "its outputs are the classes")

    def components(self) -> Components:
        """Return which component every position of every axis belongs to."""
        numbers = np.append(self.labels.components(), -1)
        return {key: numbers[vector.numpy()] for key, vector in self.axes.items()}

    def pinned(self) -> dict[int, str]:
        """Return ``{component: reason}`` of those that cannot be cut."""
        return self.labels.pinned(self.labels.components())

    def differing(self, expected: Components) -> set[int]:
        """Return the components that are not where they should be.

        Args:
            expected: the components of another, wider run, less the positions that were cut.
        """
        names = np.full(self.labels.count + 1, -1, dtype=np.int64)
        for key in self._own & expected.keys():
            names[self.axes[key].numpy()] = expected[key]
        one, other = names[self.labels.pairs()]
        pairs = [(one, other)]
        for key, vector in self.axes.items():
            if key in expected and key not in self._own:
                pairs.append((names[vector.numpy()], expected[key]))
        differ = [np.concatenate([a[a != b], b[a != b]]) for a, b in pairs]
        return set(np.concatenate(differ).tolist()) - {-1}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not self._inside:
            given = output if isinstance(output, tuple | list) else [output]
            tensors = [t for t in given if isinstance(t, Tensor)]
            for tensor, found in zip(tensors, follow(self.labels, func, args, kwargs, output, self._get), strict=True):
                self._known[id(tensor)] = (tensor, found)
        return output

    def _get(self, tensor: Tensor) -> Tensor | None:
        if id(tensor) in self._known:
            return self._known[id(tensor)][1]
        path = self._bare.get(id(tensor))
        if path is None or tensor.numel() < 2:
            return None
        axis = channel_axis(tensor)
        own = self.labels.new(tensor.shape[axis])
        self.axes[path, True] = own
        self._own.add((path, True))
        found = own.reshape([-1 if a == axis else 1 for a in range(tensor.ndim)])
        self._known[id(tensor)] = (tensor, found)
        return found

    def _enter(self, _module: nn.Module, _inputs: Any) -> None:
        self._inside += 1

    def _reader(self, path: str, rule: LayerRule) -> Any:
        def read(module: nn.Module, inputs: Any) -> None:
            found = None if self._inside else self._get(inputs[0])
            if found is not None:
                vector = self._vector(found, inputs[0], rule.axis(module) % inputs[0].ndim)
                if vector is not None:
                    self.axes[path, True] = vector

        return read

    def _leaver(self, path: str, rule: LayerRule) -> Any:
        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            self._inside -= 1
            if self._inside == 0 and isinstance(output, Tensor):
                self._known[id(output)] = (output, self._through(path, rule, module, inputs[0], output))

        return leave

    def _through(self, path: str, rule: LayerRule, module: Any, source: Tensor, output: Tensor) -> Tensor | None:
        """Return the labels of a layer's output; note those of its channels."""
        axis = rule.axis(module) % source.ndim
        incoming = self._get(source)
        along = [] if incoming is None else varying(incoming)
        passes = along and axis not in along and all(output.shape[a] == source.shape[a] for a in along)
        if incoming is not None and rule.mixes(module) and passes:
            # A layer along another axis than that of the channels: they pass.
            if math.prod(getattr(module, "kernel_size", (1,))) > 1:
                self.labels.order(incoming)
            return incoming
        vector = None if incoming is None else self._vector(incoming, source, axis)
        if rule.mixes(module):
            size = output.shape[axis]
            own = self.labels.new(size)
            repeated = (path, True) in self.axes
            if repeated:
                self.labels.pin(own, "a layer that runs twice")
                self.labels.pin(self.axes[path, True], "a layer that runs twice")
                if vector is not None:
                    self.labels.pin(vector, "it feeds a layer that runs twice")
            self.axes[path, True] = own
            self._own.add((path, True))
            if vector is not None:
                self.axes[path, False] = vector
            groups = int(getattr(module, "groups", 1))
            if groups > 1:
                self._grouped_layers.append((path, groups, vector, own))
            return own.reshape([-1 if a == axis else 1 for a in range(output.ndim)])
        if vector is None:
            return incoming
        if (path, True) in self.axes:
            self.labels.join(self.axes[path, True], vector)
        self.axes[path, True] = vector
        if rule.unit(module) > 1:
            self.blocks[path, True] = rule.unit(module)
        return incoming

    def _vector(self, labels: Tensor, tensor: Tensor, axis: int) -> Tensor | None:
        """Return the labels along one axis, shape (its length,), or None where there are none."""
        if any(a != axis for a in varying(labels)):
            self.labels.pin(labels, "its channels lie along another axis than a layer reads")
            return None
        vector = labels.reshape(-1)
        if len(vector) == 1 and tensor.shape[axis] > 1:
            return None if int(vector) < 0 else vector.expand(tensor.shape[axis])
        return vector if bool((vector >= 0).any()) else None

    def _grouped(self, path: str, groups: int, inputs: Tensor | None, outputs: Tensor) -> None:
        """Couple the inputs and outputs of a grouped convolution: whole groups are kept or cut, or each alike."""
        if inputs is None or bool((inputs < 0).any()):
            self.labels.pin(outputs, f"the grouped convolution {path} reads channels that are fixed")
            if inputs is not None:
                self.labels.pin(inputs, f"the grouped convolution {path} reads channels that are fixed")
            return
        before, after = len(inputs) // groups, len(outputs) // groups
        components = self.labels.components()[outputs.numpy()].reshape(groups, after)
        if after > 1 and (components == components[0]).all():
            # The groups are added up later: every group is cut alike.
            self.labels.join(inputs.reshape(groups, before), inputs[:before])
            return
        if max(before, after) % min(before, after):
            for each in (inputs, outputs):
                self.labels.pin(each, f"the grouped convolution {path} has {before} inputs and {after} outputs a group")
            return
        self.labels.join(
            inputs.repeat_interleave(max(1, after // before)), outputs.repeat_interleave(max(1, before // after))
        )
        self.blocks[path, True], self.blocks[path, False] = after, before


def _inside(path: str, leaves: set[str]) -> bool:
    """Whether a module or parameter lies inside one of `leaves`."""
    while path:
        path = path.rpartition(".")[0]
        if path in leaves:
            return True
    return False
