"""The schema of the specs: frozen models, every key named, bounded and explained.

The `description` of a field is what a user reads after a wrong value, so it says what the key is for.
Paths are text; `tips_nni.specs.load_run` makes them absolute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tips_nni.core import SubnetConfig, check_algorithm
from tips_nni.specs._yaml import dump

Share = Annotated[float, Field(gt=0, lt=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Bound = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


class Spec(BaseModel):
    """Base of every model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class BackboneSpec(Spec):
    """A timm model by name."""

    name: Text = Field(description="a timm model, see timm.list_models()")
    pretrained: bool = Field(False, description="start from timm's pretrained weights (downloads them)")
    checkpoint_path: Text | None = Field(None, description="a checkpoint of this backbone to start from")
    args: dict[str, Any] = Field(default_factory=dict, description="further arguments of timm.create_model")

    @model_validator(mode="after")
    def _args_are_free(self) -> BackboneSpec:
        remedies = {
            "pretrained": "write backbone.pretrained instead",
            "checkpoint_path": "write backbone.checkpoint_path instead",
            "num_classes": "remove it, it comes from the data",
            "in_chans": "remove it, it comes from the data",
        }
        for key in self.args:
            if key in remedies:
                raise ValueError(f"args.{key} is not allowed here; {remedies[key]}")
        return self


class DataSpec(Spec):
    """Images and labels."""

    kind: Literal["digits", "folder", "npz", "torchvision"] = Field(description="where the images come from")
    path: Text | None = Field(None, description="folder or .npz file, relative to the spec's own folder")
    name: Text | None = Field(None, description="a class of torchvision.datasets, e.g. CIFAR10")
    args: dict[str, Any] = Field(default_factory=dict, description="further arguments of the torchvision class")
    image_size: int | None = Field(None, ge=8, le=4096, description="side in pixels that images are resized to")
    batch_size: int = Field(64, ge=2, le=65536, description="images of one training step, on all devices together")
    validation: Share = Field(0.15, description="share of the training images kept for the search")
    augment: Literal["none", "light", "standard"] = Field("light", description="augmentation of the training images")
    flip: bool | None = Field(None, description="mirror training images; null: colour images only")
    workers: int = Field(0, ge=0, le=256, description="processes that load images, for each device")
    download: bool = Field(False, description="let torchvision download the data set")
    limit: int | None = Field(None, ge=2, description="use at most that many training images, drawn with the seed")

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> DataSpec:
        needs = {"digits": (), "folder": ("path", "image_size"), "npz": ("path",), "torchvision": ("name",)}[self.kind]
        takes = {"digits": (), "folder": ("path",), "npz": ("path",), "torchvision": ("path", "name")}[self.kind]
        for key in needs:
            if getattr(self, key) is None:
                raise ValueError(f"kind {self.kind} needs the key {key}; add it ({_meaning(DataSpec, key)})")
        for key in ("path", "name"):
            if getattr(self, key) is not None and key not in takes:
                raise ValueError(f"kind {self.kind} takes no key {key}; remove it")
        if self.args and self.kind != "torchvision":
            raise ValueError(f"kind {self.kind} takes no args; remove them")
        if self.download and self.kind != "torchvision":
            raise ValueError(f"kind {self.kind} cannot download; remove download")
        return self


class TrainingSpec(Spec):
    """The training of the supernet. Give its length as `epochs` or as `steps`."""

    epochs: int | None = Field(None, ge=1, description="passes over the training images")
    steps: int | None = Field(None, ge=1, description="optimizer steps")
    optimizer: Text = Field("sgd", description="any of timm's optimizers")
    lr: float = Field(0.05, gt=0, le=100, description="highest learning rate")
    weight_decay: float = Field(1e-4, ge=0, le=10, description="decay of the weights")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the optimizers that have one")
    schedule: Text = Field("cosine", description="any of timm's learning-rate schedules")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs in which the learning rate rises to lr")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    mixup: float = Field(0.0, ge=0, le=10, description="alpha of mixup; 0 turns it off")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"] = Field(
        "32-true", description="Lightning's number format"
    )
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = Field("auto", description="Lightning's device")
    devices: int = Field(1, ge=1, description="devices of a machine; a process for each")
    nodes: int = Field(1, ge=1, description="machines")
    sync_batchnorm: bool = Field(True, description="BatchNorm over the images of all devices, not of each alone")
    calibration_images: int = Field(512, ge=2, description="training images that re-estimate BatchNorm statistics")

    @model_validator(mode="after")
    def _has_one_length(self) -> TrainingSpec:
        if (self.epochs is None) == (self.steps is None):
            given = "neither is given; add one" if self.epochs is None else "both are given; remove one"
            raise ValueError(f"needs either epochs or steps, {given}")
        if self.epochs is not None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs:g} must be less than epochs = {self.epochs}; lower it"
            )
        return self

    @property
    def processes(self) -> int:
        """The number of devices on all machines."""
        return self.devices * self.nodes


