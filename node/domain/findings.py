"""What was found in one scan: a volume for each segment, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from engines.measures import count_by_slice
from node.domain.planes import StackGeometry
from node.domain.segments import SegmentDescription
from node.domain.stack import FrameLabels, Stack
from node.errors import ConfigError

SCAN_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "resampled": "The slices were resampled for segmentation; results lie on the original slices.",
        "lossy": "The images went through lossy compression.",
        "partial": "The series is incomplete: slices are missing.",
        "tilted": "The gantry was tilted; volumes use the distance of the slices along their normal.",
        "orientation_corrected": "The slices' directions were not quite at right angles and were corrected.",
        "jitter": "The distances of the slices differ slightly.",
        "uneven": "The slices lie at uneven distances; each counts by its own share.",
    }
)
"""What the words of `Stack.flags` mean to a reader; a flag that is not here is shown as it is."""


class Outcome(StrEnum):
    """The answer for one segment; every segment of a chosen model gets one."""

    MEASURED = "measured"
    PARTIAL = "partial"
    """Cut by the edge of the scan: the volume is a lower bound."""
    NOT_FOUND = "not_found"
    NOT_EVALUATED = "not_evaluated"


@dataclass(frozen=True)
class Finding:
    """One segment's answer."""

    label: int
    """The label in the model's label map."""
    segment: SegmentDescription
    outcome: Outcome
    voxels: int
    volume_ml: float | None
    """Unrounded; None where nothing was found or evaluated. 1 mL is 1 cm3."""
    segment_number: int | None
    """SegmentNumber in the SEG, from 1 without gaps; None where the segment is not in it."""
    flags: tuple[str, ...] = ()
    """Sentences for a reader: outside the plausible range, in several pieces, ..."""


_MOST_OF_CHOICE = 200


@dataclass(frozen=True)
class Provenance:
    """What made a result; written into SEG, SR and PDF."""

    model_name: str
    model_version: str
    model_digest: str
    backend: str
    precision: str
    device: str
    backend_reason: str
    """Why this engine served, with its certificate, and what was said of each other."""
    config_digest: str
    software_version: str
    versions: str = ""
    """Of the libraries that computed."""
    way: str = ""
    """Where sums were held, and of what."""
    looser_limits: str = ""
    """Those of the site that an engine's certificate was judged by, in words, where they are looser than the default.
    """

    @property
    def choice(self) -> str:
        """Why this engine served, for results: it and its certificate alone, cut to a length that viewers bear.

        What is said of the others may hold paths and words of foreign programs: that stays in journal and log.
        """
        taken = self.backend_reason.partition("; ")[0]
        cut = taken if len(taken) <= _MOST_OF_CHOICE else f"{taken[: _MOST_OF_CHOICE - 3]}..."
        return f"{cut}, by looser limits of this site: {self.looser_limits}" if cut and self.looser_limits else cut

    @property
    def engine(self) -> str:
        """Backend, precision, versions and device, as one phrase."""
        versions = f" ({self.versions})" if self.versions else ""
        return f"{self.backend} {self.precision}{versions} on {self.device}"


@dataclass(frozen=True)
class Findings:
    """All answers for one scan, in the order of the model's labels."""

    findings: tuple[Finding, ...]
    provenance: Provenance
    flags: tuple[str, ...] = ()
    """Flags of the whole scan: resampled for tilt, lossy source, partial series, ..."""

    @property
    def present(self) -> tuple[Finding, ...]:
        """The findings that have voxels, in segment number order."""
        return tuple(finding for finding in self.findings if finding.segment_number is not None)


def measure(
    stack: Stack,
    labels: FrameLabels,
    segments: Mapping[str, SegmentDescription],
    provenance: Provenance,
    *,
    unreported: Collection[int] = (),
    flags: Sequence[str] = (),
) -> Findings:
    """The answer for every label that the model can give, on the planes that the SEG is cut from (ASM-37).

    A voxel speaks for row spacing x column spacing x the extent of its plane along the normal (ASM-35). What touches
    the first or last plane or the border of the image is PARTIAL; what has no voxel is NOT_FOUND (RES-6).

    Parameters
    ----------
    segments
        The table of `load_segments`.
    unreported
        Labels that the model needs and no reader wants, such as the body; left out of everything.
    flags
        Flags of the whole scan, beside those of the stack.

    Raises
    ------
    ConfigError
        Where a reported label has no row in the table.
    """
    reported = sorted(label for label in labels.names if label not in unreported)
    counts = count_by_slice(labels.labels, max((*labels.names, int(labels.labels.max()))))
    edges = _edges(labels.labels, counts, stack.geometry)
    volumes = _slice_ml(stack.geometry) @ counts
    findings: list[Finding] = []
    number = 0
    for label in reported:
        voxels = int(counts[:, label].sum())
        number += voxels > 0
        segment = _segment(labels.names[label], segments)
        place, volume_ml, where = number if voxels else None, float(volumes[label]), edges.get(label, ())
        findings.append(_finding(label, segment, voxels, volume_ml=volume_ml, number=place, edges=where))
    sentences = dict.fromkeys(SCAN_FLAGS.get(flag, flag) for flag in (*stack.flags, *flags))
    return Findings(tuple(findings), provenance, tuple(sentences))


