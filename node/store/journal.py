"""The journal: what is true and what is due, in one data base.

Records reads it; Ledger is the one writer of job and delivery states; Reception keeps what the listener receives;
Handover is what the stations are handed and hand back; here the sweep, the operator and the purge ask for theirs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, Row, create_engine, event, func, or_, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from node.domain.instance import InstanceState
from node.domain.job import (
    ENDED_DELIVERIES,
    SENT_DELIVERIES,
    DeliveryEvent,
    DeliveryState,
    JobEvent,
    JobState,
    NotAllowed,
)
from node.domain.series import Evidence, SeriesState
from node.domain.work import OpenSeries, PurgeLimits, Station, WorkRow
from node.errors import ConfigError
from node.store import due
from node.store import schema as t
from node.store.handover import Handover
from node.store.ledger import SUPERSEDED, newest_revision
from node.store.reception import IDENTITY_CONFLICT, reopened
from node.store.records import utc_now

SET_ASIDE = "set_aside"
"""Reason of an image that is not of the patient or study that an operator accepted for its series."""
_BY_AN_OPERATOR = "cancelled by an operator"


class Journal(Handover):
    """The journal of one node."""

    @classmethod
    def open(cls, url: str, clock: Callable[[], datetime] = utc_now) -> Self:
        """Open the journal, creating it or leading it up to this version's schema.

        Raises
        ------
        ConfigError
            Where the data base cannot be opened, or a newer Hilum wrote it.
        """
        try:
            engine = _engine(url)
            with engine.begin() as connection:
                t.migrate(connection, clock())
        except SQLAlchemyError as error:
            raise ConfigError(f"{make_url(url).render_as_string(hide_password=True)}: {error}") from error
        return cls(engine, clock)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The sweep --------------------------------------------------------------------------------------------------------

    def listening(self) -> tuple[datetime | None, datetime | None]:
        """When the listener that started last did, and the oldest of the listeners' latest signs of life."""
        with self._reading() as c:
            return _listening(c)

    def open_series(self) -> tuple[OpenSeries, ...]:
        """Every open series that nobody has judged whole, with what the listeners say of it."""
        s, a = t.series.c, t.arriving.c
        query = (
            select(t.series, func.sum(a.open_associations).label("carriers"), func.max(a.last_byte_at).label("byte_at"))
            .outerjoin(t.arriving, a.series_instance_uid == s.series_instance_uid)
            .where(s.state == SeriesState.OPEN, s.evidence == "", s.lease_at.is_(None))
            .group_by(s.id)
        )
        with self._reading() as c:
            started_at, seen_at = _listening(c)
            return tuple(due.open_series(row, started_at, seen_at) for row in c.execute(query))

    def judge(self, series: OpenSeries, evidence: Evidence) -> bool:
        """Note why a series is taken as whole; False where something has come since."""
        s = t.series.c
        swap = update(t.series).where(
            s.id == series.id, s.revision == series.revision, s.arrivals == series.arrivals, s.state == SeriesState.OPEN
        )
        with self._writing() as c:
            return c.execute(swap.values(evidence=evidence)).rowcount == 1

    def work(self, station: Station) -> tuple[WorkRow, ...]:
        """The rows of a station that are due or running, the most urgent first."""
        with self._reading() as c:
            if station is Station.ASSEMBLE:
                return tuple(due.series_row(row) for row in c.execute(due.due_series()))
            if station is Station.SEGMENT:
                return tuple(due.job_row(row) for row in c.execute(due.due_jobs(self._clock())))
            rows: list[WorkRow] = []
            open_states = sorted(set(DeliveryState) - ENDED_DELIVERIES)
            d = t.delivery.c
            for destination in c.scalars(select(d.destination).where(d.state.in_(open_states)).distinct()).all():
                rows += [due.delivery_row(row) for row in c.execute(due.due_deliveries(destination, self._clock()))]
            return tuple(rows)

    def renew(self, rows: Sequence[tuple[Station, int, int]]) -> None:
        """Say of rows (station, id, attempt) that they are being worked on; what is no longer theirs stays as it is.

        A job may also be in the hands of a process in which it waits for its place.
        """
        now = self._clock()
        with self._writing() as c:
            for station, row_id, attempt in rows:
                table, running = _RUNNING[station]
                mine = or_(running, t.job.c.state == JobState.QUEUED) if station is Station.SEGMENT else running
                held = update(table).where(table.c.id == row_id, table.c.attempt == attempt, mine)
                c.execute(held.values(lease_at=now))

    def take_over(self, row: WorkRow, reason: str) -> bool:
        """Make a row due again under a new attempt; whoever still works on it will find its writes refused."""
        with self._writing() as c:
            return self._take_over(c, (row.station, row.id, row.attempt), reason)

    def _take_over(self, c: Connection, row: tuple[Station, int, int], reason: str) -> bool:
        station, row_id, attempt = row
        if station is Station.SEGMENT:
            return self._advance_job(c, row_id, attempt, JobEvent.TAKE_OVER, reason) is not None
        if station is Station.DELIVER:
            return self._advance_delivery(c, row_id, attempt, DeliveryEvent.TAKE_OVER, reason) is not None
        changes = {"attempt": attempt + 1, "lease_at": None}
        return self._swap_series(c, row_id, attempt, "take_over", reason, changes=changes)

    def give_back(self, row: tuple[Station, int, int], reason: str) -> bool:
        """Give up a row whose work is ended in order: it is due at once, and its process did not die over it.

        One that only waited here was not begun: the starts that were counted are of processes that died.
        """
        station, row_id, attempt = row
        table, running = _RUNNING[station]
        here = (table.c.id == row_id, table.c.attempt == attempt, running, table.c.starts > 0)
        with self._writing() as c:
            if row in self._begun:
                c.execute(update(table).where(*here).values(starts=table.c.starts - 1))
            given_back = self._take_over(c, row, reason)
        if given_back:
            self._begun.discard(row)
        return given_back

    def outlived(self, row: tuple[Station, int, int]) -> None:
        """Take back the start that was counted here for a row that was taken over although its process lived on."""
        if row not in self._begun:
            return
        station, row_id, attempt = row
        table, _ = _RUNNING[station]
        with self._writing() as c:
            here = update(table).where(table.c.id == row_id, table.c.attempt > attempt, table.c.starts > 0)
            c.execute(here.values(starts=table.c.starts - 1))
        self._begun.discard(row)

    # The operator -----------------------------------------------------------------------------------------------------

    def retry(self, job_id: int) -> str:
        """Start a job again, or send again what was not delivered of it; where all was, all of it (NET-24).

        Returns
        -------
        What was done, in words.

        Raises
        ------
        NotAllowed
            Where there is no such job, or its state or a newer revision of its series does not allow it.
        """
        j, d = t.job.c, t.delivery.c
        with self._writing() as c:
            row = _required(c.execute(select(t.job).where(j.id == job_id)).one_or_none(), f"there is no job {job_id}")
            _ask(
                row.revision == newest_revision(c, row.series_id),
                f"a newer revision of its series has overtaken job {job_id}",
            )
            deliveries = c.execute(select(t.delivery).where(d.job_id == job_id).order_by(d.id)).all()
            if not deliveries:
                fresh = {"starts": 0, "tries": 0, "due_at": self._clock(), "detail": ""}
                done = self._advance_job(c, job_id, None, JobEvent.RETRY, "", **fresh)
                _ask(done is not None, f"job {job_id} is {row.state}: there is nothing to retry")
                return "it is segmented again"
            unsent = [each for each in deliveries if each.state not in SENT_DELIVERIES]
            again = unsent or deliveries
            _ask(self._resend(c, job_id, again) > 0, f"job {job_id} is {row.state}: its deliveries are on their way")
            return f"{len(again)} of its objects are sent again"

    def retry_delivery(self, delivery_id: int) -> str:
        """Send one object to one destination again; raises as `retry`."""
        with self._writing() as c:
            row = _required(
                c.execute(select(t.delivery).where(t.delivery.c.id == delivery_id)).one_or_none(),
                f"there is no delivery {delivery_id}",
            )
            job = c.execute(select(t.job).where(t.job.c.id == row.job_id)).one()
            _ask(job.revision == newest_revision(c, job.series_id), "a newer revision of its series has overtaken it")
            _ask(self._resend(c, row.job_id, [row]) == 1, f"delivery {delivery_id} is {row.state}: it is on its way")
            return "it is sent again"

    def _resend(self, c: Connection, job_id: int, deliveries: Sequence[Row[Any]]) -> int:
        self._advance_job(c, job_id, None, JobEvent.RESEND, "")
        fresh = {"starts": 0, "tries": 0, "due_at": self._clock()}
        retried = (self._advance_delivery(c, each.id, None, DeliveryEvent.RETRY, "", **fresh) for each in deliveries)
        return sum(row is not None for row in retried)

    def cancel(self, job_id: int) -> str:
        """Cancel a job with all of it that is not yet being sent; raises as `retry`."""
        with self._writing() as c:
            row = _required(
                c.execute(select(t.job).where(t.job.c.id == job_id)).one_or_none(), f"there is no job {job_id}"
            )
            if row.state == JobState.COMPOSED:
                self._cancel_unsent(c, job_id, DeliveryEvent.CANCEL, _BY_AN_OPERATOR)
                return "what was not sent is cancelled"
            done = self._advance_job(c, job_id, None, JobEvent.CANCEL, _BY_AN_OPERATOR)
            _ask(done is not None, f"job {job_id} is {row.state}: there is nothing to cancel")
            return "it is cancelled"

    def cancel_delivery(self, delivery_id: int) -> str:
        """Cancel one delivery that is not yet being sent; raises as `retry`."""
        with self._writing() as c:
            done = self._advance_delivery(c, delivery_id, None, DeliveryEvent.CANCEL, _BY_AN_OPERATOR)
            _ask(done is not None, f"there is no delivery {delivery_id} that waits to be sent")
            return "it is cancelled"

    def retry_series(self, series_id: int) -> str:
        """Judge a settled series anew, as after a change of rules; raises as `retry`."""
        with self._writing() as c:
            self._judge_anew(c, _settled(c, series_id), "retry", Evidence.OPERATOR)
            return "it is judged anew"

    def rejudge(self, job_id: int, attempt: int, reason: str, why: str) -> bool:
        """Give up a job that was made for what is no longer here; its series is judged anew, by what is here now.

        Returns
        -------
        Whether the job was still at this attempt.
        """
        with self._writing() as c:
            job = self._advance_job(c, job_id, attempt, JobEvent.SUPERSEDE, reason, detail=why)
            if job is None:
                return False
            series = c.execute(select(t.series).where(t.series.c.id == job.series_id)).one()
            if series.state == SeriesState.SETTLED:
                self._judge_anew(c, series, reason, Evidence(series.evidence))
            return True

    def accept_identity(
        self, series_id: int, kept: Collection[int], owner: tuple[str, str], seen: tuple[int, int], reason: str
    ) -> str:
        """End the doubt whose a series is: some of its images are kept, the others set aside, and it is judged anew.

        Parameters
        ----------
        kept
            Numbers of the instances that are the owner's.
        owner
            StudyInstanceUID and PatientID.
        seen
            Revision and number of arrivals of the series when the decision was made.

        Raises
        ------
        NotAllowed
            Where the series is not settled, or images have come since the decision.
        """
        s = t.series.c
        with self._writing() as c:
            series = _settled(c, series_id)
            _ask((series.revision, series.arrivals) == seen, "images have come meanwhile: look at the series again")
            done, lost = self._keep_alone(c, series_id, kept)
            whose = {"study_instance_uid": owner[0], "patient_id": owner[1], "conflict": ""}
            c.execute(update(t.series).where(s.id == series_id).values(whose))
            self._judge_anew(c, series, "accept", Evidence.OPERATOR, f"{reason}: {done}")
            return done + (f"; {lost} of these came under the other identity alone: {_IF_OURS}" if lost else "")

    def _keep_alone(self, c: Connection, series_id: int, kept: Collection[int]) -> tuple[str, int]:
        """Keep these images, the newest bytes of each; set aside the others whose owner was in doubt.

        Returns
        -------
        What was done, in words, and of how many images no version is kept.
        """
        i = t.instance.c
        whose = or_(i.state == InstanceState.KEPT, i.reason == IDENTITY_CONFLICT)
        rows = c.execute(select(t.instance).where(i.series_id == series_id, whose).order_by(i.id)).all()
        newest = {row.sop_instance_uid: row.id for row in rows if row.id in kept}
        aside = [row for row in rows if row.id not in kept]
        for row in aside:
            self._move_instance(c, row.id, "set_aside", InstanceState.HELD, SET_ASIDE)
        for row in rows:
            if row.id in kept:
                self._move_instance(c, row.id, "accept", InstanceState.KEPT, "")
                last = newest[row.sop_instance_uid]
                here = update(t.instance).where(i.id == row.id)
                c.execute(here.values(replaced_by=None if last == row.id else last))
        lost = {row.sop_instance_uid for row in aside} - set(newest)
        return f"{len(newest)} images are kept, {len(aside)} set aside", len(lost)

    def _judge_anew(self, c: Connection, series: Row[Any], event: str, evidence: Evidence, reason: str = "") -> None:
        """Open a settled series as its next revision, whole by this evidence; what is unsent of it is cancelled."""
        self._log(c, "series", series, event, SeriesState.OPEN, reason=reason)
        self._overtake(c, series.id, SUPERSEDED)
        again = {**reopened(series, self._clock()), "evidence": evidence, "starts": 0}
        c.execute(update(t.series).where(t.series.c.id == series.id).values(again))

    # purge ------------------------------------------------------------------------------------------------------------

    def give_up_files(self, limits: PurgeLimits, most: int = 200) -> tuple[Path, ...]:
        """Give up files that nobody needs; returns those that may now be unlinked.

        The row goes first: a crash leaves a file without a row, which the spool removes, never a row without its file.
        """
        i, o = t.instance.c, t.result_object.c
        now = self._clock()
        with self._writing() as c:
            received = c.scalars(due.purgeable_instances(limits).limit(most)).all()
            results = c.scalars(due.purgeable_results(limits).limit(most)).all()
            c.execute(update(t.instance).where(i.path.in_(received)).values(purged_at=now))
            c.execute(update(t.result_object).where(o.path.in_(results)).values(purged_at=now))
        return tuple(Path(path) for path in (*received, *results))


