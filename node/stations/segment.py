"""Segmenting: one stack through one model, measured, composed and verified; job and deliveries committed at once.

`segment_stack` is the road from files to findings without any journal; `hilum segment` takes it too. Here alone the
engines' errors become ours.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
from pydicom import Dataset

from engines.backends.base import REFERENCE
from engines.errors import ENGINE_FAULTS, BackendUnavailable, BundleError, OutOfDeviceMemory, UnsuitableVolume
from engines.inference.estimate import Estimate
from engines.inference.fastest import FastestSegmenter
from engines.inference.segmenter import Segmentation
from engines.model.bundle import Bundle
from engines.volume import Volume
from node.dicom.compose import Composed, Composition, Mismatch, Predecessor, ResultStyle, compose
from node.dicom.headers import read_header, read_source
from node.dicom.pixels import read_volume, split_series, volume_bytes
from node.dicom.result_header import numbers_in_turn
from node.domain.findings import Findings, Provenance, measure
from node.domain.instance import InstanceHeader
from node.domain.job import EXHAUSTED, Destination, Job, JobEvent, ObjectKind, ResultObject, RetryPolicy, next_due
from node.domain.segments import SegmentDescription
from node.domain.stack import MISSING_SLICES, FrameLabels, Stack, Unstackable, across_gaps, largest_block
from node.domain.variants import needed_segs
from node.domain.work import JobWork, NewObject, Station
from node.errors import (
    MACHINE_ERRNOS,
    CannotUnderstand,
    DeviceBusy,
    DoesNotFit,
    HilumError,
    SpoolFull,
    TooLong,
    Transient,
    Unsuitable,
)
from node.monitor import metrics
from node.stations.admission import Admission, Promises, budget_s
from node.stations.memory import Memory, Peak, memory_now
from node.stations.turns import Turns
from node.store.journal import Journal
from node.store.records import utc_now
from node.store.spool import Spool

_log = logging.getLogger(__name__)

_LONGEST_TRIAL_S = 600.0
"""An engine whose trial would take longer waits until no other job does."""
_TRIAL_FAULTS: tuple[type[Exception], ...] = (HilumError, *ENGINE_FAULTS)
_CAUSES: Mapping[type[Exception], str] = {
    BundleError: "bundle",
    BackendUnavailable: "backend",
    Mismatch: "readback",
    DoesNotFit: "memory",
    TooLong: "time",
}
"""Why a job is FAILED at once: another try would end as this one."""
OUTDATED = "outdated"
"""Reason of a job that was made for another model or configuration than this process has."""


@dataclass(frozen=True, eq=False)
class Segmented:
    """One stack, segmented and measured.

    Attributes
    ----------
    volume
        What the model saw, before its own preprocessing.
    labels
        On the source frames: what SEG and measures are cut from.
    seconds
        Wall clock of each stage.
    estimate
        What was told of the case before it began.
    grown_bytes
        What the process took at the most while it was on the device, whatever else it did meanwhile; None: not known.
    """

    stack: Stack
    volume: Volume
    segmentation: Segmentation
    labels: FrameLabels
    findings: Findings
    seconds: Mapping[str, float]
    estimate: Estimate
    grown_bytes: int | None


@dataclass(frozen=True)
class Recipe:
    """What a result depends on beside scan and model."""

    segments: Mapping[str, SegmentDescription]
    config_digest: str
    software_version: str
    looser_limits: str = ""
    """Of certificates, in words, where the site's are looser than the default."""


