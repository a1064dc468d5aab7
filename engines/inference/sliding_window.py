"""nnU-Net's sliding window: the same windows, the same Gaussian, sums in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product

import numpy as np
import torch
from scipy import ndimage

from engines.errors import OutOfDeviceMemory, UnsuitableVolume

STEP = 0.5
"""Distance of two windows, in patches."""
_PEAK = 10.0
"""Of the Gaussian; nnU-Net chose it so that float16 sums hold."""

Network = Callable[[torch.Tensor], torch.Tensor]
"""Logits (B, outputs, *patch) of patches (B, C, *patch), float32, on the CPU."""
Window = tuple[slice | int, ...]


@dataclass(frozen=True)
class Windowing:
    """How a network is moved over an image."""

    patch: tuple[int, ...]
    """Three numbers, or two for a network of single slices."""
    outputs: int
    mirroring_axes: tuple[int, ...] = ()
    """Axes of the patch over whose flips the answer is averaged."""
    batch: int = 1
    """Windows in each call of the network."""
    sums: torch.dtype = torch.float32
    """float16 is nnU-Net's own choice, kept for the parity tests."""


def window_starts(size: int, patch: int) -> list[int]:
    """Where the windows of one axis begin: evenly spread, at most half a patch apart, rounded half to even."""
    count = int(np.ceil((size - patch) / (patch * STEP))) + 1
    return [int(np.round((size - patch) / (count - 1) * i)) if count > 1 else 0 for i in range(count)]


def windows(shape: Sequence[int], patch: Sequence[int]) -> list[Window]:
    """All windows of an image of at least the patch's size, first axis outermost; a 2D patch meets each slice alone."""
    starts = [window_starts(n, p) for n, p in zip(shape[-len(patch) :], patch, strict=True)]
    planes = [range(n) for n in shape[: len(shape) - len(patch)]]
    placed: list[Window] = []
    for place in product(*planes, *starts):
        corner = place[len(planes) :]
        spans = (slice(at, at + size) for at, size in zip(corner, patch, strict=True))
        placed.append((*place[: len(planes)], *spans))
    return placed


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


def predict(
    image: torch.Tensor,
    networks: Sequence[Network],
    windowing: Windowing,
    progress: Callable[[float], None] | None = None,
) -> torch.Tensor:
    """Logits of a whole image.

    Parameters
    ----------
    image
        float32, (C, D, H, W), normalised units.
    networks
        One for each fold; their answers are averaged.
    progress
        Told the share of windows done, 0 to 1.

    Returns
    -------
    float32, (outputs, D, H, W), rounded to what float16 holds, as nnU-Net stores logits.

    Raises
    ------
    OutOfDeviceMemory
        Where the sums have no room in memory.
    UnsuitableVolume
        Where the network's answer is not finite.
    """
    padded, inner = _pad(image, windowing.patch)
    placed = windows(padded.shape[1:], windowing.patch)
    sums, weight_sums = _allocate(windowing, padded.shape[1:])
    weights = gaussian(windowing.patch)
    done = 0
    for group in _groups(placed, windowing.batch):
        for window, logits in zip(group, _answers(padded, group, networks, windowing), strict=True):
            if sums.dtype == torch.float32:
                sums[(slice(None), *window)].addcmul_(logits, weights.float())
            else:
                sums[(slice(None), *window)] += logits * weights
            weight_sums[window] += weights
        done += len(group)
        if progress is not None:
            progress(done / len(placed))
    return _finish(sums, weight_sums, inner)


def _pad(image: torch.Tensor, patch: Sequence[int]) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """The image centred in zeros of at least the patch's size, the odd voxel above, and where it lies there."""
    sizes = image.shape[1:]
    missing = [max(0, p - n) for n, p in zip(sizes[-len(patch) :], patch, strict=True)]
    missing = [0] * (len(sizes) - len(patch)) + missing
    inner = tuple(slice(gap // 2, gap // 2 + n) for gap, n in zip(missing, sizes, strict=True))
    if not any(missing):
        return image, inner
    padded = torch.zeros((image.shape[0], *(n + gap for n, gap in zip(sizes, missing, strict=True))))
    padded[(slice(None), *inner)] = image
    return padded, inner


def _allocate(windowing: Windowing, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        sums = torch.zeros((windowing.outputs, *shape), dtype=windowing.sums)
        return sums, torch.zeros(tuple(shape), dtype=windowing.sums)
    except RuntimeError as error:  # torch's allocator for the CPU has no class of its own
        size = windowing.outputs * int(np.prod(shape)) * windowing.sums.itemsize / 2**30
        raise OutOfDeviceMemory(
            f"no room for sums of {size:.1f} GiB: {windowing.outputs} classes of {shape}"
        ) from error


def _groups(placed: Sequence[Window], size: int) -> Iterator[Sequence[Window]]:
    for first in range(0, len(placed), size):
        yield placed[first : first + size]


def _answers(
    image: torch.Tensor, group: Sequence[Window], networks: Sequence[Network], windowing: Windowing
) -> torch.Tensor:
    """float32, (len(group), outputs, *patch): mean over folds and flips. A short last group is filled up."""
    patches = torch.zeros((windowing.batch, image.shape[0], *windowing.patch))
    for index, window in enumerate(group):
        patches[index] = image[(slice(None), *window)]
    total = torch.zeros((windowing.batch, windowing.outputs, *windowing.patch))
    flips = _flips(windowing.mirroring_axes)
    for network in networks:
        for axes in flips:
            total += network(patches.flip(axes)).flip(axes) if axes else network(patches)
    count = len(networks) * len(flips)
    return (total / count if count > 1 else total)[: len(group)]


def _flips(axes: Sequence[int]) -> list[list[int]]:
    """Every combination of flipped axes, none first, as axes of (B, C, *patch)."""
    return [[a + 2 for a in chosen] for size in range(len(axes) + 1) for chosen in combinations(axes, size)]


def _finish(sums: torch.Tensor, weight_sums: torch.Tensor, inner: Sequence[slice]) -> torch.Tensor:
    """Sums over weights, in place and class by class, without the padding."""
    for one_class in sums:
        one_class.div_(weight_sums)
        if not bool(torch.isfinite(one_class).all()):
            raise UnsuitableVolume("the network's answer is not finite: the voxels are unlike those it was trained on")
        one_class.copy_(one_class.half())
        if not bool(torch.isfinite(one_class).all()):
            raise UnsuitableVolume("the network's answer is beyond float16, in which nnU-Net keeps it")
    return sums[(slice(None), *inner)].float().contiguous()
