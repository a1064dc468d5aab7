"""What every backend is: one network with one set of weights, opened on one device, called with patches, closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from engines.model.plan import Plan

Weights = Mapping[str, NDArray[np.float32]]
"""Tensors by their key in nnU-Net's checkpoint."""


@dataclass(frozen=True)
class Placement:
    """Where and how a backend shall run."""

    device: str = "cpu"
    """`cpu`, or a CUDA device as torch names it: `cuda`, `cuda:1`."""
    threads: int = 1
    """Processor threads that the backend may use."""
    batch: int = 1
    """Patches in each call."""


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
    precision: str
    """In which the network really computes."""
    version: str
    """Library and version."""

    @classmethod
    def is_available(cls, device: str) -> Availability:
        """Whether the backend can run on a device; imports its library, touches no driver that is not there."""
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

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits of patches.

        Parameters
        ----------
        patches
            float32, (placement.batch, C, *patch), on the CPU, normalised units.

        Returns
        -------
        float32, (placement.batch, outputs, *patch), on the CPU; overwritten by the next call.

        Raises
        ------
        OutOfDeviceMemory
            Where the device cannot hold the case.
        """
        ...

    def close(self) -> None:
        """Give back what the device holds."""
        ...
