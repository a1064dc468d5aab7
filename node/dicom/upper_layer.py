"""The DICOM upper layer of the listener: PDUs with caps and deadlines, the association phase, command sets.

Reads block with a timeout of one second, which is the clock of every deadline; nothing polls and nothing uses `select`.
A data set is never copied on its way: fragments are views into the read buffer. pynetdicom decodes and encodes the
association PDUs and negotiates; P-DATA does not pass through it (PS3.8 9.3).
"""

from __future__ import annotations

import logging
import math
import mmap
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext, build_context, negotiate_as_acceptor

from node.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.errors import HilumError

logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # its words are a stranger's; what matters we say

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
_SHORT_PDU = 64
"""Cap for release and abort PDUs, whose length is 4."""
_BUFFER = 1 << 20
_HEADER = struct.Struct(">BxI")
_PDV = struct.Struct(">IBB")
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)


@dataclass(frozen=True)
class Limits:
    """Caps and deadlines of the listener (NET-14, NET-15, NET-16); bytes and seconds."""

    associations: int = 200
    per_address: int = 100
    pdu_bytes: int = 131072
    """Advertised maximum of a P-DATA PDU, and the cap."""
    request_bytes: int = 262144
    command_bytes: int = 65536
    object_bytes: int = 4 << 30
    handshake_s: float = 10.0
    """To the first byte of the request, and for the TLS handshake."""
    artim_s: float = 30.0
    """To the last byte of the request; bytes do not restart it."""
    progress_s: float = 60.0
    """From the first byte of any other PDU to its last; bytes do not restart it."""
    send_s: float = 30.0


class End(StrEnum):
    """Why an association ended."""

    RELEASED = "released"
    ABORTED_BY_PEER = "aborted_by_peer"
    DISCONNECTED = "disconnected"
    TIMED_OUT = "timed_out"
    PROTOCOL = "protocol"
    DRAINED = "drained"
    ERROR = "error"


class AssociationEnded(HilumError):
    """The association cannot go on.

    Attributes
    ----------
    end
        Why.
    abort
        Source and reason of the A-ABORT that the peer is owed (PS3.8 table 9-26); None where nothing can be sent.
    """

    def __init__(self, end: End, detail: str, abort: tuple[int, int] | None = None) -> None:
        super().__init__(detail)
        self.end = end
        self.abort = abort


def violation(detail: str, reason: int = 6) -> AssociationEnded:
    """Return the error for what the protocol forbids: A-ABORT by the provider, by default "invalid parameter"."""
    return AssociationEnded(End.PROTOCOL, detail, (2, reason))


@dataclass(frozen=True, slots=True)
class Pdv:
    """One presentation data value; `data` is a view that lives until the wire's `pause` is called (PS3.8 9.3.5.1)."""

    context_id: int
    is_command: bool
    is_last: bool
    data: memoryview


def _nothing() -> None:
    pass


class Wire:
    """One connection: PDUs in, bytes out.

    Attributes
    ----------
    pause
        Called when a second passes without a byte, and before views that were handed out lose their bytes: whoever
        holds views must write them away here. May raise to end the wait.
    heard_at
        Monotonic time of the latest byte.
    received
        Bytes read so far.
    """

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._sock = sock
        self._limits = limits
        # Anonymous pages are only paid for once they are touched: an idle association costs a few kilobytes.
        self._size = max(_BUFFER, limits.pdu_bytes + 6, limits.request_bytes + 6)
        self._view = memoryview(mmap.mmap(-1, self._size))
        self._start = self._end = 0
        self._pending: Iterator[Pdv] = iter(())
        self.pause: Callable[[], None] = _nothing
        self.heard_at = time.monotonic()
        self.received = 0
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(1.0)  # ssl would repeat a read that SO_RCVTIMEO ended
        else:
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", max(1, int(limits.send_s)), 0))

    def read_request(self) -> bytes:
        """Return the whole A-ASSOCIATE-RQ; raise AssociationEnded when it is late, too large or something else."""
        now = time.monotonic()
        deadline = now + self._limits.artim_s
        self._need(1, min(deadline, now + self._limits.handshake_s))
        self._need(6, deadline)
        kind, length = _HEADER.unpack_from(self._view, self._start)
        if kind == ABORT:
            raise AssociationEnded(End.ABORTED_BY_PEER, "A-ABORT before the association")
        if kind != ASSOCIATE_RQ:
            raise violation("not an A-ASSOCIATE-RQ", 2 if ASSOCIATE_AC <= kind <= RELEASE_RP else 1)
        if not 68 <= length <= self._limits.request_bytes:
            raise violation("A-ASSOCIATE-RQ of an impossible length")
        self._need(6 + length, deadline)
        raw = bytes(self._view[self._start : self._start + 6 + length])
        self._start += 6 + length
        return raw

    def next_pdv(self, idle_s: float) -> Pdv | None:
        """Return the next presentation data value, None for A-RELEASE-RQ; `idle_s` 0 waits for ever.

        Raises
        ------
        AssociationEnded
            The peer left, was silent for `idle_s`, let a PDU stall, or broke the protocol.
        """
        while True:
            pdv = next(self._pending, None)
            if pdv is not None:
                return pdv
            kind, body = self._next_pdu(idle_s)
            if kind == RELEASE_RQ:
                return None
            if kind == ABORT:
                raise AssociationEnded(End.ABORTED_BY_PEER, "A-ABORT")
            if kind != P_DATA:
                raise violation("unexpected PDU", 2 if 1 <= kind <= ABORT else 1)
            self._pending = _values(body)

    def _next_pdu(self, idle_s: float) -> tuple[int, memoryview]:
        if self._start == self._end:
            self._need(1, time.monotonic() + (idle_s or math.inf))
        deadline = time.monotonic() + self._limits.progress_s
        self._need(6, deadline)
        kind, length = _HEADER.unpack_from(self._view, self._start)
        if length > (self._limits.pdu_bytes if kind == P_DATA else _SHORT_PDU):
            raise violation("PDU over the advertised maximum")
        self._need(6 + length, deadline)
        body = self._view[self._start + 6 : self._start + 6 + length]
        self._start += 6 + length
        return kind, body

    def rewind(self) -> None:
        """Say that no view is held any more: the buffer may be used from its beginning."""
        if self._start == self._end:
            self._start = self._end = 0

    def _need(self, count: int, deadline: float) -> None:
        while self._end - self._start < count:
            if self._start + count > self._size:
                self.pause()
                left = self._end - self._start
                self._view[:left] = bytes(self._view[self._start : self._end])
                self._start, self._end = 0, left
            self._receive(deadline)

    def _receive(self, deadline: float) -> None:
        try:
            if _QUICKACK is not None:  # a sender that keeps Nagle on waits for our acknowledgement otherwise
                self._sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            count = self._sock.recv_into(self._view[self._end :])
        except (BlockingIOError, TimeoutError, ssl.SSLWantReadError):
            self.pause()
            count = -1
        except OSError:
            raise AssociationEnded(End.DISCONNECTED, "connection lost") from None
        now = time.monotonic()
        if count > 0:
            self._end += count
            self.received += count
            self.heard_at = now
        elif count == 0:
            raise AssociationEnded(End.DISCONNECTED, "connection closed")
        if now > deadline:
            raise AssociationEnded(End.TIMED_OUT, "deadline passed", (2, 0))

    def send(self, data: bytes) -> None:
        """Send all of `data`; raise AssociationEnded when the peer does not take it."""
        try:
            self._sock.sendall(data)
        except OSError:
            raise AssociationEnded(End.DISCONNECTED, "connection lost while sending") from None

    def send_values(self, context_id: int, command: bytes, peer_maximum: int) -> None:
        """Send a command set as one or more P-DATA PDUs, none over what the peer takes (0: any)."""
        room = max(2, (peer_maximum or self._limits.pdu_bytes) - 6)
        parts = [command[i : i + room] for i in range(0, len(command), room)]
        self.send(
            b"".join(
                _HEADER.pack(P_DATA, len(part) + 6)
                + _PDV.pack(len(part) + 2, context_id, 3 if n == len(parts) else 1)
                + part
                for n, part in enumerate(parts, start=1)
            )
        )

    def close(self, linger_s: float = 1.0) -> None:
        """Close; what was sent last is given a moment to arrive, else unread input would reset the connection."""
        deadline = time.monotonic() + linger_s
        try:
            self._sock.shutdown(socket.SHUT_WR)
            while time.monotonic() < deadline and self._sock.recv_into(self._view):
                pass
        except OSError:
            pass  # the peer is gone already, or sends nothing for a second: either way there is nothing to wait for
        finally:
            self._sock.close()


def _values(body: memoryview) -> Iterator[Pdv]:
    position, end = 0, len(body)
    while position < end or not end:
        if end - position < 6:
            raise violation("cut presentation data value")
        length, context_id, control = _PDV.unpack_from(body, position)
        if length < 2 or position + 4 + length > end:
            raise violation("presentation data value past its PDU")
        yield Pdv(context_id, bool(control & 1), bool(control & 2), body[position + 6 : position + 4 + length])
        position += 4 + length


# --- association -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rejection:
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 table 9-21)."""

    result: int
    source: int
    reason: int

    def encode(self) -> bytes:
        """Return the PDU."""
        return struct.pack(">BxIxBBB", ASSOCIATE_RJ, 4, self.result, self.source, self.reason)


NO_REASON = Rejection(1, 1, 1)
UNKNOWN_APPLICATION_CONTEXT = Rejection(1, 1, 2)
UNKNOWN_CALLING = Rejection(1, 1, 3)
UNKNOWN_CALLED = Rejection(1, 1, 7)
UNKNOWN_PROTOCOL = Rejection(1, 2, 2)
CONGESTED = Rejection(2, 3, 1)
AT_LIMIT = Rejection(2, 3, 2)


def abort_pdu(source: int, reason: int) -> bytes:
    """Return an A-ABORT (PS3.8 9.3.8)."""
    return struct.pack(">BxIxxBB", ABORT, 4, source, reason)


RELEASE_REPLY = struct.pack(">BxIxxxx", RELEASE_RP, 4)


@dataclass(frozen=True)
class Context:
    """An abstract syntax that is accepted and, in our order of preference, its transfer syntaxes."""

    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True)
class AssociationRequest:
    """What an A-ASSOCIATE-RQ asks for.

    Attributes
    ----------
    calling, called
        AE titles without padding, printable ASCII; empty where the PDU has none that may be used.
    contexts
        As proposed, for negotiation.
    roles
        SCU and SCP role that the requestor wants, by SOP class (PS3.7 D.3.3.4).
    peer_maximum
        Largest P-DATA PDU that the requestor takes; 0: any.
    """

    calling: str
    called: str
    application_context: str
    protocol_version: int
    contexts: tuple[PresentationContext, ...]
    roles: Mapping[str, tuple[bool, bool]]
    peer_maximum: int
    primitive: A_ASSOCIATE | None


_DECODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What pynetdicom's setters and decoders raise on bytes that are not DICOM."""


def decode_request(raw: bytes) -> AssociationRequest:
    """Decode an A-ASSOCIATE-RQ.

    An AE title that is empty or not printable makes pynetdicom raise; such a request comes back with the title empty
    and without contexts, so that it can be rejected rather than aborted.

    Raises
    ------
    AssociationEnded
        The PDU is malformed: A-ABORT, source 2, reason 6.
    """
    calling, called = _ae_title(raw[26:42]), _ae_title(raw[10:26])
    version = int.from_bytes(raw[6:8], "big")
    if not calling or not called:
        return AssociationRequest(calling, called, APPLICATION_CONTEXT, version, (), {}, 0, None)
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(known_items(raw))
        primitive = pdu.to_primitive()
        contexts = tuple(primitive.presentation_context_definition_list or ())
        items = tuple(primitive.user_information or ())
        roles = {
            str(item.sop_class_uid): (bool(item.scu_role), bool(item.scp_role))
            for item in items
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
        }
        maximum = [int(i.maximum_length_received or 0) for i in items if isinstance(i, MaximumLengthNotification)]
        application_context = str(primitive.application_context_name or "")
    except _DECODE_ERRORS:
        raise violation("malformed A-ASSOCIATE-RQ") from None
    if len({context.context_id for context in contexts}) != len(contexts):
        raise violation("presentation context id used twice")
    if any(not context.transfer_syntax or not context.abstract_syntax for context in contexts):
        raise violation("presentation context without syntax")
    return AssociationRequest(
        calling, called, application_context, version, contexts, roles, maximum[0] if maximum else 0, primitive
    )


