"""Vision transformers: heads, hidden width, embedding width and depth are cut exactly."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import Mlp
from timm.models.edgenext import CrossCovarianceAttn
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tips_nni.core import CostTable, Gate, NNDegree, PathGraph, SubnetConfig, TipsError, make_policy
from tips_nni.elastic import Supernet, convert, export_onnx, resize
from tips_nni.elastic._sort import permute_channels, sort_channels
from tips_nni.latency import LatencyTable, load_pack
from tips_nni.specs import HeadsSpec, RatioSpec, ResolutionSpec, load_space, load_strategy, strategy_names

SIZE = 32
CLASSES = 7
#: the second of the sizes by which every test model is cut, the one that timm can build by itself
SHARE = 2 / 3
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": (
        "vit_tiny_patch16_224",
        {"patch_size": 8, "embed_dim": 48, "depth": 3, "reg_tokens": 2, "init_values": 0.1},
    ),
    "normed": (
        "vit_tiny_patch16_224",
        {
            "patch_size": 8, "embed_dim": 48, "depth": 2, "qk_norm": True, "scale_attn_norm": True,
            "scale_mlp_norm": True, "global_pool": "avg", "class_token": False,
        },
    ),
    "deit": ("deit_tiny_distilled_patch16_224", {"patch_size": 8, "embed_dim": 48, "depth": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"patch_size": 2, "embed_dim": 24, "depths": (2, 2), "num_heads": (3, 6), "window_size": 4},
    ),
}  # fmt: skip


def randomise(model: nn.Module) -> nn.Module:
    """Make everything differ from channel to channel and from head to head, far from what it starts at; in place."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.named_parameters():
        if tensor.ndim == 2 and name.endswith("weight"):
            tensor.data.normal_(0.0, 1.5 * tensor.shape[1] ** -0.5, generator=generator)
        elif tensor.ndim < 2 and not name.endswith("bias"):
            tensor.data.normal_(1.0, 0.3, generator=generator)
        else:
            tensor.data.normal_(0.0, 0.5, generator=generator)
    return model


def created(key: str, **changes: Any) -> nn.Module:
    name, arguments = MODELS[key]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return timm.create_model(name, img_size=SIZE, num_classes=CLASSES, **{**arguments, **changes})


def space(tools: Any, **changes: object) -> Any:
    ratios = RatioSpec(ratios=(1 / 3, SHARE, 1.0), divisor=8)
    return tools.space(**{"width": ratios, "hidden": ratios, "resolution": None, **changes})


def converted(key: str, declared: Any) -> Supernet:
    name, arguments = MODELS[key]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return convert(name, declared, image_size=SIZE, num_classes=CLASSES, arguments={"img_size": SIZE, **arguments})


@dataclass(frozen=True)
class Transformer:
    key: str
    net: Supernet
    images: Tensor
    seconds: float

    def configs(self, count: int) -> list[SubnetConfig]:
        codes = self.net.space.sample(np.random.default_rng(0), count - 2)
        return [self.net.space.smallest, self.net.space.largest, *(self.net.space.decode(code) for code in codes)]

    def heads(self) -> list[str]:
        return [dim.name for dim in self.net.space.dims if dim.kind == "heads"]

    def change(self, **values: int) -> SubnetConfig:
        """The largest subnet with some dimensions, given by the beginnings of their names, at other values."""
        chosen = self.net.space.largest.as_dict()
        for name in chosen:
            chosen[name] = next((value for key, value in values.items() if name.startswith(key)), chosen[name])
        return self.net.space.config(chosen)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tools: Any) -> Transformer:
    began = time.process_time()
    net = converted(request.param, space(tools))
    seconds = time.process_time() - began
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(2, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    untouched = created(request.param).state_dict()
    assert list(net.backbone.state_dict()) == list(untouched)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in net.backbone.state_dict().items())
    randomise(net)
    return Transformer(request.param, net.double().eval(), images, seconds)


def close(actual: Tensor, expected: Tensor) -> bool:
    actual, expected = actual.detach(), expected.detach()
    return bool((actual - expected).abs().max() <= 1e-9 * max(1.0, float(expected.abs().max())))


