"""The listener against real peers and hostile ones: negotiation, statuses, closed list, limits, caps, deadlines."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.dsutils import decode
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import build_context

from node.dicom import scu
from node.dicom.scp import (
    AssociationClosed,
    AssociationRefused,
    EchoAnswered,
    End,
    EventReport,
    InstanceRefused,
    InstanceStored,
    Limits,
    Peer,
    Refusal,
    Scp,
    ScpEvent,
    SinkFactory,
    StoreRequest,
)
from node.dicom.storage_classes import COMPRESSED, HELD, PROCESSED, VERIFICATION, storage_contexts
from node.dicom.upper_layer import STORAGE_COMMITMENT
from node.domain.instance import CommitOutcome, KnownInstance, ReceivedInstance
from node.domain.job import Destination
from node.errors import OutOfResources, PeerUnavailable, PermanentlyRefused
from node.stations.receive import Receiver
from node.store.spool import INCOMING, Spool

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT, IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
ORDINARY = Limits()
SCANNER = Peer("scanner", "SCANNER", LOOPBACK, max_associations=100)


class Journal:
    """Rows in a list."""

    def __init__(self) -> None:
        self.rows: list[ReceivedInstance] = []

    def commit(self, instance: ReceivedInstance) -> CommitOutcome:
        self.rows.append(instance)
        return CommitOutcome.NEW

    def known(self, sop_instance_uid: str) -> tuple[KnownInstance, ...]:
        return tuple(
            KnownInstance(r.path, r.length, r.crc32) for r in self.rows if r.sop_instance_uid == sop_instance_uid
        )


@dataclass
class Listener:
    """A running listener and what it kept and told."""

    scp: Scp
    spool: Spool
    journal: Journal
    events: list[ScpEvent] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.scp.port

    def destination(self, calling: str = "SCANNER") -> Destination:
        return Destination("hilum", "HILUM", "127.0.0.1", self.port, calling, network_timeout_s=10)

    def of(self, kind: type[ScpEvent]) -> list[ScpEvent]:
        return [event for event in self.events if isinstance(event, kind)]

    def files(self) -> set[Path]:
        """Files that hold bytes."""
        return {path for path in (self.spool.folder / INCOMING).iterdir() if path.stat().st_size}

    def wait_for(self, condition: Callable[[], object], seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "in vain"
            time.sleep(0.01)


Start = Callable[..., Listener]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start listeners; each ends with the test."""
    running: list[tuple[Listener, threading.Thread]] = []

    def run(
        limits: Limits = ORDINARY,
        peers: Sequence[Peer] = (SCANNER,),
        decodable: Sequence[str] = tuple(COMPRESSED),
        sink_factory: SinkFactory | None = None,
        reserve_bytes: int = 0,
        on_event_report: Callable[[EventReport], int] | None = None,
    ) -> Listener:
        spool, journal, events = Spool(tmp_path / f"spool{len(running)}", reserve_bytes), Journal(), []
        scp = Scp(
            "127.0.0.1",
            0,
            ["HILUM", "HILUM2"],
            peers,
            limits,
            contexts=storage_contexts(decodable, commitment_reports=on_event_report is not None),
            sink_factory=sink_factory or Receiver(spool, journal).open,
            observer=events.append,
            on_event_report=on_event_report,
        )
        thread = threading.Thread(target=scp.serve_forever)
        thread.start()
        running.append((Listener(scp, spool, journal, events), thread))
        return running[-1][0]

    yield run
    for listener, thread in running:
        listener.scp.stop(0)
        thread.join(10)
        assert not thread.is_alive()
        listener.spool.close()


# --- a client that can do wrong ---------------------------------------------------------------------------------------


def associate_rq(
    contexts: Sequence[tuple[int, str, Sequence[str]]],
    calling: str = "SCANNER",
    called: str = "HILUM",
    roles: object = (),
) -> bytes:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    built = []
    for context_id, abstract_syntax, syntaxes in contexts:
        built.append(build_context(abstract_syntax, list(syntaxes)))
        built[-1].context_id = context_id
    primitive.presentation_context_definition_list = built
    length, class_uid = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, class_uid.implementation_class_uid = 16384, "1.2.3"
    primitive.user_information = [length, class_uid, *roles]
    return A_ASSOCIATE_RQ(primitive).encode()


def command_set(**fields: int | str) -> bytes:
    tags = {
        "sop_class": 0x0002, "field": 0x0100, "message": 0x0110, "responding": 0x0120, "priority": 0x0700,
        "data_set": 0x0800, "instance": 0x1000, "event_type": 0x1002,
    }  # fmt: skip
    body = b""
    for name, value in sorted(fields.items(), key=lambda pair: tags[pair[0]]):
        raw = struct.pack("<H", value) if isinstance(value, int) else value.encode("latin-1")
        raw += b"\0" * (len(raw) % 2)
        body += struct.pack("<HHI", 0, tags[name], len(raw)) + raw
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def p_data(context_id: int, data: bytes, command: bool = False, last: bool = True) -> bytes:
    return struct.pack(">BxIIBB", 4, len(data) + 6, len(data) + 2, context_id, command + 2 * last) + data