_IF_OURS = "what belongs to this scan, send again under the accepted one; another patient's image, never"

_RUNNING = {
    Station.ASSEMBLE: (t.series, t.series.c.state == SeriesState.OPEN),
    Station.SEGMENT: (t.job, t.job.c.state == JobState.RUNNING),
    Station.DELIVER: (t.delivery, t.delivery.c.state == DeliveryState.SENDING),
}


def _listening(c: Connection) -> tuple[datetime | None, datetime | None]:
    started_at, seen_at = c.execute(select(func.max(t.listener.c.started_at), func.min(t.listener.c.seen_at))).one()
    return started_at, seen_at


def _ask(allowed: bool, why_not: str) -> None:
    if not allowed:
        raise NotAllowed(why_not)


def _settled(c: Connection, series_id: int) -> Row[Any]:
    query = select(t.series).where(t.series.c.id == series_id)
    found = _required(c.execute(query).one_or_none(), f"there is no series {series_id}; `hilum series` lists them")
    _ask(found.state == SeriesState.SETTLED, f"series {series_id} is still open: wait until it is settled")
    return found


def _required(row: Row[Any] | None, why_not: str) -> Row[Any]:
    if row is None:
        raise NotAllowed(why_not)
    return row


def _engine(url: str) -> Engine:
    """Connections that flush at each commit; of SQLite in WAL mode, and with the write lock taken at the beginning.

    Without that, a transaction that reads and then writes could find that another has written between (gate 1).
    The file is its owner's only, as it holds headers; SQLite gives its companions the same mode.
    """
    engine = create_engine(url)
    if engine.dialect.name != "sqlite":
        return engine
    if engine.url.database and engine.url.database != ":memory:":
        with contextlib.suppress(OSError):  # the connection says it better
            os.close(os.open(engine.url.database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("hilum_read", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine
