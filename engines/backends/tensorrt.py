"""TensorRT and TensorRT-RTX, on NVIDIA cards. It has never run on any: nothing takes it unless it is named."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import torch

from engines.backends.base import Availability, Placement, Precision, Weights
from engines.backends.batching import in_batches
from engines.backends.cuda_device import DRIVER, card_fault
from engines.backends.cuda_graph import captured
from engines.backends.onnx_graph import INPUT, GraphForm, GraphPrecision
from engines.backends.tensorrt_engine import (
    LIBRARIES,
    Card,
    Library,
    build,
    engine_path,
    import_libraries,
    keep,
    logger_of,
    network_digest,
    remove_superseded,
    timing_path,
)
from engines.errors import BackendUnavailable, OutOfDeviceMemory
from engines.model.plan import Plan

_TYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}


class TensorRtBackend:
    """The network as an engine that was built for this card, run as one CUDA graph where the library allows it."""

    name = "tensorrt"

    def __init__(self, plan: Plan, weights: Weights, placement: Placement, library: Library) -> None:
        self.version, self.precision = library.version, placement.precision
        self._target = torch.device(placement.device)
        self.device = torch.cuda.get_device_name(self._target)
        order = _Order(library, plan, weights, placement)
        kind, shape = _TYPES[placement.precision], (placement.batch, plan.inputs, *plan.patch_size)
        outputs = plan.outputs if placement.answer == "logits" else plan.architecture.features[0]
        with torch.cuda.device(self._target):
            self._run: _Run | None = _Run(library, order.engine)
            self._images = torch.zeros(shape, dtype=kind, device=self._target)
            answer = torch.empty((placement.batch, outputs, *plan.patch_size), dtype=kind, device=self._target)
            self._compute = self._run.bound(self._images, answer, order.form.answer)

    @classmethod
    def is_available(cls, device: str, precision: Precision = "float32") -> Availability:
        """On a card that an installed library serves. The driver is looked for before any TensorRT is imported."""
        if not device.startswith("cuda"):
            return Availability(False, f"serves NVIDIA cards only, not {device}")
        if precision not in _TYPES:
            return Availability(False, f"multiplies in {' or '.join(_TYPES)}, not in {precision}")
        if (fault := card_fault(device)) is not None:
            return Availability(False, fault)
        library, reason = _library_for(_card(device))
        return Availability(library is not None, f"{reason} on {torch.cuda.get_device_name(device)}")

    @classmethod
    def package(cls, device: str) -> str:
        """The library that serves the device; the first of the two where none does."""
        if not device.startswith("cuda") or card_fault(device) is not None:
            return LIBRARIES[0]
        library, _ = _library_for(_card(device))
        return LIBRARIES[0] if library is None else library.name

    @classmethod
    def is_built(cls, plan: Plan, weights: Weights, placement: Placement) -> bool:
        """Whether the cache folder holds the engine for this card, library and driver."""
        path = _Order(_library(placement), plan, weights, placement).path
        return path is not None and path.is_file()

    @classmethod
    def build(cls, plan: Plan, weights: Weights, placement: Placement) -> None:
        """Build the engine and keep it; where a card serves meanwhile, what the builder measures on it is rougher."""
        order = _Order(_library(placement), plan, weights, placement)
        if order.path is None:
            raise BackendUnavailable("tensorrt: there is no folder to keep an engine in")
        try:
            order.engine(anew=True)
        except torch.OutOfMemoryError as error:
            raise OutOfDeviceMemory(f"{placement.device}: no room to build an engine") from error

    @classmethod
    def open(cls, plan: Plan, weights: Weights, placement: Placement) -> Self:
        """Take the engine from the cache folder, or build it, which takes from seconds to minutes."""
        library = _library(placement)
        try:
            return cls(plan, weights, placement, library)
        except torch.OutOfMemoryError as error:
            raise OutOfDeviceMemory(f"{placement.device}: no room for batches of {placement.batch}") from error

    def answers(self, patches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The network's answer to each patch, in order; on torch's current stream."""
        if self._run is None:
            raise BackendUnavailable("tensorrt: the backend was closed")
        yield from in_batches(patches, self._images, self._compute)

    def finish(self) -> None:
        """Wait for torch's current stream."""
        torch.cuda.current_stream(self._target).synchronize()

    def close(self) -> None:
        """Let go of engine and buffers."""
        if self._run is not None:
            self._run = None
            del self._compute, self._images
            torch.cuda.empty_cache()


