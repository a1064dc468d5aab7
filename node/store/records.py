"""What the journal says: the reading half, for the console, the metrics and the stations. It changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, bindparam, func, or_, select
from sqlalchemy.exc import OperationalError

from node.domain.counts import JournalCounts, QueueCount
from node.domain.history import (
    Event,
    InstanceRecord,
    JobRecord,
    PartRecord,
    RefusedPeer,
    RoleRecord,
    SeriesRecord,
    SeriesSummary,
)
from node.domain.instance import InstanceState, KnownInstance, Sender
from node.domain.job import ENDED_DELIVERIES, Delivery, DeliveryState, Job, JobState, ObjectKind, ResultObject
from node.domain.series import SeriesState
from node.domain.work import MemberFile
from node.errors import JournalUnavailable, OutOfResources
from node.store import schema as t

_OPEN_DELIVERIES = sorted(set(DeliveryState) - ENDED_DELIVERIES)


def utc_now() -> datetime:
    """The clock of the machine, which is that of a SQLite data base too."""
    return datetime.now(UTC)


_FAILED_DELIVERIES = (
    select(t.delivery.c.job_id, t.delivery.c.destination).where(t.delivery.c.state == DeliveryState.FAILED).subquery()
)
_HELD = (
    select(func.count())
    .where(t.instance.c.series_id == t.series.c.id, t.instance.c.state == InstanceState.HELD)
    .correlate(t.series)
    .scalar_subquery()
    .label("held")
)
_SERIES = select(t.series, _HELD)
_KNOWN_BYTES = select(t.instance.c.path, t.instance.c.length, t.instance.c.crc32).where(
    t.instance.c.sop_instance_uid == bindparam("uid"), t.instance.c.purged_at.is_(None)
)
"""Built once: it is asked for each object that comes in."""


class Records:
    """Reads the journal; every method is one consistent reading.

    Parameters
    ----------
    engine
        Of SQLAlchemy. A transaction that it begins for reading takes no lock that a writer waits for.
    clock
        Returns the time, aware UTC.
    """

    def __init__(self, engine: Engine, clock: Callable[[], datetime] = utc_now) -> None:
        self._engine = engine
        self._clock = clock

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect().execution_options(hilum_read=True) as connection, connection.begin():
                yield connection
        except OperationalError as error:
            raise JournalUnavailable("the journal cannot be read now") from error

    # Series -----------------------------------------------------------------------------------------------------------

    def known(self, sop_instance_uid: str) -> tuple[KnownInstance, ...]:
        """The bytes that are held for a SOP Instance UID (NET-12).

        Raises
        ------
        OutOfResources
            Where the data base cannot answer now.
        """
        try:
            with self._reading() as connection:
                rows = connection.execute(_KNOWN_BYTES, {"uid": sop_instance_uid})
                return tuple(KnownInstance(Path(row.path), row.length, row.crc32) for row in rows)
        except JournalUnavailable as error:
            raise OutOfResources("journal cannot answer now") from error

    def list_series(self, state: SeriesState | None = None, limit: int = 50) -> tuple[SeriesSummary, ...]:
        """Series, the one that received last first."""
        query = _SERIES.order_by(t.series.c.last_received_at.desc(), t.series.c.id.desc()).limit(limit)
        if state is not None:
            query = query.where(t.series.c.state == state)
        with self._reading() as connection:
            return tuple(_summary(row) for row in connection.execute(query))

    def show_series(self, series: int | str) -> SeriesRecord | None:
        """One series, by its number here or its Series Instance UID; None where there is none."""
        column = t.series.c.id if isinstance(series, int) else t.series.c.series_instance_uid
        with self._reading() as connection:
            row = connection.execute(_SERIES.where(column == series)).one_or_none()
            if row is None:
                return None
            instances = connection.execute(
                select(t.instance).where(t.instance.c.series_id == row.id).order_by(t.instance.c.id)
            ).all()
            jobs = tuple(
                to_job(r)
                for r in connection.execute(select(t.job).where(t.job.c.series_id == row.id).order_by(t.job.c.id))
            )
            return SeriesRecord(
                _summary(row),
                tuple(_instance(r) for r in instances),
                tuple(_part(r) for r in connection.execute(_parts_of(row.id))),
                jobs,
                _events(connection, {"series": [row.id], "instance": [r.id for r in instances]}),
            )

    # Jobs -------------------------------------------------------------------------------------------------------------

    def list_jobs(self, state: JobState | None = None, model: str | None = None, limit: int = 50) -> tuple[Job, ...]:
        """Jobs, the newest first; among those that failed are those that failed at one destination of several."""
        query = select(t.job).order_by(t.job.c.id.desc()).limit(limit)
        if state is JobState.FAILED:
            query = query.where(or_(t.job.c.state == state, t.job.c.id.in_(select(_FAILED_DELIVERIES.c.job_id))))
        elif state is not None:
            query = query.where(t.job.c.state == state)
        if model is not None:
            query = query.where(t.job.c.model == model)
        with self._reading() as connection:
            return tuple(to_job(row) for row in connection.execute(query))

    def not_sent(self, jobs: Sequence[Job]) -> Mapping[int, tuple[str, ...]]:
        """The destinations that something of a job could not be sent to, by the job's number."""
        of_these = _FAILED_DELIVERIES.c.job_id.in_([job.id for job in jobs])
        found: dict[int, tuple[str, ...]] = {}
        with self._reading() as connection:
            for row in connection.execute(select(_FAILED_DELIVERIES).where(of_these).distinct()):
                found[row.job_id] = (*found.get(row.job_id, ()), row.destination)
        return found

    def show_job(self, job_id: int) -> JobRecord | None:
        """One job with its objects, deliveries and whole history; None where there is none."""
        with self._reading() as connection:
            row = connection.execute(select(t.job).where(t.job.c.id == job_id)).one_or_none()
            if row is None:
                return None
            deliveries = self._deliveries(connection, job_id)
            series = connection.execute(_SERIES.where(t.series.c.id == row.series_id)).one()
            return JobRecord(
                to_job(row),
                _summary(series),
                row.detail,
                dict(row.result),
                self._objects(connection, job_id),
                deliveries,
                _events(connection, {"job": [job_id], "delivery": [d.id for d in deliveries]}),
            )

    @staticmethod
    def _objects(connection: Connection, job_id: int) -> tuple[ResultObject, ...]:
        query = select(t.result_object).where(t.result_object.c.job_id == job_id, t.result_object.c.purged_at.is_(None))
        return tuple(to_object(row) for row in connection.execute(query.order_by(t.result_object.c.id)))

    @staticmethod
    def _deliveries(connection: Connection, job_id: int) -> tuple[Delivery, ...]:
        rows = connection.execute(select(t.delivery).where(t.delivery.c.job_id == job_id).order_by(t.delivery.c.id))
        return tuple(to_delivery(row) for row in rows)

    # The node ---------------------------------------------------------------------------------------------------------

    def refused_peers(self, limit: int = 100) -> tuple[RefusedPeer, ...]:
        """Who was refused, the latest first."""
        query = select(t.refused_peer).order_by(t.refused_peer.c.last_at.desc()).limit(limit)
        with self._reading() as connection:
            return tuple(RefusedPeer(**row._mapping) for row in connection.execute(query))

    def roles(self) -> tuple[RoleRecord, ...]:
        """The processes that have shown themselves."""
        with self._reading() as connection:
            return tuple(RoleRecord(**row._mapping) for row in connection.execute(select(t.role)))

    def spooled_paths(self) -> frozenset[str]:
        """Every path that a row names: a file of the spool that is not among them is garbage."""
        with self._reading() as connection:
            received = connection.scalars(select(t.instance.c.path).where(t.instance.c.purged_at.is_(None)))
            results = connection.scalars(select(t.result_object.c.path).where(t.result_object.c.purged_at.is_(None)))
            return frozenset((*received, *results))

    def counts(self) -> JournalCounts:
        """What the metrics show: depths, ages, and what waits for a person."""
        now = self._clock()
        s, j, d, i, o = t.series.c, t.job.c, t.delivery.c, t.instance.c, t.result_object.c
        waiting_jobs = j.state.in_([JobState.QUEUED, JobState.RUNNING])
        with self._reading() as connection:
            outbox = _by(connection, select(d.destination, func.count()).where(d.state.in_(_OPEN_DELIVERIES)))
            in_doubt = select(i.reason, func.count()).where(i.state == InstanceState.QUARANTINED)
            oldest_delivery = (
                select(func.count(), func.min(j.created_at))
                .select_from(t.delivery.join(t.job))
                .where(d.state.in_(_OPEN_DELIVERIES))
            )
            opened = select(func.count(), func.min(s.last_received_at)).where(s.state == SeriesState.OPEN)
            queues = {
                "assemble": _queue(connection, opened, now),
                "segment": _queue(connection, select(func.count(), func.min(j.created_at)).where(waiting_jobs), now),
                "deliver": _queue(connection, oldest_delivery, now),
            }
            return JournalCounts(
                queues=queues,
                series_open=queues["assemble"].depth,
                quarantined=_by(connection, in_doubt),
                outbox=outbox,
                failed_jobs=_count(connection, select(func.count()).where(j.state == JobState.FAILED)),
                failed_deliveries=_by(
                    connection, select(d.destination, func.count()).where(d.state == DeliveryState.FAILED)
                ),
                spool_bytes={
                    "incoming": _count(connection, select(func.sum(i.length)).where(i.purged_at.is_(None))),
                    "results": _count(connection, select(func.sum(o.length)).where(o.purged_at.is_(None))),
                },
            )


