"""Segmenting: what is committed at once, what ends how, and that a retry is the same object."""

from __future__ import annotations

import contextlib
import errno
import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from engines.errors import BackendUnavailable, BundleError, OutOfDeviceMemory, UnsuitableVolume
from engines.inference.estimate import Estimate
from engines.inference.segmenter import Segmentation
from engines.model.certificate import Certificate
from engines.volume import Grid, LabelMap, Volume
from node.dicom.compose import Composition, ResultStyle
from node.domain.instance import ReceivedInstance, Sender
from node.domain.job import DeliveryState, Destination, JobState, ObjectKind, RetryPolicy
from node.domain.routing import ModelFacts, Rule
from node.domain.segments import load_segments
from node.domain.series import Evidence
from node.domain.variants import choose_variant
from node.domain.work import Station
from node.errors import DeviceBusy
from node.monitor import metrics
from node.selftest.phantom import CT
from node.selftest.scanner import Acquisition, planes_around, write_series
from node.stations.assemble import Assembler
from node.stations.memory import Memory
from node.stations.segment import Bench, Models, Recipe, Segmented
from node.store.journal import Journal
from node.store.spool import Spool

PACS = Destination("pacs", "PACS", "127.0.0.1", 104, "HILUM")
SEGMENTS = load_segments((Path(__file__).parents[4] / "dicom_config" / "segments.csv").read_text())
PLENTY = Memory(available=4_000_000_000, limit=8_000_000_000)
BUNDLE: Any = SimpleNamespace(
    name="any", version="1", digest="m" * 64, modalities=("CT",), labels={1: "liver", 2: "spleen"}, unreported=()
)


class Segmenter:
    """The small interface of an open model; it labels what is bright, or fails as it is told."""

    bundle = BUNDLE
    waits = True

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.finds = True
        self.before: Callable[[], object] = lambda: None
        self.learned: list[tuple[Volume, Segmentation]] = []
        self.cannot_learn: Exception | None = None
        self.takes_s = 0.0

    def trial_seconds(self, grid: Grid) -> float:
        return self.takes_s

    def learn(self, volume: Volume, result: Segmentation) -> tuple[Certificate, ...]:
        self.learned.append((volume, result))
        if self.cannot_learn is not None:
            raise self.cannot_learn
        return ()

    def segment(self, volume: Volume, progress: Callable[[float], None] | None = None) -> Segmentation:
        self.before()
        if self.error is not None:
            raise self.error
        labels = np.zeros(volume.grid.shape, np.uint8)
        if self.finds:
            labels[4:9, 5:12, 6:14] = 1
            labels[10:14, 5:12, 6:14] = 2
        if progress is not None:
            progress(1.0)
        seconds = {"preprocess": 0.1, "network": 0.2, "labels": 0.1, "total": 0.4}
        label_map = LabelMap(volume.grid, labels, BUNDLE.labels)
        return Segmentation(label_map, "torch", "float32", "cpu", "asked for", "sums of logits", "torch 2", seconds)

    def estimate(self, grid: Grid) -> Estimate:
        return Estimate(memory_bytes=2_000_000_000, device_bytes=0, seconds=0.4, patches=8)

    def close(self) -> None:
        pass


@pytest.fixture
def fast() -> Iterator[Path]:
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="hilum-", dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def journal(fast: Path) -> Iterator[Journal]:
    with Journal.open(f"sqlite:///{fast / 'journal.db'}") as opened:
        yield opened


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter()


@pytest.fixture
def bench(journal: Journal, fast: Path, segmenter: Segmenter) -> Bench:
    bundles: Mapping[str, Any] = {"any": BUNDLE}
    return Bench(
        journal=journal,
        spool=Spool(fast / "spool", 0),
        models=Models(bundles, lambda _bundle: segmenter),  # type: ignore[arg-type,return-value]
        recipe=Recipe(SEGMENTS, "c" * 64, "0.1.0"),
        style=ResultStyle(),
        destinations={"pacs": PACS},
        retry=RetryPolicy(first_s=0.0, longest_s=0.0, tries=3),
        memory=lambda: PLENTY,
        jitter=lambda: 0.5,
    )


