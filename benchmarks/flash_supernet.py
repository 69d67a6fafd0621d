"""A CIFAR-100 supernet of more than 6·10¹⁰ subnets for one CPU core: trained once, measured subnet by subnet."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from anytime.data import Data, prepare
from anytime.rivals import Rival
from anytime.scales import Scale, resnet_space
from anytime.training import Length, train
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tips_nni.core import SubnetConfig, write_json
from tips_nni.elastic import Supernet
from tips_nni.training import measure_subnets

PACK = "cifar100_q95"
RATE, SEED = 0.2, 0


def resnet(classes: int) -> nn.Module:
    """Timm's ResNet of twelve basic blocks with an eighth of the usual channels; the stem halves the image once.

    So few channels that in a quarter of an hour their number is what limits the accuracy, not the training.
    """
    model = timm.create_model(
        "resnet34",
        num_classes=classes,
        layers=(3, 3, 3, 3),
        channels=(8, 16, 32, 64),
        stem_type="deep",
        stem_width=8,
    )
    model.maxpool = nn.Identity()
    return model


def scale_of(classes: int | None = None) -> Scale:
    """Return the network, its space and the sizes of the measurements."""
    return Scale(
        name="flash",
        build=resnet,
        space=lambda: resnet_space(2),
        image_size=32,
        classes=classes,
        validation=2000,
        batch=128,
        compute=0.0,
        shares=(1.0,),
        rates=(RATE,),
        population=25,
        generations=3,
        search_images=2000,
        calibration=512,
    )


def read_pack(folder: Path, scale: Scale) -> Data:
    """Read CIFAR-100 by the ``pack.py`` that lies beside it."""
    spec = importlib.util.spec_from_file_location("pack", folder / "pack.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"x_{split}"], arrays[f"y_{split}"], _ = module.load(PACK, split)
    return prepare(arrays, scale, torch.device("cpu"))


def trained(scale: Scale, data: Data, steps: int, path: Path) -> tuple[Supernet, float]:
    """Return the supernet and the seconds of its training: from `path` where a training of that length is kept.

    Uniform sampling, two subnets a step that learn from the labels: no subnet is favoured, so that what the predictors
    are compared on is the subnets' own worth.
    """
    if path.is_file():
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("training", "{}"))
        if facts.get("steps") == steps:
            torch.manual_seed(SEED)
            supernet = scale.supernet(data.classes)
            supernet.backbone.load_state_dict(load_file(path))
            return supernet.eval(), float(facts["seconds"])
    rival = Rival("two_random", "", largest=False, smallest=False, random=2, distill=False)
    start = time.perf_counter()
    supernet = train(scale, data, rival, RATE, SEED, Length(steps=steps)).supernet
    seconds = time.perf_counter() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {name: tensor.contiguous() for name, tensor in supernet.backbone.state_dict().items()}
    save_file(tensors, temporary, {"training": json.dumps({"steps": steps, "seconds": seconds})})
    os.replace(temporary, path)
    return supernet, seconds


class Measured:
    """Accuracies of subnets after calibration, kept on disk beside the supernet's weights.

    Args:
        supernet: trained.
        data: the images.
        scale: how many are used.
        part: ``validation`` (what a search sees) or ``test``.
        path: the file; dropped where it belongs to other weights.
        images: at most so many.
    """

    def __init__(self, supernet: Supernet, data: Data, scale: Scale, part: str, path: Path, images: int) -> None:
        self._supernet = supernet
        self._calibration = [x for x, _ in data.train.batches(scale.measured_batch, scale.calibration)]
        self._batches = getattr(data, part).batches(scale.measured_batch, images)
        self._path = path
        first = next(iter(supernet.backbone.parameters())).detach()
        self._weights = f"{part} {images} {float(first.double().abs().sum())!r}"
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self._known: dict[str, float] = stored["known"] if stored.get("weights") == self._weights else {}

    def __call__(self, configs: Sequence[SubnetConfig]) -> NDArray[np.float64]:
        """Return the accuracy of every subnet, shape (N,), 0 to 1."""
        names = ["-".join(map(str, config.values)) for config in configs]
        for name, config in zip(names, configs, strict=True):
            if name not in self._known:
                value = measure_subnets(self._supernet, [config], self._calibration, self._batches)
                self._known[name] = float(value[0])
        write_json(self._path, {"weights": self._weights, "known": self._known})
        return np.array([self._known[name] for name in names])
