"""From logits on the network's grid to labels on the image's, without ever holding all classes at full size.

nnU-Net interpolates every class to the original grid and takes the largest. Linear weights are convex: where all
corner voxels of a cell have one largest class, that class is the answer anywhere in the cell. Only voxels in mixed
cells, a few in a hundred, need the classes interpolated, and they are taken in portions of bounded size.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from engines.preprocessing.resampling import Taps

_PORTION = 4_000_000
"""Interpolated values (classes x voxels) held at once: 16 MB."""
_SLAB_VOXELS = 8_000_000
"""Output voxels handled at once."""

LabelArray = NDArray[np.uint8] | NDArray[np.uint16]


def largest_class(logits: torch.Tensor) -> torch.Tensor:
    """int16, of the shape of one class: the class of the largest logit, the lowest of equal ones.

    torch's argmax over the first axis strides through memory; class after class reads each logit once, in order.
    """
    best = logits[0].clone()
    label = torch.zeros(best.shape, dtype=torch.int16)
    for index in range(1, len(logits)):
        label.masked_fill_(logits[index] > best, index)
        torch.maximum(best, logits[index], out=best)
    return label


def labels_at(logits: torch.Tensor, taps: tuple[Taps, Taps, Taps], halved: bool) -> LabelArray:
    """The label of every voxel of another grid.

    Parameters
    ----------
    logits
        float32, (C, d, h, w), contiguous; values that float16 can hold, as nnU-Net stores them.
    taps
        How each axis of the output is mixed from the input's.
    halved
        Whether interpolated logits are rounded to float16 before they are compared. nnU-Net's default resampling
        stores them so, which makes ties real; its torch variant does not.

    Returns
    -------
    uint8, or uint16 above 255 classes, (D, H, W).
    """
    cells = _cells(largest_class(logits), taps)
    shape = tuple(len(t.low) for t in taps)
    out = np.empty(shape, dtype=np.uint8 if len(logits) <= 255 else np.uint16)
    _, rows, columns = (torch.from_numpy(t.low) for t in taps)
    thickness = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], thickness):
        planes = torch.from_numpy(taps[0].low[start : start + thickness])
        slab = cells[planes].index_select(1, rows).index_select(2, columns)
        _fill_mixed(slab, start, logits, taps, halved)
        out[start : start + thickness] = slab.numpy()
    return out


def _cells(label: torch.Tensor, taps: tuple[Taps, Taps, Taps]) -> torch.Tensor:
    """int16: the label that all corners of the cell above a voxel share, or -1."""
    least, most = label, label
    for axis, axis_taps in enumerate(taps):
        if axis_taps.mixes and label.shape[axis] > 1:
            least = torch.minimum(least, _next(least, axis))
            most = torch.maximum(most, _next(most, axis))
    return torch.where(least == most, least, torch.tensor(-1, dtype=torch.int16))


def _next(label: torch.Tensor, axis: int) -> torch.Tensor:
    """Each voxel's neighbour above along an axis; the last voxel is its own."""
    n = label.shape[axis]
    return label.index_select(axis, torch.arange(1, n + 1).clamp_(max=n - 1))


def _fill_mixed(
    slab: torch.Tensor, start: int, logits: torch.Tensor, taps: tuple[Taps, Taps, Taps], halved: bool
) -> None:
    """Interpolate where the cell gave no answer, in place."""
    flat = slab.view(-1)
    mixed = (flat < 0).nonzero().squeeze(1).numpy()
    if not len(mixed):
        return
    at = np.unravel_index(mixed, slab.shape)
    at = (at[0] + start, at[1], at[2])
    portion = max(1, _PORTION // len(logits))
    for first in range(0, len(mixed), portion):
        part = slice(first, first + portion)
        values = _interpolate(logits, taps, tuple(index[part] for index in at))
        values = values.half().float() if halved else values
        flat[torch.from_numpy(mixed[part])] = largest_class(values)


def _interpolate(logits: torch.Tensor, taps: tuple[Taps, Taps, Taps], at: tuple[NDArray[np.intp], ...]) -> torch.Tensor:
    """float32, (C, N): all classes at N voxels of the output grid."""
    flat = logits.view(len(logits), -1)
    _, height, width = logits.shape[1:]
    total = torch.zeros((len(logits), len(at[0])))
    for (z, wz), (y, wy), (x, wx) in product(*(_corners(t, index) for t, index in zip(taps, at, strict=True))):
        index = torch.from_numpy((z * height + y) * width + x)
        total.addcmul_(flat.index_select(1, index), torch.from_numpy((wz * wy * wx).astype(np.float32)))
    return total


def _corners(taps: Taps, at: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """The input index and its weight, once or twice."""
    weight = taps.weight[at]
    yield taps.low[at], 1.0 - weight
    if taps.mixes:
        yield taps.high[at], weight
