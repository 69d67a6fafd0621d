"""What converts, what stays fixed and why, and what is refused in one line."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tips_nni.core import TipsError
from tips_nni.elastic import convert, create_backbone
from tips_nni.elastic._sort import sort_channels
from tips_nni.specs import DepthSpec, RatioSpec, ResolutionSpec


class Dense(nn.Module):
    """Concatenations, as in DenseNet: the kept positions of a later layer are scattered."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.grow1 = nn.Conv2d(16, 8, 3, padding=1)
        self.grow2 = nn.Conv2d(24, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.cat([x, self.grow1(x).relu()], 1)
        x = torch.cat([x, self.grow2(x).relu()], 1)
        return self.fc(self.norm(x).mean((2, 3)))


class Shuffled(nn.Module):
    """A channel shuffle: shapes fit after a cut, but other channels than those cut would be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.deep = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        n, c, h, w = x.shape
        y = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc((x + self.deep(y)).mean((2, 3)))


class Baked(nn.Module):
    """A number of channels written into the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.middle = nn.Conv2d(16, 24, 1)
        self.last = nn.Conv2d(24, 16, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.middle(self.stem(x).relu()).relu())
        return self.fc(x.mean((2, 3)).view(-1, 16))


class Block(nn.Module):
    """A residual block: one branch, or two one after the other; or one that is no identity without its branches."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.a, self.b = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1, stride=2 if form == "cropped" else 1)
        if form in ("two branches", "scaled", "first input again"):
            self.c, self.d = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "cropped":
            return x[:, :, ::2, ::2] + self.b(self.a(x).relu())
        first, x = x, x + self.b(self.a(x).relu())
        if self.form == "two branches":
            x = x + self.d(self.c(x).relu())
        if self.form == "scaled":
            x = x.relu() + self.d(self.c(x).relu())
        if self.form == "first input again":
            x = x + (first + self.d(self.c(x).relu()))
        return x + self.b(self.a(x)) if self.form == "used twice" else x


class Staged(nn.Module):
    def __init__(self, form: str = "one branch") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.stage = nn.Sequential(*(Block(form) for _ in range(3)))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stage(self.stem(x)).mean((2, 3)))


def images(side: int = 16, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def custom(tools, module: nn.Module, **changes: object):
    plain = {"width": RatioSpec(ratios=(0.5, 1.0), divisor=4), "hidden": RatioSpec(ratios=(0.5, 1.0), divisor=4)}
    return convert(module, tools.space(**{"resolution": None, **plain, **changes}), image_size=16).double().eval()


def test_scattered_channels_convert_exactly(tools):
    module = tools.randomise(Dense())
    net = custom(tools, copy.deepcopy(module))
    original = module.double().eval()
    torch.testing.assert_close(net(images()), original(images()))
    # Channels are sorted in a module with weights of its own, so the reference is what came out of it.
    original.load_state_dict(net.backbone.state_dict())
    assert {d.name: d.choices for d in net.space.dims} == {
        "width.stem": (8, 16),
        "width.grow1": (4, 8),
        "width.grow2": (4, 8),
    }
    for config in net.space.enumerate():
        reference = copy.deepcopy(original)
        a, b, c = config.values
        with torch.no_grad():  # at full width: what is cut is zero behind the activation, and behind the norm
            for layer, keep in ((reference.stem, a), (reference.grow1, b), (reference.grow2, c)):
                layer.weight[keep:] = 0
                layer.bias[keep:] = 0
            gone = [*range(a, 16), *range(16 + b, 24), *range(24 + c, 32)]
            reference.fc.weight[:, gone] = 0
        torch.testing.assert_close(net(images(), config), reference(images()), rtol=1e-10, atol=1e-10)
        extracted = net.extract(config)
        assert extracted.fc.in_features == a + b + c
        assert torch.equal(extracted(images()), net(images(), config))


def test_a_channel_shuffle_is_cut_in_both_halves(tools):
    """Channel i of one half and of the other go together: what is left is shuffled as it was."""
    net = custom(tools, tools.randomise(Shuffled()))
    dim = net.space["width.stem"]
    assert dim.choices == (4, 8)
    model = net.backbone
    before = net(images())
    sort_channels(model, net.plan)
    torch.testing.assert_close(net(images()), before)
    reference = copy.deepcopy(model)
    gone = [*range(4, 8), *range(12, 16)]
    with torch.no_grad():
        for layer in (reference.stem, reference.deep):
            layer.weight[gone] = 0
            layer.bias[gone] = 0
    torch.testing.assert_close(net(images(), net.space.smallest), reference(images()))


class Reversed(nn.Module):
    """Channels in the opposite order: those that lead are at the end for the next layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.deep = nn.Conv2d(16, 24, 1)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.deep(self.stem(x).flip(1)[:, :12].repeat(1, 2, 1, 1)[:, :16]).mean((2, 3)))


