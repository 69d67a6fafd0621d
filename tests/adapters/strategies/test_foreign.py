"""Model spaces that are not ours: hand-written ones and one of NNI's hub."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import nni
import pytest
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201
from nni.nas.nn.pytorch import (
    InputChoice,
    LayerChoice,
    ModelSpace,
    MutableBatchNorm2d,
    MutableConv2d,
    MutableLinear,
    MutableModule,
    Repeat,
)
from nni.nas.strategy import RandomOneShot
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from tips_nni.adapters import TIPS
from tips_nni.adapters.strategies._foreign import ForeignNetwork
from tips_nni.core import PathGraph, SearchSettings, TipsError

Run = Callable[..., NasExperiment]


class Block(MutableModule):
    """A residual block: one of three operations, one of which has a width of its own."""

    def __init__(self, width: object, number: int) -> None:
        super().__init__()
        inner = nni.choice(f"inner{number}", [4, 12])
        self.op = LayerChoice(
            {
                "k3": MutableConv2d(width, width, 3, padding=1, bias=False),
                "skip": nn.Identity(),
                "two": nn.Sequential(MutableConv2d(width, inner, 1), nn.ReLU(), MutableConv2d(inner, width, 1)),
            },
            label=f"op{number}",
        )
        self.norm = MutableBatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.op(x)))


class Written(ModelSpace):
    """Widths, a depth, layer choices with a nested width, and an input choice."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        width = nni.choice("width", [8, 4, 12])
        self.stem = MutableConv2d(channels, width, 3, padding=1, bias=False)
        self.body = Repeat(lambda i: Block(width, i), (1, 2), label="depth")
        self.pick = InputChoice(n_candidates=2, n_chosen=1, label="pick")
        self.head = MutableLinear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.pick([x, self.body(x)]).mean((2, 3)))


@pytest.fixture(scope="module")
def written() -> ForeignNetwork:
    torch.manual_seed(0)
    space = Written()
    RandomOneShot().mutate_model(space)
    return ForeignNetwork(space, torch.randn(2, 1, 8, 8))


def requirements(graph: PathGraph, name: str) -> set[tuple[str, int, bool]]:
    node = graph.nodes[graph.node_names.index(name)]
    return {(graph.space.names[r.dim], r.level, r.exact) for r in node.requires}


def test_labels_become_dimensions(written: ForeignNetwork) -> None:
    dims = {dim.name: (dim.kind, dim.choices) for dim in written.space.dims}
    assert dims["width"] == ("width", (4, 8, 12)), "numbers are sorted: more includes less"
    assert dims["depth"] == ("width", (1, 2))
    assert dims["op0"] == ("choice", (1, 2, 3))
    assert dims["pick"] == ("choice", (1, 2))
    assert written.space.size == 3 * 2 * 3 * 2 * 3 * 2 * 2
    config = written.space.largest
    assert written.sample(config)["op0"] == "k3", "the largest subnet has the operation of most multiply-adds"
    assert written.sample(written.space.smallest)["op0"] == "skip"
    assert written.sample(config)["pick"] == [1], "as NNI has them, where nothing tells them apart"
    for config in written.space.enumerate():
        assert written._labels.config(written.sample(config)) == config


def test_widths_are_chunks_depths_at_least_choices_exact(written: ForeignNetwork) -> None:
    graph = written.structure
    option = dict(zip(("skip", "two", "k3"), range(3), strict=True))
    assert requirements(graph, "stem[0:4]") == set()
    assert requirements(graph, "stem[8:12]") == {("width", 2, False)}
    assert requirements(graph, "body.blocks.1.op.k3[4:8]") == {
        ("width", 1, False),
        ("depth", 1, False),
        ("op1", option["k3"], True),
    }
    assert requirements(graph, "body.blocks.0.op.two.0[4:12]") == {("inner0", 1, False), ("op0", option["two"], True)}
    assert requirements(graph, "body.blocks.0.op.skip[0:4]") == {("op0", option["skip"], True)}
    assert requirements(graph, "body.blocks.0.op[4:8]") == {("width", 1, False)}, "where the alternatives meet"
    assert requirements(graph, "body.blocks.1.add[0:4]") == {("depth", 1, False)}


