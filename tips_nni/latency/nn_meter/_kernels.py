"""The kernels of a network as nn-Meter splits them, with the features that its predictors take."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tips_nni.core import TipsError
from tips_nni.latency.nn_meter._library import load_part
from tips_nni.latency.nn_meter._onnx import Graph, Shape, flattened

#: Operators that only read their input in another way.
_VIEWS = ("reshape", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


@dataclass(frozen=True)
class Reading:
    """How nn-Meter predicts one kernel.

    Attributes:
        predictor: the name of its predictor, or of the kernel where nn-Meter has none for it.
        features: what the predictor takes; None where there is none.
    """

    predictor: str
    features: tuple[float, ...] | None


@dataclass(frozen=True, eq=False)
class Block:
    """A kernel of a network.

    Attributes:
        operation: the fused operators, as nn-Meter names them (``conv-relu``).
        members: names of the graph's nodes in it, the first one being that whose shapes nn-Meter reads.
        inputs: tensors that the first node reads.
        outputs: tensors that it makes.
        multiply_adds: of all its operators.
        kernel: nn-Meter's own description.
    """

    operation: str
    members: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    multiply_adds: int
    kernel: Mapping[str, Any]
    _detector: Any
    _node: Mapping[str, Any]

    @property
    def view(self) -> bool:
        """Whether it only reads its input in another way, and is no work."""
        return self.operation in _VIEWS

    def reading(self) -> Reading:
        """Return how nn-Meter predicts this kernel."""
        return _reading(self.kernel, _mistaken(self._node, self._node["input_shape"]))

    def reading_of(self, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Reading:
        """Return how nn-Meter predicts it with tensors of other shapes, channels last where they have four dimensions.

        Raises:
            TipsError: nn-Meter cannot read the shapes.
        """
        ins, outs = flattened(self._node, [list(shape) for shape in inputs], [list(shape) for shape in outputs])
        node = {**self._node, "attr": dict(self._node["attr"]), "input_shape": ins, "output_shape": outs}
        converted = load_part("kernel_detector.utils.ir_tools").convert_nodes({"node": {"attr": node}})
        model = self._detector.model_graph
        attr = model.get_node_attr(self.members[0])
        before = attr["input_shape"], attr["output_shape"]
        attr["input_shape"] = converted["node"]["attr"]["input_shape"]
        attr["output_shape"] = converted["node"]["attr"]["output_shape"]
        try:
            return _reading(self._detector._bb_to_kernel(list(self.members)), _mistaken(self._node, ins))
        finally:
            attr["input_shape"], attr["output_shape"] = before


def detect(graph: Graph, rules: str) -> list[Block]:
    """Split a graph into kernels by nn-Meter's detector.

    Args:
        graph: from `to_graph`.
        rules: the pack's fusion rules, JSON text.

    Raises:
        TipsError: nn-Meter cannot follow the graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fusion_rules.json"
        path.write_text(rules, encoding="utf-8")
        detector = load_part("kernel_detector").KernelDetector(str(path))
    try:
        detector.load_graph(graph)
        detector.get_kernels()
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise TipsError(f"nn-Meter cannot split this network into kernels ({error!r}); choose another one") from error
    blocks = []
    for members in detector.bbs:
        root = detector.model_graph.get_node_attr(members[0])
        kernel = detector._layer_kernel_dict.get(members[0])
        if kernel is None:
            continue
        # nn-Meter joins the names of nodes that it puts together into one.
        sources = [name for member in members for name in member.split(";")]
        blocks.append(
            Block(
                operation=kernel["op"],
                members=tuple(members),
                inputs=tuple(root["inputs"]),
                outputs=tuple(root["outputs"]),
                multiply_adds=sum(_multiply_adds(graph[name]["attr"]) for name in sources),
                kernel=kernel,
                _detector=detector,
                _node=graph[root["source"]]["attr"],
            )
        )
    return blocks


def _multiply_adds(attr: Mapping[str, Any]) -> int:
    """Return the multiply-adds of one node: of convolutions and matrix products."""
    if attr["type"] not in ("Conv", "Gemm", "MatMul"):
        return 0
    weight, out = attr["weight"], math.prod(attr["output_shape"][0])
    if weight is None:
        # Of two matrices or of stacks of them: the last dimension of the first one is summed over. It comes third also
        # where nn-Meter has put the second one last.
        return int(out * attr["input_shape"][0][2])
    if attr["type"] == "MatMul":
        return int(out * weight[0])
    return int(out * math.prod(weight) // attr["output_shape"][0][-1])


def _mistaken(node: Mapping[str, Any], inputs: Sequence[Sequence[int]]) -> str | None:
    """Return the name of a node that nn-Meter would take for something else, None where it does not.

    A grouped convolution would count as a dense one, which is as many times the work; a linear layer on many positions
    (tokens) as on one; a product of two matrices that were computed as a linear layer.
    """
    weight, shape = node["weight"], inputs[0]
    if node["type"] == "Conv" and weight[1] > 1 and shape[-1] > weight[1]:
        return "grouped convolution"
    if node["type"] in ("Gemm", "MatMul"):
        if weight is None:
            return "matrix product"
        positions = {2: shape[0], 3: math.prod(shape[:-1])}.get(len(shape), shape[0] * shape[1] * shape[-1])
        if positions > 1:
            return "linear layer on many positions"
    return None


def _reading(kernel: Mapping[str, Any], mistaken: str | None) -> Reading:
    prediction = load_part("predictor.prediction.predict_by_kernel")
    operation = str(kernel["op"])
    name = str(prediction.get_kernel_name(prediction.merge_conv_kernels(operation)))
    if mistaken is not None:
        return Reading(mistaken, None)
    try:
        rows = prediction.get_predict_features([kernel])
    except (LookupError, TypeError, ValueError) as error:
        # Names that only look like a kernel's, such as "transpose", which holds "se".
        logging.getLogger(__name__).debug("%s has no features: %r", operation, error)
        return Reading(name, None)
    if not rows:
        return Reading(name, None)
    ((row,),) = (tuple(item.values()) for item in rows.values())
    return Reading(name, tuple(float(value) for value in row))