def test_all_of_a_transformer_is_elastic(model: Transformer) -> None:
    dims = {dim.name: dim.choices for dim in model.net.space.dims}
    blocks = {"vit": 3, "normed": 2, "deit": 2}
    if model.key == "swin":
        paths = [f"layers.{stage}.blocks.{block}" for stage in (0, 1) for block in (0, 1)]
        expected = {"width.layers.0.blocks": (8, 16, 24), "width.layers.1.blocks": (16, 32, 48)}
        expected |= {f"depth.layers.{stage}.blocks": (1, 2) for stage in (0, 1)}
        expected |= {f"heads.{path}.attn": (1, 2, 3) if ".0.blocks" in path else (2, 4, 6) for path in paths}
        expected |= {f"hidden.{path}": (32, 64, 96) if ".0.blocks" in path else (64, 128, 192) for path in paths}
    else:
        count = blocks[model.key]
        expected = {"width.blocks": (16, 32, 48), "depth.blocks": tuple(range(1, count + 1))}
        expected |= {f"heads.blocks.{i}.attn": (1, 2, 3) for i in range(count)}
        expected |= {f"hidden.blocks.{i}": (64, 128, 192) for i in range(count)}
    assert dims == expected
    assert set(model.net.fixed.values()) == {"its outputs are the classes"}
    assert model.seconds < 5


def test_the_largest_is_the_timm_model(model: Transformer) -> None:
    plain = created(model.key).double().eval()
    plain.load_state_dict(model.net.backbone.state_dict())
    assert type(model.net.backbone) is type(plain)
    for largest in (model.net.backbone, model.net.extract(model.net.space.largest)):
        assert torch.equal(largest(model.images), plain(model.images))


def test_subnets_equal_their_extraction(model: Transformer) -> None:
    with torch.no_grad():
        largest = model.net(model.images)
        for config in model.configs(12):
            extracted = model.net.extract(config)
            assert close(extracted(model.images), model.net(model.images, config))
            assert not any(type(module).__module__.startswith("tips_nni") for module in extracted.modules())
            for name in model.heads():
                attention = extracted.get_submodule(name.removeprefix("heads.").removesuffix(".attn"))
                if isinstance(attention, nn.Identity):
                    continue
                attention = attention.attn
                assert attention.num_heads == config[name]
                assert attention.qkv.out_features == 3 * attention.proj.in_features
                assert getattr(attention, "attn_dim", attention.proj.in_features) == attention.proj.in_features
        for dim in model.net.space.dims:
            other = model.change(**{dim.name: dim.choices[0]})
            assert not close(model.net(model.images, other), largest), dim.name


