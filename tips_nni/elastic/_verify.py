"""The check that every elastic dimension of a plan can be cut exactly, run by every conversion."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tips_nni.core import Architecture, Codes, ElasticDim, SubnetConfig, TipsError
from tips_nni.core._space import CHANNEL_KINDS
from tips_nni.elastic._describe import Shapes, channels_last, spatial_size
from tips_nni.elastic._meta import UNFIT, MultiplyAdds, QuickShapes, copied, first_line
from tips_nni.elastic._narrow import narrow
from tips_nni.elastic._plan import ElasticPlan
from tips_nni.elastic._sort import channel_units, permute_channels
from tips_nni.elastic._trace import module_shapes
from tips_nni.elastic._wiring import Components, Wiring

_TOLERANCE = 1e-4


def find_inexact(model: nn.Module, ghost: nn.Module, plan: ElasticPlan, wired: Components) -> dict[str, str]:
    """Return the dimensions whose subnets would not be exact, each with the reason; empty where all are.

    Three things are checked. Subnets run, and keep the shape of the output (no arithmetic). In a narrow subnet every
    layer reads the channels that it read in the backbone, less those that are cut (no arithmetic). And a permutation
    of the channels of a dimension leaves the function as it is, on random weights: so the channels that are cut
    together are those, and only those, that belong together.

    Args:
        model: the backbone; it stays as it is.
        ghost: the same on the meta device, in evaluation mode.
        plan: its elastic plan.
        wired: what the channels of its layers are coupled with (`Trace.wired`).
    """
    return _unfit(ghost, plan) or _rewired(ghost, plan, wired) or _wrongly_coupled(model, plan)


def check_description(ghost: nn.Module, plan: ElasticPlan, architecture: Architecture) -> None:
    """Compare an architecture with what really happens in a small and a middle subnet (no arithmetic).

    Args:
        ghost: the backbone on the meta device, in evaluation mode.
        plan: its elastic plan.
        architecture: its description.

    Raises:
        TipsError: a convolution or linear layer has other channels, another size, or is there when it should not be;
            or multiply-adds or parameters are outside of the described operations: costs would be wrong.
    """
    name, space = type(ghost).__name__, plan.space
    for choose in (lambda n: 0, lambda n: n // 2):
        codes = np.array([[choose(len(dim.choices)) for dim in space.dims]], dtype=np.int64)
        config = space.decode(codes[0])
        view = narrow(ghost, plan, config)
        with MultiplyAdds() as counter:
            shapes = module_shapes(view, plan.in_chans, plan.resolution(config))
        real, (described, *costs) = _real_layers(view, shapes), _described(architecture, codes)
        if real != described:
            path = next(p for p in real.keys() | described.keys() if real.get(p) != described.get(p))
            raise TipsError(
                f"{name} cannot be described exactly: {path} has (inputs, outputs, height, width) {real.get(path)}, "
                f"not {described.get(path)}; choose another backbone"
            )
        flops, params = counter.count, sum(p.numel() for p in view.parameters())
        if costs != [flops, params]:
            raise TipsError(
                f"{name} cannot be described exactly: a subnet has {flops} multiply-adds and {params} parameters, of "
                f"which {costs[0]} and {costs[1]} are in known layers; choose another backbone"
            )


def _real_layers(view: nn.Module, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return ``{path: (inputs, outputs, height, width)}`` of the layers that ran."""
    found: dict[str, tuple[int, ...]] = {}
    for path, module in view.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and path in shapes:
            last = channels_last(module)
            before, after = shapes[path]
            axis = -1 if last else 1
            found[path] = (before[axis], after[axis], *spatial_size(after, last))
    return found


