"""The listener: takes connections, counts them, admits the peers on a closed list, one thread for each association.

Who is not on the list is refused and reported; limits count from the TCP accept on; a TLS handshake has its place in
the association's own thread, so that a silent client holds nobody else up (NET-13 to NET-15, SEC-2).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from node.dicom.association import (
    Association,
    AssociationEvent,
    EchoAnswered,
    EventReport,
    InstanceRefused,
    InstanceStored,
    Service,
    Sink,
    SinkFactory,
    Stored,
    StoreRequest,
    log_bug,
)
from node.dicom.upper_layer import (
    APPLICATION_CONTEXT,
    AT_LIMIT,
    CONGESTED,
    NO_REASON,
    UNKNOWN_APPLICATION_CONTEXT,
    UNKNOWN_CALLED,
    UNKNOWN_CALLING,
    UNKNOWN_PROTOCOL,
    AssociationEnded,
    AssociationRequest,
    Context,
    End,
    Limits,
    Rejection,
    Wire,
    abort_pdu,
    accept,
    decode_request,
)
from node.domain.admission import lines_to_add
from node.domain.instance import Sender
from node.domain.series import ArrivingSeries

__all__ = [
    "Activity",
    "AssociationClosed",
    "AssociationOpened",
    "AssociationRefused",
    "EchoAnswered",
    "End",
    "EventReport",
    "InstanceRefused",
    "InstanceStored",
    "Limits",
    "Peer",
    "Refusal",
    "Scp",
    "ScpEvent",
    "Sink",
    "SinkFactory",
    "StoreRequest",
    "Stored",
]

_log = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_ACCEPT_S = 0.25
_EVICTABLE_S = 2.0
"""When there is no room, a request that is not whole after this long gives way to a new connection."""
_MOST_REJECTING = 32
"""Threads that only reject; past this many a connection over the limit is closed without a word."""
_REJECT_S = 5.0
"""How long one that will be rejected may take to ask."""
_STACK_BYTES = 512 << 10
_FORCED_S = 3.0


@dataclass(frozen=True)
class Peer:
    """One who may send: AE title and address together; an AE title alone proves nothing (NET-13).

    Attributes
    ----------
    addresses
        Networks that it may come from; empty: none.
    called_ae_titles
        AE titles of ours that it may call; empty: each of them.
    idle_s
        Longest pause between messages; 0: no limit (some modalities keep one association open all day).
    """

    name: str
    ae_title: str
    addresses: tuple[Network, ...]
    called_ae_titles: tuple[str, ...] = ()
    idle_s: float = 300.0
    max_associations: int = 16


class Refusal(StrEnum):
    """Why an association was not accepted."""

    PEER = "refused_peer"
    """Calling AE title and address are not on the list."""
    CALLED = "refused_called"
    LIMIT = "refused_limit"
    DRAINING = "refused_draining"
    PROTOCOL = "refused_protocol"


@dataclass(frozen=True)
class AssociationOpened:
    """A peer was admitted."""

    sender: Sender


@dataclass(frozen=True)
class AssociationRefused:
    """A connection did not become an association; AE titles are printable ASCII, and may be empty."""

    calling_ae_title: str
    called_ae_title: str
    address: str
    reason: Refusal


@dataclass(frozen=True)
class AssociationClosed:
    """An admitted peer's association has ended."""

    sender: Sender
    end: End
    seconds: float
    stored: int
    received_bytes: int


ScpEvent = AssociationOpened | AssociationRefused | AssociationClosed | AssociationEvent


@dataclass(frozen=True)
class Activity:
    """What the heartbeat tells: how many associations are open, and each series that one of them carried."""

    open_associations: int
    arriving: tuple[ArrivingSeries, ...]