def segment_stack(
    stack: Stack,
    paths: Mapping[str, Path],
    held: contextlib.AbstractContextManager[FastestSegmenter],
    recipe: Recipe,
    progress: Callable[[float], None] | None = None,
    *,
    admission: Admission | None = None,
) -> Segmented:
    """Load, segment, bring the labels back to the source frames, measure.

    Parameters
    ----------
    paths
        File by SOP Instance UID.
    held
        Gives the model for the time of its use, which may have to be waited for: `wait` among the seconds.
    progress
        Told the part that is done, 0 to 1.
    admission
        Asked before anything is loaded, and before anything is computed; None: of a process that does nothing else.

    Raises
    ------
    Unsuitable
        Where the scan cannot serve the model.
    DeviceBusy
        Where device or host have no room for the case now.
    DoesNotFit
        Where the host will never have.
    TooLong
        Where it would take longer than a day.
    """
    tell = progress or _tell_nobody
    clock, admission = _Clock(), admission or Admission()
    with clock.stage("load"), admission.loading(volume_bytes(stack)):
        volume, back = read_volume(stack, paths, lambda part: tell(0.2 * part))
    began = time.monotonic()
    with held as segmenter:
        clock.seconds["wait"] = time.monotonic() - began
        bundle = segmenter.bundle
        with _room_or_later():
            told = segmenter.estimate(volume.grid)
        peak = Peak()
        with admission.computing(told), clock.stage("segment"):
            segmentation = _segmented(segmenter, volume, lambda part: tell(0.2 + 0.7 * part))
        grown = peak.grown_bytes()
    with clock.stage("measure"):
        labels = back.labels(segmentation.label_map)
        findings = measure(
            stack, labels, recipe.segments, _provenance(bundle, segmentation, recipe), unreported=bundle.unreported
        )
    tell(1.0)
    seconds = {**segmentation.seconds, **clock.seconds}
    return Segmented(stack, volume, segmentation, labels, findings, seconds, told, grown)


def _segmented(segmenter: FastestSegmenter, volume: Volume, tell: Callable[[float], None]) -> Segmentation:
    try:
        with _room_or_later():
            return segmenter.segment(volume, tell)
    except UnsuitableVolume as error:
        raise Unsuitable("unsuitable_volume", str(error)) from error


@contextlib.contextmanager
def _room_or_later() -> Iterator[None]:
    try:
        yield
    except OutOfDeviceMemory as error:
        metrics.GPU_OOM.inc()
        raise DeviceBusy(str(error)) from error


def sources_of(stack: Stack, paths: Mapping[str, Path]) -> list[Dataset]:
    """The headers of a stack's instances without pixel data, each instance once, in the order of the stack."""
    return [read_source(paths[uid]) for uid in dict.fromkeys(frame.sop_instance_uid for frame in stack.frames)]


def stack_of(
    headers: Sequence[InstanceHeader], paths: Mapping[str, Path], volume_id: str, unread: Collection[str] = ()
) -> Stack:
    """The stack that a job was made for, split out again from the same files.

    Raises
    ------
    LookupError
        Where it is not there: the rules by which series are split have changed since the job was made.
    """
    for part in split_series(headers, paths, unread):
        candidates = (part,) if isinstance(part, Stack) else _with_gaps(part)
        for stack in candidates:
            if isinstance(stack, Stack) and stack.volume_id == volume_id:
                return stack
    raise LookupError("no stack of this series is the job's: retry the series")


def _with_gaps(part: Unstackable) -> tuple[Stack | Unstackable, ...]:
    """What a rule may have taken where slices are missing (ASM-4)."""
    return (largest_block(part), across_gaps(part)) if part.reason == MISSING_SLICES else ()


