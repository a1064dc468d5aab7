"""A model, open on a device: volumes in, label maps on the same grid out, and how each was made."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np
import torch

from engines.backends.base import Availability, Backend, Placement
from engines.errors import BackendUnavailable, UnsuitableVolume
from engines.inference.postprocessing import postprocess
from engines.inference.sliding_window import Network, Windowing, predict
from engines.model.bundle import Bundle, ParityCrop
from engines.preprocessing.preprocess import preprocess
from engines.volume import LabelMap, Reorientation, Volume

LOGIT_TOLERANCE = 0.01
"""Largest error of a logit on the parity crop, in standard deviations of the crop's logits."""
CLASS_AGREEMENT = 0.999
"""Least share of the parity crop's voxels whose largest class is the reference's."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map, and how it was made."""

    label_map: LabelMap
    backend: str
    precision: str
    device: str
    backend_reason: str
    """Why this backend was taken, and what was said of each that was tried before it."""
    versions: str
    """Of the backend's library and of torch."""
    seconds: Mapping[str, float]
    """Wall clock of each stage: preprocess, network, labels, total."""


class Segmenter:
    """One bundle, resident on one device. One volume at a time; not to be called from two threads at once."""

    def __init__(self, bundle: Bundle, networks: Sequence[Backend], reason: str, threads: int) -> None:
        self.bundle = bundle
        self.backend_reason = reason
        self._networks = tuple(networks)
        self._threads = threads

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        backends: Sequence[str] = ("openvino", "torch"),
        device: str = "auto",
        threads: int | None = None,
    ) -> Self:
        """Open a bundle with the first backend of the list that can run here and passes the bundle's self-test.

        Parameters
        ----------
        device
            `cpu`, `cuda`, `cuda:N`; `auto` is the processor.
        threads
            Processor threads to use; None: as many as this process may run on.

        Raises
        ------
        BackendUnavailable
            Where none of the list serves, with the reason of each.
        BundleError
            Where the weights do not fit the plan.
        """
        threads = threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(threads)  # resampling and labels use torch, whatever runs the network
        placement = Placement("cpu" if device == "auto" else device, threads)
        said: list[str] = []
        for name in backends:
            networks = _open_tested(name, bundle, placement, said)
            if networks is not None:
                return cls(bundle, networks, "; ".join(said), threads)
        raise BackendUnavailable(f"no backend serves {bundle.name}: {'; '.join(said) or 'the list is empty'}")

    def segment(self, volume: Volume, progress: Callable[[float], None] | None = None) -> Segmentation:
        """Label every voxel of a volume.

        Parameters
        ----------
        progress
            Told the share of the network's work done, 0 to 1.

        Raises
        ------
        UnsuitableVolume
            Where voxels are not finite or all alike, the modality is not the model's, or the model's frame cannot be
            reached from the volume's.
        OutOfDeviceMemory
            Where the device, or the host's memory, cannot hold the case.
        """
        _check(volume, self.bundle)
        torch.set_num_threads(self._threads)
        clock = _Clock()
        turn = _reorientation(volume, self.bundle)
        with clock.stage("preprocess"):
            spacing = turn.grid(volume.grid).spacing_mm
            network_input = preprocess(turn.apply(volume.voxels), spacing, self.bundle.members[0].plan)
        with clock.stage("network"):
            logits = predict(network_input.image, [_each(n) for n in self._networks], self._windowing(), progress)
        with clock.stage("labels"):
            labels = np.ascontiguousarray(turn.undo(network_input.labels(logits)))
            labels = postprocess(labels, self.bundle.postprocessing)
        first = self._networks[0]
        return Segmentation(
            label_map=LabelMap(volume.grid, labels, self.bundle.labels),
            backend=first.name,
            precision=first.precision,
            device=first.device,
            backend_reason=self.backend_reason,
            versions=_versions(first),
            seconds=clock.seconds(),
        )

    def close(self) -> None:
        """Give back what the device holds."""
        for network in self._networks:
            network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _windowing(self) -> Windowing:
        member = self.bundle.members[0]
        return Windowing(member.plan.patch_size, member.plan.outputs, member.mirroring_axes)