class Client:
    """A socket and the PDUs that a test wants to send, right or wrong."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def associate(
        self, contexts: Sequence[tuple[int, str, Sequence[str]]] = ((1, CT, (EXPLICIT,)),), **more: object
    ) -> A_ASSOCIATE:
        self.sock.sendall(associate_rq(contexts, **more))
        kind, body = self.read()
        assert kind == 2, (kind, body)
        pdu = A_ASSOCIATE_AC()
        pdu.decode(struct.pack(">BxI", kind, len(body)) + body)
        return pdu.to_primitive()

    def read(self) -> tuple[int, bytes]:
        """Return type and body of the next PDU; (0, b"") where the connection ended."""
        head = self._exactly(6)
        if len(head) < 6:
            return 0, b""
        kind, length = struct.unpack(">BxI", head)
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                more = self.sock.recv(count - len(data))
            except ConnectionResetError:
                return data
            if not more:
                return data
            data += more
        return data

    def answer(self) -> Dataset:
        kind, body = self.read()
        assert kind == 4, (kind, body)
        return decode(BytesIO(body[6:]), True, True)

    def store(
        self, data: bytes, uid: str = "1.2.3.4", context_id: int = 1, sop_class: str = CT, piece: int = 16000
    ) -> Dataset:
        self.sock.sendall(self.store_rq(uid, context_id, sop_class))
        pieces = [data[i : i + piece] for i in range(0, len(data), piece)] or [b""]
        for number, part in enumerate(pieces, start=1):
            self.sock.sendall(p_data(context_id, part, last=number == len(pieces)))
        return self.answer()

    def store_rq(self, uid: str = "1.2.3.4", context_id: int = 1, sop_class: str = CT) -> bytes:
        return p_data(
            context_id,
            command_set(sop_class=sop_class, field=1, message=7, priority=0, data_set=1, instance=uid),
            command=True,
        )

    def echo(self, context_id: int = 1) -> Dataset:
        self.sock.sendall(
            p_data(context_id, command_set(sop_class=VERIFICATION, field=0x30, message=1, data_set=0x101), command=True)
        )
        return self.answer()

    def release(self) -> int:
        self.sock.sendall(struct.pack(">BxIxxxx", 5, 4))
        return self.read()[0]


def data_set(uid: str = "1.2.3.4", sop_class: str = CT, pixels: int = 64, **more: object) -> bytes:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid
    ds.PatientID, ds.PatientName = "CANARY-4711", "CANARY^DOE"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.5"
    ds.Rows = ds.Columns = 8
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    ds.PixelData = bytes(pixels)
    ds["PixelData"].VR = "OW"
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = False, True
    write_dataset(out, ds)
    return out.getvalue()


def write_file(path: Path, sop_class: str, uid: str) -> None:
    ds = dcmread(BytesIO(bytes(128) + b"DICM" + _meta(sop_class, uid) + data_set(uid, sop_class)))
    ds.save_as(path)


def _meta(sop_class: str, uid: str) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(uid)
    meta.TransferSyntaxUID, meta.ImplementationClassUID = UID(EXPLICIT), UID("1.2.3")
    meta.FileMetaInformationVersion, meta.FileMetaInformationGroupLength = b"\0\1", 0
    from pydicom.filewriter import write_file_meta_info

    out = BytesIO()
    write_file_meta_info(out, meta)
    return out.getvalue()


def received_bytes(row: ReceivedInstance) -> bytes:
    return row.path.read_bytes()[-row.length :]


# --- negotiation (NET-5, NET-6, NET-17) -------------------------------------------------------------------------------

MATRIX = [
    ((CT, [EXPLICIT]), (0, EXPLICIT)),
    ((CT, [IMPLICIT]), (0, IMPLICIT)),
    ((CT, [IMPLICIT, EXPLICIT]), (0, EXPLICIT)),
    ((CT, [JPEG_LS, IMPLICIT]), (0, IMPLICIT)),
    ((CT, [JPEG_2000, JPEG_LS]), (0, JPEG_LS)),
    ((CT, [BIG_ENDIAN]), (4, None)),
    ((CT, ["1.2.840.10008.1.2.1.99"]), (4, None)),
    ((CT, [BIG_ENDIAN, IMPLICIT]), (0, IMPLICIT)),
    ((VERIFICATION, [IMPLICIT]), (0, IMPLICIT)),
    ((VERIFICATION, [JPEG_LS]), (4, None)),
    (("1.2.840.10008.5.1.4.1.2.2.1", [IMPLICIT]), (3, None)),
    (("1.3.12.2.1107.5.9.1", [IMPLICIT]), (3, None)),
    ((STORAGE_COMMITMENT, [IMPLICIT]), (3, None)),
]


def test_negotiation_matrix(start: Start) -> None:
    """NET-5: one transfer syntax for each context by our order; 3 for the class, 4 for the syntaxes refused."""
    listener = start()
    with Client(listener.port) as client:
        proposed = [(2 * n + 1, *proposal) for n, (proposal, _) in enumerate(MATRIX)]
        answer = client.associate(proposed)
        results = {c.context_id: c for c in answer.presentation_context_definition_results_list}
        for n, (proposal, (result, syntax)) in enumerate(MATRIX):
            context = results[2 * n + 1]
            assert context.result == result, proposal
            if syntax:
                assert context.transfer_syntax == [syntax], proposal
        assert client.release() == 6


def test_128_contexts_and_every_class(start: Start) -> None:
    """NET-5, NET-7: all of table 1.1 at once, both uncompressed syntaxes, the request filled up to 128 contexts."""
    classes = (VERIFICATION, *PROCESSED, *HELD)
    proposals = [(uid, [syntax]) for uid in classes for syntax in (EXPLICIT, IMPLICIT)]
    proposals += [(CT, [EXPLICIT])] * (128 - len(proposals))
    listener = start()
    with Client(listener.port) as client:
        answer = client.associate([(2 * n + 1, *proposal) for n, proposal in enumerate(proposals)])
        results = answer.presentation_context_definition_results_list
        assert [c.result for c in results] == [0] * 128
        assert answer.maximum_length_received == 131072


@pytest.mark.parametrize("decodable", [(), (JPEG_LS,)])
def test_only_proven_decoders_are_offered(start: Start, decodable: tuple[str, ...]) -> None:
    """NET-6."""
    listener = start(decodable=decodable)
    with Client(listener.port) as client:
        answer = client.associate([(1, CT, [JPEG_LS]), (3, CT, [JPEG_2000])])
        results = [c.result for c in answer.presentation_context_definition_results_list]
    assert results == [0 if uid in decodable else 4 for uid in (JPEG_LS, JPEG_2000)]


def test_request_without_contexts_is_rejected(start: Start) -> None:
    raw = associate_rq([(1, CT, [EXPLICIT])])
    context, user = raw.index(b"\x20\0", 74), raw.index(b"\x50\0", 74)
    raw = raw[:context] + raw[user:]
    with Client(start().port) as client:
        client.sock.sendall(raw[:2] + struct.pack(">I", len(raw) - 6) + raw[6:])
        assert client.read() == (3, b"\0\1\1\1")


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda raw: raw[:6] + b"\0\2" + raw[8:], b"\0\1\2\2"),
        (lambda raw: raw.replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.9"), b"\0\1\1\2"),
        (lambda raw: raw[:26] + b" " * 16 + raw[42:], b"\0\1\1\3"),
        (lambda raw: raw[:10] + b" " * 16 + raw[26:], b"\0\1\1\7"),
    ],
    ids=["protocol version", "application context", "empty calling", "empty called"],
)
def test_rejected_for_its_header(start: Start, change: Callable[[bytes], bytes], answer: bytes) -> None:
    """PS3.8 table 9-21; an empty AE title makes pynetdicom raise and abort."""
    with Client(start().port) as client:
        client.sock.sendall(change(associate_rq([(1, CT, [EXPLICIT])])))
        assert client.read() == (3, answer)


# --- closed list (NET-13, SEC-20, SEC-21) -----------------------------------------------------------------------------


@pytest.mark.parametrize("right_calling", [True, False])
@pytest.mark.parametrize("right_called", [True, False])
@pytest.mark.parametrize("right_address", [True, False])
def test_closed_list(start: Start, right_calling: bool, right_called: bool, right_address: bool) -> None:
    """NET-13: called AE title, calling AE title and address must be right together; eight combinations."""
    networks = LOOPBACK if right_address else (ipaddress.ip_network("10.0.0.0/8"),)
    listener = start(peers=[Peer("scanner", "SCANNER", networks, called_ae_titles=("HILUM",))])
    calling = "SCANNER" if right_calling else "scanner"
    called = "HILUM" if right_called else "HILUM2"
    with Client(listener.port) as client:
        client.sock.sendall(associate_rq([(1, CT, [EXPLICIT])], calling, called))
        kind, body = client.read()
    if right_calling and right_called and right_address:
        assert kind == 2
        return
    known = right_calling and right_address
    assert (kind, body) == (3, b"\0\1\1\7" if known else b"\0\1\1\3")
    listener.wait_for(lambda: listener.of(AssociationRefused))
    refused = AssociationRefused(calling, called, "127.0.0.1", Refusal.CALLED if known else Refusal.PEER)
    assert listener.of(AssociationRefused) == [refused]


def test_spaces_around_ae_titles_do_not_count(start: Start) -> None:
    with Client(start().port) as client:
        raw = associate_rq([(1, CT, [EXPLICIT])])
        client.sock.sendall(raw[:10] + b"  HILUM".ljust(16) + b" SCANNER".ljust(16) + raw[42:])
        assert client.read()[0] == 2


def test_two_addresses_of_one_title_are_two_peers(start: Start) -> None:
    far = Peer("far", "SCANNER", (ipaddress.ip_network("10.1.0.0/16"),))
    listener = start(peers=[far, replace(SCANNER, name="near")])
    with Client(listener.port) as client:
        client.associate()
        client.store(data_set())
    assert listener.journal.rows[0].sender.alias == "near"


def test_log_shows_who_was_refused_and_nothing_that_a_stranger_can_forge(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """SEC-21: an AE title with a newline is no AE title; the log offers the line to add for an ordinary one."""
    caplog.set_level(logging.INFO)
    listener = start()
    for title in (b"A\nadmin logged", b"STRANGER"):
        with Client(listener.port) as client:
            raw = associate_rq([(1, CT, [EXPLICIT])])
            client.sock.sendall(raw[:26] + title.ljust(16)[:16] + raw[42:])
            assert client.read() == (3, b"\0\1\1\3")
    listener.wait_for(lambda: len(listener.of(AssociationRefused)) == 2)
    records = [record for record in caplog.records if record.msg == "association_refused"]
    assert [record.calling_ae_title for record in records] == ["", "STRANGER"]
    (peer,) = tomllib.loads(records[1].line)["peer"]
    assert peer == {"name": "stranger", "ae_title": "STRANGER", "addresses": ["127.0.0.1"]}


def test_log_offers_the_new_address_of_a_known_peer(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """NET-13: a second [[peer]] of the same name would stop the node from starting."""
    caplog.set_level(logging.INFO)
    listener = start(peers=[replace(SCANNER, name="ct", addresses=(ipaddress.ip_network("10.1.0.0/16"),))])
    with Client(listener.port) as client:
        client.sock.sendall(associate_rq([(1, CT, [EXPLICIT])]))
        assert client.read() == (3, b"\0\1\1\3")
    listener.wait_for(lambda: len(listener.of(AssociationRefused)) == 1)
    (record,) = [record for record in caplog.records if record.msg == "association_refused"]
    assert tomllib.loads(record.line) == {}
    assert 'addresses = ["10.1.0.0/16", "127.0.0.1"]' in record.line


def test_nothing_of_the_patient_in_events_and_logs(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """SEC-20: a canary in the data set appears in no log line, event or comment, refused or not."""
    caplog.set_level(logging.DEBUG)

    def broken(request: StoreRequest) -> object:
        raise RuntimeError("CANARY^DOE is in this exception")

    for listener in (start(), start(sink_factory=broken)):
        with Client(listener.port) as client:
            client.associate()
            answers = [client.store(data_set()), client.store(data_set()[:-3]), client.store(data_set("1.2.9"))]
        assert "CANARY" not in "".join(str(answer) for answer in answers)
        assert "CANARY" not in "".join(repr(event) for event in listener.events)
    told = "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert "CANARY" not in told
    assert "RuntimeError" in told


# --- C-STORE statuses (table 1.3, NET-8, NET-9, NET-11) ---------------------------------------------------------------


def test_stored_bytes_are_the_bytes_sent(start: Start) -> None:
    """NET-3, NET-41."""
    listener, data = start(), data_set(pixels=3_000_000)
    with Client(listener.port) as client:
        client.associate()
        answer = client.store(data, piece=50_001)
        assert (answer.Status, answer.MessageIDBeingRespondedTo, answer.AffectedSOPInstanceUID) == (0, 7, "1.2.3.4")
        assert client.release() == 6
    row = listener.journal.rows[0]
    assert received_bytes(row) == data
    assert (row.sender.alias, row.sender.address, row.transfer_syntax_uid) == ("scanner", "127.0.0.1", EXPLICIT)
    listener.wait_for(lambda: listener.of(AssociationClosed))
    stored = listener.of(InstanceStored)[0]
    assert (stored.kind, stored.length, stored.series_instance_uid) == ("kept", len(data), "1.2.3.5")
    closed = listener.of(AssociationClosed)[0]
    assert (closed.end, closed.stored, closed.received_bytes > len(data)) == (End.RELEASED, 1, True)


def test_a_slow_senders_bytes_are_not_our_time(start: Start) -> None:
    """OBS-1: what the store histogram is told begins with the last byte, as its alert says."""
    listener, data = start(), data_set()
    with Client(listener.port) as client:
        client.associate()
        client.sock.sendall(client.store_rq() + p_data(1, data[:100], last=False))
        time.sleep(1.5)
        client.sock.sendall(p_data(1, data[100:]))
        assert client.answer().Status == 0
    listener.wait_for(lambda: listener.of(InstanceStored))
    assert listener.of(InstanceStored)[0].seconds < 1.0


STATUSES = [
    ("truncated pixel data", data_set()[:-5], "1.2.3.4", CT, 0xC000),
    ("other instance", data_set("1.2.9"), "1.2.3.4", CT, 0xA900),
    ("other class in the data set", data_set(sop_class=MR), "1.2.3.4", CT, 0xA900),
    ("class is not the context's", data_set(sop_class=MR), "1.2.3.4", MR, 0xA900),
    ("path as UID", data_set(), "../../../../tmp/evil", CT, 0x0117),
    ("long UID", data_set(), "1." + "2" * 63, CT, 0x0117),
    ("garbage", b"\xde\xad\xbe\xef" * 100, "1.2.3.4", CT, 0xC000),
    ("no bytes", b"", "1.2.3.4", CT, 0xC000),
]


@pytest.mark.parametrize(
    ("data", "uid", "sop_class", "status"), [row[1:] for row in STATUSES], ids=[row[0] for row in STATUSES]
)
def test_status_of_a_wrong_object(start: Start, data: bytes, uid: str, sop_class: str, status: int) -> None:
    """NET-8, NET-11: the row's status with a comment of ours, nothing kept, and the association goes on."""
    listener = start()
    with Client(listener.port) as client:
        client.associate()
        answer = client.store(data, uid, sop_class=sop_class)
        assert answer.Status == status
        assert 0 < len(answer.ErrorComment) <= 64
        assert client.store(data_set()).Status == 0
        assert client.echo().Status == 0
    assert len(listener.files()) == len(listener.journal.rows) == 1
    assert [event.status for event in listener.of(InstanceRefused)] == [status]


