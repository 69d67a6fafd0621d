"""TIPS on a model space written with NNI's own parts: only the policy, calibration and search are ours.

python examples/nni/hand_written_space.py
"""

import argparse

import nni
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableBatchNorm2d, MutableConv2d, MutableLinear, Repeat
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tips_nni.adapters import TIPS
from tips_nni.core import SearchSettings


class Net(ModelSpace):
    """A width, a depth, and an operation for every block."""

    def __init__(self) -> None:
        super().__init__()
        width = nni.choice("width", [8, 16, 24])
        self.stem = MutableConv2d(1, width, kernel_size=3, padding=1, bias=False)
        self.norm = MutableBatchNorm2d(width)
        self.blocks = Repeat(
            lambda i: LayerChoice(
                {
                    "3x3": MutableConv2d(width, width, kernel_size=3, padding=1),
                    "1x1": MutableConv2d(width, width, kernel_size=1),
                    "pool": nn.MaxPool2d(3, stride=1, padding=1),
                },
                label=f"block{i}",
            ),
            depth=(1, 3),
            label="depth",
        )
        self.head = MutableLinear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, 10) of images (N, 1, H, W)."""
        features = torch.relu(self.blocks(torch.relu(self.norm(self.stem(images)))))
        return self.head(features.mean(dim=(2, 3)))


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--folder", default="runs/nni")
options = parser.parse_args()

pixels, classes = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(classes))
train, held_out = torch.utils.data.random_split(data, [1500, 297], torch.Generator().manual_seed(0))

evaluator = Classification(
    learning_rate=1e-2,
    num_classes=10,
    train_dataloaders=DataLoader(train, batch_size=64, shuffle=True),
    val_dataloaders=DataLoader(held_out, batch_size=297),
    max_epochs=options.epochs,
    default_root_dir=options.folder,
    enable_progress_bar=False,
    logger=False,
)
strategy = TIPS(objective="mflops", search=SearchSettings(population=8, generations=2))
experiment = NasExperiment(Net(), evaluator, strategy)
experiment.config.experiment_working_directory = options.folder
experiment.run()

for model in experiment.export_top_models(5):
    print({name: round(value, 3) for name, value in model.results.items()}, model.sample)
for dim in strategy.oneshot_module.policy.explain().dims:  # which options were trained more often
    print(dim.name, [f"{p:.0%}" for p in dim.probabilities])
experiment.stop()
