"""The network as an ONNX graph: what TensorRT builds engines from, and what `hilum-models export` writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.backends.base import Answer, Weights
from engines.errors import BackendUnavailable
from engines.model.network import Convolution, features, head
from engines.model.plan import Architecture, Plan

INPUT = "image"
"""Name of the graph's input, (B, C, *patch). Its output is named by the answer: `logits` or `features`."""
_OPSET = 20
_FORMAT = 10
"""ONNX's IR version: of the same year as the operator set, so that readers of that year take the file."""

GraphPrecision = Literal["float32", "float16"]


@dataclass(frozen=True)
class GraphForm:
    """How a network is written down. Every tensor's type is in the graph: nothing is left to whoever runs it."""

    precision: GraphPrecision = "float32"
    """Of weights, maps, input and output."""
    norms: GraphPrecision = "float32"
    """Of instance norms in a float16 graph; float32 stands between two casts."""
    batch: int | None = None
    """Images at once; None: whoever runs it says so."""
    answer: Answer = "logits"


def onnx_graph(plan: Plan, weights: Weights, form: GraphForm = GraphForm()) -> Any:
    """An `onnx.ModelProto` with the weights inside; the patch is fixed.

    Raises
    ------
    BackendUnavailable
        Where the onnx package is missing.
    """
    onnx = import_onnx()
    net, helper = plan.architecture, onnx.helper
    operations = _OnnxOperations(net, weights, form, onnx)
    answer = features(net, operations, INPUT)
    outputs = net.features[0]
    if form.answer == "logits":
        answer, outputs = head(net, plan.outputs, operations, answer), plan.outputs
    operations.nodes[-1].output[0] = form.answer
    kind, batch = operations.type_of(form.precision), "batch" if form.batch is None else form.batch
    image = helper.make_tensor_value_info(INPUT, kind, [batch, plan.inputs, *plan.patch_size])
    result = helper.make_tensor_value_info(form.answer, kind, [batch, outputs, *plan.patch_size])
    graph = helper.make_graph(operations.nodes, plan.dataset, [image], [result], operations.constants)
    opset = helper.make_opsetid("", _OPSET)
    return helper.make_model(graph, producer_name="hilum", opset_imports=[opset], ir_version=_FORMAT)


def import_onnx() -> Any:
    """The onnx package, which describes graphs and runs none."""
    try:
        import onnx
    except ImportError as error:
        raise BackendUnavailable(f"the onnx package cannot be imported ({error}); pip install 'hilum[onnx]'") from error
    return onnx


@dataclass(frozen=True)
class _OnnxOperations:
    """The network's operations as nodes of an ONNX graph; a feature map is the name of a tensor."""

    net: Architecture
    weights: Weights
    form: GraphForm
    onnx: Any
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def convolution(self, x: str, layer: Convolution) -> str:
        """Convolve, same padding."""
        padding = [(size - 1) // 2 for size in layer.kernel]
        return self._node("Conv", self._inputs(x, layer), strides=list(layer.stride), pads=padding * 2)

    def upsampling(self, x: str, layer: Convolution) -> str:
        """Convolve transposed."""
        return self._node("ConvTranspose", self._inputs(x, layer), strides=list(layer.stride))

    def normalization(self, x: str, key: str) -> str:
        """Instance norm; ONNX's always scales and shifts."""
        one = np.ones(self._width(key), dtype=np.float32)
        norms = self.form.norms if self.form.precision == "float16" else "float32"
        scale = self._constant(f"{key}.weight", self.weights.get(f"{key}.weight", one), norms)
        shift = self._constant(f"{key}.bias", self.weights.get(f"{key}.bias", 0 * one), norms)
        between = norms != self.form.precision
        x = self._cast(x, norms) if between else x
        x = self._node("InstanceNormalization", [x, scale, shift], epsilon=self.net.norm_eps)
        return self._cast(x, self.form.precision) if between else x

    def activation(self, x: str) -> str:
        """Leaky rectifier."""
        return self._node("LeakyRelu", [x], alpha=self.net.negative_slope)

    def pooling(self, x: str, stride: tuple[int, ...]) -> str:
        """Block mean."""
        return self._node("AveragePool", [x], kernel_shape=list(stride), strides=list(stride))

    def concatenation(self, first: str, second: str) -> str:
        """Channels of both."""
        return self._node("Concat", [first, second], axis=1)

    def addition(self, first: str, second: str) -> str:
        """The sum of both."""
        return self._node("Add", [first, second])

    def type_of(self, precision: GraphPrecision) -> int:
        """ONNX's number for a type."""
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(precision)))

    def _inputs(self, x: str, layer: Convolution) -> list[str]:
        parameters = [f"{layer.key}.weight", *([f"{layer.key}.bias"] if layer.bias else [])]
        return [x, *(self._constant(key, self.weights[key], self.form.precision) for key in parameters)]

    def _width(self, key: str) -> int:
        """Channels of the convolution that stands before a norm: nnU-Net names both below one block."""
        return int(self.weights[f"{key.removesuffix('.norm')}.conv.weight"].shape[0])

    def _cast(self, x: str, precision: GraphPrecision) -> str:
        return self._node("Cast", [x], to=self.type_of(precision))

    def _constant(self, name: str, value: NDArray[np.float32], precision: GraphPrecision) -> str:
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(value, dtype=precision), name))
        return name

    def _node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name
