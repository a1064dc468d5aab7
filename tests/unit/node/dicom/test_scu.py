"""What a peer answers and what we make of it: NET-22, NET-23, NET-38; C-GET and sending of a folder."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID
from pynetdicom import AE, evt

from node.dicom import scu
from node.domain.job import Destination
from node.errors import PeerUnavailable, PermanentlyRefused
from node.selftest.archive import Archive, Behaviour

CT, MR = UID("1.2.840.10008.5.1.4.1.1.2"), UID("1.2.840.10008.5.1.4.1.1.4")
EXPLICIT, IMPLICIT = UID("1.2.840.10008.1.2.1"), UID("1.2.840.10008.1.2")


def write(path: Path, sop_class_uid: UID = CT, instance: str = "1.2.3.4") -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class_uid, UID(instance)
    meta.TransferSyntaxUID, meta.ImplementationClassUID = EXPLICIT, UID("1.2.3")
    ds = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class_uid, instance
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P", "1.2.3", f"1.2.3.{len(sop_class_uid)}"
    ds.Modality = "CT"
    ds.save_as(path, enforce_file_format=True)
    return path


def at(port: int, ae_title: str = "ARCHIVE") -> Destination:
    return Destination("pacs", ae_title, "127.0.0.1", port, "HILUM", network_timeout_s=5)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path / "archive") as running:
        yield running


@pytest.fixture
def scripted() -> Iterator[Callable[..., Destination]]:
    """Start an SCP that answers each C-STORE as the test says."""
    servers = []

    def run(answer: Callable[[evt.Event], int], syntaxes: tuple[UID, ...] = (EXPLICIT, IMPLICIT)) -> Destination:
        entity = AE(ae_title="ARCHIVE")
        entity.add_supported_context(CT, list(syntaxes))
        servers.append(entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)]))
        return at(servers[-1].server_address[1])

    yield run
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (0x0000, None),
        (0xB000, None),
        (0xB006, None),
        (0xB007, None),
        (0xA700, PeerUnavailable),
        (0xA702, PeerUnavailable),
        (0xA900, PermanentlyRefused),
        (0xC000, PermanentlyRefused),
        (0xC123, PermanentlyRefused),
        (0x0110, PermanentlyRefused),
        (0x0122, PermanentlyRefused),
        (0x0124, PermanentlyRefused),
        (0xFE00, scu.UnknownStatus),
        (0x1234, scu.UnknownStatus),
    ],
)
def test_status_decides_the_fate(
    scripted: Callable[..., Destination], tmp_path: Path, status: int, error: type[Exception] | None
) -> None:
    """NET-23: each code of a scripted SCP; the class of the error is what becomes of the delivery."""
    path = write(tmp_path / "ct.dcm")
    with scu.Outbound(scripted(lambda event: status), [CT]) as outbound:
        if error is None:
            assert outbound.store(path) == status
        else:
            with pytest.raises(error) as caught:
                outbound.store(path)
            assert type(caught.value) is error
            assert f"{status:04X}" in str(caught.value.args[0])


def test_no_other_thread_takes_the_answer(
    scripted: Callable[..., Destination], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine: a thread of pynetdicom wakes up late, and the sender comes to the queue later still."""
    path = write(tmp_path / "ct.dcm")
    with scu.Outbound(scripted(lambda event: 0), [CT]) as outbound:
        association = outbound._association
        assert association is not None
        woken, send = association._reactor_checkpoint.wait, association.dimse.send_msg

        def late(timeout: float | None = None) -> bool:
            answer = woken(timeout)
            time.sleep(0.1)
            return answer

        def send_slowly(*what: Any) -> None:
            send(*what)
            time.sleep(0.3)

        monkeypatch.setattr(association._reactor_checkpoint, "wait", late)
        monkeypatch.setattr(association.dimse, "send_msg", send_slowly)
        for _ in range(3):
            assert outbound.store(path) == 0


def test_abort_in_mid_send_is_worth_another_try(scripted: Callable[..., Destination], tmp_path: Path) -> None:
    """The empty Dataset that pynetdicom answers is no status."""

    def abort(event: evt.Event) -> int:
        event.assoc.abort()
        return 0

    path = write(tmp_path / "ct.dcm")
    with scu.Outbound(scripted(abort), [CT]) as outbound:
        with pytest.raises(PeerUnavailable, match="no answer"):
            outbound.store(path)
        with pytest.raises(PeerUnavailable):
            outbound.store(path)


