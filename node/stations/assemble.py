"""Assembling: a series that is whole becomes stacks, jobs and reasons, frozen in one transaction.

All is read and decided before the journal is asked to freeze; when an instance has come meanwhile, nothing is changed
and the series is due again (gate 1).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from node.dicom.headers import read_header
from node.dicom.pixels import split_series
from node.domain.exclusions import is_image
from node.domain.identity import disagreement
from node.domain.instance import InstanceHeader
from node.domain.job import EXHAUSTED, MOST_STARTS
from node.domain.routing import Ineligible, ModelFacts, Routed, Rule
from node.domain.senders import route_for_all
from node.domain.series import Evidence, completeness
from node.domain.stack import MISSING_SLICES, Stack, Unstackable
from node.domain.work import JobDraft, MemberFile, PartDraft, SeriesWork, Settlement, Station
from node.errors import MACHINE_ERRNOS, CannotUnderstand
from node.monitor import metrics
from node.store.due import UNREADABLE
from node.store.journal import Journal
from node.store.reception import IDENTITY_CONFLICT, INPUTS_PURGED, claimants
from node.store.records import utc_now

_log = logging.getLogger(__name__)

_NOTHING_LEFT = "no_readable_instance"


@dataclass(frozen=True)
class Assembler:
    """The assembling station.

    Attributes
    ----------
    models
        What the rules may choose from, by name.
    config_digest
        Of what changes the content of results; part of every job.
    """

    journal: Journal
    rules: tuple[Rule, ...]
    models: Mapping[str, ModelFacts]
    config_digest: str

    def run(self, series_id: int, attempt: int) -> str:
        """Assemble one series; returns what became of it in a word."""
        began = time.monotonic()
        work = self.journal.begin_series(series_id, attempt)
        if work is None:
            return "not_mine"
        try:
            settlement = self._judge(work)
        except MemoryError:
            return self._put_off(work, "out of memory")
        except OSError as error:
            if error.errno not in MACHINE_ERRNOS:
                raise
            return self._put_off(work, error.strerror or str(error))
        if isinstance(settlement, Wait):
            self.journal.leave_open(work, gapped=settlement.gapped)
            return "gapped" if settlement.gapped else "waits"
        if not self.journal.settle(work, settlement):
            return "outrun"
        _count(settlement, time.monotonic() - began)
        if work.late:
            metrics.SERIES_REOPENED.labels(sender=work.sender.alias).inc()
            metrics.LATE_INSTANCES.labels(sender=work.sender.alias).inc(work.late)
        _log.info("series_settled", extra=_line(work, settlement))
        return settlement.outcome

    def _put_off(self, work: SeriesWork, why: str) -> str:
        """The machine has no room now: once the lease has lapsed the sweep hands the series out again, a few times."""
        if work.starts < MOST_STARTS:
            metrics.JOBS_RETRIED.labels(stage="assemble").inc()
            _log.warning("series_put_off", extra={"series": work.series_instance_uid, "reason": why})
            return "put_off"
        if self.journal.fail(Station.ASSEMBLE, work.id, work.attempt, EXHAUSTED, why):
            metrics.JOBS_FAILED.labels(stage="assemble", cause=EXHAUSTED).inc()
            _log.error("series_failed", extra={"series": work.series_instance_uid, "reason": why})
        return "failed"

    def _judge(self, work: SeriesWork) -> Settlement | Wait:
        """Read the headers and decide; what cannot be read is quarantined, and leaves a gap in the rest (ASM-4)."""
        gone = [member for member in work.members if member.purged and not member.unread]
        if gone or work.conflict:
            if work.evidence is None:
                return Wait(gapped=False)
            return _purged(work, work.evidence, gone) if gone else self._in_conflict(work, work.evidence)
        headers, doubts = _read_headers(work.members)
        evidence = work.evidence or (None if doubts else whole_object(headers))
        if evidence is None:
            return Wait(gapped=False)
        if not headers:
            nothing = _without_scan(work, evidence, "quarantined", _NOTHING_LEFT, gapped=True)
            return replace(nothing, quarantined=doubts)
        paths = {member.sop_instance_uid: member.path for member in work.members}
        parts = split_series(headers, paths, _unread_images(work.members, doubts))
        if _has_gap(parts) and evidence in (Evidence.SILENCE, Evidence.RELEASED):
            return Wait(gapped=True)
        return self._settlement(work, evidence, parts, doubts)

    def _in_conflict(self, work: SeriesWork, evidence: Evidence) -> Settlement:
        """Reception found two patients or studies; the headers of all that came say which slices, and in what."""
        record = self.journal.show_series(work.id)
        here = [each for each in claimants(record.instances if record else ()) if not each.purged]
        headers = []
        for each in here:
            with suppress(CannotUnderstand):
                headers.append(read_header(Path(each.path)))
        detail = disagreement(headers) or "a slice came with another Patient ID or Study Instance UID"
        uids = tuple(dict.fromkeys(each.sop_instance_uid for each in here))
        part = PartDraft(len(here), "", {}, uids, (), "quarantined", work.conflict, detail)
        doubts = {member.instance_id: work.conflict for member in work.members}
        doubtful = _without_scan(work, evidence, "quarantined", work.conflict, gapped=False)
        return replace(doubtful, parts=(part,), quarantined=doubts)

    def _settlement(
        self,
        work: SeriesWork,
        evidence: Evidence,
        parts: Sequence[Stack | Unstackable],
        doubts: Mapping[int, str],
    ) -> Settlement:
        senders = {member.sop_instance_uid: member.sender for member in work.members}
        routed = route_for_all(parts, senders, self.rules, self.models)
        drafts = tuple(self._draft(item) for item in _merged(routed))
        # Doubt about a part stays with the part: its instances are judged anew, all together, at the next revision.
        # Only whose images they are is settled for good: nothing that comes later makes two patients one.
        mixed = any(isinstance(part, Unstackable) and part.reason == IDENTITY_CONFLICT for part in parts)
        in_doubt = {member.instance_id: IDENTITY_CONFLICT for member in work.members} if mixed else {}
        outcome, reason = _outcome(drafts, doubts)
        return Settlement(
            evidence=evidence,
            completeness=completeness(evidence, _has_gap(parts)),
            wait_s=_wait_s(work),
            outcome=outcome,
            reason=reason,
            parts=drafts,
            quarantined={**in_doubt, **doubts},
            conflict=IDENTITY_CONFLICT if mixed else "",
        )

    def _draft(self, item: Routed | Ineligible) -> PartDraft:
        if isinstance(item, Ineligible):
            doubtful = isinstance(item.stack, Unstackable) and item.stack.quarantined
            outcome = "quarantined" if doubtful else "ineligible"
            return _part(item.stack, outcome, item.reason, item.detail)
        geometry = item.stack.geometry
        job = JobDraft(
            rule=item.rule,
            model=item.model,
            model_digest=self.models[item.model].digest,
            config_digest=self.config_digest,
            destinations=item.destinations,
            priority=item.priority,
            pixels=geometry.rows * geometry.columns,
        )
        return replace(_part(item.stack, "processed"), job=job)


@dataclass(frozen=True)
class Wait:
    """Not settled: more may come."""

    gapped: bool


def whole_object(headers: Sequence[InstanceHeader]) -> Evidence | None:
    """Evidence that the objects themselves give: one multi-frame object, or all parts of one concatenation (ASM-9)."""
    concatenations = {header.concatenation_uid for header in headers}
    if len(headers) == 1 and not headers[0].concatenation_uid and len(headers[0].frames) > 1:
        return Evidence.MULTIFRAME
    totals = {header.concatenation_total for header in headers}
    if len(concatenations) == 1 and "" not in concatenations and totals == {len(headers)}:
        return Evidence.CONCATENATION
    return None


def _read_headers(members: Sequence[MemberFile]) -> tuple[list[InstanceHeader], dict[int, str]]:
    """The headers that can be read, and the reason for each that cannot."""
    headers: list[InstanceHeader] = []
    doubts: dict[int, str] = {}
    for member in members:
        if member.purged:  # of those that could not be read alone
            doubts[member.instance_id] = UNREADABLE
            continue
        try:
            headers.append(read_header(member.path))
        except CannotUnderstand:
            doubts[member.instance_id] = UNREADABLE
    return headers, doubts


def _unread_images(members: Sequence[MemberFile], doubts: Mapping[int, str]) -> list[str]:
    """What every scan of the series may lack."""
    unread = (member for member in members if member.instance_id in doubts)
    return [member.sop_instance_uid for member in unread if is_image(member.sop_class_uid)]


def _has_gap(parts: Sequence[Stack | Unstackable]) -> bool:
    return any(isinstance(part, Unstackable) and part.reason == MISSING_SLICES for part in parts)


def _merged(routed: Sequence[Routed | Ineligible]) -> tuple[Routed | Ineligible, ...]:
    """Two rules that choose one model for one stack make one job, for the destinations of both (RES-22)."""
    merged: dict[tuple[str, str], Routed] = {}
    others: list[Ineligible] = []
    for item in routed:
        if isinstance(item, Ineligible):
            others.append(item)
            continue
        key = (item.stack.volume_id, item.model)
        if key in merged:
            first = merged[key]
            both = tuple(dict.fromkeys((*first.destinations, *item.destinations)))
            merged[key] = replace(first, destinations=both, priority=max(first.priority, item.priority))
        else:
            merged[key] = item
    return (*merged.values(), *others)


def _part(part: Stack | Unstackable, outcome: str, reason: str = "", detail: str = "") -> PartDraft:
    return PartDraft(
        frames=len(part.frames),
        volume_id=part.volume_id if isinstance(part, Stack) else "",
        keys=part.keys,
        sop_instance_uids=tuple(dict.fromkeys(frame.sop_instance_uid for frame in part.frames)),
        dropped=tuple((frame.sop_instance_uid, frame.frame_number, frame.reason) for frame in part.dropped),
        outcome=outcome,
        reason=reason,
        detail=detail,
    )


def _outcome(parts: Sequence[PartDraft], doubts: Mapping[int, str]) -> tuple[str, str]:
    """The one terminal reason of a series (ASM-56): processed before quarantined before ineligible."""
    found = [(part.outcome, part.reason) for part in parts] + [("quarantined", reason) for reason in doubts.values()]
    order = ("processed", "quarantined", "ineligible")
    return min(found, key=lambda each: order.index(each[0]), default=("quarantined", _NOTHING_LEFT))


def _purged(work: SeriesWork, evidence: Evidence, gone: Sequence[MemberFile]) -> Settlement:
    """Half a series must not become a result: it has failed until the rest of it is sent again, which opens it."""
    detail = f"{len(gone)} of {len(work.members)} instances were purged and did not come again: send the series whole"
    uids = tuple(member.sop_instance_uid for member in gone)
    part = PartDraft(len(gone), "", {}, uids, (), "failed", INPUTS_PURGED, detail)
    unread = {member.instance_id: UNREADABLE for member in work.members if member.unread}  # nobody has looked again
    failed = _without_scan(work, evidence, "failed", INPUTS_PURGED, gapped=True)
    return replace(failed, parts=(part,), quarantined=unread)


def _without_scan(work: SeriesWork, evidence: Evidence, outcome: str, reason: str, *, gapped: bool) -> Settlement:
    return Settlement(evidence, completeness(evidence, gapped), _wait_s(work), outcome, reason)


def _wait_s(work: SeriesWork, now: datetime | None = None) -> float:
    """From the last instance to the decision (ASM-10)."""
    return max(0.0, ((now or utc_now()) - work.last_received_at).total_seconds())


def _count(settlement: Settlement, seconds: float) -> None:
    eligible = any(part.job for part in settlement.parts)
    metrics.SERIES_COMPLETED.labels(evidence=settlement.evidence, eligible=str(eligible).lower()).inc()
    metrics.COMPLETION_WAIT.observe(settlement.wait_s)
    metrics.STAGE_DURATION.labels(stage="assemble", model=metrics.UNKNOWN).observe(seconds)
    for part in settlement.parts:
        if part.job is None:
            metrics.SERIES_INELIGIBLE.labels(reason=part.reason).inc()


def _line(work: SeriesWork, settlement: Settlement) -> dict[str, object]:
    """What the log says of a settled series (SEC-20)."""
    return {
        "series": work.series_instance_uid,
        "revision": work.revision,
        "evidence": str(settlement.evidence),
        "completeness": str(settlement.completeness),
        "state": settlement.outcome,
        "reason": settlement.reason,
        "count": len(work.members),
    }