@pytest.fixture
def paths(fast: Path) -> list[Path]:
    planes = planes_around(pixel_mm=(8.0, 8.0), step_mm=12.0)
    return list(write_series(Acquisition(planes, CT), fast / "ct"))


def receive(journal: Journal, paths: list[Path]) -> None:
    for path in paths:
        ds = dcmread(path, stop_before_pixels=True)
        journal.commit(
            ReceivedInstance(
                sop_instance_uid=str(ds.SOPInstanceUID),
                sop_class_uid=str(ds.SOPClassUID),
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                study_instance_uid=str(ds.StudyInstanceUID),
                series_instance_uid=str(ds.SeriesInstanceUID),
                patient_id=str(ds.PatientID),
                path=path,
                length=path.stat().st_size,
                crc32=int(ds.InstanceNumber),
                sender=Sender("ct1", "CT1", "HILUM", "10.0.0.1", "a1"),
                received_at=datetime.now(UTC),
            )
        )


def job_for(journal: Journal, paths: list[Path], destinations: tuple[str, ...] = ("pacs",)) -> int:
    receive(journal, paths)
    (series,) = journal.open_series()
    journal.judge(series, Evidence.SILENCE)
    (row,) = journal.work(Station.ASSEMBLE)
    rule = Rule("all", "any", (), destinations)
    models = {"any": ModelFacts("any", "m" * 64, ("CT",))}
    assert Assembler(journal, (rule,), models, "c" * 64).run(row.id, row.attempt) == "processed"
    return journal.list_jobs()[0].id


def record_of(journal: Journal, job_id: int) -> Any:
    record = journal.show_job(job_id)
    assert record is not None
    return record


def results_in(bench: Bench) -> list[Path]:
    return list((bench.spool.folder / "results").iterdir())


def test_job_objects_and_deliveries_at_once(journal: Journal, bench: Bench, paths: list[Path]) -> None:
    job_id = job_for(journal, paths)
    assert bench.run(job_id, 1) == "composed"
    record = record_of(journal, job_id)
    assert record.job.state is JobState.COMPOSED
    assert [(d.kind, d.destination, d.state) for d in record.deliveries] == [
        (kind, "pacs", DeliveryState.PENDING) for kind in (ObjectKind.SEG, ObjectKind.SR, ObjectKind.PDF)
    ]
    variants = {(o.kind, o.variant) for o in record.objects}
    assert {("seg", "binary"), ("sr", "comprehensive3d-binary"), ("pdf", "pdf")} <= variants
    assert {o.path for o in record.objects} == set(results_in(bench))
    assert {f["segment"] for f in record.result["findings"]} == {"liver", "spleen"}
    assert record.result["seconds"].keys() >= {"load", "segment", "compose"}


def test_engines_show_themselves_on_a_scan_whose_result_is_committed(
    journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model saw and what it answered are shown to those that wait; what was made to be sent is let go."""
    seen: list[tuple[JobState, int]] = []
    learn = segmenter.learn

    def watched(volume: Volume, result: Segmentation) -> Any:
        held = sum(type(each) in {Composition, Segmented} for each in gc.get_objects())
        seen.append((record_of(journal, job_id).job.state, held))
        return learn(volume, result)

    monkeypatch.setattr(segmenter, "learn", watched)
    job_id = job_for(journal, paths)
    gc.collect()
    assert bench.run(job_id, 1) == "composed"
    assert seen == [(JobState.COMPOSED, 0)]
    ((volume, result),) = segmenter.learned
    assert volume.grid.shape == result.label_map.labels.shape


@pytest.mark.parametrize(
    "error",
    [
        BackendUnavailable("x"),
        BundleError("x"),
        OutOfDeviceMemory("x"),
        DeviceBusy("x"),
        MemoryError(),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("x"),
        OSError(errno.ENOSPC, "No space left on device"),
        ZeroDivisionError(),
        SystemError("a library returned NULL"),
        StopIteration(),
        KeyError("x"),
    ],
)
def test_what_hinders_a_certificate_hinders_no_result(
    journal: Journal,
    bench: Bench,
    segmenter: Segmenter,
    paths: list[Path],
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    segmenter.cannot_learn = error
    job_id = job_for(journal, paths)
    assert bench.run(job_id, 1) == "composed"
    assert record_of(journal, job_id).job.state is JobState.COMPOSED
    assert "engine_not_tried" in {record.msg for record in caplog.records}


@pytest.mark.parametrize(("seconds", "others", "tried"), [(601.0, 1, 0), (601.0, 0, 1), (599.0, 1, 1)])
def test_a_long_trial_waits_until_no_job_does(
    journal: Journal,
    bench: Bench,
    segmenter: Segmenter,
    paths: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    *,
    seconds: float,
    others: int,
    tried: int,
) -> None:
    segmenter.takes_s = seconds
    job_id = job_for(journal, paths)
    work = journal.work
    rows = [object()] * others
    monkeypatch.setattr(journal, "work", lambda station: (*work(station), *rows))
    assert bench.run(job_id, 1) == "composed"
    assert len(segmenter.learned) == tried


def test_no_room_to_open_a_model_puts_the_job_off(journal: Journal, bench: Bench, paths: list[Path]) -> None:
    """And the next try opens it anew."""

    def opens(_bundle: Any) -> Any:
        raise OutOfDeviceMemory("torch float32: no room")

    job_id = job_for(journal, paths)
    full = replace(bench, models=Models({"any": BUNDLE}, opens))
    assert full.run(job_id, 1) == "retry_later"
    record = record_of(journal, job_id)
    assert (record.job.state, record.job.reason) == (JobState.QUEUED, "DeviceBusy")


def test_the_engine_stands_in_the_journal(journal: Journal, bench: Bench, paths: list[Path]) -> None:
    job_id = job_for(journal, paths)
    bench.run(job_id, 1)
    result = record_of(journal, job_id).result
    assert (result["backend"], result["precision"], result["versions"]) == ("torch", "float32", "torch 2")
    assert (result["backend_reason"], result["way"]) == ("asked for", "sums of logits")


def test_twice_is_never_wrong(journal: Journal, bench: Bench, paths: list[Path]) -> None:
    """A second call of the same attempt finds nothing to do."""
    job_id = job_for(journal, paths)
    assert bench.run(job_id, 1) == "composed"
    assert bench.run(job_id, 1) == "not_mine"
    assert len(record_of(journal, job_id).deliveries) == 3


def test_one_is_on_the_device_and_another_loads_meanwhile(
    journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has read its pixels while the first still computes, and waits without hanging."""
    from node.stations import segment as station

    loaded, waiting, on_device = threading.Semaphore(0), threading.Event(), []
    real = station.read_volume

    def read_volume(*arguments: Any) -> Any:
        found = real(*arguments)
        loaded.release()
        return found

    @contextlib.contextmanager
    def rest(_job: int, _attempt: int) -> Iterator[None]:
        waiting.set()
        yield

    def compute() -> None:
        on_device.append(threading.get_ident())
        if len(set(on_device)) == 1:
            assert loaded.acquire(timeout=60), "this job's own volume"
            assert loaded.acquire(timeout=60), "nobody loads while the device is busy"
            assert waiting.wait(60)
            assert len(on_device) == 1, "two on one device"

    monkeypatch.setattr(station, "read_volume", read_volume)
    segmenter.before = compute
    two = replace(bench, models=Models({"any": BUNDLE, "other": BUNDLE}, lambda _: segmenter), rest=rest)  # type: ignore[arg-type,return-value]
    receive(journal, paths)
    (series,) = journal.open_series()
    journal.judge(series, Evidence.SILENCE)
    (row,) = journal.work(Station.ASSEMBLE)
    rules = tuple(Rule(name, name, (), ()) for name in ("any", "other"))
    facts = {name: ModelFacts(name, "m" * 64, ("CT",)) for name in ("any", "other")}
    Assembler(journal, rules, facts, "c" * 64).run(row.id, row.attempt)
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(two.run, job.id, 1) for job in journal.list_jobs()]
        assert [each.result(120) for each in done] == ["composed", "composed"]
    assert len(set(on_device)) == 2


def test_what_a_process_died_over_waits_for_the_others_and_is_not_begun(
    journal: Journal, bench: Bench, paths: list[Path]
) -> None:
    """A death is counted against what was worked on, not against what waited beside it."""
    job_id = job_for(journal, paths, ())
    assert journal.begin_job(job_id, 1) is not None, "a process that has died since"
    waits, may = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def rest(_job: int, _attempt: int) -> Iterator[None]:
        waits.set()
        yield

    resting = replace(bench, rest=rest)

    def other() -> None:
        with resting.turns.place(False, contextlib.nullcontext):
            may.wait(60)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(other)
        while not resting.turns.inside:
            time.sleep(0.01)
        done = pool.submit(resting.run, job_id, 1)
        assert waits.wait(60)
        assert journal.starts_of(job_id) == 1
        may.set()
        assert done.result(120) == "composed"


def test_a_repetition_makes_the_same_objects(
    journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path]
) -> None:
    """RES-20: taken over in the middle, the job's objects have the UIDs that they would have had."""
    job_id = job_for(journal, paths)
    uids: list[str] = []

    def overtaken() -> None:
        journal.take_over(journal.work(Station.SEGMENT)[0], "lease_lapsed")

    segmenter.before = overtaken
    assert bench.run(job_id, 1) == "outrun"
    assert results_in(bench) == [], "the loser's files must go"
    segmenter.before = lambda: None
    assert bench.run(job_id, 2) == "composed"
    uids = sorted(o.sop_instance_uid for o in record_of(journal, job_id).objects)
    assert len(set(uids)) == len(uids)


def test_a_late_slice_while_segmenting(journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path]) -> None:
    """Gate 3 at the commit: the result of the old revision is thrown away."""
    job_id = job_for(journal, paths[:-1])
    segmenter.before = lambda: receive(journal, paths[-1:])
    assert bench.run(job_id, 1) == "outrun"
    assert record_of(journal, job_id).job.state is JobState.CANCELLED
    assert results_in(bench) == []


def test_nothing_found_sends_no_segmentation(
    journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path]
) -> None:
    """RES-6."""
    job_id = job_for(journal, paths)
    segmenter.finds = False
    assert bench.run(job_id, 1) == "composed"
    record = record_of(journal, job_id)
    assert [d.kind for d in record.deliveries] == [ObjectKind.SR, ObjectKind.PDF]
    assert {f["outcome"] for f in record.result["findings"]} == {"not_found"}


def test_without_destination_it_is_done(journal: Journal, bench: Bench, paths: list[Path]) -> None:
    job_id = job_for(journal, paths, ())
    assert bench.run(job_id, 1) == "composed"
    assert record_of(journal, job_id).job.state is JobState.DONE


def test_a_destination_takes_what_it_is_configured_for(journal: Journal, bench: Bench, paths: list[Path]) -> None:
    job_id = job_for(journal, paths)
    plain = replace(bench, destinations={"pacs": replace(PACS, sr=False, pdf=False)})
    assert plain.run(job_id, 1) == "composed"
    assert [d.kind for d in record_of(journal, job_id).deliveries] == [ObjectKind.SEG]


