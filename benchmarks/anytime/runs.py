"""Running the trainings of a study: in this process, or in several that share the device."""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import timm
import torch

from anytime.data import Data, load
from anytime.evaluation import Evaluator
from anytime.rivals import RIVALS_BY_NAME
from anytime.scales import SCALES, Scale
from anytime.tasks import Results, Task
from anytime.training import Length, train, train_alone
from tips_nni import __version__
from tips_nni.core import CostTable
from tips_nni.elastic import Supernet

Row = dict[str, Any]


class Study:
    """One scale on one data set, on one device."""

    def __init__(self, scale: Scale, path: Path, device: torch.device) -> None:
        self.scale = scale
        self.device = device
        self.data: Data = load(path, scale, device)
        torch.manual_seed(0)
        template: Supernet = scale.supernet(self.data.classes).to(device).eval()
        self.evaluator = Evaluator(scale, self.data, template)
        self.steps = self._sandwich_steps(template)

    def _sandwich_steps(self, supernet: Supernet) -> int:
        """Return how many steps of the uniform sandwich the longest training has: the length at equal steps."""
        space, table = supernet.space, CostTable(supernet.architecture)
        drawn = float(table.flops(space.sample(np.random.default_rng(0), 4096)).mean())
        ends = float(table.flops(space.encode_many([space.largest, space.smallest])).sum())
        return round(self.scale.compute * 1e12 / (3 * self.scale.batch * (ends + 2 * drawn)))

    def run(self, task: Task, rate: float) -> Row:
        """Train and measure one task."""
        started = time.perf_counter()
        if task.kind == "alone":
            config = self.evaluator.panel[int(task.rival[1:])]
            module = train_alone(self.scale, self.data, config, rate, task.seed, self.steps)
            found: Row = {"test": self.evaluator.test_accuracy(module)}
        else:
            length = (
                Length(steps=round(self.steps * task.share))
                if task.kind == "steps"
                else Length(compute=self.scale.compute * task.share)
            )
            trained = train(self.scale, self.data, RIVALS_BY_NAME[task.rival], rate, task.seed, length)
            found = {
                "steps": trained.steps,
                "compute": trained.compute,
                "loss": trained.loss,
                "train_seconds": trained.seconds,
                "refresh_seconds": trained.refresh_seconds,
                **self.evaluator.measure(trained.supernet, task.seed, test=task.kind != "tune"),
            }
        return {
            "key": task.key,
            "scale": self.scale.name,
            "kind": task.kind,
            "rival": task.rival,
            "seed": task.seed,
            "share": task.share,
            "rate": rate,
            "wall_seconds": time.perf_counter() - started,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu, one thread",
            "versions": {
                "tips-nni": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "timm": timm.__version__,
                "numpy": np.__version__,
                "scipy": scipy.__version__,
            },
            **found,
        }


_study: Study | None = None


def _start(scale: str, path: Path) -> None:
    """Make a worker's study: its own network and images, on the device that all workers share."""
    global _study
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # the numbers of a CPU, whatever the device
    _study = Study(SCALES[scale], path, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    gc.set_threshold(100_000)  # a subnet is a hundred new modules: at 700 the search for garbage is a tenth of a step


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however it ended: nobody would take the result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(task: Task, rate: float) -> Row:
    if _study is None:
        raise RuntimeError("this process has no study; create it with _start")
    return _study.run(task, rate)


def run_all(
    scale: Scale,
    path: Path,
    planned: Sequence[Task],
    results: Results,
    workers: int,
    seconds: float,
    said: Callable[[Row, int], None],
) -> bool:
    """Run what is not done yet, in order, each as soon as its learning rate is known.

    Args:
        scale: of the study.
        path: of the images.
        planned: the trainings.
        results: where rows are kept; only this process writes.
        workers: processes.
        seconds: no training starts later than so long after the call.
        said: called with every finished row and the number of trainings left.

    Returns:
        Whether all are done.
    """
    deadline = time.monotonic() + seconds
    left = [task for task in planned if task.key not in results.done()]
    flying: dict[Future[Row], Task] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(scale.name, path)) as pool:
        while True:
            in_time = time.monotonic() < deadline
            for task in list(left):
                rate = task.rate if task.rate is not None else results.rate(scale, task.rival)
                if len(flying) == workers or not in_time:
                    break
                if rate is not None:
                    flying[pool.submit(_run, task, rate)] = task
                    left.remove(task)
            if not flying:
                return not left
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                del flying[future]
                row = future.result()
                results.add(row)
                said(row, len(left) + len(flying))
