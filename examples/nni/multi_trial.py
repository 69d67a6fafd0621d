"""Search the front with trials: each trains one subnet and reports its accuracy and what else it measured.

python examples/nni/multi_trial.py --trials 12             # one after the other, in this process
python examples/nni/multi_trial.py --trials 12 --service   # in processes of NNI's training service
"""

import argparse
import time

import nni
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from sklearn.datasets import load_digits
from torch import nn

from tips_nni.adapters import TIPSSearch, timm_space


def evaluate(module: nn.Module, steps: int) -> None:
    """Train a subnet for some steps; report its accuracy and its time for one image on this machine."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.nn.functional.interpolate(torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, size=16)
    labels = torch.tensor(classes)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for step in range(steps):
        rows = torch.randint(0, 1500, (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images[rows]), labels[rows]).backward()
        optimizer.step()
    module.eval()
    with torch.no_grad():
        accuracy = (module(images[1500:]).argmax(dim=1) == labels[1500:]).double().mean().item()
        start = time.perf_counter()
        for _ in range(10):
            module(images[:1])
    nni.report_final_result({"default": accuracy, "host_ms": (time.perf_counter() - start) * 100})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", default="runs/nni")
    parser.add_argument("--weights", help="a trained supernet of the same backbone to start the subnets from")
    parser.add_argument("--service", action="store_true", help="run trials in processes of the training service")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()

    space = timm_space("test_resnet", "resnet", image_size=16, in_chans=1, num_classes=10, weights=options.weights)
    strategy = TIPSSearch(objective="host_ms", constraints={"params_m": 0.3}, population=4)
    config = NasExperimentConfig("ts" if options.service else "sequential", "simplified", "local")
    config.max_trial_number = options.trials
    config.trial_concurrency = 1
    config.experiment_working_directory = options.folder

    experiment = NasExperiment(space, FunctionalEvaluator(evaluate, steps=options.steps), strategy, config)
    experiment.run(port=options.port)
    for model in experiment.export_top_models(5):
        print({name: round(value, 3) for name, value in model.results.items()}, model.sample)
    experiment.stop()
