"""NNI's own strategies and TIPS on one timm space, with equally many trials.

python examples/nni/compare.py --trials 16
"""

import argparse

import nni
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.strategy import TPE, Random, RegularizedEvolution
from sklearn.datasets import load_digits
from torch import nn

from tips_nni.adapters import TIPSSearch, timm_space


def evaluate(module: nn.Module, steps: int) -> None:
    """Train a subnet for some steps and report its accuracy."""
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
    nni.report_final_result(accuracy)


parser = argparse.ArgumentParser()
parser.add_argument("--trials", type=int, default=8)
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--folder", default="runs/nni")
options = parser.parse_args()

space = timm_space("test_resnet", "resnet", image_size=16, in_chans=1, num_classes=10)
strategies = {
    "Random": Random(seed=0),
    "RegularizedEvolution": RegularizedEvolution(population_size=4, sample_size=2, seed=0),
    "TPE": TPE(),
    "TIPSSearch": TIPSSearch(objective="latency_ms", population=4),
}
for name, strategy in strategies.items():
    config = NasExperimentConfig("sequential", "raw", "local")
    config.max_trial_number = options.trials
    config.experiment_working_directory = options.folder
    torch.manual_seed(0)
    experiment = NasExperiment(space, FunctionalEvaluator(evaluate, steps=options.steps), strategy, config)
    experiment.run()
    best = experiment.export_top_models(1)[0]
    code = space.supernet.space.encode(space.supernet.space.config({str(k): v for k, v in best.sample.items()}))[None]
    costs = {cost: round(float(model.evaluate(code)[0]), 3) for cost, model in space.costs.items()}
    print(f"{name}: best accuracy {best.metric:.3f} with {costs}")
    experiment.stop()