class SearchSpec(Spec):
    """The search for the front."""

    algorithm: Text = Field("evolution", description="how subnets are proposed")
    population: int = Field(32, ge=4, le=4096, description="subnets of one generation")
    generations: int = Field(10, ge=0, le=10000, description="rounds after the first population")
    mutation: float = Field(0.1, gt=0, le=1, description="probability that a dimension of a child changes")
    images: int | None = Field(None, ge=2, description="validation images of one measurement; null: all")
    options: dict[str, Any] = Field(default_factory=dict, description="further options of the algorithm")

    @model_validator(mode="after")
    def _algorithm_takes_the_options(self) -> SearchSpec:
        # Options without an algorithm are for that of the strategy: `load_run` checks the two together.
        check_algorithm(self.algorithm, self.options if "algorithm" in self.model_fields_set else {})
        return self


class ConstraintsSpec(Spec):
    """Upper bounds that every subnet of the front keeps."""

    target: Text = Field(
        "pixel4_cpu",
        description="device whose latency is predicted: a name, or a path to a pack, look-up table or nn-Meter folder",
    )
    packs: Text | None = Field(None, description="folder for predictors of nn-Meter's, downloaded at the first use")
    coverage: Literal["warn", "refuse"] = Field(
        "warn", description="what to do when less than 95% of the multiply-adds are in kernels measured on the target"
    )
    latency_ms: Bound | None = Field(None, description="predicted latency on the target, in ms")
    mflops: Bound | None = Field(None, description="multiply-adds of one image, in millions")
    params_m: Bound | None = Field(None, description="parameters, in millions")
    memory_mb: Bound | None = Field(None, description="peak activation memory of one image, in 1e6 bytes")

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are given, by the name of their cost."""
        values = self.model_dump(include={"latency_ms", "mflops", "params_m", "memory_mb"}, exclude_none=True)
        return {name: float(value) for name, value in values.items()}


class ExportSpec(Spec):
    """What is written for deployment beside the anytime model."""

    onnx: int = Field(2, ge=0, le=1000, description="subnets of the front exported to ONNX, spread over their cost")


class RunSpec(Spec):
    """One run: everything from the backbone to the exported subnets."""

    backbone: BackboneSpec = Field(description="the timm model to make elastic")
    space: Text | None = Field(None, description="search space: a name, a path, or left out: the backbone's family")
    strategy: Text = Field("tips", description="strategy: a name or a path")
    data: DataSpec = Field(description="images and labels")
    training: TrainingSpec = Field(description="training of the supernet")
    search: SearchSpec | None = Field(None, description="overrides the strategy's search, key by key")
    constraints: ConstraintsSpec = Field(default_factory=ConstraintsSpec, description="upper bounds of the costs")
    export: ExportSpec = Field(default_factory=ExportSpec, description="what is exported")
    output: Text = Field(description="folder of the run, relative to where the command is typed")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")

    def to_yaml(self) -> str:
        """Return the spec as YAML with every default written out; `load_run` reads it back to an equal spec."""
        return dump(self.model_dump())


class PolicySpec(BaseModel):
    """A sampling policy by name; every further key is an option of that policy."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, hide_input_in_errors=True)

    name: Text = Field(description="the sampling policy")

    @property
    def options(self) -> dict[str, Any]:
        """The options of the policy."""
        return dict(self.model_extra or {})


class SamplingSpec(Spec):
    """The subnets of one training step (the sandwich rule of US-Nets)."""

    largest: bool = Field(True, description="train the largest subnet in every step")
    smallest: bool = Field(True, description="train the smallest subnet in every step")
    random: int = Field(2, ge=0, le=64, description="subnets of one step drawn by the policy")
    distill: bool = Field(True, description="the other subnets learn from the largest one's output")
    divergence: Literal["kl", "alpha"] = Field(
        "kl", description="their distance from it: kl, or alpha, AlphaNet's adaptive one"
    )

    @model_validator(mode="after")
    def _trains_something(self) -> SamplingSpec:
        if not (self.largest or self.smallest or self.random):
            raise ValueError("trains no subnet: largest and smallest are false and random is 0; turn one on")
        if self.distill and not self.largest:
            raise ValueError("distill needs largest: true, whose output is the target; set it or set distill: false")
        return self

    def alike(self, configs: Sequence[SubnetConfig], largest: SubnetConfig) -> list[int]:
        """Return which subnets of a step, by index, learn from the same targets, so that their losses compare.

        All do, but for the largest one where it teaches the others: it learns from the labels.
        """
        return [i for i, config in enumerate(configs) if not self.distill or config != largest]


