"""The one writer of job and delivery states: compare-and-swap by the domain's tables, an event for each change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Insert, Row, Table, select, update
from sqlalchemy.exc import OperationalError

from node.domain.job import (
    ENDED_DELIVERIES,
    ENDED_JOBS,
    DeliveryEvent,
    DeliveryState,
    JobEvent,
    JobState,
    NotAllowed,
    ObjectKind,
    advance,
    job_event,
)
from node.domain.work import Station
from node.errors import JournalUnavailable
from node.store import schema as t
from node.store.records import Records, utc_now

SUPERSEDED = "superseded"
"""Reason of what a newer revision of its series has overtaken."""
SEG_REFUSED = "segmentation_refused"
"""Reason of a report whose segmentation the same destination did not take (RES-7)."""

_NEW_ATTEMPT: frozenset[str] = frozenset(
    {JobEvent.TAKE_OVER, JobEvent.RETRY_LATER, JobEvent.RETRY, JobEvent.RESEND, JobEvent.SUPERSEDE, JobEvent.CANCEL}
)
"""Events after which whoever still works under the old attempt must find that it no longer holds."""

_Work = TypeVar("_Work")


class Ledger(Records):
    """Moves jobs and deliveries from state to state.

    Writers of this process take turns by a lock, those of other processes by the data base's own.
    """

    def __init__(self, engine: Engine, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(engine, clock)
        self._turn = threading.RLock()
        self._begun: set[tuple[Station, int, int]] = set()

    def _noted(self, row: tuple[Station, int, int], work: _Work | None) -> _Work | None:
        """What a station was handed; that its work was begun here, and by nobody before us, is remembered."""
        if work is not None:
            self._begun.add(row)
        return work

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with self._turn, self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise JournalUnavailable("the journal cannot be written now") from error

    def _advance_job(
        self, c: Connection, job_id: int, attempt: int | None, event: JobEvent, reason: str = "", **values: Any
    ) -> Row[Any] | None:
        """Move a job; returns its old row, or None where it is not at this attempt or the event is not possible."""
        return self._advance(c, t.job, job_id, attempt, event, reason=reason, values=values)

    def _advance_delivery(
        self,
        c: Connection,
        delivery_id: int,
        attempt: int | None,
        event: DeliveryEvent,
        reason: str = "",
        **values: Any,
    ) -> Row[Any] | None:
        """Move a delivery, and its job where this was the last; returns its old row, or None as `_advance_job`."""
        row = self._advance(c, t.delivery, delivery_id, attempt, event, reason=reason, values=values)
        if row is None:
            return None
        if event is DeliveryEvent.FAIL and row.kind == ObjectKind.SEG:
            self._fail_report_of(c, row)
        self._conclude(c, row.job_id)
        return row

    def _advance(
        self,
        c: Connection,
        table: Table,
        row_id: int,
        attempt: int | None,
        event: JobEvent | DeliveryEvent,
        *,
        reason: str,
        values: dict[str, Any],
    ) -> Row[Any] | None:
        row = c.execute(select(table).where(table.c.id == row_id).with_for_update()).one_or_none()
        if row is None or attempt not in (None, row.attempt):
            return None
        try:
            following = _following(row.state, event)
        except NotAllowed:
            return None
        now = self._clock()
        changes: dict[str, Any] = {"state": following, "reason": reason, "lease_at": None, **values}
        changes["ended_at"] = now if following in ENDED_JOBS or following in ENDED_DELIVERIES else None
        if event.value in _NEW_ATTEMPT:
            changes["attempt"] = row.attempt + 1
        swap = update(table).where(table.c.id == row_id, table.c.attempt == row.attempt, table.c.state == row.state)
        if c.execute(swap.values(changes)).rowcount != 1:
            return None
        self._log(c, table.name, row, event.value, following, reason=reason)
        return row

    def _log(self, c: Connection, entity: str, row: Row[Any], event: str, to_state: str, *, reason: str = "") -> None:
        c.execute(
            t.event.insert().values(
                at=self._clock(),
                entity=entity,
                entity_id=row.id,
                attempt=getattr(row, "attempt", 0),
                event=event,
                from_state=row.state,
                to_state=to_state,
                reason=reason,
            )
        )

    def _fail_report_of(self, c: Connection, seg: Row[Any]) -> None:
        """A report refers to the segmentation: where that will not come, it must not go (RES-7)."""
        d = t.delivery.c
        report = select(d.id).where(d.job_id == seg.job_id, d.destination == seg.destination, d.kind == ObjectKind.SR)
        for delivery_id in c.scalars(report).all():
            self._advance(c, t.delivery, delivery_id, None, DeliveryEvent.FAIL, reason=SEG_REFUSED, values={})

    def _conclude(self, c: Connection, job_id: int) -> JobEvent | None:
        """End a COMPOSED job when all its deliveries have ended."""
        d = t.delivery.c
        rows = c.execute(select(d.state, d.kind, d.destination, d.reason).where(d.job_id == job_id)).all()
        outcome = job_event([DeliveryState(row.state) for row in rows])
        if outcome is None:
            return None
        unsent = [row for row in rows if row.state in (DeliveryState.FAILED, DeliveryState.CANCELLED)]
        reason = unsent[0].reason if unsent else ""
        detail = "; ".join(f"{r.kind} to {r.destination}: {r.state}: {r.reason}" for r in unsent)
        if self._advance_job(c, job_id, None, outcome, reason, detail=detail) is None:
            return None
        return outcome

    def _overtake(self, c: Connection, series_id: int, reason: str) -> None:
        """Cancel every job of a series, and every delivery, that is not yet being sent or sent (gate 3)."""
        jobs = select(t.job.c.id, t.job.c.state).where(t.job.c.series_id == series_id)
        for job_id, state in c.execute(jobs.where(t.job.c.state.notin_(sorted(ENDED_JOBS)))).all():
            if state == JobState.COMPOSED:
                self._cancel_unsent(c, job_id, DeliveryEvent.SUPERSEDE, reason)
            else:
                self._advance_job(c, job_id, None, JobEvent.SUPERSEDE, reason)

    def _cancel_unsent(self, c: Connection, job_id: int, event: DeliveryEvent, reason: str) -> None:
        d = t.delivery.c
        waiting = select(d.id).where(d.job_id == job_id, d.state.in_([DeliveryState.PENDING, DeliveryState.HELD]))
        for delivery_id in c.scalars(waiting).all():
            self._advance(c, t.delivery, delivery_id, None, event, reason=reason, values={})
        self._conclude(c, job_id)


def _following(state: str, event: JobEvent | DeliveryEvent) -> str:
    if isinstance(event, JobEvent):
        return advance(JobState(state), event)
    return advance(DeliveryState(state), event)


def newest_revision(c: Connection, series_id: int) -> int:
    """The revision that a series has now."""
    return int(c.execute(select(t.series.c.revision).where(t.series.c.id == series_id)).scalar_one())


def inserted_id(c: Connection, statement: Insert) -> int:
    """Insert one row; returns its number."""
    (row_id,) = c.execute(statement).inserted_primary_key or (0,)
    return int(row_id)