def test_a_report_names_its_predecessor(journal: Journal, bench: Bench, paths: list[Path]) -> None:
    """RES-34: the one that was sent, by its class and UIDs."""
    first = job_for(journal, paths[:-1])
    bench.run(first, 1)
    for row in (1, 2, 3):
        work = journal.begin_delivery(row, 1)
        assert work is not None
        best = next(o for o in work.objects if o.variant in ("binary", "comprehensive3d-binary", "pdf"))
        journal.sent(row, 1, best.variant, best.sop_instance_uid)
    old = next(o for o in record_of(journal, first).objects if o.variant == "comprehensive3d-binary")
    second = job_for(journal, paths[-1:])
    assert bench.run(second, 1) == "composed"
    after = f"comprehensive3d-binary-after-{old.sop_instance_uid}"
    new = next(o for o in record_of(journal, second).objects if o.variant == after)
    (study,) = dcmread(new.path).PredecessorDocumentsSequence
    (item,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert item.ReferencedSOPInstanceUID == old.sop_instance_uid != new.sop_instance_uid


def test_no_report_names_one_that_its_destination_never_got(journal: Journal, bench: Bench, paths: list[Path]) -> None:
    """RES-34: the PACS stored the first report, the ward refused it; each of the second reports is true for its own."""
    both = replace(bench, destinations={"pacs": PACS, "ward": replace(PACS, name="ward")})
    first = job_for(journal, paths[:-1], ("pacs", "ward"))
    assert both.run(first, 1) == "composed"
    stored = {}
    for delivery in journal.show_job(first).deliveries:
        work = journal.begin_delivery(delivery.id, 1)
        if work is None:
            continue
        assert work.replaced_report == ""
        if (delivery.destination, delivery.kind) == ("ward", ObjectKind.SR):
            journal.fail(Station.DELIVER, delivery.id, 1, "refused")
            continue
        best = next(o for o in work.objects if o.variant in ("binary", "comprehensive3d-binary", "pdf"))
        journal.sent(delivery.id, 1, best.variant, best.sop_instance_uid)
        stored[delivery.destination, delivery.kind] = best.sop_instance_uid
    second = job_for(journal, paths[-1:], ("pacs", "ward"))
    assert both.run(second, 1) == "composed"
    named = {}
    for delivery in journal.show_job(second).deliveries:
        work = journal.begin_delivery(delivery.id, 1)
        assert work is not None
        if delivery.kind is ObjectKind.SEG:
            journal.sent(delivery.id, 1, "binary", work.objects[0].sop_instance_uid)
        if delivery.kind is ObjectKind.SR:
            available = {o.variant: o for o in work.objects}
            every = frozenset(o.sop_class_uid for o in work.objects)
            variant = choose_variant(
                delivery.kind, available, every, "auto", work.pixels, work.sent_seg_variant, work.replaced_report
            )
            report = dcmread(available[variant].path)
            items = report.get("PredecessorDocumentsSequence", [])
            named[delivery.destination] = [
                str(each.ReferencedSOPInstanceUID)
                for study in items
                for series in study.ReferencedSeriesSequence
                for each in series.ReferencedSOPSequence
            ]
    assert named == {"pacs": [stored["pacs", ObjectKind.SR]], "ward": []}


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (UnsuitableVolume("empty"), JobState.REJECTED, "unsuitable_volume"),
        (OutOfDeviceMemory("too big"), JobState.QUEUED, "DeviceBusy"),
        (MemoryError(), JobState.QUEUED, "DeviceBusy"),
        (OSError(errno.ENOSPC, "No space left on device"), JobState.QUEUED, "SpoolFull"),
        (BackendUnavailable("no device"), JobState.FAILED, "backend"),
        (BundleError("gone"), JobState.FAILED, "bundle"),
    ],
)
def test_an_errors_class_is_its_fate(
    journal: Journal,
    bench: Bench,
    segmenter: Segmenter,
    paths: list[Path],
    error: BaseException,
    state: JobState,
    reason: str,
) -> None:
    job_id = job_for(journal, paths)
    segmenter.error = error
    bench.run(job_id, 1)
    record = record_of(journal, job_id)
    assert (record.job.state, record.job.reason) == (state, reason)


def test_a_device_that_stays_busy_ends_for_a_person(
    journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path]
) -> None:
    job_id = job_for(journal, paths)
    segmenter.error = OutOfDeviceMemory("too big")
    for attempt in (1, 2, 3):
        bench.run(job_id, attempt)
    record = record_of(journal, job_id)
    assert (record.job.state, record.job.reason) == (JobState.FAILED, "exhausted")


@pytest.mark.parametrize(
    ("memory", "state", "reason", "words"),
    [
        (Memory(1_999_999_999, 8_000_000_000), JobState.QUEUED, "DeviceBusy", "2.0 GB are free now"),
        (Memory(1_999_999_999, 1_999_999_999), JobState.FAILED, "memory", "allows 2.0 GB in all"),
    ],
)
def test_a_case_without_room_is_not_begun(
    journal: Journal,
    bench: Bench,
    segmenter: Segmenter,
    paths: list[Path],
    memory: Memory,
    state: JobState,
    reason: str,
    words: str,
) -> None:
    """Put off while others hold memory; where it can never fit, a person is told how much it would take."""
    job_id = job_for(journal, paths)
    begun: list[str] = []
    segmenter.before = lambda: begun.append("segment")
    replace(bench, memory=lambda: memory).run(job_id, 1)
    record = record_of(journal, job_id)
    assert (record.job.state, record.job.reason, begun) == (state, reason, [])
    assert "takes about 2.0 GB" in record.detail
    assert words in record.detail


def test_nothing_is_read_where_the_images_have_no_room(
    journal: Journal, bench: Bench, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked from the geometry alone: a scan is more than the kilobyte that is free."""
    monkeypatch.setattr("node.stations.segment.read_volume", lambda *_: pytest.fail("it was read"))
    job_id = job_for(journal, paths)
    replace(bench, memory=lambda: Memory(1000, 8_000_000_000)).run(job_id, 1)
    record = record_of(journal, job_id)
    assert (record.job.state, record.job.reason) == (JobState.QUEUED, "DeviceBusy")
    assert "the images of this case take" in record.detail


def test_what_had_no_room_beside_others_comes_back_alone(
    journal: Journal, bench: Bench, paths: list[Path], segmenter: Segmenter
) -> None:
    """Else it would starve: whenever it is due, somebody smaller is there."""
    job_id = job_for(journal, paths, ())
    waits, may = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def rest(_job: int, _attempt: int) -> Iterator[None]:
        waits.set()
        yield

    def memory() -> Memory:
        return Memory(1_000_000_000 if bench.turns.inside > 1 else 4_000_000_000, 8_000_000_000)

    tight = replace(bench, rest=rest, memory=memory)

    def other() -> None:
        with bench.turns.place(False, contextlib.nullcontext):
            may.wait(60)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(other)
        while not bench.turns.inside:
            time.sleep(0.01)
        assert tight.run(job_id, 1) == "retry_later"
        assert "it is tried again alone" in record_of(journal, job_id).detail
        done = pool.submit(tight.run, job_id, 2)
        assert waits.wait(60), "it does not wait until the others have gone"
        may.set()
        assert done.result(120) == "composed"


def test_a_case_of_more_than_a_day_is_not_begun(
    journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenter, "estimate", lambda _: Estimate(1_000_000, 0, 100_000.0, 99))
    monkeypatch.setattr(segmenter, "segment", lambda *_: pytest.fail("it was begun"))
    job_id = job_for(journal, paths)
    assert bench.run(job_id, 1) == "fail"
    record = record_of(journal, job_id)
    assert (record.job.state, record.job.reason) == (JobState.FAILED, "time")
    assert "about 28 hours" in record.detail


def test_a_long_case_is_allowed_its_time(
    journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times what was told; and then of what the engines take that show themselves on it."""
    monkeypatch.setattr(segmenter, "trial_seconds", lambda _: 6000.0)
    monkeypatch.setattr(segmenter, "estimate", lambda _: Estimate(1_000_000, 0, 2000.0, 99))
    allowed: list[Any] = []
    job_id = job_for(journal, paths, ())
    assert replace(bench, allow=lambda *told: allowed.append(told)).run(job_id, 1) == "composed"
    assert allowed == [(job_id, 1, 6000.0), (job_id, 1, 18_000.0)]


@pytest.mark.parametrize("how", ["cancelled", "overtaken", "taken over"])
def test_what_is_not_wanted_any_more_does_not_take_the_device(
    journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path], how: str
) -> None:
    """It has waited for it; meanwhile a person, a late slice or another process has decided otherwise."""
    job_id = job_for(journal, paths[:-1] if how == "overtaken" else paths)
    segmenter.before = lambda: pytest.fail("it was segmented")
    waits, may = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def rest(_job: int, _attempt: int) -> Iterator[None]:
        waits.set()
        yield

    def other() -> None:
        with bench.turns.device(contextlib.nullcontext):
            assert waits.wait(60)
            if how == "cancelled":
                journal.cancel(job_id)
            elif how == "overtaken":
                receive(journal, paths[-1:])
            else:
                journal.take_over(journal.work(Station.SEGMENT)[0], "lease_lapsed")
            may.set()

    with ThreadPoolExecutor(2) as pool:
        pool.submit(other)
        while not bench.turns._on_device:
            time.sleep(0.01)
        assert pool.submit(replace(bench, rest=rest).run, job_id, 1).result(120) == "outrun"
    assert may.is_set()


