"""Volume in millilitres, Dice, volume agreement: the same functions in the report and in evaluation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def count_by_slice(labels: NDArray[np.integer], n_labels: int) -> NDArray[np.int64]:
    """How many pixels of each slice bear each label.

    Parameters
    ----------
    labels
        Integer, (N, H, W), values 0 to `n_labels`.
    n_labels
        The highest label.

    Returns
    -------
    int64, (N, n_labels + 1); column 0 is background.

    Raises
    ------
    ValueError
        Where a label is negative or above `n_labels`.
    """
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) > n_labels):
        raise ValueError(f"labels from {labels.min()} to {labels.max()}, expected 0 to {n_labels}")
    counts = np.zeros((len(labels), n_labels + 1), dtype=np.int64)
    for row, plane in zip(counts, labels, strict=True):
        row[:] = np.bincount(plane.reshape(-1), minlength=n_labels + 1)
    return counts


def label_volumes_ml(labels: NDArray[np.integer], slice_ml: ArrayLike) -> dict[int, float]:
    """The volume of every label that occurs, background left out.

    Parameters
    ----------
    labels
        Integer, (N, H, W).
    slice_ml
        Volume of one voxel in mL: one number, or one for each slice, (N,), where slices lie at uneven steps.

    Returns
    -------
    label to millilitres.
    """
    highest = int(labels.max()) if labels.size else 0
    counts = count_by_slice(labels, highest)
    voxel_ml = np.broadcast_to(np.asarray(slice_ml, dtype=np.float64), (len(labels),))
    volumes = voxel_ml @ counts
    totals = counts.sum(axis=0)
    return {label: float(volumes[label]) for label in range(1, highest + 1) if totals[label]}


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Twice the intersection over the sum of both sizes; 1 where both are empty."""
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    if total == 0:
        return 1.0
    return 2.0 * int(np.count_nonzero(a & b)) / total


def volume_agreement(reported_ml: float, true_ml: float) -> float:
    """One less the relative error of a volume: 1 is perfect, 0 is off by as much as the truth, below 0 is worse.

    Where the truth is empty, 1 when nothing was reported, else minus infinity.
    """
    if true_ml == 0:
        return 1.0 if reported_ml == 0 else float("-inf")
    return 1.0 - abs(reported_ml - true_ml) / true_ml
