"""What every elastic rule of a layer must keep, as a test class to subclass."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tips_nni.elastic import LayerRule
from tips_nni.elastic._narrow import materialise
from tips_nni.elastic._plan import Kept
from tips_nni.elastic.rules import shallow


class LayerRuleContract(ABC):
    """Contract tests of the rule for one class of layers.

    Subclass it in a test module, name the class ``Test...`` and define `rule`, `module` and `images`; pytest finds the
    tests. A layer whose output channels see each other (a normalisation over channels) defines `expected` as well.
    """

    @abstractmethod
    def rule(self) -> LayerRule:
        """Return the rule."""

    @abstractmethod
    def module(self) -> nn.Module:
        """Return a new module of the class."""

    @abstractmethod
    def images(self) -> Tensor:
        """Return an input of the module, of its real number of channels."""

    def expected(self, module: nn.Module, images: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return what the narrowed module should give, from the whole one.

        By default: its output at the kept channels, with zeros in the place of the inputs that are cut.

        Args:
            module: whole.
            images: its input.
            inputs: the input channels kept, ascending, int64.
            outputs: the output channels kept, ascending, int64.
        """
        axis = self.rule().axis(module)
        if self.rule().mixes(module):
            kept = torch.zeros_like(images)
            kept.index_copy_(axis % images.ndim, inputs, images.index_select(axis, inputs))
            images = kept
        return module(images).index_select(axis, outputs)

    def test_the_rule_is_for_the_module(self) -> None:
        assert self.rule().fits(self.module())
        assert not self.rule().fits(nn.Identity())

    def test_a_narrowed_module_computes_the_channels_that_are_left(self) -> None:
        for leading in (True, False):
            module, images = self._prepared()
            view, reads, inputs, outputs = self._narrowed(module, images, leading)
            actual = view(images.index_select(self.rule().axis(module), reads))
            expected = self.expected(module, images, inputs, outputs)
            assert actual.shape == expected.shape
            assert bool((actual - expected).abs().max() <= 1e-9 * max(1.0, float(expected.detach().abs().max())))

    def test_leading_channels_are_views_of_the_same_memory(self) -> None:
        module, images = self._prepared()
        view, *_ = self._narrowed(module, images, leading=True)
        whole = {name: tensor.untyped_storage().data_ptr() for name, tensor in module.named_parameters()}
        assert all(tensor.untyped_storage().data_ptr() == whole[name] for name, tensor in view.named_parameters())

    def test_narrowing_leaves_the_module_as_it_was(self) -> None:
        module, images = self._prepared()
        before, attributes = copy.deepcopy(module), dict(vars(module))
        view, reads, *_ = self._narrowed(module, images, leading=False)
        view.register_forward_hook(lambda *_: None)
        view(images.index_select(self.rule().axis(module), reads))
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[name] is value for name, value in attributes.items())
        state, expected = module.state_dict(), before.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        with torch.no_grad():
            assert torch.equal(module(images), before(images))

    def test_gradients_reach_the_shared_parameters(self) -> None:
        module, images = self._prepared()
        # Of layers without parameters only the input gets some.
        images.requires_grad_(True)
        view, reads, *_ = self._narrowed(module, images, leading=False)
        weights = torch.linspace(1, 2, 7, dtype=images.dtype)
        output = view(images.index_select(self.rule().axis(module), reads))
        (output.flatten() * weights.repeat(output.numel() // 7 + 1)[: output.numel()]).sum().backward()
        alone = materialise(view)
        own = alone(images.index_select(self.rule().axis(module), reads))
        (own.flatten() * weights.repeat(own.numel() // 7 + 1)[: own.numel()]).sum().backward()
        mine = dict(alone.named_parameters())
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            # What the narrowed module gets is what its shared part gets; the rest gets nothing.
            grad = mine[name].grad
            assert grad is not None, name
            assert torch.allclose(parameter.grad.sum(), grad.sum()), name
            assert int(parameter.grad.count_nonzero()) == int(grad.count_nonzero()), name

    def test_an_extracted_module_is_the_same_with_weights_of_its_own(self) -> None:
        module, images = self._prepared()
        view, reads, *_ = self._narrowed(module, images, leading=False)
        images = images.index_select(self.rule().axis(module), reads)
        alone = materialise(view)
        with torch.no_grad():
            assert torch.equal(alone(images), view(images))
        assert type(alone) is type(module)
        shared = {tensor.untyped_storage().data_ptr() for tensor in module.parameters()}
        assert not shared & {tensor.untyped_storage().data_ptr() for tensor in alone.parameters()}

    def _prepared(self) -> tuple[nn.Module, Tensor]:
        """Return a module without equal channels, in double precision and evaluation mode, and its input."""
        module, generator = self.module().double().eval(), torch.Generator().manual_seed(0)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                tensor.data.uniform_(0.5, 1.5, generator=generator)
                if not name.endswith("running_var"):
                    tensor.data.mul_(torch.where(torch.rand(tensor.shape, generator=generator) < 0.5, -1.0, 1.0))
        return module, self.images().double()

    def _narrowed(self, module: nn.Module, images: Tensor, leading: bool) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
        """Return a view of half of the units, the channels that it reads, and the channels kept."""
        rule = self.rule()
        axis = rule.axis(module)
        before = images.shape[axis]
        with torch.no_grad():
            after = module(images).shape[axis]
        unit = rule.unit(module)
        units = after // unit
        chosen = np.arange(units // 2) if leading else np.arange(units)[1::2]
        outputs = _positions(chosen, unit)
        if not rule.mixes(module):
            inputs = outputs
        elif unit > 1:
            inputs = _positions(chosen, before // units)
        else:
            inputs = np.arange(before // 2) if leading else np.arange(before)[::2]
        view = shallow(module)
        rule.narrow(view, _kept(inputs, leading), _kept(outputs, leading))
        return view, torch.from_numpy(inputs), torch.from_numpy(inputs), torch.from_numpy(outputs)


def _positions(units: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return (units[:, None] * size + np.arange(size)).ravel()


def _kept(positions: NDArray[np.int64], leading: bool) -> Kept:
    return slice(0, len(positions)) if leading else positions
