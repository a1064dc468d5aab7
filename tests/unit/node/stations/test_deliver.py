"""Delivering: one try of one object to one real archive on loopback; what each answer means."""

from __future__ import annotations

import hashlib
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom import AE, evt

from node.domain.instance import ReceivedInstance, Sender
from node.domain.job import DeliveryState, Destination, JobState, NotAllowed, ObjectKind, RetryPolicy
from node.domain.series import Completeness, Evidence
from node.domain.work import JobDraft, NewObject, PartDraft, Settlement, Station
from node.monitor import metrics
from node.selftest.archive import Archive, Behaviour
from node.stations.deliver import Deliverer
from node.store.journal import Journal

SEG, LABELMAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
EXPLICIT, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"
SR = {name: f"1.2.840.10008.5.1.4.1.1.88.{n}" for name, n in (("comprehensive3d", 34), ("comprehensive", 33))}
PDF = "1.2.840.10008.5.1.4.1.1.104.1"
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.fixture
def fast() -> Iterator[Path]:
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="hilum-", dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def journal(fast: Path) -> Iterator[Journal]:
    with Journal.open(f"sqlite:///{fast / 'journal.db'}", lambda: NOW) as opened:
        yield opened


@pytest.fixture
def archive_with(fast: Path) -> Iterator[Callable[..., Archive]]:
    opened: list[Archive] = []

    def make(**behaviour: Any) -> Archive:
        opened.append(Archive(fast / "archive", behaviour=Behaviour(**behaviour)))
        return opened[-1]

    yield make
    for archive in opened:
        archive.stop()


def deliverer(journal: Journal, port: int, **changes: Any) -> Deliverer:
    retry = RetryPolicy(first_s=30.0, longest_s=900.0, tries=5)
    destination = Destination("pacs", "ARCHIVE", "127.0.0.1", port, "HILUM", retry=retry, network_timeout_s=5.0)
    return Deliverer(journal, {"pacs": replace(destination, **changes)}, lambda: NOW, lambda: 0.5)