def to_job(row: Row[Any]) -> Job:
    """A row of the table as the domain's job."""
    return Job(
        id=row.id,
        series_id=row.series_id,
        revision=row.revision,
        volume_id=row.volume_id,
        model=row.model,
        model_digest=row.model_digest,
        config_digest=row.config_digest,
        destinations=tuple(row.destinations),
        priority=row.priority,
        state=JobState(row.state),
        attempt=row.attempt,
        starts=row.starts,
        reason=row.reason,
        created_at=row.created_at,
        due_at=row.due_at,
    )


def to_object(row: Row[Any]) -> ResultObject:
    """A row of the table as the domain's result object."""
    return ResultObject(
        id=row.id,
        job_id=row.job_id,
        kind=ObjectKind(row.kind),
        variant=row.variant,
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        path=Path(row.path),
        sha256=row.sha256,
    )


def to_delivery(row: Row[Any]) -> Delivery:
    """A row of the table as the domain's delivery."""
    return Delivery(
        id=row.id,
        job_id=row.job_id,
        kind=ObjectKind(row.kind),
        destination=row.destination,
        state=DeliveryState(row.state),
        attempt=row.attempt,
        starts=row.starts,
        tries=row.tries,
        reason=row.reason,
        due_at=row.due_at,
        sent_sop_instance_uid=row.sent_sop_instance_uid,
    )


