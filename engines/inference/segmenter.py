"""A model, open on a device: images in, a label map on the same grid out, and how it was made."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from engines.backends.base import Answer, Availability, Backend, Engine, Placement, Precision, Weights
from engines.backends.catalogue import backend_class
from engines.errors import BackendUnavailable, OutOfDeviceMemory, UnsuitableVolume
from engines.inference.arithmetic import Arithmetic, DeviceArithmetic, Head, HostArithmetic, Rule
from engines.inference.estimate import Estimate, Frame, estimate
from engines.inference.labelling import Source, label_volume
from engines.inference.memory import Way, way_of
from engines.inference.postprocessing import postprocess
from engines.inference.sliding_window import Plane, Windowing, planes, window_count
from engines.model.bundle import Bundle, Member, ParityCrop
from engines.model.network import head_key
from engines.model.plan import Plan
from engines.preprocessing.preprocess import NetworkInput, preprocess
from engines.volume import Grid, LabelMap, Reorientation, Volume

_T = TypeVar("_T")

# Torch reads it when it first asks for memory: large pages, which take a fifth of the time to get from the system.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@dataclass(frozen=True)
class Tolerance:
    """How far a backend's answer on the parity crop may lie from the stored one."""

    error: float
    """Largest error of a logit, in standard deviations of the crop's logits."""
    agreement: float
    """Least share of the crop's voxels whose largest class is the reference's."""


TOLERANCES: Mapping[Precision, Tolerance] = MappingProxyType(
    {"float32": Tolerance(0.01, 0.999), "float16": Tolerance(0.5, 0.97), "bfloat16": Tolerance(0.5, 0.97)}
)
"""The self-test finds what is broken. Whether 16 bits are enough for a model, its certificate says."""


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


@dataclass(frozen=True, eq=False)
class OpenMember:
    """A member with its networks, one for each fold, and what makes logits of what they answer."""

    member: Member
    networks: tuple[Backend, ...]
    answer: Answer
    head: Head | None
    """Where features are summed."""
    tested_s: float = 0.0
    """What the self-test's patch took."""

    @property
    def windowing(self) -> Windowing:
        """How the networks are moved."""
        plan = self.member.plan
        features = self.answer == "features"
        channels = plan.architecture.features[0] if features else plan.outputs
        return Windowing(plan.patch_size, channels, self.member.mirroring_axes, side_by_side=features)


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
            Device, threads, batch and lanes; None: the processor, and as many threads as this process may run on.

        Raises
        ------
        BackendUnavailable
            Where the engine cannot run here, or fails the self-test, with the reason.
        BundleError
            Where the weights do not fit the plan.
        """
        placement = replace(placement or Placement(threads=usable_threads()), precision=engine.precision)
        torch.set_num_threads(placement.threads)  # resampling and sums use torch, whatever runs the network
        found = backend_class(engine.backend).is_available(placement.device, engine.precision)
        if not found.available:
            raise BackendUnavailable(f"{engine}: {found.reason}")
        opened: list[OpenMember] = []
        try:
            for member in bundle.members:
                opened.append(_opened(member, engine, placement))
                opened[-1] = _self_tested(opened[-1], engine)
        except BaseException:
            _close(opened)
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
        """
        channels = (images,) if isinstance(images, Volume) else tuple(images)
        _check(channels, self.bundle)
        torch.set_num_threads(self._placement.threads)
        case = _Case(channels, self.bundle, _Clock(), progress, self._placement.device)
        labels: dict[str, NDArray[np.integer]] = {}
        try:
            for member in self.bundle.members:
                if member not in self.bundle.averaged:
                    labels[member.name] = self._labels([self._members[member.name]], case, labels)
            found = self._labels([self._members[each.name] for each in self.bundle.averaged], case, labels)
        except (MemoryError, RuntimeError) as error:
            if not _no_room(error):
                raise
            raise OutOfDeviceMemory(f"no room in memory for a case of {channels[0].grid.shape}: {error}") from error
        with case.clock.stage("labels"):
            back = postprocess(np.ascontiguousarray(case.turn.undo(found)), self.bundle.postprocessing)
        return self._described(channels[0], back, case)

    def estimate(self, grid: Grid) -> Estimate:
        """What a case on this grid will take, beyond its volume."""
        codes = grid.axis_codes
        turned = Reorientation.between(codes, self.bundle.orientation or codes).grid(grid)
        windowings = {name: each.windowing for name, each in self._members.items()}
        return estimate(
            self.bundle, Frame(turned.shape, turned.spacing_mm), windowings, self._placement, self.seconds_per_patch
        )

    def close(self) -> None:
        """Give back what the device holds."""
        _close(list(self._members.values()))
        self._host.pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _labels(
        self, members: Sequence[OpenMember], case: _Case, earlier: Mapping[str, NDArray[np.integer]]
    ) -> NDArray[np.integer]:
        """The labels of members together, in the frame of the networks, (D, H, W)."""
        plan = members[0].member.plan
        with case.clock.stage("preprocess"):
            inputs = [case.network_input(each, earlier) for each in members]
        ways = [
            way_of(each.windowing, seen.image.shape, len(each.networks), self._placement.device)
            for each, seen in zip(members, inputs, strict=True)
        ]
        case.ways.extend(ways)
        on_host = all(way.device == "cpu" for way in ways)
        arithmetic: Arithmetic = self._host if on_host else DeviceArithmetic()
        sources = [self._source(each, seen, way, case) for each, seen, way in zip(members, inputs, ways, strict=True)]
        with case.clock.stage("labels"), torch.inference_mode():
            kept = label_volume(sources, Rule(plan.region_order), arithmetic, max(plan.labels))
            return inputs[0].uncropped(kept)

    def _source(self, opened: OpenMember, seen: NetworkInput, way: Way, case: _Case) -> Source:
        windowing = replace(opened.windowing, device=way.device)
        told = case.told(opened, seen)
        stream = planes(seen.image.to(way.device), opened.networks, windowing, told)
        halved = opened.member.plan.logit_resampling.function == "resample_data_or_seg_to_shape"
        head = None if opened.head is None else opened.head.on(way.device)
        return Source(self._timed(opened, stream, case), seen.taps(), halved, head)

    def _timed(self, opened: OpenMember, stream: Iterator[Plane], case: _Case) -> Iterator[Plane]:
        """The planes; what they took counts as the network's, and as what a patch of this member takes."""
        name, begin = opened.member.name, case.clock.spent.get("network", 0.0)
        yield from case.clock.timed("network", stream)
        patches = case.patches.get(name, 0)
        if patches and len(self.bundle.averaged) == 1:  # members of an ensemble take turns, and share the clock
            self.seconds_per_patch[name] = (case.clock.spent["network"] - begin) / patches

    def _described(self, volume: Volume, labels: NDArray[np.integer], case: _Case) -> Segmentation:
        first = next(iter(self._members.values())).networks[0]
        return Segmentation(
            label_map=LabelMap(volume.grid, labels, self.bundle.labels),  # type: ignore[arg-type]  # it checks
            backend=first.name,
            precision=first.precision,
            device=first.device,
            backend_reason=self.reason,
            way="; ".join(dict.fromkeys(str(way) for way in case.ways)),
            versions=_versions(first),
            seconds=case.clock.seconds(),
        )