class StrategySpec(Spec):
    """How subnets are drawn, trained and searched."""

    name: Text = Field(description="name of the strategy")
    description: str = Field("", description="one sentence for `tips-nni strategies`")
    policy: PolicySpec = Field(description="the sampling policy and its options")
    sampling: SamplingSpec = Field(default_factory=SamplingSpec, description="the subnets of one training step")
    search: SearchSpec = Field(default_factory=SearchSpec, description="the search for the front")

    @model_validator(mode="after")
    def _compares_losses(self) -> StrategySpec:
        if self.policy.options.get("edge_weight") == "loss" and not self.sampling.random:
            raise ValueError(
                "edge_weight: loss compares the losses of drawn subnets, and sampling.random = 0 draws none; set "
                "sampling.random: 1 or more"
            )
        return self


class RatioSpec(Spec):
    """Shares of the backbone's channels that a subnet may keep."""

    ratios: tuple[Ratio, ...] = Field(min_length=1, description="shares in ascending order; the last is 1.0")
    divisor: int = Field(8, ge=1, le=1024, description="channels are rounded to multiples of it")

    @model_validator(mode="after")
    def _ascends_to_one(self) -> RatioSpec:
        _check_ratios(self.ratios)
        return self


class HeadsSpec(Spec):
    """Shares of an attention's heads that a subnet may keep."""

    ratios: tuple[Ratio, ...] = Field(min_length=1, description="shares in ascending order; the last is 1.0")

    @model_validator(mode="after")
    def _ascends_to_one(self) -> HeadsSpec:
        _check_ratios(self.ratios)
        return self


class DepthSpec(Spec):
    """Blocks of a stage that a subnet may leave out, the last ones first."""

    min: int = Field(1, ge=1, description="blocks that every stage keeps")


class ResolutionSpec(Spec):
    """Sides of the square input: `ratios` of the data's image size, or `choices` in pixels."""

    ratios: tuple[Ratio, ...] | None = Field(None, min_length=1, description="shares in ascending order, up to 1.0")
    choices: tuple[Annotated[int, Field(ge=8, le=4096)], ...] | None = Field(
        None, min_length=1, description="pixels in ascending order; the last is the data's image size"
    )
    divisor: int = Field(8, ge=1, le=1024, description="pixels are rounded to multiples of it")

    @model_validator(mode="after")
    def _has_one_form(self) -> ResolutionSpec:
        if (self.ratios is None) == (self.choices is None):
            given = "neither is given; add one" if self.ratios is None else "both are given; remove one"
            raise ValueError(f"needs either ratios or choices, {given}")
        if self.ratios is not None:
            _check_ratios(self.ratios)
        if self.choices is not None and list(self.choices) != sorted(set(self.choices)):
            raise ValueError(f"choices = {list(self.choices)} must ascend without repeats; sort them")
        return self


class SpaceSpec(Spec):
    """The elastic dimensions of a family of backbones; a kind that is left out stays fixed."""

    family: Text = Field(description="name of the family")
    description: str = Field("", description="one sentence for `tips-nni spaces`")
    matches: tuple[Text, ...] = Field((), description="patterns of timm model names, * for any text")
    width: RatioSpec | None = Field(None, description="channels between blocks")
    hidden: RatioSpec | None = Field(None, description="channels inside a block")
    heads: HeadsSpec | None = Field(None, description="heads of an attention; left out: the ratios of hidden")
    depth: DepthSpec | None = Field(None, description="blocks of a stage")
    resolution: ResolutionSpec | None = Field(None, description="side of the input")
    fixed: tuple[Text, ...] = Field((), description="patterns of module names that stay as they are")

    @model_validator(mode="after")
    def _has_a_dimension(self) -> SpaceSpec:
        if not (self.width or self.hidden or self.heads or self.depth or self.resolution):
            raise ValueError("has no elastic dimension; add width, hidden, heads, depth or resolution")
        return self


def _check_ratios(ratios: tuple[float, ...]) -> None:
    if list(ratios) != sorted(set(ratios)) or ratios[-1] != 1.0:
        raise ValueError(f"ratios = {list(ratios)} must ascend without repeats and end with 1.0, the backbone itself")


def _meaning(model: type[BaseModel], key: str) -> str:
    return model.model_fields[key].description or key
