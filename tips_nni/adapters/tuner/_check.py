"""Checks an NNI experiment file: what NNI itself would find out late, or never."""

from __future__ import annotations

import traceback
from pathlib import Path

import yaml
from nni.experiment.config import ExperimentConfig, utils
from nni.tools.package_utils import get_algo_meta

from tips_nni.adapters.tuner._arguments import read_arguments
from tips_nni.adapters.tuner._register import CLASS, NAME
from tips_nni.adapters.tuner._task import check_search_space
from tips_nni.core import TipsError, unknown

_PLATFORMS = ("adl", "aml", "dlc", "frameworkcontroller", "kubeflow", "local", "openpai", "remote")


def check_experiment(path: Path) -> str:
    """Check an experiment file that uses the tuner TIPS and return a line that describes it.

    NNI's own schema is checked by NNI's own code; then the tuner's arguments, which NNI never checks, the run that they
    name, the search space file against the run's network, and the constraints.

    Raises:
        TipsError: something is wrong.
    """
    _check_shape(path)
    try:
        config = ExperimentConfig.load(path).canonical_copy()
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, OSError) as error:
        utils.unset_base_path()  # NNI leaves it set where it fails, and then refuses the next file
        # NNI asserts without a message: then the line that it asserts says what it wants.
        reason = " ".join(str(error).split()) or traceback.extract_tb(error.__traceback__)[-1].line
        raise TipsError(f"{path}: NNI refuses it: {reason}") from None
    tuner = config.tuner
    if tuner is None or ((tuner.name or "").upper() != NAME and tuner.class_name != CLASS):
        used = "none" if tuner is None else repr(tuner.name or tuner.class_name)
        raise TipsError(f"{path}: the tuner is {used}; this check is for tuner: {{name: {NAME}}} or className: {CLASS}")
    if tuner.name and get_algo_meta(NAME) is None:
        raise TipsError(f"{path}: NNI does not know the tuner {NAME} yet; run `tips-nni register` once")
    try:
        task, _ = read_arguments(tuner.class_args or {}, Path(config.trial_code_directory))
        check_search_space(config.search_space, task.space)
    except TipsError as error:
        raise TipsError(f"{path}: {error}") from None
    return (
        f"{path}: a valid experiment of {task.spec.backbone.name} with {task.space.size:.3g} subnets; "
        f"{config.max_trial_number or 'no limit of'} trials, {config.trial_concurrency} at once"
    )


def _check_shape(path: Path) -> None:
    """Check what NNI's own code stumbles over without naming it.

    Raises:
        TipsError: a part is missing or has a wrong shape.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TipsError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise TipsError(f"{path}: is no mapping of keys; `tips-nni nni-config SPEC` writes a right one")
    for key, example in (("tuner", "{name: TIPS, classArgs: {run: .}}"), ("trainingService", "{platform: local}")):
        value = content.get(key)
        if not isinstance(value, dict):
            raise TipsError(f"{path}: {key} = {value!r}; it must be a mapping, e.g. {example}")
    platform = content["trainingService"].get("platform")
    if platform not in _PLATFORMS:
        raise TipsError(f"{path}: {unknown('trainingService.platform', str(platform), _PLATFORMS)}")