class Models:
    """The models of this process, each opened once and kept on its device.

    Whoever segments holds the lock: the durable engine's limit of one is a target, not a promise.
    """

    def __init__(self, bundles: Mapping[str, Bundle], open_bundle: Callable[[Bundle], FastestSegmenter]) -> None:
        self._bundles = bundles
        self._open_bundle = open_bundle
        self._open: dict[str, FastestSegmenter] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[FastestSegmenter]:
        """The segmenter of a model, for this thread alone.

        Raises
        ------
        BundleError
            Where this node has no such model.
        BackendUnavailable
            Where this machine cannot run it.
        DeviceBusy
            Where it has no room for it now.
        """
        with self._lock:
            bundle = self._bundle(name)
            if name not in self._open:
                began = time.monotonic()
                with _room_or_later():
                    self._open[name] = self._open_bundle(bundle)
                metrics.MODEL_LOAD.observe(time.monotonic() - began)
            yield self._open[name]

    def waits(self, name: str) -> bool:
        """Whether an engine of an open model waits for a certificate; asked without the lock."""
        return name in self._open and self._open[name].waits

    def digest(self, name: str) -> str:
        """The digest of a model as this process has it; raises BundleError as `held`."""
        return self._bundle(name).digest

    def _bundle(self, name: str) -> Bundle:
        if name not in self._bundles:
            raise BundleError(f"this node has no model {name}: it was removed, or is not enabled")
        return self._bundles[name]

    def close(self) -> None:
        """Give back what the devices hold."""
        with self._lock:
            for segmenter in self._open.values():
                segmenter.close()
            self._open.clear()


