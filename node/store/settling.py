"""Series handed to assembly and taken back: begin, then settle, by compare-and-swap on the attempt.

The first of the three gates that keep a slice from being lost although no series is stands here: `settle` changes
nothing when an instance has come since the work began.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, exists, insert, select, update

from node.domain.instance import InstanceState
from node.domain.job import (
    MOST_STARTS,
    SENT_DELIVERIES,
    DeliveryEvent,
    JobEvent,
    JobState,
)
from node.domain.series import Completeness, Evidence, SeriesState, uid_digest
from node.domain.work import (
    JobDraft,
    MemberFile,
    PartDraft,
    SeriesWork,
    Settlement,
    Station,
)
from node.store import due
from node.store import schema as t
from node.store.ledger import inserted_id
from node.store.reception import Reception
from node.store.records import to_member, to_sender

DIED = "crashed"
"""Reason of a row whose process died three times over it."""
DIED_DETAIL = f"its process died {MOST_STARTS} times"


class Settling(Reception):
    """Hands series to assembly, and takes back their parts and jobs."""

    def fail(self, station: Station, row_id: int, attempt: int, reason: str, detail: str = "") -> bool:
        """End a row for a person to look at."""
        with self._writing() as c:
            return self._fail(c, station, row_id, attempt, reason=reason, detail=detail)

    def _fail(self, c: Connection, station: Station, row_id: int, attempt: int, *, reason: str, detail: str) -> bool:
        if station is Station.SEGMENT:
            return self._advance_job(c, row_id, attempt, JobEvent.FAIL, reason, detail=detail) is not None
        if station is Station.DELIVER:
            return self._advance_delivery(c, row_id, attempt, DeliveryEvent.FAIL, reason) is not None
        changes = {
            "state": SeriesState.SETTLED,
            "settled_at": self._clock(),
            "lease_at": None,
            "examine": False,
            "outcome": "failed",
            "reason": reason,
        }
        return self._swap_series(c, row_id, attempt, "fail", f"{reason}: {detail}", changes=changes)

    def _swap_series(
        self, c: Connection, series_id: int, attempt: int, event: str, reason: str, *, changes: Mapping[str, Any]
    ) -> bool:
        """Change an open series at this attempt, and say so in its history."""
        s = t.series.c
        here = (s.id == series_id, s.attempt == attempt, s.state == SeriesState.OPEN)
        row = c.execute(select(t.series).where(*here).with_for_update()).one_or_none()
        if row is None or c.execute(update(t.series).where(*here).values(changes)).rowcount != 1:
            return False
        self._log(c, "series", row, event, changes.get("state", row.state), reason=reason)
        return True

    def begin_series(self, series_id: int, attempt: int) -> SeriesWork | None:
        """Take a series to work on; None where it is another's, or its process has died too often."""
        return self._noted((Station.ASSEMBLE, series_id, attempt), self._begin_series(series_id, attempt))

    def _begin_series(self, series_id: int, attempt: int) -> SeriesWork | None:
        s = t.series.c
        with self._writing() as c:
            row = c.execute(select(t.series).where(s.id == series_id).with_for_update()).one_or_none()
            if row is None or row.attempt != attempt or row.state != SeriesState.OPEN:
                return None
            if row.starts >= MOST_STARTS:
                self._fail(c, Station.ASSEMBLE, series_id, attempt, reason=DIED, detail=DIED_DETAIL)
                return None
            c.execute(update(t.series).where(s.id == series_id).values(starts=row.starts + 1, lease_at=self._clock()))
            members = c.execute(due.current_members(series_id)).all()
            return SeriesWork(
                id=row.id,
                attempt=attempt,
                series_instance_uid=row.series_instance_uid,
                revision=row.revision,
                arrivals=row.arrivals,
                evidence=Evidence(row.evidence) if row.evidence else None,
                sender=to_sender(row),
                conflict=row.conflict,
                members=tuple(to_member(m) for m in members),
                last_received_at=row.last_received_at,
                starts=row.starts + 1,
                late=sum(m.received_at >= row.opened_at for m in members) if row.revision > 1 else 0,
            )

    def leave_open(self, work: SeriesWork, *, gapped: bool) -> bool:
        """Give a series back that is not settled yet: it was only examined, or slices are missing (ASM-3)."""
        s = t.series.c
        unchanged = {"evidence": "", "examine": False, "gapped": gapped}
        with self._writing() as c:
            reason = "gapped" if gapped else ""
            given_back = {"attempt": work.attempt + 1, "lease_at": None, "starts": 0}
            done = self._swap_series(c, work.id, work.attempt, "left_open", reason, changes=given_back)
            here = update(t.series).where(s.id == work.id, s.revision == work.revision, s.arrivals == work.arrivals)
            c.execute(here.values(unchanged))
            return done

    def settle(self, work: SeriesWork, settlement: Settlement) -> bool:
        """Freeze a revision with its parts and jobs, all or nothing (gate 1).

        Returns
        -------
        Whether the series was still as it was when the work began; False: an instance has come, nothing is changed but
        that the series is due again.
        """
        s, now = t.series.c, self._clock()
        changes = {
            "state": SeriesState.SETTLED,
            "settled_at": now,
            "lease_at": None,
            "examine": False,
            "starts": 0,
            "evidence": settlement.evidence,
            "completeness": settlement.completeness,
            "wait_s": settlement.wait_s,
            "outcome": settlement.outcome,
            "reason": settlement.reason,
        } | ({"conflict": settlement.conflict} if settlement.conflict else {})
        with self._writing() as c:
            now_here = c.execute(select(s.revision, s.arrivals).where(s.id == work.id).with_for_update()).one()
            if tuple(now_here) != (work.revision, work.arrivals):
                again = {"attempt": work.attempt + 1, "lease_at": None, "starts": 0}
                self._swap_series(c, work.id, work.attempt, "outrun", "", changes=again)
                return False
            words = f"{settlement.evidence}, {settlement.completeness}: {settlement.outcome}: {settlement.reason}"
            if not self._swap_series(c, work.id, work.attempt, "settle", words, changes=changes):
                return False
            self._put_aside(c, work.members, settlement.quarantined)
            snapshot_id = self._freeze(c, work, settlement, now)
            for number, part in enumerate(settlement.parts, 1):
                self._add_part(c, work, snapshot_id, number, part, now=now)
            return True

    def _put_aside(self, c: Connection, members: Sequence[MemberFile], doubts: Mapping[int, str]) -> None:
        """Quarantine what is in doubt, and take back what could not be read before and can be now."""
        for instance_id, reason in doubts.items():
            self._move_instance(c, instance_id, "quarantine", InstanceState.QUARANTINED, reason)
        for member in members:
            if member.unread and member.instance_id not in doubts:
                self._move_instance(c, member.instance_id, "read", InstanceState.KEPT, "")

    def _move_instance(self, c: Connection, instance_id: int, event: str, state: InstanceState, reason: str) -> None:
        here = t.instance.c.id == instance_id
        row = c.execute(select(t.instance).where(here)).one()
        if (row.state, row.reason) == (state, reason):
            return
        c.execute(update(t.instance).where(here).values(state=state, reason=reason))
        self._log(c, "instance", row, event, state, reason=reason)

    @staticmethod
    def _freeze(c: Connection, work: SeriesWork, settlement: Settlement, now: datetime) -> int:
        frozen = [member for member in work.members if member.instance_id not in settlement.quarantined]
        values = {
            "series_id": work.id,
            "revision": work.revision,
            "digest": uid_digest([member.sop_instance_uid for member in frozen]),
            "evidence": settlement.evidence,
            "completeness": settlement.completeness,
            "wait_s": settlement.wait_s,
            "created_at": now,
        }
        snapshot_id = inserted_id(c, insert(t.snapshot).values(values))
        rows = [{"snapshot_id": snapshot_id, "instance_id": member.instance_id} for member in frozen]
        if rows:
            c.execute(insert(t.member), rows)
        return snapshot_id

    def _add_part(
        self, c: Connection, work: SeriesWork, snapshot_id: int, number: int, part: PartDraft, *, now: datetime
    ) -> None:
        job_id = None if part.job is None else self._job_for(c, work, snapshot_id, part, part.job, now=now)
        c.execute(
            insert(t.part).values(
                snapshot_id=snapshot_id,
                number=number,
                volume_id=part.volume_id,
                frames=part.frames,
                sop_instance_uids=list(part.sop_instance_uids),
                dropped=[list(frame) for frame in part.dropped],
                split_keys=dict(part.keys),
                outcome=part.outcome,
                reason=part.reason,
                detail=part.detail,
                rule=part.job.rule if part.job else "",
                model=part.job.model if part.job else "",
                job_id=job_id,
            )
        )

    def _job_for(
        self, c: Connection, work: SeriesWork, snapshot_id: int, part: PartDraft, draft: JobDraft, *, now: datetime
    ) -> int:
        """The job of a stack: the one that answered the very same scan already, else a new one (RES-22)."""
        j = t.job.c
        same = select(t.job).where(
            j.series_id == work.id,
            j.volume_id == part.volume_id,
            j.model == draft.model,
            j.model_digest == draft.model_digest,
            j.config_digest == draft.config_digest,
        )
        unsent = exists().where(t.delivery.c.job_id == j.id, t.delivery.c.state.notin_(sorted(SENT_DELIVERIES)))
        answered = c.execute(same.where(j.state == JobState.DONE, ~unsent).order_by(j.id.desc())).first()
        if answered is not None and self._still_answers(c, answered, snapshot_id, part, draft):
            c.execute(update(t.job).where(j.id == answered.id).values(revision=work.revision))
            self._log(
                c, "job", answered, "adopt", answered.state, reason=f"revision {work.revision} holds the same scan"
            )
            return int(answered.id)
        values = {
            "series_id": work.id,
            "revision": work.revision,
            "snapshot_id": snapshot_id,
            "volume_id": part.volume_id,
            "split_keys": dict(part.keys),
            "pixels": draft.pixels,
            "rule": draft.rule,
            "model": draft.model,
            "model_digest": draft.model_digest,
            "config_digest": draft.config_digest,
            "destinations": list(draft.destinations),
            "priority": draft.priority,
            "state": JobState.QUEUED,
            "created_at": now,
            "due_at": now,
        }
        job_id = inserted_id(c, insert(t.job).values(values))
        self._log(c, "job", c.execute(select(t.job).where(j.id == job_id)).one(), "made", JobState.QUEUED)
        return job_id

    @staticmethod
    def _still_answers(c: Connection, answered: Row[Any], snapshot_id: int, part: PartDraft, draft: JobDraft) -> bool:
        """Whether a finished job may stand for a new revision of its scan.

        Only if it saw the very same bytes (an instance may have come again under its UID with others), slices are
        missing now as they were then (its result may have to be called partial), nothing newer was sent of any of these
        instances since, and everybody who is to have the result was sent it.
        """
        m, i, j = t.member.c, t.instance.c, t.job.c
        seen = (
            select(m.instance_id)
            .join(t.instance, i.id == m.instance_id)
            .where(i.sop_instance_uid.in_(part.sop_instance_uids))
        )
        then, now = (
            set(c.scalars(seen.where(m.snapshot_id == each)).all()) for each in (answered.snapshot_id, snapshot_id)
        )
        s = t.snapshot.c
        gapped = select(s.id).where(
            s.id.in_([answered.snapshot_id, snapshot_id]), s.completeness == Completeness.GAPPED
        )
        sent = j.state.in_([JobState.COMPOSED, JobState.DONE])  # composed, of an older revision: being sent right now
        of_this_model = (j.series_id == answered.series_id, j.model == answered.model, sent)
        newer = select(t.part.c.sop_instance_uids).join(t.job).where(*of_this_model, j.id > answered.id)
        return (
            then == now
            and len(c.execute(gapped).all()) != 1
            and not any(set(uids).intersection(part.sop_instance_uids) for uids in c.scalars(newer))
            and set(draft.destinations) <= set(answered.destinations)
        )