class _Connection:
    """One TCP connection, from its accept to its end."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self.sock = sock
        self.address = address
        self.opened = time.monotonic()
        self.has_asked = False
        self.peer_name = ""
        self.wire: Wire | None = None
        self.association: Association | None = None

    def gives_way(self, now: float) -> bool:
        """Say whether it is half open: no whole request after a while, or not one byte so far."""
        if self.has_asked:
            return False
        if now - self.opened > _EVICTABLE_S:
            return True
        try:
            self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return self.wire is None or not self.wire.received
        except (OSError, ValueError):  # it has ended, or speaks TLS
            return False
        return False

    def cut(self) -> None:
        """End whatever its thread waits for."""
        with contextlib.suppress(OSError):  # it may have ended by itself
            self.sock.shutdown(socket.SHUT_RDWR)


class Scp:
    """Listens on one port.

    Parameters
    ----------
    ae_titles
        AE titles that the node answers to.
    contexts
        What is accepted, with transfer syntaxes in order of preference.
    sink_factory
        Gives each C-STORE the sink that its data set is written to.
    observer
        Told of everything that happens, in the thread in which it happens; must be quick and must not raise.
    wrap
        Turns an accepted socket into a TLS one, in the association's thread, under `Limits.handshake_s`.
    on_event_report
        Takes Storage Commitment reports and returns the status to answer; None: such a context is refused.
    """

    def __init__(
        self,
        host: str,
        port: int,
        ae_titles: Sequence[str],
        peers: Sequence[Peer],
        limits: Limits,
        *,
        contexts: Sequence[Context],
        sink_factory: SinkFactory,
        observer: Callable[[ScpEvent], None],
        wrap: Callable[[socket.socket], socket.socket] | None = None,
        on_event_report: Callable[[EventReport], int] | None = None,
    ) -> None:
        self._ae_titles = frozenset(ae_titles)
        self._peers = tuple(peers)
        self._limits = limits
        self._rejecting_limits = replace(limits, handshake_s=_REJECT_S, artim_s=_REJECT_S)
        self._contexts = tuple(contexts)
        self._observer = observer
        self._wrap = wrap
        self._service = Service(limits, sink_factory, observer, self._is_stopping, on_event_report)
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._rejecting = 0
        self._stop_by: float | None = None
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        self._listener = socket.create_server((host, port), family=family, backlog=256)
        self._listener.settimeout(_ACCEPT_S)
        self.started_at = datetime.now(UTC)

    @property
    def port(self) -> int:
        """The TCP port; of use when it was asked for as 0."""
        return int(self._listener.getsockname()[1])

    def serve_forever(self) -> None:
        """Accept until `stop` was called and the last association has ended (NET-37)."""
        _log.info("listening", extra={"port": self.port, "count": len(self._peers)})
        try:
            while not self._is_drained():
                self._accept_one()
        finally:
            self._listener.close()
            self._cut_all()

    def stop(self, grace_s: float = 25.0) -> None:
        """Reject what is new, let each running C-STORE end, for at most `grace_s`; returns at once."""
        self._stop_by = time.monotonic() + grace_s

    def activity(self) -> Activity:
        """Return what is open now; times are of the latest byte, by the wall clock of this call."""
        now, clock = datetime.now(UTC), time.monotonic()
        with self._lock:
            associations = [c.association for c in self._connections if c.association is not None]
        carried: Counter[str] = Counter()
        under_way: dict[str, float] = {}
        for association in associations:
            carried.update(association.carried)
            series = association.under_way
            if series:
                under_way[series] = max(association.heard_at, under_way.get(series, 0.0))
        arriving = tuple(
            ArrivingSeries(series, count, self._wall_time(now, clock, under_way.get(series)))
            for series, count in carried.items()
        )
        return Activity(len(associations), arriving)

    @staticmethod
    def _wall_time(now: datetime, clock: float, heard_at: float | None) -> datetime | None:
        return None if heard_at is None else now - timedelta(seconds=max(0.0, clock - heard_at))

    # --- accepting ----------------------------------------------------------------------------------------------------

    def _is_stopping(self) -> bool:
        return self._stop_by is not None

    def _is_drained(self) -> bool:
        if self._stop_by is None:
            return False
        with self._lock:
            return not self._connections or time.monotonic() > self._stop_by

    def _accept_one(self) -> None:
        try:
            sock, address = self._listener.accept()
        except TimeoutError:
            return
        except OSError as error:
            if error.errno not in (errno.ECONNABORTED, errno.EPROTO):
                _log.error("accept_failed", extra={"cause": f"errno {error.errno}"})
                time.sleep(_ACCEPT_S)  # no descriptor or no memory: an association must end first
            return
        self._admit(_Connection(sock, _address(address[0])))

    def _admit(self, connection: _Connection) -> None:
        """Count the connection and give it a thread; over a limit it gets one that only rejects."""
        rejection, is_refused_at_once = None, False
        with self._lock:
            if self._is_stopping():
                rejection = CONGESTED
            elif not self._has_room(connection.address):
                rejection = AT_LIMIT
            if rejection is None:
                self._connections.add(connection)
            elif self._rejecting < _MOST_REJECTING:
                self._rejecting += 1
            else:
                is_refused_at_once = True
        if is_refused_at_once:
            connection.sock.close()
            self._refused(connection, "", "", Refusal.LIMIT)
            return
        self._start(connection, rejection)

    def _start(self, connection: _Connection, rejection: Rejection | None) -> None:
        before = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=self._run, args=(connection, rejection), name="association", daemon=True).start()
        except RuntimeError:  # the process may not have more threads
            connection.sock.close()
            self._forget(connection, rejection)
        finally:
            threading.stack_size(before)

    def _has_room(self, address: Address) -> bool:
        """Say whether one more may come; to make room, the oldest half-open one is cut (NET-14)."""
        here = [c for c in self._connections if c.address == address]
        if len(here) >= self._limits.per_address:
            return self._evict(here)
        return len(self._connections) < self._limits.associations or self._evict(list(self._connections))

    def _evict(self, connections: Sequence[_Connection]) -> bool:
        now = time.monotonic()
        for connection in sorted(connections, key=lambda c: c.opened):
            if connection.gives_way(now):
                connection.cut()
                self._connections.discard(connection)
                return True
        return False

    def _forget(self, connection: _Connection, rejection: Rejection | None) -> None:
        with self._lock:
            if rejection is None:
                self._connections.discard(connection)
            else:
                self._rejecting -= 1

    def _cut_all(self) -> None:
        deadline = time.monotonic() + _FORCED_S
        while time.monotonic() < deadline:
            with self._lock:
                if not self._connections:
                    return
                for connection in self._connections:
                    connection.cut()
            time.sleep(0.02)

    # --- the association's thread -------------------------------------------------------------------------------------

    def _run(self, connection: _Connection, rejection: Rejection | None) -> None:
        wire = None
        try:
            wire = self._open_wire(connection, self._limits if rejection is None else self._rejecting_limits)
            connection.wire = wire
            self._converse(connection, wire, rejection)
        except AssociationEnded as ended:  # before there was an association
            _abort(wire, ended.abort)
            if wire is None or wire.received or ended.end is not End.DISCONNECTED:
                self._refused(connection, "", "", Refusal.PROTOCOL)
        except Exception as error:  # noqa: BLE001 - one association's bug must not end the listener
            _abort(wire, (2, 0))
            log_bug("association_failed", error)
        finally:
            self._forget(connection, rejection)
            if wire is not None:
                wire.close()
            connection.sock.close()

    def _open_wire(self, connection: _Connection, limits: Limits) -> Wire:
        try:
            if self._wrap is not None:
                connection.sock.settimeout(self._limits.handshake_s)
                connection.sock = self._wrap(connection.sock)
            return Wire(connection.sock, limits)
        except OSError:
            raise AssociationEnded(End.DISCONNECTED, "no handshake") from None

    def _converse(self, connection: _Connection, wire: Wire, rejection: Rejection | None) -> None:
        request = decode_request(wire.read_request())
        connection.has_asked = True
        peer = None
        if rejection is None:
            peer, rejection = self._judge(connection, request)
        if peer is None or rejection is not None:
            rejection = rejection or NO_REASON
            wire.send(rejection.encode())
            self._refused(connection, request.calling, request.called, _REASONS.get(rejection, Refusal.PROTOCOL))
            return
        answer, contexts = accept(request, self._contexts, self._limits.pdu_bytes)
        sender = Sender(peer.name, request.calling, request.called, str(connection.address), secrets.token_hex(8))
        association = Association(wire, sender, contexts, request.peer_maximum, self._service)
        wire.rewind()
        wire.send(answer)
        connection.association = association
        self._serve(connection, association, wire, sender, peer.idle_s)

    def _serve(
        self, connection: _Connection, association: Association, wire: Wire, sender: Sender, idle_s: float
    ) -> None:
        self._observer(AssociationOpened(sender))
        end = End.ERROR
        try:
            end = association.serve(idle_s)
        except AssociationEnded as ended:
            end = ended.end
            _abort(wire, ended.abort)
        finally:
            connection.association = None
            seconds = time.monotonic() - connection.opened
            facts = {"association": sender.association_id, "sender": sender.alias, "reason": str(end)}
            _log.info("association_closed", extra={**facts, "count": association.stored, "seconds": round(seconds, 3)})
            self._observer(AssociationClosed(sender, end, seconds, association.stored, wire.received))

    def _judge(self, connection: _Connection, request: AssociationRequest) -> tuple[Peer | None, Rejection | None]:
        """Return the peer, or why there is none: closed list, then what the request asks for, then its limit."""
        if request.protocol_version & 1 == 0:
            return None, UNKNOWN_PROTOCOL
        named = [peer for peer in self._peers if peer.ae_title == request.calling]
        here = [peer for peer in named if any(connection.address in network for network in peer.addresses)]
        if not here:
            return None, UNKNOWN_CALLING
        allowed = [peer for peer in here if not peer.called_ae_titles or request.called in peer.called_ae_titles]
        if not allowed or request.called not in self._ae_titles:
            return None, UNKNOWN_CALLED
        if request.application_context != APPLICATION_CONTEXT:
            return None, UNKNOWN_APPLICATION_CONTEXT
        if not request.contexts:
            return None, NO_REASON
        peer = allowed[0]
        with self._lock:
            if sum(c.peer_name == peer.name for c in self._connections) >= peer.max_associations:
                return None, AT_LIMIT
            connection.peer_name = peer.name
        return peer, None

    def _refused(self, connection: _Connection, calling: str, called: str, reason: Refusal) -> None:
        address = str(connection.address)
        facts = {"calling_ae_title": calling, "called_ae_title": called, "address": address, "reason": str(reason)}
        if reason is Refusal.PEER and calling:
            facts["line"] = lines_to_add(calling, address, self._peers)
        _log.warning("association_refused", extra=facts)
        self._observer(AssociationRefused(calling, called, address, reason))


_REASONS = {
    UNKNOWN_CALLING: Refusal.PEER,
    UNKNOWN_CALLED: Refusal.CALLED,
    AT_LIMIT: Refusal.LIMIT,
    CONGESTED: Refusal.DRAINING,
}


def _address(text: str) -> Address:
    """Return the address; an IPv4 one that came to an IPv6 socket as the IPv4 one that it is."""
    address = ipaddress.ip_address(text.split("%", maxsplit=1)[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _abort(wire: Wire | None, abort: tuple[int, int] | None) -> None:
    if wire is not None and abort is not None:
        with contextlib.suppress(AssociationEnded):  # nobody may be there to hear it
            wire.send(abort_pdu(*abort))
