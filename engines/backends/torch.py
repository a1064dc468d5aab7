"""PyTorch, on a processor or an NVIDIA card: the reference that every other backend is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch.nn import functional

from engines.backends.base import Answer, Availability, Placement, Precision, Weights
from engines.backends.batching import in_batches
from engines.backends.cuda_device import card_fault
from engines.backends.cuda_graph import captured
from engines.errors import BackendUnavailable, OutOfDeviceMemory
from engines.model.network import Convolution, features, head
from engines.model.plan import Architecture, Plan

_TYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}
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
    """The network in float32 on a processor; in float32 or float16 on a card, there as one CUDA graph."""

    name = "torch"

    def __init__(self, plan: Plan, weights: Weights, placement: Placement) -> None:
        self.version = f"torch {torch.__version__}"
        self.precision = placement.precision
        self._target = torch.device(placement.device)
        on_card = self._target.type == "cuda"
        self.device = torch.cuda.get_device_name(self._target) if on_card else "CPU"
        torch.set_num_threads(placement.threads)  # one setting for the whole process, as those of cards are
        if on_card:
            _set_up_cards()
        kind = _TYPES[placement.precision]
        tensors = {key: torch.from_numpy(value).to(self._target, kind) for key, value in weights.items()}
        shape = (placement.batch, plan.inputs, *plan.patch_size)
        self._images = torch.zeros(shape, dtype=kind, device=self._target)
        network = _Network(plan, placement.answer, _TorchOperations(plan.architecture, tensors), self._images)
        self._compute: Callable[[], torch.Tensor] = captured(network, self._target) if on_card else network

    @classmethod
    def is_available(cls, device: str, precision: Precision = "float32") -> Availability:
        """A processor in float32; a card where torch was built for CUDA and finds a driver."""
        if device == "cpu":
            if precision != "float32":
                return Availability(False, f"multiplies in float32 on a processor, not in {precision}")
            return Availability(True, f"torch {torch.__version__} on the processor")
        if not device.startswith("cuda"):
            return Availability(False, f"{device} is no device of this backend; known: cpu, cuda, cuda:N")
        if precision not in _TYPES:
            return Availability(False, f"multiplies in {' or '.join(_TYPES)} on a card, not in {precision}")
        if (fault := card_fault(device)) is not None:
            return Availability(False, fault)
        return Availability(True, torch.cuda.get_device_name(device))

    @classmethod
    def package(cls, device: str) -> str:
        """Torch, wherever it runs."""
        return "torch"

    @classmethod
    def open(cls, plan: Plan, weights: Weights, placement: Placement) -> Self:
        """Load the weights onto the device; on a card, run the network once and keep the graph of it."""
        availability = cls.is_available(placement.device, placement.precision)
        if not availability.available:
            raise BackendUnavailable(f"torch: {availability.reason}")
        try:
            return cls(plan, weights, placement)
        except torch.OutOfMemoryError as error:
            room = f"no room for {plan.dataset} in batches of {placement.batch}"
            raise OutOfDeviceMemory(f"{placement.device}: {room}") from error

    def answers(self, patches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The network's answer to each patch, in order; on a card, on torch's current stream."""
        try:
            yield from in_batches(patches, self._images, self._compute)
        except torch.OutOfMemoryError as error:
            room = f"no room for patches of {tuple(self._images.shape)}"
            raise OutOfDeviceMemory(f"{self.device}: {room}") from error

    def finish(self) -> None:
        """Wait for torch's current stream on a card; on a processor every answer is there when it is given."""
        if self._target.type == "cuda":
            torch.cuda.current_stream(self._target).synchronize()

    def close(self) -> None:
        """Let go of weights, buffers and graph."""
        self._compute = _closed
        self._images = torch.empty_like(self._images, device="meta")
        if self._target.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Network:
    """One network over one buffer of images."""

    plan: Plan
    answer: Answer
    operations: _TorchOperations
    images: torch.Tensor

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        """The answer to all images, in new memory."""
        net = self.plan.architecture
        maps = features(net, self.operations, self.images)
        return head(net, self.plan.outputs, self.operations, maps) if self.answer == "logits" else maps


def _set_up_cards() -> None:
    # Cards multiply float32 in 10-bit mantissas (TF32) unless told not to: too coarse for the reference.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # shapes never change: the fastest algorithm is looked for once


def _closed() -> torch.Tensor:
    raise BackendUnavailable("torch: the backend was closed")