def test_the_estimate_is_held_against_the_truth(
    journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path]
) -> None:
    """0.2 of 0.4 seconds, and half of the memory; the job's page shows both."""
    before = {q: _observed(q) for q in ("seconds", "memory")}
    taken: list[Any] = []
    segmenter.before = lambda: taken.append(np.ones(1_000_000_000, np.uint8))
    job_id = job_for(journal, paths, ())
    assert bench.run(job_id, 1) == "composed"
    result = record_of(journal, job_id).result
    assert result["estimate"] == {"gb": 2.0, "patches": 8, "network": 0.4}
    assert 1.0 <= result["peak_gb"] < 1.2
    assert _observed("seconds") - before["seconds"] == pytest.approx(0.5)
    assert 0.5 <= _observed("memory") - before["memory"] < 0.6


def _observed(quantity: str) -> float:
    """The sum of a histogram."""
    samples = metrics.ESTIMATE_RATIO.labels(quantity=quantity).collect()[0].samples
    return next(sample.value for sample in samples if sample.name.endswith("_sum"))


def test_a_bug_flies(journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path]) -> None:
    """What is not expected is caught in one place, above."""
    job_id = job_for(journal, paths)
    segmenter.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        bench.run(job_id, 1)
    assert results_in(bench) == []


def test_a_model_that_is_gone(journal: Journal, bench: Bench, paths: list[Path]) -> None:
    job_id = job_for(journal, paths)
    empty = replace(bench, models=Models({}, lambda _: None))  # type: ignore[arg-type,return-value]
    empty.run(job_id, 1)
    assert record_of(journal, job_id).job.reason == "bundle"


def test_two_models_on_one_series_have_numbers_of_their_own(
    journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path]
) -> None:
    """RES-14: SeriesNumber is one series' alone in its study."""
    receive(journal, paths)
    (series,) = journal.open_series()
    journal.judge(series, Evidence.SILENCE)
    (row,) = journal.work(Station.ASSEMBLE)
    rules = tuple(Rule(name, name, (), ("pacs",)) for name in ("any", "other"))
    facts = {name: ModelFacts(name, "m" * 64, ("CT",)) for name in ("any", "other")}
    Assembler(journal, rules, facts, "c" * 64).run(row.id, row.attempt)
    two = replace(bench, models=Models({"any": BUNDLE, "other": BUNDLE}, lambda _: segmenter))  # type: ignore[arg-type,return-value]
    numbers: dict[int, set[str]] = {}
    for job in journal.list_jobs():
        assert two.run(job.id, 1) == "composed"
        record = record_of(journal, job.id)
        assert len(record.result["series_numbers"]) == 3
        for each in record.objects:
            ds = dcmread(each.path, stop_before_pixels=True)
            assert ds.SeriesNumber in record.result["series_numbers"]
            numbers.setdefault(int(ds.SeriesNumber), set()).add(str(ds.SeriesInstanceUID))
    assert len(numbers) == 6
    assert all(len(uids) == 1 for uids in numbers.values())


OTHER_MODEL: Any = SimpleNamespace(**{**vars(BUNDLE), "digest": "n" * 64})


