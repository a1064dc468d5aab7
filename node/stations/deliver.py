"""Delivering: one attempt to send one object to one destination, the frozen bytes and no others (RES-21, NET-24).

Which form of the object goes is chosen by what the peer accepts (NET-22). Right before the send the journal is asked
once more whether this revision of the series is still the newest (gate 3).
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from node.dicom.scu import Outbound, UnknownStatus
from node.domain.job import EXHAUSTED, Destination, ObjectKind, ResultObject, next_due
from node.domain.variants import choose_variant, often_misread, proposed_classes
from node.domain.work import DeliveryWork, Station
from node.errors import PeerUnavailable, PermanentlyRefused
from node.monitor import metrics
from node.store.journal import Journal
from node.store.records import utc_now

_log = logging.getLogger(__name__)

REFUSED = "refused"
_MOST_UNKNOWN = 3
"""Tries of a delivery that is answered with a status that the standard does not know (NET-23)."""


@dataclass(frozen=True)
class Deliverer:
    """The delivering station."""

    journal: Journal
    destinations: Mapping[str, Destination]
    clock: Callable[[], datetime] = utc_now
    jitter: Callable[[], float] = random.random

    def run(self, delivery_id: int, attempt: int) -> str:
        """Try once; returns what became of it in a word. It never takes longer than the destination's timeouts."""
        work = self.journal.begin_delivery(delivery_id, attempt)
        if work is None:
            return "not_mine"
        destination = self.destinations.get(work.delivery.destination)
        if destination is None:
            return self._refused(work, "the destination is no longer configured")
        began = time.monotonic()
        try:
            sent, status = self._send(work, destination)
        except UnknownStatus as error:
            if work.delivery.tries + 1 >= _MOST_UNKNOWN:
                return self._refused(work, str(error.args[0]))
            return self._later(work, destination, error)
        except PeerUnavailable as error:
            return self._later(work, destination, error)
        except PermanentlyRefused as error:
            return self._refused(work, str(error.args[0]))
        if sent is None:
            return "superseded"
        return self._stored(work, sent, status, time.monotonic() - began)

    def _send(self, work: DeliveryWork, destination: Destination) -> tuple[ResultObject | None, int]:
        """The object that the peer has stored and its status; None where a newer revision has overtaken it."""
        kind = work.delivery.kind
        # A LABELMAP is RLE: a peer that knows the class may still refuse the encoding, and then gets BINARY.
        encodings = {each.sop_class_uid: [each.transfer_syntax_uid] for each in work.objects}
        with Outbound(destination, proposed_classes(kind), encodings) as outbound:
            available = {each.variant: each for each in work.objects}
            taken = frozenset(
                each.sop_class_uid
                for each in work.objects
                if outbound.takes(each.sop_class_uid, each.transfer_syntax_uid)
            )
            variant = choose_variant(
                kind,
                available,
                taken,
                destination.seg,
                work.pixels,
                work.sent_seg_variant,
                work.replaced_report,
                empty_frames=destination.empty_frames,
            )
            self._note_contexts(destination, kind, ok=True)
            chosen = available[variant]
            _check_frozen(chosen)
            if not self.journal.may_send(work.delivery.id, work.delivery.attempt):
                return None, 0
            return chosen, outbound.store(chosen.path)

    def _stored(self, work: DeliveryWork, sent: ResultObject, status: int, seconds: float) -> str:
        delivery = work.delivery
        warning = f"stored with warning {status:04X}" if status else ""
        done = self.journal.sent(delivery.id, delivery.attempt, sent.variant, sent.sop_instance_uid, warning)
        self._count(work, "warning" if status else "stored")
        metrics.RESULTS_STORED.labels(destination=delivery.destination, kind=delivery.kind).inc()
        if delivery.kind is ObjectKind.SEG and often_misread(sent.variant, work.pixels):
            metrics.SEGMENTATIONS_MISREAD.labels(destination=delivery.destination).inc()
            self._say("segmentation_often_misread", work, variant=sent.variant)
        metrics.DESTINATION_UP.labels(destination=delivery.destination).set(1)
        metrics.STAGE_DURATION.labels(stage="deliver", model=work.model).observe(seconds)
        if done:
            now = self.clock()
            for metric, since in (
                (metrics.TURNAROUND, work.last_received_at),
                (metrics.FIRST_SLICE_TURNAROUND, work.first_received_at),
            ):
                metric.labels(model=work.model).observe(max(0.0, (now - since).total_seconds()))
        self._say("delivery_sent", work, variant=sent.variant, status=status)
        return "sent"

    def _later(self, work: DeliveryWork, destination: Destination, error: PeerUnavailable) -> str:
        """Put it off with backoff and jitter, as a due time in the journal; after the last try a person must look."""
        delivery = work.delivery
        tries = delivery.tries + 1
        metrics.DESTINATION_UP.labels(destination=delivery.destination).set(0)
        due_at = next_due(destination.retry, tries, self.clock(), self.jitter())
        if due_at is None:
            return self._dead(work, EXHAUSTED, f"{EXHAUSTED} after {tries} tries: {error.args[0]}")
        self.journal.postpone_delivery(delivery.id, delivery.attempt, str(error.args[0]), due_at)
        self._count(work, "unavailable")
        metrics.JOBS_RETRIED.labels(stage="deliver").inc()
        self._say("delivery_postponed", work, logging.WARNING, tries=tries)
        return "later"

    def _refused(self, work: DeliveryWork, why: str) -> str:
        self._note_contexts_of(work)
        return self._dead(work, REFUSED, f"{REFUSED}: {why}")

    def _dead(self, work: DeliveryWork, cause: str, reason: str) -> str:
        """A dead letter: it stays with its reason until somebody looks (NET-23)."""
        delivery = work.delivery
        if self.journal.fail(Station.DELIVER, delivery.id, delivery.attempt, reason):
            self._count(work, cause)
            metrics.JOBS_FAILED.labels(stage="deliver", cause=cause).inc()
            self._say("delivery_failed", work, logging.ERROR, cause=cause)
        return "failed"

    def _note_contexts_of(self, work: DeliveryWork) -> None:
        destination = self.destinations.get(work.delivery.destination)
        if destination is not None:
            self._note_contexts(destination, work.delivery.kind, ok=False)

    @staticmethod
    def _note_contexts(destination: Destination, kind: ObjectKind, *, ok: bool) -> None:
        metrics.DESTINATION_CONTEXT_OK.labels(destination=destination.name, kind=kind).set(1 if ok else 0)

    @staticmethod
    def _count(work: DeliveryWork, result: str) -> None:
        metrics.SEND_ATTEMPTS.labels(destination=work.delivery.destination, result=result).inc()

    @staticmethod
    def _say(event: str, work: DeliveryWork, level: int = logging.INFO, **facts: str | int) -> None:
        delivery = work.delivery
        where = {"delivery": delivery.id, "job": delivery.job_id, "destination": delivery.destination}
        _log.log(level, event, extra={**where, "kind": str(delivery.kind), "attempt": delivery.attempt, **facts})


def _check_frozen(each: ResultObject) -> None:
    """What leaves are the very bytes that were verified when they were made (RES-21).

    Raises
    ------
    PermanentlyRefused
        Where the spool's file is gone or changed: it must not leave.
    """
    if not each.path.exists():
        raise PermanentlyRefused("the object was purged from the spool; retry the series")
    if _sha256(each.path) != each.sha256:
        raise PermanentlyRefused("the object was changed on the disk; retry the series")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
