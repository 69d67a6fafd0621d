"""Checks an NNI experiment file: what NNI itself would find out late, or never."""

from __future__ import annotations

from pathlib import Path

from tips_nni.adapters._register import CLASS, NAME
from tips_nni.adapters._task import check_search_space, load_task
from tips_nni.adapters._tuner import check_arguments
from tips_nni.core import TipsError, check_feasible


def check_experiment(path: Path) -> str:
    """Check an experiment file that uses the tuner TIPS and return a line that describes it.

    NNI's own schema is checked by NNI's own code; then the tuner's arguments, which NNI never checks, the run that they
    name, the search space file against the run's network, and the constraints.

    Raises:
        TipsError: something is wrong.
    """
    from nni.experiment.config import ExperimentConfig, utils
    from nni.tools.package_utils import get_algo_meta

    try:
        config = ExperimentConfig.load(path).canonical_copy()
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, OSError) as error:
        utils.unset_base_path()  # NNI leaves it set where it fails, and then refuses the next file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TipsError(f"{path}: NNI refuses it: {reason}") from None
    tuner = config.tuner
    if tuner is None or ((tuner.name or "").upper() != NAME and tuner.class_name != CLASS):
        used = "none" if tuner is None else repr(tuner.name or tuner.class_name)
        raise TipsError(f"{path}: the tuner is {used}; this check is for tuner: {{name: {NAME}}} or className: {CLASS}")
    if tuner.name and get_algo_meta(NAME) is None:
        raise TipsError(f"{path}: NNI does not know the tuner {NAME} yet; run `tips-nni register` once")
    directory = Path(config.trial_code_directory)
    arguments = dict(tuner.class_args or {})
    try:
        check_arguments(arguments)
        seed = arguments.pop("seed", 0)
        run = directory / Path(arguments.pop("run")).expanduser()
        task = load_task(run, **arguments)
        check_search_space(config.search_space, task.space)
        check_feasible(task.space, task.costs, task.constraints.bounds)
        task.search(seed)
    except TipsError as error:
        raise TipsError(f"{path}: {error}") from None
    return (
        f"{path}: a valid experiment of {task.spec.backbone.name} with {task.space.size:.3g} subnets; "
        f"{config.max_trial_number or 'no limit of'} trials, {config.trial_concurrency} at once"
    )
