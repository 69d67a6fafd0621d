"""The supernet: a backbone whose subnets share its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tips_nni.core import Architecture, SearchSpace, SubnetConfig
from tips_nni.elastic._narrow import Statistics, materialise, narrow
from tips_nni.elastic._plan import ElasticPlan


class Supernet(nn.Module):
    """A backbone with elastic dimensions; the largest subnet is the backbone itself.

    The subnet is an argument of every call: nothing is switched on or remembered, so threads do not disturb each
    other and a forward leaves no state behind (but the BatchNorm statistics of the largest, in training mode).

    Attributes:
        backbone: the network; its state dict has the keys and values of the timm model.
        plan: which channels and blocks a subnet keeps.
        space: the search space.
        architecture: the operations and feature maps, for path graphs and costs.
        fixed: path of each channel group or stage that is not elastic -> the reason.
        recipe: the arguments that create the backbone again (``model_name`` and keyword arguments of timm's
            `create_model`); empty for a module that is not timm's.
    """

    def __init__(
        self,
        backbone: nn.Module,
        plan: ElasticPlan,
        architecture: Architecture,
        fixed: Mapping[str, str],
        recipe: Mapping[str, object],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.plan = plan
        self.architecture = architecture
        self.fixed = dict(fixed)
        self.recipe = dict(recipe)

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.plan.space

    def view(self, config: SubnetConfig, statistics: Statistics | None = None) -> nn.Module:
        """Return a subnet as a module that shares these weights (gradients reach them).

        Its tensors are slices taken now: make a new view after every optimizer step, and after `train()`, `eval()`
        or `to()`.

        Args:
            config: the subnet.
            statistics: its BatchNorm statistics, from `calibrate`.

        Raises:
            TipsError: the subnet belongs to another search space.
        """
        self.space.encode(config)
        return narrow(self.backbone, self.plan, config, statistics)

    def forward(self, images: Tensor, config: SubnetConfig | None = None) -> Tensor:
        """Return the logits (N, classes) of images (N, C, H, W) by subnet `config` (the largest by default)."""
        return self.view(self.space.largest if config is None else config)(images)

    def extract(self, config: SubnetConfig, statistics: Statistics | None = None) -> nn.Module:
        """Return a subnet as a plain module of the backbone's class, with weights of its own, in evaluation mode.

        It expects images at the subnet's resolution.
        """
        with torch.no_grad():
            return materialise(self.view(config, statistics)).eval()
