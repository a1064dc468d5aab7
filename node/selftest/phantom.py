"""The standard patient, made of mathematics: organs of known volume, sampled on any planes with CT or MR contrast.

Every part is a superellipsoid in patient space (LPS, mm), so its volume and its centroid are known exactly, whatever
the scanner's planes. The patient cannot be mistaken for its mirror image: the liver lies right and high, the spleen
left, the kidneys behind at unequal heights and sizes, the bladder low and in front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from engines.volume import Grid, LabelMap, Volume

BODY = "body"
ORGANS = ("liver", "spleen", "kidney_left", "kidney_right", "urinary_bladder")
LABELS: Mapping[str, int] = {name: label for label, name in enumerate((BODY, *ORGANS), start=1)}
"""Label of each part, as the shipped `phantom` model gives it."""

_SUBDIVISIONS = 4
"""A voxel on a boundary is split into this many parts along each axis."""


@dataclass(frozen=True, eq=False)
class Part:
    """A superellipsoid: the points where the p-norm of (A (x - centre)) is at most one.

    Attributes
    ----------
    centre_mm
        LPS, mm; also the centroid.
    semi_axes_mm
        Along the part's own axes, mm.
    rotation
        float64, (3, 3); its columns are the part's own axes in LPS.
    power
        The exponent p: 2 is an ellipsoid; not below 2.
    """

    name: str
    centre_mm: tuple[float, float, float]
    semi_axes_mm: tuple[float, float, float]
    rotation: NDArray[np.float64]
    power: float = 2.0

    @property
    def volume_ml(self) -> float:
        """Exact volume, mL."""
        a, b, c = self.semi_axes_mm
        p = self.power
        return 8 * a * b * c * math.gamma(1 + 1 / p) ** 3 / math.gamma(1 + 3 / p) / 1000.0

    def level(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The p-norm at LPS points (..., 3): below one inside, one on the surface.

        It changes by at most `1 / min(semi_axes_mm)` for each mm.
        """
        return np.asarray(self.power_sum(points) ** (1 / self.power))

    def power_sum(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """`level` to the power p, which is cheaper: below one inside, one on the surface."""
        own = (points - self.centre_mm) @ (self.rotation / self.semi_axes_mm)
        square = np.square(own, out=own)
        if self.power == 2.0:
            return np.asarray(square.sum(axis=-1))
        if self.power == 2.5:  # by square roots, many times faster than by general powers
            return np.asarray((square * np.sqrt(np.sqrt(square))).sum(axis=-1))
        return np.asarray((square ** (self.power / 2)).sum(axis=-1))

    @property
    def reach_mm(self) -> NDArray[np.float64]:
        """Half extents along x, y, z of a box around the centre that holds the part: float64, (3,)."""
        return np.asarray(np.abs(self.rotation) @ np.asarray(self.semi_axes_mm))


@dataclass(frozen=True, eq=False)
class Patient:
    """A body with organs inside; organs touch neither each other nor the skin."""

    body: Part
    organs: tuple[Part, ...]

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        """Body and organs by name."""
        return {part.name: part for part in (self.body, *self.organs)}

    def volume_ml(self, name: str) -> float:
        """Exact volume of an organ in mL; of the body, without its organs, as label maps count it."""
        volume = self.parts[name].volume_ml
        return volume - sum(organ.volume_ml for organ in self.organs) if name == BODY else volume


def rotation(x_deg: float = 0.0, y_deg: float = 0.0, z_deg: float = 0.0) -> NDArray[np.float64]:
    """Rotation about the patient's x, then y, then z axis: float64, (3, 3), acting on LPS column vectors."""
    turned = np.eye(3)
    for axis, angle in enumerate(np.radians([x_deg, y_deg, z_deg])):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[first, first] = step[second, second] = np.cos(angle)
        step[second, first] = np.sin(angle)
        step[first, second] = -np.sin(angle)
        turned = step @ turned
    return turned


STANDARD = Patient(
    body=Part(BODY, (0.0, 0.0, 0.0), (110.0, 78.0, 102.0), np.eye(3), power=2.5),
    organs=(
        Part("liver", (-48.0, -12.0, 40.0), (44.0, 42.0, 38.0), rotation(y_deg=15.0)),
        Part("spleen", (58.0, 6.0, 48.0), (24.0, 36.0, 32.0), rotation(x_deg=20.0)),
        Part("kidney_left", (50.0, 34.0, -23.0), (25.0, 21.0, 36.0), rotation(y_deg=12.0)),
        Part("kidney_right", (-46.0, 38.0, -32.0), (22.0, 20.0, 33.0), rotation(y_deg=-12.0)),
        Part("urinary_bladder", (4.0, -22.0, -62.0), (38.0, 30.0, 26.0), rotation(x_deg=-10.0)),
    ),
)
"""The standard patient: a child's size, so that a whole scan is small."""


@dataclass(frozen=True, eq=False)
class Planes:
    """Where a scanner samples: planes of pixels, each with a position of its own.

    Attributes
    ----------
    origins_mm
        float64, (N, 3): centre of the first pixel of each plane, LPS mm (ImagePositionPatient).
    row, column
        float64, (3,): the step from pixel to pixel along a row, and from row to row down a column, LPS mm.
    rows, columns
        Pixels of a plane.
    thickness_mm
        What a plane averages along its normal.
    """

    origins_mm: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    rows: int
    columns: int
    thickness_mm: float

    @classmethod
    def of(cls, grid: Grid) -> Planes:
        """The planes of a grid; a plane is as thick as the distance to the next one."""
        step, column, row = grid.affine[:3, :3].T
        origins = grid.affine[:3, 3] + np.arange(grid.shape[0])[:, None] * step
        planes = cls(origins, row, column, grid.shape[1], grid.shape[2], 1.0)
        return replace(planes, thickness_mm=float(abs(step @ planes.normal)))

    @property
    def normal(self) -> NDArray[np.float64]:
        """Row x column, unit: float64, (3,)."""
        normal = np.cross(self.row, self.column)
        return np.asarray(normal / np.linalg.norm(normal))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, rows, columns)."""
        return len(self.origins_mm), self.rows, self.columns

    @property
    def centres_mm(self) -> NDArray[np.float64]:
        """LPS of each pixel's centre: float64, (N, rows, columns, 3)."""
        down = np.arange(self.rows)[:, None, None] * self.column
        along = np.arange(self.columns)[:, None] * self.row
        return np.asarray(self.origins_mm[:, None, None, :] + (down + along))

    @property
    def voxel_axes_mm(self) -> NDArray[np.float64]:
        """The three edges of a voxel, as rows: through the plane, down a column, along a row: float64, (3, 3)."""
        return np.stack([self.normal * self.thickness_mm, self.column, self.row])