def usable_threads() -> int:
    """As many as this process may run on."""
    return len(os.sched_getaffinity(0))


def availability(engine: Engine, device: str = "auto") -> Availability:
    """Whether this machine can run an engine on a device, and why or why not."""
    return backend_class(engine.backend).is_available(device_of(device), engine.precision)


def device_of(told: str) -> str:
    """`auto` is the processor: no card is taken unasked, since no path on a card has run yet."""
    return "cpu" if told == "auto" else told


def open_first(bundle: Bundle, engines: Sequence[str], device: str = "auto", threads: int | None = None) -> Segmenter:
    """Open a bundle with the first engine of a list that can run here and passes the self-test.

    Raises
    ------
    BackendUnavailable
        Where none serves, with the reason of each.
    """
    said: list[str] = []
    placement = Placement(device_of(device), threads or usable_threads())
    for name in engines:
        try:
            segmenter = Segmenter.open(bundle, Engine.parse(name), placement)
        except BackendUnavailable as error:
            said.append(str(error))
            continue
        segmenter.reason = "; ".join([*said, segmenter.reason])
        return segmenter
    raise BackendUnavailable(f"no backend serves {bundle.name}: {'; '.join(said) or 'the list is empty'}")


def disagreement(opened: OpenMember, crop: ParityCrop) -> str | None:
    """How a member's answer on its parity crop differs from the stored one by more than it may; None where not."""
    network = opened.networks[0]
    tensor = next(network.answers([torch.from_numpy(crop.image)])).float().cpu()
    if opened.answer == "features":
        head = _head(opened.member.plan, [opened.member.weights(opened.member.folds[0])])
        tensor = (head.matrix @ tensor.flatten(1) + head.bias[:, None]).reshape(-1, *tensor.shape[1:])
    answer = tensor.numpy()[(slice(None), *(slice(None, None, crop.step),) * (tensor.ndim - 1))]
    error = float(np.abs(answer - crop.logits).max()) / max(float(crop.logits.std()), 1e-12)
    agreement = float((answer.argmax(axis=0) == crop.logits.argmax(axis=0)).mean())
    # Written so that an answer which is not a number fails too.
    allowed = TOLERANCES[network.precision]
    if error <= allowed.error and agreement >= allowed.agreement:
        return None
    return f"self-test failed: logits off by {error:.2g} standard deviations, {100 * agreement:.2f} % of classes equal"


def _self_tested(opened: OpenMember, engine: Engine) -> OpenMember:
    begin = time.monotonic()
    if fault := disagreement(opened, opened.member.parity()):
        raise BackendUnavailable(f"{engine}: {fault}")
    return replace(opened, tested_s=time.monotonic() - begin)


