"""What the stations are handed and hand back: begin, then commit, each by compare-and-swap on the attempt.

Two of the three gates that keep a slice from being lost although no series is stand here: `settle` changes nothing when
an instance has come since the work began, and `may_send` is asked before each send. The third is `Reception`: a late
slice cancels, in its own transaction, all that is not yet on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, exists, insert, select, update

from node.domain.exclusions import is_image
from node.domain.instance import InstanceState
from node.domain.job import (
    MOST_STARTS,
    SENT_DELIVERIES,
    DeliveryEvent,
    DeliveryState,
    JobEvent,
    JobState,
    ObjectKind,
    ResultObject,
)
from node.domain.series import Completeness, Evidence, SeriesState, uid_digest
from node.domain.work import (
    DeliveryWork,
    JobDraft,
    JobWork,
    MemberFile,
    NewObject,
    PartDraft,
    SeriesWork,
    Settlement,
    Station,
)
from node.store import due
from node.store import schema as t
from node.store.ledger import SUPERSEDED, inserted_id, newest_revision
from node.store.reception import Reception
from node.store.records import to_delivery, to_job, to_object, to_sender

DIED = "crashed"
"""Reason of a row whose process died three times over it."""
_DIED_DETAIL = f"its process died {MOST_STARTS} times"


class Handover(Reception):
    """Hands rows to the stations, and takes back what became of them."""

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

    # assemble ---------------------------------------------------------------------------------------------------------

    def begin_series(self, series_id: int, attempt: int) -> SeriesWork | None:
        """Take a series to work on; None where it is another's, or its process has died too often."""
        s = t.series.c
        with self._writing() as c:
            row = c.execute(select(t.series).where(s.id == series_id).with_for_update()).one_or_none()
            if row is None or row.attempt != attempt or row.state != SeriesState.OPEN:
                return None
            if row.starts >= MOST_STARTS:
                self._fail(c, Station.ASSEMBLE, series_id, attempt, reason=DIED, detail=_DIED_DETAIL)
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
                members=tuple(_member(m) for m in members),
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

    # segment ----------------------------------------------------------------------------------------------------------

    def begin_job(self, job_id: int, attempt: int) -> JobWork | None:
        """Take a job to work on; None where it is another's, overtaken, or its process has died too often."""
        j = t.job.c
        with self._writing() as c:
            row = c.execute(select(t.job).where(j.id == job_id, j.attempt == attempt)).one_or_none()
            if row is None or row.state not in (JobState.QUEUED, JobState.RUNNING):
                return None
            if row.revision != newest_revision(c, row.series_id):
                self._advance_job(c, job_id, attempt, JobEvent.SUPERSEDE, SUPERSEDED)
                return None
            if row.starts >= MOST_STARTS:
                self._advance_job(c, job_id, attempt, JobEvent.FAIL, DIED, detail=_DIED_DETAIL)
                return None
            begun = {"starts": row.starts + 1, "lease_at": self._clock()}
            if self._advance_job(c, job_id, attempt, JobEvent.BEGIN, "", **begun) is None:
                return None
            members = c.execute(select(t.instance).join(t.member).where(t.member.c.snapshot_id == row.snapshot_id))
            now_row = c.execute(select(t.job).where(j.id == job_id)).one()
            unread = tuple(
                m.sop_instance_uid
                for m in c.execute(due.current_members(row.series_id))
                if m.state == InstanceState.QUARANTINED and is_image(m.sop_class_uid)
            )
            return JobWork(to_job(now_row), tuple(_member(m) for m in members), _replaced_reports(c, row), unread)

    def compose(
        self,
        job_id: int,
        attempt: int,
        objects: Sequence[NewObject],
        deliveries: Sequence[tuple[str, ObjectKind]],
        result: Mapping[str, object],
    ) -> bool:
        """Commit a job's frozen objects and its deliveries at once; False: another attempt has it, nothing is kept.

        Parameters
        ----------
        deliveries
            (destination, kind), for each destination in the order of sending: SEG, SR, PDF.
        """
        now = self._clock()
        with self._writing() as c:
            claimed = c.execute(select(t.job.c.result).where(t.job.c.id == job_id)).scalar_one()
            found = {**claimed, **result}
            if self._advance_job(c, job_id, attempt, JobEvent.COMPOSE, "", starts=0, result=found) is None:
                return False
            for each in objects:
                c.execute(insert(t.result_object).values(job_id=job_id, **_object_columns(each)))
            for destination, kind in deliveries:
                values = {"job_id": job_id, "kind": kind, "destination": destination, "due_at": now}
                made = inserted_id(c, insert(t.delivery).values(state=DeliveryState.PENDING, **values))
                row = c.execute(select(t.delivery).where(t.delivery.c.id == made)).one()
                self._log(c, "delivery", row, "made", DeliveryState.PENDING)
            self._conclude(c, job_id)
            return True

    def reject_job(self, job_id: int, attempt: int, reason: str, detail: str) -> bool:
        """End a job whose scan cannot serve."""
        with self._writing() as c:
            return self._advance_job(c, job_id, attempt, JobEvent.REJECT, reason, detail=detail) is not None

    def postpone_job(self, job_id: int, attempt: int, reason: str, detail: str, due_at: datetime) -> bool:
        """Put a job off: the try ended in order, so it does not count as a death."""
        later = {"detail": detail, "due_at": due_at, "starts": 0, "tries": t.job.c.tries + 1}
        with self._writing() as c:
            return self._advance_job(c, job_id, attempt, JobEvent.RETRY_LATER, reason, **later) is not None

    def tries_of(self, job_id: int) -> int:
        """How often a job was put off."""
        with self._reading() as c:
            return int(c.execute(select(t.job.c.tries).where(t.job.c.id == job_id)).scalar_one())

    def claim_series_numbers(self, job_id: int, attempt: int, numbers_of: Callable[[int], Sequence[int]]) -> int:
        """The first turn whose SeriesNumbers no other result of the study has: now they are the job's (RES-14).

        Under an attempt that no longer holds nothing is noted.

        Numbers of a result that was overtaken before any of it was sent are free: it never will be.
        """
        j, s, d = t.job.c, t.series.c, t.delivery.c
        sent = exists().where(d.job_id == j.id, d.state.in_([DeliveryState.SENDING, *sorted(SENT_DELIVERIES)]))
        with self._writing() as c:
            job = c.execute(select(t.job, s.study_instance_uid).join(t.series).where(j.id == job_id)).one()
            others = (
                select(j.result).join(t.series).where(s.study_instance_uid == job.study_instance_uid, j.id != job_id)
            )
            results = c.scalars(others.where((j.revision == s.revision) | sent)).all()
            taken = {number for result in results for number in result.get("series_numbers", ())}
            turn = next(turn for turn in count() if taken.isdisjoint(numbers_of(turn)))
            result = {**job.result, "series_numbers": list(numbers_of(turn))}
            running = (j.id == job_id, j.attempt == attempt, j.state == JobState.RUNNING)
            c.execute(update(t.job).where(*running).values(result=result))
            return turn

    # deliver ----------------------------------------------------------------------------------------------------------

    def begin_delivery(self, delivery_id: int, attempt: int) -> DeliveryWork | None:
        """Take a delivery to send; None where it is another's, overtaken, or its process has died too often."""
        d = t.delivery.c
        with self._writing() as c:
            row = c.execute(select(t.delivery).where(d.id == delivery_id, d.attempt == attempt)).one_or_none()
            if row is None or row.state not in (DeliveryState.PENDING, DeliveryState.SENDING):
                return None
            if self._overtaken(c, row):
                return None
            if row.starts >= MOST_STARTS:
                self._advance_delivery(c, delivery_id, attempt, DeliveryEvent.FAIL, DIED)
                return None
            begun = {"starts": row.starts + 1, "lease_at": self._clock()}
            if self._advance_delivery(c, delivery_id, attempt, DeliveryEvent.BEGIN, "", **begun) is None:
                return None
            return self._delivery_work(c, delivery_id)

    @staticmethod
    def _delivery_work(c: Connection, delivery_id: int) -> DeliveryWork:
        row = c.execute(select(t.delivery).where(t.delivery.c.id == delivery_id)).one()
        job = c.execute(select(t.job).where(t.job.c.id == row.job_id)).one()
        series = c.execute(select(t.series).where(t.series.c.id == job.series_id)).one()
        o, d = t.result_object.c, t.delivery.c
        objects = c.execute(select(t.result_object).where(o.job_id == job.id, o.kind == row.kind)).all()
        seg = select(d.variant).where(
            d.job_id == job.id,
            d.destination == row.destination,
            d.kind == ObjectKind.SEG,
            d.state.in_(sorted(SENT_DELIVERIES)),
        )
        replaced = _replaced_reports(c, job).get(row.destination) if row.kind == ObjectKind.SR else None
        return DeliveryWork(
            delivery=to_delivery(row),
            model=job.model,
            objects=tuple(to_object(each) for each in objects),
            pixels=job.pixels,
            sent_seg_variant=c.execute(seg).scalar_one_or_none(),
            replaced_report=replaced.sop_instance_uid if replaced else "",
            first_received_at=series.first_received_at,
            last_received_at=series.last_received_at,
        )

    def may_send(self, delivery_id: int, attempt: int) -> bool:
        """Whether a delivery still holds and its revision is the newest: asked right before each send (gate 3)."""
        d = t.delivery.c
        sending = select(t.delivery).where(d.id == delivery_id, d.attempt == attempt, d.state == DeliveryState.SENDING)
        with self._writing() as c:
            row = c.execute(sending).one_or_none()
            return row is not None and not self._overtaken(c, row)

    def _overtaken(self, c: Connection, delivery: Row[Any]) -> bool:
        """Whether the series has a newer revision; the delivery is then cancelled."""
        job = c.execute(select(t.job.c.series_id, t.job.c.revision).where(t.job.c.id == delivery.job_id)).one()
        if job.revision == newest_revision(c, job.series_id):
            return False
        self._advance_delivery(c, delivery.id, delivery.attempt, DeliveryEvent.SUPERSEDE, SUPERSEDED)
        return True

    def sent(self, delivery_id: int, attempt: int, variant: str, sop_instance_uid: str, warning: str = "") -> bool:
        """Note that the peer has stored the object; True where the whole job has ended with it."""
        what = {"variant": variant, "sent_sop_instance_uid": sop_instance_uid}
        with self._writing() as c:
            row = self._advance_delivery(c, delivery_id, attempt, DeliveryEvent.SENT, warning, **what)
            if row is None:
                return False
            state = c.execute(select(t.job.c.state).where(t.job.c.id == row.job_id)).scalar_one()
            return bool(state == JobState.DONE)

    def postpone_delivery(self, delivery_id: int, attempt: int, reason: str, due_at: datetime) -> bool:
        """Put a delivery off to its next due time, or cancel it where its revision was overtaken meanwhile."""
        later = {"due_at": due_at, "starts": 0, "tries": t.delivery.c.tries + 1}
        with self._writing() as c:
            row = self._advance_delivery(c, delivery_id, attempt, DeliveryEvent.RETRY_LATER, reason, **later)
            if row is None:
                return False
            self._overtaken(c, c.execute(select(t.delivery).where(t.delivery.c.id == delivery_id)).one())
            return True


def _member(row: Row[Any]) -> MemberFile:
    return MemberFile(
        instance_id=row.id,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        path=Path(row.path),
        sender=to_sender(row),
        purged=row.purged_at is not None,
        unread=row.state == InstanceState.QUARANTINED,
    )


def _replaced_reports(c: Connection, job: Row[Any]) -> dict[str, ResultObject]:
    """By destination, the report that it last stored of an earlier revision of the scan: same split keys (RES-34)."""
    replaced: dict[str, ResultObject] = {}
    for row in c.execute(due.sent_reports(job)).all():
        if row.split_keys == job.split_keys:
            replaced.setdefault(row.destination, to_object(row))
    return replaced


def _object_columns(each: NewObject) -> dict[str, Any]:
    return {
        "kind": each.kind,
        "variant": each.variant,
        "sop_class_uid": each.sop_class_uid,
        "sop_instance_uid": each.sop_instance_uid,
        "transfer_syntax_uid": each.transfer_syntax_uid,
        "path": str(each.path),
        "sha256": each.sha256,
        "length": each.length,
    }
