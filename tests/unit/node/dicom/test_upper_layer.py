"""PDUs, their caps and deadlines, the association phase, and command sets: SEC-2, NET-5, NET-15 to NET-17."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.dsutils import decode
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import build_context

from node.dicom.uids import IMPLEMENTATION_CLASS_UID
from node.dicom.upper_layer import (
    RELEASE_REPLY,
    STORAGE_COMMITMENT,
    AssociationEnded,
    Command,
    Context,
    End,
    Limits,
    Wire,
    abort_pdu,
    accept,
    decode_command,
    decode_request,
    encode_response,
    known_items,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT, IMPLICIT, JPEG_LS = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.4.80"
OURS = (Context(CT, (EXPLICIT, IMPLICIT, JPEG_LS)), Context(STORAGE_COMMITMENT, (EXPLICIT, IMPLICIT)))


def request(contexts: list[tuple[int, str, list[str]]], *items: object) -> bytes:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "SCANNER", "HILUM"
    built = []
    for context_id, abstract_syntax, syntaxes in contexts:
        built.append(build_context(abstract_syntax, syntaxes))
        built[-1].context_id = context_id
    primitive.presentation_context_definition_list = built
    length, class_uid = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, class_uid.implementation_class_uid = 16382, "1.2.3"
    primitive.user_information = [length, class_uid, *items]
    return A_ASSOCIATE_RQ(primitive).encode()


def with_user_item(raw: bytes, item: bytes) -> bytes:
    """Append a sub-item to the user information, which is the last item, and mend both lengths."""
    position = 74
    while raw[position] != 0x50:
        position += 4 + int.from_bytes(raw[position + 2 : position + 4], "big")
    length = int.from_bytes(raw[position + 2 : position + 4], "big") + len(item)
    raw = raw[: position + 2] + length.to_bytes(2, "big") + raw[position + 4 :] + item
    return raw[:2] + (len(raw) - 6).to_bytes(4, "big") + raw[6:]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs = server.accept()[0]
        with theirs:
            yield ours, theirs


def p_data(*values: tuple[int, int, bytes]) -> bytes:
    body = b"".join(struct.pack(">IBB", len(v) + 2, context, control) + v for context, control, v in values)
    return struct.pack(">BxI", 4, len(body)) + body


# --- the association request ---


def test_request_tells_titles_contexts_and_maximum() -> None:
    decoded = decode_request(request([(1, CT, [IMPLICIT, EXPLICIT])]))
    assert (decoded.calling, decoded.called, decoded.peer_maximum) == ("SCANNER", "HILUM", 16382)
    assert [(c.context_id, c.abstract_syntax) for c in decoded.contexts] == [(1, CT)]


def test_unknown_items_are_skipped_at_both_levels() -> None:
    """SEC-2: pynetdicom alone raises KeyError and aborts a valid peer (PS3.8 9.3.1)."""
    raw = with_user_item(request([(1, CT, [EXPLICIT])]), struct.pack(">BxH", 0x77, 4) + b"what")
    raw += struct.pack(">BxH", 0x99, 2) + b"xx"
    raw = raw[:2] + (len(raw) - 6).to_bytes(4, "big") + raw[6:]
    with pytest.raises(KeyError):
        A_ASSOCIATE_RQ().decode(raw)
    assert len(decode_request(raw).contexts) == 1


def test_our_order_chooses_the_transfer_syntax() -> None:
    """NET-5: exactly one for each context, Explicit first whatever the requestor's order is."""
    raw = request(
        [
            (1, CT, [JPEG_LS, IMPLICIT, EXPLICIT]),
            (3, CT, [JPEG_LS]),
            (5, CT, ["1.2.840.10008.1.2.2"]),
            (7, "1.2.3", [EXPLICIT]),
        ]
    )
    answer, contexts = accept(decode_request(raw), OURS, 131072)
    assert contexts == {1: (CT, EXPLICIT), 3: (CT, JPEG_LS)}
    pdu = A_ASSOCIATE_AC()
    pdu.decode(answer)
    assert {c.context_id: c.result for c in pdu.presentation_context} == {1: 0, 3: 0, 5: 4, 7: 3}
    primitive = pdu.to_primitive()
    assert primitive.maximum_length_received == 131072
    assert primitive.implementation_class_uid == IMPLEMENTATION_CLASS_UID


def test_no_asynchronous_operations_are_offered() -> None:
    """NET-17: the sub-item is left out, so that one operation at a time is agreed (PS3.7 D.3.3.3)."""
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 0
    answer, _ = accept(decode_request(request([(1, CT, [EXPLICIT])], window)), OURS, 131072)
    pdu = A_ASSOCIATE_AC()
    pdu.decode(answer)
    items = pdu.to_primitive().user_information
    assert not any(isinstance(item, AsynchronousOperationsWindowNegotiation) for item in items)


@pytest.mark.parametrize(("claims_scp", "accepted"), [(True, True), (False, False)])
def test_storage_commitment_is_taken_only_from_its_scp(claims_scp: bool, accepted: bool) -> None:
    """NET-26: we never commit; a report of what we asked for comes with role selection (PS3.4 J.3.3)."""
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = STORAGE_COMMITMENT, not claims_scp, claims_scp
    raw = request([(1, STORAGE_COMMITMENT, [EXPLICIT])], role)
    answer, contexts = accept(decode_request(raw), OURS, 131072)
    assert (1 in contexts) is accepted
    if accepted:
        pdu = A_ASSOCIATE_AC()
        pdu.decode(answer)
        replies = [i for i in pdu.to_primitive().user_information if isinstance(i, SCP_SCU_RoleSelectionNegotiation)]
        assert [(reply.scu_role, reply.scp_role) for reply in replies] == [(False, True)]
    without_role = decode_request(request([(1, STORAGE_COMMITMENT, [EXPLICIT])]))
    assert accept(without_role, OURS, 131072)[1] == {}


@pytest.mark.parametrize("title", [b" " * 16, b"\0" * 16, b"A\nB".ljust(16), b"\x1b[31m".ljust(16), b"A\\B".ljust(16)])
def test_unusable_ae_title_becomes_empty(title: bytes) -> None:
    """SEC-21: what could forge a log line is not an AE title; PS3.5 6.2 forbids it."""
    raw = request([(1, CT, [EXPLICIT])])
    assert decode_request(raw[:26] + title + raw[42:]).calling == ""
    assert decode_request(raw[:10] + title + raw[26:]).called == ""


def test_request_without_contexts_is_decoded() -> None:
    raw = request([(1, CT, [EXPLICIT])])
    context = raw.index(b"\x20\x00", 74)
    end = raw.index(b"\x50\x00", context)
    raw = raw[:context] + raw[end:]
    assert decode_request(raw[:2] + (len(raw) - 6).to_bytes(4, "big") + raw[6:]).contexts == ()


def test_even_and_doubled_context_ids_are_violations() -> None:
    raw = bytearray(request([(1, CT, [EXPLICIT]), (3, CT, [EXPLICIT])]))
    second = raw.index(b"\x20\x00", raw.index(b"\x20\x00", 74) + 4)
    for context_id in (1, 2):
        raw[second + 4] = context_id
        with pytest.raises(AssociationEnded) as caught:
            decode_request(bytes(raw))
        assert caught.value.abort == (2, 6)


@given(st.binary(max_size=400), st.integers(0, 400))
def test_damaged_request_is_a_violation_or_decodes(noise: bytes, where: int) -> None:
    """SEC-8: no bytes make the association phase raise anything else."""
    raw = request([(1, CT, [EXPLICIT, IMPLICIT]), (3, STORAGE_COMMITMENT, [IMPLICIT])])
    where = min(where, len(raw))
    damaged = raw[:where] + noise + raw[where + len(noise) :]
    try:
        decoded = decode_request(damaged.ljust(74, b"\0"))
        accept(decoded, OURS, 131072)
    except AssociationEnded as ended:
        assert ended.abort == (2, 6)


