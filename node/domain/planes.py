"""Where the planes of a scan lie: order, step, tilt and gaps, judged from position and orientation alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from node.domain.instance import FrameHeader, SourceFrame

SAME_POSITION_MM = 0.02
"""Planes nearer than this along the normal lie in one place; DS rounding stays below it."""
_NORM_OFF, _DOT_OFF = 1e-3, 1e-3
_UNIFORM_MM, _UNIFORM_PART = 0.05, 0.01
_JITTER_PART = 0.10
_TILT_DEG = 0.1
_INTEGER_OFF = 0.15
"""How far a wide step may be from a whole number of steps and still be a gap that lost slices explain."""
_GAPS_TOLD = 5


class Lattice(StrEnum):
    """How the planes of a stack lie."""

    REGULAR = "regular"
    """One step, along the normal: the frames are the grid."""
    SHEARED = "sheared"
    """One step, not along the normal (gantry tilt): resampled for inference, labels mapped back."""
    UNEVEN = "uneven"
    """Several steps without a gap (bed overlap, variable thickness): resampled, weighted slices."""


@dataclass(frozen=True)
class StackGeometry:
    """Where the planes of a stack lie; judged from ImagePositionPatient and ImageOrientationPatient alone.

    Attributes
    ----------
    row_direction, column_direction
        Unit vectors, LPS: along a row (index i grows) and along a column (index j grows).
    normal
        row x column, unit; the frames of a stack are in the order in which position . normal grows.
    distances_mm
        Position of each plane along the normal, in frame order.
    step_mm
        Median distance of neighbours along the normal; 0 for a single plane.
    tilt_deg
        Angle between the step from plane to plane and the normal.
    """

    rows: int
    columns: int
    pixel_spacing_mm: tuple[float, float]
    row_direction: tuple[float, float, float]
    column_direction: tuple[float, float, float]
    normal: tuple[float, float, float]
    distances_mm: tuple[float, ...]
    step_mm: float
    tilt_deg: float
    lattice: Lattice

    @property
    def slice_extents_mm(self) -> tuple[float, ...]:
        """How far along the normal each plane speaks for: half the way to both neighbours (ASM-35)."""
        d = np.asarray(self.distances_mm)
        if len(d) == 1:
            return (self.step_mm,)
        steps = np.diff(d)
        before, after = np.concatenate(([steps[0]], steps)), np.concatenate((steps, [steps[-1]]))
        return tuple(float(x) for x in (before + after) / 2)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """How far the scan reaches along (slices, rows, columns), half a voxel at each side included."""
        depth = sum(self.slice_extents_mm)
        return depth, self.rows * self.pixel_spacing_mm[0], self.columns * self.pixel_spacing_mm[1]


@dataclass(frozen=True)
class Gap:
    """Where slices are missing.

    Attributes
    ----------
    after
        Index, in stack order, of the last frame before the gap.
    missing
        How many slices: round(gap / step) - 1 (ASM-31).
    positions_mm
        Where they would lie along the normal.
    """

    after: int
    missing: int
    positions_mm: tuple[float, ...]


@dataclass(frozen=True)
class Planes:
    """Frames that lie as a scan does.

    Attributes
    ----------
    order
        Indices of the frames given, in the order of the stack.
    gaps
        Empty, unless the caller asked to bear them.
    """

    order: tuple[int, ...]
    geometry: StackGeometry
    flags: tuple[str, ...]
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True)
class Misfit:
    """Frames that do not lie as a scan does, and why; `order` and `gaps` as in `Planes`."""

    reason: str
    detail: str
    order: tuple[int, ...] = ()
    gaps: tuple[Gap, ...] = ()


def orientation_fault(frame: FrameHeader) -> str:
    """Why the direction cosines cannot be mended, or nothing (ASM-30, PS3.3 C.7.6.2.1.1)."""
    if frame.orientation is None:
        return "no ImageOrientationPatient"
    row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    norms = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(norm - 1.0) for norm in norms) > _NORM_OFF:
        return f"direction cosines of length {norms[0]:.4f} and {norms[1]:.4f}"
    dot = float(row @ column)
    return f"direction cosines at {math.degrees(math.acos(dot)):.2f} degrees" if abs(dot) >= _DOT_OFF else ""


def axes_of(frames: Sequence[SourceFrame]) -> NDArray[np.float64]:
    """Row, column and normal of parallel frames, made orthonormal: float64, (3, 3), one axis a row, LPS."""
    cosines = np.array([source.frame.orientation for source in frames], dtype=np.float64).mean(axis=0)
    row = cosines[:3] / np.linalg.norm(cosines[:3])
    column = cosines[3:] - row * (cosines[3:] @ row)
    column /= np.linalg.norm(column)
    return np.array([row, column, np.cross(row, column)])


def positions_of(frames: Sequence[SourceFrame]) -> NDArray[np.float64]:
    """ImagePositionPatient of each frame: float64, (N, 3), LPS mm."""
    return np.array([source.frame.position_mm for source in frames], dtype=np.float64)


def judge(frames: Sequence[SourceFrame], bear_gaps: bool = False) -> Planes | Misfit:
    """Order parallel frames of one size, and say how they lie (ASM-30 to ASM-35).

    Parameters
    ----------
    frames
        Each with position, mendable orientation and pixel spacing; no two in one place.
    bear_gaps
        Take a scan with missing slices as an uneven one, rather than as a misfit.
    """
    if len(frames) < 2:
        return Misfit("single_slice", "one plane is no volume", tuple(range(len(frames))))
    axes = axes_of(frames)
    local = positions_of(frames) @ axes.T
    order = tuple(int(n) for n in np.argsort(local[:, 2], kind="stable"))
    local = local[list(order)]
    sorted_frames = [frames[n] for n in order]
    drift_deg, stray_mm = _lateral(local)
    smallest_mm = min(sorted_frames[0].frame.pixel_spacing_mm or (1.0, 1.0))
    if stray_mm > smallest_mm / 2:
        return Misfit("irregular_spacing", _stray_text(local, sorted_frames, stray_mm), order)
    uniformity = _uniformity(local[:, 2])
    gaps = find_gaps(local[:, 2], _thicknesses(sorted_frames)) if uniformity is None else ()
    if gaps and not bear_gaps:
        return Misfit("missing_slices", _gap_text(gaps, local[:, 2], sorted_frames), order, gaps)
    tilted = drift_deg > _TILT_DEG and _drift_mm(local) > smallest_mm / 10
    lattice = Lattice.SHEARED if tilted or stray_mm > smallest_mm / 10 else Lattice.REGULAR
    lattice = lattice if uniformity == "uniform" else Lattice.UNEVEN
    flags = [
        *(["orientation_corrected"] if _corrected(sorted_frames) else []),
        *(["tilted"] if tilted else []),
        *(["jitter"] if uniformity == "jitter" else ["uneven"] if uniformity is None else []),
        *(["resampled"] if lattice is not Lattice.REGULAR else []),
    ]
    return Planes(order, _geometry(sorted_frames, axes, local[:, 2], drift_deg, lattice), tuple(flags), gaps)


def find_gaps(
    distances_mm: Sequence[float] | NDArray[np.float64], thicknesses_mm: Sequence[float | None]
) -> tuple[Gap, ...]:
    """Steps that lost slices explain, in sorted positions along the normal (ASM-31).

    A wide step is no gap where the slices on both sides touch and are thicker than usual by as much as the step is
    wider (variable thickness: SliceThickness as cross-check; slices that overlap touch across a lost one too), nor
    where it belongs to a run of equal wide steps that is no multiple of the usual one (two table feeds in one series).
    """
    steps = np.diff(np.asarray(distances_mm, dtype=np.float64))
    if len(steps) < 2:
        return ()
    usual = float(np.median(steps))
    thicknesses = _thickness_of_steps(thicknesses_mm)
    usual_thickness = _usual_thickness(steps, usual, thicknesses)
    gaps = []
    for after, step in enumerate(steps):
        ratio = float(step) / usual
        missing = round(ratio) - 1
        if missing < 1 or _thicker(float(step), ratio, thicknesses[after], usual_thickness):
            continue
        if abs(ratio - round(ratio)) > _INTEGER_OFF and _in_run(steps, after):
            continue
        first, width = float(distances_mm[after]), float(step) / (missing + 1)
        gaps.append(Gap(after, missing, tuple(first + width * n for n in range(1, missing + 1))))
    return tuple(gaps)


def _thickness_of_steps(thicknesses_mm: Sequence[float | None]) -> list[float | None]:
    """The mean SliceThickness of the two slices that each step joins; None where one of them states none."""
    return [
        None if before is None or after is None else (before + after) / 2 for before, after in pairwise(thicknesses_mm)
    ]


def _usual_thickness(steps: NDArray[np.float64], usual: float, thicknesses_mm: Sequence[float | None]) -> float | None:
    """The thickness at the steps that are not wide; None where nothing states it."""
    narrow = steps <= usual * (1 + _JITTER_PART)
    known = [mm for mm, taken in zip(thicknesses_mm, narrow, strict=True) if taken and mm is not None]
    return float(np.median(known)) if known else None


def _thicker(step: float, ratio: float, thickness: float | None, usual_thickness: float | None) -> bool:
    """Whether a step is `ratio` times the usual one because its slices are as much thicker, and they touch."""
    if thickness is None or usual_thickness is None:
        return False
    slack = 1 + _JITTER_PART
    return step <= thickness * slack and ratio * usual_thickness <= thickness * slack


def _in_run(steps: NDArray[np.float64], at: int) -> bool:
    """Whether a neighbouring step is as wide."""
    neighbours = [steps[n] for n in (at - 1, at + 1) if 0 <= n < len(steps)]
    return any(abs(step - steps[at]) <= _UNIFORM_PART * steps[at] for step in neighbours)


def _uniformity(distances: NDArray[np.float64]) -> str | None:
    """`uniform`, `jitter` or None, by the residual of a regression of position on index (ASM-31)."""
    index = np.arange(len(distances), dtype=np.float64)
    slope, start = np.polyfit(index, distances, 1)
    residual = float(np.abs(distances - (start + slope * index)).max())
    if residual <= max(_UNIFORM_MM, _UNIFORM_PART * slope):
        return "uniform"
    return "jitter" if residual <= _JITTER_PART * slope else None


def _lateral(local: NDArray[np.float64]) -> tuple[float, float]:
    """Tilt in degrees (ASM-33), and the largest distance in mm, inside the plane, from an even drift."""
    along = local[:, 2] - local[:, 2].mean()
    aside = local[:, :2] - local[:, :2].mean(axis=0)
    slopes = (along @ aside) / (along @ along)
    stray = np.linalg.norm(aside - along[:, None] * slopes, axis=1).max()
    return math.degrees(math.atan(float(np.linalg.norm(slopes)))), float(stray)


def _drift_mm(local: NDArray[np.float64]) -> float:
    """How far the last plane lies aside of the first."""
    return float(np.linalg.norm(local[-1, :2] - local[0, :2]))


def _thicknesses(frames: Sequence[SourceFrame]) -> list[float | None]:
    return [source.header.slice_thickness_mm for source in frames]


def _corrected(frames: Sequence[SourceFrame]) -> bool:
    """Whether the cosines were off by more than their rounding explains."""
    given = np.array([source.frame.orientation for source in frames], dtype=np.float64)
    row, column = given[:, :3], given[:, 3:]
    norms = np.abs(np.linalg.norm(given.reshape(-1, 3), axis=1) - 1.0)
    return float(max(norms.max(), np.abs((row * column).sum(axis=1)).max())) > 1e-4


def _geometry(
    frames: Sequence[SourceFrame],
    axes: NDArray[np.float64],
    distances: NDArray[np.float64],
    tilt_deg: float,
    lattice: Lattice,
) -> StackGeometry:
    spacing = np.array([source.frame.pixel_spacing_mm for source in frames], dtype=np.float64).mean(axis=0)
    row, column, normal = ((float(axis[0]), float(axis[1]), float(axis[2])) for axis in axes)
    header = frames[0].header
    return StackGeometry(
        rows=header.rows,
        columns=header.columns,
        pixel_spacing_mm=(float(spacing[0]), float(spacing[1])),
        row_direction=row,
        column_direction=column,
        normal=normal,
        distances_mm=tuple(float(d) for d in distances),
        step_mm=float(np.median(np.diff(distances))),
        tilt_deg=tilt_deg,
        lattice=lattice,
    )


def _gap_text(gaps: Sequence[Gap], distances: NDArray[np.float64], frames: Sequence[SourceFrame]) -> str:
    """Which slices are missing: positions along the normal, and the instance numbers on both sides."""
    told = []
    for gap in gaps[:_GAPS_TOLD]:
        before, after = frames[gap.after].header, frames[gap.after + 1].header
        where = ", ".join(f"{position:.2f}" for position in gap.positions_mm[:_GAPS_TOLD])
        first, second = before.instance_number, after.instance_number
        told.append(
            f"{gap.missing} at {where} mm, between instance {_number(first)} at {distances[gap.after]:.2f} mm"
            f" and instance {_number(second)} at {distances[gap.after + 1]:.2f} mm"
            f"{_lost_numbers(first, second, gap.missing)}"
        )
    more = f"; and {len(gaps) - _GAPS_TOLD} more gaps" if len(gaps) > _GAPS_TOLD else ""
    total = sum(gap.missing for gap in gaps)
    return f"{total} slice{'s' if total > 1 else ''} missing along the normal: {'; '.join(told)}{more}"


def _lost_numbers(before: int | None, after: int | None, missing: int) -> str:
    """The instance numbers that the gap swallowed, where the numbers on both sides leave room for just as many."""
    if before is None or after is None or before == after:
        return ""
    low, high = sorted((before, after))
    if high - low == 1:
        return " (their instance numbers follow each other)"
    if high - low - 1 != missing:
        return ""
    lost = f"{low + 1}" if missing == 1 else f"{low + 1} to {high - 1}"
    return f" (instance {lost} lacking)"


def _number(number: int | None) -> str:
    return "without number" if number is None else str(number)


def _stray_text(local: NDArray[np.float64], frames: Sequence[SourceFrame], stray_mm: float) -> str:
    numbers = [_number(source.header.instance_number) for source in frames]
    return (
        f"planes lie up to {stray_mm:.2f} mm aside of an even drift, between instance {numbers[0]} at"
        f" {local[0, 2]:.2f} mm and instance {numbers[-1]} at {local[-1, 2]:.2f} mm"
    )
