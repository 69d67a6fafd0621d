"""The command `convert`.

The handlers import what they need when they are called: `--help` and a misspelt option answer at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tips_nni.cli._command import Commands


def add_to(commands: Commands) -> None:
    """Add this command."""
    convert = commands.add(
        "convert",
        _convert,
        "show what of a timm backbone can be elastic, and write its search space",
        "Convert a timm backbone and show its coupled channel groups, the elastic dimensions, the size of the space,\n"
        "and what stayed fixed and why. Writes a search space for a run spec (space: ./FILE), commented, to be edited.",
        "  tips-nni convert resnext50_32x4d --output resnext.yaml\n"
        "  tips-nni convert deit_tiny_patch16_224 --image-size 64 --arg img_size=64 --detail\n"
        "  tips-nni convert resnet50 --checkpoint-path weights.safetensors --space mine.yaml --overwrite",
    )
    convert.add_argument("backbone", metavar="BACKBONE", help="timm's name, see timm.list_models()")
    convert.add_argument("--space", metavar="NAME|FILE", help="search space to start from (default: the family's)")
    convert.add_argument(
        "--image-size", type=int, default=224, metavar="PIXELS", help="side of the input (%(default)s)"
    )
    convert.add_argument("--pretrained", action="store_true", help="load timm's weights: channels get sorted")
    convert.add_argument("--checkpoint-path", metavar="FILE", help="load weights from a file instead")
    convert.add_argument(
        "--arg", action="append", default=[], metavar="KEY=VALUE", help="of timm's create_model; repeatable"
    )
    convert.add_argument(
        "--output", default="search_space.yaml", metavar="FILE", help="search space to write (%(default)s)"
    )
    convert.add_argument("--overwrite", action="store_true", help="replace that file where it exists")
    convert.add_argument("--detail", action="store_true", help="name every layer of every coupled group")


def _convert(arguments: argparse.Namespace) -> None:
    from tips_nni.pipeline import convert_backbone
    from tips_nni.specs import read_assignments

    convert_backbone(
        arguments.backbone,
        Path(arguments.output),
        space=arguments.space,
        image_size=arguments.image_size,
        pretrained=arguments.pretrained,
        checkpoint_path=arguments.checkpoint_path,
        arguments=read_assignments(arguments.arg),
        overwrite=arguments.overwrite,
        detail=arguments.detail,
    )