def test_storing_by_verification_is_refused(start: Start) -> None:
    listener = start()
    with Client(listener.port) as client:
        client.associate([(1, VERIFICATION, [EXPLICIT])])
        assert client.store(data_set(sop_class=VERIFICATION), sop_class=VERIFICATION).Status == 0x0122


@pytest.mark.parametrize(
    "error", [OSError(28, "full"), OutOfResources("storage is full"), RuntimeError("bug"), MemoryError()]
)
@pytest.mark.parametrize("where", ["open", "write", "finish"])
def test_whatever_fails_is_worth_another_try(start: Start, error: Exception, where: str) -> None:
    """NET-9: A700, also in mid-object: the rest is read, then answered; C-ECHO always works (NET-1)."""
    discarded: list[bool] = []

    class Failing:
        series_instance_uid = ""

        def __init__(self, request: StoreRequest) -> None:
            self.fail("open")

        def fail(self, place: str) -> None:
            if place == where:
                raise error

        def write(self, fragments: object) -> None:
            self.fail("write")

        def peek(self) -> None:
            pass

        def finish(self) -> None:
            self.fail("finish")

        def discard(self) -> None:
            discarded.append(True)

    listener = start(sink_factory=Failing)
    with Client(listener.port) as client:
        client.associate()
        assert client.store(data_set(pixels=2_500_000)).Status == 0xA700
        assert client.echo().Status == 0
        assert client.release() == 6
    assert discarded == ([] if where == "open" else [True])