def to_sender(row: Row[Any]) -> Sender:
    """The five columns of a sender."""
    return Sender(row.sender_alias, row.calling_ae_title, row.called_ae_title, row.address, row.association_id)


def _summary(row: Row[Any]) -> SeriesSummary:
    return SeriesSummary(
        id=row.id,
        series_instance_uid=row.series_instance_uid,
        study_instance_uid=row.study_instance_uid,
        sender=to_sender(row),
        state=SeriesState(row.state),
        revision=row.revision,
        instances=row.arrivals,
        first_received_at=row.first_received_at,
        last_received_at=row.last_received_at,
        outcome=row.outcome,
        reason=row.reason,
        evidence=row.evidence,
        completeness=row.completeness,
        wait_s=row.wait_s,
        held=row.held,
    )


def _instance(row: Row[Any]) -> InstanceRecord:
    return InstanceRecord(
        id=row.id,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        path=row.path,
        sender=to_sender(row),
        received_at=row.received_at,
        state=row.state,
        reason=row.reason,
        duplicates=row.duplicates,
        replaced=row.replaced_by is not None,
        purged=row.purged_at is not None,
    )


def _parts_of(series_id: int) -> Select[Any]:
    return (
        select(t.part, t.snapshot.c.revision)
        .join(t.snapshot, t.part.c.snapshot_id == t.snapshot.c.id)
        .where(t.snapshot.c.series_id == series_id)
        .order_by(t.snapshot.c.revision, t.part.c.number)
    )


def _part(row: Row[Any]) -> PartRecord:
    return PartRecord(
        revision=row.revision,
        number=row.number,
        frames=row.frames,
        volume_id=row.volume_id,
        keys=dict(row.split_keys),
        outcome=row.outcome,
        reason=row.reason,
        detail=row.detail,
        rule=row.rule,
        model=row.model,
        job_id=row.job_id,
        sop_instance_uids=tuple(row.sop_instance_uids),
        dropped=tuple((uid, frame, reason) for uid, frame, reason in row.dropped),
    )


def _events(connection: Connection, entities: Mapping[str, Sequence[int]]) -> tuple[Event, ...]:
    """All events of these rows in the order in which they happened."""
    found: list[Row[Any]] = []
    for entity, ids in entities.items():
        query = select(t.event).where(t.event.c.entity == entity, t.event.c.entity_id.in_(ids))
        found.extend(connection.execute(query).all())
    return tuple(
        Event(r.at, r.entity, r.entity_id, r.attempt, r.event, r.from_state, r.to_state, r.reason)
        for r in sorted(found, key=lambda row: int(row.id))
    )


def _by(connection: Connection, query: Select[Any]) -> dict[str, int]:
    """Counts by the query's first column."""
    return {row[0]: row[1] for row in connection.execute(query.group_by(next(iter(query.selected_columns))))}


def _count(connection: Connection, query: Select[Any]) -> int:
    return int(connection.execute(query).scalar_one() or 0)


def _queue(connection: Connection, query: Select[*tuple[Any, ...]], now: datetime) -> QueueCount:
    depth, oldest = connection.execute(query).one()
    return QueueCount(depth, max(0.0, (now - oldest).total_seconds()) if oldest is not None else 0.0)


def to_member(row: Row[Any]) -> MemberFile:
    """An instance's row, as a station is handed it."""
    return MemberFile(
        instance_id=row.id,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        path=Path(row.path),
        sender=to_sender(row),
        purged=row.purged_at is not None,
        unread=row.state == InstanceState.QUARANTINED,
    )
