"""Every patch of NNI: what it repairs, and that NNI still needs it."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytest
import torch
from nni.common import serializer
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import ModelSpace, MutableConv2d
from nni.nas.space import SimplifiedModelSpace
from nni.nas.strategy import TPE, GridSearch, Random, RandomOneShot, RegularizedEvolution
from nni.nas.utils.serializer import TorchSerializer
from nni.runtime.tuner_command_channel import TunerCommandChannel
from nni.runtime.tuner_command_channel.command_type import CommandType
from torch import Tensor

from tips_nni.adapters import TIPSSearch, _patches

Run = Callable[..., NasExperiment]


class Written(ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        width = nni.choice("width", [2, 3, 4, 5])
        self.first = MutableConv2d(1, width, nni.choice("kernel", [1, 3, 5]), bias=False)
        self.head = MutableConv2d(width, 10, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.first(images)).mean(dim=(2, 3))


def report(module: Any) -> None:
    nni.report_final_result({"default": module.first.out_channels / 10, "kernel": module.first.kernel_size[0] + 0.0})


@pytest.mark.parametrize("patch", sorted(_patches.PATCHES))
def test_patches_are_applied_once_and_can_be_undone(patch: str) -> None:
    info = _patches.PATCHES[patch]
    _patches.tell_tuner_of_resumed_trials()
    _patches.apply()
    mine = getattr(info.owner, info.name)
    assert info.applied
    _patches.tell_tuner_of_resumed_trials()
    _patches.apply()
    assert getattr(info.owner, info.name) is mine
    with _patches.without(patch):
        assert not info.applied
        assert getattr(info.owner, info.name).__module__.startswith("nni.")
    assert info.applied


def test_another_version_of_nni_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nni, "__version__", "3.1")
    with _patches.without("freeze without bias"):
        _patches.apply()
        assert not _patches.PATCHES["freeze without bias"].applied


def test_freezing_a_convolution_without_bias() -> None:
    space = Written()
    RandomOneShot().mutate_model(space)
    sample = {"width": 3, "kernel": 3}
    frozen = space.freeze(sample)
    torch.testing.assert_close(frozen.first.weight, space.first.weight[:3, :, 1:4, 1:4])
    with _patches.without("freeze without bias"), pytest.raises(RuntimeError, match="bias"):
        space.freeze(sample)


def states() -> Iterator[Any]:
    model = SimplifiedModelSpace.from_model(Written())
    for strategy in (Random(seed=0), RegularizedEvolution(seed=0), GridSearch(), TPE()):
        strategy._model_space = model
        if isinstance(strategy, Random):
            strategy.random(model)
        if isinstance(strategy, RegularizedEvolution):
            from nni.nas.strategy.evolution import Individual

            strategy._population.append(Individual(strategy.random().sample, 0.5))
        yield pytest.param(strategy.state_dict(), id=type(strategy).__name__)


def plain(value: Any) -> Any:
    """Return a state as texts that two equal states have in common: sets have no order of their own."""
    if isinstance(value, set | frozenset):
        return sorted(repr(plain(item)) for item in value)
    if isinstance(value, dict):
        return {repr(key): plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [plain(item) for item in value]
    return repr(value)


@pytest.mark.parametrize("state", list(states()))
def test_states_of_nnis_strategies_are_read(state: Any, tmp_path: Path) -> None:
    serializer = TorchSerializer()
    serializer.save(state, tmp_path / "state.ckpt")
    loaded = serializer.load(tmp_path / "state.ckpt")
    assert plain(loaded) == plain(state)
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "state.ckpt.torch")
    with _patches.without("load own state"):
        if unsafe:
            with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
                serializer.load(tmp_path / "state.ckpt")


class Malicious:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('code ran')",))


def test_a_state_cannot_run_code(tmp_path: Path) -> None:
    TorchSerializer().save({"strategy": Malicious()}, tmp_path / "state.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        TorchSerializer().load(tmp_path / "state.ckpt")


class Unfinished:
    """Fails while it is pickled, as a full disk does."""

    def __reduce__(self) -> Any:
        raise OSError("no space left")


def test_saving_keeps_the_state_before_until_the_new_one_is_whole(tmp_path: Path) -> None:
    serializer = TorchSerializer()
    serializer.save({"good": 1}, tmp_path / "state.ckpt")
    with pytest.raises(OSError, match="no space"):
        serializer.save({"bad": [torch.zeros(9), Unfinished()]}, tmp_path / "state.ckpt")
    assert serializer.load(tmp_path / "state.ckpt") == {"good": 1}
    with _patches.without("save in one piece"), pytest.raises(OSError, match="no space"):
        serializer.save({"bad": [torch.zeros(9), Unfinished()]}, tmp_path / "state.ckpt")
    with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError)):
        serializer.load(tmp_path / "state.ckpt")


def damaged_resume(run: Run, tmp_path: Path) -> bytes:
    """Run, damage the state, resume in vain, stop; return what is in the file then."""
    space, evaluator = Written(), FunctionalEvaluator(report)
    experiment = run(space, evaluator, TIPSSearch(objective="kernel", population=4), 4, engine="sequential")
    run.stop(experiment)
    file = experiment._checkpoint_directory / "state.ckpt.torch"
    file.write_bytes(b"damaged" + file.read_bytes()[7:])
    with pytest.raises((RuntimeError, pickle.UnpicklingError, ValueError)):
        run(space, evaluator, TIPSSearch(objective="kernel", population=4), 8, engine="sequential",
            experiment_id=experiment.id)  # fmt: skip
    run.stop(run.started[-1])
    return file.read_bytes()


def test_a_resume_that_fails_leaves_the_state(run: Run, tmp_path: Path) -> None:
    assert damaged_resume(run, tmp_path).startswith(b"damaged")


def test_without_the_patch_it_is_lost(run: Run, tmp_path: Path) -> None:
    with _patches.without("keep good state"):
        assert not damaged_resume(run, tmp_path).startswith(b"damaged")


class Commands:
    """The node manager's end of the channel."""

    def __init__(self, *commands: str) -> None:
        self._commands = list(commands)

    def receive(self) -> dict[str, str] | None:
        kind = self._commands.pop(0)
        return {"type": kind, "content": "1" if kind == "GE" else "[]"}