def updated(bench: Bench, segmenter: Segmenter, what: str, **changes: Any) -> Bench:
    """The bench of a process that has another model, or another configuration, than the job was made for."""
    if what == "model":
        return replace(bench, models=Models({"any": OTHER_MODEL}, lambda _: segmenter), **changes)  # type: ignore[arg-type,return-value]
    return replace(bench, recipe=Recipe(SEGMENTS, "d" * 64, "0.1.0"), **changes)


@pytest.mark.parametrize("what", ["model", "configuration"])
def test_a_job_from_before_an_update_is_judged_anew(
    journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path], what: str
) -> None:
    """RES-20: never another model, or another table of segments, under the UIDs of the one that was asked for."""
    job_id = job_for(journal, paths)
    later = updated(bench, segmenter, what, since=datetime.now(UTC))
    assert later.run(job_id, 1) == "outdated"
    record = record_of(journal, job_id)
    assert (record.job.state, record.job.reason, record.objects) == (JobState.CANCELLED, "outdated", ())
    assert "made for" in record.detail
    (row,) = journal.work(Station.ASSEMBLE)
    rule, model = Rule("all", "any", (), ("pacs",)), ModelFacts("any", later.models.digest("any"), ("CT",))
    run = Assembler(journal, (rule,), {"any": model}, later.recipe.config_digest).run
    assert run(row.id, row.attempt) == "processed"
    again = journal.list_jobs()[0].id
    assert again != job_id
    assert later.run(again, 1) == "composed"


@pytest.mark.parametrize("what", ["model", "configuration"])
def test_processes_that_disagree_are_seen(
    journal: Journal, bench: Bench, segmenter: Segmenter, paths: list[Path], what: str
) -> None:
    """A job that is younger than the process is not judged anew for ever: a person must look."""
    stale = updated(bench, segmenter, what)
    job_id = job_for(journal, paths)
    assert stale.run(job_id, 1) == "fail"
    record = record_of(journal, job_id)
    assert (record.job.state, record.job.reason, record.objects) == (JobState.FAILED, "outdated", ())
    assert "restart" in record.detail


def test_a_model_that_was_changed_on_the_disk_is_not_opened(tmp_path: Path) -> None:
    """Its digest was taken when the process began; its weights are read when it is first asked for."""
    import shutil

    from engines.model.bundle import SHIPPED, load_bundle
    from node.config import Settings
    from node.service.segmenter import _opened

    folder = tmp_path / "phantom"
    shutil.copytree(SHIPPED / "phantom", folder)
    bundle = load_bundle(folder)
    with pytest.raises(BundleError, match="restart"):
        _opened(replace(bundle, digest="0" * 64), Settings())
    weights = next(path for path in folder.rglob("*") if path.suffix == ".safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError):
        _opened(bundle, Settings())


def test_the_folder_command_and_the_node_have_one_recipe(tmp_path: Path) -> None:
    """RES-20: the UIDs of `hilum segment` are the node's for the same scan, model and configuration."""
    from node.commands.segment import Workbench
    from node.config import load_settings
    from node.service.house import House

    file = tmp_path / "node.toml"
    file.write_text('[node]\nserial = "17"\n', encoding="utf-8")
    settings = load_settings(file)
    with House.open(settings) as house, Workbench(settings, house.bundles, tmp_path, quiet=True) as workbench:
        recipe = workbench._recipe()
        assert (recipe.config_digest, recipe.segments) == (house.config_digest, house.segments)


def test_undecodable_pixels_are_rejected(journal: Journal, bench: Bench, paths: list[Path]) -> None:
    ds = dcmread(paths[2])
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    from pydicom.encaps import encapsulate

    ds.PixelData = encapsulate([b"\xff\xd8 this is no JPEG \xff\xd9"])
    ds["PixelData"].is_undefined_length = True
    ds.save_as(paths[2])
    job_id = job_for(journal, paths)
    assert bench.run(job_id, 1) == "reject"
    assert record_of(journal, job_id).job.reason == "undecodable"
