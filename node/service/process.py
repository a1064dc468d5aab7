"""What every role does as a process: its name and lock, its log, its port, its signals, its sign of life."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from node.config import Settings, software_version
from node.domain.counts import JournalCounts
from node.errors import ConfigError
from node.monitor import logs, metrics
from node.monitor.http import Health, MonitorServer
from node.store.journal import Journal

_log = logging.getLogger(__name__)


class Stop:
    """Told by SIGTERM or SIGINT; the role's main thread waits for it."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def listen(self) -> None:
        """Take over both signals; SIGHUP, which is the supervisor's, is let pass."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _told(self, number: int, _frame: FrameType | None) -> None:
        _log.info("stopping", extra={"signal": signal.Signals(number).name})
        self._event.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it was told, waiting for at most so long."""
        return self._event.wait(timeout_s)

    def tell(self) -> None:
        """Stop from within."""
        self._event.set()


class Process:
    """One role as a process.

    Attributes
    ----------
    executor_id
        Unique among running processes and the same after a restart: `hilum-worker-0`.
    """

    def __init__(self, settings: Settings, role: metrics.Role) -> None:
        self.settings = settings
        self.role = role
        self.executor_id = f"{settings.node.name}-{role}-0"
        self.started_at = datetime.now(UTC)
        self.stop = Stop()
        self._lock: TextIO | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Hold the role's lock, with its log and signals set up.

        Raises
        ------
        ConfigError
            Where another process runs under this id.
        """
        folder = self.settings.node.data_dir
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        level = logging.getLevelNamesMapping()[self.settings.monitor.log_level.upper()]
        logs.configure(logs.LogStyle(str(self.role), logs.site_key(folder / "log.key"), level))
        self.stop.listen()
        with _held(folder / f"{self.executor_id}.lock", self.executor_id):
            _log.info("started", extra={"version": software_version(), "entity": self.executor_id})
            yield
            _log.info("stopped", extra={"entity": self.executor_id})

    def monitor(
        self, vocabulary: metrics.Vocabulary, health: Health, read_journal: Callable[[], JournalCounts] | None = None
    ) -> contextlib.AbstractContextManager[object]:
        """Serve the role's port; a role without one still has its counters."""
        registry = metrics.initialise(self.role, vocabulary, read_journal)
        section = self.settings.monitor
        ports = {"listener": section.listener_port, "worker": section.worker_port, "segmenter": section.segmenter_port}
        port = ports[self.role]
        if not port:
            return contextlib.nullcontext()
        try:
            return MonitorServer(section.host, port, registry, health)
        except OSError as error:
            raise ConfigError(
                f"monitor.{self.role}_port = {port}: cannot listen on {section.host}: {error.strerror}; choose another"
            ) from error

    def beat(self, journal: Journal) -> None:
        """Say in the journal that this process lives."""
        journal.role_seen(self.executor_id, str(self.role), os.getpid(), self.started_at)


def leave(status: int) -> NoReturn:
    """End this process at once: a step of the durable queues that still runs would keep the interpreter alive."""
    logging.shutdown()
    os._exit(status)


@contextlib.contextmanager
def _held(path: Path, executor_id: str) -> Iterator[None]:
    """An exclusive lock, which the system gives back however the process ends."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process runs as {executor_id} (lock {path}); stop it, or give this node another data_dir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