def readable_ml(volume_ml: float, outcome: str = Outcome.MEASURED) -> str:
    """A volume for people, three digits or so: a lower bound says that it is one, and what is there is never 0."""
    partial = outcome == Outcome.PARTIAL
    if volume_ml < 0.01:
        return "> 0" if partial else "< 0.01"
    digits = 0 if volume_ml >= 100 else 1 if volume_ml >= 10 else 2
    return f"{'>= ' if partial else ''}{volume_ml:.{digits}f}"


def segment_numbers(findings: Findings) -> NDArray[np.uint8]:
    """uint8, (256,): the SegmentNumber for each label; 0 for background, absent and unreported labels."""
    table = np.zeros(256, dtype=np.uint8)
    for finding in findings.present:
        table[finding.label] = finding.segment_number or 0
    return table


def _segment(name: str, segments: Mapping[str, SegmentDescription]) -> SegmentDescription:
    """The row of a label."""
    if name not in segments:
        raise ConfigError(f"segments.csv has no row for the label {name!r}; add one")
    return segments[name]


def _slice_ml(geometry: StackGeometry) -> NDArray[np.float64]:
    """float64, (N,): what one pixel of each plane stands for, in mL."""
    return np.asarray(geometry.slice_extents_mm) * geometry.pixel_spacing_mm[0] * geometry.pixel_spacing_mm[1] / 1000.0


def _finding(
    label: int,
    segment: SegmentDescription,
    voxels: int,
    *,
    volume_ml: float,
    number: int | None,
    edges: Sequence[str],
) -> Finding:
    """One answer, with the sentences that belong to it."""
    if number is None:
        absent = "Not found; the organ may lie outside the scan."
        return Finding(label, segment, Outcome.NOT_FOUND, 0, None, None, (absent,))
    if volume_ml <= 0:
        alone = "Not measured: a single plane has no extent along its normal."
        return Finding(label, segment, Outcome.NOT_EVALUATED, voxels, None, number, (alone,))
    flags = [f"Reaches {' and '.join(edges)}; the volume is a lower bound."] if edges else []
    flags += _implausible(segment, volume_ml, partial=bool(edges))
    outcome = Outcome.PARTIAL if edges else Outcome.MEASURED
    return Finding(label, segment, outcome, voxels, volume_ml, number, tuple(flags))


def _implausible(segment: SegmentDescription, volume_ml: float, *, partial: bool) -> list[str]:
    """A sentence where the volume lies outside the plausible range; a cut organ may be smaller (RES-12)."""
    if segment.plausible_ml is None:
        return []
    low, high = segment.plausible_ml
    if volume_ml > high or (volume_ml < low and not partial):
        return [f"Outside the plausible range of {low:g} to {high:g} mL; check the outline."]
    return []


def _edges(labels: NDArray[np.uint8], counts: NDArray[np.int64], geometry: StackGeometry) -> dict[int, tuple[str, ...]]:
    """For each label that touches the edge of what was scanned, where."""
    first, last = _ends(geometry.normal)
    border = np.zeros(counts.shape[1], dtype=bool)
    for side in (labels[:, 0, :], labels[:, -1, :], labels[:, :, 0], labels[:, :, -1]):
        border[np.unique(side)] = True
    touched: dict[int, tuple[str, ...]] = {}
    for label in range(1, counts.shape[1]):
        where = [
            name
            for name, touches in (
                (f"the {first} end of the scan", counts[0, label] > 0),
                (f"the {last} end of the scan", counts[-1, label] > 0),
                ("the border of the image", border[label]),
            )
            if touches
        ]
        if where:
            touched[label] = tuple(where)
    return touched


def _ends(normal: Sequence[float]) -> tuple[str, str]:
    """What the first and the last plane are nearest to in the patient (LPS)."""
    axis = int(np.argmax(np.abs(normal)))
    names = (("right", "left"), ("anterior", "posterior"), ("inferior", "superior"))[axis]
    return names if normal[axis] > 0 else (names[1], names[0])
