"""Reading checkpoints, and telling whether a training may go on from one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from tips_nni.core import Policy, TipsError
from tips_nni.elastic import Supernet
from tips_nni.specs import SamplingSpec, TrainingSpec
from tips_nni.training._data import ImageData
from tips_nni.training._module import SupernetModule

#: The checkpoint in a run folder, replaced after every epoch.
CHECKPOINT = Path("checkpoints") / "last.ckpt"
_LIGHTNING_KEYS = ("epoch", "global_step", "loops", "optimizer_states", "pytorch-lightning_version", "state_dict")
_OWN_KEYS = ("history", "policy", "rng", "settings", "train_flops")
_REMEDY = "delete it to train from the start"


def load_policy_state(folder: Path) -> dict[str, Any]:
    """Return the state of the policy in the last checkpoint of a run folder.

    Raises:
        TipsError: there is no checkpoint, or it cannot be read.
    """
    checkpoint = folder / CHECKPOINT
    if not checkpoint.is_file():
        raise TipsError(f"{folder} has no checkpoint; run `tips-nni run SPEC` first")
    return dict(json.loads(read_checkpoint(checkpoint)["tips_nni"]["policy"]))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU.

    Raises:
        TipsError: it is truncated, or not of a training of this package and version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TipsError(f"{path} cannot be read ({reason}); {_REMEDY}") from error
    if not isinstance(content, dict) or not isinstance(content.get("tips_nni"), dict):
        raise TipsError(f"{path} is no checkpoint of a tips-nni training; {_REMEDY}")
    if missing := sorted({*_LIGHTNING_KEYS} - set(content) | {*_OWN_KEYS} - set(content["tips_nni"])):
        raise TipsError(f"{path} has no {missing[0]!r}, it may be of another version; {_REMEDY}")
    return content


def describe_training(
    supernet: Supernet, data: ImageData, training: TrainingSpec, sampling: SamplingSpec, policy: Policy, seed: int
) -> dict[str, Any]:
    """Return all that decides the trained weights, but for those at the start, as plain JSON data by name."""
    spec = training.model_dump(mode="json", exclude={"accelerator", "devices", "nodes", "calibration_images"})
    return {
        "seed": seed,
        **{f"training.{name}": value for name, value in spec.items()},
        **{f"sampling.{name}": value for name, value in sampling.model_dump(mode="json").items()},
        "policy": policy.name,
        **{f"policy.{name}": value for name, value in asdict(policy.options).items()},
        **{f"space.{dim.name}": list(dim.choices) for dim in supernet.space.dims},
        "data": data.digest,
        "data.batch_size": data.spec.batch_size,
        "data.augment": data.spec.augment,
        "data.flip": data.spec.flip,
        "data.mean": list(data.mean),
        "data.std": list(data.std),
    }


def check_resumable(path: Path, module: SupernetModule) -> None:
    """Check that the training of `module` may go on from a checkpoint.

    Raises:
        TipsError: it cannot be read, or is of another network, or was trained with other settings.
    """
    content = read_checkpoint(path)
    stored = {name: tensor.shape for name, tensor in content["state_dict"].items()}
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if differing := sorted(name for name in {*stored, *wanted} if stored.get(name) != wanted.get(name)):
        raise TipsError(f"{path} is of another network ({differing[0]} differs, {len(differing)} in all); {_REMEDY}")
    before = json.loads(content["tips_nni"]["settings"])
    now = json.loads(json.dumps(module.settings))
    if changed := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
        name = changed[0]
        raise TipsError(
            f"{path} was trained with {name} = {before.get(name)!r}, now it is {now.get(name)!r}; put it back to "
            f"resume, or {_REMEDY}"
        )


def load_weights(supernet: Supernet, folder: Path) -> None:
    """Give `supernet` the weights of the last checkpoint in a run folder.

    Raises:
        TipsError: there is no checkpoint, it cannot be read, or it is of another network.
    """
    checkpoint = folder / CHECKPOINT
    if not checkpoint.is_file():
        raise TipsError(f"there is no trained supernet at {checkpoint}; train it first: tips-nni run SPEC")
    prefix = "supernet.backbone."
    stored = read_checkpoint(checkpoint)["state_dict"]
    weights = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    try:
        supernet.backbone.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise TipsError(f"{checkpoint} is of another network ({reason}); use the run of this backbone") from error
