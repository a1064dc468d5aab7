"""One accepted association: requests in, answers out. C-ECHO; C-STORE streamed into a sink; nothing else is done.

Statuses are those of PS3.4 table B.2-1 and PS3.7 annex C. What breaks the protocol ends the association; what is wrong
with an object is answered, after it was read to its last fragment, and the association goes on.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from node.dicom.storage_classes import VERIFICATION
from node.dicom.upper_layer import (
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_STORE_RQ,
    N_EVENT_REPORT_RQ,
    RELEASE_REPLY,
    RESPONSE,
    STORAGE_COMMITMENT,
    AssociationEnded,
    Command,
    End,
    Limits,
    Pdv,
    Wire,
    decode_command,
    encode_response,
    violation,
)
from node.domain.instance import Sender
from node.errors import CannotUnderstand, DataSetMismatch, OutOfResources, Refused, Transient

_log = logging.getLogger(__name__)

SUCCESS, UNRECOGNISED_OPERATION = 0x0000, 0x0211
_REPORT_BYTES = 1 << 20
_WRITE_BYTES = 192 << 10
"""So many bytes are written at once: while they are in the processor's cache, and while the sender sends on."""
_REMEMBERED_SERIES = 1024
"""An association that is never closed forgets the series that it carried longest ago."""
T = TypeVar("T")


class NotStorage(Refused):
    """The context is of a SOP class that nothing is stored by (PS3.7 C.5.6)."""

    status = 0x0122


