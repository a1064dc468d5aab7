"""What the second network of a cascade sees of the first: its labels on another grid, one channel for each.

nnU-Net interpolates each label by itself and takes the largest. Labels at equal height are real, wherever a voxel lies
halfway, and decide voxels; so the weights here are formed and added in the order in which scipy does it, and in its
precision. Most voxels have one label at all corners, which is the answer; only the others are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from engines.model.plan import Resampling
from engines.preprocessing.resampling import Step, Taps, linear_taps, separate_axis

OUTSIDE = -1
"""nnU-Net's label outside the nonzero region: it competes with the others where labels are interpolated."""
_SLAB_VOXELS = 4_000_000
"""Output voxels handled at once."""

LabelIndices = NDArray[np.int16]


def fill_one_hot(channels: torch.Tensor, labels: LabelIndices, wanted: Sequence[int]) -> None:
    """1 in the n-th channel where a voxel has the n-th label that is wanted, else 0; in place, (N, D, H, W)."""
    there = torch.from_numpy(labels).to(channels.device)
    for channel, label in zip(channels, wanted, strict=True):
        channel.copy_(there == label)


def resample_labels(labels: LabelIndices, step: Step, resampling: Resampling) -> LabelIndices:
    """Labels on another grid, as nnU-Net's `resampling_fn_seg` makes them.

    Parameters
    ----------
    labels
        int16, (D, H, W), of shape `step.shape_from`.

    Returns
    -------
    int16, of shape `step.shape_to`; the input itself where both shapes are one.
    """
    if step.shape_from == step.shape_to or resampling.function == "no_resampling_hack":
        return labels
    if resampling.function == "resample_torch_fornnunet":
        return _with_torch(labels, step, resampling)
    taps = linear_taps(step, resampling)
    nearest = linear_taps(step, replace(resampling, order=0))
    out = np.empty(step.shape_to, dtype=np.int16)
    thickness = max(1, _SLAB_VOXELS // (out.shape[1] * out.shape[2]))
    for start in range(0, len(out), thickness):
        planes = slice(start, start + thickness)
        _fill(out[planes], labels, _cut(taps, planes), _cut(nearest, planes))
    return out


def _cut(taps: tuple[Taps, Taps, Taps], planes: slice) -> tuple[Taps, Taps, Taps]:
    first = taps[0]
    return Taps(first.low[planes], first.high[planes], first.weight[planes]), taps[1], taps[2]


def _fill(
    out: LabelIndices, labels: LabelIndices, taps: tuple[Taps, Taps, Taps], nearest: tuple[Taps, Taps, Taps]
) -> None:
    """A slab of the output, in place: the nearest label, then the largest where corners differ."""
    out[...] = labels[np.ix_(*(axis.low for axis in nearest))]
    mixing = [axis for axis in range(3) if taps[axis].mixes]
    least = most = labels[np.ix_(*(axis.low for axis in taps))]
    for chosen in product(*((0, 1) if axis in mixing else (0,) for axis in range(3))):
        corner = labels[np.ix_(*(t.high if high else t.low for t, high in zip(taps, chosen, strict=True)))]
        least, most = np.minimum(least, corner), np.maximum(most, corner)
    at = np.nonzero(least != most)
    if len(at[0]):
        out[at] = _largest(labels, taps, at, out[at])


def _largest(
    labels: LabelIndices, taps: tuple[Taps, Taps, Taps], at: tuple[NDArray[np.intp], ...], nearest: LabelIndices
) -> LabelIndices:
    """The label of the largest share at N voxels; of equal ones the nearest, where it is one of them, else the lowest.

    The shares are those of batchgenerators' `resize_segmentation`, to the last bit.
    """
    corners = []
    for (z, wz), (y, wy), (x, wx) in product(*(_corners(t, index) for t, index in zip(taps, at, strict=True))):
        corners.append((labels[z, y, x], wz * wy * wx))
    best, label, tied = np.zeros(len(nearest)), np.full(len(nearest), np.int16(0)), np.zeros(len(nearest), dtype=bool)
    for candidate, _ in corners:
        share = np.zeros(len(nearest))
        for other, weight in corners:
            share += np.where(other == candidate, weight, 0.0)
        larger, level = share > best, (share == best) & (share > 0)
        tied = np.where(larger, candidate == nearest, tied | (level & (candidate == nearest)))
        label = np.where(larger | (level & (candidate < label)), candidate, label)
        best = np.maximum(best, share)
    return np.where(tied, nearest, label).astype(np.int16)


def _corners(taps: Taps, at: NDArray[np.intp]) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """The input index and its weight, once or twice, as scipy's linear spline has them."""
    if not taps.mixes:
        return [(taps.low[at], np.ones(len(at)))]
    low = 1.0 - taps.weight[at]
    return [(taps.low[at], low), (taps.high[at], 1.0 - low)]


def _with_torch(labels: LabelIndices, step: Step, resampling: Resampling) -> LabelIndices:
    """nnU-Net's torch variant: a thousand times each label's share, in float16; of equal ones the lowest label."""
    axis = separate_axis(step, resampling)
    source = torch.from_numpy(labels)
    if axis is None:
        return _largest_share(source[None], step.shape_to, "trilinear")[0].numpy()
    in_plane = tuple(n for a, n in enumerate(step.shape_to) if a != axis)
    planes = _largest_share(source.movedim(axis, 0), in_plane, "bilinear").movedim(0, axis)
    along = linear_taps(step, resampling)[axis]
    return np.ascontiguousarray(planes.numpy().take(along.low, axis=axis))


def _largest_share(labels: torch.Tensor, shape: tuple[int, ...], mode: str) -> torch.Tensor:
    """int16, (N, *shape), of labels (N, ...)."""
    if tuple(labels.shape[1:]) == shape:
        return labels
    best = torch.full((len(labels), *shape), -1.0, dtype=torch.float16)
    out = torch.zeros((len(labels), *shape), dtype=torch.int16)
    for label in torch.unique(labels):
        share = functional.interpolate((labels[None] == label).float() * 1000, shape, mode=mode)[0].half()
        out[share > best] = label
        best = torch.maximum(best, share)
    return out