def test_full_spool_answers_a700_and_echo_still_works(start: Start) -> None:
    """NET-1, NET-10: the hard mark stops storing, not answering."""
    listener = start(reserve_bytes=1 << 60)
    with Client(listener.port) as client:
        client.associate()
        answer = client.store(data_set())
        assert (answer.Status, answer.ErrorComment) == (0xA700, "storage is full")
        assert client.echo().Status == 0
        listener.wait_for(lambda: listener.of(EchoAnswered))  # told after it is answered


def test_other_command_and_cancel(start: Start) -> None:
    """0211 for what is no service of ours, its data set read away; C-CANCEL is ignored."""
    with Client(start().port) as client:
        client.associate()
        client.sock.sendall(
            p_data(1, command_set(sop_class=CT, field=0x20, message=3, priority=0, data_set=1), command=True)
        )
        client.sock.sendall(p_data(1, b"\x08\0\x52\0CS\6\0STUDY "))
        answer = client.answer()
        assert (answer.Status, answer.CommandField, answer.MessageIDBeingRespondedTo) == (0x0211, 0x8020, 3)
        client.sock.sendall(p_data(1, command_set(field=0x0FFF, responding=3, data_set=0x101), command=True))
        assert client.echo().Status == 0


def test_fragments_of_every_size(start: Start) -> None:
    """Command and data set in pieces of one byte, and several values in one PDU."""
    listener, data = start(), data_set()
    with Client(listener.port) as client:
        client.associate()
        command = command_set(sop_class=CT, field=1, message=7, priority=0, data_set=1, instance="1.2.3.4")
        for n in range(len(command)):
            client.sock.sendall(p_data(1, command[n : n + 1], command=True, last=n == len(command) - 1))
        for n in range(len(data)):
            client.sock.sendall(p_data(1, data[n : n + 1], last=n == len(data) - 1))
        assert client.answer().Status == 0
        values = struct.pack(">IBB", len(command) + 2, 1, 3) + command
        values += struct.pack(">IBB", 102, 1, 0) + data[:100] + struct.pack(">IBB", len(data) - 98, 1, 2) + data[100:]
        client.sock.sendall(struct.pack(">BxI", 4, len(values)) + values)
        assert client.answer().Status == 0
    assert received_bytes(listener.journal.rows[0]) == data


