"""A model, open on a device: images in, a label map on the same grid out, and how it was made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from engines.backends.base import Availability, Backend, Engine, Placement
from engines.backends.catalogue import backend_class
from engines.backends.faults import ours
from engines.errors import BackendUnavailable, UnsuitableVolume
from engines.inference.arithmetic import Arithmetic, DeviceArithmetic, HostArithmetic, Rule
from engines.inference.estimate import Estimate, Frame, estimate, network_shape, patches_of
from engines.inference.labelling import Source, label_volume
from engines.inference.members import OpenMember, close_members, open_member
from engines.inference.memory import Need, Way, ways_of
from engines.inference.passage import Clock, Passage, frame_of
from engines.inference.postprocessing import postprocess
from engines.inference.sliding_window import Plane, ended, planes
from engines.model.bundle import Bundle
from engines.preprocessing.preprocess import NetworkInput
from engines.volume import Grid, LabelMap, Volume

# Torch reads it when it first asks for memory: large pages, which take a fifth of the time to get from the system.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map, and how it was made."""

    label_map: LabelMap
    backend: str
    precision: str
    device: str
    backend_reason: str
    """Why this engine was taken, and what was said of each that was tried before it."""
    way: str
    """Where the sums were held, and of what."""
    versions: str
    """Of the backend's library and of torch."""
    seconds: Mapping[str, float]
    """Wall clock of each stage: preprocess, network, labels, total."""


