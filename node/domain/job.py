"""Jobs and deliveries: their states, and the one table of what may follow what."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import overload

from node.errors import HilumError


class JobState(StrEnum):
    """One stack, one model."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPOSED = "composed"
    """Results are frozen in the spool; deliveries are due."""
    DONE = "done"
    """Every delivery has ended, at least one of them sent; or there was no destination."""
    REJECTED = "rejected"
    """The scan cannot serve; never tried again."""
    CANCELLED = "cancelled"
    FAILED = "failed"
    """A person must look."""


class DeliveryState(StrEnum):
    """One object, one destination."""

    PENDING = "pending"
    SENDING = "sending"
    SENT = "sent"
    COMMITTED = "committed"
    HELD = "held"
    CANCELLED = "cancelled"
    FAILED = "failed"


class JobEvent(StrEnum):
    """What happens to a job."""

    BEGIN = "begin"
    COMPOSE = "compose"
    FINISH = "finish"
    REJECT = "reject"
    RETRY_LATER = "retry_later"
    TAKE_OVER = "take_over"
    FAIL = "fail"
    CANCEL = "cancel"
    SUPERSEDE = "supersede"
    RETRY = "retry"
    """An operator asks again: the work is repeated."""
    RESEND = "resend"
    """An operator asks for what was not delivered: the frozen objects are sent again (RES-21)."""


class DeliveryEvent(StrEnum):
    """What happens to a delivery."""

    BEGIN = "begin"
    SENT = "sent"
    COMMITTED = "committed"
    RETRY_LATER = "retry_later"
    TAKE_OVER = "take_over"
    FAIL = "fail"
    HOLD = "hold"
    CANCEL = "cancel"
    SUPERSEDE = "supersede"
    RETRY = "retry"


JOB_TRANSITIONS: Mapping[tuple[JobState, JobEvent], JobState] = MappingProxyType(
    {
        (JobState.QUEUED, JobEvent.BEGIN): JobState.RUNNING,
        (JobState.RUNNING, JobEvent.BEGIN): JobState.RUNNING,
        (JobState.RUNNING, JobEvent.COMPOSE): JobState.COMPOSED,
        (JobState.COMPOSED, JobEvent.FINISH): JobState.DONE,
        (JobState.RUNNING, JobEvent.REJECT): JobState.REJECTED,
        (JobState.RUNNING, JobEvent.RETRY_LATER): JobState.QUEUED,
        (JobState.QUEUED, JobEvent.TAKE_OVER): JobState.QUEUED,
        (JobState.RUNNING, JobEvent.TAKE_OVER): JobState.QUEUED,
        (JobState.QUEUED, JobEvent.FAIL): JobState.FAILED,
        (JobState.RUNNING, JobEvent.FAIL): JobState.FAILED,
        (JobState.COMPOSED, JobEvent.FAIL): JobState.FAILED,
        (JobState.QUEUED, JobEvent.CANCEL): JobState.CANCELLED,
        (JobState.RUNNING, JobEvent.CANCEL): JobState.CANCELLED,
        (JobState.COMPOSED, JobEvent.CANCEL): JobState.CANCELLED,
        (JobState.QUEUED, JobEvent.SUPERSEDE): JobState.CANCELLED,
        (JobState.RUNNING, JobEvent.SUPERSEDE): JobState.CANCELLED,
        (JobState.COMPOSED, JobEvent.SUPERSEDE): JobState.CANCELLED,
        (JobState.FAILED, JobEvent.RETRY): JobState.QUEUED,
        (JobState.CANCELLED, JobEvent.RETRY): JobState.QUEUED,
        (JobState.REJECTED, JobEvent.RETRY): JobState.QUEUED,
        (JobState.FAILED, JobEvent.RESEND): JobState.COMPOSED,
        (JobState.DONE, JobEvent.RESEND): JobState.COMPOSED,
        (JobState.CANCELLED, JobEvent.RESEND): JobState.COMPOSED,
        (JobState.COMPOSED, JobEvent.RESEND): JobState.COMPOSED,
    }
)

DELIVERY_TRANSITIONS: Mapping[tuple[DeliveryState, DeliveryEvent], DeliveryState] = MappingProxyType(
    {
        (DeliveryState.PENDING, DeliveryEvent.BEGIN): DeliveryState.SENDING,
        (DeliveryState.SENDING, DeliveryEvent.BEGIN): DeliveryState.SENDING,
        (DeliveryState.SENDING, DeliveryEvent.SENT): DeliveryState.SENT,
        (DeliveryState.SENT, DeliveryEvent.COMMITTED): DeliveryState.COMMITTED,
        (DeliveryState.SENDING, DeliveryEvent.RETRY_LATER): DeliveryState.PENDING,
        (DeliveryState.PENDING, DeliveryEvent.TAKE_OVER): DeliveryState.PENDING,
        (DeliveryState.SENDING, DeliveryEvent.TAKE_OVER): DeliveryState.PENDING,
        (DeliveryState.PENDING, DeliveryEvent.FAIL): DeliveryState.FAILED,
        (DeliveryState.SENDING, DeliveryEvent.FAIL): DeliveryState.FAILED,
        (DeliveryState.PENDING, DeliveryEvent.HOLD): DeliveryState.HELD,
        (DeliveryState.SENDING, DeliveryEvent.HOLD): DeliveryState.HELD,
        (DeliveryState.PENDING, DeliveryEvent.CANCEL): DeliveryState.CANCELLED,
        (DeliveryState.HELD, DeliveryEvent.CANCEL): DeliveryState.CANCELLED,
        (DeliveryState.PENDING, DeliveryEvent.SUPERSEDE): DeliveryState.CANCELLED,
        (DeliveryState.SENDING, DeliveryEvent.SUPERSEDE): DeliveryState.CANCELLED,
        (DeliveryState.HELD, DeliveryEvent.SUPERSEDE): DeliveryState.CANCELLED,
        (DeliveryState.FAILED, DeliveryEvent.RETRY): DeliveryState.PENDING,
        (DeliveryState.HELD, DeliveryEvent.RETRY): DeliveryState.PENDING,
        (DeliveryState.CANCELLED, DeliveryEvent.RETRY): DeliveryState.PENDING,
        (DeliveryState.SENT, DeliveryEvent.RETRY): DeliveryState.PENDING,
    }
)


