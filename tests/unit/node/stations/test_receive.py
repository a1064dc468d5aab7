"""The order of receiving, what a failure at each step leaves behind, and duplicates (NET-2, NET-3, NET-9, NET-12)."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from node.dicom.association import Stored, StoreRequest
from node.dicom.uids import IMPLEMENTATION_CLASS_UID
from node.domain.instance import (
    MANUFACTURER,
    MODEL_NAME,
    CommitOutcome,
    InstanceState,
    KnownInstance,
    ReceivedInstance,
    Sender,
)
from node.errors import CannotUnderstand, DataSetMismatch, InvalidInstanceUid, OutOfResources, Refused
from node.stations.receive import HELD_CLASS, OWN_RESULT, Incoming, Receiver
from node.store import spool as spool_module
from node.store.journal import Journal as RealJournal
from node.store.spool import INCOMING, Spool, SpoolFile

CT, SEG, RAW = (f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("2", "66.4", "66"))
EXPLICIT = "1.2.840.10008.1.2.1"
SENDER = Sender("ct", "CT1", "HILUM", "127.0.0.1", "a1")
NOW = datetime(2026, 11, 24, tzinfo=UTC)


class Journal:
    """Keeps rows in a list, and judges duplicates as the real one does: by length and checksum."""

    def __init__(self) -> None:
        self.rows: list[ReceivedInstance] = []
        self.before_commit: Callable[[ReceivedInstance], None] = lambda instance: None
        self.after_commit: Callable[[ReceivedInstance], None] = lambda instance: None

    def commit(self, instance: ReceivedInstance) -> CommitOutcome:
        self.before_commit(instance)
        known = [row for row in self.rows if row.sop_instance_uid == instance.sop_instance_uid]
        same = [row for row in known if (row.length, row.crc32) == (instance.length, instance.crc32)]
        if same and same[0].path.exists():
            self.after_commit(instance)
            return CommitOutcome.DUPLICATE_SAME
        if same:
            self.restore(instance)
            return CommitOutcome.NEW
        self.rows.append(instance)
        self.after_commit(instance)
        return CommitOutcome.DUPLICATE_DIFFERENT if known else CommitOutcome.NEW

    def restore(self, instance: ReceivedInstance) -> None:
        same = (instance.sop_instance_uid, instance.length, instance.crc32)
        self.rows = [row for row in self.rows if (row.sop_instance_uid, row.length, row.crc32) != same] + [instance]

    def known(self, sop_instance_uid: str) -> tuple[KnownInstance, ...]:
        rows = [row for row in self.rows if row.sop_instance_uid == sop_instance_uid and row.path.exists()]
        return tuple(KnownInstance(row.path, row.length, row.crc32) for row in rows)


@pytest.fixture
def steps() -> list[str]:
    return []


@pytest.fixture
def spool(tmp_path: Path, steps: list[str]) -> Iterator[Spool]:
    def flush(fd: int) -> None:
        steps.append("flush")
        os.fdatasync(fd)

    opened = Spool(tmp_path, reserve_bytes=0, flush=flush)
    yield opened
    opened.close()


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def receiver(spool: Spool, journal: Journal) -> Receiver:
    return Receiver(spool, journal, clock=lambda: NOW)


def data_set(uid: str = "1.2.3.4", pixel: int = 0, sop_class_uid: str = CT, **changes: object) -> bytes:
    ds = Dataset()
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class_uid, uid
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P-17", "1.2.3", "1.2.3.5"
    ds.PixelData = bytes([pixel]) * 64
    ds["PixelData"].VR = "OW"
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = False, True
    write_dataset(out, ds)
    return out.getvalue()


def request(uid: str = "1.2.3.4", sop_class_uid: str = CT) -> StoreRequest:
    return StoreRequest(sop_class_uid, uid, EXPLICIT, SENDER, "MOVER")


def receive(receiver: Receiver, data: bytes, asked: StoreRequest | None = None) -> Stored:
    """As the association does it: write in pieces, finish, discard after a refusal."""
    incoming = receiver.open(asked or request())
    try:
        half = len(data) // 2
        incoming.write([memoryview(data)[:10], memoryview(data)[10:half]])
        incoming.write([memoryview(data)[half:]])
        return incoming.finish()
    except (Refused, OSError):
        incoming.discard()
        raise


def used_files(spool: Spool, journal: Journal) -> tuple[set[Path], set[Path]]:
    """Files that hold bytes, and files that rows name."""
    here = {path for path in (spool.folder / INCOMING).iterdir() if path.stat().st_size}
    return here, {row.path for row in journal.rows}


def test_row_tells_all_of_the_object(receiver: Receiver, journal: Journal) -> None:
    """NET-41."""
    assert receive(receiver, data_set()) == Stored("1.2.3.5", "kept")
    (row,) = journal.rows
    assert (row.sop_class_uid, row.sop_instance_uid, row.transfer_syntax_uid) == (CT, "1.2.3.4", EXPLICIT)
    assert (row.study_instance_uid, row.series_instance_uid, row.patient_id) == ("1.2.3", "1.2.3.5", "P-17")
    assert (row.sender, row.received_at, row.move_originator) == (SENDER, NOW, "MOVER")
    assert (row.state, row.reason, row.length) == (InstanceState.KEPT, "", len(data_set()))


def test_file_is_part_10_with_the_bytes_as_received(receiver: Receiver, journal: Journal) -> None:
    """NET-3, NET-39: and pydicom reads it."""
    receive(receiver, data_set(pixel=7))
    path = journal.rows[0].path
    assert path.read_bytes().endswith(data_set(pixel=7))
    ds = dcmread(path)
    meta = ds.file_meta
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (CT, "1.2.3.4")
    assert (meta.TransferSyntaxUID, meta.ImplementationClassUID) == (EXPLICIT, IMPLEMENTATION_CLASS_UID)
    assert meta.ImplementationVersionName.startswith("HILUM_")
    assert path.stat().st_size == 144 + meta.FileMetaInformationGroupLength + len(data_set())
    assert ds.PixelData == bytes([7]) * 64


def test_bytes_are_flushed_before_the_row_and_the_row_before_the_answer(
    receiver: Receiver, journal: Journal, steps: list[str]
) -> None:
    """NET-2."""

    def commit(instance: ReceivedInstance) -> None:
        assert instance.path.read_bytes().endswith(data_set())
        steps.append("commit")

    journal.before_commit = commit
    incoming = receiver.open(request())
    incoming.write([memoryview(data_set())])
    assert steps == []
    incoming.finish()
    assert steps == ["flush", "commit"]


@pytest.mark.parametrize(("sop_class_uid", "kind"), [(SEG, "held"), (RAW, "held"), (CT, "kept")])
def test_other_classes_are_held(receiver: Receiver, journal: Journal, sop_class_uid: str, kind: str) -> None:
    """NET-7, NET-36: a SEG, our own above all, is stored and never processed."""
    stored = receive(receiver, data_set(sop_class_uid=sop_class_uid), request(sop_class_uid=sop_class_uid))
    assert stored.kind == kind
    assert journal.rows[0].reason == (HELD_CLASS if kind == "held" else "")


def maker(manufacturer: str, model_name: str) -> Dataset:
    item = Dataset()
    item.Manufacturer, item.ManufacturerModelName = manufacturer, model_name
    return item


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Manufacturer": MANUFACTURER, "ManufacturerModelName": MODEL_NAME}, OWN_RESULT),
        ({"Manufacturer": "S", "ContributingEquipmentSequence": [maker(MANUFACTURER, MODEL_NAME)]}, OWN_RESULT),
        ({"Manufacturer": MANUFACTURER, "ContributingEquipmentSequence": [maker("Other", "Node")]}, HELD_CLASS),
    ],
)
def test_an_own_result_that_comes_back_is_told_as_one(
    receiver: Receiver, journal: Journal, changes: dict[str, object], reason: str
) -> None:
    """NET-36: under the product's own name, or under the site's, so that a loop with the PACS is seen."""
    receive(receiver, data_set(sop_class_uid=SEG, **changes), request(sop_class_uid=SEG))
    assert (journal.rows[0].state, journal.rows[0].reason) == (InstanceState.HELD, reason)


# --- refusals ---


@pytest.mark.parametrize(
    ("data", "asked", "error"),
    [
        (data_set()[:-1], request(), CannotUnderstand),
        (b"\xff" * 100, request(), CannotUnderstand),
        (data_set("1.2.9"), request(), DataSetMismatch),
        (data_set(sop_class_uid=SEG), request(), DataSetMismatch),
    ],
    ids=["truncated", "garbage", "other instance", "other class"],
)
def test_wrong_data_set_leaves_nothing(
    receiver: Receiver, spool: Spool, journal: Journal, data: bytes, asked: StoreRequest, error: type[Refused]
) -> None:
    with pytest.raises(error):
        receive(receiver, data, asked)
    assert used_files(spool, journal) == (set(), set())


def test_empty_data_set_is_refused(receiver: Receiver) -> None:
    incoming = receiver.open(request())
    with pytest.raises(CannotUnderstand, match="empty"):
        incoming.finish()


@pytest.mark.parametrize("uid", ["../../../tmp/x", "1.2/3", "", "1." * 40])
def test_hostile_uid_takes_no_file(receiver: Receiver, spool: Spool, uid: str) -> None:
    """SEC-9: 0117 before anything is opened."""
    for asked in (request(uid), request(sop_class_uid=uid)):
        with pytest.raises(InvalidInstanceUid):
            receiver.open(asked)
    assert not list((spool.folder / INCOMING).iterdir())


# --- a failure at each step (research 3.1) ---


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_write_fails(
    receiver: Receiver, spool: Spool, journal: Journal, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Step 1: the error passes on, the association answers A700; no file stays."""

    def fail(fd: int, parts: object) -> int:
        raise OSError(number, "injected")

    monkeypatch.setattr(spool_module.os, "writev", fail)
    with pytest.raises(OSError, match="injected"):
        receive(receiver, data_set())
    assert used_files(spool, journal) == (set(), set())


