"""nnU-Net's sliding window: the same windows, the same Gaussian, sums in a ring of as many planes as a patch has.

Windows come in the order of the first axis, so a plane is final as soon as the last window that touches it is added.
It is handed on and its place in the ring is used again: memory does not grow with the length of the scan.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice, product
from typing import Protocol, TypeVar

import numpy as np
import torch
from scipy import ndimage

from engines.backends.faults import no_room
from engines.errors import OutOfDeviceMemory

STEP = 0.5
"""Distance of two windows, in patches."""
_PEAK = 10.0
"""Of the Gaussian; nnU-Net chose it so that float16 sums hold."""
_SLICES = 16
"""Slices whose windows are handed to a network of single slices at once."""

Window = tuple[slice, slice, slice]
_T = TypeVar("_T")


class Network(Protocol):
    """What is moved over the image: `engines.backends.base.Backend`."""

    def answers(self, patches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The answer to each patch, in order."""
        ...


@dataclass(frozen=True)
class Windowing:
    """How networks are moved over an image."""

    patch: tuple[int, ...]
    """Three numbers, or two for a network of single slices."""
    channels: int
    """Maps in an answer of one network."""
    kind: str = "logits"
    """What these are: `logits` or `features`."""
    mirroring_axes: tuple[int, ...] = ()
    """Axes of the patch over whose flips the answer is averaged."""
    sums: torch.dtype = torch.float32
    """float16 is nnU-Net's own choice."""
    side_by_side: bool = False
    """Whether each network has sums of its own, as features of several folds must; else their answers are added."""
    device: str = "cpu"
    """Where the sums lie."""
    pinned: bool = False
    """Whether they lie in memory of the host that a card can write to directly."""

    @property
    def patch_3d(self) -> tuple[int, int, int]:
        """A network of single slices has patches of one slice."""
        d, h, w = (1, *self.patch)[-3:]
        return d, h, w

    @property
    def open_planes(self) -> int:
        """Planes of sums that are open at once, in an image that has so many."""
        return _SLICES if len(self.patch) == 2 else self.patch[0]

    @property
    def flips(self) -> list[list[int]]:
        """Every combination of flipped axes, none first, as axes of (K, *patch)."""
        axes = self.mirroring_axes
        return [[a + 1 for a in chosen] for size in range(len(axes) + 1) for chosen in combinations(axes, size)]


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane of sums that no further window will touch. Valid until the next but one is asked for.

    Attributes
    ----------
    sums
        (K, H, W), float32 or float16: answers, each voxel by its weight; K maps, or K of each network side by side.
    weights
        (H, W), of the same type: by what to divide.
    """

    sums: torch.Tensor
    weights: torch.Tensor


def window_starts(size: int, patch: int) -> list[int]:
    """Where the windows of one axis begin: evenly spread, at most half a patch apart, rounded half to even."""
    count = int(np.ceil((size - patch) / (patch * STEP))) + 1
    return [int(np.round((size - patch) / (count - 1) * i)) if count > 1 else 0 for i in range(count)]


def windows(shape: Sequence[int], patch: Sequence[int]) -> list[Window]:
    """All windows of an image of at least the patch's size, first axis outermost; a 2D patch meets each slice alone."""
    depth, height, width = (1, *patch)[-3:]
    first = range(shape[0]) if len(patch) == 2 else window_starts(shape[0], depth)
    corners = product(first, window_starts(shape[1], height), window_starts(shape[2], width))
    return [(slice(z, z + depth), slice(y, y + height), slice(x, x + width)) for z, y, x in corners]