def write(folder: Path, sop_class: str, uid: str, syntax: str = EXPLICIT) -> tuple[Path, str]:
    """A data set small enough to be sent, of this class; no archive looks inside."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid
    ds.file_meta.TransferSyntaxUID = syntax
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID = "1.2", f"{uid}.1", "P"
    path = folder / f"{uid}.dcm"
    dcmwrite(path, ds, enforce_file_format=True)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def composed(journal: Journal, folder: Path, pixels: int = 64) -> int:
    """A job with its frozen objects and three deliveries."""
    receive(journal, 1)
    (series,) = journal.open_series()
    journal.judge(series, Evidence.SILENCE)
    work = journal.begin_series(series.id, 1)
    assert work is not None
    draft = JobDraft("rule", "phantom", "m", "c", ("pacs",), 100, pixels)
    part = PartDraft(1, "v", {}, ("1.2.3.1",), (), "processed", job=draft)
    assert journal.settle(work, Settlement(Evidence.SILENCE, Completeness.COMPLETE, 1.0, "processed", "", (part,)))
    job_id = journal.list_jobs()[0].id
    journal.begin_job(job_id, 1)
    objects = []
    for kind, variant, sop_class in (
        (ObjectKind.SEG, "binary", SEG),
        (ObjectKind.SEG, "labelmap", LABELMAP),
        (ObjectKind.SR, "comprehensive3d-binary", SR["comprehensive3d"]),
        (ObjectKind.SR, "comprehensive-binary", SR["comprehensive"]),
        (ObjectKind.PDF, "pdf", PDF),
    ):
        uid = f"2.25.{len(objects) + 1}"
        syntax = RLE if variant == "labelmap" else EXPLICIT
        path, digest = write(folder, sop_class, uid, syntax)
        objects.append(NewObject(kind, variant, sop_class, uid, syntax, path, digest))
    assert journal.compose(job_id, 1, objects, [("pacs", kind) for kind in ObjectKind], {})
    return job_id


def receive(journal: Journal, number: int) -> None:
    journal.commit(
        ReceivedInstance(
            sop_instance_uid=f"1.2.3.{number}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            study_instance_uid="1.2",
            series_instance_uid="1.2.3",
            patient_id="P",
            path=Path(f"/spool/{number}.dcm"),
            length=number,
            crc32=number,
            sender=Sender("ct1", "CT1", "HILUM", "10.0.0.1", "a1"),
            received_at=NOW,
        )
    )


def send_all(journal: Journal, station: Deliverer) -> list[str]:
    """Send what is due until nothing is; returns what became of each try."""
    words = []
    while rows := journal.work(Station.DELIVER):
        words.append(station.run(rows[0].id, rows[0].attempt))
    return words


def states(journal: Journal, job_id: int) -> list[tuple[str, str, str]]:
    return [(str(d.kind), str(d.state), d.reason) for d in journal.show_job(job_id).deliveries]


def test_seg_then_sr_then_pdf_and_the_bytes_unchanged(
    journal: Journal, fast: Path, archive_with: Callable[..., Archive]
) -> None:
    """NET-24, RES-21."""
    archive = archive_with()
    job_id = composed(journal, fast)
    assert send_all(journal, deliverer(journal, archive.port)) == ["sent"] * 3
    assert [k.sop_instance_uid for k in archive.received] == ["2.25.1", "2.25.3", "2.25.5"]
    record = journal.show_job(job_id)
    assert record is not None
    assert record.job.state is JobState.DONE
    assert [d.sent_sop_instance_uid for d in record.deliveries] == ["2.25.1", "2.25.3", "2.25.5"]


def test_a_peer_without_the_newest_report_gets_the_older_one(
    journal: Journal, fast: Path, archive_with: Callable[..., Archive]
) -> None:
    """NET-22."""
    archive = archive_with(refused_sop_classes=frozenset({SR["comprehensive3d"]}))
    composed(journal, fast)
    assert send_all(journal, deliverer(journal, archive.port)) == ["sent"] * 3
    assert [k.sop_instance_uid for k in archive.received] == ["2.25.1", "2.25.4", "2.25.5"]


def test_a_peer_that_takes_no_seg(journal: Journal, fast: Path, archive_with: Callable[..., Archive]) -> None:
    """Context refused: a dead letter with its reason; the report follows it, the PDF goes."""
    archive = archive_with(refused_sop_classes=frozenset({SEG, LABELMAP}))
    job_id = composed(journal, fast)
    assert send_all(journal, deliverer(journal, archive.port)) == ["failed", "sent"]
    (seg, sr, pdf) = states(journal, job_id)
    assert seg[1] == "failed"
    assert seg[2].startswith("refused")
    assert sr == ("sr", "failed", "segmentation_refused")
    assert pdf[1] == "sent"


def test_a_labelmap_goes_as_it_is_encoded(journal: Journal, fast: Path, archive_with: Callable[..., Archive]) -> None:
    """RES-2: RLE is proposed for it, and accepted."""
    archive = archive_with()
    composed(journal, fast)
    station = deliverer(journal, archive.port, seg="labelmap")
    assert station.run(1, 1) == "sent"
    assert [(k.sop_class_uid, k.transfer_syntax_uid) for k in archive.received] == [(LABELMAP, RLE)]


def test_a_peer_that_cannot_read_rle_gets_binary(journal: Journal, fast: Path) -> None:
    """It knows the class of a LABELMAP, but not the encoding of ours: frozen bytes are not re-encoded (RES-21)."""
    received: list[str] = []

    def keep(event: evt.Event) -> int:
        received.append(str(event.request.AffectedSOPClassUID))
        return 0

    entity = AE(ae_title="ARCHIVE")
    for sop_class in (SEG, LABELMAP):
        entity.add_supported_context(sop_class, EXPLICIT)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    composed(journal, fast)
    port = int(server.server_address[1])
    assert deliverer(journal, port, seg="labelmap").run(1, 1) == "sent"
    server.shutdown()
    assert received == [SEG]


@pytest.mark.parametrize(
    ("status", "state", "tries"),
    [(0xA700, "pending", 1), (0xA900, "failed", 0), (0xC123, "failed", 0), (0x0124, "failed", 0), (0xB000, "sent", 0)],
)
def test_what_a_status_means(
    journal: Journal, fast: Path, archive_with: Callable[..., Archive], status: int, state: str, tries: int
) -> None:
    """NET-23."""
    archive = archive_with(statuses={SEG: status})
    job_id = composed(journal, fast)
    (row,) = journal.work(Station.DELIVER)
    deliverer(journal, archive.port).run(row.id, row.attempt)
    seg = journal.show_job(job_id).deliveries[0]
    assert (str(seg.state), seg.tries) == (state, tries)
    if state == "pending":
        assert seg.due_at == NOW + timedelta(seconds=30)
        assert seg.attempt == 2


def test_an_unknown_status_is_tried_three_times(
    journal: Journal, fast: Path, archive_with: Callable[..., Archive]
) -> None:
    """NET-23."""
    archive = archive_with(statuses={SEG: 0x1234})
    job_id = composed(journal, fast)
    station = deliverer(journal, archive.port, retry=RetryPolicy(0.0, 0.0, 100))
    words = []
    while journal.show_job(job_id).deliveries[0].state is DeliveryState.PENDING:
        delivery = journal.show_job(job_id).deliveries[0]
        words.append(station.run(delivery.id, delivery.attempt))
    assert words == ["later", "later", "failed"]


def test_nobody_answers(journal: Journal, fast: Path) -> None:
    """PACS down: a due time with backoff, and in the end a dead letter."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    job_id = composed(journal, fast)
    waits = []
    for attempt in range(1, 6):
        deliverer(journal, port).run(1, attempt)
        waits.append((journal.show_job(job_id).deliveries[0].due_at - NOW).total_seconds())
    assert waits[:4] == [30.0, 60.0, 120.0, 240.0]
    assert states(journal, job_id)[0][1:] == (
        "failed",
        "exhausted: exhausted after 5 tries: no association: nobody answers, or the connection was aborted",
    ) or states(journal, job_id)[0][2].startswith("exhausted")


