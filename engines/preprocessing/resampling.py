"""nnU-Net's resampling as three small matrices, one for each axis.

Spline interpolation is linear and separable, prefilter included, so its one-dimensional operator is what scipy's own
zoom makes of the identity. Applying it is a matrix product: the same numbers as nnU-Net's to 1e-5, many times faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from engines.model.plan import Resampling

ANISOTROPY = 3.0
"""Above this ratio of largest to smallest spacing the axis of largest spacing is resampled by itself."""

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Step:
    """From one grid to another that covers the same space."""

    shape_from: Shape
    shape_to: Shape
    spacing_from: Spacing
    spacing_to: Spacing

    def back(self) -> Step:
        """The other way."""
        return Step(self.shape_to, self.shape_from, self.spacing_to, self.spacing_from)


@dataclass(frozen=True, eq=False)
class Taps:
    """Linear interpolation along one axis: output n is input `low[n]` and `high[n]`, mixed by `weight[n]` of `high`.

    Attributes
    ----------
    low, high
        int64, (n_out,).
    weight
        float64, (n_out,), 0 to 1.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: NDArray[np.float64]

    @property
    def mixes(self) -> bool:
        """Whether any output needs two inputs."""
        return bool((self.weight > 0).any())


def new_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Shape:
    """Voxels along each axis after resampling, rounded half to even as nnU-Net does, at least one."""
    d, h, w = (max(1, round(old / new * n)) for n, old, new in zip(shape, spacing, target, strict=True))
    return d, h, w


def separate_axis(step: Step, resampling: Resampling) -> int | None:
    """The axis that is resampled by itself, or None.

    The axis of largest spacing, if either grid is anisotropic and that axis is the only largest one.
    """
    if resampling.force_separate_z is False:
        return None
    spacing = step.spacing_from
    if resampling.force_separate_z is None and not _is_anisotropic(spacing):
        spacing = step.spacing_to
        if not _is_anisotropic(spacing):
            return None
    largest = [axis for axis in range(3) if spacing[axis] == max(spacing)]
    return largest[0] if len(largest) == 1 else None


def resample(image: torch.Tensor, step: Step, resampling: Resampling, out: torch.Tensor) -> None:
    """An image on another grid.

    Parameters
    ----------
    image
        float32, (D, H, W), of shape `step.shape_from`.
    out
        float32, of shape `step.shape_to`, on the image's device: it is written.
    """
    if step.shape_from == step.shape_to or resampling.function == "no_resampling_hack":
        out.copy_(image)
        return
    axis = separate_axis(step, resampling)
    plane_axes = [a for a in range(3) if a != axis]
    # Splines overshoot at edges; nnU-Net clips to what the input held: of each slice where slices stand alone.
    over = tuple(range(3)) if axis is None else tuple(plane_axes)
    low, high = image.amin(dim=over, keepdim=True), image.amax(dim=over, keepdim=True)
    found = image
    for a in sorted(plane_axes, key=lambda a: step.shape_to[a] / step.shape_from[a]):
        found = _along(found, a, step.shape_to[a], resampling.order)
    if resampling.order > 1 and found is not image:
        found.clamp_(low, high)
    if axis is not None and step.shape_from[axis] != step.shape_to[axis]:
        _along_separate(found, axis, resampling, out)
    else:
        out.copy_(found)


def linear_taps(step: Step, resampling: Resampling) -> tuple[Taps, Taps, Taps]:
    """What `resample` does along each axis, for functions of order 0 and 1."""
    if step.shape_from != step.shape_to and resampling.function == "no_resampling_hack":
        raise ValueError(f"{step.shape_from} to {step.shape_to}, but the plan does not resample")
    axis = separate_axis(step, resampling)
    single = resampling.function == "resample_torch_fornnunet"
    taps = []
    for a, (n_in, n_out) in enumerate(zip(step.shape_from, step.shape_to, strict=True)):
        order = resampling.order_z if a == axis else resampling.order
        taps.append(_nearest(n_in, n_out, single) if order == 0 or n_in == n_out else _linear(n_in, n_out))
    return taps[0], taps[1], taps[2]


def _is_anisotropic(spacing: Sequence[float]) -> bool:
    return max(spacing) / min(spacing) > ANISOTROPY


@lru_cache(maxsize=64)
def _axis_matrix(n_in: int, n_out: int, order: int) -> torch.Tensor:
    """float32, (n_out, n_in): skimage's `resize` along one axis, which is scipy's `zoom` in grid mode."""
    columns = [
        ndimage.zoom(column, n_out / n_in, order=order, mode="nearest", grid_mode=True) for column in np.eye(n_in)
    ]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def _along(image: torch.Tensor, axis: int, n_out: int, order: int) -> torch.Tensor:
    if image.shape[axis] == n_out:
        return image
    matrix = _axis_matrix(image.shape[axis], n_out, order).to(image.device)
    if axis == 0:
        return (matrix @ image.reshape(image.shape[0], -1)).reshape(n_out, *image.shape[1:])
    return matrix @ image if axis == 1 else image @ matrix.T


def _along_separate(image: torch.Tensor, axis: int, resampling: Resampling, out: torch.Tensor) -> None:
    """Along the axis of largest spacing: nearest neighbour, unless the plan asks for a higher order."""
    n_in, n_out = image.shape[axis], out.shape[axis]
    if resampling.order_z == 0:
        nearest = _nearest(n_in, n_out, single=resampling.function == "resample_torch_fornnunet")
        for plane, index in enumerate(nearest.low.tolist()):
            out.select(axis, plane).copy_(image.select(axis, index))
        return
    at = [_positions(n_in, n_out)]
    columns = [ndimage.map_coordinates(c, at, order=resampling.order_z, mode="nearest") for c in np.eye(n_in)]
    matrix = torch.from_numpy(np.stack(columns, axis=1).astype(np.float32)).to(image.device)
    out.copy_(torch.tensordot(matrix, image, dims=([1], [axis])).movedim(0, axis))


def _positions(n_in: int, n_out: int) -> NDArray[np.float64]:
    """Where each output voxel's centre lies, in input voxels: both grids cover the same length."""
    return (n_in / n_out) * (np.arange(n_out, dtype=np.float64) + 0.5) - 0.5


def _nearest(n_in: int, n_out: int, single: bool) -> Taps:
    """Nearest neighbour. `single`: in float32, as torch's `nearest-exact` computes it."""
    if n_in == n_out:
        index = np.arange(n_out)
    elif single:
        scale = np.float32(n_in) / np.float32(n_out)
        index = np.floor((np.arange(n_out, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.int64)
    else:
        index = np.floor(_positions(n_in, n_out) + 0.5).astype(np.int64)
    index = np.clip(index, 0, n_in - 1).astype(np.int64)
    return Taps(index, index, np.zeros(n_out))


def _linear(n_in: int, n_out: int) -> Taps:
    at = np.clip(_positions(n_in, n_out), 0, n_in - 1)
    low = np.floor(at).astype(np.int64)
    return Taps(low, np.minimum(low + 1, n_in - 1), at - low)