def test_implicit_only_peer_gets_the_object_reencoded(scripted: Callable[..., Destination], tmp_path: Path) -> None:
    """Table 1.2: out Explicit VR, Implicit VR where the peer takes nothing else."""
    got = []

    def take(event: evt.Event) -> int:
        got.append((event.context.transfer_syntax, event.dataset))
        return 0

    path = write(tmp_path / "ct.dcm")
    for syntaxes in ((IMPLICIT,), (IMPLICIT, EXPLICIT)):
        with scu.Outbound(scripted(take, syntaxes), [CT]) as outbound:
            assert outbound.store(path) == 0
    assert [syntax for syntax, _ in got] == [IMPLICIT, EXPLICIT]
    assert all(ds == dcmread(path) for _, ds in got)


def test_socket_has_no_nagle(scripted: Callable[..., Destination], monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP_NODELAY is set through a private attribute of pynetdicom: this test guards it."""
    seen = []
    real = scu._no_delay

    def spy(event: evt.Event) -> None:
        real(event)
        seen.append(event.assoc.dul.socket.socket.getsockopt(6, 1))

    monkeypatch.setattr(scu, "_no_delay", spy)
    with scu.Outbound(scripted(lambda event: 0), [CT]):
        pass
    assert seen
    assert all(seen)


def test_nobody_there_and_wrong_title(archive: Archive) -> None:
    scu.echo(at(archive.port))
    with pytest.raises(PeerUnavailable):
        scu.echo(at(1))


def test_probe_tells_what_is_taken(tmp_path: Path) -> None:
    """NET-38: C-ECHO answers although a class is refused."""
    with Archive(tmp_path / "archive", behaviour=Behaviour(refused_sop_classes=frozenset({str(MR)}))) as archive:
        scu.echo(at(archive.port))
        assert scu.probe(at(archive.port), [CT, MR]) == {CT}
        assert scu.probe(at(archive.port), [MR]) == frozenset()
        with pytest.raises(PermanentlyRefused), scu.Outbound(at(archive.port), [MR]):
            pass


def test_folder_is_sent_and_each_file_has_its_outcome(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    write(folder / "a.dcm", CT, "1.2.1")
    write(folder / "b.dcm", MR, "1.2.2")
    write(folder / "c.dcm", CT, "1.2.3")
    (folder / "notes.txt").write_text("no DICOM", encoding="utf-8")
    (folder / "empty").write_bytes(b"")
    files, others = scu.files_to_send(tmp_path / "in")
    assert [path.name for path in others] == ["empty", "notes.txt"]
    told: list[scu.Sent] = []
    behaviour = Behaviour(refused_sop_classes=frozenset({str(MR)}))
    with Archive(tmp_path / "archive", behaviour=behaviour) as archive:
        sent = scu.send(at(archive.port), files, told.append)
        assert [(each.path.name, each.outcome) for each in sent] == [
            ("a.dcm", "stored"),
            ("b.dcm", "refused"),
            ("c.dcm", "stored"),
        ]
        assert tuple(told) == sent
        assert [each.is_stored for each in sent] == [True, False, True]
        for kept, path in zip(archive.received, (folder / "a.dcm", folder / "c.dcm"), strict=True):
            assert dcmread(kept.path) == dcmread(path)


def test_status_of_one_file_does_not_stop_the_others(tmp_path: Path) -> None:
    files = [
        scu.FileToSend(write(tmp_path / f"{n}.dcm", uid, f"1.2.{n}"), uid, f"1.2.{n}", EXPLICIT)
        for n, uid in enumerate((CT, MR, CT))
    ]
    for status, outcome in ((0xC000, "refused"), (0xA700, "unavailable"), (0xB000, "warning"), (0x1234, "unknown")):
        behaviour = Behaviour(statuses={str(MR): status})
        with Archive(tmp_path / f"archive{status}", behaviour=behaviour) as archive:
            sent = scu.send(at(archive.port), files, lambda each: None)
        assert [each.outcome for each in sent] == ["stored", outcome, "stored"]
        assert sent[1].status == status


def test_more_contexts_than_one_association_may_propose() -> None:
    """PS3.8 9.3.2.2: 128; the files are divided."""
    files = [scu.FileToSend(Path(), f"1.2.{n % 50}", "1", f"1.9.{n % 7}") for n in range(600)]
    groups = list(scu._by_contexts(files))
    assert [file for group in groups for file in group] == files
    for group in groups:
        wanted = {(f.sop_class_uid, uid) for f in group for uid in (f.transfer_syntax_uid, EXPLICIT, IMPLICIT)}
        assert len(wanted) <= 128


def test_results_are_fetched_by_get(archive: Archive, tmp_path: Path) -> None:
    """For the self-test: only the wanted classes come, under names that are ours (SEC-9)."""
    files = [
        (write(tmp_path / f"{n}.dcm", uid, f"1.2.{n}"), uid, f"1.2.{n}", EXPLICIT) for n, uid in enumerate((CT, MR, CT))
    ]
    scu.send(at(archive.port), files, lambda each: None)
    out = tmp_path / "out"
    out.mkdir()
    fetched = scu.fetch_by_get(at(archive.port), "1.2.3", [CT], out)
    assert sorted(str(dcmread(path).SOPInstanceUID) for path in fetched) == ["1.2.0", "1.2.2"]
    assert all(path.parent == out and len(path.stem) == 24 for path in fetched)
    one = scu.fetch_by_get(
        at(archive.port), "1.2.3", [MR], out, series_uid=str(dcmread(tmp_path / "1.dcm").SeriesInstanceUID)
    )
    assert {str(dcmread(path).SOPClassUID) for path in one} == {MR}


def test_peer_without_get(scripted: Callable[..., Destination], tmp_path: Path) -> None:
    with pytest.raises(PermanentlyRefused, match="C-GET"):
        scu.fetch_by_get(scripted(lambda event: 0), "1.2.3", [CT], tmp_path)


SEG, LABELMAP, RLE = (
    UID("1.2.840.10008.5.1.4.1.1.66.4"),
    UID("1.2.840.10008.5.1.4.1.1.66.7"),
    UID("1.2.840.10008.1.2.5"),
)
ENCODINGS = {str(LABELMAP): [str(RLE)], str(SEG): [str(EXPLICIT)]}


def taken(destination: Destination) -> dict[str, bool]:
    """What a peer takes of our SEG, as it is encoded."""
    with scu.Outbound(destination, [SEG, LABELMAP], ENCODINGS) as outbound:
        return {"binary": outbound.takes(SEG, EXPLICIT), "labelmap": outbound.takes(LABELMAP, RLE)}


@pytest.mark.parametrize(
    ("of_seg", "of_labelmap", "answers"),
    [
        ([EXPLICIT], [RLE], {"binary": True, "labelmap": True}),
        ([IMPLICIT], [RLE, EXPLICIT], {"binary": True, "labelmap": True}),
        ([EXPLICIT], [EXPLICIT, IMPLICIT], {"binary": True, "labelmap": False}),
        ([RLE], [RLE], {"binary": False, "labelmap": True}),
        ([EXPLICIT], [], {"binary": True, "labelmap": False}),
    ],
)
def test_what_a_peer_takes_is_asked_of_class_and_encoding(
    of_seg: list[UID], of_labelmap: list[UID], answers: dict[str, bool]
) -> None:
    """RES-2, RES-21: a LABELMAP is RLE, and frozen; where only another encoding was accepted, it cannot go."""
    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(SEG, of_seg)
    if of_labelmap:
        entity.add_supported_context(LABELMAP, of_labelmap)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    try:
        assert taken(at(server.server_address[1])) == answers
    finally:
        server.shutdown()


@pytest.mark.parametrize(("syntaxes", "labelmap"), [("+xr", True), ("+x=", False)])
def test_dcmtk_is_asked_the_same(tmp_path: Path, syntaxes: str, labelmap: bool) -> None:
    """NET-38 with storescp: it takes every class, and RLE only where it was told to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    peer = subprocess.Popen(["/usr/bin/storescp", "-pm", syntaxes, "-aet", "ARCHIVE", "-od", str(tmp_path), str(port)])
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                answers = taken(at(port))
                break
            except PeerUnavailable:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert answers == {"binary": True, "labelmap": labelmap}
    finally:
        peer.terminate()
        peer.wait(10)