def test_a_slice_comes_while_the_association_is_opened(
    journal: Journal, fast: Path, archive_with: Callable[..., Archive], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gate 3: asked right before the send, after everything else."""
    import node.stations.deliver as module

    archive = archive_with()
    job_id = composed(journal, fast)
    check = module._check_frozen

    def and_receive(each: Any) -> None:
        receive(journal, 9)
        check(each)

    monkeypatch.setattr(module, "_check_frozen", and_receive)
    assert deliverer(journal, archive.port).run(1, 1) == "superseded"
    assert archive.received == ()
    assert {s[1] for s in states(journal, job_id)} == {"cancelled"}
    assert journal.list_jobs()[0].state is JobState.CANCELLED


def test_changed_bytes_never_leave(journal: Journal, fast: Path, archive_with: Callable[..., Archive]) -> None:
    """RES-21."""
    archive = archive_with()
    job_id = composed(journal, fast)
    path = fast / "2.25.1.dcm"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert deliverer(journal, archive.port).run(1, 1) == "failed"
    assert archive.received == ()
    assert "changed on the disk" in states(journal, job_id)[0][2]


def test_a_destination_that_is_no_longer_configured(journal: Journal, fast: Path) -> None:
    """RES-42: nothing goes by default."""
    job_id = composed(journal, fast)
    assert Deliverer(journal, {}).run(1, 1) == "failed"
    assert "no longer configured" in states(journal, job_id)[0][2]


def test_a_dead_letter_is_not_sent_after_a_newer_result(
    journal: Journal, fast: Path, archive_with: Callable[..., Archive]
) -> None:
    """Whatever an operator asks: of a revision that was overtaken nothing leaves any more, retried or not."""
    archive = archive_with(refused_sop_classes=frozenset({SEG, LABELMAP}))
    old = composed(journal, fast)
    send_all(journal, deliverer(journal, archive.port))
    dead = [d for d in journal.show_job(old).deliveries if d.state is DeliveryState.FAILED]
    assert [d.kind for d in dead] == [ObjectKind.SEG, ObjectKind.SR]
    journal.retry_delivery(dead[0].id)
    receive(journal, 9)
    assert journal.show_job(old).deliveries[0].state is DeliveryState.CANCELLED
    for ask, number in (
        (journal.retry, old),
        (journal.retry_delivery, dead[0].id),
        (journal.retry_delivery, dead[1].id),
    ):
        with pytest.raises(NotAllowed, match="newer revision"):
            ask(number)
    assert journal.work(Station.DELIVER) == ()
    assert {kept.sop_class_uid for kept in archive.received} == {PDF}


def test_a_dead_letter_that_is_being_sent_again_is_overtaken(
    journal: Journal, fast: Path, archive_with: Callable[..., Archive]
) -> None:
    """The retry has begun and is refused for now; then a slice comes: the next try does not happen."""
    archive = archive_with(statuses={SEG: 0xC000})
    job_id = composed(journal, fast)
    station = deliverer(journal, archive.port)
    send_all(journal, station)
    journal.retry(job_id)
    archive.behaviour = Behaviour(statuses={SEG: 0xA700})
    (row,) = journal.work(Station.DELIVER)
    assert station.run(row.id, row.attempt) == "later"
    receive(journal, 9)
    assert {d.state for d in journal.show_job(job_id).deliveries} == {DeliveryState.CANCELLED, DeliveryState.SENT}
    archive.behaviour = Behaviour()
    asked = len(archive.received)
    assert station.run(row.id, row.attempt + 1) == "not_mine"
    assert journal.work(Station.DELIVER) == ()
    assert len(archive.received) == asked


def test_a_retried_segmentation_goes_before_its_report(
    journal: Journal, fast: Path, archive_with: Callable[..., Archive]
) -> None:
    """NET-24: after a dead letter too, and after an operator asked for the report first."""
    archive = archive_with(statuses={SEG: 0xC000})
    job_id = composed(journal, fast)
    station = deliverer(journal, archive.port)
    send_all(journal, station)
    archive.behaviour, before = Behaviour(), len(archive.received)
    seg, report, _ = journal.show_job(job_id).deliveries
    journal.retry_delivery(report.id)
    journal.retry_delivery(seg.id)
    assert send_all(journal, station) == ["sent", "sent"]
    assert [kept.sop_class_uid for kept in archive.received[before:]] == [SEG, SR["comprehensive3d"]]


def test_a_report_alone_is_not_sent_for_a_refused_segmentation(
    journal: Journal, fast: Path, archive_with: Callable[..., Archive]
) -> None:
    """RES-7: it would refer to what is not there, even where an operator asks for it."""
    archive = archive_with(refused_sop_classes=frozenset({SEG, LABELMAP}))
    job_id = composed(journal, fast)
    station = deliverer(journal, archive.port)
    send_all(journal, station)
    journal.retry_delivery(journal.show_job(job_id).deliveries[1].id)
    assert send_all(journal, station) == ["failed"]
    assert [kept.sop_class_uid for kept in archive.received] == [PDF]


@pytest.mark.parametrize(
    ("pixels", "refused", "form", "misread"),
    [
        (512 * 512, frozenset({LABELMAP}), SEG, 0),
        (250 * 250, frozenset[str](), LABELMAP, 0),
        (250 * 250, frozenset({LABELMAP}), SEG, 1),
        (51 * 35, frozenset({LABELMAP}), SEG, 1),
    ],
)
def test_a_segmentation_that_is_often_misread_is_seen(
    journal: Journal,
    fast: Path,
    archive_with: Callable[..., Archive],
    caplog: pytest.LogCaptureFixture,
    pixels: int,
    refused: frozenset[str],
    form: str,
    misread: int,
) -> None:
    """RES-2: LABELMAP where the size is not a multiple of 8 pixels and it is taken, else BINARY, in log and metric."""
    archive = archive_with(refused_sop_classes=refused)
    composed(journal, fast, pixels)
    counted = metrics.SEGMENTATIONS_MISREAD.labels(destination="pacs")
    before = counted._value.get()
    with caplog.at_level("INFO"):
        assert deliverer(journal, archive.port).run(1, 1) == "sent"
    assert [kept.sop_class_uid for kept in archive.received] == [form]
    assert counted._value.get() - before == misread
    assert ("segmentation_often_misread" in caplog.messages) == bool(misread)