@lru_cache(maxsize=4)
def gaussian(patch: tuple[int, ...]) -> torch.Tensor:
    """float16, of the patch's shape: how much each voxel of a window counts, 10 in its centre and never 0."""
    impulse = np.zeros(patch)
    impulse[tuple(size // 2 for size in patch)] = 1
    bell = ndimage.gaussian_filter(impulse, [size / 8 for size in patch], 0, mode="constant", cval=0)
    bell /= np.max(bell) / _PEAK
    weights = torch.from_numpy(bell).to(torch.float16)
    zero = weights == 0
    weights[zero] = torch.min(weights[~zero])
    return weights


def planes(
    image: torch.Tensor,
    networks: Sequence[Network],
    windowing: Windowing,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Plane]:
    """The answers of a whole image, plane by plane along its first axis.

    Parameters
    ----------
    image
        float32, (C, D, H, W), normalised units; on the processor or on the device of the sums.
    networks
        One for each fold.
    progress
        Told the share of windows done, 0 to 1.

    Yields
    ------
    D planes of H x W, in order.

    Raises
    ------
    OutOfDeviceMemory
        Where the sums have no room in memory.
    """
    padded, inner = _pad(image, windowing.patch)
    placed = windows(padded.shape[1:], windowing.patch)
    groups = _groups(placed, padded.shape[1], windowing)
    ring = _Ring.empty(windowing, len(networks), padded.shape[1:])
    # One network is fed without a pause; several take turns, group by group, and share the ring.
    done = 0
    with ExitStack() as open_answers:
        whole = None
        if len(networks) == 1:
            whole = open_answers.enter_context(ended(networks[0].answers(_patches(padded, placed, windowing))))
        for group in groups:
            ring.open(group.end)
            for number, network in enumerate(networks):
                own = network.answers(_patches(padded, group.windows, windowing)) if whole is None else whole
                with ended(own) if whole is None else nullcontext(own) as answers:
                    for window in group.windows:
                        ring.add(window, _mean(answers, windowing), number)
                        done += 1
                        if progress is not None:
                            progress(done / (len(placed) * len(networks)))
            # A group's last plane is asked for beside the first of the next, which takes its place in the ring.
            for z in range(max(group.first, inner[0].start), min(group.final, inner[0].stop)):
                yield ring.plane(z, inner, keep=z == group.final - 1)


@contextmanager
def ended(items: Iterator[_T]) -> Iterator[Iterator[_T]]:
    """Close a generator whatever happens: what it holds on a device must not wait for the garbage collector."""
    try:
        yield items
    finally:
        if isinstance(items, Generator):
            items.close()


def window_count(shape: Sequence[int], patch: Sequence[int]) -> int:
    """How many windows an image of (D, H, W) has, padded where it is smaller than the patch."""
    sizes = [max(n, p) for n, p in zip(shape[-len(patch) :], patch, strict=True)]
    counts = [len(window_starts(n, p)) for n, p in zip(sizes, patch, strict=True)]
    return int(np.prod(counts)) * (shape[0] if len(patch) == 2 else 1)


@dataclass(frozen=True)
class _Group:
    """Windows that are computed before their planes are handed on."""

    windows: Sequence[Window]
    first: int
    """The first plane that is final with this group."""
    final: int
    """The first plane that is not yet."""
    end: int
    """Behind the last plane that the group touches."""


def _groups(placed: Sequence[Window], depth: int, windowing: Windowing) -> list[_Group]:
    """Windows by their first plane, or those of several slices where each slice stands alone."""
    by_start: dict[int, list[Window]] = {}
    for window in placed:
        start = window[0].start // _SLICES * _SLICES if len(windowing.patch) == 2 else window[0].start
        by_start.setdefault(start, []).append(window)
    starts = [*by_start, depth]
    return [
        _Group(group, start, following, max(window[0].stop for window in group))
        for (start, group), following in zip(by_start.items(), starts[1:], strict=True)
    ]


@dataclass(eq=False)
class _Ring:
    """Sums of as many planes as are open at once; plane z lies in slot z % depth.

    Attributes
    ----------
    sums
        (R, networks, K, H, W).
    weights
        (R, H, W).
    """

    sums: torch.Tensor
    weights: torch.Tensor
    bell: torch.Tensor
    opened: int = 0
    """Behind the last plane that was opened."""

    @classmethod
    def empty(cls, windowing: Windowing, networks: int, shape: Sequence[int]) -> _Ring:
        _, height, width = shape
        depth = min(windowing.open_planes, shape[0])
        own = networks if windowing.side_by_side else 1
        place = {"dtype": windowing.sums, "device": windowing.device, "pin_memory": windowing.pinned}
        try:
            sums = torch.zeros((depth, own, windowing.channels, height, width), **place)  # type: ignore[call-overload]
            weights = torch.zeros((depth, height, width), **place)  # type: ignore[call-overload]
        except RuntimeError as error:
            if not no_room(error):
                raise
            size = depth * own * windowing.channels * height * width * windowing.sums.itemsize / 2**30
            raise OutOfDeviceMemory(f"no room for sums of {size:.1f} GiB on {windowing.device}") from error
        # Float16 sums are nnU-Net's: it multiplies by its float16 Gaussian. Float32 sums want no conversion each time.
        bell = gaussian(windowing.patch).reshape(windowing.patch_3d).to(windowing.device)
        return cls(sums, weights, bell if windowing.sums == torch.float16 else bell.float())

    def open(self, end: int) -> None:
        """Clear the slots of the planes before `end` that were not open yet."""
        for z in range(self.opened, end):
            self.sums[z % len(self.sums)].zero_()
            self.weights[z % len(self.sums)].zero_()
        self.opened = max(self.opened, end)

    def add(self, window: Window, answer: torch.Tensor, number: int) -> None:
        """Add a network's answer, (K, *patch), by the Gaussian."""
        here = answer.to(self.sums.device)  # where the card has no room for the sums, they lie on the processor
        place, own = here.reshape(here.shape[0], *self.bell.shape).transpose(0, 1), number % self.sums.shape[1]
        for part, slots in self._slots(window[0]):
            where = self.sums[slots, own, :, window[1], window[2]]
            if self.sums.dtype == torch.float32:
                where.addcmul_(place[part], self.bell[part, None])
            else:
                where += place[part] * self.bell[part, None]
            if number == 0 or self.sums.shape[1] == 1:
                self.weights[slots, window[1], window[2]] += self.bell[part]

    def plane(self, z: int, inner: Sequence[slice], *, keep: bool) -> Plane:
        """A final plane without the padding; a copy where its place is needed before its reader is done."""
        sums = self.sums[z % len(self.sums)].flatten(0, 1)[:, inner[1], inner[2]].contiguous()
        weights = self.weights[z % len(self.sums)][inner[1], inner[2]].contiguous()
        return Plane(sums.clone(), weights.clone()) if keep else Plane(sums, weights)

    def _slots(self, depth: slice) -> Iterator[tuple[slice, slice]]:
        """The parts of a window along the first axis, and where each lies in the ring: two where it runs over."""
        size, begin = len(self.sums), depth.start % len(self.sums)
        before = min(depth.stop - depth.start, size - begin)
        yield slice(0, before), slice(begin, begin + before)
        if before < depth.stop - depth.start:
            yield slice(before, None), slice(0, depth.stop - depth.start - before)


def _pad(image: torch.Tensor, patch: Sequence[int]) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """The image centred in zeros of at least the patch's size, the odd voxel above, and where it lies there."""
    sizes = image.shape[1:]
    missing = [max(0, p - n) for n, p in zip(sizes[-len(patch) :], patch, strict=True)]
    missing = [0] * (len(sizes) - len(patch)) + missing
    inner = tuple(slice(gap // 2, gap // 2 + n) for gap, n in zip(missing, sizes, strict=True))
    if not any(missing):
        return image, inner
    shape = (image.shape[0], *(n + gap for n, gap in zip(sizes, missing, strict=True)))
    padded = torch.zeros(shape, device=image.device)
    padded[(slice(None), *inner)] = image
    return padded, inner


def _patches(image: torch.Tensor, placed: Iterable[Window], windowing: Windowing) -> Iterator[torch.Tensor]:
    """Every window, each flip of it in turn."""
    for window in placed:
        patch = image[(slice(None), *window)].reshape(image.shape[0], *windowing.patch)
        for axes in windowing.flips:
            yield patch.flip(axes) if axes else patch


def _mean(answers: Iterator[torch.Tensor], windowing: Windowing) -> torch.Tensor:
    """The mean over the flips of one window."""
    flips = windowing.flips
    if len(flips) == 1:
        return next(answers)
    total = next(answers).clone()
    for axes, answer in zip(flips[1:], islice(answers, len(flips) - 1), strict=True):
        total += answer.flip(axes)
    return total / len(flips)