@dataclass(frozen=True, eq=False)
class _Order:
    """One network as it shall be built, and where that is kept."""

    library: Library
    plan: Plan
    weights: Weights
    placement: Placement

    @property
    def form(self) -> GraphForm:
        """As a graph, of a fixed batch; instance norms in float32."""
        told = self.placement
        return GraphForm(cast(GraphPrecision, told.precision), "float32", told.batch, told.answer)

    @cached_property
    def path(self) -> Path | None:
        """The engine's file; None where nothing is kept."""
        if (folder := self.placement.cache) is None:
            return None
        digest = network_digest(self.plan, self.weights)
        return engine_path(folder, self.library, _card(self.placement.device), self.form, digest)

    def engine(self, anew: bool) -> bytes:
        """The engine's bytes; with `anew`, built again although the folder has one."""
        card = _card(self.placement.device)
        if self.path is None:
            return build(self.library, self.plan, self.weights, self.form, card=card)
        if anew or not self.path.is_file():
            timing = timing_path(self.path.parent, self.library, card)
            keep(self.path, build(self.library, self.plan, self.weights, self.form, card=card, timing=timing))
            remove_superseded(self.path)
        return self.path.read_bytes()


class _Run:
    """An engine on the card, ready to be called."""

    def __init__(self, library: Library, engine: Callable[[bool], bytes]) -> None:
        self._library, self._logger = library, logger_of(library)
        self._runtime = library.module.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine(False))
        if self._engine is None:  # a kept one that this library no longer reads
            self._engine = self._runtime.deserialize_cuda_engine(engine(True))
        if self._engine is None:
            raise BackendUnavailable(f"{library.version}: the engine cannot be loaded: {self._fault()}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise OutOfDeviceMemory(f"{library.version}: no room to run the engine: {self._fault()}")

    def bound(self, images: torch.Tensor, answer: torch.Tensor, name: str) -> Callable[[], torch.Tensor]:
        """One call of the engine over fixed buffers."""
        self._context.set_tensor_address(INPUT, images.data_ptr())
        self._context.set_tensor_address(name, answer.data_ptr())

        def enqueue() -> torch.Tensor:
            if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise BackendUnavailable(f"{self._library.version}: inference failed: {self._fault()}")
            return answer

        enqueue()  # TensorRT-RTX compiles here
        torch.cuda.synchronize()
        asks: Any = getattr(self._context, "is_stream_capturable", lambda _: True)
        return captured(enqueue, images.device) if asks(torch.cuda.current_stream().cuda_stream) else enqueue

    def _fault(self) -> str:
        return "; ".join(self._logger.errors[-3:]) or "without a reason"


def _card(device: str) -> Card:
    major, minor = torch.cuda.get_device_capability(torch.device(device))
    version = ctypes.c_int()
    ctypes.CDLL(DRIVER).cuDriverGetVersion(ctypes.byref(version))
    return Card(torch.cuda.get_device_name(device), f"{major}{minor}", str(version.value))


def _library(placement: Placement) -> Library:
    """What serves the placement's card; raises BackendUnavailable where nothing does."""
    found = TensorRtBackend.is_available(placement.device, placement.precision)
    if not found.available:
        raise BackendUnavailable(f"tensorrt: {found.reason}")
    library, reason = _library_for(_card(placement.device))
    if library is None:
        raise BackendUnavailable(f"tensorrt: {reason}")
    return library


def _library_for(card: Card) -> tuple[Library | None, str]:
    """The first library that serves the card, and its version; or None, and what was said of each."""
    libraries, said = import_libraries()
    for library in libraries:
        if library.serves(card.capability):
            return library, library.version
        said.append(f"{library.version} builds nothing for compute capability {card.capability}")
    return None, "; ".join(said)