@dataclass(frozen=True)
class Bench:
    """The segmenting station.

    Attributes
    ----------
    since
        When this process began: a job that was made before may be made for what stood there before an update.
    turns
        Jobs work beside each other: one loads and one composes while another is on the device.
    rest
        Told of a job that waits for others, which is not a call that hangs: (job, attempt).
    allow
        Told how many seconds from now on a job may take: (job, attempt, seconds).
    """

    journal: Journal
    spool: Spool
    models: Models
    recipe: Recipe
    style: ResultStyle
    destinations: Mapping[str, Destination]
    retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(first_s=15.0, longest_s=300.0, tries=20))
    clock: Callable[[], datetime] = utc_now
    jitter: Callable[[], float] = random.random
    since: datetime = field(default_factory=utc_now)
    turns: Turns = field(default_factory=Turns)
    rest: Callable[[int, int], contextlib.AbstractContextManager[None]] = lambda *_: contextlib.nullcontext()
    allow: Callable[[int, int, float], None] = lambda *_: None
    memory: Callable[[], Memory] = memory_now
    promises: Promises = field(default_factory=Promises)

    def run(self, job_id: int, attempt: int) -> str:
        """Do one job; returns what became of it in a word.

        A job that waits for its place is not begun: if the process dies meanwhile, it did not die over this one. One
        that a process died over, or that had no room beside others, is alone.
        """
        alone = self.journal.starts_of(job_id) > 0 or self.journal.reason_of(job_id) == DeviceBusy.__name__
        with self.turns.place(alone, lambda: self.rest(job_id, attempt)):
            return self._begin(job_id, attempt)

    def _begin(self, job_id: int, attempt: int) -> str:
        work = self.journal.begin_job(job_id, attempt)
        if work is None:
            return "not_mine"
        try:
            if why := self._differs(work.job):
                return self._outdated(work, why)
            metrics.JOBS_STARTED.labels(model=work.job.model).inc()
            return self._do(work)
        except Unsuitable as error:
            return self._reject(work, error.reason, error.detail)
        except CannotUnderstand as error:
            return self._reject(work, "undecodable", error.comment)
        except tuple(_CAUSES) as error:
            return self._fail(work, next(_CAUSES[each] for each in _CAUSES if isinstance(error, each)), str(error))
        except _Outrun:
            return "outrun"
        except Transient as error:
            return self._postpone(work, error)
        except MemoryError as error:
            return self._postpone(work, DeviceBusy(f"out of memory: {error}"))
        except OSError as error:
            if error.errno not in MACHINE_ERRNOS:
                raise
            return self._postpone(work, SpoolFull(error.strerror or str(error)))

    def _differs(self, job: Job) -> str:
        """What of a job's recipe is not what this process has: its UIDs would name one and hold the other (RES-20)."""
        here = self.models.digest(job.model)
        if job.model_digest != here:
            return f"it was made for {job.model} {job.model_digest[:12]}; here is {here[:12]}"
        if job.config_digest != self.recipe.config_digest:
            return "it was made for another configuration, table of segments or version of Hilum"
        return ""

    def _outdated(self, work: JobWork, why: str) -> str:
        """After an update the series is judged anew; where a job is younger than we are, the processes disagree."""
        job = work.job
        if job.created_at < self.since and self.journal.rejudge(job.id, job.attempt, OUTDATED, why):
            _log.warning("job_outdated", extra={"job": job.id, "model": job.model, "reason": OUTDATED})
            return OUTDATED
        return self._fail(
            work, OUTDATED, f"{why}; the processes of the node disagree: restart it, then `hilum retry --series`"
        )

    def _do(self, work: JobWork) -> str:
        if any(member.purged for member in work.members):
            return self._fail(work, "input", "its images were purged: send the series again whole, then retry the job")
        paths = {member.sop_instance_uid: member.path for member in work.members}
        headers = [read_header(member.path) for member in work.members]
        stack = stack_of(headers, paths, work.job.volume_id, work.unread)
        company = self.turns.shared if self.turns.inside == 1 else -1
        admission = Admission(self.promises, self.memory, lambda: self.turns.inside == 1, self._allowing(work.job))
        done = segment_stack(stack, paths, self._model_if_mine(work.job), self.recipe, admission=admission)
        alone = self.turns.shared == company
        outcome = self._commit(work, done, paths, alone=alone)
        if outcome == "composed":
            shown = done.volume, done.segmentation
            del done, headers, stack  # a trial may take minutes: it holds what it needs
            self._learn(work.job, *shown)
        return outcome

    def _commit(self, work: JobWork, done: Segmented, paths: Mapping[str, Path], *, alone: bool) -> str:
        """Make what is sent of a result, and keep it; returns what became of the job."""
        began, stack = time.monotonic(), done.stack
        composition = Composition(
            stack=stack,
            sources=sources_of(stack, paths),
            volume=done.volume,
            labels=done.labels,
            findings=done.findings,
            style=self.style,
            job_key=work.job.model,
            revision=work.job.revision,
            made_at=self.clock(),
            predecessors=_predecessors(work.replaced_reports),
            series_turn=self.journal.claim_series_numbers(
                work.job.id, work.job.attempt, partial(numbers_in_turn, stack, self.style)
            ),
        )
        composed = self._compose(work, composition)
        objects = [_new_object(each) for each in composed]
        seconds = {
            **done.seconds,
            "compose": time.monotonic() - began,
            "readback": sum(each.readback_s for each in composed),  # a part of "compose"
        }
        deliveries = self._deliveries(work.job.destinations, objects)
        if not self.journal.compose(work.job.id, work.job.attempt, objects, deliveries, _result(done, seconds)):
            _unlink(each.path for each in objects)
            return "outrun"
        for stage in ("load", "wait", "segment", "compose"):
            metrics.STAGE_DURATION.labels(stage=stage, model=work.job.model).observe(seconds[stage])
        _observe(done, alone)
        facts = {
            "job": work.job.id,
            "model": work.job.model,
            "seconds": round(seconds["total"], 3),
            "estimated_seconds": None if done.estimate.seconds is None else round(done.estimate.seconds, 3),
            "bytes": done.grown_bytes,
            "estimated_bytes": done.estimate.memory_bytes,
        }
        _log.info("job_composed", extra=facts)
        return "composed"

    def _learn(self, job: Job, volume: Volume, result: Segmentation) -> None:
        """Let engines that wait for a certificate show themselves on a scan whose result is committed already.

        Nothing that comes of it may touch the job, which is done.
        """
        if not self.models.waits(job.model):
            return
        try:
            with self._model(job) as segmenter:
                longest = segmenter.trial_seconds(volume.grid)
                if longest > _LONGEST_TRIAL_S and self.journal.work(Station.SEGMENT):
                    facts = {"model": job.model, "estimated_seconds": round(longest)}
                    _log.info("engine_trial_put_off", extra=facts)
                else:
                    self.allow(job.id, job.attempt, budget_s(longest))
                    segmenter.learn(volume, result)
        except _TRIAL_FAULTS as error:
            reason = f"{type(error).__name__}: {error}"
            _log.warning("engine_not_tried", extra={"model": job.model, "reason": reason})

    @contextlib.contextmanager
    def _model(self, job: Job) -> Iterator[FastestSegmenter]:
        """The job's model, once the device is free."""
        with (
            self.turns.device(lambda: self.rest(job.id, job.attempt)),
            self.models.held(job.model) as segmenter,
        ):
            yield segmenter

    @contextlib.contextmanager
    def _model_if_mine(self, job: Job) -> Iterator[FastestSegmenter]:
        """The same, for a job that nobody has overtaken, cancelled or taken over while it waited for the device."""
        with self.turns.device(lambda: self.rest(job.id, job.attempt)):
            if not self.journal.is_worked_on(job.id, job.attempt):
                raise _Outrun
            with self.models.held(job.model) as segmenter:
                yield segmenter

    def _allowing(self, job: Job) -> Callable[[float], None]:
        return lambda seconds: self.allow(job.id, job.attempt, seconds)

    def _compose(self, work: JobWork, composition: Composition) -> tuple[Composed, ...]:
        """Write every form that a destination may need; of a failure nothing stays in the spool."""
        wanted = [self.destinations[name] for name in work.job.destinations if name in self.destinations]
        geometry = composition.stack.geometry
        written: list[Path] = []

        def new_path() -> Path:
            written.append(self.spool.new_result_path())
            return written[-1]

        try:
            return compose(
                composition,
                self.spool.new_result_path().parent,
                segs=needed_segs(wanted, geometry.rows * geometry.columns),
                sr=not wanted or any(destination.sr for destination in wanted),
                pdf=not wanted or any(destination.pdf for destination in wanted),
                new_path=new_path,
            )
        except BaseException:
            _unlink(written)
            raise

    def _deliveries(self, names: Sequence[str], objects: Sequence[NewObject]) -> list[tuple[str, ObjectKind]]:
        """Destination and kind, for each destination in the order of sending: SEG, SR, PDF (NET-24)."""
        made = {each.kind for each in objects}
        deliveries: list[tuple[str, ObjectKind]] = []
        for name in dict.fromkeys(names):
            destination = self.destinations.get(name)
            takes = {
                ObjectKind.SEG: True,
                ObjectKind.SR: destination is None or destination.sr,
                ObjectKind.PDF: destination is None or destination.pdf,
            }
            deliveries += [(name, kind) for kind in ObjectKind if kind in made and takes[kind]]
        return deliveries

    def _reject(self, work: JobWork, reason: str, detail: str) -> str:
        if self.journal.reject_job(work.job.id, work.job.attempt, reason, detail):
            metrics.JOBS_REJECTED.labels(reason=reason).inc()
            _log.info("job_rejected", extra={"job": work.job.id, "model": work.job.model, "reason": reason})
        return JobEvent.REJECT

    def _fail(self, work: JobWork, cause: str, detail: str) -> str:
        if self.journal.fail(Station.SEGMENT, work.job.id, work.job.attempt, cause, detail):
            metrics.JOBS_FAILED.labels(stage="segment", cause=cause).inc()
            _log.error("job_failed", extra={"job": work.job.id, "model": work.job.model, "cause": cause})
        return JobEvent.FAIL

    def _postpone(self, work: JobWork, error: Transient) -> str:
        """Put the job off to its next due time; where it had too many, a person must look."""
        tries = self.journal.tries_of(work.job.id) + 1
        due_at = next_due(self.retry, tries, self.clock(), self.jitter())
        reason = type(error).__name__
        if due_at is None:
            return self._fail(work, EXHAUSTED, f"{reason}: {error}")
        if self.journal.postpone_job(work.job.id, work.job.attempt, reason, str(error), due_at):
            metrics.JOBS_RETRIED.labels(stage="segment").inc()
            _log.warning("job_postponed", extra={"job": work.job.id, "reason": reason, "tries": tries})
        return JobEvent.RETRY_LATER