# --- broken protocol --------------------------------------------------------------------------------------------------

CLIENT = Client.__new__(Client)
BROKEN: list[tuple[str, bytes]] = [
    ("data without command", p_data(1, b"x")),
    ("unaccepted context", p_data(3, command_set(field=0x30, message=1, data_set=0x101), command=True)),
    ("broken command set", p_data(1, b"\0\0\0", command=True)),
    ("no command field", p_data(1, command_set(message=1), command=True)),
    ("response without request", p_data(1, command_set(field=0x8001, responding=1, data_set=0x101), command=True)),
    ("no instance UID", p_data(1, command_set(sop_class=CT, field=1, message=1, data_set=1), command=True)),
    (
        "no data set",
        p_data(1, command_set(sop_class=CT, field=1, message=1, data_set=0x101, instance="1.2"), command=True),
    ),
    ("release in mid-object", CLIENT.store_rq() + struct.pack(">BxIxxxx", 5, 4)),
    ("command in mid-object", CLIENT.store_rq() + p_data(1, b"ab", last=False) + CLIENT.store_rq()),
    ("second request", associate_rq([(1, CT, [EXPLICIT])])),
    ("unknown PDU", struct.pack(">BxIxxxx", 0x55, 4)),
    ("PDU of 4 GiB", struct.pack(">BxI", 4, 0xFFFFFFFF)),
    ("maximum and one more", struct.pack(">BxI", 4, 131073)),
    ("command set over 64 KiB", b"".join(p_data(1, bytes(32768), command=True, last=False) for _ in range(3))),
]


@pytest.mark.parametrize("stream", [row[1] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_broken_protocol_is_aborted_and_leaves_nothing(start: Start, stream: bytes) -> None:
    """Research 3.3 and NET-16: A-ABORT by the provider, no file, and the next peer is served."""
    listener = start()
    with Client(listener.port) as client:
        client.associate()
        client.sock.sendall(stream)
        kind, body = client.read()
        assert (kind, body[2]) == (7, 2)
        assert client.read()[0] == 0
    listener.wait_for(lambda: listener.of(AssociationClosed))
    assert listener.of(AssociationClosed)[0].end is End.PROTOCOL
    assert listener.files() == set()
    scu.echo(listener.destination())


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">BxI", 1, 262145),
        struct.pack(">BxI", 1, 0xFFFFFFFF),
        p_data(1, b"x"),
        bytes(20),
    ],
    ids=["http", "request cap and one more", "request of 4 GiB", "data first", "zeros"],
)
def test_stranger_before_the_association(start: Start, stream: bytes) -> None:
    listener = start()
    with Client(listener.port) as client:
        client.sock.sendall(stream)
        assert client.read()[0] in (0, 7)
    listener.wait_for(lambda: listener.of(AssociationRefused))
    assert listener.of(AssociationRefused)[0].reason is Refusal.PROTOCOL


def test_request_of_just_the_cap(start: Start) -> None:
    """NET-16: unknown items fill an honest request up to 256 KiB."""
    raw = associate_rq([(1, CT, [EXPLICIT])])
    while len(raw) - 6 < 262144:
        size = min(60000, 262144 - (len(raw) - 6) - 4)
        raw += struct.pack(">BxH", 0x77, size) + bytes(size)
    with Client(start().port) as client:
        client.sock.sendall(raw[:2] + struct.pack(">I", 262144) + raw[6:])
        assert client.read()[0] == 2


def test_object_cap_and_one_more(start: Start) -> None:
    """NET-16, SEC-4: over the cap C000, nothing kept, the association goes on."""
    data = data_set(pixels=2_000_000)
    for cap, status in ((len(data), 0), (len(data) - 1, 0xC000)):
        listener = start(Limits(object_bytes=cap))
        with Client(listener.port) as client:
            client.associate()
            assert client.store(data).Status == status
            assert client.echo().Status == 0
        assert len(listener.files()) == (1 if status == 0 else 0)


@pytest.mark.parametrize("ending", ["abort", "reset", "close"])
def test_peer_that_leaves_in_mid_object_leaves_nothing(start: Start, ending: str) -> None:
    """No temporary file with patient data stays behind."""
    listener = start()
    with Client(listener.port) as client:
        client.associate()
        client.sock.sendall(client.store_rq())
        for _ in range(20):
            client.sock.sendall(p_data(1, bytes(100_000), last=False))
        listener.wait_for(listener.files)
        if ending == "abort":
            client.sock.sendall(struct.pack(">BxIxxxx", 7, 4))
        elif ending == "reset":
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sock.close()
    listener.wait_for(lambda: listener.of(AssociationClosed))
    assert listener.of(AssociationClosed)[0].end is (End.ABORTED_BY_PEER if ending == "abort" else End.DISCONNECTED)
    assert listener.files() == set()
    assert listener.journal.rows == []


# --- deadlines and limits (NET-14, NET-15) ----------------------------------------------------------------------------

SHORT = Limits(handshake_s=0.5, artim_s=0.8, progress_s=0.8)


def dropped_after(client: Client, drip: bytes = b"") -> float:
    """Return how long the listener kept the connection; `drip` is sent byte for byte meanwhile."""
    began = time.monotonic()
    client.sock.settimeout(0.2)
    while time.monotonic() - began < 10:
        try:
            if drip:
                client.sock.sendall(drip[:1])
                drip = drip[1:]
            if not client.sock.recv(1000):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - began


