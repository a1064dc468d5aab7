"""What the later stations are handed and hand back: begin, then commit, each by compare-and-swap on the attempt.

Of the three gates that keep a slice from being lost although no series is, one stands here: `may_send` is asked before
each send. The others are `Settling.settle` and `Reception`: a late slice cancels, in its own transaction, all that is
not yet on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import count
from typing import Any

from sqlalchemy import Connection, Row, exists, insert, select, update

from node.domain.exclusions import is_image
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
from node.domain.work import (
    DeliveryWork,
    JobWork,
    NewObject,
    Station,
)
from node.store import due
from node.store import schema as t
from node.store.ledger import SUPERSEDED, inserted_id, newest_revision
from node.store.records import to_delivery, to_job, to_member, to_object
from node.store.settling import DIED, DIED_DETAIL, Settling


class Handover(Settling):
    """Hands jobs and deliveries to the stations, and takes back what became of them."""

    # segment ----------------------------------------------------------------------------------------------------------

    def begin_job(self, job_id: int, attempt: int) -> JobWork | None:
        """Take a job to work on; None where it is another's, overtaken, or its process has died too often."""
        return self._noted((Station.SEGMENT, job_id, attempt), self._begin_job(job_id, attempt))

    def _begin_job(self, job_id: int, attempt: int) -> JobWork | None:
        j = t.job.c
        with self._writing() as c:
            row = c.execute(select(t.job).where(j.id == job_id, j.attempt == attempt)).one_or_none()
            if row is None or row.state not in (JobState.QUEUED, JobState.RUNNING):
                return None
            if row.revision != newest_revision(c, row.series_id):
                self._advance_job(c, job_id, attempt, JobEvent.SUPERSEDE, SUPERSEDED)
                return None
            if row.starts >= MOST_STARTS:
                self._advance_job(c, job_id, attempt, JobEvent.FAIL, DIED, detail=DIED_DETAIL)
                return None
            begun = {"starts": row.starts + 1, "lease_at": self._clock()}
            if self._advance_job(c, job_id, attempt, JobEvent.BEGIN, "", **begun) is None:
                return None
            members = c.execute(select(t.instance).join(t.member).where(t.member.c.snapshot_id == row.snapshot_id))
            now_row = c.execute(select(t.job).where(j.id == job_id)).one()
            current = map(to_member, c.execute(due.current_members(row.series_id)))
            unread = tuple(m.sop_instance_uid for m in current if m.unread and is_image(m.sop_class_uid))
            return JobWork(to_job(now_row), tuple(to_member(m) for m in members), _replaced_reports(c, row), unread)

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

    def starts_of(self, job_id: int) -> int:
        """How often a job was begun and not ended: where it is not being worked on, its process died."""
        with self._reading() as c:
            return int(c.execute(select(t.job.c.starts).where(t.job.c.id == job_id)).scalar_one_or_none() or 0)

    def reason_of(self, job_id: int) -> str:
        """Why a job stands as it does: of one that waits, why it was put off last; empty where it was not."""
        with self._reading() as c:
            return str(c.execute(select(t.job.c.reason).where(t.job.c.id == job_id)).scalar_one_or_none() or "")

    def is_worked_on(self, job_id: int, attempt: int) -> bool:
        """Whether a job is still this attempt's: not overtaken by a newer revision, cancelled, or taken over."""
        j = t.job.c
        mine = select(j.id).where(j.id == job_id, j.attempt == attempt, j.state == JobState.RUNNING)
        with self._reading() as c:
            return c.execute(mine).one_or_none() is not None

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
        return self._noted((Station.DELIVER, delivery_id, attempt), self._begin_delivery(delivery_id, attempt))

    def _begin_delivery(self, delivery_id: int, attempt: int) -> DeliveryWork | None:
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