class _Outrun(Exception):
    """Another attempt has the job, or nobody any more."""


@dataclass
class _Clock:
    """Seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside."""
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


def _tell_nobody(_part: float) -> None:
    pass


def _provenance(bundle: Bundle, segmentation: Segmentation, recipe: Recipe) -> Provenance:
    is_reference = (segmentation.backend, segmentation.precision) == (REFERENCE.backend, REFERENCE.precision)
    return Provenance(
        model_name=bundle.name,
        model_version=bundle.version,
        model_digest=bundle.digest,
        backend=segmentation.backend,
        precision=segmentation.precision,
        device=segmentation.device,
        backend_reason=segmentation.backend_reason,
        config_digest=recipe.config_digest,
        software_version=recipe.software_version,
        versions=segmentation.versions,
        way=segmentation.way,
        looser_limits="" if is_reference else recipe.looser_limits,
    )


def _observe(done: Segmented, alone: bool) -> None:
    """Truth over estimate: of memory only where no other job of this process took any meanwhile."""
    told, truth = done.estimate, done.segmentation.seconds.get("network")
    if told.seconds and truth is not None:
        metrics.ESTIMATE_RATIO.labels(quantity="seconds").observe(truth / told.seconds)
    if alone and told.memory_bytes and done.grown_bytes is not None:
        metrics.ESTIMATE_RATIO.labels(quantity="memory").observe(done.grown_bytes / told.memory_bytes)