def listening(*commands: str) -> tuple[TunerCommandChannel, list[int]]:
    channel = TunerCommandChannel("ws://localhost:1/tuner")
    channel._channel = Commands(*commands)  # type: ignore[assignment]
    received: list[int] = []
    channel.on_request_trial_jobs(lambda command: received.append(command.count))
    return channel, received


def test_results_of_a_resumed_experiment_do_not_end_the_listener() -> None:
    assert [CommandType("FD"), CommandType("AD")] == [CommandType.ImportData, CommandType.AddCustomizedTrialJob]
    channel, received = listening("FD", "AD", "GE", "TE")
    channel.listen(threading.Event())
    assert received == [1]
    channel, received = listening("FD", "AD", "GE", "TE")
    with _patches.without("skip unknown commands"), pytest.raises(ValueError, match="ImportData"):
        channel.listen(threading.Event())


def test_functions_of_scripts_reach_their_trials() -> None:
    """What the node manager sends back nests one text of JSON in another."""

    def function(_module: Any, text: bytes = b"\xff" * 12) -> bytes:
        return text

    function.__module__ = "__main__"
    function.__qualname__ = "function"

    def there_and_back() -> Any:
        content = nni.dump({"event": "SUCCEEDED", "hyper_params": nni.dump({"function": function})})
        sent = nni.dump({"type": "EN", "content": content})
        return nni.load(nni.load(nni.load(sent)["content"])["hyper_params"])["function"]

    assert there_and_back()(None) == function(None)
    assert serializer.get_hybrid_cls_or_func_name(function).startswith("bytes:")
    with _patches.without("hide comment signs"):
        assert "//" in serializer.get_hybrid_cls_or_func_name(function), "an unlucky function"
        with pytest.raises(ValueError, match="Unterminated string"):
            there_and_back()


def test_a_resumed_search_ends_like_one_that_was_never_stopped(run: Run) -> None:
    def search() -> TIPSSearch:
        return TIPSSearch(objective="kernel", population=4)

    evaluator = FunctionalEvaluator(report)
    whole, first, second = search(), search(), search()
    run(Written(), evaluator, whole, 9, engine="sequential")
    stopped = run(Written(), evaluator, first, 5, engine="sequential")
    run.stop(stopped)
    run(Written(), evaluator, second, 9, engine="sequential", experiment_id=stopped.id)
    assert second.result == whole.result
    assert len(first.result.evaluated) == 5


def test_nnis_own_strategy_resumes_too(run: Run) -> None:
    evaluator = FunctionalEvaluator(report)
    stopped = run(Written(), evaluator, Random(seed=0), 6, engine="sequential")
    before = [model.sample for model in stopped.strategy.list_models(sort=False)]
    run.stop(stopped)
    resumed = run(Written(), evaluator, Random(seed=0), 10, engine="sequential", experiment_id=stopped.id)
    after = [model.sample for model in resumed.strategy.list_models(sort=False)]
    assert len(after) == 4
    assert not [sample for sample in after if sample in before], "it remembers what it has tried"
    assert np.isfinite([model.metric for model in resumed.strategy.list_models()]).all()
