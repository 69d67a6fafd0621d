"""Train a timm backbone as an anytime network in an NNI experiment, and export the front of its subnets.

python examples/nni/one_shot.py --epochs 60 --save supernet.safetensors
"""

import argparse

import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.experiment import NasExperiment
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from tips_nni.adapters import TIPS, timm_space
from tips_nni.core import SearchSettings

parser = argparse.ArgumentParser()
parser.add_argument("--backbone", default="mobilenetv2_100")
parser.add_argument("--space", default="mobilenetv2")
parser.add_argument("--image-size", type=int, default=32)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--folder", default="runs/nni")
parser.add_argument("--save", help="write the trained weights of the supernet to this file")
options = parser.parse_args()

pixels, classes = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
data = TensorDataset(torch.nn.functional.interpolate(images, size=options.image_size), torch.tensor(classes))
train, held_out = torch.utils.data.random_split(data, [1500, 297], torch.Generator().manual_seed(0))

space = timm_space(options.backbone, options.space, image_size=options.image_size, in_chans=1, num_classes=10)
evaluator = Classification(
    learning_rate=3e-3,
    num_classes=10,
    train_dataloaders=DataLoader(train, batch_size=64, shuffle=True),
    val_dataloaders=DataLoader(held_out, batch_size=297),
    max_epochs=options.epochs,
    default_root_dir=options.folder,
    enable_progress_bar=False,
    logger=False,
)
strategy = TIPS(objective="latency_ms", search=SearchSettings(population=8, generations=2))

experiment = NasExperiment(space, evaluator, strategy)
experiment.config.experiment_working_directory = options.folder
experiment.run()

for model in experiment.export_top_models(5):  # the front, most accurate first
    print({name: round(value, 3) for name, value in model.results.items()})
subnet = experiment.export_top_models(1, formatter="instance")[0]  # a plain timm module, trained and calibrated
print(type(subnet).__name__, sum(p.numel() for p in subnet.parameters()), "parameters")
if options.save:
    space.save_weights(options.save)  # timm_space(..., weights=options.save) starts from them
experiment.stop()
