"""A subnet in the supernet, its extraction, and the same subnet made by Torch-Pruning or by masks: one function."""

from __future__ import annotations

import copy
import re
import warnings

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from tips_nni.core import SubnetConfig, TipsError
from tips_nni.elastic import Supernet

_BN = nn.modules.batchnorm._BatchNorm


def close(actual: Tensor, expected: Tensor) -> bool:
    """In double precision only mistakes are larger than this."""
    actual, expected = actual.detach(), expected.detach()
    return bool((actual - expected).abs().max() <= 1e-9 * max(1.0, float(expected.abs().max())))


def without_blocks(model: nn.Module, net: Supernet, config: SubnetConfig) -> nn.Module:
    """Put an identity in the place of every block that the depths leave out."""
    for name, dim in ((d.name, d) for d in net.space.dims if d.kind == "depth"):
        stage = model.get_submodule(name.removeprefix("depth."))
        paths = [key for key, child in stage.named_children() if any(True for _ in child.parameters())]
        assert len(paths) == dim.choices[-1]
        for key in paths[config[name] :]:
            stage._modules[key] = nn.Identity()
    return model


def pruned(model: nn.Module, net: Supernet, config: SubnetConfig, images: Tensor) -> nn.Module:
    """Cut the last channels of every elastic group with Torch-Pruning itself."""
    model = without_blocks(model, net, config)
    modules = dict(model.named_modules())
    model.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
        graph = tp.DependencyGraph().build_dependency(model, images[:1])
    for dim in net.space.dims:
        if dim.kind not in ("width", "hidden") or config[dim.name] == dim.choices[-1]:
            continue
        roots = [
            path
            for path, layer in net.plan.layers.items()
            if isinstance(modules.get(path), nn.Conv2d | nn.Linear)
            and getattr(modules[path], "groups", 1) == 1
            and layer.outputs is not None
            and [piece.dim for piece in layer.outputs.pieces] == [dim.name]
            and np.array_equal(layer.outputs.pieces[0].root, np.arange(dim.choices[-1]))
        ]
        if roots:
            root = modules[roots[0]]
            prune = tp.prune_conv_out_channels if isinstance(root, nn.Conv2d) else tp.prune_linear_out_channels
            graph.get_pruning_group(root, prune, list(range(config[dim.name], dim.choices[-1]))).prune()
    return model


def masked(model: nn.Module, net: Supernet, config: SubnetConfig) -> nn.Module:
    """RegNet at full width whose cut channels are zero wherever a layer reads them."""
    model = without_blocks(model, net, config)

    def silence(path: str, keep: int) -> None:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            return output * (torch.arange(output.shape[1]) < keep)[:, None, None]

        model.get_submodule(path).register_forward_hook(hook)

    for dim in net.space.dims:
        kind, _, place = dim.name.partition(".")
        if kind == "hidden":
            if not isinstance(model.get_submodule(place), nn.Identity):
                silence(f"{place}.conv1", config[dim.name])
                silence(f"{place}.conv2", config[dim.name])
        elif kind == "width":
            assert place == "stem" or re.fullmatch(r"s\d|final_conv", place), place
            blocks = [key for key, _ in model.get_submodule(place).named_children()]
            for path in [place] if place == "stem" else [f"{place}.{key}" for key in blocks]:
                silence(path, config[dim.name])
    return model


def test_the_largest_subnet_is_the_timm_model(case):
    original = case.original()
    assert list(original.state_dict()) == list(case.net.backbone.state_dict())
    assert type(case.net.backbone) is type(original)
    expected = original(case.images)
    for largest in (None, case.net.space.largest):
        assert torch.equal(case.net(case.images, largest), expected)
    extracted = case.net.extract(case.net.space.largest)
    assert torch.equal(extracted(case.images), expected)
    assert {k: v.shape for k, v in extracted.state_dict().items()} == {
        k: v.shape for k, v in original.state_dict().items()
    }


def test_random_weights_are_not_sorted(case):
    assert case.untouched


def test_subnets_equal_their_extraction_and_an_independent_reference(case):
    for config in case.configs(10):
        images = case.input(config)
        with torch.no_grad():
            expected = case.net(case.images, config)
            extracted = case.net.extract(config)
            assert torch.equal(extracted(images), expected)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in extracted.modules())
        if case.name.startswith("regnet"):
            reference = masked(case.original(), case.net, config)
        else:
            reference = pruned(case.original(), case.net, config, images)
            assert sum(p.numel() for p in reference.parameters()) == sum(p.numel() for p in extracted.parameters())
        with torch.no_grad():
            assert close(reference(images), expected), config
        assert type(extracted) is type(case.net.backbone)


