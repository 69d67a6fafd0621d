"""TIPS as a tuner of NNI: ``tuner: {name: TIPS}`` after `tips-nni register`, or by its class name."""

from __future__ import annotations

import base64
import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nni
from nni.tuner import Tuner

from tips_nni.adapters._patches import tell_tuner_of_resumed_trials
from tips_nni.adapters.tuner._arguments import read_arguments
from tips_nni.adapters.tuner._task import check_search_space, config_of
from tips_nni.core import SubnetConfig, TipsError, write_json

_log = logging.getLogger("nni.tips")
#: The tuner's file in the experiment's checkpoint folder.
STATE = "tips.json"
# NNI's tuner process is started with the experiment's configuration behind this flag.
_PARAMETERS = "--exp_params"


class TIPSTuner(Tuner):
    """Searches the front of accuracy against cost over the subnets of a run.

    Proposals are those of the run's search algorithm (`search.algorithm`), or of the strategy's where one is given;
    evolution draws new genes by the policy of the strategy (path importance for TIPS). NNI 3.0 gives trials each
    other's parameters where several start at once (nni issues 5693, 5726): a trial reports the code of the subnet that
    it measured (``code``) with its result, and the tuner goes by that, never by NNI's parameter ids. A subnet is
    measured once: also after a resume, and where its result was imported.

    The class arguments are checked here, for NNI never calls a validator; what is wrong ends the process with one line.

    Args:
        run: a folder with ``run.yaml`` and ``architecture.json``: of `tips-nni run`, or of `tips-nni nni-config`;
            relative to the experiment's ``trialCodeDirectory``.
        strategy: name or path of a strategy, for its policy and search (``flash``); the run's by default.
        constraints: upper bounds as in a run spec, e.g. ``{target: pixel4_cpu, latency_ms: 30}``; the run's by default.
        objective: the cost to trade against accuracy: latency where it is bounded, else multiply-adds.
        population: subnets of one generation; by default the run's, or the given strategy's.
        mutation: probability that a dimension of a child changes; likewise.
        seed: of the search.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        with _one_line():
            self._task, self._search = read_arguments(arguments, base_folder())
        self._running = 0
        self._resumed: set[SubnetConfig] = set()
        self._warned = False
        tell_tuner_of_resumed_trials()

    def update_search_space(self, search_space: Any) -> None:
        """Check that NNI's search space is that of the run: the space is the network's, it cannot change.

        Raises:
            TipsError: it is another one.
        """
        with _one_line():
            check_search_space(search_space, self._task.space)

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> dict[str, int]:
        """Return the values of the next subnet.

        Raises:
            nni.NoMoreTrialError: every feasible subnet is measured or being measured.
        """
        config = self._search.ask()
        if config is None:
            raise nni.NoMoreTrialError("every subnet within the constraints has been proposed")
        self._running += 1
        self._save()
        return config.as_dict()

    def receive_trial_result(self, parameter_id: int, parameters: Any, value: Any, **kwargs: Any) -> None:
        """Take the result of a trial: its final metric, a number or a dictionary with ``default``.

        A result that cannot be used is logged in one line; the subnet counts as not measured.
        """
        self._tell(parameters, value)
        self._save()

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Take note that a trial ended, with or without a result.

        Which subnet a failed trial had is not known (see the class), but when nothing runs any more, those without a
        result are the failed ones: each is proposed once more.
        """
        self._running = max(0, self._running - 1)
        if self._running == 0:
            for config in set(self._search.pending) - self._resumed:
                _log.warning("subnet %s ended without a result; it is tried once more", list(config.values))
                self._search.forget(config)
            self._save()

    def import_data(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Take results of earlier trials: on resume, or from `nnictl experiment import`."""
        for record in data:
            self._tell(record.get("parameter"), record.get("value"))
        self._save()

    def resumed_trials(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Take note of the trials that NNI starts again by itself after a resume: it asks no tuner for those."""
        for record in data:
            try:
                config = self._task.space.config(record["parameters"])
            except TipsError as error:
                _log.error("a resumed trial is no subnet of this run: %s", error)
                continue
            self._resumed.add(config)
            self._search.expect(config)
        self._save()

    def load_checkpoint(self) -> None:
        """Go on where the experiment was stopped; subnets whose trials were lost are proposed first.

        Raises:
            TipsError: the state is damaged or belongs to another search space.
        """
        path = self._state_path()
        if path is None or not path.is_file():
            return
        with _one_line():
            try:
                state = json.loads(path.read_text(encoding="utf-8"))["search"]
            except (ValueError, KeyError, TypeError) as error:
                raise TipsError(f"{path} is damaged ({error}); delete it: NNI's own database has the results") from None
            self._search.load_state_dict(state)
            self._search.requeue()

    def _tell(self, parameters: Any, value: Any) -> None:
        """Give one result to the search."""
        try:
            config, accuracy, costs = self._read(parameters, value)
            self._search.tell(config, accuracy, costs)
        except TipsError as error:
            _log.error("a result was not used: %s", error)

    def _read(self, parameters: Any, value: Any) -> tuple[SubnetConfig, float, dict[str, float]]:
        """Return the subnet, its accuracy and the costs that the trial reported."""
        report = value if isinstance(value, Mapping) else {"default": value}
        accuracy: Any = report.get("default")
        if not _is_number(accuracy):
            raise TipsError(f"the final metric {value!r} has no number as its 'default'; report the accuracy there")
        space = self._task.space
        if "code" in report:
            config = config_of(space, report["code"])
        elif isinstance(parameters, Mapping):
            config = space.config({str(name): entry for name, entry in parameters.items()})
            if not self._warned:
                self._warned = True
                _log.warning(
                    "trials report no 'code': results are paired by NNI's parameters, which are those of another trial "
                    "where trialConcurrency is above 1; report tips_nni.adapters.code_of(space, config) as 'code'"
                )
        else:
            raise TipsError(f"the result {value!r} has neither a code nor parameters; it belongs to no subnet")
        known = self._search.costs
        costs = {name: float(v) for name, v in report.items() if name in known and _is_number(v)}
        return config, float(accuracy), costs

    def _state_path(self) -> Path | None:
        folder = self.get_checkpoint_path()
        return None if folder is None else Path(folder) / STATE

    def _save(self) -> None:
        """Keep the state for a resume. Where it cannot be written the search goes on, and NNI's database has the rest.

        NNI 3.0 never asks a tuner to save.
        """
        path = self._state_path()
        if path is None:
            return
        facts = {"objective": self._search.objective_cost, "target": self._task.constraints.target}
        try:
            write_json(path, {**facts, "space": self._task.space.to_json(), "search": self._search.state_dict()})
        except TipsError as error:
            _log.error("the state of the search was not kept: %s", error)


@contextmanager
def _one_line() -> Iterator[None]:
    """In NNI's tuner process, end it with one line in place of a traceback; `nnictl create` prints that line."""
    try:
        yield
    except TipsError as error:
        if _PARAMETERS not in sys.argv:
            raise
        raise SystemExit(f"tips-nni: tuner TIPS: {error}") from None


def base_folder() -> Path:
    """Return the folder that relative paths in ``classArgs`` start from.

    NNI starts the tuner in a folder of its own, with the experiment's configuration, paths made absolute, on the
    command line; elsewhere (`nni.experiment.Experiment` in a script, a test) it is the current folder.
    """
    if _PARAMETERS in sys.argv[:-1]:
        text = base64.b64decode(sys.argv[sys.argv.index(_PARAMETERS) + 1])
        directory = json.loads(text).get("trialCodeDirectory")
        if directory:
            return Path(directory)
    return Path.cwd()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
