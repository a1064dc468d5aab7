"""An engine on trial: how fast it answers, and how near its masks lie to the reference's."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import repeat
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engines.backends.base import REFERENCE, Backend, Engine, Placement
from engines.backends.catalogue import backend_class
from engines.backends.faults import ours
from engines.errors import UnsuitableVolume
from engines.inference.cases import only_or_all
from engines.inference.estimate import Estimate
from engines.inference.segmenter import Segmentation
from engines.model.bundle import Bundle, Member
from engines.model.certificate import (
    PATH_REVISION,
    Certificate,
    EngineKey,
    Limits,
    VolumeAgreement,
    agreement,
    certify,
    refused,
)
from engines.volume import Grid, Volume

_MEASURED_S = 0.3
"""A small network is asked again until so much time has passed."""


class OpenSegmenter(Protocol):
    """A model open with one engine: `Segmenter`, as far as a trial needs it."""

    def segment(
        self, volume: Volume | Sequence[Volume], progress: Callable[[float], None] | None = None
    ) -> Segmentation:
        """Label every voxel."""
        ...

    def estimate(self, grid: Grid) -> Estimate:
        """What a case on this grid will take."""
        ...

    def close(self) -> None:
        """Give back what the device holds."""
        ...


@dataclass(frozen=True, eq=False)
class Answered:
    """A volume, all its channels, and the reference's label map of it."""

    volumes: tuple[Volume, ...]
    labels: NDArray[np.integer]


@dataclass(frozen=True)
class Trial:
    """What was measured on a bundle's parity crops."""

    seconds_per_patch: float
    """For one patch through every network of the bundle: the best of several, as others may be at work here too."""
    logits_error: float
    """Largest error of a logit, in standard deviations of the reference's logits."""


def engine_key(bundle: Bundle, engine: Engine, device: str) -> EngineKey:
    """What records of this engine, on this machine, are filed under."""
    version = library_version(engine.backend, device)
    return EngineKey(bundle.digest, engine.backend, engine.precision, version, device_name(device), PATH_REVISION)


def library_version(backend: str, device: str = "cpu") -> str:
    """Name and version of the package that computes on a device; what a torch was built for is left out."""
    package = backend_class(backend).package(device)
    try:
        return f"{package} {metadata.version(package).partition('+')[0]}"
    except metadata.PackageNotFoundError:
        return package


def device_name(device: str) -> str:
    """`cpu x86_64`; or the name of a card where torch finds this one: a card that is gone has none but the device's."""
    if device.startswith("cuda") and (torch.device(device).index or 0) < torch.cuda.device_count():
        return str(torch.cuda.get_device_name(torch.device(device)))
    return f"cpu {platform.machine()}" if device == "cpu" else device


def reference_name() -> str:
    """The reference and its version, as certificates name it."""
    return f"{REFERENCE} {library_version(REFERENCE.backend).removeprefix('torch ')}"


def measure(bundle: Bundle, engine: Engine, placement: Placement) -> Trial:
    """Open an engine's networks one after the other, the first fold of each member, and ask each its parity crop.

    Raises
    ------
    BackendUnavailable
        Where the machine cannot run it.
    OutOfDeviceMemory
        Where the device cannot hold it.
    """
    placement = replace(placement, precision=engine.precision, answer="logits")
    seconds, error = 0.0, 0.0
    for member in bundle.members:
        weights = member.weights(member.folds[0])
        with ExitStack() as stack:
            stack.enter_context(ours(engine, "measure it"))
            backend = backend_class(engine.backend).open(member.plan, weights, placement)
            stack.callback(backend.close)
            own, off = _measured(backend, member, placement)
        seconds += own * len(member.folds) * 2 ** len(member.mirroring_axes)
        error = max(error, off)
    return Trial(seconds, error)


def _measured(backend: Backend, member: Member, placement: Placement) -> tuple[float, float]:
    crop = member.parity()
    image = torch.from_numpy(crop.image)
    error = crop.error(next(iter(backend.answers([image]))).float().cpu().numpy())
    group = placement.lanes * placement.batch
    _seconds(backend, image, group)  # the first try pays for what is made on first use
    begin, best = time.perf_counter(), float("inf")
    while not np.isfinite(best) or time.perf_counter() - begin < _MEASURED_S:
        best = min(best, _seconds(backend, image, group) / group)
    return best, error


def _seconds(backend: Backend, image: torch.Tensor, count: int) -> float:
    """How long it takes until so many answers are there, not only promised."""
    backend.finish()
    started = time.perf_counter()
    for _ in backend.answers(repeat(image, count)):
        pass
    backend.finish()
    return time.perf_counter() - started


def held_against_reference(
    bundle: Bundle,
    key: EngineKey,
    segmenter: OpenSegmenter,
    cases: Iterable[Answered],
    limits: Limits,
    *,
    error: float | None = None,
) -> Certificate:
    """The certificate of an engine that segments what torch in float32 segmented.

    Parameters
    ----------
    error
        Of its logits, where it was measured.
    """
    compared: list[VolumeAgreement] = []
    for case in cases:
        try:
            found = segmenter.segment(only_or_all(case.volumes)).label_map.labels
        except UnsuitableVolume as fault:  # the reference segmented it: this engine's answer is at fault
            return refused(bundle.name, key, reference_name(), limits, str(fault))
        compared.append(agreement(case.volumes, case.labels, found, bundle.labels))
    finite = error if error is not None and np.isfinite(error) else None
    return certify(bundle.name, key, reference_name(), limits, compared, logits_error=finite)