def _described(architecture: Architecture, codes: Codes) -> tuple[dict[str, tuple[int, ...]], int, int]:
    """Return the same for the layers that one subnet, (1, D), should have; and its multiply-adds and parameters."""
    found: dict[str, tuple[int, ...]] = {}
    flops = params = 0
    for op in architecture.operations:
        if not architecture.present(op, codes)[0]:
            continue
        inputs = sum(int(architecture.channels(name, codes)[0]) for name in op.inputs)
        outputs = int(architecture.channels(op.output, codes)[0])
        params += op.channel_params * (outputs if op.kind != "attention" else outputs // (op.group_width or 1))
        params += op.params
        if op.kind == "attention":
            keys = int(architecture.spatial(op.inputs[0], codes)[0, 0])
            flops += 2 * keys * outputs * int(architecture.spatial(op.output, codes)[0].prod())
        if op.kind == "filter":
            positions = int(architecture.spatial(op.inputs[0], codes)[0].prod())
            kernel = op.kernel[0] * op.kernel[1] or positions
            flops += outputs * kernel * int(architecture.spatial(op.output, codes)[0].prod())
        if op.kind in ("conv", "linear"):
            height, width = architecture.spatial(op.output, codes)[0].tolist()
            found[op.name] = (inputs, outputs, height, width)
            weights = (op.group_width or inputs // (op.groups or 1)) * outputs * op.kernel[0] * op.kernel[1]
            flops += weights * height * width
            params += weights + op.bias * outputs
    return found, flops, params


def _unfit(ghost: nn.Module, plan: ElasticPlan) -> dict[str, str]:
    """Return the dimensions that break a forward."""
    dims, largest = plan.space.dims, list(plan.space.largest.values)
    # Blocks that are left out change no shape: a few depths will do.
    most = max((len(dim.choices) for dim in dims if dim.kind != "depth"), default=2)

    def failure(values: list[int]) -> str | None:
        config = SubnetConfig(plan.space.names, tuple(values))
        side = plan.resolution(config)
        shape = (2, plan.in_chans, side, side)
        try:
            with torch.no_grad(), QuickShapes():
                output = narrow(ghost, plan, config)(torch.empty(shape, device="meta"))
        except UNFIT as error:
            return first_line(error)
        if not isinstance(output, Tensor) or output.shape != expected.shape:
            return f"the output gets another shape than {tuple(expected.shape)}"
        return None

    with torch.no_grad(), QuickShapes():
        expected = ghost(torch.empty(2, plan.in_chans, plan.image_size, plan.image_size, device="meta"))
    broken: dict[str, str] = {}
    tried = [[_place(dim, level, most) for dim in dims] for level in range(most - 1)]
    # One kind alone, too: what is cut by the same share everywhere may fit by chance.
    kinds = {dim.kind for dim in dims}
    for kind in sorted(kinds) if len(kinds) > 1 else ():
        tried.append([0 if dim.kind == kind else -1 for dim in dims])
    for places in tried:
        values = [dim.choices[-1 if dim.name in broken else place] for dim, place in zip(dims, places, strict=True)]
        passing = 0
        while (reason := failure(values)) is not None:
            # Find out which one it is: the first so many dimensions at this level pass, one more fails.
            failing = len(dims)
            while failing - passing > 1:
                middle = (passing + failing) // 2
                found = failure([*values[:middle], *largest[middle:]])
                if found is None:
                    passing = middle
                else:
                    failing, reason = middle, found
            broken[dims[failing - 1].name] = f"a subnet does not run ({reason})"
            values[failing - 1] = largest[failing - 1]
            passing = failing
    return broken


def _place(dim: ElasticDim, level: int, levels: int) -> int:
    """Return the index of the choice of a dimension at one of several levels of narrowness, 0 the narrowest."""
    last = len(dim.choices) - 1
    return last * level // max(1, levels - 1) if dim.kind == "depth" else min(level, last)


def _rewired(ghost: nn.Module, plan: ElasticPlan, wired: Components) -> dict[str, str]:
    """Return the dimensions with which a layer of a narrow subnet reads others than the channels that are left."""
    dims = plan.space.dims
    narrowest = {dim.name: dim.choices[0 if dim.kind in CHANNEL_KINDS else -1] for dim in dims}
    config = plan.space.config(narrowest)
    view = narrow(ghost, plan, config)
    side = plan.resolution(config)
    found = Wiring(view)
    found.run(view, torch.empty(1, plan.in_chans, side, side, device="meta"))
    axes = {
        (path, out): axis
        for path, layer in plan.layers.items()
        for out, axis in ((False, layer.inputs), (True, layer.outputs))
        if axis is not None
    }
    left = {key: components[axes[key].kept(config)] if key in axes else components for key, components in wired.items()}
    wrong = np.array(sorted(found.differing(left)), dtype=np.int64)
    names = {
        piece.dim
        for key, axis in axes.items()
        if key in wired
        for piece in axis.pieces
        if np.isin(wired[key][piece.index], wrong).any()
    }
    return dict.fromkeys(sorted(names), "a layer reads its channels in another order when some are cut")


def _wrongly_coupled(model: nn.Module, plan: ElasticPlan) -> dict[str, str]:
    """Return the dimensions whose channels cannot be permuted without changing the function."""
    dims = [dim.name for dim in plan.space.dims if dim.kind in CHANNEL_KINDS and dim.name not in plan.ordered]
    # Rounding grows with depth: what fails in single precision gets a second look in double.
    if not _changing(model, plan, dims, torch.float32) or not _changing(model, plan, dims, torch.float64):
        return {}
    wrong = [name for name in dims if _changing(model, plan, [name], torch.float64)]
    return dict.fromkeys(wrong or dims, "its channels are coupled in a way that cannot be cut exactly")


def _changing(model: nn.Module, plan: ElasticPlan, dims: list[str], dtype: torch.dtype) -> bool:
    """Whether a random permutation of the channels of `dims` changes the function."""
    probe = _randomised(model).to(dtype)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, plan.in_chans, plan.image_size, plan.image_size, generator=generator, dtype=dtype)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        expected = probe(images)
        units = channel_units(probe, plan)
        orders = {name: rng.permutation(plan.space[name].choices[-1] // units[name]) for name in dims}
        permute_channels(probe, plan, orders)
        return not _close(probe(images), expected)


def _randomised(model: nn.Module) -> nn.Module:
    """Return a copy in which no parameter or statistic is constant, so that every channel is told from the next.

    Weights that stay as they are share their memory with the original. Linear layers that start with small weights get
    larger ones: with those an attention looks everywhere alike.
    """
    probe = copied(model, lambda tensor: tensor.cpu().float() if tensor.is_floating_point() else tensor.cpu()).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*probe.named_parameters(), *probe.named_buffers()]:
        data = tensor.data
        if not data.is_floating_point() or not data.numel():
            continue
        constant = not data.flatten()[0] and not data.any()
        fresh = torch.empty_like(data)
        if name.endswith("running_var"):
            fresh.uniform_(0.5, 2.0, generator=generator)
        elif constant or max(data.shape, default=1) == data.numel():
            fresh.normal_(1.0 if name.endswith("weight") and data.ndim < 2 else 0.5, 0.3, generator=generator)
        elif data.ndim == 2 and data.square().mean() < 0.25 / data.shape[1]:
            fresh.normal_(0.0, data.shape[1] ** -0.5, generator=generator)
        else:
            continue
        tensor.data = fresh
    return probe


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Whether two outputs agree but for rounding, relative to how much the outputs differ among each other."""
    scale = (expected - expected.mean()).abs().max()
    return bool((actual - expected).abs().max() <= _TOLERANCE * scale)
