"""The Lightning module of the one-shot strategy: several subnets a step, drawn by a policy of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.oneshot.pytorch.sampling import RandomSamplingLightningModule
from torch import Tensor, nn

from tips_nni.adapters.strategies._network import Network
from tips_nni.core import Policy, SubnetConfig, TipsError
from tips_nni.specs import SamplingSpec
from tips_nni.training import distillation_loss


class SandwichModule(RandomSamplingLightningModule):
    """Wraps the evaluator's module: a step trains the largest, the smallest and drawn subnets on one batch.

    The largest learns by the evaluator's own step; where the strategy distils, the others learn from its output on the
    inputs that the evaluator gave to the model, else by the evaluator's step too. The losses are summed. One graph is
    alive at a time: each subnet's gradient is taken at once, and Lightning gets a loss whose gradient is their sum, so
    that optimizer, schedule, clipping, accumulation and precision stay the evaluator's.

    Attributes:
        policy: draws the subnets.
        drawn: the subnets of the latest step.
    """

    def __init__(
        self, training_module: LightningModule, network: Network, policy: Policy, sampling: SamplingSpec, seed: int
    ) -> None:
        super().__init__(training_module)
        if not training_module.automatic_optimization:
            raise TipsError(
                f"{type(training_module).__name__} optimises by hand; the strategy needs an evaluator whose "
                "training_step returns a loss (automatic_optimization = True)"
            )
        self._network = network
        self.policy = policy
        self.sampling = sampling
        self.drawn: list[SubnetConfig] = []
        self._losses: list[Tensor] = []
        self._steps = 0
        self._rng = np.random.default_rng([seed, 1])

    def draw(self) -> list[SubnetConfig]:
        """Return the subnets of the next step: largest, smallest, then the policy's, as the strategy says."""
        space, sampling = self._network.space, self.sampling
        configs = [space.largest] if sampling.largest else []
        configs += [space.smallest] if sampling.smallest else []
        return configs + self.policy.sample(self._rng, sampling.random)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Train the subnets of one step and return the sum of their losses.

        Raises:
            TipsError: the evaluator's step cannot be distilled, or returns no loss.
        """
        self.drawn = self.draw()
        self._losses = []
        parameters = [p for p in self.training_module.parameters() if p.requires_grad]
        scale = self._loss_scale()
        total, teacher = torch.zeros((), device=self.device), None
        gradients: list[Tensor | None] = [None] * len(parameters)
        for config in self.drawn:
            with self._network.choosing(config):
                if teacher is None or config == self._network.space.largest:
                    with _recording(self.model) as calls, self._logging(config == self.drawn[0]):
                        loss = _loss_of(self.training_module.training_step(*args, **kwargs))
                    if self.sampling.distill and config == self._network.space.largest:
                        teacher = _Teacher.of(calls)
                else:
                    logits = self.model(*teacher.args, **teacher.kwargs)
                    loss = distillation_loss(logits, teacher.probabilities, self.sampling.divergence)
            found = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
            gradients = [_sum(before, new) for before, new in zip(gradients, found, strict=True)]
            total = total + loss.detach()
            self._losses.append(loss.detach())
        return _KnownGradient.apply(total, gradients, scale, *parameters)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Validate the largest subnet, so that epochs can be compared."""
        with self._network.choosing(self._network.space.largest):
            return self.training_module.validation_step(*args, **kwargs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Show the policy the gradients, where it asks for them."""
        if self.policy.wants_gradients:
            self.policy.observe_gradients(self._network.gradient_norms())
        self.training_module.on_before_optimizer_step(optimizer)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Tell the policy what was trained."""
        self._steps += 1
        self.policy.observe(self.drawn)
        if self.policy.wants_losses:
            alike = self.sampling.alike(self.drawn, self._network.space.largest)
            losses = self.trainer.strategy.reduce(torch.stack(self._losses), reduce_op="mean")
            self.policy.observe_losses([self.drawn[i] for i in alike], losses[alike].tolist())
        if self.policy.due(self._steps):
            self.policy.refresh()
        super().on_train_batch_end(outputs, batch, batch_idx, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of policy and sampling, as plain data."""
        checkpoint["tips_nni"] = json.dumps(
            {"policy": self.policy.state_dict(), "rng": self._rng.bit_generator.state, "steps": self._steps}
        )
        self.training_module.on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what `on_save_checkpoint` added.

        Raises:
            TipsError: the checkpoint is of another strategy.
        """
        if "tips_nni" not in checkpoint:
            raise TipsError("this checkpoint was not written by the strategy TIPS; resume its own experiment")
        own = json.loads(checkpoint["tips_nni"])
        self.policy.load_state_dict(own["policy"])
        self._rng.bit_generator.state = own["rng"]
        self._steps = int(own["steps"])
        self.training_module.on_load_checkpoint(checkpoint)

    def _loss_scale(self) -> float:
        """Return by what gradients are multiplied so that half precision holds them: 1, but for "16-mixed"."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else float(scaler.get_scale())

    @contextmanager
    def _logging(self, on: bool) -> Iterator[None]:
        """Let the evaluator log one subnet of a step, the first: of several only the last would remain."""
        log = self.training_module.log
        if not on:
            self.training_module.log = lambda *args, **kwargs: None
        try:
            yield
        finally:
            self.training_module.log = log


class _Teacher:
    """The largest subnet's pass: what the model got, and the probabilities that it gave, without gradient."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], probabilities: Tensor) -> None:
        self.args = args
        self.kwargs = kwargs
        self.probabilities = probabilities

    @classmethod
    def of(cls, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any], Any]]) -> _Teacher:
        """Make one from the recorded calls of the model.

        Raises:
            TipsError: the evaluator calls the model not once a step, or the model gives no logits (N, classes).
        """
        if len(calls) != 1:
            raise TipsError(
                f"the evaluator calls the model {len(calls)} times a step, distillation needs one call; use a strategy "
                "with distill: false"
            )
        args, kwargs, output = calls[0]
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise TipsError(
                "distillation needs a model whose output is logits of shape (N, classes); use a strategy with "
                "distill: false"
            )
        return cls(args, kwargs, output.detach().softmax(dim=1))


class _KnownGradient(torch.autograd.Function):
    """A loss whose gradient has been computed before: it hands it to the parameters."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor | None], scale: float, *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        ctx.scale = scale
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        factor = upstream[0] / ctx.scale
        return (None, None, None, *(None if g is None else g * factor.to(g.dtype) for g in ctx.gradients))


def _sum(before: Tensor | None, new: Tensor | None) -> Tensor | None:
    if before is None or new is None:
        return new if before is None else before
    return before + new


def _loss_of(output: Any) -> Tensor:
    """Return the loss in what Lightning lets a training step return."""
    loss = output.get("loss") if isinstance(output, dict) else output
    if not isinstance(loss, Tensor):
        raise TipsError(f"the evaluator's training_step returned {type(output).__name__}, not a loss; return a tensor")
    return loss


@contextmanager
def _recording(model: nn.Module) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any], Any]]]:
    """Record (arguments, keyword arguments, output) of every call of `model` in the block."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((args, kwargs, output))

    handle = model.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