class Segmenter:
    """One bundle, resident on one device. One case at a time; not to be called from two threads at once."""

    def __init__(self, bundle: Bundle, engine: Engine, members: Sequence[OpenMember], placement: Placement) -> None:
        self.bundle = bundle
        self.engine = engine
        self.reason = f"{engine}: self-test passed"
        self._members = {each.member.name: each for each in members}
        self._placement = placement
        self._host = HostArithmetic(placement.threads)
        self.seconds_per_patch = {each.member.name: each.tested_s for each in members}
        """Of each member: of its self-test, then of the last case."""

    @classmethod
    def open(cls, bundle: Bundle, engine: Engine, placement: Placement | None = None) -> Self:
        """Open a bundle with one engine, and let it pass the bundle's self-test.

        Parameters
        ----------
        placement
            None: the processor, and as many threads as this process may run on.

        Raises
        ------
        BackendUnavailable
            Where the engine cannot run here, or fails the self-test, with the reason.
        OutOfDeviceMemory
            Where device or host have no room for it.
        BundleError
            Where the weights do not fit the plan.
        """
        placement = replace(placement or Placement.told(), precision=engine.precision)
        torch.set_num_threads(placement.threads)  # resampling and sums use torch, whatever runs the network
        found = backend_class(engine.backend).is_available(placement.device, engine.precision)
        if not found.available:
            raise BackendUnavailable(f"{engine}: {found.reason}")
        opened: list[OpenMember] = []
        try:
            for member in bundle.members:
                with ours(engine, "open it"):
                    opened.append(open_member(member, engine, placement))
        except BaseException:
            close_members(opened)
            raise
        return cls(bundle, engine, opened, placement)

    def segment(
        self, images: Volume | Sequence[Volume], progress: Callable[[float], None] | None = None
    ) -> Segmentation:
        """Label every voxel of a volume.

        Parameters
        ----------
        images
            One volume for each channel of the model, in its order, all on one grid.
        progress
            Told the share of the networks' work done, 0 to 1.

        Raises
        ------
        UnsuitableVolume
            Where voxels are not finite or all alike, images are too few or on different grids, the modality is not
            the model's, or the model's frame cannot be reached from the volume's.
        OutOfDeviceMemory
            Where the device, or the host's memory, cannot hold the case.
        BackendUnavailable
            Where the engine fails in the middle of it, unless it is the reference, whose faults fly as they are.
        """
        channels = (images,) if isinstance(images, Volume) else tuple(images)
        _check(channels, self.bundle)
        passage = Passage(
            channels, self.bundle, Clock(), progress, self._costs(frame_of(channels[0].grid, self.bundle))
        )
        labels: dict[str, NDArray[np.integer]] = {}
        with ours(self.engine, f"segment a volume of {channels[0].grid.shape}"):
            for member in self.bundle.members:
                if member not in self.bundle.averaged:
                    labels[member.name] = self._labels([self._members[member.name]], passage, labels)
            found = self._labels([self._members[each.name] for each in self.bundle.averaged], passage, labels)
        with passage.clock.stage("labels"):
            back = postprocess(np.ascontiguousarray(passage.turn.undo(found)), self.bundle.postprocessing)
        return self._described(channels[0], back, passage)

    def estimate(self, grid: Grid) -> Estimate:
        """What a case on this grid will take, beyond its volume."""
        windowings = {name: each.windowing for name, each in self._members.items()}
        frame = frame_of(grid, self.bundle)
        return estimate(self.bundle, frame, windowings, self._placement, self.seconds_per_patch)

    def close(self) -> None:
        """Give back what the device holds."""
        close_members(self._members.values())
        self._host.pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _labels(
        self, members: Sequence[OpenMember], passage: Passage, earlier: Mapping[str, NDArray[np.integer]]
    ) -> NDArray[np.integer]:
        """The labels of members together, in the frame of the networks, (D, H, W)."""
        plan, frame = members[0].member.plan, passage.frame
        needs = [Need(each.windowing, network_shape(each.member.plan, frame), len(each.networks)) for each in members]
        ways = ways_of(needs, 4 * prod(frame.shape), self._placement.device)
        passage.ways.extend(ways)
        on_host = ways[0].device == "cpu"
        arithmetic: Arithmetic = self._host if on_host else DeviceArithmetic()
        with passage.clock.stage("preprocess"):
            inputs = [passage.network_input(each, earlier, ways[0].device) for each in members]
        with passage.clock.stage("labels"), torch.inference_mode(), ExitStack() as streams, self._threads_of_torch():
            sources = [
                self._source(each, seen, way, passage, streams)
                for each, seen, way in zip(members, inputs, ways, strict=True)
            ]
            kept = label_volume(sources, Rule(plan.region_order), arithmetic, max(plan.labels))
            return inputs[0].uncropped(kept)

    @contextmanager
    def _threads_of_torch(self) -> Iterator[None]:
        """One while another library computes the next patch: more would only wait for each other."""
        threads = self._placement.threads
        torch.set_num_threads(threads if self.engine.backend == "torch" else 1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _source(self, opened: OpenMember, seen: NetworkInput, way: Way, passage: Passage, streams: ExitStack) -> Source:
        windowing = replace(opened.windowing, device=way.device, pinned=way.pinned)
        stream = planes(seen.image, opened.networks, windowing, passage.told(opened.member.name))
        timed = streams.enter_context(ended(self._timed(opened, seen, stream, passage.clock)))
        halved = opened.member.plan.logit_resampling.function == "resample_data_or_seg_to_shape"
        head = None if opened.head is None else opened.head.on(way.device)
        return Source(timed, seen.taps(), halved, head, opened.folds)

    def _timed(self, opened: OpenMember, seen: NetworkInput, stream: Iterator[Plane], clock: Clock) -> Iterator[Plane]:
        """The planes; what they took counts as the network's, and as what a patch of this member takes."""
        begin, handed = clock.spent.get("network", 0.0), 0
        try:
            for plane in clock.timed("network", stream):
                handed += 1
                yield plane
        finally:  # whoever reads the last plane asks for no further one
            whole = handed == seen.image.shape[1]
            if whole and len(self.bundle.averaged) == 1:  # members of an ensemble take turns, and share the clock
                patches = patches_of(opened.member, seen.image.shape)
                self.seconds_per_patch[opened.member.name] = (clock.spent["network"] - begin) / patches

    def _costs(self, frame: Frame) -> dict[str, float]:
        """Of each member, for progress."""
        return {
            each.name: float(patches_of(each, network_shape(each.plan, frame)) * prod(each.plan.patch_size))
            for each in self.bundle.members
        }

    def _described(self, volume: Volume, labels: NDArray[np.integer], passage: Passage) -> Segmentation:
        first = next(iter(self._members.values())).networks[0]
        return Segmentation(
            label_map=LabelMap(volume.grid, labels, self.bundle.labels),  # type: ignore[arg-type]  # it checks
            backend=first.name,
            precision=first.precision,
            device=first.device,
            backend_reason=self.reason,
            way="; ".join(dict.fromkeys(str(way) for way in passage.ways)),
            versions=_versions(first),
            seconds=passage.clock.seconds(),
        )


def availability(engine: Engine, device: str = "auto") -> Availability:
    """Whether this machine can run an engine on a device, and why or why not."""
    return backend_class(engine.backend).is_available(Placement.told(device).device, engine.precision)


def _check(images: Sequence[Volume], bundle: Bundle) -> None:
    if len(images) != len(bundle.channels):
        wanted = ", ".join(bundle.channels)
        raise UnsuitableVolume(f"{bundle.name} needs {len(bundle.channels)} images ({wanted}), not {len(images)}")
    alike: list[bool] = []
    for name, volume in zip(bundle.channels, images, strict=True):
        which = f"image {name}: " if len(images) > 1 else ""
        if not volume.grid.same_as(images[0].grid):
            raise UnsuitableVolume(f"{which}does not lie on the grid of the first image")
        if volume.modality not in bundle.modalities:
            raise UnsuitableVolume(f"{bundle.name} was made for {', '.join(bundle.modalities)}, not {volume.modality}")
        # One of them is NaN where any voxel is.
        least, most = float(volume.voxels.min()), float(volume.voxels.max())
        if not (np.isfinite(least) and np.isfinite(most)):
            raise UnsuitableVolume(f"{which}the volume holds voxels that are not finite")
        alike.append(least == most)
    if all(alike):  # of several images one may be empty: a map in which nothing was found
        raise UnsuitableVolume(f"the volume is empty: every voxel is {float(images[0].voxels.flat[0]):g}")


def _versions(network: Backend) -> str:
    torch_version = f"torch {torch.__version__}"
    return network.version if network.version == torch_version else f"{network.version}, {torch_version}"