@pytest.mark.parametrize("phase", ["silent", "half a request", "half a PDU", "slow bytes", "idle"])
def test_client_that_stalls_in_any_phase_is_dropped(start: Start, phase: str) -> None:
    """NET-15; bytes do not restart a deadline (SEC-2)."""
    listener = start(SHORT, peers=[replace(SCANNER, idle_s=0.8)])
    with Client(listener.port) as client:
        drip = b""
        if phase == "half a request":
            client.sock.sendall(associate_rq([(1, CT, [EXPLICIT])])[:50])
        elif phase != "silent":
            client.associate()
        if phase == "half a PDU":
            client.sock.sendall(client.store_rq() + p_data(1, bytes(1000))[:200])
        elif phase == "slow bytes":
            drip = p_data(1, bytes(1000), command=True)
        assert 0.3 < dropped_after(client, drip) < 5
    listener.wait_for(lambda: not listener.scp.activity().open_associations)
    assert listener.files() == set()


def test_idle_zero_waits_for_ever(start: Start) -> None:
    """Some modalities keep one association open all day."""
    listener = start(SHORT, peers=[replace(SCANNER, idle_s=0)])
    with Client(listener.port) as client:
        client.associate()
        time.sleep(2.5)
        assert client.echo().Status == 0


def test_50_half_open_clients_beside_a_good_sender(start: Start) -> None:
    """NET-14: silent, half a request, half a PDU; a good sender stores meanwhile without delay."""
    listener = start()
    bad = [Client(listener.port) for _ in range(50)]
    try:
        for n, client in enumerate(bad):
            if n % 3 == 1:
                client.sock.sendall(associate_rq([(1, CT, [EXPLICIT])])[:60])
            elif n % 3 == 2:
                client.associate()
                client.sock.sendall(client.store_rq() + p_data(1, bytes(5000))[:600])
        began = time.monotonic()
        with Client(listener.port) as good:
            good.associate()
            for n in range(20):
                uid = f"1.2.3.{n}"
                assert good.store(data_set(uid), uid).Status == 0
            assert good.release() == 6
        assert time.monotonic() - began < 5
        assert len(listener.journal.rows) == 20
    finally:
        for client in bad:
            client.sock.close()


def test_200_half_open_clients_do_not_keep_an_echo_out(start: Start) -> None:
    """NET-14: over the limit of an address the oldest half-open connection gives way."""
    listener = start(Limits(associations=64, per_address=32))
    bad = [Client(listener.port) for _ in range(200)]
    try:
        time.sleep(2)
        began = time.monotonic()
        with Client(listener.port) as good:
            good.associate([(1, VERIFICATION, [EXPLICIT])])
            assert good.echo().Status == 0
        assert time.monotonic() - began < 1
    finally:
        for client in bad:
            client.sock.close()


@pytest.mark.parametrize(
    ("limits", "peer"),
    [
        (Limits(associations=2), SCANNER),
        (Limits(per_address=2), SCANNER),
        (Limits(), replace(SCANNER, max_associations=2)),
    ],
    ids=["in all", "of an address", "of a peer"],
)
def test_limit_and_one_more(start: Start, limits: Limits, peer: Peer) -> None:
    """NET-14: RJ 2,3,2 is transient; the place is free again when one leaves."""
    listener = start(limits, peers=[peer])
    with Client(listener.port) as first, Client(listener.port) as second:
        first.associate()
        second.associate()
        with Client(listener.port) as third:
            third.sock.sendall(associate_rq([(1, CT, [EXPLICIT])]))
            assert third.read() == (3, b"\0\2\3\2")
        listener.wait_for(lambda: listener.of(AssociationRefused))
        assert listener.of(AssociationRefused)[0].reason is Refusal.LIMIT
        assert second.release() == 6
        listener.wait_for(lambda: listener.of(AssociationClosed))
        with Client(listener.port) as fourth:
            fourth.associate()


def test_connect_and_close_200_times(start: Start) -> None:
    """Probes of a load balancer cost no thread, and are not reported as strangers."""
    listener = start()
    for _ in range(200):
        socket.create_connection(("127.0.0.1", listener.port)).close()
    scu.echo(listener.destination())
    listener.wait_for(lambda: sum(t.name == "association" for t in threading.enumerate()) == 0)
    assert listener.of(AssociationRefused) == []


# --- draining (NET-37) ------------------------------------------------------------------------------------------------


def test_stop_lets_a_running_store_end_and_rejects_new_ones(start: Start) -> None:
    """NET-37, NET-1: RJ 2,3,1 for new; what runs is stored and answered; then the association is aborted."""
    listener = start()
    with Client(listener.port) as running, Client(listener.port) as idle:
        running.associate()
        idle.associate()
        data = data_set()
        running.sock.sendall(running.store_rq() + p_data(1, data[:50], last=False))
        time.sleep(0.2)
        listener.scp.stop(grace_s=20)
        with Client(listener.port) as late:
            late.sock.sendall(associate_rq([(1, CT, [EXPLICIT])]))
            assert late.read() == (3, b"\0\2\3\1")
        assert idle.read()[0] == 7
        running.sock.sendall(p_data(1, data[50:]))
        assert running.answer().Status == 0
        assert running.read()[0] == 7
    assert len(listener.journal.rows) == 1
    listener.wait_for(lambda: len(listener.of(AssociationClosed)) == 2)
    assert {event.end for event in listener.of(AssociationClosed)} == {End.DRAINED}


def test_stop_does_not_wait_longer_than_the_grace(start: Start) -> None:
    listener = start()
    with Client(listener.port) as client:
        client.associate()
        client.sock.sendall(client.store_rq() + p_data(1, b"xx", last=False))
        time.sleep(0.2)
        began = time.monotonic()
        listener.scp.stop(grace_s=0.5)
        assert client.read()[0] in (0, 7)
        assert time.monotonic() - began < 4
    assert listener.journal.rows == []


