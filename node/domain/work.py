"""What the stations are handed by the journal and hand back to it: rows to work on, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from node.domain.instance import Sender
from node.domain.job import Delivery, Job, ObjectKind, ResultObject
from node.domain.series import Completeness, Evidence, SeriesActivity


class Station(StrEnum):
    """The stations that run as durable work; each has a queue of its name."""

    ASSEMBLE = "assemble"
    SEGMENT = "segment"
    DELIVER = "deliver"


@dataclass(frozen=True)
class WorkRow:
    """A series, job or delivery that is due or running."""

    station: Station
    id: int
    attempt: int
    running: bool
    """Begun and not ended; else it is due and waits."""
    lease_at: datetime | None
    """When the process that runs it last said so."""
    priority: int = 100
    """Larger is sooner."""
    destination: str = ""
    """Of a delivery."""

    @property
    def key(self) -> str:
        """The id of the work in the durable engine: the attempt makes each try another work."""
        return f"{self.station}.{self.id}.{self.attempt}"


@dataclass(frozen=True)
class OpenSeries:
    """A series that slices may still come for."""

    id: int
    revision: int
    arrivals: int
    sender: str
    """Name of the peer that opened it: its own quiet time may apply."""
    activity: SeriesActivity
    """By the clock of the journal; silence must be measured by a monotonic clock (ASM-2)."""


@dataclass(frozen=True)
class MemberFile:
    """An instance of a series, and where its bytes are."""

    instance_id: int
    sop_instance_uid: str
    sop_class_uid: str
    path: Path
    sender: Sender
    """Who sent these bytes; the slices of one series may come from several peers (RES-42)."""
    purged: bool = False
    unread: bool = False
    """Its header could not be read when the series was last judged."""


@dataclass(frozen=True)
class SeriesWork:
    """What `assemble` works on: the series as it was when the work began."""

    id: int
    attempt: int
    series_instance_uid: str
    revision: int
    arrivals: int
    """Counts every instance that came; the series settles only while it is still this."""
    evidence: Evidence | None
    """Why it is taken as whole; None: only asked whether one object, or one concatenation, is a whole."""
    sender: Sender
    conflict: str
    members: tuple[MemberFile, ...]
    last_received_at: datetime
    starts: int = 1
    """How often this was begun and not ended, this time included."""
    late: int = 0
    """Instances that came after an earlier revision had been settled (ASM-5)."""


@dataclass(frozen=True)
class JobDraft:
    """A job to be made."""

    rule: str
    model: str
    model_digest: str
    config_digest: str
    destinations: tuple[str, ...]
    priority: int
    pixels: int
    """Rows times columns of a frame."""


@dataclass(frozen=True)
class PartDraft:
    """What becomes of one stack, or of frames that form none."""

    frames: int
    volume_id: str
    keys: Mapping[str, str]
    sop_instance_uids: tuple[str, ...]
    dropped: tuple[tuple[str, int, str], ...]
    outcome: str
    """`processed`, `ineligible`, `quarantined` or `failed`."""
    reason: str = ""
    detail: str = ""
    job: JobDraft | None = None


@dataclass(frozen=True)
class Settlement:
    """A settled revision: its evidence, its parts, and who is not part of it."""

    evidence: Evidence
    completeness: Completeness
    wait_s: float
    outcome: str
    """Of the series (ASM-56): `processed`, `ineligible`, `quarantined` or `failed`."""
    reason: str
    parts: tuple[PartDraft, ...] = ()
    quarantined: Mapping[int, str] = field(default_factory=dict)
    """Instance id -> reason."""
    conflict: str = ""
    """A doubt about the whole series that no later slice can mend."""


@dataclass(frozen=True)
class JobWork:
    """What `segment` works on."""

    job: Job
    members: tuple[MemberFile, ...]
    replaced_reports: Mapping[str, ResultObject]
    """By destination, the report of an earlier revision that it stored and that this job's report replaces (RES-34)."""
    unread: tuple[str, ...] = ()
    """SOP Instance UIDs of images of the series whose headers cannot be read: the scan may lack them (ASM-4)."""


@dataclass(frozen=True)
class DeliveryWork:
    """What `deliver` works on."""

    delivery: Delivery
    model: str
    objects: tuple[ResultObject, ...]
    """Every variant of the delivery's kind."""
    pixels: int
    sent_seg_variant: str | None
    """The form of SEG that this destination has stored."""
    replaced_report: str
    """SOP Instance UID of the report of an earlier revision that this destination has stored; empty: none."""
    first_received_at: datetime
    last_received_at: datetime


@dataclass(frozen=True)
class NewObject:
    """A composed object whose bytes lie in the spool."""

    kind: ObjectKind
    variant: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    path: Path
    sha256: str
    length: int = 0
    """Bytes of the file."""


@dataclass(frozen=True)
class PurgeLimits:
    """Bytes that ended before these times may go."""

    inputs: datetime
    """Images whose every result was delivered."""
    results: datetime
    """Results that were delivered, or overtaken by a newer revision."""
    unused: datetime
    """Images that no model was chosen for, or that it could not use, or whose result has no destination; held objects.
    """
    quarantined: datetime
    """What a person should look at: objects in doubt, images of what failed or could not be delivered everywhere."""
    committing: frozenset[str] = frozenset()
    """Destinations that commit: there, only COMMITTED counts as delivered."""
