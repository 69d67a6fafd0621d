"""Sorted channels: the same function, the important ones first."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tips_nni.core import TipsError
from tips_nni.elastic import convert
from tips_nni.elastic._sort import channel_units, permute_channels, sort_channels


def test_sorting_leaves_the_function_unchanged(case):
    net = case.copy()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        expected = net(case.images)
        sort_channels(net.backbone, net.plan)
        actual = net(case.images)
    assert any(not torch.equal(v, before[k]) for k, v in net.state_dict().items())
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    for key, value in net.state_dict().items():
        moments = [(t.double().sum(), t.double().square().sum()) for t in (value, before[key])]
        torch.testing.assert_close(*moments)


def test_sorting_twice_changes_nothing(resnet):
    net = resnet.copy()
    sort_channels(net.backbone, net.plan)
    once = {k: v.clone() for k, v in net.state_dict().items()}
    sort_channels(net.backbone, net.plan)
    assert all(torch.equal(v, once[k]) for k, v in net.state_dict().items())


def descending(values: torch.Tensor) -> bool:
    return bool((values.diff() <= 1e-12 * values.abs().max()).all())


def l1(module: torch.nn.Module) -> torch.Tensor:
    return module.weight.detach().abs().sum(dim=(1, 2, 3))


def test_the_most_important_channels_lead_in_a_resnet(tools):
    net = tools.build("resnet18", tools.space())
    model = net.backbone
    assert not descending(l1(model.layer2[0].conv1))
    sort_channels(model, net.plan)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            assert descending(l1(block.conv1))
    # All that a residual stage adds up counts.
    assert descending(l1(model.conv1) + l1(model.layer1[0].conv2) + l1(model.layer1[1].conv2))
    assert descending(l1(model.layer2[0].downsample[0]) + l1(model.layer2[0].conv2) + l1(model.layer2[1].conv2))


def test_grouped_convolutions_move_by_whole_groups(tools):
    net = tools.build("regnetx_002", tools.space())
    width = net.backbone.s3.b1.conv2.conv.in_channels // net.backbone.s3.b1.conv2.conv.groups
    assert width > 1
    assert channel_units(net.backbone, net.plan)["hidden.s3.b1"] == width
    sort_channels(net.backbone, net.plan)
    total = l1(net.backbone.s3.b1.conv1.conv) + l1(net.backbone.s3.b1.conv2.conv)
    assert descending(total.view(-1, width).sum(1))


def test_permutations_undo(case):
    net = case.copy()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    rng = np.random.default_rng(0)
    dim = next(d for d in net.space.dims if d.kind in ("width", "hidden"))
    order = rng.permutation(dim.choices[-1] // channel_units(net.backbone, net.plan)[dim.name])
    permute_channels(net.backbone, net.plan, {dim.name: order})
    assert any(not torch.equal(v, before[k]) for k, v in net.state_dict().items())
    permute_channels(net.backbone, net.plan, {dim.name: np.argsort(order)})
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_checkpoint_is_loaded_and_sorted(tools, tmp_path):
    original = tools.randomise(timm.create_model("mobilenetv3_small_050", num_classes=7)).eval()
    path = tmp_path / "weights.safetensors"
    save_file(original.state_dict(), path)
    net = convert(
        "mobilenetv3_small_050", tools.space(), image_size=64, num_classes=7, checkpoint_path=str(path)
    ).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net(images), original(images), rtol=1e-4, atol=1e-4)
    assert list(net.backbone.state_dict()) == list(original.state_dict())
    assert not torch.equal(net.backbone.conv_stem.weight, original.conv_stem.weight)


@pytest.mark.parametrize("spoil", ["missing", "truncated", "foreign", "pickle"])
def test_a_bad_checkpoint_is_one_line(tools, tmp_path, spoil):
    path = tmp_path / ("weights.pth" if spoil == "pickle" else "weights.safetensors")
    state = timm.create_model("resnet10t", num_classes=7).state_dict()
    if spoil == "foreign":
        save_file({"something": torch.zeros(3)}, path)
    elif spoil == "truncated":
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:1000])
    elif spoil == "pickle":
        path.write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(TipsError) as error:
        convert("resnet10t", tools.space(), image_size=64, num_classes=7, checkpoint_path=str(path))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