# --- activity for the heartbeat (ASM-2) -------------------------------------------------------------------------------


def test_activity_tells_series_in_flight_and_carried(start: Start) -> None:
    """A stall in mid-object is seen with the time of its last byte; later the association still carries the series."""
    listener = start()
    assert listener.scp.activity().arriving == ()
    with Client(listener.port) as client:
        client.associate()
        data = data_set()
        client.sock.sendall(client.store_rq() + p_data(1, data[:-10], last=False))
        sent_at = datetime.now(UTC)
        listener.wait_for(lambda: listener.scp.activity().arriving, 4)
        (arriving,) = listener.scp.activity().arriving
        assert (arriving.series_instance_uid, arriving.open_associations) == ("1.2.3.5", 1)
        assert arriving.last_byte_at is not None
        assert abs((arriving.last_byte_at - sent_at).total_seconds()) < 1
        client.sock.sendall(p_data(1, data[-10:]))
        assert client.answer().Status == 0
        (arriving,) = listener.scp.activity().arriving
        assert (arriving.open_associations, arriving.last_byte_at) == (1, None)
        assert client.release() == 6
    listener.wait_for(lambda: listener.scp.activity().open_associations == 0)
    assert listener.scp.activity().arriving == ()


# --- storage commitment reports ---------------------------------------------------------------------------------------


def test_commitment_report_comes_in_on_its_own_association(start: Start) -> None:
    """PS3.4 J.3.3: the peer proposes itself as SCP; N-EVENT-REPORT is handed on and answered."""
    reports: list[EventReport] = []

    def take(report: EventReport) -> int:
        reports.append(report)
        return 0

    listener = start(on_event_report=take)
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = STORAGE_COMMITMENT, False, True
    with Client(listener.port) as client:
        answer = client.associate([(1, STORAGE_COMMITMENT, [EXPLICIT])], roles=[role])
        assert answer.presentation_context_definition_results_list[0].result == 0
        fields = {"sop_class": STORAGE_COMMITMENT, "field": 0x100, "message": 5, "data_set": 1, "event_type": 1}
        client.sock.sendall(p_data(1, command_set(**fields, instance="1.2.840.10008.1.20.1.1"), command=True))
        client.sock.sendall(p_data(1, b"\x08\0\x95\x11UI\6\0", last=False) + p_data(1, b"1.2.3\0"))
        reply = client.answer()
        assert (reply.Status, reply.CommandField, reply.EventTypeID) == (0, 0x8100, 1)
    assert [(r.event_type, r.data[-6:], r.sender.alias) for r in reports] == [(1, b"1.2.3\0", "scanner")]


# --- real peers -------------------------------------------------------------------------------------------------------


