"""The description of a backbone tells the truth about every subnet: layers, shapes, multiply-adds, parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tips_nni.core import Architecture, CostTable, SubnetConfig

_LAYERS = (nn.Conv2d, nn.Linear)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)


def counted(architecture: Architecture, config: SubnetConfig) -> tuple[int, int]:
    """Multiply-adds and parameters, one operation at a time."""
    code = architecture.space.encode(config)[None]
    flops = params = 0
    for op in architecture.operations:
        if not architecture.present(op, code)[0]:
            continue
        outputs = int(architecture.channels(op.output, code)[0])
        params += op.channel_params * outputs
        if op.kind in ("conv", "linear"):
            inputs = sum(int(architecture.channels(name, code)[0]) for name in op.inputs)
            weights = outputs * (op.group_width or inputs) * op.kernel[0] * op.kernel[1]
            flops += weights * int(architecture.spatial(op.output, code)[0].prod())
            params += weights + (outputs if op.bias else 0)
    return flops, params


def observed(model: nn.Module, images: Tensor) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of inputs and outputs of convolutions, linear layers and normalisations."""
    shapes = {}
    for path, module in model.named_modules():
        if isinstance(module, _LAYERS + _NORMS):
            module.register_forward_hook(
                lambda _m, i, o, path=path: shapes.update({path: (tuple(i[0].shape), tuple(o.shape))})
            )
    with torch.no_grad():
        model(images)
    return shapes


def shape_of(architecture: Architecture, name: str, code: np.ndarray, last: bool, rank: int) -> tuple[int, ...]:
    channels = int(architecture.channels(name, code)[0])
    height, width = (int(n) for n in architecture.spatial(name, code)[0])
    if rank == 2:
        assert (height, width) == (1, 1)
        return (channels,)
    return (height, width, channels) if last else (channels, height, width)


def test_multiply_adds_and_parameters_are_exact(case):
    table = CostTable(case.net.architecture)
    for config in case.configs(8, seed=2):
        extracted = case.net.extract(config)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            extracted(case.input(config)[:1])
        params = sum(p.numel() for p in extracted.parameters())
        exact = (counter.get_total_flops() / 2, params)
        assert counted(case.net.architecture, config) == exact
        codes = case.net.space.encode(config)[None]
        assert (table.flops(codes)[0], table.params(codes)[0]) == exact


def test_layers_and_shapes_are_those_of_the_extraction(case):
    architecture = case.net.architecture
    operations = {op.name: op for op in architecture.operations if op.kind in ("conv", "linear", "norm")}
    space = case.net.space
    configs = case.configs(4, seed=6)
    configs += [space.config({**configs[-1].as_dict(), "resolution": side}) for side in space["resolution"].choices]
    for config in configs:
        code = space.encode(config)[None]
        extracted = case.net.extract(config)
        shapes = observed(extracted, case.input(config)[:1])
        present = {name for name, op in operations.items() if architecture.present(op, code)[0]}
        assert present == set(shapes)
        for name in present:
            module = extracted.get_submodule(name)
            before, after = shapes[name]
            last = isinstance(module, nn.Linear) or type(module) is nn.LayerNorm
            op = operations[name]
            assert shape_of(architecture, op.output, code, last, len(after)) == after[1:], name
            (source,) = op.inputs
            assert shape_of(architecture, source, code, last, len(before)) == before[1:], (name, source)
            if isinstance(module, nn.Conv2d):
                assert (op.kernel, op.stride) == (module.kernel_size, module.stride)
                assert (op.group_width or module.in_channels) == module.in_channels // module.groups
            assert op.type.partition("+")[0] == type(module).__name__


def test_blocks_that_are_left_out_leave_their_addition_as_an_identity(case):
    """What the description says of a gated addition: without its block it hands on its first ungated input."""
    architecture = case.net.architecture
    by_output = {op.output: op for op in architecture.operations}
    gated = [op for op in architecture.operations if op.gate is not None]
    depths = [dim for dim in case.net.space.dims if dim.kind == "depth"]
    assert bool(gated) == bool(depths)
    for op in architecture.operations:
        for name in op.inputs:
            source = by_output.get(name)
            if source is None or source.gate is None or source.gate == op.gate:
                continue
            # Only an addition (or the activation after it) carries on behind a block that may be missing.
            assert source.kind in ("add", "act"), (op.name, source.name)
    for dim in depths:
        additions = [op for op in gated if op.gate.dim == dim.name and op.kind == "add"]
        assert {op.gate.at_least for op in additions} == set(range(1, len(dim.choices)))
        for addition in additions:
            sources = [by_output[name] for name in addition.inputs]
            assert sum(source.gate != addition.gate for source in sources) == 1


def test_the_network_runs_from_one_input_to_the_classes(case, tools):
    architecture = case.net.architecture
    codes = case.net.space.encode_many([case.net.space.smallest, case.net.space.largest])
    assert architecture.channels(architecture.input.name, codes).tolist() == [3, 3]
    assert architecture.spatial(architecture.input.name, codes).tolist() == [[32, 32], [64, 64]]
    assert architecture.channels(architecture.output.name, codes).tolist() == [tools.classes] * 2
    used = {name for op in architecture.operations for name in op.inputs}
    dangling = [op.name for op in architecture.operations[:-1] if op.output not in used]
    assert not dangling


@pytest.mark.parametrize("name", ["densenet121", "res2net50_26w_4s"])
def test_concatenations_and_splits_are_counted(tools, name):
    net = tools.build(name, tools.space(resolution=None), size=32)
    rng = np.random.default_rng(0)
    for code in [net.space.encode(net.space.smallest), *net.space.sample(rng, 2)]:
        config = net.space.decode(code)
        extracted = net.extract(config)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            extracted(torch.zeros(1, 3, 32, 32))
        params = sum(p.numel() for p in extracted.parameters())
        assert counted(net.architecture, config) == (counter.get_total_flops() / 2, params)