def availability(name: str, device: str = "auto") -> Availability:
    """Whether this machine can run a backend on a device, and why or why not."""
    return _backend_class(name).is_available("cpu" if device == "auto" else device)


def disagreement(network: Backend, crop: ParityCrop) -> str | None:
    """How a backend's answer on the parity crop differs from the stored one by more than it may; None where not."""
    answer = next(network.answers([torch.from_numpy(crop.image)])).numpy()
    answer = answer[(slice(None), *(slice(None, None, crop.step),) * (answer.ndim - 1))]
    error = float(np.abs(answer - crop.logits).max()) / max(float(crop.logits.std()), 1e-12)
    agreement = float((answer.argmax(axis=0) == crop.logits.argmax(axis=0)).mean())
    # Written so that an answer which is not a number fails too.
    if error <= LOGIT_TOLERANCE and agreement >= CLASS_AGREEMENT:
        return None
    return f"self-test failed: logits off by {error:.2g} standard deviations, {100 * agreement:.2f} % of classes equal"


def _backend_class(name: str) -> type[Backend]:
    """A backend is imported when it is asked for, not before."""
    if name == "torch":
        from engines.backends.torch import TorchBackend

        return TorchBackend
    if name == "openvino":
        from engines.backends.openvino import OpenVinoBackend

        return OpenVinoBackend
    raise BackendUnavailable(f"{name}: there is no such backend; known: openvino, torch")


def _open_tested(name: str, bundle: Bundle, placement: Placement, said: list[str]) -> list[Backend] | None:
    """One open network for each fold, or None; either way what was found is added to `said`."""
    kind = _backend_class(name)
    found = kind.is_available(placement.device)
    if not found.available:
        said.append(f"{name}: {found.reason}")
        return None
    networks: list[Backend] = []
    try:
        member = bundle.members[0]
        for fold in member.folds:
            networks.append(kind.open(member.plan, member.weights(fold), placement))
        fault = disagreement(networks[0], member.parity())
    except BackendUnavailable as error:
        fault = str(error)
    if fault is None:
        said.append(f"{name}: {found.reason}, self-test passed")
        return networks
    for network in networks:
        network.close()
    said.append(f"{name}: {fault}")
    return None


def _check(volume: Volume, bundle: Bundle) -> None:
    voxels = volume.voxels
    if volume.modality not in bundle.modalities:
        raise UnsuitableVolume(f"{bundle.name} was made for {', '.join(bundle.modalities)}, not {volume.modality}")
    least, most = float(voxels.min()), float(voxels.max())  # one of them is NaN where any voxel is
    if not (np.isfinite(least) and np.isfinite(most)):
        raise UnsuitableVolume("the volume holds voxels that are not finite")
    if least == most:
        raise UnsuitableVolume(f"the volume is empty: every voxel is {least:g}")


def _each(network: Backend) -> Network:
    def call(patches: torch.Tensor) -> torch.Tensor:
        return next(network.answers([patches[0]]))[None]

    return call


def _reorientation(volume: Volume, bundle: Bundle) -> Reorientation:
    codes = volume.grid.axis_codes
    return Reorientation.between(codes, bundle.orientation or codes)


def _versions(network: Backend) -> str:
    torch_version = f"torch {torch.__version__}"
    return network.version if network.version == torch_version else f"{network.version}, {torch_version}"


@dataclass
class _Clock:
    """Seconds of each stage."""

    started: float = field(default_factory=time.monotonic)
    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside."""
        begin = time.monotonic()
        yield
        self.spent[name] = time.monotonic() - begin

    def seconds(self) -> Mapping[str, float]:
        """Every stage, and the total."""
        return MappingProxyType({**self.spent, "total": time.monotonic() - self.started})
