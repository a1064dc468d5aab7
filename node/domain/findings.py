"""What was found in one scan: a volume for each segment, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from node.domain.segments import SegmentDescription


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
    config_digest: str
    software_version: str


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
