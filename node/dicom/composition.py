"""What a set of results is made from, and what comes of it: the types that the composers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydicom import Dataset

from engines.volume import Volume
from node.dicom.uids import result_uid
from node.domain.findings import Findings
from node.domain.instance import MANUFACTURER, MODEL_NAME
from node.domain.job import ObjectKind
from node.domain.stack import FrameLabels, Stack


def _no_zone(_at: datetime) -> str | None:
    return None


@dataclass(frozen=True)
class ResultStyle:
    """What a site and this product write into every result.

    Attributes
    ----------
    research_use
        Mark results as not for clinical use (RES-13).
    uid_root
        An organisation's UID root; None: 2.25 (RES-20).
    utc_offset
        The site's offset from UTC at a time, as `+0100`, for sources that do not say theirs; None: nothing is added.
        Asked for each result: a process runs through the change to summer time.
    deployment
        Name of this installation; part of every derived UID.
    preliminary
        Whether reports say PRELIMINARY (RES-11).
    utf8
        Re-encode all text to ISO_IR 192.
    """

    research_use: bool = True
    uid_root: str | None = None
    manufacturer: str = MANUFACTURER
    model_name: str = MODEL_NAME
    serial: str = "1"
    software_version: str = "0.1.0"
    utc_offset: Callable[[datetime], str | None] = _no_zone
    series_number_base: int = 9000
    deployment: str = "hilum"
    preliminary: bool = True
    utf8: bool = False


@dataclass(frozen=True)
class Predecessor:
    """A report of an earlier revision that a destination has, and that a new one for it replaces (RES-34)."""

    sr_sop_class_uid: str
    sr_sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True)
class Composition:
    """All that the results of one job are made from.

    Attributes
    ----------
    sources
        The headers of the stack's instances without pixel data, each instance once, in the order of the stack.
    volume
        The voxels, for the pictures of the readable report; None: a report without pictures.
    job_key
        What makes the job the only one of its kind; part of every derived UID.
    revision
        Which revision of the series this is, from 1.
    made_at
        When the results were made; aware.
    predecessors
        What destinations have of earlier revisions: a report is made for each, and one that names none, as no
        destination is to be told of a report that it never got (RES-34).
    series_turn
        Which of the rows of SeriesNumbers is free in the study (RES-14).
    """

    stack: Stack
    sources: Sequence[Dataset]
    volume: Volume | None
    labels: FrameLabels
    findings: Findings
    style: ResultStyle
    job_key: str
    revision: int
    made_at: datetime
    predecessors: tuple[Predecessor, ...] = ()
    series_turn: int = 0

    def uid(self, *role: str) -> str:
        """The UID of one thing in these results, named by its role; the same whenever they are made again."""
        made = self.findings.provenance
        return result_uid(
            self.style.uid_root,
            *(self.style.deployment, self.stack.volume_id, made.model_digest, made.config_digest),
            *(self.job_key, str(self.revision)),
            *role,
        )

    @property
    def model_uid(self) -> str:
        """DeviceUID of the algorithm: another one for every change of the model (IHE AIR 6.5.3.1)."""
        return result_uid(self.style.uid_root, "model", self.findings.provenance.model_digest)


@dataclass(frozen=True)
class Composed:
    """One result object on disk."""

    kind: ObjectKind
    variant: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    path: Path
    sha256: str
    readback_s: float = 0.0
    """How long it took to read it again and compare it with what it was made from."""
