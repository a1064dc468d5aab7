"""OpenVINO, on a processor: the network built from its own operations, no exported file and no converter between."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray

from engines.backends.base import Availability, Placement, Precision, Weights
from engines.errors import BackendUnavailable, EngineError, OutOfDeviceMemory
from engines.model.network import Convolution, features, head, head_key
from engines.model.plan import Architecture, Plan

_HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}
_NO_MEMORY = re.compile(
    r"bad.?alloc|out.of.memory|can't alloc\b|(failed to|could not|cannot) allocate (\d+ bytes of )?memory(?! for)", re.I
)
"""How OpenVINO, its oneDNN and std::bad_alloc say it; registers that cannot be allocated are another matter."""


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
class _Upsampled:
    """A map still to be upsampled: the convolution that follows does both at once."""

    coarse: Any
    layer: Convolution


@dataclass(frozen=True)
class _Joined:
    """An upsampled map and the encoder's map, as the channels of one."""

    upsampled: _Upsampled
    skip: Any


@dataclass(frozen=True)
class _GraphOperations:
    """The network's operations as nodes of an OpenVINO graph."""

    net: Architecture
    weights: Weights
    opset: Any

    def convolution(self, x: Any, layer: Convolution) -> Any:
        """Convolve, same padding."""
        weight = self.weights[f"{layer.key}.weight"]
        if isinstance(x, _Joined):
            return self._joint_convolution(x, layer, weight)
        return self._biased(self._convolved(x, layer, weight), layer)

    def upsampling(self, x: Any, layer: Convolution) -> Any:
        """Convolve transposed, later."""
        return _Upsampled(x, layer)

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
        """Channels of both, later."""
        return _Joined(first, second)

    def addition(self, first: Any, second: Any) -> Any:
        """The sum of both."""
        return self.opset.add(first, second)

    def head(self, x: Any, outputs: int) -> Any:
        """The head as a product of matrices."""
        key = head_key(self.net)
        bias = self.weights[f"{key}.bias"].reshape(1, -1, *(1,) * self.net.dimensions)
        return self.opset.add(
            self.mixed(x, self.weights[f"{key}.weight"].reshape(outputs, -1)), self.opset.constant(bias)
        )

    def mixed(self, x: Any, matrix: NDArray[np.float32]) -> Any:
        """Channels mixed by a matrix, (K, C).

        Inside the graph channels lie last. A product with the matrix in front writes them one behind the other, in less
        time than the library takes to turn a map.
        """
        opset, size = self.opset, list(x.get_output_shape(0))[2:]
        last = opset.transpose(x, opset.constant(np.array([0, *range(2, 2 + len(size)), 1])))
        rows = opset.reshape(last, opset.constant(np.array([-1, matrix.shape[1]])), False)
        product = opset.matmul(opset.constant(matrix), rows, False, True)
        return opset.reshape(product, opset.constant(np.array([1, len(matrix), *size])), False)

    def _joint_convolution(self, x: _Joined, layer: Convolution, weight: NDArray[np.float32]) -> Any:
        """Upsample one map, join it to the other and convolve, without ever making the joined map.

        A convolution of joined channels is the sum of two convolutions, and upsampling with a convolution behind it is
        one transposed convolution with a larger kernel: fewer multiplications, and no copy of two large maps.
        """
        up = x.upsampled.layer
        beside = self._convolved(x.skip, layer, weight[:, up.features :])
        kernel = composed_kernel(self.weights[f"{up.key}.weight"], weight[:, : up.features])
        coarse = x.upsampled.coarse
        if up.bias:
            # Zeros surround the upsampled map, its bias too: the bias becomes the weight of a channel of ones.
            bias = self.weights[f"{up.key}.bias"].reshape(1, -1, *(1,) * len(up.stride))
            spread = np.broadcast_to(bias, (1, up.features, *up.stride))
            kernel = np.concatenate([kernel, composed_kernel(spread, weight[:, : up.features])])
            ones = np.ones((1, 1, *list(coarse.get_output_shape(0))[2:]), dtype=np.float32)
            coarse = self.opset.concat([coarse, self.opset.constant(ones)], 1)
        padding = [(size - 1) // 2 for size in layer.kernel]
        through = self.opset.convolution_backprop_data(
            coarse, self.opset.constant(kernel), list(up.stride), None, padding, padding
        )
        return self.opset.add(beside, self._biased(through, layer))

    def _convolved(self, x: Any, layer: Convolution, weight: NDArray[np.float32]) -> Any:
        padding, dilation = [(size - 1) // 2 for size in layer.kernel], [1] * len(layer.kernel)
        constant = self.opset.constant(np.ascontiguousarray(weight))
        return self.opset.convolution(x, constant, list(layer.stride), padding, padding, dilation)

    def _biased(self, x: Any, layer: Convolution) -> Any:
        return self.opset.add(x, self._per_channel(f"{layer.key}.bias")) if layer.bias else x

    def _per_channel(self, key: str) -> Any:
        return self.opset.constant(self.weights[key].reshape(1, -1, *(1,) * self.net.dimensions))


def composed_kernel(upsampling: NDArray[np.float32], convolution: NDArray[np.float32]) -> NDArray[np.float32]:
    """The transposed kernel that does at once what a transposed convolution and a convolution do one after the other.

    Parameters
    ----------
    upsampling
        float32, (C_in, C_between, *s), applied with stride s.
    convolution
        float32, (C_out, C_between, *k), k odd, applied with zeros around.

    Returns
    -------
    float32, (C_in, C_out, *(s + k - 1)), to be applied with stride s and padding (k - 1) / 2.
    """
    steps, taps = upsampling.shape[2:], convolution.shape[2:]
    ins, outs, between = upsampling.shape[0], convolution.shape[0], convolution.shape[1]
    mirrored = np.flip(np.moveaxis(convolution, 0, -1), tuple(range(1, 1 + len(taps)))).reshape(between, -1)
    kernel = np.zeros((ins, *(step + tap - 1 for step, tap in zip(steps, taps, strict=True)), outs), dtype=np.float32)
    for step in np.ndindex(*steps):
        reach = tuple(slice(at, at + size) for at, size in zip(step, taps, strict=True))
        kernel[:, *reach] += (upsampling[:, :, *step] @ mirrored).reshape(ins, *taps, outs)
    return np.ascontiguousarray(np.moveaxis(kernel, -1, 1))


class OpenVinoBackend:
    """The network compiled for this processor."""

    name = "openvino"

    def __init__(self, plan: Plan, weights: Weights, placement: Placement) -> None:
        openvino = _import_openvino()
        self.version = f"openvino {openvino.get_version()}"
        core = openvino.Core()
        self.device = str(core.get_property("CPU", "FULL_DEVICE_NAME"))
        compiled = core.compile_model(_model(openvino, plan, weights, placement), "CPU", _properties(placement))
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.precision = cast(Precision, {hint: name for name, hint in _HINTS.items()}.get(used, used))
        # One more than compute: while its answer is read, the others keep every thread at work.
        self._requests = [compiled.create_infer_request() for _ in range(placement.lanes + 1)]
        self._running = deque[Any]()

    @classmethod
    def is_available(cls, device: str, precision: Precision = "float32") -> Availability:
        """On a processor, where the package is installed; bfloat16 where the processor multiplies it."""
        if device != "cpu":
            return Availability(False, f"serves the processor only, not {device}")
        if precision not in _HINTS:
            return Availability(False, f"multiplies in {' or '.join(_HINTS)}, not in {precision}")
        try:
            openvino = _import_openvino()
        except ImportError as error:
            return Availability(False, f"the package cannot be imported ({error}); pip install 'hilum[openvino]'")
        if precision == "bfloat16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return Availability(False, "this processor has no bfloat16 units (AVX512-BF16 or AMX)")
        return Availability(True, f"openvino {openvino.get_version()} on the processor")

    @classmethod
    def package(cls, device: str) -> str:
        """Openvino; it serves one kind of device."""
        return "openvino"

    @classmethod
    def open(cls, plan: Plan, weights: Weights, placement: Placement) -> Self:
        """Build and compile the graph."""
        availability = cls.is_available(placement.device, placement.precision)
        if not availability.available:
            raise BackendUnavailable(f"openvino: {availability.reason}")
        try:
            return cls(plan, weights, placement)
        except (RuntimeError, MemoryError) as error:  # openvino's own exceptions are RuntimeErrors
            raise _ours("cannot compile the network", error) from error

    def answers(self, patches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The network's answer to each patch, in order. Who asks anew gives up what was asked before."""
        if not self._requests:
            raise BackendUnavailable("openvino: the backend was closed")
        self._give_up()
        idle, running = list(self._requests), deque[Any]()
        self._running = running
        for patch in patches:
            request = idle.pop()
            _start(request, patch)
            running.append(request)
            if not idle:
                yield _answer(running[0])
                idle.append(_answered(running))
        while running:
            yield _answer(running[0])
            _answered(running)

    def finish(self) -> None:
        """Wait for what is in flight; an answer that was given is there already."""
        for request in self._running:
            _finish(request)

    def close(self) -> None:
        """Let go of the compiled network."""
        self._give_up()
        self._requests = []

    def _give_up(self) -> None:
        """Wait for what whoever stopped half way has left in flight, for no request may be used before.

        Their iterator may live on, as a traceback keeps it; its next answer is an error.
        """
        self.finish()
        self._running.clear()


def _model(openvino: Any, plan: Plan, weights: Weights, placement: Placement) -> Any:
    from openvino import opset15

    net = plan.architecture
    image = opset15.parameter([1, plan.inputs, *plan.patch_size], np.float32)
    operations = _GraphOperations(net, weights, opset15)
    maps = features(net, operations, image)
    if placement.answer == "features":
        # The identity changes no value: the product writes the map channel by channel, as the sums need it, in less
        # time than the library takes to turn it.
        answer = operations.mixed(maps, np.eye(net.features[0], dtype=np.float32))
    elif placement.precision == "float32":
        answer = operations.head(maps, plan.outputs)
    else:  # a product in bfloat16 would round the logits twice, and turning them costs less there
        answer = head(net, plan.outputs, operations, maps)
    return openvino.Model([answer], [image], plan.dataset)


def _properties(placement: Placement) -> dict[str, str]:
    """Precision said aloud: on processors with bfloat16 units the default would be coarser than float32."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": str(placement.lanes),
        "INFERENCE_NUM_THREADS": str(placement.threads),
        "INFERENCE_PRECISION_HINT": _HINTS[placement.precision],
        "ENABLE_CPU_PINNING": "NO",
    }


def _start(request: Any, patch: torch.Tensor) -> None:
    try:
        torch.from_numpy(request.get_input_tensor().data)[0].copy_(patch)
        request.start_async()
    except (RuntimeError, MemoryError) as error:
        raise _ours("inference cannot start", error) from error


def _answer(request: Any) -> torch.Tensor:
    """The answer of a request, once it is there; the memory is the request's own."""
    try:
        request.wait()
    except (RuntimeError, MemoryError) as error:
        raise _ours("inference failed", error) from error
    return torch.from_numpy(request.get_output_tensor().data)[0]


def _answered(running: deque[Any]) -> Any:
    """The oldest request, whose answer was read; there is none where answers were asked for anew meanwhile."""
    if not running:
        raise BackendUnavailable("openvino: these answers were given up when others were asked for")
    return running.popleft()


def _finish(request: Any) -> None:
    """Wait for a request whose answer nobody wants, whatever it is."""
    try:
        request.wait()
    except (RuntimeError, MemoryError):
        return


def _ours(what: str, error: RuntimeError | MemoryError) -> EngineError:
    """An error of the library's in our words: a lack of memory is told apart, a smaller case may still have room."""
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return OutOfDeviceMemory(f"openvino: {what}: no room in memory: {_last_line(error)}")
    return BackendUnavailable(f"openvino: {what}: {_last_line(error)}")


def _last_line(error: RuntimeError | MemoryError) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