class ObjectKind(StrEnum):
    """What a result object is; the order is the order of sending."""

    SEG = "seg"
    SR = "sr"
    PDF = "pdf"


@dataclass(frozen=True)
class RetryPolicy:
    """When a refused or failed try is repeated: `first_s * 2**n` up to `longest_s`, with jitter, `tries` in all."""

    first_s: float = 30.0
    longest_s: float = 900.0
    tries: int = 300


@dataclass(frozen=True)
class Destination:
    """A peer that results are sent to, and what it takes."""

    name: str
    ae_title: str
    host: str
    port: int
    calling_ae_title: str
    seg: str = "auto"
    """`binary`, `labelmap`, or `auto`: LABELMAP where rows * columns % 8 != 0 and it is taken, else BINARY (RES-2)."""
    empty_frames: bool = False
    """Keep frames without a voxel in segmentations, for viewers that need one for each image (RES-4)."""
    sr: bool = True
    pdf: bool = True
    retry: RetryPolicy = RetryPolicy()
    network_timeout_s: float = 30.0
    dicomweb_url: str = ""
    """Base of its DICOMweb services, where the self-test reads results back."""


@dataclass(frozen=True)
class Job:
    """One stack, one model, its destinations, its state."""

    id: int
    series_id: int
    revision: int
    volume_id: str
    model: str
    model_digest: str
    config_digest: str
    destinations: tuple[str, ...]
    priority: int
    state: JobState
    attempt: int
    starts: int
    reason: str
    created_at: datetime
    due_at: datetime


@dataclass(frozen=True)
class ResultObject:
    """One composed object, frozen in the spool (RES-21)."""

    id: int
    job_id: int
    kind: ObjectKind
    variant: str
    """Which of the forms that destinations may need: `binary`, `labelmap`, `comprehensive3d-binary`, ..."""
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Delivery:
    """One kind of object, one destination, its state; which variant was sent is known once it was."""

    id: int
    job_id: int
    kind: ObjectKind
    destination: str
    state: DeliveryState
    attempt: int
    starts: int
    tries: int
    reason: str
    due_at: datetime
    sent_sop_instance_uid: str = ""


EXHAUSTED = "exhausted"
"""Reason of what was tried as often as its policy allows."""
MOST_STARTS = 3
"""How often a process may die over one row before the row is FAILED."""

ENDED_DELIVERIES = frozenset(
    {DeliveryState.SENT, DeliveryState.COMMITTED, DeliveryState.CANCELLED, DeliveryState.FAILED}
)
SENT_DELIVERIES = frozenset({DeliveryState.SENT, DeliveryState.COMMITTED})
ENDED_JOBS = frozenset({JobState.DONE, JobState.REJECTED, JobState.CANCELLED, JobState.FAILED})


class NotAllowed(HilumError):
    """The tables above do not know this event in this state."""


@overload
def advance(state: JobState, event: JobEvent) -> JobState: ...
@overload
def advance(state: DeliveryState, event: DeliveryEvent) -> DeliveryState: ...
def advance(state: JobState | DeliveryState, event: JobEvent | DeliveryEvent) -> JobState | DeliveryState:
    """The state that follows.

    Raises
    ------
    NotAllowed
        Where the table has no such entry.
    """
    if isinstance(state, JobState) and isinstance(event, JobEvent):
        following: JobState | DeliveryState | None = JOB_TRANSITIONS.get((state, event))
    elif isinstance(state, DeliveryState) and isinstance(event, DeliveryEvent):
        following = DELIVERY_TRANSITIONS.get((state, event))
    else:
        following = None
    if following is None:
        raise NotAllowed(f"{event.value} is not possible while {state.value}")
    return following


def next_due(policy: RetryPolicy, tries: int, now: datetime, jitter: float) -> datetime | None:
    """When to try again after `tries` failed tries, or None when that was the last (NET-23).

    `first_s * 2**(tries - 1)`, at most `longest_s`, times 0.75 to 1.25 as `jitter` goes from 0 to 1, so that the
    deliveries of an hour without PACS do not all return in one second.
    """
    if tries >= policy.tries:
        return None
    wait_s = min(policy.first_s * 2.0 ** min(tries - 1, 30), policy.longest_s)
    return now + timedelta(seconds=wait_s * (0.75 + jitter / 2))


def job_event(deliveries: Collection[DeliveryState]) -> JobEvent | None:
    """What the deliveries of a COMPOSED job make of it; None while one of them is still on its way.

    DONE when at least one was sent or there was no destination; CANCELLED when all were; else FAILED.
    """
    if not ENDED_DELIVERIES.issuperset(deliveries):
        return None
    if not deliveries or SENT_DELIVERIES.intersection(deliveries):
        return JobEvent.FINISH
    return JobEvent.FAIL if DeliveryState.FAILED in deliveries else JobEvent.CANCEL
