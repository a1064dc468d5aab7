"""What the journal tells a person: series, jobs and deliveries with all that happened to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from node.domain.instance import Sender
from node.domain.job import Delivery, Job, ResultObject
from node.domain.series import SeriesState


@dataclass(frozen=True)
class Event:
    """One change of state."""

    at: datetime
    entity: str
    """`series`, `instance`, `job` or `delivery`."""
    entity_id: int
    attempt: int
    event: str
    from_state: str
    to_state: str
    reason: str


@dataclass(frozen=True)
class SeriesSummary:
    """One line of `hilum series`."""

    id: int
    series_instance_uid: str
    study_instance_uid: str
    sender: Sender
    state: SeriesState
    revision: int
    instances: int
    """Images that came for it, each time that they came with other bytes; held ones are not among them."""
    first_received_at: datetime
    last_received_at: datetime
    outcome: str
    """Empty while open; then one of a closed set: processed, ineligible, quarantined, held, failed (ASM-56)."""
    reason: str
    evidence: str
    completeness: str
    wait_s: float
    held: int
    """Objects that are stored for it and never processed."""


@dataclass(frozen=True)
class PartRecord:
    """What became of one stack, or of frames that form none, in one revision of a series."""

    revision: int
    number: int
    frames: int
    volume_id: str
    keys: Mapping[str, str]
    outcome: str
    """`processed`, `ineligible` or `quarantined`."""
    reason: str
    detail: str
    rule: str
    model: str
    job_id: int | None
    sop_instance_uids: tuple[str, ...]
    dropped: tuple[tuple[str, int, str], ...]
    """SOP Instance UID, frame number, reason: frames that are in no stack."""


@dataclass(frozen=True)
class InstanceRecord:
    """One kept instance."""

    id: int
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: str
    sender: Sender
    received_at: datetime
    state: str
    reason: str
    duplicates: int
    """How often the same bytes came again."""
    replaced: bool
    """Other bytes came later under the same UID."""
    purged: bool


@dataclass(frozen=True)
class SeriesRecord:
    """One series with everything that is known of it."""

    summary: SeriesSummary
    instances: tuple[InstanceRecord, ...]
    parts: tuple[PartRecord, ...]
    """Of every revision, the newest last."""
    jobs: tuple[Job, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True)
class JobRecord:
    """One job with everything that is known of it."""

    job: Job
    series: SeriesSummary
    detail: str
    """The sentence or the traceback behind `job.reason`."""
    result: Mapping[str, object]
    """What was measured: volumes, flags, backend, seconds of each step; empty before the job is composed."""
    objects: tuple[ResultObject, ...]
    deliveries: tuple[Delivery, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True)
class RefusedPeer:
    """Who knocked and was not let in; every text of it was chosen by the peer."""

    calling_ae_title: str
    called_ae_title: str
    address: str
    reason: str
    first_at: datetime
    last_at: datetime
    times: int


@dataclass(frozen=True)
class RoleRecord:
    """One process of the node, as its heartbeat shows it."""

    executor_id: str
    name: str
    pid: int
    started_at: datetime
    seen_at: datetime
