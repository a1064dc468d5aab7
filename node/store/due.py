"""What is due, and what may go: the queries of the sweep and the rule of the purge."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, case, exists, or_, select

from node.domain.instance import InstanceState
from node.domain.job import SENT_DELIVERIES, DeliveryState, JobState, ObjectKind
from node.domain.series import SeriesActivity, SeriesState
from node.domain.work import OpenSeries, PurgeLimits, Station, WorkRow
from node.store import schema as t

UNREADABLE = "unreadable_header"
"""Reason of an instance whose header cannot be read."""
_MOST = 200
"""Rows of one queue, or of one destination, that a sweep looks at."""

_s, _j, _d, _i, _o = t.series.c, t.job.c, t.delivery.c, t.instance.c, t.result_object.c


def due_series() -> Select[Any]:
    """Series judged whole, to be examined, or being worked on."""
    due = or_(_s.evidence != "", _s.examine, _s.lease_at.is_not(None))
    return select(t.series).where(_s.state == SeriesState.OPEN, due).order_by(_s.last_received_at).limit(_MOST)


def due_jobs(now: datetime) -> Select[Any]:
    """Jobs to run or running.

    A job waits while a result of an older revision of its series is being sent: its report must name that (RES-34).
    """
    waiting = and_(_j.state == JobState.QUEUED, _j.due_at <= now, ~_older_sending(_j.series_id, _j.revision))
    due = or_(waiting, _j.state == JobState.RUNNING)
    return select(t.job).where(due).order_by(_j.priority.desc(), _j.id).limit(_MOST)


def due_deliveries(destination: str, now: datetime) -> Select[Any]:
    """Deliveries to one destination to send or being sent.

    A report waits until the segmentation has ended at the same destination (NET-24), and all of a revision until
    nothing of an older one is being sent there.
    """
    before = t.delivery.alias("before")
    ended = [DeliveryState.SENT, DeliveryState.COMMITTED, DeliveryState.CANCELLED, DeliveryState.FAILED]
    turn = ~exists().where(
        before.c.job_id == _d.job_id,
        before.c.destination == _d.destination,
        before.c.id < _d.id,
        before.c.state.notin_(ended),
    )
    waiting = and_(
        _d.state == DeliveryState.PENDING,
        _d.due_at <= now,
        turn,
        ~_older_sending(_j.series_id, _j.revision, destination),
    )
    return (
        select(t.delivery, _j.priority)
        .join(t.job)
        .where(_d.destination == destination, or_(waiting, _d.state == DeliveryState.SENDING))
        .order_by(_j.priority.desc(), _d.due_at, _d.id)
        .limit(_MOST)
    )


def _older_sending(
    series_id: ColumnElement[int], revision: ColumnElement[int], destination: str | None = None
) -> ColumnElement[bool]:
    """Whether an object of an older revision of the series is on its way right now."""
    older, way = t.job.alias("older"), t.delivery.alias("way")
    conditions = [
        way.c.job_id == older.c.id,
        older.c.series_id == series_id,
        older.c.revision < revision,
        way.c.state == DeliveryState.SENDING,
    ]
    if destination is not None:
        conditions.append(way.c.destination == destination)
    return exists().where(*conditions)


def series_row(row: Row[Any]) -> WorkRow:
    """A series as work."""
    return WorkRow(Station.ASSEMBLE, row.id, row.attempt, row.lease_at is not None, row.lease_at)


def job_row(row: Row[Any]) -> WorkRow:
    """A job as work."""
    running = row.state == JobState.RUNNING
    return WorkRow(Station.SEGMENT, row.id, row.attempt, running, row.lease_at, row.priority)


def delivery_row(row: Row[Any]) -> WorkRow:
    """A delivery as work."""
    sending = row.state == DeliveryState.SENDING
    return WorkRow(Station.DELIVER, row.id, row.attempt, sending, row.lease_at, row.priority, row.destination)


def current_members(series_id: int) -> Select[Any]:
    """The instances that may become part of a stack: not held, not in doubt, not replaced by other bytes.

    Those that could not be read are among them, as whatever they belong to lacks them (ASM-4).
    """
    i = t.instance.c
    member = or_(i.state == InstanceState.KEPT, unread_instance())
    return select(t.instance).where(i.series_id == series_id, member, i.replaced_by.is_(None)).order_by(i.id)


def unread_instance() -> ColumnElement[bool]:
    """Whether an instance was put aside because its header cannot be read."""
    return and_(_i.state == InstanceState.QUARANTINED, _i.reason == UNREADABLE)


def sent_reports(job: Row[Any]) -> Select[Any]:
    """The reports of earlier revisions of a job's series, same model, that destinations have stored: latest first."""
    return (
        select(t.result_object, _j.split_keys, _d.destination)
        .join(t.job, _j.id == _o.job_id)
        .join(
            t.delivery,
            (_d.job_id == _o.job_id) & (_d.kind == _o.kind) & (_d.sent_sop_instance_uid == _o.sop_instance_uid),
        )
        .where(
            _j.series_id == job.series_id,
            _j.model == job.model,
            _j.revision < job.revision,
            _o.kind == ObjectKind.SR,
            _d.state.in_(sorted(SENT_DELIVERIES)),
        )
        .order_by(_j.revision.desc(), _d.ended_at.desc())
    )