def narrowed(model: Transformer) -> tuple[SubnetConfig, nn.Module]:
    """A subnet that timm can build by itself, as timm builds it, with weights that are cut by hand."""
    share = {"embed_dim": 2 * MODELS[model.key][1]["embed_dim"] // 3}
    if model.key == "swin":
        values = {f"width.layers.{i}": 16 * 2**i for i in (0, 1)} | {f"heads.layers.{i}": 2 * 2**i for i in (0, 1)}
        values |= {f"hidden.layers.{i}": 64 * 2**i for i in (0, 1)} | {"depth": 1}
        small = created("swin", **share, num_heads=(2, 4), depths=(1, 1))
    else:
        values = {"width": 32, "heads": 2, "hidden": 128, "depth": 1}
        small = created(model.key, **share, num_heads=2, depth=1)
    state = {}
    for name, target in small.state_dict().items():
        tensor = model.net.backbone.state_dict()[name]
        if ".qkv." in name:
            q, k, v = tensor.chunk(3)
            tensor = torch.cat([part[: target.shape[0] // 3] for part in (q, k, v)])
        elif "downsample" in name:
            # Four neighbours side by side: each has its channels in front.
            axis = tensor.ndim - 1
            tensor = torch.cat([part.narrow(axis, 0, target.shape[axis] // 4) for part in tensor.chunk(4, axis)], axis)
        state[name] = tensor[tuple(slice(0, size) for size in target.shape)]
    small.load_state_dict(state)
    return model.change(**values), small.double().eval()


def test_a_cut_is_what_timm_builds_narrower(model: Transformer) -> None:
    config, expected = narrowed(model)
    extracted = model.net.extract(config)
    assert close(extracted(model.images), expected(model.images))
    known = extracted.state_dict()
    assert list(known) == list(expected.state_dict())
    assert all(torch.equal(tensor, known[name]) for name, tensor in expected.state_dict().items())


def test_a_head_that_is_cut_is_a_head_that_nobody_reads(model: Transformer) -> None:
    for name in model.heads():
        kept = model.net.space[name].choices[0]
        reference = copy.deepcopy(model.net.backbone)
        attention: Any = reference.get_submodule(name.removeprefix("heads."))
        size = attention.proj.in_features // attention.num_heads
        if isinstance(getattr(attention, "norm", None), nn.LayerNorm):
            # Its statistics are those of the heads that are left.
            def only(norm: Any, inputs: tuple[Tensor], _output: Tensor, width: int = kept * size) -> Tensor:
                x = inputs[0][..., :width]
                left = nn.functional.layer_norm(x, (width,), norm.weight[:width], norm.bias[:width], norm.eps)
                return torch.cat([left, inputs[0][..., width:]], -1)

            attention.norm.register_forward_hook(only)
        attention.proj.weight.data[:, kept * size :] = 0
        with torch.no_grad():
            assert close(model.net(model.images, model.change(**{name: kept})), reference(model.images)), name


def test_multiply_adds_and_parameters_are_exact(model: Transformer) -> None:
    table, space = CostTable(model.net.architecture), model.net.space
    for config in model.configs(12):
        extracted = model.net.extract(config)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            extracted(model.images[:1])
        codes = space.encode(config)[None]
        assert table.flops(codes)[0] == counter.get_total_flops() / 2
        assert table.params(codes)[0] == sum(parameter.numel() for parameter in extracted.parameters())


def test_gradients_reach_every_parameter_and_no_head_that_is_cut(model: Transformer) -> None:
    net = copy.deepcopy(model.net)
    net(model.images).square().sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    net.zero_grad()
    name = model.heads()[0]
    net(model.images, model.change(**{name: 1})).square().sum().backward()
    attention: Any = net.backbone.get_submodule(name.removeprefix("heads."))
    parts = attention.qkv.weight.grad.unflatten(0, (3, attention.num_heads, -1))
    assert parts[:, :1].abs().amax((2, 3)).all()
    assert not parts[:, 1:].any()


def test_sorting_keeps_the_function_and_puts_the_important_heads_first(model: Transformer) -> None:
    net = copy.deepcopy(model.net)
    name = model.heads()[0]
    attention: Any = net.backbone.get_submodule(name.removeprefix("heads."))

    def importance() -> Tensor:
        made = attention.qkv.weight.abs().unflatten(0, (3, attention.num_heads, -1)).sum((0, 2, 3))
        read = attention.proj.weight.abs().unflatten(1, (attention.num_heads, -1)).sum((0, 2))
        return (made + read).detach()

    # The first head is the least important one before.
    permute_channels(net.backbone, net.plan, {name: importance().argsort().numpy()})
    assert importance().diff().min() > 0
    with torch.no_grad():
        expected = model.net(model.images)
        assert close(net(model.images), expected)
        sort_channels(net.backbone, net.plan)
        assert close(net(model.images), expected)
        config = model.configs(3)[2]
        assert not close(net(model.images, config), model.net(model.images, config))
    assert importance().diff().max() < 0


def test_subnets_leave_this_package(model: Transformer, tmp_path: Any) -> None:
    config, _ = narrowed(model)
    extracted = model.net.extract(config).float()
    images = model.images.float()
    assert export_onnx(extracted, images, tmp_path / "subnet.onnx") < 1e-3
    program = torch.export.export(extracted, (images,))
    torch.testing.assert_close(program.module()(images), extracted(images), rtol=1e-4, atol=1e-4)


def test_paths_policies_and_estimates(model: Transformer) -> None:
    architecture, space = model.net.architecture, model.net.space
    graph = PathGraph.from_architecture(architecture)
    assert graph.node_mask(space.sample(np.random.default_rng(0), 20)).any(0).all()
    name = model.heads()[0]
    heads = [node for node in graph.nodes if node.feature_map == name.removeprefix("heads.")]
    assert len(heads) == 3
    assert len({node.channels for node in heads}) == 1
    levels = [need.level for node in heads for need in node.requires if need.dim == space.position(name)]
    assert levels == [0, 1, 2]
    for name in strategy_names():
        strategy = load_strategy(name)
        policy = make_policy(strategy.policy.name, architecture, strategy.policy.options)
        rng = np.random.default_rng(0)
        for _ in range(3):
            policy.observe([space.largest, space.smallest, *policy.sample(rng, 2)])
            if policy.wants_gradients:
                policy.observe_gradients({op.name: 1.0 for op in architecture.operations if op.kind == "linear"})
        policy.refresh()
        space.encode_many(policy.sample(rng, 5))
        assert len(policy.explain().dims) == len(space.dims)
    codes = space.encode_many([space.smallest, space.largest])
    small, large = NNDegree(architecture).evaluate(codes)
    assert 0 < small < large


def test_latency_is_estimated(model: Transformer) -> None:
    table, space = LatencyTable(model.net.architecture, load_pack("pixel4_cpu")), model.net.space
    coverage = table.coverage()
    assert "attention-1-1" in coverage["estimates"]
    assert 0 < coverage["covered_flops_share"] < 1
    name = model.heads()[0]
    values = [model.change(**{name: heads}) for heads in space[name].choices]
    times = table.evaluate(space.encode_many(values))
    assert (np.diff(times) > 0).all()


def test_blocks_that_are_left_out_leave_their_additions(model: Transformer) -> None:
    operations = model.net.architecture.operations
    for dim in (dim for dim in model.net.space.dims if dim.kind == "depth"):
        for level in range(1, len(dim.choices)):
            gated = [op for op in operations if op.gate == Gate(dim.name, level)]
            additions = [op for op in gated if op.kind == "add"]
            assert len(additions) == 2
            # One branch each, and what it is added to: that exists without the block, or is the first addition.
            inside = {op.output for op in gated if op.kind not in ("add", "view")}
            for addition in additions:
                assert len(inside.intersection(addition.inputs)) == 1
            paths = {op.name.rsplit(".blocks.", 1)[-1].split(".")[0] for op in gated if op.kind == "linear"}
            assert len(paths) == 1


def test_another_resolution_is_refused_with_a_reason(tools: Any) -> None:
    for key in ("vit", "swin"):
        net = converted(key, space(tools, resolution=ResolutionSpec(choices=(16, SIZE))))
        assert "resolution" not in net.space
        assert "a subnet does not run" in net.fixed["resolution"]


@pytest.mark.parametrize("key", ["vit", "swin"])
def test_resolution_is_elastic_where_the_model_takes_any_size(tools: Any, key: str, tmp_path: Any) -> None:
    name, arguments = MODELS[key]
    declared = space(tools, resolution=ResolutionSpec(choices=(16, SIZE)))
    model_arguments = {"img_size": SIZE, "dynamic_img_size": True, **arguments}
    net = convert(name, declared, image_size=SIZE, num_classes=CLASSES, arguments=model_arguments)
    randomise(net).eval()
    assert net.space["resolution"].choices == (16, SIZE)
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    for config in (net.space.smallest, net.space.config({**net.space.largest.as_dict(), "resolution": 16})):
        extracted, small = net.extract(config), resize(images, 16)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            torch.testing.assert_close(extracted(small[:1]), net(images[:1], config))
        codes = net.space.encode(config)[None]
        # The second of the two forwards is the supernet's.
        assert 2 * 2 * CostTable(net.architecture).flops(codes)[0] == counter.get_total_flops()
        assert export_onnx(extracted, small, tmp_path / "subnet.onnx") < 1e-3


def test_heads_have_shares_of_their_own(tools: Any) -> None:
    net = converted("swin", space(tools, heads=HeadsSpec(ratios=(0.5, 1.0)), hidden=None, width=None, depth=None))
    assert {dim.name: dim.choices for dim in net.space.dims} == {
        f"heads.layers.{stage}.blocks.{block}.attn": ((2, 3), (3, 6))[stage] for stage in (0, 1) for block in (0, 1)
    }
    net = converted("swin", space(tools, hidden=None, fixed=("layers.0.*",)))
    assert net.fixed["layers.1.blocks.0.attn"] == "the space declares no heads"
    net = converted("vit", space(tools, heads=HeadsSpec(ratios=(0.9, 1.0)), fixed=("blocks.1.attn",)))
    assert net.fixed["blocks.0.attn"] == "every ratio rounds to its 3 heads"
    assert net.fixed["blocks.1.attn"] == "the space fixes 'blocks.1.attn'"


class Mixing(nn.Module):
    """An attention that looks like timm's, but its heads see each other."""

    def __init__(self, dim: int, num_heads: int, **_: object) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def queries(self, qkv: Tensor, q: Tensor) -> Tensor:
        return q.cumsum(1)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        n, t, _c = x.shape
        qkv = self.qkv(x)
        q, k, v = qkv.reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = self.queries(qkv, q) @ k.transpose(-2, -1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, -1))


class Alternating(Mixing):
    """Its heads take turns on the channels of the queries."""

    def queries(self, qkv: Tensor, q: Tensor) -> Tensor:
        return qkv.chunk(3, -1)[0].unflatten(-1, (-1, self.num_heads)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("layer", [Mixing, Alternating])
def test_heads_that_cannot_be_cut_stay(tools: Any, layer: type[nn.Module]) -> None:
    """Such a cut would run. That it is wrong must show in weights as timm starts them, where it hardly does."""
    net = convert(created("deit", depth=8, attn_layer=layer), space(tools, width=None, depth=None), image_size=SIZE)
    assert {net.fixed[f"blocks.{i}.attn"] for i in range(8)} == {
        "its channels are coupled in a way that cannot be cut exactly"
    }
    assert {dim.kind for dim in net.space.dims} == {"hidden"}


def test_attention_between_channels_is_counted(tools: Any) -> None:
    """EdgeNeXt's attention: products of channels by channels. Its forward cannot lose heads, and that is found out."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.attn, self.fc = nn.Conv2d(3, 24, 4, 4), CrossCovarianceAttn(24, 3), nn.Linear(24, 5)
            self.mlp = Mlp(24, 48)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).flatten(2).transpose(1, 2)
            x = x + self.attn(x)
            return self.fc((x + self.mlp(x)).mean(1))

    net = convert(Net(), space(tools, depth=None), image_size=16).eval()
    # Where heads and channels are cut by the same share it would run.
    assert net.space.names == ("width.mlp.fc1",)
    assert {"attn", "stem"} < set(net.fixed)
    extracted = net.extract(net.space.smallest)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        extracted(torch.zeros(1, 3, 16, 16))
    codes = net.space.encode(net.space.smallest)[None]
    assert CostTable(net.architecture).flops(codes)[0] == counter.get_total_flops() / 2


@pytest.mark.parametrize(("key", "name"), [("deit", "deit"), ("swin", "swin")])
def test_the_families_spaces_fit(key: str, name: str) -> None:
    net = converted(key, load_space(name))
    assert {dim.kind for dim in net.space.dims} == {"width", "hidden", "heads"}
    assert "the space keeps all its blocks" in net.fixed.values()


def test_a_model_of_another_size_names_the_argument(tools: Any) -> None:
    with pytest.raises(TipsError, match=r"does not accept images of 64×64.*img_size"):
        convert("vit_tiny_patch16_224", space(tools), image_size=64, num_classes=CLASSES)