def dcmtk(tool: str, listener: Listener, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [f"/usr/bin/{tool}", "-aet", "SCANNER", "-aec", "HILUM", "127.0.0.1", str(listener.port), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_dcmtk_echo(start: Start) -> None:
    listener = start()
    done = dcmtk("echoscu", listener, "--propose-pc", "128", "--propose-ts", "38")
    assert done.returncode == 0, done.stderr
    assert len(listener.of(EchoAnswered)) == 1


def test_dcmtk_sends_200_ct_and_what_is_not_ours(start: Start, tmp_path: Path) -> None:
    """NET-7: one refused object would stop dcmsend's whole job; 200 CT, a presentation state and a report end in 0."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for n in range(200):
        write_file(folder / f"ct{n}.dcm", CT, f"1.2.3.4.{n}")
    write_file(folder / "pr.dcm", "1.2.840.10008.5.1.4.1.1.11.1", "1.2.3.5.1")
    write_file(folder / "sr.dcm", "1.2.840.10008.5.1.4.1.1.88.33", "1.2.3.5.2")
    listener = start()
    done = dcmtk("dcmsend", listener, "--scan-directories", str(folder))
    assert done.returncode == 0, done.stderr
    kinds = [event.kind for event in listener.of(InstanceStored)]
    assert (kinds.count("kept"), kinds.count("held")) == (200, 2)


STORESCU_OPTIONS = {
    "1.2.840.10008.1.2.5": "--propose-rle",
    "1.2.840.10008.1.2.4.70": "--propose-lossless",
    "1.2.840.10008.1.2.4.80": "--propose-jls-lossless",
    "1.2.840.10008.1.2.4.81": "--propose-jls-lossy",
    "1.2.840.10008.1.2.4.90": "--propose-j2k-lossless",
    "1.2.840.10008.1.2.4.91": "--propose-j2k-lossy",
    "1.2.840.10008.1.2.4.50": "--propose-jpeg8",
    "1.2.840.10008.1.2.4.51": "--propose-jpeg12",
    "1.2.840.10008.1.2": "--propose-implicit",
    "1.2.840.10008.1.2.1": "--propose-little",
}


@pytest.mark.data
def test_real_files_in_every_transfer_syntax(start: Start, test_data: Path) -> None:
    """Table 1.2, NET-3: storescu sends one slice in each syntax; we keep the pixel data byte for byte."""
    sent = 0
    for path in sorted((test_data / "dicom-single" / "ct-one-slice-all-transfer-syntaxes").glob("*.dcm")):
        ds = dcmread(path)
        option = STORESCU_OPTIONS.get(str(ds.file_meta.TransferSyntaxUID))
        if option is None:
            continue
        listener = start()
        done = dcmtk("storescu", listener, option, str(path))
        assert done.returncode == 0, done.stderr
        (row,) = listener.journal.rows
        kept = dcmread(row.path)
        assert row.transfer_syntax_uid == ds.file_meta.TransferSyntaxUID
        assert kept.PixelData == ds.PixelData
        changed = {element.tag for element in ds if element.tag.element and kept.get(element.tag) != element}
        assert changed <= {0x7FE00010}  # storescu computes group lengths anew, and calls compressed pixels OB
        sent += 1
    assert sent == len(STORESCU_OPTIONS)


@pytest.mark.data
def test_real_compressed_files_by_dcmsend(start: Start, test_data: Path) -> None:
    """dcmsend takes each file's own transfer syntax; what has no context it reports, and sends the rest."""
    files = scu.files_to_send(test_data / "dicom-single" / "nema-wg04-CT2")[0]
    listener = start()
    dcmtk(
        "dcmsend", listener, "--no-halt", "--no-uid-checks", "--decompress-never", *(str(file.path) for file in files)
    )
    pixels = {dcmread(file.path).PixelData for file in files if _is_offered(file)}
    kept = [dcmread(row.path) for row in listener.journal.rows]
    assert len(kept) == len([file for file in files if _is_offered(file)])
    assert {ds.PixelData for ds in kept} == pixels


@pytest.mark.data
def test_our_own_sender_changes_no_byte(start: Start, test_data: Path) -> None:
    """`hilum send`: data set bytes go from file to file unchanged, whatever the transfer syntax."""
    files, others = scu.files_to_send(test_data / "dicom-single" / "ct-one-slice-all-transfer-syntaxes")
    listener = start()
    told: list[scu.Sent] = []
    for file in files:  # the same SOP Instance UID in each syntax: other bytes, all of them kept
        told += scu.send(listener.destination(), [file], lambda sent: None) if _is_offered(file) else ()
    assert others == ()
    assert {sent.outcome for sent in told} == {"stored"}
    for sent, row in zip(told, listener.journal.rows, strict=True):
        assert sent.path.read_bytes().endswith(received_bytes(row))


def _is_offered(file: scu.FileToSend) -> bool:
    return file.transfer_syntax_uid in {*COMPRESSED, EXPLICIT, IMPLICIT}


def test_pynetdicom_stores_and_reads_refusals(start: Start, tmp_path: Path) -> None:
    write_file(tmp_path / "ct.dcm", CT, "1.2.3.4")
    listener = start()
    entity = AE(ae_title="SCANNER")
    entity.add_requested_context(CT, EXPLICIT)
    association = entity.associate("127.0.0.1", listener.port, ae_title="HILUM")
    assert association.is_established
    assert association.send_c_store(dcmread(tmp_path / "ct.dcm")).Status == 0
    association.release()
    refused = entity.associate("127.0.0.1", listener.port, ae_title="OTHER")
    assert refused.is_rejected
    assert refused.acceptor.primitive.diagnostic == 7


def test_sender_reads_our_refusals(start: Start, tmp_path: Path) -> None:
    """NET-23, NET-38: probe, permanent refusal, transient one, nobody there."""
    listener = start()
    destination = listener.destination()
    assert scu.probe(destination, [CT, "1.2.3"]) == {CT}
    assert scu.probe(destination, ["1.2.3"]) == frozenset()
    write_file(tmp_path / "ct.dcm", CT, "1.2.3.4")
    with scu.Outbound(destination, [CT]) as outbound:
        assert outbound.accepted == {CT}
        assert outbound.store(tmp_path / "ct.dcm") == 0
        whole = (tmp_path / "ct.dcm").read_bytes()
        (tmp_path / "cut.dcm").write_bytes(whole[:-3])
        with pytest.raises(PermanentlyRefused, match="C000"):
            outbound.store(tmp_path / "cut.dcm")
        write_file(tmp_path / "mr.dcm", MR, "1.2.3.4")
        with pytest.raises(PermanentlyRefused, match="context"):
            outbound.store(tmp_path / "mr.dcm")
    full = start(reserve_bytes=1 << 60).destination()
    with scu.Outbound(full, [CT]) as outbound, pytest.raises(PeerUnavailable, match="A700"):
        outbound.store(tmp_path / "ct.dcm")
    for nowhere in (replace(destination, port=1), replace(destination, ae_title="WRONG")):
        with pytest.raises(PeerUnavailable):
            scu.echo(nowhere)


# --- memory -----------------------------------------------------------------------------------------------------------

SERVER = """
import ipaddress, sys
from pathlib import Path
from node.dicom.scp import Limits, Peer, Scp
from node.dicom.storage_classes import storage_contexts
from node.domain.instance import CommitOutcome
from node.stations.receive import Receiver
from node.store.spool import Spool

class Journal:
    def commit(self, instance): return CommitOutcome.NEW
    def known(self, uid): return ()

peer = Peer("scanner", "SCANNER", (ipaddress.ip_network("127.0.0.0/8"),), max_associations=200)
spool = Spool(Path(sys.argv[1]), 0)
scp = Scp("127.0.0.1", 0, ["HILUM"], [peer], Limits(), contexts=storage_contexts(()),
          sink_factory=Receiver(spool, Journal()).open, observer=lambda event: None)
print(scp.port, flush=True)
scp.serve_forever()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A listener in a process of its own: its pid and port."""
    command = [sys.executable, "-c", SERVER, str(tmp_path / "spool")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."}) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.kill()


def memory_kb(pid: int, what: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search(rf"{what}:\s+(\d+)", text)[1])


def test_memory_does_not_grow_with_the_object(server: tuple[int, int]) -> None:
    """SEC-3: 100 MB in one object, less than 8 MB over idle, at its peak."""
    pid, port = server
    with Client(port) as client:
        client.associate()
        assert client.store(data_set("1.2.1"), "1.2.1").Status == 0
        before = memory_kb(pid, "VmHWM")
        assert client.store(data_set(pixels=100_000_000), piece=131066).Status == 0
    assert memory_kb(pid, "VmHWM") - before < 8192


def test_100_idle_associations_cost_little(server: tuple[int, int]) -> None:
    """Research section 9: 20 MB, and no polling."""
    pid, port = server
    with Client(port) as first:
        first.associate()
        before = memory_kb(pid, "VmRSS")
        clients = [Client(port) for _ in range(99)]
        for client in clients:
            client.associate()
        began = _cpu_seconds(pid)
        time.sleep(2)
        used = _cpu_seconds(pid) - began
        grown = memory_kb(pid, "VmRSS") - before
        for client in clients:
            client.sock.close()
    assert grown < 20480
    assert used < 0.2


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
