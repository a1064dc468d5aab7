"""The listener's process: sockets, spool, journal, and nothing that could hold reception up."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from ipaddress import ip_network

from node.config import PeerSection, Settings, software_version
from node.dicom.header_walk import WalkLimits
from node.dicom.scp import (
    AssociationClosed,
    AssociationOpened,
    AssociationRefused,
    EchoAnswered,
    InstanceRefused,
    InstanceStored,
    Limits,
    Peer,
    Scp,
    ScpEvent,
)
from node.dicom.storage_classes import UNCOMPRESSED, storage_contexts
from node.errors import ConfigError, JournalUnavailable
from node.monitor import metrics
from node.monitor.http import Check, Health
from node.monitor.metrics import Role
from node.service.process import Process
from node.stations.receive import Receiver
from node.store.journal import Journal
from node.store.spool import INCOMING, Spool

_log = logging.getLogger(__name__)

_BEAT_S = 1.0
_DECODERS = "import json; from node.dicom.decoding import decoders; print(json.dumps(sorted(decoders())))"


def run(settings: Settings) -> int:
    """Receive until told to stop, then let running objects end (NET-37); returns the exit status."""
    process = Process(settings, Role.LISTENER)
    with process.running(), Journal.open(settings.journal_url) as journal:
        spool = Spool(settings.spool_folder, settings.spool.reserve_bytes)
        removed = spool.sweep_orphans({path.rpartition("/")[2] for path in journal.spooled_paths()}, INCOMING)
        if removed:
            _log.info("orphans_removed", extra={"count": removed})
        try:
            _serve(process, journal, spool)
        finally:
            spool.close()
    return 0


def _serve(process: Process, journal: Journal, spool: Spool) -> None:
    settings = process.settings
    observer = Observer(journal)
    receiver = Receiver(spool, journal, walk_limits(settings))
    scp = open_scp(settings, receiver, observer, decodable_syntaxes())
    heart = Heart(process, journal, scp, spool)
    with process.monitor(vocabulary(settings), heart.health()):
        heart.start()
        accepting = threading.Thread(target=scp.serve_forever, name="accept")
        accepting.start()
        while accepting.is_alive() and not process.stop.wait(0.5):
            pass
        scp.stop(settings.listener.stop_grace_s)
        accepting.join()
        heart.stop()


def decodable_syntaxes() -> frozenset[str]:
    """Transfer syntaxes whose decoder passes its self-test (NET-6), asked of a child: nothing is decoded in here."""
    child = subprocess.run([sys.executable, "-c", _DECODERS], capture_output=True, check=False, timeout=120)
    if child.returncode != 0:
        _log.error("decoders_not_tested", extra={"exit_code": child.returncode})
        return frozenset(UNCOMPRESSED)
    return frozenset(json.loads(child.stdout.splitlines()[-1]))


def open_scp(settings: Settings, receiver: Receiver, observer: Observer, decodable: Collection[str]) -> Scp:
    """The listening socket.

    Raises
    ------
    ConfigError
        Where the port cannot be had.
    """
    section = settings.listener
    try:
        return Scp(
            section.host,
            section.port,
            settings.called_ae_titles,
            [_peer(peer, settings) for peer in settings.peer],
            limits(settings),
            contexts=storage_contexts(decodable),
            sink_factory=receiver.open,
            observer=observer,
        )
    except OSError as error:
        raise ConfigError(
            f"listener.port = {section.port}: cannot listen on {section.host}: {error.strerror}; choose another"
        ) from error


def _peer(section: PeerSection, settings: Settings) -> Peer:
    most, idle_s = section.max_associations, section.idle_s
    return Peer(
        name=section.name,
        ae_title=section.ae_title,
        addresses=tuple(ip_network(address) for address in section.addresses),
        called_ae_titles=section.called_ae_titles,
        idle_s=settings.listener.idle_s if idle_s is None else idle_s,
        max_associations=settings.listener.max_associations_per_peer if most is None else most,
    )


def limits(settings: Settings) -> Limits:
    """Caps and deadlines of the upper layer (NET-14 to NET-16)."""
    section = settings.listener
    return Limits(
        associations=section.max_associations,
        per_address=section.max_associations_per_address,
        pdu_bytes=section.max_pdu_bytes,
        request_bytes=section.max_associate_rq_bytes,
        command_bytes=section.max_command_bytes,
        object_bytes=section.max_object_bytes,
        handshake_s=section.handshake_s,
        artim_s=section.artim_s,
        progress_s=section.progress_s,
    )


def walk_limits(settings: Settings) -> WalkLimits:
    """Caps on one data set (SEC-4)."""
    section = settings.listener
    return WalkLimits(elements=section.max_elements, depth=section.max_depth, header_bytes=section.max_header_bytes)


def vocabulary(settings: Settings) -> metrics.Vocabulary:
    """The label values of the listener's metrics: it knows no models."""
    return metrics.Vocabulary(
        version=software_version(),
        model_set="",
        senders=[peer.name for peer in settings.peer],
        expected_active=[peer.name for peer in settings.peer if peer.expected_active],
    )