def test_subnets_differ_from_each_other(case):
    """A check on the checks: every dimension matters to the output."""
    space = case.net.space
    with torch.no_grad():
        images = case.images[:1]
        largest = case.net(images)
        for dim in space.dims:
            other = space.config({**space.largest.as_dict(), dim.name: dim.choices[0]})
            assert not close(case.net(images, other), largest), dim.name


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything that a module remembers, by path; tensors as identity, version and value."""
    state: dict[str, object] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            key = f"{path}:{name}"
            if name in ("_parameters", "_buffers"):
                state[key] = {k: None if v is None else (id(v), v.detach().clone()) for k, v in value.items()}
            elif name == "_modules" or isinstance(value, dict | set):
                state[key] = {k: id(value[k]) for k in value} if isinstance(value, dict) else set(value)
            else:
                state[key] = value
    return state


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return a is b or bool(a == b)


@pytest.mark.parametrize("training", [False, True])
def test_a_forward_leaves_no_state_behind(case, training):
    net = case.copy().train(training)
    before = snapshot(net)
    smaller = [c for c in case.configs(4, seed=3) if c != net.space.largest]
    for config in smaller:
        net(case.images, config).sum().backward()
        view = net.view(config)
        # What is done to a view stays with the view.
        view.train(not training)
        for module in view.modules():
            module.register_forward_hook(lambda *_: None)
        net.extract(config).train()
    assert same(snapshot(net), before)


def test_only_the_largest_tracks_statistics(resnet):
    net = resnet.copy().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net(resnet.images, net.space.smallest)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net(resnet.images, net.space.largest)
    after = net.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {k for k in before if k.endswith(("running_mean", "running_var", "num_batches_tracked"))}


def test_training_mode_normalises_with_the_batch(resnet):
    """A subnet in training mode equals its extraction in training mode."""
    net = resnet.copy().train()
    for config in resnet.configs(5, seed=4):
        extracted = net.extract(config).train()
        assert close(net(resnet.images, config), extracted(resnet.input(config)))
        assert all(m.track_running_stats for m in extracted.modules() if isinstance(m, _BN))


def test_gradients_fill_the_slice_and_nothing_else(case):
    """Every weight is replaced by its own address; an extraction then tells where its weights came from."""
    net, addresses = case.copy(), case.copy()
    start, where = 0, {}
    for name, parameter in addresses.backbone.named_parameters():
        where[name] = (start, start + parameter.numel())
        parameter.data = torch.arange(*where[name], dtype=torch.float64).view_as(parameter)
        start += parameter.numel()
    net.train()
    for config in case.configs(3, seed=1):
        net.zero_grad(set_to_none=True)
        net(case.images, config).square().sum().backward()
        own = net.extract(config).train()
        own(case.input(config)).square().sum().backward()
        expected = torch.zeros(start, dtype=torch.float64)
        located = dict(addresses.extract(config).named_parameters())
        for name, parameter in own.named_parameters():
            if parameter.grad is not None:
                expected[located[name].detach().long().flatten()] = parameter.grad.flatten()
        actual = torch.zeros_like(expected)
        for name, parameter in net.backbone.named_parameters():
            if parameter.grad is not None:
                actual[slice(*where[name])] = parameter.grad.flatten()
        assert close(actual, expected)
        assert bool((actual[expected == 0] == 0).all())


def test_every_parameter_gets_a_gradient(case):
    net = case.copy()
    net(case.images).square().sum().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_a_view_shares_memory_where_channels_lead(resnet):
    view = resnet.net.view(resnet.net.space.smallest)
    whole = {name: p.untyped_storage().data_ptr() for name, p in resnet.net.backbone.named_parameters()}
    assert all(p.untyped_storage().data_ptr() == whole[name] for name, p in view.named_parameters())
    extracted = resnet.net.extract(resnet.net.space.smallest)
    assert not {p.untyped_storage().data_ptr() for p in extracted.parameters()} & set(whole.values())


def test_a_subnet_of_another_space_is_refused(resnet, mobilenet):
    with pytest.raises(TipsError, match="belongs to another search space"):
        resnet.net(resnet.images, mobilenet.net.space.smallest)
    broken = SubnetConfig(resnet.net.space.names, (3,) * len(resnet.net.space.names))
    with pytest.raises(TipsError, match="is not in the search space"):
        resnet.net.view(broken)


def test_a_supernet_can_be_copied_and_cast(resnet):
    net = copy.deepcopy(resnet.net).float()
    config = net.space.smallest
    expected = resnet.net(resnet.images, config).float()
    torch.testing.assert_close(net(resnet.images.float(), config), expected, rtol=1e-4, atol=1e-4)