def test_edges_link_what_feeds_what(written: ForeignNetwork) -> None:
    graph = written.structure
    names = graph.node_names
    edges = {(names[u], names[v]) for u, v in zip(graph.source, graph.target, strict=True)}
    dense = {(f"stem[{a}]", f"body.blocks.0.op.k3[{b}]") for a in ("0:4", "4:8") for b in ("0:4", "8:12")}
    assert dense <= edges, "a convolution mixes all channels"
    assert ("stem[4:8]", "body.blocks.0.op.skip[4:8]") in edges
    assert ("stem[0:4]", "body.blocks.0.op.skip[4:8]") not in edges, "an identity keeps them apart"
    assert ("stem[4:8]", "body.blocks.0.add[4:8]") in edges, "the residual"
    assert ("body.blocks.1.add[0:4]", "body[0:4]") in edges
    assert ("body.blocks.0.add[0:4]", "body[0:4]") not in edges, "the first block ends the stage at depth 1 only"
    assert requirements(graph, "body.blocks.0.add[0:4]->body[0:4]") == {("depth", 0, True)}
    assert not any("relu" in name or "norm" in name for name in names), "activations belong to what they act on"


def test_every_subnet_has_its_paths(written: ForeignNetwork) -> None:
    """The graph, made of a few traces, says for every subnet of the space which operations run."""
    graph = written.structure
    configs = list(written.space.enumerate())
    mask = graph.node_mask(written.space.encode_many(configs))
    convolutions = ("stem", "body.blocks.0.op.k3", "body.blocks.1.op.two.0", "body.blocks.1.op.k3", "head")
    for config, present in list(zip(configs, mask, strict=True))[::7]:
        nodes = {name for name, there in zip(graph.node_names, present, strict=True) if there}
        ran = written.trace(config)
        used = written.sample(config)["pick"] == [1]
        for name in convolutions:
            channels = sum(
                node.count(":") and int(node.split(":")[1][:-1]) - int(node.split("[")[1].split(":")[0])
                for node in nodes
                if node.split("[")[0] == name and "->" not in node
            )
            if name == "head":
                assert "head" in nodes
            elif used or name == "stem":
                assert channels == ran.channels.get(name, 0), (name, config)
            else:
                assert channels == 0, "what nothing reads is on no path"


def test_multiply_adds_are_exact_for_every_subnet(written: ForeignNetwork) -> None:
    assert written.costs["mflops"].tabulated
    configs = list(written.space.enumerate())
    table = written.costs["mflops"].evaluate(written.space.encode_many(configs)) * 1e6
    for config, value in list(zip(configs, table, strict=True))[::5]:
        module = written.extract(config)
        with FlopCounterMode(display=False) as counter:
            module(torch.zeros(1, 1, 8, 8))
        assert round(value) == counter.get_total_flops() // 2, config
    some = written.space.encode_many(configs[:3])
    params = [sum(p.numel() for p in written.extract(c).parameters()) for c in configs[:3]]
    assert written.costs["params_m"].evaluate(some) * 1e6 == pytest.approx(params)


class Depthwise(ModelSpace):
    """Multiply-adds of a sum of two widths are no product, and a depthwise convolution keeps channels apart."""

    def __init__(self) -> None:
        super().__init__()
        a, b = nni.choice("a", [4, 8]), nni.choice("b", [4, 8])
        self.left = MutableConv2d(1, a, 1)
        self.right = MutableConv2d(1, b, 1)
        self.mix = MutableConv2d(a + b, 8, 1)
        width = nni.choice("width", [4, 8])
        self.wide = MutableConv2d(8, width, 1)
        self.depthwise = MutableConv2d(width, width, 3, padding=1, groups=width)
        self.head = MutableLinear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(torch.cat([self.left(x), self.right(x)], dim=1))
        return self.head(self.depthwise(self.wide(x)).mean((2, 3)))


def test_sums_of_widths_are_counted_and_depthwise_channels_kept_apart() -> None:
    space = Depthwise()
    RandomOneShot().mutate_model(space)
    network = ForeignNetwork(space, torch.randn(1, 1, 4, 4))
    assert not network.costs["mflops"].tabulated
    for config in network.space.enumerate():
        with FlopCounterMode(display=False) as counter:
            network.extract(config)(torch.zeros(1, 1, 4, 4))
        value = network.costs["mflops"].evaluate(network.space.encode(config)[None])[0]
        assert round(value * 1e6) == counter.get_total_flops() // 2
    graph = network.structure
    edges = {(graph.node_names[u], graph.node_names[v]) for u, v in zip(graph.source, graph.target, strict=True)}
    assert {("left[0:4]", "mix"), ("right[4:8]", "mix")} <= edges
    assert ("wide[0:4]", "depthwise[0:4]") in edges
    assert ("wide[0:4]", "depthwise[4:8]") not in edges