class Observer:
    """Turns what the SCP tells into metrics and rows of refused peers; the SCP writes the log itself."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __call__(self, event: ScpEvent) -> None:
        """Take one event, in the thread of its association."""
        match event:
            case InstanceStored():
                _stored(event)
            case InstanceRefused():
                _refused(event)
            case AssociationOpened(sender):
                metrics.ASSOCIATIONS.labels(sender=sender.alias, result="accepted").inc()
                metrics.OPEN_ASSOCIATIONS.labels(sender=sender.alias).inc()
            case AssociationClosed():
                _closed(event)
            case AssociationRefused():
                self._turned_away(event)
            case EchoAnswered(sender):
                metrics.DIMSE_REQUESTS.labels(op="c-echo", sender=sender.alias, status_class="success").inc()

    def _turned_away(self, event: AssociationRefused) -> None:
        metrics.ASSOCIATIONS.labels(sender=metrics.UNKNOWN, result=str(event.reason)).inc()
        try:
            self._journal.refused_peer(event.calling_ae_title, event.called_ae_title, event.address, str(event.reason))
        except JournalUnavailable as error:
            _log.warning("refused_peer_not_noted", exc_info=error)


def _stored(event: InstanceStored) -> None:
    alias = event.sender.alias
    metrics.DIMSE_REQUESTS.labels(op="c-store", sender=alias, status_class="success").inc()
    metrics.RECEIVED_INSTANCES.labels(sender=alias, kind=event.kind).inc()
    metrics.RECEIVED_BYTES.labels(sender=alias).inc(event.length)
    metrics.STORE_DURATION.observe(event.seconds)
    metrics.SENDER_LAST_INSTANCE.labels(sender=alias).set(time.time())


def _refused(event: InstanceRefused) -> None:
    alias, status = event.sender.alias, event.status
    metrics.DIMSE_REQUESTS.labels(op="c-store", sender=alias, status_class=metrics.status_class(status)).inc()


def _closed(event: AssociationClosed) -> None:
    alias = event.sender.alias
    metrics.OPEN_ASSOCIATIONS.labels(sender=alias).dec()
    metrics.ASSOCIATIONS.labels(sender=alias, result=str(event.end)).inc()


class Heart:
    """Says each second that the listener lives and what it has open: silence counts only while it does (gate 2)."""

    def __init__(self, process: Process, journal: Journal, scp: Scp, spool: Spool) -> None:
        self._process = process
        self._journal = journal
        self._scp = scp
        self._spool = spool
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat_for_ever, name="heart", daemon=True)
        self._last_beat = time.monotonic()
        self._has_room = True

    def start(self) -> None:
        """Beat once, then begin."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what it said last grows old."""
        self._stopping.set()
        self._thread.join(10)

    def health(self) -> Health:
        """For the role's port: it is ready while the journal takes rows and the spool has room (OBS-4)."""
        return Health(
            role=str(self._process.role),
            readiness={
                "journal": lambda: Check(time.monotonic() - self._last_beat < 10 * _BEAT_S, "journal_locked"),
                "spool": lambda: Check(self._has_room, "disk_full"),
            },
        )

    def _beat_for_ever(self) -> None:
        while not self._stopping.wait(_BEAT_S):
            try:
                self._beat()
            except JournalUnavailable as error:
                _log.warning("heartbeat_not_written", exc_info=error)

    def _beat(self) -> None:
        activity = self._scp.activity()
        self._journal.heartbeat(
            self._process.executor_id, self._scp.started_at, activity.open_associations, activity.arriving
        )
        self._process.beat(self._journal)
        self._last_beat = time.monotonic()
        free = self._spool.free_bytes()
        reserve = self._process.settings.spool.reserve_bytes
        self._has_room = free >= reserve
        metrics.SPOOL_FREE_BYTES.set(max(0, free - reserve))
        metrics.WATERMARK_STATE.set(0 if self._has_room else 1)
