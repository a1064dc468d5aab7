"""The inner loops of the processor's way back, compiled: planes of logits, and labels of another grid.

Each works on a band of rows (or of planes, or of voxels), so that a pool of threads can share one call; none needs the
interpreter while it runs, and the result does not depend on how bands are cut. Compiled code is kept beside this file,
or in the user's cache where that cannot be written, so that only the first process waits for the compiler.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numba.core.caching import NullCache
from numpy.typing import NDArray

_F = TypeVar("_F", bound=Callable[..., Any])

HIGHEST_HALF = np.float32(65504.0)
"""What float16 can hold."""
LIKELY = np.float32(1.2e-7)
"""A region is there where its logit is above this: the sigmoid, in float32, is then above one half."""

_ZERO = np.float32(0.0)
"""Times a number that is not finite, not a number."""
_SPLIT = np.float32(8193.0)
_LEAST_NORMAL = np.float32(2.0**-14)
_SUBNORMAL = np.float32(0.75)


_KERNELS: list[Any] = []


def _compiled(function: _F) -> _F:
    """Compile on first call, with the arithmetic of IEEE 754 left as written."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        kernel = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that could hold the cache
        kernel = numba.njit(**options)(function)
    _KERNELS.append(kernel)
    return kernel  # type: ignore[no-any-return]


@_compiled
def halved(value: np.float32) -> np.float32:
    """A float32 rounded to what float16 can hold, half to even (Veltkamp's split; a shift for subnormal numbers)."""
    if abs(value) < _LEAST_NORMAL:
        return np.float32(np.float32(value + _SUBNORMAL) - _SUBNORMAL)
    wide = np.float32(value * _SPLIT)
    return np.float32(wide - np.float32(wide - value))


@_compiled
def finish_classes(plane, weights, bias, label, first, last):
    """Rows of a plane of sums over weights, and a bias, rounded to float16, in place; the class of the largest logit.

    plane float32 (C, H, W); weights float32 (H, W); bias float32 (C,); label int16 (H, W), the lowest of equal ones.
    Returns the largest absolute value, NaN where any is.
    """
    classes, _, width = plane.shape
    best = np.empty(width, dtype=np.float32)
    most, fault = np.zeros(width, dtype=np.float32), np.zeros(width, dtype=np.float32)
    for y in range(first, last):
        for k in range(classes):
            row = plane[k, y]
            for x in range(width):
                value = halved(np.float32(row[x] / weights[y, x] + bias[k]))
                row[x] = value
                most[x] = max(most[x], abs(value))
                fault[x] += _ZERO * value
                if k == 0:
                    best[x] = value
                    label[y, x] = 0
                elif value > best[x]:
                    best[x] = value
                    label[y, x] = k
    return most.max() + fault.max()


@_compiled
def finish_regions(plane, weights, bias, order, label, first, last):
    """The same for a network of regions: each paints its label of `order` (int16, (C,)) where it is likely."""
    regions, _, width = plane.shape
    most, fault = np.zeros(width, dtype=np.float32), np.zeros(width, dtype=np.float32)
    label[first:last] = 0
    for y in range(first, last):
        for k in range(regions):
            row = plane[k, y]
            for x in range(width):
                value = halved(np.float32(row[x] / weights[y, x] + bias[k]))
                row[x] = value
                most[x] = max(most[x], abs(value))
                fault[x] += _ZERO * value
                if value > LIKELY:
                    label[y, x] = order[k]
    return most.max() + fault.max()


@_compiled
def shared_labels(low, high, mixes_y, mixes_x, cells, first, last):
    """Rows of the label that all corners of a cell share, or -1.

    low, high int16 (H, W): the labels of the planes below and above, the same where depth does not mix; cells int16
    (H, W). A cell reaches from a voxel to its next neighbours along each axis that mixes.
    """
    height, width = low.shape
    for y in range(first, last):
        below = min(y + 1, height - 1) if mixes_y else y
        for x in range(width):
            beside = min(x + 1, width - 1) if mixes_x else x
            label = low[y, x]
            same = (
                (low[y, beside] == label)
                & (low[below, x] == label)
                & (low[below, beside] == label)
                & (high[y, x] == label)
                & (high[y, beside] == label)
                & (high[below, x] == label)
                & (high[below, beside] == label)
            )
            cells[y, x] = label if same else -1


@_compiled
def spread(cells, rows, columns, out, first, last):
    """Rows of the output plane, int16 (H', W'): the cell above each voxel, by indices int64 (H',) and (W',)."""
    for y in range(first, last):
        row = cells[rows[y]]
        for x in range(out.shape[1]):
            out[y, x] = row[columns[x]]


@_compiled
def agree(cells, rows, columns, out, first, last):
    """The same for a further network: -1 where it says otherwise than those before."""
    for y in range(first, last):
        row = cells[rows[y]]
        for x in range(out.shape[1]):
            if out[y, x] != row[columns[x]]:
                out[y, x] = -1


@_compiled
def unsure(label, first, last):
    """The flat places of -1 in rows of an output plane, int64 (N,)."""
    width = label.shape[1]
    places = np.empty((last - first) * width, dtype=np.int64)
    count = 0
    for y in range(first, last):
        for x in range(width):
            places[count] = y * width + x
            count += label[y, x] < 0
    return places[:count].copy()


