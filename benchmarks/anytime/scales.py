"""At which scale rivals are compared: networks, images, lengths of training, sizes of measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import timm
from torch import nn

from tips_nni.elastic import Supernet, convert
from tips_nni.specs import SpaceSpec, load_space


@dataclass(frozen=True)
class Scale:
    """Sizes of a study.

    Attributes:
        name: for tables.
        build: makes the backbone for a number of classes.
        space: its search space.
        image_size: pixels.
        classes: how many of the data's classes are used, from `first_class` on; None for all.
        validation: training images kept for the search and for the choice of learning rates.
        batch: images of one step.
        compute: multiply-adds of the longest training, in 1e12; a backward pass counts as two forward passes.
        shares: lengths of training as shares of `compute`; each is a training of its own with a whole schedule.
        rates: learning rates that every rival tries.
        population: of the search.
        generations: of the search.
        search_images: validation images of one measurement.
        calibration: training images for BatchNorm statistics.
        measured_batch: images of one batch of a measurement.
        panel: random subnets, the same for all.
        panel_images: test images of the panel; None for all.
        first_class: the classes begin with this one.
        images: training images that are kept; None for all.
    """

    name: str
    build: Callable[[int], nn.Module]
    space: Callable[[], SpaceSpec]
    image_size: int
    classes: int | None
    validation: int
    batch: int
    compute: float
    shares: tuple[float, ...]
    rates: tuple[float, ...]
    population: int
    generations: int
    search_images: int
    calibration: int
    measured_batch: int = 250
    panel: int = 40
    panel_images: int | None = None
    first_class: int = 0
    images: int | None = None

    def supernet(self, classes: int) -> Supernet:
        """Return a new supernet with PyTorch's random weights."""
        return convert(self.build(classes), self.space(), image_size=self.image_size)


def small_resnet(classes: int) -> nn.Module:
    """Timm's ResNet-18 with a quarter of its channels, for small images: the stem keeps the resolution."""
    model = timm.create_model(
        "resnet18", num_classes=classes, channels=(16, 32, 64, 128), stem_type="deep", stem_width=8
    )
    model.conv1[0].stride = (1, 1)
    model.maxpool = nn.Identity()
    return model


def tiny_resnet(classes: int) -> nn.Module:
    """Timm's ResNet-18-D with an eighth of its channels, for 16 pixels: so cheap that it trains until flat."""
    model = timm.create_model(
        "resnet18", num_classes=classes, channels=(8, 16, 32, 64), stem_type="deep", stem_width=8, avg_down=True
    )
    model.maxpool = nn.Identity()
    return model


def cifar_resnet(classes: int) -> nn.Module:
    """Timm's ResNet-18 for images of 32 pixels: the stem keeps the resolution."""
    model = timm.create_model("resnet18", num_classes=classes, stem_type="deep", stem_width=32)
    model.conv1[0].stride = (1, 1)
    model.maxpool = nn.Identity()
    return model


def cifar_mobilenet(classes: int) -> nn.Module:
    """Timm's MobileNetV2 for images of 32 pixels: the first two reductions are left out."""
    model = timm.create_model("mobilenetv2_100", num_classes=classes)
    model.conv_stem.stride = (1, 1)
    model.blocks[1][0].conv_dw.stride = (1, 1)
    return model


def small_mobilenet(classes: int) -> nn.Module:
    """Timm's MobileNetV2 with about a third of its channels, for images of 32 pixels: the stem keeps the resolution."""
    model = timm.create_model("mobilenetv2_035", num_classes=classes)
    model.conv_stem.stride = (1, 1)
    return model


def mobilenet(classes: int) -> nn.Module:
    """Timm's MobileNetV2 as it is."""
    return timm.create_model("mobilenetv2_100", num_classes=classes)


def resnet_space(divisor: int) -> SpaceSpec:
    """Return the space of ResNets with other multiples of channels: those of narrow networks are finer than 8."""
    space = load_space("resnet")
    finer = {name: getattr(space, name).model_copy(update={"divisor": divisor}) for name in ("width", "hidden")}
    return space.model_copy(update=finer)


_CPU = Scale(
    name="cpu",
    build=small_resnet,
    space=lambda: resnet_space(4),
    image_size=16,
    classes=10,
    validation=500,
    batch=64,
    compute=4.0,
    shares=(0.25, 0.5, 1.0),
    rates=(0.1, 0.2, 0.4),
    population=16,
    generations=5,
    search_images=500,
    calibration=250,
)

_GPU = Scale(
    name="resnet",
    build=cifar_resnet,
    space=lambda: load_space("resnet"),
    image_size=32,
    classes=None,
    validation=5000,
    batch=128,
    compute=4e3,
    shares=(0.125, 0.25, 0.5, 1.0),
    rates=(0.03, 0.1, 0.3),
    population=64,
    generations=20,
    search_images=5000,
    calibration=2000,
    measured_batch=1000,
)

SCALES = {
    scale.name: scale
    for scale in (
        _CPU,
        # Three times ten other classes, for choices: the figures of `cpu` see none of their images.
        *(replace(_CPU, name=f"cpu_dev{i}", first_class=10 * i) for i in (1, 2, 3)),
        # The same network on images of twice the size, at the learning rate chosen on the small ones.
        replace(_CPU, name="cpu32", image_size=32, compute=2.0, shares=(1.0,), rates=(0.2,), panel_images=500),
        # A smaller network on few images: the scale at which every rival is trained until it is flat.
        replace(
            _CPU,
            name="cpu_flat",
            build=tiny_resnet,
            space=lambda: resnet_space(2),
            batch=128,
            images=500,
            compute=0.6,
            rates=(0.1, 0.2, 0.4, 0.8),
        ),
        # Another backbone confirms what the ResNet says, at rates of its own: at 0.2 it trains to chance at times.
        replace(
            _CPU,
            name="cpu_mobilenetv2",
            build=small_mobilenet,
            space=lambda: load_space("mobilenetv2"),
            image_size=32,
            shares=(0.25, 1.0),
            compute=0.6,
            rates=(0.03, 0.1),
            panel_images=500,
        ),
        # Other data do, at the learning rate chosen on CIFAR-100.
        replace(_CPU, name="imagenette16", classes=None, compute=1.0, shares=(1.0,), rates=(0.2,), panel_images=1000),
        replace(
            _CPU,
            name="smoke",
            classes=4,
            validation=100,
            batch=16,
            compute=0.01,
            shares=(1.0,),
            rates=(0.1,),
            population=4,
            generations=1,
            search_images=50,
            calibration=32,
            panel=8,
            panel_images=50,
        ),
        _GPU,
        replace(
            _GPU,
            name="mobilenetv2",
            build=cifar_mobilenet,
            space=lambda: load_space("mobilenetv2"),
            compute=1.2e3,
        ),
        replace(
            _GPU,
            name="imagenette",
            build=mobilenet,
            space=lambda: load_space("mobilenetv2"),
            image_size=96,
            validation=1000,
            batch=64,
            compute=1e3,
            shares=(0.25, 0.5, 1.0),
            search_images=1000,
            calibration=1000,
        ),
    )
}