def test_a_cut_that_moves_other_channels_is_not_made(tools):
    net = custom(tools, Reversed())
    assert not any("stem" in name for name in net.space.names)
    assert "stem" in net.fixed


def test_baked_shapes_stay_fixed_and_the_rest_is_elastic(tools):
    net = custom(tools, Baked())
    assert net.space.names == ("width.stem", "width.middle")
    assert "does not run" in net.fixed["last"]
    assert net.fixed["fc"] == "its outputs are the classes"
    for config in net.space.enumerate():
        assert torch.equal(net(images(), config), net.extract(config)(images()))


def test_custom_blocks_can_be_left_out(tools):
    net = custom(tools, Staged())
    assert net.space["depth.stage"].choices == (1, 2, 3)
    shallow = net.space.config({**net.space.largest.as_dict(), "depth.stage": 1})
    model = net.backbone
    expected = model.fc(model.stage[0](model.stem(images())).mean((2, 3)))
    torch.testing.assert_close(net(images(), shallow), expected)
    assert isinstance(net.extract(shallow).stage[2], nn.Identity)
    assert {d.name for d in net.space.dims} == {
        "width.stage", "hidden.stage.0", "hidden.stage.1", "hidden.stage.2", "depth.stage"
    }  # fmt: skip


def test_blocks_of_two_branches_can_be_left_out(tools):
    """Each branch is added to what came before it, so without both the block hands on its input."""
    net = custom(tools, Staged("two branches"))
    assert net.space["depth.stage"].choices == (1, 2, 3)
    shallow = net.space.config({**net.space.largest.as_dict(), "depth.stage": 1})
    model = net.backbone
    torch.testing.assert_close(net(images(), shallow), model.fc(model.stage[0](model.stem(images())).mean((2, 3))))
    additions = [op for op in net.architecture.operations if op.kind == "add"]
    assert [op.gate.at_least if op.gate else 0 for op in additions] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("form", ["cropped", "scaled", "first input again"])
def test_blocks_that_are_not_their_input_plus_branches_stay(tools, form):
    net = custom(tools, Staged(form))
    assert "depth.stage" not in net.space
    assert net.fixed["depth of stage"] == "stage.2 is not its own input plus branches"
    for config in (net.space.smallest, net.space.largest):
        assert torch.equal(net(images(), config), net.extract(config)(images()))


def test_a_layer_that_runs_twice_is_refused(tools):
    with pytest.raises(TipsError, match="a layer that runs twice") as error:
        custom(tools, Staged("used twice"))
    assert "\n" not in str(error.value)


def test_every_group_and_stage_is_elastic_or_has_a_reason(case):
    net = case.net
    elastic = {dim.name.partition(".")[2] for dim in net.space.dims}
    assert not elastic & set(net.fixed)
    assert all(reason and "\n" not in reason for reason in net.fixed.values())
    outputs = {op.name for op in net.architecture.operations if op.kind in ("conv", "linear")}
    for name in outputs - {path for path, layer in net.plan.layers.items() if layer.outputs is not None}:
        block = [key for key in net.fixed if name == key or name.startswith(f"{key}.")]
        assert block, f"{name} is fixed without a reason"
    assert "its outputs are the classes" in net.fixed.values()