def open_series(row: Row[Any], started_at: datetime | None, seen_at: datetime | None) -> OpenSeries:
    """An open series with the heartbeat of the listeners: the latest start, the oldest sign of life."""
    activity = SeriesActivity(
        first_received_at=row.opened_at,
        last_received_at=row.last_received_at,
        last_byte_at=row.byte_at,
        open_associations=row.carriers or 0,
        listener_started_at=started_at,
        listener_seen_at=seen_at,
        gapped=row.gapped,
    )
    return OpenSeries(row.id, row.revision, row.arrivals, row.sender_alias, activity)


def purgeable_instances(limits: PurgeLimits) -> Select[Any]:
    """Paths of received bytes that nobody needs any more.

    Of images, only those whose series is settled and that no job still needs; bytes that came again for a settled
    series are as young as their second coming.
    """
    kept_for = exists().where(
        t.member.c.instance_id == _i.id, _j.snapshot_id == t.member.c.snapshot_id, _still_needs_inputs(limits)
    )
    has_job = exists().where(t.member.c.instance_id == _i.id, _j.snapshot_id == t.member.c.snapshot_id)
    of_a_job = and_(has_job, ~kept_for, _ended(limits.inputs))
    of_none = and_(~has_job, _ended(limits.unused))
    images = and_(
        _i.state == InstanceState.KEPT,
        _s.state == SeriesState.SETTLED,
        case((_s.outcome == "failed", _ended(limits.quarantined)), else_=or_(of_a_job, of_none)),
    )
    held = and_(_i.state == InstanceState.HELD, _i.received_at < limits.unused)
    doubtful = and_(_i.state == InstanceState.QUARANTINED, _i.received_at < limits.quarantined)
    return (
        select(_i.path).join(t.series, _s.id == _i.series_id).where(_i.purged_at.is_(None), or_(images, held, doubtful))
    )


def _ended(limit: datetime) -> ColumnElement[bool]:
    """Whether a series was settled, and an instance of it came, before this."""
    return and_(_s.settled_at < limit, _i.received_at < limit)


def _still_needs_inputs(limits: PurgeLimits) -> ColumnElement[bool]:
    """Whether a job still needs the images that it was made of.

    A running one always; one that ended for as long as its class says, by how it ended; one whose objects a destination
    has not committed yet, where it commits.
    """
    newest = select(_s.revision).where(_s.id == _j.series_id).scalar_subquery()
    done = _j.state == JobState.DONE
    unsent = exists().where(_d.job_id == _j.id, _d.state.in_([DeliveryState.FAILED, DeliveryState.CANCELLED]))
    to_be_looked_at = and_(or_(_j.state == JobState.FAILED, and_(done, unsent)), _j.ended_at >= limits.quarantined)
    nowhere = and_(done, ~exists().where(_d.job_id == _j.id))
    of_no_use = or_(_j.state.in_([JobState.REJECTED, JobState.CANCELLED]), nowhere)
    current = or_(
        to_be_looked_at, and_(of_no_use, _j.ended_at >= limits.unused), and_(done, _awaits_commitment(limits))
    )
    running = _j.state.in_([JobState.QUEUED, JobState.RUNNING, JobState.COMPOSED])
    return or_(running, and_(_j.revision == newest, current), _j.ended_at >= limits.inputs)


def _awaits_commitment(limits: PurgeLimits) -> ColumnElement[bool]:
    """Whether a destination that commits has an object of a job, and has not committed it."""
    sent = and_(_d.state == DeliveryState.SENT, _d.destination.in_(sorted(limits.committing)))
    return exists().where(_d.job_id == _j.id, sent)


def _has_undelivered(limits: PurgeLimits) -> ColumnElement[bool]:
    done = or_(
        _d.state == DeliveryState.COMMITTED,
        and_(_d.state == DeliveryState.SENT, _d.destination.notin_(sorted(limits.committing))),
    )
    return exists().where(_d.job_id == _j.id, ~done)


def purgeable_results(limits: PurgeLimits) -> Select[Any]:
    """Paths of composed objects that were delivered everywhere, or overtaken by a newer revision."""
    newest = select(_s.revision).where(_s.id == _j.series_id).scalar_subquery()
    delivered = and_(_j.state == JobState.DONE, exists().where(_d.job_id == _j.id), ~_has_undelivered(limits))
    overtaken = and_(_j.revision < newest, _j.state.in_([JobState.DONE, JobState.CANCELLED, JobState.FAILED]))
    return (
        select(_o.path)
        .join(t.job, _j.id == _o.job_id)
        .where(_o.purged_at.is_(None), _j.ended_at < limits.results, or_(delivered, overtaken))
    )