def _predecessors(reports: Mapping[str, ResultObject]) -> tuple[Predecessor, ...]:
    """The reports that destinations have of earlier revisions, as they were sent; series from their frozen bytes.

    One whose file was purged, perhaps in this moment, is not named.
    """
    found: dict[str, Predecessor] = {}
    for report in reports.values():
        with contextlib.suppress(FileNotFoundError):
            found[report.sop_instance_uid] = _predecessor(report)
    return tuple(found.values())


def _predecessor(report: ResultObject) -> Predecessor:
    header = read_source(report.path)
    return Predecessor(
        sr_sop_class_uid=report.sop_class_uid,
        sr_sop_instance_uid=report.sop_instance_uid,
        study_instance_uid=str(header.StudyInstanceUID),
        series_instance_uid=str(header.SeriesInstanceUID),
    )


def _result(done: Segmented, seconds: Mapping[str, float]) -> dict[str, object]:
    """What the journal keeps to be shown: volumes unrounded (RES-12), flags, and how it was made."""
    found = done.findings
    return {
        "findings": [
            {
                "segment": finding.segment.name,
                "outcome": str(finding.outcome),
                "volume_ml": finding.volume_ml,
                "flags": list(finding.flags),
            }
            for finding in found.findings
        ],
        "flags": list(found.flags),
        "backend": found.provenance.backend,
        "precision": found.provenance.precision,
        "device": found.provenance.device,
        "versions": found.provenance.versions,
        "way": found.provenance.way,
        "backend_reason": found.provenance.backend_reason,
        "voxels": int(np.prod(done.volume.grid.shape)),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "estimate": {
            "gb": round(done.estimate.memory_bytes / 1e9, 3),
            "patches": done.estimate.patches,
            **({} if done.estimate.seconds is None else {"network": round(done.estimate.seconds, 3)}),
        },
        **({} if done.grown_bytes is None else {"peak_gb": round(done.grown_bytes / 1e9, 3)}),
    }


def _new_object(each: Composed) -> NewObject:
    return NewObject(
        kind=each.kind,
        variant=each.variant,
        sop_class_uid=each.sop_class_uid,
        sop_instance_uid=each.sop_instance_uid,
        transfer_syntax_uid=each.transfer_syntax_uid,
        path=each.path,
        sha256=each.sha256,
        length=each.path.stat().st_size,
    )


def _unlink(paths: Iterator[Path] | Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