def test_frozen_subnets_have_the_supernets_weights_and_their_own(written: ForeignNetwork) -> None:
    images = torch.randn(3, 1, 8, 8)
    written.module.eval()
    for config in itertools.islice(written.space.enumerate(), 0, None, 37):
        module = written.extract(config)
        with written.choosing(config), torch.no_grad():
            torch.testing.assert_close(module(images), written.module(images))
    own = {p.data_ptr() for p in written.module.parameters()}
    assert not own & {p.data_ptr() for p in module.parameters()}, "no tensor is shared"


def test_choosing_restores(written: ForeignNetwork) -> None:
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad(), written.choosing(written.space.largest):
        before = written.module.eval()(images)
        with written.choosing(written.space.smallest):
            assert not torch.equal(written.module(images), before)
        torch.testing.assert_close(written.module(images), before)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("path_importance", ", edge_weight: gradient"),
        ("path_importance", ", edge_weight: loss, form: growth"),
        ("uniform", ""),
    ],
)
def test_the_front_of_a_hand_written_space(
    run: Run,
    make_evaluator: Callable[..., Classification],
    digits: tuple[Tensor, Tensor],
    policy: str,
    options: str,
    tmp_path,
) -> None:
    path = tmp_path / "strategy.yaml"
    path.write_text(f"name: mine\npolicy: {{name: {policy}{options}}}\nsampling: {{random: 1}}\n")
    strategy = TIPS(path, search=SearchSettings(6, 1), constraints={"mflops": 0.35}, calibration_images=64)
    experiment = run(Written(), make_evaluator(images=320), strategy)
    assert strategy.oneshot_module.policy.name == policy
    learnt = strategy.oneshot_module.policy.state_dict()
    if "gradient" in options:
        assert "body.blocks.0.op.k3" in learnt["gradients"]
    if "loss" in options:  # of the smallest and of the drawn one, in five steps
        heard = learnt["benefits"]["losses"]
        assert len(heard) == 5
        assert {len(losses) for losses in heard} <= {1, 2}
    images, labels = digits[0][-300:], digits[1][-300:]
    models = experiment.export_top_models(99)
    for model, instance in zip(models, experiment.export_top_models(99, formatter="instance"), strict=True):
        assert set(model.results) == {"accuracy", "mflops", "params_m"}
        assert model.results["mflops"] <= 0.35
        right = (instance(images).argmax(dim=1) == labels).double().mean()
        assert float(right) == pytest.approx(model.metric, abs=1e-9)
    assert [m.metric for m in models] == sorted((m.metric for m in models), reverse=True)


def test_a_space_of_the_hub(run: Run, digits: tuple[Tensor, Tensor], tmp_path) -> None:
    images, labels = digits[0].repeat(1, 3, 1, 1), digits[1]
    loader = DataLoader(TensorDataset(images[:64], labels[:64]), batch_size=32)
    evaluator = Classification(
        num_classes=10, train_dataloaders=loader, val_dataloaders=loader, max_epochs=1, accelerator="cpu",
        logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        num_sanity_val_steps=0,
    )  # fmt: skip
    strategy = TIPS(search=SearchSettings(4, 0), calibration_images=32)
    experiment = run(NasBench201(stem_out_channels=4, num_modules_per_stack=1), evaluator, strategy)
    dims = {dim.name: dim for dim in strategy.network.space.dims}
    assert set(dims) == {f"cell/{i}_{j}" for j in range(1, 4) for i in range(j)}
    sample = experiment.export_top_models(1, formatter="dict")[0]
    assert set(sample) == set(dims)
    assert strategy.network.sample(strategy.network.space.largest)["cell/0_1"] == "conv_3x3"
    instance = experiment.export_top_models(1, formatter="instance")[0]
    right = (instance(images[:64]).argmax(dim=1) == labels[:64]).double().mean()
    assert float(right) == pytest.approx(experiment.export_top_models(1)[0].metric, abs=1e-9)


class Constrained(ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        a, b = nni.choice("a", [4, 8]), nni.choice("b", [4, 8])
        self.add_mutable(nni.mutable.ExpressionConstraint(a <= b, label="limit"))
        self.first, self.head = MutableConv2d(1, a, 1), MutableConv2d(a, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x)).mean((2, 3))


def test_constraints_between_labels_are_refused(run: Run, make_evaluator: Callable[..., Classification]) -> None:
    with pytest.raises(TipsError, match="limit") as caught:
        run(Constrained(), make_evaluator(images=64), TIPS())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strategy", ["attentive"])
def test_what_needs_an_architecture_is_refused(
    run: Run, make_evaluator: Callable[..., Classification], strategy: str
) -> None:
    with pytest.raises(TipsError, match="multiply-adds"):
        run(Written(), make_evaluator(images=64), TIPS(strategy))