def test_reasons_name_what_is_missing(tools):
    net = tools.build("mobilenetv3_small_050", tools.space(hidden=None, depth=None, resolution=None))
    assert {dim.kind for dim in net.space.dims} == {"width"}
    assert "the space declares no hidden" in net.fixed.values()
    assert net.fixed["depth of blocks.1"] == "the space declares no depth"
    net = tools.build("resnet18", tools.space(fixed=("layer1*", "conv1")))
    assert not [name for name in net.space.names if "layer1" in name]
    assert net.fixed["depth of layer1"] == "the space fixes it"
    net = tools.build("resnet18", tools.space(depth=DepthSpec(min=2)))
    assert net.fixed["depth of layer2"] == "the space keeps all its blocks"
    net = tools.build("resnet18", tools.space(resolution=ResolutionSpec(ratios=(0.9, 1.0), divisor=32)))
    assert net.fixed["resolution"] == "every choice rounds to 64 pixels"


def test_choices_are_multiples_of_the_divisor_up_to_the_backbone(case):
    for dim in case.net.space.dims:
        if dim.kind in ("width", "hidden"):
            assert all(choice % 8 == 0 for choice in dim.choices[:-1])
        if dim.kind == "resolution":
            assert dim.choices == (32, 48, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": RatioSpec(ratios=(1.0,)), "hidden": None, "depth": None, "resolution": None}, "nothing in ResNet"),
        ({"width": RatioSpec(ratios=(0.5, 1.0), divisor=1024), "hidden": None, "depth": None, "resolution": None},
         "rounds to"),
        ({"resolution": ResolutionSpec(choices=(32, 96))}, "resolution 96 is larger"),
    ],
)  # fmt: skip
def test_a_space_without_choices_is_refused(tools, changes, message):
    with pytest.raises(TipsError, match=message) as error:
        tools.build("resnet10t", tools.space(**changes))
    assert "\n" not in str(error.value)


def test_unknown_backbones_get_the_closest_name():
    with pytest.raises(TipsError, match="did you mean 'resnet50'"):
        create_backbone("resnet_50")
    with pytest.raises(TipsError, match=r"cannot create 'resnet18'.*colour"):
        create_backbone("resnet18", colour="red")


@pytest.mark.parametrize(("name", "size"), [("vgg11_bn", 16), ("inception_v3", 32), ("vit_tiny_patch16_224", 64)])
def test_images_that_do_not_fit_are_refused(tools, name, size):
    with pytest.raises(TipsError, match=f"does not accept images of {size}×{size}") as error:
        convert(name, tools.space(), image_size=size, num_classes=7)
    assert "\n" not in str(error.value)


def test_in_channels(tools):
    net = convert("resnet10t", tools.space(), image_size=32, in_chans=1, num_classes=3).eval()
    assert net(torch.zeros(2, 1, 32, 32), net.space.smallest).shape == (2, 3)
    assert net.recipe == {"model_name": "resnet10t", "in_chans": 1, "num_classes": 3}


class Multiplied(nn.Module):
    """A product of two feature maps, that no layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((x @ x.transpose(2, 3)).mean((2, 3)))


def test_what_cannot_be_described_exactly_is_refused(tools):
    """Operations that no cost table counts would make every constraint wrong."""
    with pytest.raises(TipsError, match="cannot be described exactly") as error:
        custom(tools, Multiplied())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["resnext50_32x4d", "mobilenetv4_conv_small", "ghostnet_100", "hrnet_w18_small", "repvgg_a0", "dla34"]
)
def test_other_families_convert_exactly(tools, name):
    net = tools.build(name, tools.space(resolution=None), size=64).double()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(net.extract(net.space.smallest)(x), net(x, net.space.smallest))
        sort_channels(net.backbone, net.plan)
        torch.testing.assert_close(net(x), expected, rtol=1e-7, atol=1e-7)


def test_conversion_leaves_a_module_as_it_was(tools):
    """Modes and gradient flags are kept, and no hook stays behind; only channels are sorted."""
    module = Dense()
    module.norm.eval()
    module.stem.weight.requires_grad_(False)
    modes = [m.training for m in module.modules()]
    convert(module, tools.space(resolution=None), image_size=16)
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()].count(False) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
