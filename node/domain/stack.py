"""Frames of one series that form one scan: how they are told apart, ordered and judged (REQUIREMENTS 2.3 and 2.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from node.domain.instance import FrameHeader, InstanceHeader


class Lattice(StrEnum):
    """How the planes of a stack lie."""

    REGULAR = "regular"
    """One step, along the normal: the frames are the grid."""
    SHEARED = "sheared"
    """One step, not along the normal (gantry tilt): resampled for inference, labels mapped back."""
    UNEVEN = "uneven"
    """Several steps without a gap (bed overlap, variable thickness): resampled, weighted slices."""


@dataclass(frozen=True)
class SourceFrame:
    """One plane of a stack and where it came from."""

    header: InstanceHeader
    frame: FrameHeader

    @property
    def sop_instance_uid(self) -> str:
        """SOP Instance UID of the object that holds the frame."""
        return self.header.sop_instance_uid


@dataclass(frozen=True)
class Dropped:
    """A frame that is not part of any stack, and why."""

    sop_instance_uid: str
    frame_number: int
    reason: str
    """`duplicate_position`, `localizer`, ... : a word of a closed set."""


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


@dataclass(frozen=True)
class Stack:
    """Frames of one snapshot that form one scan, in order, each with its own plane position."""

    frames: tuple[SourceFrame, ...]
    geometry: StackGeometry
    volume_id: str
    """SHA-256 over sorted SOP Instance UIDs and frame numbers (ASM-24)."""
    keys: Mapping[str, str]
    """What told this stack apart from others of its series, for `hilum explain`."""
    flags: tuple[str, ...] = ()
    """What a reader of the result should know: `resampled`, `lossy`, `partial`, ..."""
    dropped: tuple[Dropped, ...] = ()


@dataclass(frozen=True)
class Unstackable:
    """Frames that form no scan that a model can be run on, and why; nothing of a series is forgotten (ASM-56)."""

    frames: tuple[SourceFrame, ...]
    reason: str
    """A word of a closed set: `missing_slices`, `irregular_spacing`, `mosaic`, `localizer`, `ambiguous`, ..."""
    detail: str
    keys: Mapping[str, str]
    quarantined: bool = False
    """Content in doubt, rather than not of use."""


@dataclass(frozen=True, eq=False)
class FrameLabels:
    """Labels on the source frames of a stack: what SEG, measures and report are cut from.

    Attributes
    ----------
    labels
        uint8, (N, rows, columns), in the order of `Stack.frames`; 0 is background.
    names
        Every label that the model can give, absent ones included.
    """

    labels: NDArray[np.uint8]
    names: Mapping[int, str]