@given(st.binary(min_size=74, max_size=300))
def test_known_items_only_raises_value_error(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        known_items(raw)


# --- PDUs ---


def test_values_come_one_by_one_and_are_views(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(
        p_data((1, 3, b"command"), (1, 0, b"first")) + p_data((1, 2, b"last")) + RELEASE_REPLY.replace(b"\6", b"\5", 1)
    )
    wire = Wire(ours, Limits())
    got = [wire.next_pdv(5) for _ in range(4)]
    assert [(v.context_id, v.is_command, v.is_last, bytes(v.data)) for v in got if v] == [
        (1, True, True, b"command"),
        (1, False, False, b"first"),
        (1, False, True, b"last"),
    ]
    assert got[3] is None


def test_large_message_passes_through_the_buffer_unchanged(pair: tuple[socket.socket, socket.socket]) -> None:
    """Views are given back through `pause` before the buffer moves: 5 MB come out as they went in."""
    ours, theirs = pair
    sent = bytes(range(256)) * 20000
    pieces = [sent[i : i + 100_003] for i in range(0, len(sent), 100_003)]
    stream = b"".join(p_data((1, 2 if piece is pieces[-1] else 0, piece)) for piece in pieces)
    sender = threading.Thread(target=theirs.sendall, args=(stream,))
    sender.start()
    wire = Wire(ours, Limits())
    out, held = bytearray(), []

    def pause() -> None:
        for view in held:
            out.extend(view)
        held.clear()

    wire.pause = pause
    while True:
        value = wire.next_pdv(5)
        assert value is not None
        held.append(value.data)
        if value.is_last:
            break
    pause()
    sender.join()
    assert bytes(out) == sent
    assert wire.received == len(stream)


@pytest.mark.parametrize(
    ("stream", "abort"),
    [
        (struct.pack(">BxI", 4, 4097), (2, 6)),
        (struct.pack(">BxI", 5, 65) + bytes(65), (2, 6)),
        (struct.pack(">BxI", 9, 4) + bytes(4), (2, 1)),
        (struct.pack(">BxI", 2, 4) + bytes(4), (2, 2)),
        (struct.pack(">BxI", 4, 0), (2, 6)),
        (struct.pack(">BxIIBB", 4, 6, 100, 1, 0), (2, 6)),
        (struct.pack(">BxIIBB", 4, 6, 1, 1, 0), (2, 6)),
        (struct.pack(">BxI", 4, 5) + bytes(5), (2, 6)),
    ],
    ids=["over maximum", "long release", "unknown", "second AC", "no value", "value past PDU", "length 1", "cut value"],
)
def test_malformed_pdu_is_a_violation(
    pair: tuple[socket.socket, socket.socket], stream: bytes, abort: tuple[int, int]
) -> None:
    """NET-16: the cap plus one byte, and what PS3.8 9.3 does not allow."""
    ours, theirs = pair
    theirs.sendall(stream)
    with pytest.raises(AssociationEnded) as caught:
        Wire(ours, Limits(pdu_bytes=4096)).next_pdv(5)
    assert (caught.value.end, caught.value.abort) == (End.PROTOCOL, abort)


def test_pdu_of_just_the_maximum_is_taken(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(p_data((1, 0, bytes(4096 - 6))))
    value = Wire(ours, Limits(pdu_bytes=4096)).next_pdv(5)
    assert value is not None
    assert len(value.data) == 4090


def test_association_request_over_its_cap_is_not_read(pair: tuple[socket.socket, socket.socket]) -> None:
    """NET-16: 4 GiB announced before login cost 6 bytes."""
    ours, theirs = pair
    theirs.sendall(struct.pack(">BxI", 1, 0xFFFFFFFF))
    wire = Wire(ours, Limits())
    with pytest.raises(AssociationEnded):
        wire.read_request()
    assert wire.received == 6


def test_bytes_do_not_restart_the_deadline_of_a_pdu(pair: tuple[socket.socket, socket.socket]) -> None:
    """NET-15: one byte now and then keeps no slot."""
    ours, theirs = pair
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.1):
            try:
                theirs.sendall(b"\4")
            except OSError:
                return

    threading.Thread(target=drip).start()
    began = time.monotonic()
    with pytest.raises(AssociationEnded) as caught:
        Wire(ours, Limits(progress_s=0.6)).next_pdv(30)
    stop.set()
    assert caught.value.end in (End.TIMED_OUT, End.PROTOCOL)
    assert 0.05 < time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("limits", "sent"),
    [(Limits(handshake_s=0.5, artim_s=30), b""), (Limits(handshake_s=30, artim_s=0.5), b"\1\0\0\0\1\0rest")],
    ids=["silent", "half a request"],
)
def test_slow_request_is_dropped(pair: tuple[socket.socket, socket.socket], limits: Limits, sent: bytes) -> None:
    """NET-15: handshake and ARTIM."""
    ours, theirs = pair
    theirs.sendall(sent)
    began = time.monotonic()
    with pytest.raises(AssociationEnded) as caught:
        Wire(ours, limits).read_request()
    assert caught.value.end is End.TIMED_OUT
    assert time.monotonic() - began < 3


def test_silence_calls_pause_and_idle_ends(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    wire, calls = Wire(ours, Limits()), []
    wire.pause = lambda: calls.append(1)
    with pytest.raises(AssociationEnded) as caught:
        wire.next_pdv(1.5)
    assert caught.value.end is End.TIMED_OUT
    assert len(calls) >= 2


def test_end_of_file_and_abort_are_told_apart(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(abort_pdu(0, 0))
    wire = Wire(ours, Limits())
    with pytest.raises(AssociationEnded) as aborted:
        wire.next_pdv(5)
    theirs.close()
    with pytest.raises(AssociationEnded) as closed:
        wire.next_pdv(5)
    assert (aborted.value.end, closed.value.end) == (End.ABORTED_BY_PEER, End.DISCONNECTED)


def test_response_is_cut_to_what_the_peer_takes(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    command = bytes(range(200))
    Wire(ours, Limits()).send_values(5, command, 64)
    ours.close()
    stream, out, flags = theirs.makefile("rb").read(), b"", []
    while stream:
        length = int.from_bytes(stream[2:6], "big")
        assert length <= 64
        assert stream[10] == 5
        flags.append(stream[11])
        out, stream = out + stream[12 : 6 + length], stream[6 + length :]
    assert out == command
    assert flags == [1] * (len(flags) - 1) + [3]


# --- command sets ---


def command_set(*elements: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack("<HHI", 0, tag, len(value)) + value for tag, value in elements)


def test_command_set_is_read() -> None:
    data = command_set(
        (0x0000, bytes(4)),
        (0x0002, CT.encode() + b"\0"),
        (0x0100, b"\1\0"),
        (0x0110, b"\7\0"),
        (0x0800, b"\1\0"),
        (0x1000, b"1.2.3\0"),
        (0x1030, b"MOVER "),
    )
    assert decode_command(data) == Command(1, 7, CT, "1.2.3", True, 0, "MOVER")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        command_set((0x0110, b"\1\0")),
        command_set((0x0100, b"\1\0\0\0")),
        command_set((0x0100, b"\1\0")) + b"\0\0\0\0\xff\xff\xff\xff",
        b"\x08\0\x16\0\2\0\0\0aa",
    ],
    ids=["empty", "cut", "no field", "long field", "length past end", "other group"],
)
def test_broken_command_set_is_a_violation(data: bytes) -> None:
    with pytest.raises(AssociationEnded) as caught:
        decode_command(data)
    assert caught.value.abort == (2, 6)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_command_or_a_violation(data: bytes) -> None:
    with contextlib.suppress(AssociationEnded):
        decode_command(data)


def test_response_carries_status_comment_and_element() -> None:
    """NET-8: pynetdicom reads our response as we meant it."""
    encoded = encode_response(Command(1, 9, CT, "1.2.3", True, 0, ""), 0xC000, "x" * 80, 0x7FE00010)
    ds = decode(BytesIO(encoded), True, True)
    assert (ds.Status, ds.MessageIDBeingRespondedTo, ds.CommandField) == (0xC000, 9, 0x8001)
    assert (ds.AffectedSOPClassUID, ds.AffectedSOPInstanceUID) == (CT, "1.2.3")
    assert (ds.ErrorComment, ds.OffendingElement) == ("x" * 64, 0x7FE00010)
    assert ds.CommandGroupLength == len(encoded) - 12
