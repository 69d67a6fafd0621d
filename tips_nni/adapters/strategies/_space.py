"""A timm backbone as a model space of NNI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from nni.mutable import Categorical
from nni.nas.nn.pytorch import ModelSpace, MutableModule
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor, nn

from tips_nni.adapters import _patches
from tips_nni.adapters.strategies._weights import load_weights, save_weights
from tips_nni.core import CostModel, CostTable, SearchSpace, SubnetConfig
from tips_nni.elastic import Supernet, convert
from tips_nni.latency import latency_model, require_target
from tips_nni.specs import is_path, load_space, space_for

Sample = dict[str, Any]
_PATHS = ("space", "checkpoint_path", "weights", "target")
_patches.apply()


class ElasticBackbone(MutableModule):
    """The supernet and its elastic dimensions as NNI's mutables: one `Categorical` each, labelled with its name."""

    def __init__(self, supernet: Supernet) -> None:
        super().__init__()
        self.supernet = supernet
        for dim in supernet.space.dims:
            self.add_mutable(Categorical(dim.choices, label=dim.name, default=dim.choices[-1]))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the largest subnet."""
        return self.supernet(images)

    def freeze(self, sample: Sample) -> nn.Module:
        """Return a subnet as a plain module of timm's class, in this module's mode, with copies of the weights."""
        return self.supernet.extract(config_of(self.supernet.space, sample)).train(self.training)


class SampledBackbone(ElasticBackbone, BaseSuperNetModule):
    """What NNI's one-shot strategies put in the place of an `ElasticBackbone`: a forward runs the subnet chosen."""

    def __init__(self, supernet: Supernet) -> None:
        super().__init__(supernet)
        self._chosen = supernet.space.largest

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the chosen subnet, the largest at first."""
        return self.supernet(images, self._chosen)

    @contextmanager
    def choosing(self, config: SubnetConfig) -> Iterator[None]:
        """Choose a subnet for the block."""
        before, self._chosen = self._chosen, config
        try:
            yield
        finally:
            self._chosen = before

    def resample(self, memo: Sample) -> Sample:
        """Choose the subnet of `memo`, at random where it says nothing, and return its sample."""
        sample = {m.label: memo[m.label] if m.label in memo else m.random() for m in self.simplify().values()}
        self._chosen = config_of(self.supernet.space, sample)
        return sample

    def export(self, memo: Sample) -> Sample:
        """Return random choices for what `memo` says nothing of, as NNI's own modules do."""
        return {m.label: m.random() for m in self.simplify().values() if m.label not in memo}

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: Sample, mutate_kwargs: Sample) -> Any:
        """Take the place of an `ElasticBackbone`, with the same supernet; leave one that has, so that it trains on."""
        return cls(module.supernet) if type(module) is ElasticBackbone else isinstance(module, cls)


