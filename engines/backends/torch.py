"""PyTorch, on a processor or an NVIDIA card: the reference that every other backend is held against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch.nn import functional

from engines.backends.base import Availability, Placement, Precision, Weights
from engines.errors import BackendUnavailable, OutOfDeviceMemory
from engines.model.network import Convolution, features, head
from engines.model.plan import Architecture, Plan

_CONVOLVE = {2: functional.conv2d, 3: functional.conv3d}
_UPSAMPLE = {2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_POOL = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


@dataclass(frozen=True)
class _TorchOperations:
    """The network's operations on tensors (B, C, *size)."""

    net: Architecture
    weights: Mapping[str, torch.Tensor]

    def convolution(self, x: torch.Tensor, layer: Convolution) -> torch.Tensor:
        """Convolve, same padding."""
        padding = [(size - 1) // 2 for size in layer.kernel]
        weight, bias = self.weights[f"{layer.key}.weight"], self.weights.get(f"{layer.key}.bias")
        return _CONVOLVE[len(layer.kernel)](x, weight, bias, layer.stride, padding)

    def upsampling(self, x: torch.Tensor, layer: Convolution) -> torch.Tensor:
        """Convolve transposed."""
        weight, bias = self.weights[f"{layer.key}.weight"], self.weights.get(f"{layer.key}.bias")
        return _UPSAMPLE[len(layer.kernel)](x, weight, bias, layer.stride)

    def normalization(self, x: torch.Tensor, key: str) -> torch.Tensor:
        """Instance norm."""
        weight, bias = self.weights.get(f"{key}.weight"), self.weights.get(f"{key}.bias")
        return functional.instance_norm(x, weight=weight, bias=bias, eps=self.net.norm_eps)

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        """Leaky rectifier, in place: every caller hands over a map that nobody else holds."""
        return functional.leaky_relu_(x, self.net.negative_slope)

    def pooling(self, x: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
        """Block mean."""
        return _POOL[len(stride)](x, stride, stride)

    def concatenation(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Channels of both."""
        return torch.cat((first, second), dim=1)

    def addition(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The sum of both."""
        return first + second


class TorchBackend:
    """The network in float32, eager."""

    name = "torch"
    precision: Precision = "float32"

    def __init__(self, plan: Plan, weights: Weights, placement: Placement) -> None:
        if placement.device == "cpu":
            torch.set_num_threads(placement.threads)  # one setting for the whole process
        else:
            # Cards multiply float32 in 10-bit mantissas (TF32) unless told not to: too coarse for the reference.
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self.version = f"torch {torch.__version__}"
        self._plan, self._answer = plan, placement.answer
        self._target = torch.device(placement.device)
        self.device = "CPU" if placement.device == "cpu" else torch.cuda.get_device_name(self._target)
        tensors = {key: torch.from_numpy(value).to(self._target) for key, value in weights.items()}
        self._operations = _TorchOperations(plan.architecture, tensors)

    @classmethod
    def is_available(cls, device: str, precision: Precision = "float32") -> Availability:
        """A processor always; a card where torch was built for CUDA and finds a driver."""
        if device == "cpu":
            return Availability(True, f"torch {torch.__version__} on the processor")
        if not device.startswith("cuda"):
            return Availability(False, f"{device} is no device of this backend; known: cpu, cuda, cuda:N")
        if torch.version.cuda is None:
            return Availability(False, f"torch {torch.__version__} was built without CUDA; install torch's CUDA build")
        if not torch.cuda.is_available():
            return Availability(False, "torch finds no NVIDIA driver or card")
        index = torch.device(device).index or 0
        if index >= torch.cuda.device_count():
            return Availability(False, f"there are {torch.cuda.device_count()} cards, none has number {index}")
        return Availability(True, torch.cuda.get_device_name(index))

    @classmethod
    def open(cls, plan: Plan, weights: Weights, placement: Placement) -> Self:
        """Load the weights onto the device."""
        availability = cls.is_available(placement.device)
        if not availability.available:
            raise BackendUnavailable(f"torch: {availability.reason}")
        try:
            return cls(plan, weights, placement)
        except torch.OutOfMemoryError as error:
            raise OutOfDeviceMemory(f"{placement.device}: no room for the weights of {plan.dataset}") from error

    def answers(self, patches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The network's answer to each patch, in order."""
        for patch in patches:
            try:
                answer = self._one(patch)
            except torch.OutOfMemoryError as error:
                raise OutOfDeviceMemory(f"{self.device}: no room for a patch of {tuple(patch.shape)}") from error
            yield answer

    @torch.inference_mode()
    def _one(self, patch: torch.Tensor) -> torch.Tensor:
        net = self._plan.architecture
        answer = features(net, self._operations, patch[None].to(self._target))
        return (head(net, self._plan.outputs, self._operations, answer) if self._answer == "logits" else answer)[0]

    def close(self) -> None:
        """Let go of the weights."""
        self._operations = _TorchOperations(self._plan.architecture, {})
        if self._target.type == "cuda":
            torch.cuda.empty_cache()