@dataclass(frozen=True)
class StoreRequest:
    """What a C-STORE-RQ announces, before the first byte of its data set."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    sender: Sender
    move_originator: str


@dataclass(frozen=True)
class Stored:
    """What became of an object that is answered with success."""

    series_instance_uid: str
    kind: str
    """`kept`, `held` or `duplicate`."""


class Sink(Protocol):
    """Takes one data set. Any method may raise `Refused`; OSError is answered as out of resources (NET-9)."""

    @property
    def series_instance_uid(self) -> str:
        """The series, as soon as enough bytes are here to tell; before that empty."""

    def write(self, fragments: Sequence[memoryview]) -> None:
        """Take the next bytes; the views are only valid during the call."""

    def peek(self) -> None:
        """Look for the series; called when the object pauses, or is large."""

    def finish(self) -> Stored:
        """Return when the object is durable (NET-2)."""

    def discard(self) -> None:
        """Forget the object; called after a refusal too, but never after `finish` returned."""


SinkFactory = Callable[[StoreRequest], Sink]


@dataclass(frozen=True)
class EventReport:
    """An N-EVENT-REPORT of Storage Commitment, its data set not yet decoded (PS3.4 J.3.3)."""

    event_type: int
    transfer_syntax_uid: str
    data: bytes
    sender: Sender


@dataclass(frozen=True)
class EchoAnswered:
    """A C-ECHO was answered."""

    sender: Sender
    seconds: float


@dataclass(frozen=True)
class InstanceStored:
    """A C-STORE was answered with success."""

    sender: Sender
    sop_class_uid: str
    transfer_syntax_uid: str
    series_instance_uid: str
    kind: str
    length: int
    seconds: float


@dataclass(frozen=True)
class InstanceRefused:
    """A C-STORE was answered with a failure; `reason` is one of our own sentences."""

    sender: Sender
    sop_class_uid: str
    status: int
    reason: str
    length: int
    seconds: float


AssociationEvent = EchoAnswered | InstanceStored | InstanceRefused


@dataclass(frozen=True)
class Service:
    """What all associations of a listener share."""

    limits: Limits
    sink_factory: SinkFactory
    observer: Callable[[AssociationEvent], None]
    is_draining: Callable[[], bool]
    on_event_report: Callable[[EventReport], int] | None = None


class Association:
    """Serves one peer until it leaves.

    Attributes
    ----------
    stored
        Objects answered with success.
    """

    def __init__(
        self, wire: Wire, sender: Sender, contexts: Mapping[int, tuple[str, str]], peer_maximum: int, service: Service
    ) -> None:
        self._wire = wire
        self._sender = sender
        self._contexts = contexts
        self._peer_maximum = peer_maximum
        self._service = service
        self._carried: dict[str, None] = {}
        self._intake: _Intake | None = None
        self.stored = 0

    @property
    def carried(self) -> tuple[str, ...]:
        """Series that this association brought objects of, the object under way included."""
        under_way = self.under_way
        return (*self._carried, under_way) if under_way and under_way not in self._carried else tuple(self._carried)

    @property
    def under_way(self) -> str:
        """Series of the object that is being received; empty where there is none, or where it is not known yet."""
        intake = self._intake
        return intake.series_instance_uid if intake is not None else ""

    @property
    def heard_at(self) -> float:
        """Monotonic time of the latest byte."""
        return self._wire.heard_at

    def serve(self, idle_s: float) -> End:
        """Answer until A-RELEASE; raise AssociationEnded for every other end."""
        while True:
            self._wire.pause = self._stop_if_draining
            self._stop_if_draining()
            pdv = self._wire.next_pdv(idle_s)
            if pdv is None:
                self._wire.send(RELEASE_REPLY)
                return End.RELEASED
            command = self._read_command(pdv, idle_s)
            self._wire.pause = _nothing
            self._answer(pdv.context_id, command, idle_s)
            self._wire.rewind()

    def _stop_if_draining(self) -> None:
        if self._service.is_draining():
            raise AssociationEnded(End.DRAINED, "the listener stops", (2, 0))

    def _read_command(self, pdv: Pdv, idle_s: float) -> Command:
        context_id, data = pdv.context_id, bytes(pdv.data)
        if context_id not in self._contexts:
            raise violation("presentation context that was not accepted")
        if not pdv.is_command:
            raise violation("data without command")
        while not pdv.is_last:
            if len(data) > self._service.limits.command_bytes:
                raise violation("command set too large")
            pdv = self._following(context_id, idle_s, is_command=True)
            data += pdv.data
        if len(data) > self._service.limits.command_bytes:
            raise violation("command set too large")
        return decode_command(data)

    def _following(self, context_id: int, idle_s: float, *, is_command: bool) -> Pdv:
        pdv = self._wire.next_pdv(idle_s)
        if pdv is None:
            raise violation("A-RELEASE in the middle of a message", 2)
        if pdv.context_id != context_id or pdv.is_command != is_command:
            raise violation("fragments of two messages mixed")
        return pdv

    def _data_set(self, context_id: int, idle_s: float) -> Iterator[memoryview]:
        while True:
            pdv = self._following(context_id, idle_s, is_command=False)
            yield pdv.data
            if pdv.is_last:
                return

    def _answer(self, context_id: int, command: Command, idle_s: float) -> None:
        began = time.monotonic()
        if command.field == C_ECHO_RQ and not command.has_data_set:
            self._respond(context_id, encode_response(command, SUCCESS))
            self._service.observer(EchoAnswered(self._sender, time.monotonic() - began))
        elif command.field == C_STORE_RQ:
            self._store(context_id, command, idle_s)
        elif command.field == C_CANCEL_RQ:
            pass  # what it wants cancelled has been answered (PS3.7 9.3.2.3)
        elif command.field & RESPONSE:
            raise violation("response without request")
        elif command.field == N_EVENT_REPORT_RQ and self._contexts[context_id][0] == STORAGE_COMMITMENT:
            self._event_report(context_id, command, idle_s)
        else:
            if command.has_data_set:
                for _ in self._data_set(context_id, idle_s):
                    self._wire.rewind()
            self._respond(context_id, encode_response(command, UNRECOGNISED_OPERATION))

    def _respond(self, context_id: int, response: bytes) -> None:
        self._wire.send_values(context_id, response, self._peer_maximum)

    # --- C-STORE ------------------------------------------------------------------------------------------------------

    def _store(self, context_id: int, command: Command, idle_s: float) -> None:
        if not command.sop_class_uid or not command.sop_instance_uid or not command.has_data_set:
            raise violation("C-STORE-RQ without UIDs or data set")
        began = time.monotonic()
        intake = self._intake = self._begin(context_id, command)
        self._wire.pause = intake.pause
        try:
            for fragment in self._data_set(context_id, idle_s):
                intake.take(fragment)
            began = time.monotonic()  # a slow sender's bytes are not our time
            stored = intake.finish()
        except Refused as refused:
            self._respond(context_id, encode_response(command, refused.status, refused.comment, refused.element))
            self._tell_refused(command, refused, intake.length, time.monotonic() - began)
        else:
            self._carry(stored.series_instance_uid)
            self._respond(context_id, encode_response(command, SUCCESS))
            self.stored += 1
            self._tell_stored(intake.request, stored, intake.length, time.monotonic() - began)
        finally:
            self._intake = None
            intake.discard()

    def _begin(self, context_id: int, command: Command) -> _Intake:
        abstract_syntax, transfer_syntax = self._contexts[context_id]
        request = StoreRequest(
            command.sop_class_uid, command.sop_instance_uid, transfer_syntax, self._sender, command.move_originator
        )
        intake = _Intake(request, self._service.limits.object_bytes)
        if command.sop_class_uid != abstract_syntax:
            intake.refusal = DataSetMismatch("SOP Class UID differs from context", 0x00000002)
        elif abstract_syntax in (VERIFICATION, STORAGE_COMMITMENT):
            intake.refusal = NotStorage("nothing is stored by this SOP class", 0x00000002)
        else:
            intake.open(self._service.sink_factory)
        return intake

    def _carry(self, series_instance_uid: str) -> None:
        self._carried.pop(series_instance_uid, None)
        self._carried[series_instance_uid] = None
        if len(self._carried) > _REMEMBERED_SERIES:
            self._carried.pop(next(iter(self._carried)))

    def _tell_stored(self, request: StoreRequest, stored: Stored, length: int, seconds: float) -> None:
        self._service.observer(
            InstanceStored(
                self._sender,
                request.sop_class_uid,
                request.transfer_syntax_uid,
                stored.series_instance_uid,
                stored.kind,
                length,
                seconds,
            )
        )

    def _tell_refused(self, command: Command, refused: Refused, length: int, seconds: float) -> None:
        facts = {
            "association": self._sender.association_id,
            "sender": self._sender.alias,
            "status": f"{refused.status:04X}",
            "reason": refused.comment,
            "bytes": length,
        }
        _log.warning("instance_refused", extra=facts)
        self._service.observer(
            InstanceRefused(self._sender, command.sop_class_uid, refused.status, refused.comment, length, seconds)
        )

    # --- storage commitment -------------------------------------------------------------------------------------------

    def _event_report(self, context_id: int, command: Command, idle_s: float) -> None:
        data = bytearray()
        if command.has_data_set:
            for fragment in self._data_set(context_id, idle_s):
                data += fragment
                self._wire.rewind()
                if len(data) > _REPORT_BYTES:
                    raise violation("event report too large")
        handler = self._service.on_event_report
        status = UNRECOGNISED_OPERATION
        if handler is not None:
            syntax = self._contexts[context_id][1]
            status = handler(EventReport(command.event_type, syntax, bytes(data), self._sender))
        self._respond(context_id, encode_response(command, status))


class _Intake:
    """One object under way: holds views until they must be written, and remembers the first refusal."""

    def __init__(self, request: StoreRequest, most_bytes: int) -> None:
        self.request = request
        self.length = 0
        self.refusal: Refused | None = None
        self._most_bytes = most_bytes
        self._sink: Sink | None = None
        self._held: list[memoryview] = []
        self._held_bytes = 0

    @property
    def series_instance_uid(self) -> str:
        sink = self._sink
        return sink.series_instance_uid if sink is not None else ""

    def open(self, factory: SinkFactory) -> None:
        self._sink = self._attempt(lambda: factory(self.request))

    def take(self, fragment: memoryview) -> None:
        self.length += len(fragment)
        if self.length > self._most_bytes and self.refusal is None:
            self.refusal = CannotUnderstand("object too large")
        if self.refusal is None:
            self._held.append(fragment)
            self._held_bytes += len(fragment)
            if self._held_bytes >= _WRITE_BYTES:
                self._write_held()

    def pause(self) -> None:
        """Give the views back, and let the heartbeat know whose bytes these are."""
        self._write_held()
        if self._sink is not None and self.refusal is None:
            self._attempt(self._sink.peek)

    def _write_held(self) -> None:
        """Hand on what is held; a refusal is kept until the last fragment was read."""
        sink, held = self._sink, self._held
        if held and sink is not None and self.refusal is None:
            self._attempt(lambda: sink.write(held))
        self._held, self._held_bytes = [], 0

    def finish(self) -> Stored:
        self._write_held()
        sink = self._sink
        stored = self._attempt(sink.finish) if sink is not None and self.refusal is None else None
        if self.refusal is not None or stored is None:
            raise self.refusal or OutOfResources("internal error")
        self._sink = None  # the object is kept: from here on nothing may discard it
        return stored

    def discard(self) -> None:
        """Forget the object, unless it is kept already."""
        self._held = []
        if self._sink is not None:
            self._attempt(self._sink.discard)

    def _attempt(self, step: Callable[[], T]) -> T | None:
        """Take a step of the sink; whatever goes wrong becomes a refusal, and a bug is one that may pass (NET-9)."""
        try:
            return step()
        except Refused as refused:
            self.refusal = self.refusal or refused
        except Transient:
            self.refusal = self.refusal or OutOfResources("not possible now, try again")
        except OSError as error:
            self.refusal = self.refusal or OutOfResources("storage is not available")
            _log.error("storage_failed", extra={"cause": f"errno {error.errno}"})
        except Exception as error:  # noqa: BLE001 - a bug of ours must not cost the sender its object
            self.refusal = self.refusal or OutOfResources("internal error")
            log_bug("receiving_failed", error)
        return None


def log_bug(event: str, error: Exception) -> None:
    """Log where an unexpected error came from, without its words: they may hold values of a data set (SEC-20)."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    _log.error(event, extra={"cause": type(error).__name__, "line": where})


def _nothing() -> None:
    pass
