"""Elastic layers: how a module of a given class is narrowed to some of its channels.

A rule never changes the module it is given: it fills in a shallow copy whose tensors are slices of the originals, so
the class's own forward runs, gradients reach the shared parameters, and no state is left behind. A third party adds a
rule for a class of its own with `register_rule`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from tips_nni.core import TipsError
from tips_nni.elastic._plan import Kept

#: the tables of every module: parameters, buffers, children and all kinds of hooks
_TABLES = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set))


def take(tensor: Tensor, kept: Kept | None, axis: int = 0) -> Tensor:
    """Return the kept channels of `tensor` along `axis`: a view for a slice, a copy for scattered positions."""
    if kept is None:
        return tensor
    if isinstance(kept, slice):
        return tensor.narrow(axis, 0, kept.stop)
    return tensor.index_select(axis, torch.from_numpy(kept).to(tensor.device))


def channel_axis(parameter: Tensor) -> int:
    """Return which axis of a bare parameter (layer scale, an embedding) holds the channels: the last that is long."""
    return max((i for i, size in enumerate(parameter.shape) if size > 1), default=parameter.ndim - 1)


def shallow(module: nn.Module) -> nn.Module:
    """Return a copy of `module` with its own (equal) tables of parameters, buffers, children and hooks."""
    copy = module.__class__.__new__(module.__class__)
    copy.__dict__.update(
        (name, value.copy()) if name in _TABLES else (name, value) for name, value in module.__dict__.items()
    )
    return copy


class LayerRule(ABC):
    """How to narrow one family of module classes. Subclasses have no state."""

    #: the module classes the rule is for; subclasses of them are included
    classes: tuple[type[nn.Module], ...]
    #: whether it is for modules of modules, whose layers and parameters have axes of their own in the plan
    composite: bool = False

    @abstractmethod
    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        """Replace the tensors and sizes of `view`, a shallow copy, by those of the kept channels.

        Args:
            view: made by `shallow`; change it in place.
            inputs: input channels to keep; None for all.
            outputs: output channels to keep; None for all.
        """

    def fits(self, module: nn.Module) -> bool:
        """Return whether the rule is for `module`: by its class, unless a rule looks at more."""
        return isinstance(module, self.classes)

    def unit(self, module: Any) -> int:
        """Return the number of channels that must be kept or cut together (1 unless grouped)."""
        return 1


_RULES: list[LayerRule] = []


def register_rule(rule: LayerRule) -> None:
    """Add a rule; it goes before those already there, so that it may refine one of them."""
    _RULES.insert(0, rule)


def find_rule(module: nn.Module) -> LayerRule | None:
    """Return the rule for `module`, or None where its class has none."""
    return next((rule for rule in _RULES if rule.fits(module)), None)


def rule_for(name: str, module: nn.Module) -> LayerRule:
    """Return the rule for `module`.

    Raises:
        TipsError: no rule covers its class.
    """
    rule = find_rule(module)
    if rule is None:
        known = ", ".join(sorted(c.__name__ for r in _RULES for c in r.classes))
        raise TipsError(f"no elastic rule for {name} of class {type(module).__name__}; known: {known}")
    return rule