def labels_on(patient: Patient, planes: Planes) -> NDArray[np.uint8]:
    """The true label of each pixel, by the part in which its centre lies: uint8, (N, rows, columns)."""
    labels = np.zeros(planes.shape, dtype=np.uint8)
    for part in (patient.body, *patient.organs):
        box = _box_around(part, planes, margin_mm=0.0)
        if box is not None:
            labels[box][part.power_sum(_points(planes, box)) <= 1.0] = LABELS[part.name]
    return labels


def label_map(patient: Patient, grid: Grid) -> LabelMap:
    """The true label map on a grid, by the part in which a voxel's centre lies."""
    return LabelMap(grid, labels_on(patient, Planes.of(grid)), {label: name for name, label in LABELS.items()})


def share_on(part: Part, planes: Planes) -> NDArray[np.float32]:
    """The share of each voxel that lies in a part: float32, (N, rows, columns), 0 to 1.

    Voxels that the surface may cut are split into 4 x 4 x 4; the others are decided by their centre, which is exact.
    """
    share = np.zeros(planes.shape, dtype=np.float32)
    axes = planes.voxel_axes_mm
    half_diagonal = 0.5 * max(float(np.linalg.norm(axes.T @ signs)) for signs in _CORNERS)
    box = _box_around(part, planes, margin_mm=half_diagonal)
    if box is None:
        return share
    points = _points(planes, box)
    power_sum = part.power_sum(points)
    most = half_diagonal / min(part.semi_axes_mm)  # by which the level may differ inside one voxel
    near = (power_sum >= max(0.0, 1.0 - most) ** part.power) & (power_sum <= (1.0 + most) ** part.power)
    inner = (power_sum <= 1.0).astype(np.float32)
    cut = points[near]
    total = np.zeros(len(cut), dtype=np.float32)
    offsets = (np.arange(_SUBDIVISIONS) + 0.5) / _SUBDIVISIONS - 0.5
    for weights in np.stack(np.meshgrid(offsets, offsets, offsets), axis=-1).reshape(-1, 3):
        total += part.power_sum(cut + weights @ axes) <= 1.0
    inner[near] = total / _SUBDIVISIONS**3
    share[box] = inner
    return share


_CORNERS = np.array([[1, j, i] for j in (-1, 1) for i in (-1, 1)], dtype=np.float64)

_Box = tuple[slice, slice, slice]


