import pytest
import torch
from torch import nn

from tips_nni.core import TipsError
from tips_nni.specs import DataSpec, TrainingSpec
from tips_nni.training import accuracy, load_batches, load_data, train_alone


@pytest.fixture(scope="module")
def data():
    return load_data(DataSpec(kind="digits", image_size=8, batch_size=64, limit=512), seed=0)


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def spec(**values):
    return TrainingSpec(**{"epochs": 4, "lr": 0.1, "accelerator": "cpu", **values})


def measure(module, data):
    return accuracy(module, load_batches(data.validation_loader(), torch.device("cpu")))


def test_it_learns_and_ends_in_evaluation_mode(data):
    module = make()
    before = measure(module.eval(), data)
    train_alone(module.train(), data, spec(epochs=12), side=8, seed=0)
    assert not any(part.training for part in module.modules())
    assert before < 0.3 < 0.8 < measure(module, data)


def test_after_every_epoch_the_module_can_be_measured(data):
    module, seen = make(), []
    train_alone(module, data, spec(), side=8, seed=0, after_epoch=lambda e: seen.append((e, module.training)))
    assert seen == [(1, False), (2, False), (3, False), (4, False)]


def test_the_seed_decides_the_weights(data):
    first, again = make(), make()
    for module in (first, again):
        train_alone(module, data, spec(epochs=1), side=8, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_images_come_at_the_side_of_the_module(data):
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    train_alone(module, data, spec(epochs=1), side=4, seed=0)


def test_gradients_are_clipped(data):
    module, start = make(), make()
    train_alone(module, data, spec(epochs=None, steps=1, momentum=0.0, clip_grad=1e-3, weight_decay=0), side=8, seed=0)
    moved = torch.cat([(a - b).flatten() for a, b in zip(module.parameters(), start.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_a_loss_that_is_not_finite_is_one_line(data):
    module = make()
    nn.init.constant_(module[1].weight, float("inf"))
    with pytest.raises(TipsError, match=r"the loss is nan at step 0 with learning rate 0\.1; lower"):
        train_alone(module, data, spec(), side=8, seed=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_one_line(data):
    with pytest.raises(TipsError, match="training cannot start with accelerator 'cuda'"):
        train_alone(make(), data, spec(accelerator="cuda"), side=8, seed=0)