class Between(NamedTuple):
    """Where voxels of an output plane lie between two planes of logits."""

    low: NDArray[np.float32]
    """(C, H, W)."""
    high: NDArray[np.float32]
    """(C, H, W)."""
    weight: float
    """0 to 1, of `high`."""
    rows: NDArray[np.int64]
    """(H',): the row below each of the output's."""
    columns: NDArray[np.int64]
    """(W',)."""
    weight_rows: NDArray[np.float64]
    """(H',): 0 to 1, of the row above."""
    weight_columns: NDArray[np.float64]
    """(W',)."""
    halved: bool
    """Whether interpolated values are rounded to float16."""


@_compiled
def cell_at(between, place):
    """The rows and columns of the cell around a flat place of the output plane, and the weights of its corners."""
    _, height, width = between.low.shape
    y, x = place // len(between.columns), place % len(between.columns)
    y0, x0, wy, wx, wz = (
        between.rows[y],
        between.columns[x],
        between.weight_rows[y],
        between.weight_columns[x],
        between.weight,
    )
    corners = (y0, min(y0 + 1, height - 1), x0, min(x0 + 1, width - 1))
    weights = (
        np.float32((1.0 - wz) * (1.0 - wy) * (1.0 - wx)),
        np.float32((1.0 - wz) * (1.0 - wy) * wx),
        np.float32((1.0 - wz) * wy * (1.0 - wx)),
        np.float32((1.0 - wz) * wy * wx),
        np.float32(wz * (1.0 - wy) * (1.0 - wx)),
        np.float32(wz * (1.0 - wy) * wx),
        np.float32(wz * wy * (1.0 - wx)),
        np.float32(wz * wy * wx),
    )
    return corners, weights


@_compiled
def logit_in(low, high, k, corners, weights):
    """One class in a cell, float32; low, high float32 (C, H, W)."""
    y0, y1, x0, x1 = corners
    value = low[k, y0, x0] * weights[0]
    value += low[k, y0, x1] * weights[1]
    value += low[k, y1, x0] * weights[2]
    value += low[k, y1, x1] * weights[3]
    # Without asking whether these weights are zero: a branch here costs more than the sum.
    value += high[k, y0, x0] * weights[4]
    value += high[k, y0, x1] * weights[5]
    value += high[k, y1, x0] * weights[6]
    value += high[k, y1, x1] * weights[7]
    return value


# The arrays are taken out of `between` before the loops: the compiler would look into it for each voxel and class.


@_compiled
def interpolate(between, at, out, first, last):
    """Every class at voxels `first` to `last`: at int64 (N,), flat places in the output plane; out float32 (C, N)."""
    low, high, half = between.low, between.high, between.halved
    for n in range(first, last):
        corners, weights = cell_at(between, at[n])
        for k in range(low.shape[0]):
            value = logit_in(low, high, k, corners, weights)
            out[k, n] = halved(value) if half else value


@_compiled
def decide_classes(between, at, out, first, last):
    """The class of the largest interpolated logit, the lowest of equal ones; out int16 (N,)."""
    low, high, half = between.low, between.high, between.halved
    for n in range(first, last):
        corners, weights = cell_at(between, at[n])
        best, label = _ZERO, 0
        for k in range(low.shape[0]):
            value = logit_in(low, high, k, corners, weights)
            value = halved(value) if half else value
            if k == 0 or value > best:
                best, label = value, k
        out[n] = label


@_compiled
def decide_regions(between, at, order, out, first, last):
    """The same for a network of regions: the label of `order`, int16 (C,), that the last likely one paints."""
    low, high, half = between.low, between.high, between.halved
    for n in range(first, last):
        corners, weights = cell_at(between, at[n])
        out[n] = 0
        for k in range(low.shape[0]):
            value = logit_in(low, high, k, corners, weights)
            if (halved(value) if half else value) > LIKELY:
                out[n] = order[k]


@lru_cache(maxsize=1)
def warm_up() -> None:
    """Compile or load everything, once in a process, before the first case waits for it.

    Where compiled code cannot be kept after all (a full disk, a folder that cannot be written), it is compiled for this
    process alone.
    """
    try:
        _call_all()
    except OSError:
        for kernel in _KERNELS:
            kernel._cache = NullCache()
        _call_all()


def _call_all() -> None:
    plane, flat = np.ones((2, 2, 2), dtype=np.float32), np.ones((2, 2), dtype=np.float32)
    label, order = np.zeros((2, 2), dtype=np.int16), np.array([1, 2], dtype=np.int16)
    index, weight, at = np.zeros(2, dtype=np.int64), np.zeros(2), np.zeros(1, dtype=np.int64)
    bias, out = np.zeros(2, dtype=np.float32), np.zeros(1, dtype=np.int16)
    finish_classes(plane, flat, bias, label, 0, 2)
    finish_regions(plane, flat, bias, order, label, 0, 2)
    shared_labels(label, label, True, True, label.copy(), 0, 2)
    spread(label, index, index, label.copy(), 0, 2)
    agree(label, index, index, label.copy(), 0, 2)
    unsure(label, 0, 2)
    between = Between(plane, plane, 0.5, index, index, weight, weight, True)
    interpolate(between, at, np.zeros((2, 1), dtype=np.float32), 0, 1)
    decide_classes(between, at, out, 0, 1)
    decide_regions(between, at, order, out, 0, 1)
