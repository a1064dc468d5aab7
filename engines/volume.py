"""Voxels that know where they lie: the grid, the volume and the label map.

Index order is (k, j, i) for arrays (D, H, W); the world is DICOM patient space: LPS, mm (PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T", bound=np.generic)

_OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "S": "I", "I": "S"}
_POSITIVE = "LPS"


@dataclass(frozen=True, eq=False)
class Grid:
    """A rectilinear lattice in patient space.

    Attributes
    ----------
    shape
        (D, H, W).
    affine
        float64, (4, 4), maps (k, j, i, 1) to (x, y, z, 1) in LPS mm; read-only.

    Raises
    ------
    ValueError
        Where the affine is singular or not finite, or an extent is below one.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise ValueError(f"not an affine of a grid: {affine.tolist()}")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"not a shape of a grid: {self.shape}")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbours along (D, H, W), in mm."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres; exact for sheared lattices too."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def axis_codes(self) -> str:
        """The patient direction that each index grows towards, nearest first match, as three of L R P A S I."""
        direction = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        codes = [""] * 3
        left = {0, 1, 2}
        for world in sorted(range(3), key=lambda row: -float(np.abs(direction[row]).max())):
            axis = max(left, key=lambda column: float(abs(direction[world, column])))
            left.discard(axis)
            letter = _POSITIVE[world]
            codes[axis] = letter if direction[world, axis] > 0 else _OPPOSITE[letter]
        return "".join(codes)

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether both have one shape and no voxel centre differs by more than the tolerance."""
        if self.shape != other.shape:
            return False
        corners = np.array([[k, j, i, 1.0] for k in (0, 1) for j in (0, 1) for i in (0, 1)])
        corners[:, :3] *= np.array(self.shape) - 1
        apart = (corners @ self.affine.T - corners @ other.affine.T)[:, :3]
        return bool(np.linalg.norm(apart, axis=1).max() <= tolerance_mm)


@dataclass(frozen=True, eq=False)
class Volume:
    """One image on a grid.

    Attributes
    ----------
    voxels
        float32, (D, H, W), read-only; HU where modality is CT.
    modality
        `CT` or `MR`, as (0008,0060).
    """

    grid: Grid
    voxels: NDArray[np.float32]
    modality: str

    def __post_init__(self) -> None:
        _freeze(self, "voxels", np.asarray(self.voxels, dtype=np.float32), self.grid)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label for each voxel of a grid.

    Attributes
    ----------
    labels
        uint8 or uint16, (D, H, W), read-only; 0 is background.
    names
        The name of every label that the model can give, background left out, absent ones included.
    """

    grid: Grid
    labels: NDArray[np.uint8] | NDArray[np.uint16]
    names: Mapping[int, str]

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"labels are uint8 or uint16, not {labels.dtype}")
        _freeze(self, "labels", labels, self.grid)
        object.__setattr__(self, "names", MappingProxyType(dict(self.names)))


@dataclass(frozen=True)
class Reorientation:
    """A permutation and flips of the three axes, and their exact inverse.

    Attributes
    ----------
    axes
        Output axis n is input axis `axes[n]`.
    flips
        Whether output axis n runs against its input axis.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def between(cls, from_codes: str, to_codes: str) -> Reorientation:
        """What turns an array with one set of axis codes into another.

        Raises
        ------
        ValueError
            Where the codes do not name the same three patient axes.
        """
        axes, flips = [], []
        for code in to_codes:
            if code in from_codes:
                axes.append(from_codes.index(code))
                flips.append(False)
            elif _OPPOSITE.get(code, "?") in from_codes:
                axes.append(from_codes.index(_OPPOSITE[code]))
                flips.append(True)
        if sorted(axes) != [0, 1, 2]:
            raise ValueError(f"axis codes {from_codes} and {to_codes} do not name the same axes")
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def apply(self, array: NDArray[_T]) -> NDArray[_T]:
        """The array (D, H, W) as a view in the new order."""
        return array.transpose(self.axes)[self._slices]

    def undo(self, array: NDArray[_T]) -> NDArray[_T]:
        """The inverse of `apply`, as a view."""
        return array[self._slices].transpose([self.axes.index(axis) for axis in range(3)])

    def grid(self, grid: Grid) -> Grid:
        """The grid whose voxels are those of `apply`."""
        step = np.zeros((4, 4))
        step[3, 3] = 1.0
        for new, old in enumerate(self.axes):
            step[old, new] = -1.0 if self.flips[new] else 1.0
            step[old, 3] = grid.shape[old] - 1 if self.flips[new] else 0.0
        d, h, w = (grid.shape[axis] for axis in self.axes)
        return Grid((d, h, w), grid.affine @ step)

    @property
    def _slices(self) -> tuple[slice, slice, slice]:
        first, second, third = (slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return first, second, third


def _freeze(holder: Volume | LabelMap, name: str, array: NDArray[np.generic], grid: Grid) -> None:
    """Set an array attribute of a frozen holder to a read-only array that has the grid's shape."""
    if array.shape != grid.shape:
        raise ValueError(f"{name} of shape {array.shape} on a grid of shape {grid.shape}")
    view = array.view()
    view.setflags(write=False)
    object.__setattr__(holder, name, view)
