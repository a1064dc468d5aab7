"""The port of a role: /metrics for Prometheus, /healthz (does it live), /readyz (can it work, and what else can it do).

Liveness, readiness and capability are three questions (OBS-4). A process that hangs is restarted; one that is not ready
gets no work for now; a capability that is gone (a device, a destination) is shown and rings an alert, but never stops
reception.

Answers come from threads of their own and take no lock of the DICOM path (OBS-5): the counters' locks are held for one
addition, and the journal is asked through a read-only transaction.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from types import TracebackType
from typing import Self

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """One answer of `/readyz`."""

    ok: bool
    reason: str = ""
    """A word of a closed set: `disk_full`, `journal_locked`, `no_device`, ..."""


@dataclass(frozen=True)
class Health:
    """What a role says of itself; each function answers at once, from what the role knows already.

    Attributes
    ----------
    alive
        False where the role's own loop has not turned for too long.
    readiness
        What the role cannot work without: the listener its spool and journal, the segmenter its device.
    capabilities
        What it can do besides; never part of the status.
    """

    role: str
    alive: Callable[[], bool] = lambda: True
    readiness: Mapping[str, Callable[[], Check]] = field(default_factory=dict)
    capabilities: Mapping[str, Callable[[], Check]] = field(default_factory=dict)


class MonitorServer:
    """Serves the three pages until it is stopped; loopback unless told otherwise (SEC-12).

    Parameters
    ----------
    port
        0 lets the system choose; `port` says which it chose.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Health) -> None:
        self._server = _Server((host, port), registry, health)
        self._thread = threading.Thread(target=self._server.serve_forever, name="monitor", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def start(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close the port; requests under way end with their socket."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    """One short-lived thread for each request, at most `most_requests` at once."""

    daemon_threads = True
    most_requests = 8

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry, health: Health) -> None:
        self.registry = registry
        self.health = health
        self._slots = threading.BoundedSemaphore(self.most_requests)
        super().__init__(address, _Handler)

    def process_request(self, request: socket | tuple[bytes, socket], client_address: object) -> None:
        """Answer in a thread, or close at once where too many are being answered."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: socket | tuple[bytes, socket], client_address: object) -> None:
        """Give the slot back when the answer is out."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: object) -> None:
        """Log a request that failed; a client that went away is not worth a line."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            _log.exception("monitor_request_failed")


class _Handler(BaseHTTPRequestHandler):
    """GET of three paths; everything else is refused."""

    server: _Server
    timeout = 5
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        """Answer one page."""
        if self.path == "/metrics":
            self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self.server.registry))
        elif self.path == "/healthz":
            alive = self.server.health.alive()
            self._say(alive, {"role": self.server.health.role, "alive": alive})
        elif self.path == "/readyz":
            self._ready()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _ready(self) -> None:
        health = self.server.health
        readiness = {name: check() for name, check in health.readiness.items()}
        capabilities = {name: check() for name, check in health.capabilities.items()}
        ready = all(check.ok for check in readiness.values())
        self._say(
            ready,
            {
                "role": health.role,
                "ready": ready,
                "readiness": {name: _word(check) for name, check in readiness.items()},
                "capabilities": {name: _word(check) for name, check in capabilities.items()},
            },
        )

    def _say(self, good: bool, answer: Mapping[str, object]) -> None:
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, "application/json", json.dumps(answer).encode() + b"\n")

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """Say no more than the name."""
        return "hilum"

    def log_message(self, format: str, *args: object) -> None:
        """Write no line for a scrape."""


def _word(check: Check) -> str:
    return "ok" if check.ok else check.reason or "failed"
