"""What every role does as a process: its name and lock, its log, its port, its signals, its sign of life."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import threading
import time
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


SUPERVISOR_PID = "HILUM_SUPERVISOR_PID"
"""Environment variable by which the supervisor tells its roles whom to end with."""
_LOOK_S = 0.5
_ORPHAN_S = 35.0
"""As long as the supervisor would have waited for a role that it has told to stop."""
_LOCK_S = 1.0
"""`runs` holds a lock for a moment; a role that starts just then waits for it."""


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
        self.executor_id = executor_id(settings, role)
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
        os.umask(0o077)  # whatever a role writes may hold patients' data
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        level = logging.getLevelNamesMapping()[self.settings.monitor.log_level.upper()]
        logs.configure(logs.LogStyle(str(self.role), logs.site_key(folder / "log.key"), level))
        self.stop.listen()
        with _held(_lock(self.settings, self.role), self.executor_id):
            if supervisor := os.environ.get(SUPERVISOR_PID):
                threading.Thread(target=self._end_with, args=(int(supervisor),), name="parent", daemon=True).start()
            _log.info("started", extra={"version": software_version(), "entity": self.executor_id})
            yield
            _log.info("stopped", extra={"entity": self.executor_id})

    def monitor(
        self, vocabulary: metrics.Vocabulary, health: Health, read_journal: Callable[[], JournalCounts] | None = None
    ) -> contextlib.AbstractContextManager[object]:
        """Serve the role's port; a role without one still has its counters."""
        registry = metrics.initialise(self.role, vocabulary, read_journal)
        section = self.settings.monitor
        port = section.ports[self.role]
        if not port:
            return contextlib.nullcontext()
        try:
            return MonitorServer(section.host, port, registry, health)
        except OSError as error:
            raise ConfigError(
                f"monitor.{self.role}_port = {port}: cannot listen on {section.host}: {error.strerror}; choose another"
            ) from error

    def _end_with(self, supervisor: int) -> None:
        """Stop once the supervisor is gone, as if it had said so: without it nobody would start or stop this role."""
        while os.getppid() == supervisor:
            time.sleep(_LOOK_S)
        _log.error("supervisor_gone", extra={"pid_of": supervisor})
        self.stop.tell()
        time.sleep(_ORPHAN_S)
        leave(1)

    def beat(self, journal: Journal) -> None:
        """Say in the journal that this process lives."""
        journal.role_seen(self.executor_id, str(self.role), os.getpid(), self.started_at)


def leave(status: int) -> NoReturn:
    """End this process at once: a step of the durable queues that still runs would keep the interpreter alive."""
    logging.shutdown()
    os._exit(status)


def executor_id(settings: Settings, role: str) -> str:
    """The name of a role's process, unique among running ones and the same after a restart: `hilum-worker-0`."""
    return f"{settings.node.name}-{role}-0"


def runs(settings: Settings, role: str) -> bool:
    """Whether a process holds the lock of a role: what is true now, not when it last said so."""
    try:
        with _lock(settings, role).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _lock(settings: Settings, role: str) -> Path:
    return settings.node.data_dir / f"{executor_id(settings, role)}.lock"


@contextlib.contextmanager
def _held(path: Path, executor_id: str) -> Iterator[None]:
    """An exclusive lock, which the system gives back however the process ends."""
    with path.open("a+") as file:
        if not _locked(file):
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise ConfigError(
                f"another process, pid {pid}, runs as {executor_id} (lock {path}); stop it and wait for its end, or "
                "give this node another data_dir"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _locked(file: TextIO) -> bool:
    """Whether the exclusive lock could be had."""
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True
