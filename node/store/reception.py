"""The listener's half of the journal: received instances by group commit, its heartbeat, and who was refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from node.domain.history import InstanceRecord
from node.domain.instance import CommitOutcome, InstanceState, ReceivedInstance
from node.domain.series import ArrivingSeries, SeriesState
from node.errors import JournalUnavailable, OutOfResources
from node.store import schema as t
from node.store.arrivals import MULTI_FRAME_CLASSES, Arrivals, NotPlain, instance_columns, sender_columns
from node.store.group_commit import GroupCommit, Ticket
from node.store.ledger import SUPERSEDED, Ledger
from node.store.records import utc_now

IDENTITY_CONFLICT = "identity_mismatch"
"""The reason that `node.domain.stack` gives to the same doubt, once all headers are read."""
OTHER_BYTES = "duplicate_uid_other_bytes"
"""Reason of an instance whose UID is known with other bytes: both are kept (NET-12)."""
UID_IN_TWO_SERIES = "uid_in_two_series"
INPUTS_PURGED = "inputs_purged"
"""Reason of a series that got a late slice after its other slices were purged: it must be sent again whole."""

_MOST_REFUSED_PEERS = 200

# Statements of the receiving road, built once: SQLAlchemy takes longer to build and to name one than SQLite to run it.
_KNOWN = select(t.instance).where(t.instance.c.sop_instance_uid == bindparam("uid"))
_SERIES = select(t.series).where(t.series.c.series_instance_uid == bindparam("uid"))
_SERIES_TO_CHANGE = _SERIES.with_for_update()
_KEEP = insert(t.instance)
_ARRIVED = (
    update(t.series)
    .where(t.series.c.id == bindparam("series_id"))
    .values(arrivals=t.series.c.arrivals + 1, last_received_at=bindparam("last"), evidence="", gapped=False, starts=0)
)


class Reception(Ledger):
    """Keeps what the listener receives."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(engine, clock)
        self._arrivals = Arrivals(engine.dialect)
        self._group = GroupCommit(self._commit_batch)

    def submit(self, instance: ReceivedInstance) -> Ticket[ReceivedInstance, CommitOutcome]:
        """Hand over an instance; `wait` says what became of it."""
        return self._group.submit(instance)

    def wait(self, ticket: Ticket[ReceivedInstance, CommitOutcome]) -> CommitOutcome:
        """The outcome of this instance, once its row is flushed to the disk.

        Raises
        ------
        OutOfResources
            Where the data base cannot take it now; nothing is kept.
        """
        return self._group.wait(ticket)

    def commit(self, instance: ReceivedInstance) -> CommitOutcome:
        """Commit the row of an instance whose bytes are on the disk: the point from which it is ours (NET-2)."""
        return self.wait(self.submit(instance))

    def _commit_batch(self, batch: Sequence[ReceivedInstance]) -> Sequence[CommitOutcome]:
        try:
            try:
                with self._writing() as connection:
                    self._arrivals.keep(connection, batch)
                    return [CommitOutcome.NEW] * len(batch)
            except NotPlain:
                with self._writing() as connection:
                    return [self._receive(connection, instance) for instance in batch]
        except (JournalUnavailable, SQLAlchemyError) as error:
            raise OutOfResources("journal cannot take the object now") from error

    def _receive(self, c: Connection, instance: ReceivedInstance) -> CommitOutcome:
        known = c.execute(_KNOWN, {"uid": instance.sop_instance_uid}).all()
        same = [row for row in known if (row.length, row.crc32) == (instance.length, instance.crc32)]
        if same:
            return self._receive_again(c, same[0], instance)
        series = self._series_of(c, instance)
        state, reason = self._judge(instance, series, known)
        (row_id,) = c.execute(_KEEP, _row(instance, series.id, state, reason)).inserted_primary_key or (0,)
        if known and state is InstanceState.KEPT:
            older = [row.id for row in known if row.replaced_by is None]
            c.execute(update(t.instance).where(t.instance.c.id.in_(older)).values(replaced_by=row_id))
        if state is not InstanceState.HELD:
            self._arrive(c, series, instance, reason)
        return CommitOutcome.DUPLICATE_DIFFERENT if known else CommitOutcome.NEW

    def _receive_again(self, c: Connection, row: Row[Any], instance: ReceivedInstance) -> CommitOutcome:
        """Known bytes change nothing; those that were purged are kept again, as a new slice may come and need them."""
        here = update(t.instance).where(t.instance.c.id == row.id)
        if row.purged_at is None:
            c.execute(here.values(duplicates=row.duplicates + 1))
            return CommitOutcome.DUPLICATE_SAME
        series = self._keep_again(c, row, instance)
        awaited = series.state == SeriesState.OPEN or series.reason == INPUTS_PURGED
        if awaited and row.state != InstanceState.HELD:
            self._arrive(c, series, instance, "")
        return CommitOutcome.NEW

    def _keep_again(self, c: Connection, row: Row[Any], instance: ReceivedInstance) -> Row[Any]:
        """Let a row name the file that has just come; returns its series."""
        came = {"path": str(instance.path), "purged_at": None, "received_at": instance.received_at}
        c.execute(update(t.instance).where(t.instance.c.id == row.id).values(came))
        return c.execute(select(t.series).where(t.series.c.id == row.series_id)).one()

    def restore(self, instance: ReceivedInstance) -> None:
        """Keep bytes that came again in place of those that are kept and no longer what they were.

        The series is judged anew, as what was damaged may have kept it from being a scan.

        Raises
        ------
        OutOfResources
            Where the data base cannot take it now.
        """
        try:
            with self._writing() as c:
                for row in c.execute(_KNOWN, {"uid": instance.sop_instance_uid}).all():
                    if (row.length, row.crc32) != (instance.length, instance.crc32):
                        continue
                    if row.purged_at is not None:  # meanwhile
                        self._receive_again(c, row, instance)
                        continue
                    series = self._keep_again(c, row, instance)
                    self._log(c, "instance", row, "restored", row.state)
                    if row.state != InstanceState.HELD:
                        self._arrive(c, series, instance, "")
        except (JournalUnavailable, SQLAlchemyError) as error:
            raise OutOfResources("journal cannot take the object now") from error

    def _judge(
        self, instance: ReceivedInstance, series: Row[Any], known: Sequence[Row[Any]]
    ) -> tuple[InstanceState, str]:
        """Whose it is must not be in doubt (ASM-8); name and birth date are compared when the headers are read."""
        if instance.state is not InstanceState.KEPT:
            return instance.state, instance.reason
        if (series.study_instance_uid, series.patient_id) != (instance.study_instance_uid, instance.patient_id):
            return InstanceState.QUARANTINED, IDENTITY_CONFLICT
        if any(row.series_id != series.id for row in known):
            return InstanceState.QUARANTINED, UID_IN_TWO_SERIES
        return InstanceState.KEPT, OTHER_BYTES if any(row.purged_at is None for row in known) else instance.reason

    def _series_of(self, c: Connection, instance: ReceivedInstance) -> Row[Any]:
        """The series of an instance, made where this is its first."""
        uid = {"uid": instance.series_instance_uid}
        row = c.execute(_SERIES_TO_CHANGE, uid).one_or_none()
        if row is not None:
            return row
        held = instance.state is InstanceState.HELD
        c.execute(
            insert(t.series).values(
                series_instance_uid=instance.series_instance_uid,
                study_instance_uid=instance.study_instance_uid,
                patient_id=instance.patient_id,
                **sender_columns(instance.sender),
                state=SeriesState.SETTLED if held else SeriesState.OPEN,
                revision=0 if held else 1,
                opened_at=instance.received_at,
                first_received_at=instance.received_at,
                last_received_at=instance.received_at,
                outcome="held" if held else "",
                reason=instance.reason if held else "",
            )
        )
        row = c.execute(_SERIES, uid).one()
        self._log(c, "series", row, "opened", row.state, reason=instance.reason)
        return row

    def _arrive(self, c: Connection, series: Row[Any], instance: ReceivedInstance, doubt: str) -> None:
        """Count an instance in; a series that was settled opens again, and what is unsent of it is cancelled."""
        last = max(series.last_received_at, instance.received_at)
        c.execute(_ARRIVED, {"series_id": series.id, "last": last})
        changes: dict[str, Any] = {}
        if instance.sop_class_uid in MULTI_FRAME_CLASSES:
            changes["examine"] = True
        if doubt == IDENTITY_CONFLICT:
            changes["conflict"] = doubt
        if series.state == SeriesState.SETTLED:
            changes |= reopened(series, instance.received_at)
            what = "late_instance" if series.revision else "opened"
            self._log(c, "series", series, what, SeriesState.OPEN, reason=doubt)
            self._overtake(c, series.id, SUPERSEDED)
        if changes:
            c.execute(update(t.series).where(t.series.c.id == series.id).values(changes))

    def heartbeat(
        self, listener_id: str, started_at: datetime, open_associations: int, arriving: Sequence[ArrivingSeries]
    ) -> None:
        """Say that the listener lives and what it has open: silence counts only while this is fresh (gate 2)."""
        seen = {"started_at": started_at, "seen_at": self._clock(), "open_associations": open_associations}
        with self._writing() as c:
            if c.execute(update(t.listener).where(t.listener.c.id == listener_id).values(seen)).rowcount == 0:
                c.execute(insert(t.listener).values(id=listener_id, **seen))
            # There is one listener: what an older one of another name had said is no sign of life.
            older = (t.listener.c.id != listener_id, t.listener.c.started_at < started_at)
            said = t.arriving.c.listener_id
            gone = select(t.listener.c.id).where(*older)
            c.execute(delete(t.arriving).where(or_(said == listener_id, said.in_(gone))))
            c.execute(delete(t.listener).where(*older))
            rows = [
                {
                    "listener_id": listener_id,
                    "series_instance_uid": series.series_instance_uid,
                    "open_associations": series.open_associations,
                    "last_byte_at": series.last_byte_at,
                }
                for series in arriving
            ]
            if rows:
                c.execute(insert(t.arriving), rows)

    def refused_peer(self, calling_ae_title: str, called_ae_title: str, address: str, reason: str) -> None:
        """Note who was refused, for `hilum check`; the oldest give way, as the texts are the peer's own (SEC-21)."""
        p, now = t.refused_peer.c, self._clock()
        key = (calling_ae_title[:16], called_ae_title[:16], address[:64])
        here = (p.calling_ae_title == key[0], p.called_ae_title == key[1], p.address == key[2])
        with self._writing() as c:
            again = update(t.refused_peer).where(*here).values(last_at=now, times=p.times + 1, reason=reason)
            if c.execute(again).rowcount:
                return
            if c.execute(select(func.count()).select_from(t.refused_peer)).scalar_one() >= _MOST_REFUSED_PEERS:
                oldest = select(func.min(p.last_at)).scalar_subquery()
                c.execute(delete(t.refused_peer).where(p.last_at == oldest))
            names = dict(zip(("calling_ae_title", "called_ae_title", "address"), key, strict=True))
            c.execute(insert(t.refused_peer).values(**names, reason=reason, first_at=now, last_at=now, times=1))

    def role_seen(self, executor_id: str, name: str, pid: int, started_at: datetime) -> None:
        """Say that a process of the node lives."""
        seen = {"name": name, "pid": pid, "started_at": started_at, "seen_at": self._clock()}
        with self._writing() as c:
            if c.execute(update(t.role).where(t.role.c.executor_id == executor_id).values(seen)).rowcount == 0:
                c.execute(insert(t.role).values(executor_id=executor_id, **seen))


def claimants(instances: Iterable[InstanceRecord]) -> list[InstanceRecord]:
    """Those of a series that say whose it is: what is kept, and what is set apart because it says something else."""
    return [each for each in instances if each.state == InstanceState.KEPT or each.reason == IDENTITY_CONFLICT]


def reopened(series: Row[Any], at: datetime) -> dict[str, Any]:
    """The columns of a series that slices may come for again: its next revision."""
    return {
        "state": SeriesState.OPEN,
        "revision": series.revision + 1,
        "attempt": series.attempt + 1,
        "lease_at": None,
        "opened_at": at,
        "settled_at": None,
        "completeness": "",
        "outcome": "",
        "reason": "",
    }


def _row(instance: ReceivedInstance, series_id: int, state: InstanceState, reason: str) -> dict[str, Any]:
    return {**instance_columns(instance), "series_id": series_id, "state": state, "reason": reason}