def accept(
    request: AssociationRequest, offered: Sequence[Context], maximum: int
) -> tuple[bytes, dict[int, tuple[str, str]]]:
    """Negotiate as acceptor: exactly one transfer syntax for each context, by our order (NET-5).

    Storage Commitment is only taken from a requestor that claims the SCP role: the report of an earlier request
    (PS3.4 J.3.3). No asynchronous operations are offered (NET-17).

    Returns
    -------
    The A-ASSOCIATE-AC, and abstract and transfer syntax by accepted context id.
    """
    roles = {UID(sop_class_uid): pair for sop_class_uid, pair in request.roles.items()}
    ours = []
    for context in offered:
        built = build_context(context.abstract_syntax, list(context.transfer_syntaxes))
        if context.abstract_syntax == STORAGE_COMMITMENT:
            if not request.roles.get(STORAGE_COMMITMENT, (False, False))[1]:
                continue
            built.scu_role, built.scp_role = False, True
        ours.append(built)
    try:
        results, replies = negotiate_as_acceptor(list(request.contexts), ours, {**roles})
        answer = A_ASSOCIATE()
        answer.application_context_name = APPLICATION_CONTEXT
        answer.calling_ae_title, answer.called_ae_title = request.calling, request.called
        answer.result, answer.result_source = 0, 1
        answer.presentation_context_definition_results_list = results
        answer.user_information = [*_user_items(maximum), *replies]
        encoded = A_ASSOCIATE_AC(answer).encode()
    except _DECODE_ERRORS:
        raise violation("presentation contexts that cannot be negotiated") from None
    accepted = [c for c in results if c.result == 0]
    return encoded, {c.context_id or 0: (str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in accepted}


def _user_items(
    maximum: int,
) -> tuple[MaximumLengthNotification, ImplementationClassUIDNotification, ImplementationVersionNameNotification]:
    length = MaximumLengthNotification()
    length.maximum_length_received = maximum
    class_uid = ImplementationClassUIDNotification()
    class_uid.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    return length, class_uid, version


def _ae_title(field: bytes) -> str:
    """Return an AE title without padding; empty where PS3.5 6.2 does not allow its characters."""
    title = field.strip(b" \0")
    return title.decode("ascii") if all(32 <= byte < 127 and byte != 0x5C for byte in title) else ""


def known_items(raw: bytes) -> bytes:
    """Drop items of unknown type from an A-ASSOCIATE-RQ, on which pynetdicom would raise (PS3.8 9.3.1)."""
    kept = b""
    for kind, value in _items(raw[74:]):
        known = value
        if kind == 0x50:
            known = b"".join(_item(k, v) for k, v in _items(value) if 0x51 <= k <= 0x58)
        if kind in (0x10, 0x20, 0x50):
            kept += _item(kind, known)
    return raw[:2] + (68 + len(kept)).to_bytes(4, "big") + raw[6:74] + kept


def _item(kind: int, value: bytes) -> bytes:
    return bytes((kind, 0)) + len(value).to_bytes(2, "big") + value


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        if len(data) - position < 4:
            raise ValueError("cut item")
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if position + 4 + length > len(data):
            raise ValueError("item past the end")
        yield data[position], data[position + 4 : position + 4 + length]
        position += 4 + length


# --- command sets (PS3.7 6.3.1: implicit VR little endian, group 0000) ------------------------------------------------

C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ, N_EVENT_REPORT_RQ = 0x0001, 0x0030, 0x0FFF, 0x0100
RESPONSE = 0x8000
NO_DATA_SET = 0x0101


@dataclass(frozen=True)
class Command:
    """A DIMSE request, as far as a listener needs it."""

    field: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    has_data_set: bool
    event_type: int
    move_originator: str


def decode_command(data: bytes) -> Command:
    """Decode a command set; raise AssociationEnded where it is broken or lacks its field."""
    elements: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        if len(data) - position < 8:
            raise violation("cut command set")
        group, element, length = struct.unpack_from("<HHI", data, position)
        position += 8
        if group != 0 or length > len(data) - position:
            raise violation("broken command set")
        elements[element] = data[position : position + length]
        position += length
    field = _number(elements, 0x0100, -1)
    if field < 0:
        raise violation("command set without command field")
    return Command(
        field,
        _number(elements, 0x0110, 0),
        _text(elements, 0x0002),
        _text(elements, 0x1000),
        _number(elements, 0x0800, NO_DATA_SET) != NO_DATA_SET,
        _number(elements, 0x1002, 0),
        _text(elements, 0x1030),
    )


def _number(elements: Mapping[int, bytes], element: int, default: int) -> int:
    value = elements.get(element)
    if value is None:
        return default
    if len(value) != 2:
        raise violation("number of the wrong length in a command set")
    return int.from_bytes(value, "little")


def _text(elements: Mapping[int, bytes], element: int) -> str:
    return elements.get(element, b"").rstrip(b" \0").decode("latin-1")


def encode_response(command: Command, status: int, comment: str = "", element: int | None = None) -> bytes:
    """Return the response's command set; comment and offending element only where they are given (PS3.7 C)."""
    fields = [
        (0x0002, _uid(command.sop_class_uid)),
        (0x0100, struct.pack("<H", command.field | RESPONSE)),
        (0x0120, struct.pack("<H", command.message_id)),
        (0x0800, struct.pack("<H", NO_DATA_SET)),
        (0x0900, struct.pack("<H", status)),
    ]
    if element is not None:
        fields.append((0x0901, struct.pack("<HH", element >> 16, element & 0xFFFF)))
    if comment:
        text = comment.encode("ascii", "replace")[:64]
        fields.append((0x0902, text + b" " * (len(text) % 2)))
    if command.sop_instance_uid:
        fields.append((0x1000, _uid(command.sop_instance_uid)))
    if command.field == N_EVENT_REPORT_RQ:
        fields.append((0x1002, struct.pack("<H", command.event_type)))
    body = b"".join(struct.pack("<HHI", 0, tag, len(value)) + value for tag, value in fields if value)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def _uid(text: str) -> bytes:
    value = text.encode("latin-1")
    return value + b"\0" * (len(value) % 2)