def test_disk_is_full_in_the_middle(
    receiver: Receiver, spool: Spool, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short write, then ENOSPC: what was acknowledged before stays, and there is room again afterwards."""
    receive(receiver, data_set("1.2.1"), request("1.2.1"))
    real, room = os.writev, [100]

    def little(fd: int, parts: list[memoryview]) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "injected")
        written = real(fd, [memoryview(parts[0])[: room[0]]])
        room[0] -= written
        return written

    monkeypatch.setattr(spool_module.os, "writev", little)
    with pytest.raises(OSError, match="injected"):
        receive(receiver, data_set())
    monkeypatch.undo()
    here, rows = used_files(spool, journal)
    assert here == rows
    assert len(rows) == 1
    receive(receiver, data_set())
    assert len(journal.rows) == 2


def test_flush_fails(tmp_path: Path, journal: Journal) -> None:
    """Step 3: A700, no row, no file, and no second flush of the same file."""
    tries: list[int] = []

    def fail(fd: int) -> None:
        tries.append(fd)
        raise OSError(errno.ENOSPC, "injected")

    spool = Spool(tmp_path, 0, flush=fail)
    with pytest.raises(OutOfResources) as caught:
        receive(Receiver(spool, journal), data_set())
    assert caught.value.status == 0xA700
    assert len(tries) == 1
    assert used_files(spool, journal) == (set(), set())
    spool.close()


def test_commit_fails_before_the_row(receiver: Receiver, spool: Spool, journal: Journal) -> None:
    """Step 4: A700 and nothing kept."""

    def fail(instance: ReceivedInstance) -> None:
        raise OutOfResources("journal cannot take the object now")

    journal.before_commit = fail
    with pytest.raises(OutOfResources):
        receive(receiver, data_set())
    assert used_files(spool, journal) == (set(), set())


def test_commit_says_error_after_the_row_was_written(receiver: Receiver, spool: Spool, journal: Journal) -> None:
    """A row always means whole bytes: where the row is there after all, the object is kept."""

    def fail(instance: ReceivedInstance) -> None:
        raise OutOfResources("connection lost in the middle of a commit")

    journal.after_commit = fail
    assert receive(receiver, data_set()).kind == "kept"
    here, rows = used_files(spool, journal)
    assert here == rows
    assert len(rows) == 1


def test_commit_fails_and_nobody_can_tell(
    receiver: Receiver, spool: Spool, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file stays for the sweep of the next start, which knows the rows."""

    def fail(instance: ReceivedInstance) -> None:
        monkeypatch.setattr(journal, "known", gone)
        raise OutOfResources("database is gone")

    def gone(uid: str) -> tuple[KnownInstance, ...]:
        raise OutOfResources("database is gone")

    journal.before_commit = fail
    with pytest.raises(OutOfResources):
        receive(receiver, data_set())
    here, rows = used_files(spool, journal)
    assert (len(here), len(rows)) == (1, 0)
    spool.close()
    assert spool.sweep_orphans({path.name for path in rows}) == 1


# --- duplicates (NET-12) ---


def test_same_bytes_again_change_nothing(receiver: Receiver, spool: Spool, journal: Journal) -> None:
    receive(receiver, data_set())
    for _ in range(2):
        assert receive(receiver, data_set()) == Stored("1.2.3.5", "duplicate")
    here, rows = used_files(spool, journal)
    assert here == rows
    assert len(rows) == 1


def test_other_bytes_are_kept_beside(receiver: Receiver, spool: Spool, journal: Journal) -> None:
    receive(receiver, data_set())
    assert receive(receiver, data_set(pixel=1)).kind == "kept"
    assert len(journal.rows) == 2
    assert {row.path.read_bytes()[-64:] for row in journal.rows} == {bytes(64), b"\1" * 64}
    assert receive(receiver, data_set()).kind == "duplicate"
    assert receive(receiver, data_set(pixel=1)).kind == "duplicate"


def test_checksum_alone_decides_nothing(receiver: Receiver, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crc32 can be forged: other bytes with the same one are never answered as stored and then dropped."""
    receive(receiver, data_set())
    monkeypatch.setattr(
        SpoolFile, "crc32", property(lambda self: journal.rows[0].crc32, lambda self, value: None), raising=False
    )
    with pytest.raises(CannotUnderstand):
        receive(receiver, data_set(pixel=1))
    assert len(journal.rows) == 1


def test_two_copies_at_the_same_moment(receiver: Receiver, spool: Spool, journal: Journal) -> None:
    """The journal tells the second one."""
    first, second = receiver.open(request()), receiver.open(request())
    for incoming in (first, second):
        incoming.write([memoryview(data_set())])
    journal.before_commit = lambda instance: _finish_first(journal, first)
    assert second.finish().kind == "duplicate"
    here, rows = used_files(spool, journal)
    assert here == rows
    assert len(rows) == 1


def _finish_first(journal: Journal, first: Incoming) -> None:
    journal.before_commit = lambda instance: None
    assert first.finish().kind == "kept"


def test_resent_after_its_bytes_were_purged(receiver: Receiver, spool: Spool, journal: Journal) -> None:
    """Its bytes are kept again: a new slice of its series may need them."""
    receive(receiver, data_set())
    journal.rows[0].path.unlink()
    assert receive(receiver, data_set()).kind == "kept"
    here, rows = used_files(spool, journal)
    assert here == rows
    assert len(rows) == 1


def test_purged_between_the_journals_word_and_the_comparison(
    receiver: Receiver, spool: Spool, journal: Journal
) -> None:
    """The sender may try again; what is gone is never answered as stored."""
    receive(receiver, data_set())
    journal.after_commit = lambda instance: journal.rows[0].path.unlink()
    with pytest.raises(OutOfResources):
        receive(receiver, data_set())
    assert used_files(spool, journal)[0] == set()
    assert receive(receiver, data_set()).kind == "kept"


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty"])
def test_kept_bytes_that_the_disk_damaged_are_mended(
    receiver: Receiver, spool: Spool, journal: Journal, damage: str
) -> None:
    """Whole bytes that come again take the place of acknowledged ones that are no longer what they were."""
    receive(receiver, data_set())
    path = journal.rows[0].path
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-40], "one bit": whole[:-1] + b"\1", "empty": b""}[damage])
    assert receive(receiver, data_set()).kind == "kept"
    (row,) = journal.rows
    assert row.path != path
    assert row.path.read_bytes() == whole
    assert receive(receiver, data_set()).kind == "duplicate"


def test_kept_bytes_that_the_disk_lost_are_mended(spool: Spool, tmp_path: Path) -> None:
    """The journal knows them, the file is gone and was not purged: what comes again takes its place."""
    with RealJournal.open(f"sqlite:///{tmp_path / 'journal.db'}") as journal:
        receiver = Receiver(spool, journal)
        assert receive(receiver, data_set()).kind == "kept"
        (lost,) = journal.known("1.2.3.4")
        lost.path.unlink()
        assert receive(receiver, data_set()).kind == "kept"
        (known,) = journal.known("1.2.3.4")
        assert known.path != lost.path
        assert known.path.exists()
        assert receive(receiver, data_set()).kind == "duplicate"


def test_two_copies_at_the_same_moment_with_the_real_journal(spool: Spool, tmp_path: Path) -> None:
    """NET-12: both in one group commit; one is kept, both are answered, and no file is left over."""
    with RealJournal.open(f"sqlite:///{tmp_path / 'journal.db'}") as journal:
        receiver = Receiver(spool, journal)
        incoming = [receiver.open(request()) for _ in range(6)]
        for each in incoming:
            each.write([memoryview(data_set())])
        with ThreadPoolExecutor(6) as pool, journal._writing():
            answers = [pool.submit(each.finish) for each in incoming]
            time.sleep(0.2)  # the first waits for the journal, the others for the first
        kinds = sorted(answer.result().kind for answer in answers)
        assert kinds == [*["duplicate"] * 5, "kept"]
        (known,) = journal.known("1.2.3.4")
        here = {path for path in (spool.folder / INCOMING).iterdir() if path.stat().st_size}
        assert here == {known.path}


# --- while it is on its way ---


def test_series_is_told_once_its_bytes_are_here(receiver: Receiver) -> None:
    """ASM-2: the heartbeat knows whose bytes are in flight."""
    data = memoryview(data_set())
    incoming = receiver.open(request())
    incoming.peek()
    incoming.write([data[:20]])
    incoming.peek()
    assert incoming.series_instance_uid == ""
    incoming.write([data[20:-70]])
    incoming.peek()
    assert incoming.series_instance_uid == "1.2.3.5"
    incoming.discard()