class TimmSpace(ModelSpace):
    """The search space of a timm backbone; see `timm_space`, which makes it.

    Its labels are the names of the elastic dimensions, and a sample is a subnet: ``{"width.stage1": 16, ...}``. Frozen,
    it is a plain timm module. Any strategy of NNI takes it. What a trial process needs to make it again are the
    arguments, which NNI records; where they are paths, they are recorded as absolute ones.

    Attributes:
        supernet: the elastic backbone.
        costs: mflops, params_m, memory_mb and latency_ms of every subnet, by table look-up.
    """

    def __init__(
        self,
        backbone: str,
        space: str | None = None,
        *,
        image_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        pretrained: bool = False,
        checkpoint_path: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        target: str = "pixel4_cpu",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        require_target(target)
        self._target = target
        self._backbone = backbone
        supernet = _make_supernet(
            backbone,
            space,
            weights,
            image_size=image_size,
            in_chans=in_chans,
            num_classes=num_classes,
            pretrained=pretrained,
            checkpoint_path=checkpoint_path,
            arguments=arguments,
        )
        self.elastic: ElasticBackbone = ElasticBackbone(supernet)

    @property
    def supernet(self) -> Supernet:
        """The elastic backbone."""
        return self.elastic.supernet

    @cached_property
    def costs(self) -> Mapping[str, CostModel]:
        """Every cost by its name."""
        architecture = self.supernet.architecture
        latency = latency_model(self._target, architecture, supernet=self.supernet, backbone=self._backbone)
        return {**CostTable(architecture).models(), latency.name: latency}

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, C, H, W): of the largest subnet, or of the one a strategy chose."""
        return self.elastic(images)

    def freeze(self, sample: Sample) -> nn.Module:
        """Return a subnet as a plain timm module, in the mode of this one, with copies of the present weights.

        Args:
            sample: ``{dimension: value}``.
        """
        return self.elastic.freeze(sample)

    def extra_oneshot_hooks(self, strategy: Any) -> list[Callable[..., Any]]:
        """Tell NNI's one-shot strategies how to train subnets of this space."""
        return [SampledBackbone.mutate]

    def save_weights(self, path: str | Path) -> None:
        """Write the weights of the supernet, which `timm_space(..., weights=path)` starts from, as safetensors.

        Raises:
            TipsError: the file cannot be written.
        """
        save_weights(self.supernet, Path(path))

    def save_init_arguments(self, *args: Any, **kwargs: Any) -> None:
        """Record the arguments for trial processes, which may run in another folder (called by NNI)."""
        for key in _PATHS:
            value = kwargs.get(key)
            if value is not None and (key not in ("space", "target") or is_path(value)):
                kwargs[key] = str(Path(value).expanduser().resolve())
        super().save_init_arguments(*args, **kwargs)

    @classmethod
    def create_fixed_module(
        cls,
        sample: Sample,
        backbone: str,
        space: str | None = None,
        *,
        target: str = "",
        weights: str | None = None,
        **arguments: Any,
    ) -> nn.Module:
        """Return the subnet that a trial trains (called by NNI where the space is made for a sample)."""
        supernet = _make_supernet(backbone, space, weights, **{"image_size": 224, **arguments})
        # Lightning leaves the mode of a module as it finds it, so it must be that of a new one: training.
        return supernet.extract(config_of(supernet.space, sample)).train()


def config_of(space: SearchSpace, sample: Mapping[str, Any]) -> SubnetConfig:
    """Return the subnet of a sample; labels of others, of the evaluator, say, are left out.

    Raises:
        TipsError: a dimension is missing, or a value is not among its choices.
    """
    return space.config({name: sample[name] for name in space.names if name in sample})


def _make_supernet(backbone: str, space: str | None, weights: str | None, **arguments: Any) -> Supernet:
    """Convert a backbone and load the weights of its supernet; see `timm_space`."""
    declared = load_space(space if space is not None else space_for(backbone))
    supernet = convert(backbone, declared, **arguments)
    if weights is not None:
        load_weights(supernet, Path(weights))
    return supernet


def timm_space(
    backbone: str,
    space: str | Path | None = None,
    *,
    image_size: int = 224,
    in_chans: int = 3,
    num_classes: int = 1000,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    target: str = "pixel4_cpu",
    weights: str | Path | None = None,
) -> TimmSpace:
    """Make a timm backbone elastic and return it as a model space of NNI.

    Args:
        backbone: a timm model's name, e.g. ``mobilenetv2_100``.
        space: a search space by name or path; by default that of the backbone's family.
        image_size: side of the square input in pixels.
        in_chans: channels of the input.
        num_classes: classes of the output.
        pretrained: start from timm's pretrained weights (needs a network, or its cache).
        checkpoint_path: start from the weights in this file of timm's.
        arguments: further arguments of timm's `create_model`.
        target: the device whose latency is predicted.
        weights: a trained supernet to start from: what `TimmSpace.save_weights` wrote, or the folder of a finished
            run, whose checkpoint is taken.

    Raises:
        TipsError: unknown backbone, space or target, or weights that cannot be read or are of another backbone.
    """
    return TimmSpace(
        backbone,
        None if space is None else str(space),
        image_size=image_size,
        in_chans=in_chans,
        num_classes=num_classes,
        pretrained=pretrained,
        checkpoint_path=None if checkpoint_path is None else str(checkpoint_path),
        arguments=None if arguments is None else dict(arguments),
        target=target,
        weights=None if weights is None else str(weights),
    )
