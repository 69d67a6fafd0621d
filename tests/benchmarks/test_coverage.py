"""The coverage of timm: its list, its verdicts, and one small family measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from coverage import Row, check_list, judge, markdown, measured, totals
from coverage_families import CONVOLUTIONAL, OTHER_MODULES, TRANSFORMERS, Family
from coverage_peer import prune_alone
from torch import Tensor, nn

GOOD = Row(
    "Mine", "mine", 64, width=2, hidden=3, elastic=0.9, smallest=0.2, seconds=1.0, largest=0.0, ordered=1e-9,
    subnets=0.0, flops_exact=True, onnx=1e-6,
)  # fmt: skip


def test_every_module_of_timm_is_listed_and_every_family_exists():
    check_list()
    modules = [family.module for family in (*CONVOLUTIONAL, *TRANSFORMERS)]
    assert len({family.name for family in CONVOLUTIONAL}) == len(CONVOLUTIONAL) >= 60
    for family in (*CONVOLUTIONAL, *TRANSFORMERS):
        assert family.model in timm.list_models(module=family.module), family
    convolutional = {family.module for family in CONVOLUTIONAL}
    assert not convolutional & {name for names in OTHER_MODULES.values() for name in names}
    assert "resnet" in modules


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seconds": 5.1}, "takes 5.1 s"),
        ({"width": 0, "hidden": 0}, "no elastic width"),
        ({"elastic": 0.4}, "only 40%"),
        ({"largest": 1e-4}, "differs from timm"),
        ({"ordered": 1e-4}, "ordering"),
        ({"subnets": 1e-7}, "their extraction"),
        ({"flops_exact": False}, "multiply-adds"),
        ({"onnx": 1e-3}, "onnxruntime"),
        ({"onnx": float("nan")}, "onnxruntime"),
    ],
)
def test_one_column_that_does_not_hold_is_a_failure(change, reason):
    row = replace(GOOD, reasons=[], **change)
    judge(row)
    assert not row.passes
    assert reason in row.reasons[0]


def test_the_bar_is_58_of_60():
    rows = [replace(GOOD, family=str(i), reasons=[], peer="fails") for i in range(80)]
    assert totals(rows, [])[0] | {"name": ""} == {"name": "", "value": 80, "bar": 78, "holds": True}
    for row in rows[:3]:
        row.reasons.append("broken")
    bar, slowest, transformers, peer = totals(rows, [])
    assert (bar["value"], bar["holds"]) == (77, False)
    assert slowest["holds"]
    assert not transformers["holds"]
    assert peer["bar"] == 0
    assert totals(rows[3:60], [])[0]["holds"] is False
    assert "- 0: broken" in markdown({"convolutional": rows}, totals(rows, []))


def test_a_small_family_is_measured():
    row = measured(Family("NFNet", "nfnet", "test_nfnet", 32), 2)
    assert row.passes, row.reasons
    assert row.width + row.hidden > 2
    assert row.smallest < 0.5
    assert measured(Family("None", "none", "no_such_model"), 1).reasons[0].startswith("RuntimeError")


class Baked(nn.Module):
    """What Torch-Pruning cannot cut: a number of channels that is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.fc = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.deep(self.stem(x).relu()).mean((2, 3)).view(1, 32))


def test_torch_pruning_alone():
    images = torch.zeros(1, 3, 32, 32)
    assert prune_alone(timm.create_model("resnet10t", num_classes=8), images, 8) == ""
    assert prune_alone(Baked(), images, 8) != ""