def _opened(member: Member, engine: Engine, placement: Placement) -> OpenMember:
    """Sums of features instead of logits where they are fewer: the head is one matrix, and sums are linear."""
    plan, weights = member.plan, [member.weights(fold) for fold in member.folds]
    answer: Answer = "features" if plan.architecture.features[0] * len(weights) < plan.outputs else "logits"
    networks: list[Backend] = []
    try:
        for tensors in weights:
            networks.append(backend_class(engine.backend).open(plan, tensors, replace(placement, answer=answer)))
    except BaseException:
        for network in networks:
            network.close()
        raise
    head = _head(plan, weights) if answer == "features" else None
    return OpenMember(member, tuple(networks), answer, head)


def _head(plan: Plan, folds: Sequence[Weights]) -> Head:
    """Of folds side by side: the mean of their logits."""
    key = head_key(plan.architecture)
    matrices = [torch.from_numpy(each[f"{key}.weight"].reshape(plan.outputs, -1)) for each in folds]
    biases = [torch.from_numpy(each[f"{key}.bias"]) for each in folds]
    return Head(torch.cat(matrices, dim=1) / len(folds), torch.stack(biases).mean(0))


def _close(members: Sequence[OpenMember]) -> None:
    for each in members:
        for network in each.networks:
            network.close()


def _check(images: Sequence[Volume], bundle: Bundle) -> None:
    if len(images) != len(bundle.channels):
        wanted = ", ".join(bundle.channels)
        raise UnsuitableVolume(f"{bundle.name} needs {len(bundle.channels)} images ({wanted}), not {len(images)}")
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
        if least == most:
            raise UnsuitableVolume(f"{which}the volume is empty: every voxel is {least:g}")


def _no_room(error: Exception) -> bool:
    """Whether memory was asked for in vain; torch's allocator for the processor has no error class of its own."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _versions(network: Backend) -> str:
    torch_version = f"torch {torch.__version__}"
    return network.version if network.version == torch_version else f"{network.version}, {torch_version}"


@dataclass
class _Clock:
    """Seconds of each stage; a stage inside another is not counted twice."""

    started: float = field(default_factory=time.monotonic)
    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside, less the stages in it."""
        begin, before = time.monotonic(), sum(self.spent.values())
        yield
        inside = sum(self.spent.values()) - before
        self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - begin - inside

    def timed(self, name: str, items: Iterator[_T]) -> Iterator[_T]:
        """The items, and what it takes to make each."""
        while True:
            with self.stage(name):
                item = next(items, None)
            if item is None:
                return
            yield item

    def seconds(self) -> Mapping[str, float]:
        """Every stage, and the total."""
        return MappingProxyType({**self.spent, "total": time.monotonic() - self.started})


@dataclass
class _Case:
    """One case on its way: what was given, what was taken, how far it is."""

    images: Sequence[Volume]
    bundle: Bundle
    clock: _Clock
    progress: Callable[[float], None] | None
    device: str
    ways: list[Way] = field(default_factory=list)
    done: dict[str, float] = field(default_factory=dict)
    """Of each member's windows, the share that is done."""
    weights: dict[str, float] = field(default_factory=dict)
    """Voxels that each member's networks see in all."""
    patches: dict[str, int] = field(default_factory=dict)
    """That each member's networks see in all."""

    @property
    def turn(self) -> Reorientation:
        """From the images' frame to the networks'."""
        codes = self.images[0].grid.axis_codes
        return Reorientation.between(codes, self.bundle.orientation or codes)

    def network_input(self, opened: OpenMember, earlier: Mapping[str, NDArray[np.integer]]) -> NetworkInput:
        """What a member's networks see."""
        turn, stage = self.turn, opened.member.previous_stage
        spacing = turn.grid(self.images[0].grid).spacing_mm
        turned = [turn.apply(volume.voxels) for volume in self.images]
        channels = turned[0][None] if len(turned) == 1 else np.stack(turned)
        previous = None if stage is None else earlier[stage]
        return preprocess(channels, spacing, opened.member.plan, previous, self.device)

    def told(self, opened: OpenMember, seen: NetworkInput) -> Callable[[float], None] | None:
        """Progress of one member, as a share of all members' windows as far as they are known."""
        name, windowing = opened.member.name, opened.windowing
        windows = window_count(seen.image.shape[1:], windowing.patch)
        self.patches[name] = windows * len(opened.networks) * len(windowing.flips)
        self.weights[name] = float(self.patches[name] * np.prod(windowing.patch))
        whole = self.progress
        if whole is None:
            return None

        def tell(share: float) -> None:
            self.done[name] = share
            total = sum(self.weights.values()) / len(self.weights) * len(self.bundle.members)
            whole(min(1.0, sum(self.weights[each] * part for each, part in self.done.items()) / total))

        return tell