def _box_around(part: Part, planes: Planes, margin_mm: float) -> _Box | None:
    """The planes, rows and columns that may hold a part; None where there are none."""
    reach = part.reach_mm + margin_mm
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * reach + part.centre_mm
    normal = planes.normal
    along = corners @ normal
    at = planes.origins_mm @ normal
    touched = np.flatnonzero((at >= along.min()) & (at <= along.max()))
    if not len(touched):
        return None
    first, last = int(touched.min()), int(touched.max())
    # Pixel indices by the dual basis; planes of one stack may be shifted in-plane against each other (tilt).
    basis = np.linalg.pinv(np.stack([planes.column, planes.row]).T)
    spans = []
    for axis, length in ((0, planes.rows), (1, planes.columns)):
        index = (corners @ basis[axis])[:, None] - planes.origins_mm[first : last + 1] @ basis[axis]
        low, high = max(0, math.floor(float(index.min()))), min(length, math.ceil(float(index.max())) + 1)
        if low >= high:
            return None
        spans.append(slice(low, high))
    return slice(first, last + 1), spans[0], spans[1]


def _points(planes: Planes, box: _Box) -> NDArray[np.float64]:
    """LPS of the pixel centres in a box."""
    n, j, i = box
    start = planes.origins_mm[n] + j.start * planes.column + i.start * planes.row
    return replace(planes, origins_mm=start, rows=j.stop - j.start, columns=i.stop - i.start).centres_mm


@dataclass(frozen=True)
class Contrast:
    """What each part looks like.

    Attributes
    ----------
    values
        By name of the part: HU in CT, arbitrary units in MR.
    noise
        Standard deviation of each voxel's noise, in the same unit; Rician in MR.
    bias
        Relative strength of the slowly varying receive field of MR; 0 in CT.
    """

    modality: str
    air: float
    values: Mapping[str, float]
    noise: float
    bias: float = 0.0


def _contrast_values(*values: float) -> Mapping[str, float]:
    return dict(zip((BODY, *ORGANS), values, strict=True))


# Like the inserts of a calibration phantom, each organ has a level of its own: a small network learns them in minutes.
CT = Contrast("CT", -1000.0, _contrast_values(-50.0, 150.0, 350.0, 600.0, 900.0, 1250.0), noise=15.0)
MR = Contrast("MR", 0.0, _contrast_values(320.0, 400.0, 490.0, 590.0, 710.0, 850.0), noise=10.0, bias=0.05)


def image_on(patient: Patient, planes: Planes, contrast: Contrast, seed: int = 0) -> NDArray[np.float32]:
    """What the scanner sees: float32, (N, rows, columns), HU in CT; each voxel is the mean over its extent."""
    image = np.full(planes.shape, contrast.air, dtype=np.float32)
    image += share_on(patient.body, planes) * (contrast.values[BODY] - contrast.air)
    for organ in patient.organs:
        image += share_on(organ, planes) * (contrast.values[organ.name] - contrast.values[BODY])
    rng = np.random.default_rng(seed)
    if contrast.modality == "CT":
        return np.asarray(image + contrast.noise * rng.standard_normal(planes.shape, dtype=np.float32))
    if contrast.bias:
        image *= _receive_field(planes, contrast.bias, rng)
    # A magnitude image: the noise of both channels, so air is never exactly zero.
    real = image + contrast.noise * rng.standard_normal(planes.shape, dtype=np.float32)
    return np.asarray(np.hypot(real, contrast.noise * rng.standard_normal(planes.shape, dtype=np.float32)))


def volume(patient: Patient, grid: Grid, contrast: Contrast, seed: int = 0) -> Volume:
    """`image_on` the planes of a grid, as a Volume."""
    return Volume(grid, image_on(patient, Planes.of(grid), contrast, seed), contrast.modality)


def _receive_field(planes: Planes, strength: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A smooth factor around 1: a slope and a bowl over the body's size."""
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    along = planes.centres_mm @ (direction / 110.0)
    return np.asarray(1.0 + strength * (along - 0.5 * along**2), dtype=np.float32)


def centroids_mm(labels: NDArray[np.uint8], planes: Planes, wanted: Sequence[int]) -> dict[int, NDArray[np.float64]]:
    """The mean LPS position of each wanted label that has pixels: float64, (3,), mm."""
    found = {}
    for label in wanted:
        n, j, i = np.nonzero(labels == label)
        if len(n):
            points = planes.origins_mm[n] + j[:, None] * planes.column + i[:, None] * planes.row
            found[label] = points.mean(axis=0)
    return found
