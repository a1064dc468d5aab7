"""What every backend is: one network with one set of weights, opened on one device; patches in, answers out, closed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self, cast, get_args, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from engines.errors import BackendUnavailable
from engines.model.plan import Plan

Weights = Mapping[str, NDArray[np.float32]]
"""Tensors by their key in nnU-Net's checkpoint."""

Precision = Literal["float32", "float16", "bfloat16"]
"""In which a network multiplies; sums inside a layer may be wider."""

Answer = Literal["logits", "features"]
"""What is wanted of a network: logits, or the last feature map, which its head would make logits of."""

BackendName = Literal["torch", "openvino", "tensorrt"]


@dataclass(frozen=True, order=True)
class Engine:
    """A backend and the precision in which it multiplies: what is certified, chosen and written into results."""

    backend: BackendName
    precision: Precision = "float32"

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`openvino bfloat16`, as `str` writes it; `openvino` alone is in float32.

        Raises
        ------
        BackendUnavailable
            Where there is no such backend or precision.
        """
        backend, _, precision = text.strip().partition(" ")
        precision = precision.strip() or "float32"
        if backend not in get_args(BackendName):
            raise BackendUnavailable(f"{text}: there is no such backend; known: {', '.join(get_args(BackendName))}")
        if precision not in get_args(Precision):
            raise BackendUnavailable(f"{text}: there is no such precision; known: {', '.join(get_args(Precision))}")
        return cls(cast(BackendName, backend), cast(Precision, precision))


REFERENCE = Engine("torch", "float32")
"""What every other engine is held against; it may always serve."""


_LANES = 2
"""Each keeps its cores at work where the other's wait for each other between layers, and holds a patch's maps."""


@dataclass(frozen=True)
class Placement:
    """Where and how a backend shall run."""

    device: str = "cpu"
    """`cpu`, or a CUDA device as torch names it: `cuda`, `cuda:1`."""
    threads: int = 1
    """Processor threads that the backend may use."""
    batch: int = 1
    """Patches that are computed together on a card."""
    lanes: int = 1
    """Patches that are computed beside each other on a processor, each with its share of the threads."""
    precision: Precision = "float32"
    answer: Answer = "logits"
    cache: Path | None = None
    """Folder for what takes long to build and may be deleted at any time; None: nothing is kept."""

    @classmethod
    def told(cls, device: str = "auto", threads: int | None = None, cache: Path | None = None) -> Self:
        """What a person says, and what follows from it.

        Parameters
        ----------
        device
            `auto` is the processor: no card is taken unasked, since no path on a card has run yet.
        threads
            None or 0: as many as this process may run on.
        """
        count = threads or len(os.sched_getaffinity(0))
        lanes = 1 if count % _LANES else _LANES  # each gets as many threads as the other: of three, one would idle
        return cls("cpu" if device == "auto" else device, count, lanes=lanes, cache=cache)


@dataclass(frozen=True)
class Availability:
    """Whether this machine can run a backend, and why or why not, in words."""

    available: bool
    reason: str


class Backend(Protocol):
    """One network, ready to run. Calls release the interpreter while they compute."""

    name: str
    device: str
    """The device as a person knows it, such as the processor's name."""
    precision: Precision
    """In which the network really computes."""
    version: str
    """Library and version."""

    @classmethod
    def is_available(cls, device: str, precision: Precision = "float32") -> Availability:
        """Whether the backend can run on a device; imports its library, touches no driver that is not there."""
        ...

    @classmethod
    def package(cls, device: str) -> str:
        """The installed package that computes on a device; certificates are of one version of it."""
        ...

    @classmethod
    def open(cls, plan: Plan, weights: Weights, placement: Placement) -> Self:
        """Build the network.

        Raises
        ------
        BackendUnavailable
            Where the machine cannot run it.
        OutOfDeviceMemory
            Where the device cannot hold it.
        """
        ...

    def answers(self, patches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The network's answer to each patch, in order. Several may be taken and computed before the first is given.

        Parameters
        ----------
        patches
            float32, (C, *patch), normalised units; on the backend's device or the processor. May be overwritten once
            the next one is taken.

        Returns
        -------
        (K, *patch) for each: logits, K = plan.outputs, or features, K = plan.architecture.features[0]. float32 on a
        processor, float32 or float16 on a card; on the backend's device. Overwritten once the next one is asked for.

        Raises
        ------
        BackendUnavailable
            Where the library fails, or the backend was closed.
        OutOfDeviceMemory
            Where the device cannot hold the case.
        """
        ...

    def finish(self) -> None:
        """Wait until the device has computed what was asked: on a card an answer may be given before it is there."""
        ...

    def close(self) -> None:
        """Give back what the device holds."""
        ...


@runtime_checkable
class Compiler(Protocol):
    """A backend class whose networks are compiled for the device, and kept, before they can be opened at once."""

    def is_built(self, plan: Plan, weights: Weights, placement: Placement) -> bool:
        """Whether the placement's folder holds this network as this device and library need it."""
        ...

    def build(self, plan: Plan, weights: Weights, placement: Placement) -> None:
        """Compile the network and keep it, which takes from seconds to minutes. Releases the interpreter meanwhile.

        Raises
        ------
        BackendUnavailable
            Where the machine cannot run it, the library refuses it, or there is no folder to keep it in.
        OutOfDeviceMemory
            Where the device has no room to build it.
        """
        ...
