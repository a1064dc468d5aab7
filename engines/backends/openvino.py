"""OpenVINO, on a processor: the network built from its own operations, no exported file and no converter between."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from engines.backends.base import Availability, Placement, Precision, Weights
from engines.errors import BackendUnavailable
from engines.model.network import Convolution, features, head
from engines.model.plan import Architecture, Plan


def _import_openvino() -> Any:
    """The library without its converter.

    `import openvino` also imports `openvino.tools.ovc`, which reports each import to its maker over the network
    (openvino_telemetry). A None in `sys.modules` makes that one import fail; openvino itself expects and survives it.
    """
    for name in ("openvino_telemetry", "openvino.tools.ovc"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None is what the import system documents
    import openvino

    return openvino


@dataclass(frozen=True)
class _GraphOperations:
    """The network's operations as nodes of an OpenVINO graph."""

    net: Architecture
    weights: Weights
    opset: Any

    def convolution(self, x: Any, layer: Convolution) -> Any:
        """Convolve, same padding."""
        padding = [(size - 1) // 2 for size in layer.kernel]
        weight = self.opset.constant(self.weights[f"{layer.key}.weight"])
        dilation = [1] * len(layer.kernel)
        return self._biased(self.opset.convolution(x, weight, list(layer.stride), padding, padding, dilation), layer)

    def upsampling(self, x: Any, layer: Convolution) -> Any:
        """Convolve transposed."""
        weight = self.opset.constant(self.weights[f"{layer.key}.weight"])
        return self._biased(self.opset.convolution_backprop_data(x, weight, list(layer.stride)), layer)

    def normalization(self, x: Any, key: str) -> Any:
        """Instance norm."""
        axes = self.opset.constant(np.arange(2, 2 + self.net.dimensions, dtype=np.int64))
        normal = self.opset.mvn(x, axes, True, self.net.norm_eps, "inside_sqrt")
        if not self.net.norm_affine:
            return normal
        scaled = self.opset.multiply(normal, self._per_channel(f"{key}.weight"))
        return self.opset.add(scaled, self._per_channel(f"{key}.bias"))

    def activation(self, x: Any) -> Any:
        """Leaky rectifier."""
        return self.opset.prelu(x, self.opset.constant(np.array([self.net.negative_slope], dtype=np.float32)))

    def pooling(self, x: Any, stride: tuple[int, ...]) -> Any:
        """Block mean."""
        none = [0] * len(stride)
        return self.opset.avg_pool(x, list(stride), none, none, list(stride), True)

    def concatenation(self, first: Any, second: Any) -> Any:
        """Channels of both."""
        return self.opset.concat([first, second], 1)

    def addition(self, first: Any, second: Any) -> Any:
        """The sum of both."""
        return self.opset.add(first, second)

    def _biased(self, x: Any, layer: Convolution) -> Any:
        return self.opset.add(x, self._per_channel(f"{layer.key}.bias")) if layer.bias else x

    def _per_channel(self, key: str) -> Any:
        return self.opset.constant(self.weights[key].reshape(1, -1, *(1,) * self.net.dimensions))


class OpenVinoBackend:
    """The network compiled for this processor, in float32."""

    name = "openvino"
    precision: Precision = "float32"

    def __init__(self, plan: Plan, weights: Weights, placement: Placement) -> None:
        openvino = _import_openvino()
        from openvino import opset15

        self.version = f"openvino {openvino.get_version()}"
        image = opset15.parameter([1, plan.inputs, *plan.patch_size], np.float32)
        operations = _GraphOperations(plan.architecture, weights, opset15)
        answer = features(plan.architecture, operations, image)
        if placement.answer == "logits":
            answer = head(plan.architecture, plan.outputs, operations, answer)
        core = openvino.Core()
        compiled = core.compile_model(openvino.Model([answer], [image], plan.dataset), "CPU", _properties(placement))
        self.device = str(core.get_property("CPU", "FULL_DEVICE_NAME"))
        self._request = compiled.create_infer_request()
        self._output = compiled.output(0)

    @classmethod
    def is_available(cls, device: str, precision: Precision = "float32") -> Availability:
        """On a processor, where the package is installed."""
        if device != "cpu":
            return Availability(False, f"serves the processor only, not {device}")
        try:
            openvino = _import_openvino()
        except ImportError as error:
            return Availability(False, f"the package cannot be imported ({error}); pip install 'hilum[openvino]'")
        return Availability(True, f"openvino {openvino.get_version()} on the processor")

    @classmethod
    def open(cls, plan: Plan, weights: Weights, placement: Placement) -> Self:
        """Build and compile the graph."""
        availability = cls.is_available(placement.device)
        if not availability.available:
            raise BackendUnavailable(f"openvino: {availability.reason}")
        try:
            return cls(plan, weights, placement)
        except RuntimeError as error:  # openvino's own exceptions are RuntimeErrors
            raise BackendUnavailable(f"openvino: cannot compile the network: {_first_line(error)}") from error

    def answers(self, patches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The network's answer to each patch, in order."""
        for patch in patches:
            image = patch[None].contiguous().numpy()
            try:
                results = self._request.infer([image], share_inputs=True, share_outputs=True)
            except RuntimeError as error:
                raise BackendUnavailable(f"openvino: inference failed: {_first_line(error)}") from error
            yield torch.from_numpy(np.asarray(results[self._output]))[0]

    def close(self) -> None:
        """Let go of the compiled network."""
        self._request = None


def _properties(placement: Placement) -> dict[str, str]:
    """Float32 said aloud: on processors with bf16 units the default would be coarser."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(placement.threads),
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": "NO",
    }


def _first_line(error: RuntimeError) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
