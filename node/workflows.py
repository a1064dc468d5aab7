"""The durable queues: DBOS in a small role. It dequeues, orders, restarts; the journal decides; the sweep enqueues.

One workflow is one step is one call of a station with (row_id, attempt). Nothing else stands in an argument or an id:
both are logged and outlive us. This is the only file that knows the engine, and one of two that may catch everything.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dbos._serialization
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, Serializer, SetEnqueueOptions, SetWorkflowID

from node.domain.work import Station, WorkRow
from node.errors import JournalUnavailable
from node.monitor import metrics
from node.stations.sweep import EngineRow, EngineState, Sweep
from node.stations.turns import VOLUMES
from node.store.journal import Journal

_log = logging.getLogger(__name__)

APPLICATION_VERSION = "hilum-1"
"""A constant: DBOS neither dequeues nor recovers what another version enqueued. It changes with the arguments alone."""
WATCHDOG_EXIT = 75
_MOST_PRIORITY = 1001
_STATES: Mapping[str, EngineState] = {
    "ENQUEUED": EngineState.ENQUEUED,
    "DELAYED": EngineState.ENQUEUED,
    "PENDING": EngineState.CLAIMED,
    "SUCCESS": EngineState.ENDED,
    "CANCELLED": EngineState.CANCELLED,
    "ERROR": EngineState.ERROR,
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": EngineState.ERROR,
}
_FINISHED = ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
_QUEUES: Mapping[Station, Mapping[str, Any]] = {
    Station.ASSEMBLE: {"worker_concurrency": 4, "polling_interval_sec": 0.2},
    Station.SEGMENT: {"worker_concurrency": VOLUMES, "polling_interval_sec": 0.2},
    Station.DELIVER: {"worker_concurrency": 16, "partition_worker_concurrency": 2, "polling_interval_sec": 0.2},
}

StationCall = Callable[[int, int], str]


class Refuse(Serializer):
    """Stands where DBOS unpickles whatever a row of its data base says is a pickle: code from a row must not run."""

    def serialize(self, data: Any) -> str:
        """Refuse."""
        raise TypeError("pickles are not written")

    def deserialize(cls, serialized_data: str) -> Any:  # noqa: N805 - as DBOS has it
        """Refuse."""
        raise TypeError("pickles are not read")

    def name(self) -> str:
        """The name of what it replaces."""
        return "py_pickle"


@dataclass(frozen=True)
class Executor:
    """How the engine knows this process."""

    engine_path: Path
    executor_id: str
    """Of this process alone, and the same after a restart: the engine gives back what it had begun."""
    listens: frozenset[Station]


class DbosEngine:
    """The durable engine of this process; there can be one.

    Parameters
    ----------
    calls
        The stations that this process runs. Every flow is registered in every process, as an engine that claims an
        unknown one never lets it go.
    """

    def __init__(self, executor: Executor, calls: Mapping[Station, StationCall]) -> None:
        self._executor = executor
        self._flows = {station: _flow(station, calls.get(station, _not_here)) for station in Station}

    def launch(self) -> None:
        """Open the engine's data base, creating it, and begin to dequeue."""
        _prepare(self._executor.engine_path)
        logging.getLogger("dbos").addHandler(logging.NullHandler())  # before DBOS(): no console handler of its own
        dbos._serialization.DBOSDefaultSerializer = Refuse()
        config = DBOSConfig(
            name="hilum",
            system_database_url=f"sqlite:///{self._executor.engine_path}",
            executor_id=self._executor.executor_id,
            application_version=APPLICATION_VERSION,
            serializer=DBOSPortableJSONSerializer(),
            sys_db_pool_size=5,
            log_level="WARNING",
        )
        DBOS(config=config)
        DBOS.listen_queues(sorted(station.value for station in self._executor.listens))
        DBOS.launch()
        for station, limits in _QUEUES.items():
            DBOS.register_queue(station.value, **limits)

    def stop(self, grace_s: int) -> None:
        """Stop dequeuing and wait for what runs."""
        DBOS.destroy(workflow_completion_timeout_sec=grace_s)

    def rows(self, keys: Sequence[str]) -> Mapping[str, EngineRow]:
        """What the engine knows of these keys."""
        known: dict[str, EngineRow] = {}
        mine_is_latest = DBOS.get_latest_application_version()["version_name"] == APPLICATION_VERSION
        for first in range(0, len(keys), 500):
            some = list(keys[first : first + 500])
            for row in DBOS.list_workflows(workflow_ids=some, load_input=False, load_output=False):
                same = row.app_version in (None, APPLICATION_VERSION) or not mine_is_latest
                known[row.workflow_id] = EngineRow(_STATES[row.status], same, f"the engine gave up: {row.status}")
        return known

    def enqueue(self, row: WorkRow) -> None:
        """Put a row into its station's queue; smaller numbers go first there, larger ones here."""
        partition = row.destination if row.station is Station.DELIVER else None
        priority = max(1, _MOST_PRIORITY - row.priority)
        options = SetEnqueueOptions(priority=priority, queue_partition_key=partition)
        with SetWorkflowID(row.key), options:
            DBOS.enqueue_workflow(row.station.value, self._flows[row.station], row.id, row.attempt)

    def cancel(self, key: str) -> None:
        """Take a key out of its queue, and its claim from whoever has it."""
        DBOS.cancel_workflow(key)

    def forget_finished(self, older_than: timedelta) -> int:
        """Delete the engine's rows of finished work; returns how many. The journal keeps the history."""
        before = (datetime.now(UTC) - older_than).isoformat()
        old = DBOS.list_workflows(
            status=_FINISHED, completed_before=before, limit=500, load_input=False, load_output=False
        )
        if old:
            DBOS.delete_workflows([row.workflow_id for row in old])
        return len(old)


class Leases:
    """What runs in this process: a thread says so in the journal, and ends the process when something hangs.

    Parameters
    ----------
    budgets_s
        The longest that a call of a station may take, where `allow` says nothing else.
    on_beat
        Called at each beat as well: the role's own sign of life.
    """

    def __init__(
        self,
        journal: Journal,
        budgets_s: Mapping[Station, float],
        on_beat: Callable[[], None],
        period_s: float = 1.5,
        end_process: Callable[[int], None] = os._exit,
    ) -> None:
        self._journal = journal
        self._budgets_s = budgets_s
        self._on_beat = on_beat
        self._period_s = period_s
        self._end_process = end_process
        self._lock = threading.Lock()
        self._held: dict[tuple[Station, int, int], float] = {}
        self._own_s: dict[tuple[Station, int, int], float] = {}
        self._owed: list[tuple[Station, int, int]] = []
        self._beat = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._renew_for_ever, name="leases", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> tuple[tuple[Station, int, int], ...]:
        """End the thread; returns what still runs, and what is still to be given back."""
        self._stopping.set()
        self._thread.join(self._period_s * 2)
        with self._lock:
            return (*self._held, *self._owed)

    @contextlib.contextmanager
    def hold(self, station: Station, row_id: int, attempt: int) -> Iterator[None]:
        """Keep a row for as long as the block runs."""
        key = (station, row_id, attempt)
        with self._lock:
            self._held[key] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._held.pop(key, None)
                self._own_s.pop(key, None)

    def allow(self, station: Station, row_id: int, attempt: int, seconds: float) -> None:
        """Let a held row take so long from now on, whatever its station may."""
        key = (station, row_id, attempt)
        with self._lock:
            if key in self._held:
                self._held[key], self._own_s[key] = time.monotonic(), seconds

    @contextlib.contextmanager
    def rest(self, station: Station, row_id: int, attempt: int) -> Iterator[None]:
        """Let the time of a held row stand still while it waits for others, whose own time runs on."""
        key, began = (station, row_id, attempt), time.monotonic()
        with self._lock:
            since = self._held.get(key, began)
            self._held[key] = math.inf
        try:
            yield
        finally:
            with self._lock:
                self._held[key] = since + time.monotonic() - began

    def owe(self, station: Station, row_id: int, attempt: int) -> None:
        """Give a row back as soon as the journal can be written: its call ended for want of it, and nothing died."""
        with self._lock:
            self._owed.append((station, row_id, attempt))

    @property
    def last_beat_s(self) -> float:
        """Seconds since the thread last turned."""
        return time.monotonic() - self._beat

    def _renew_for_ever(self) -> None:
        while not self._stopping.wait(self._period_s):
            self._watch()
            try:
                self._beat_once()
            except JournalUnavailable as error:
                _log.warning("leases_not_renewed", exc_info=error)

    def _beat_once(self) -> None:
        with self._lock:
            held, owed = tuple(self._held), tuple(self._owed)
        for row in owed:
            if not self._journal.give_back(row, "journal_unavailable"):
                self._journal.outlived(row)  # where a sweep was quicker
            with self._lock:
                self._owed.remove(row)
        if held:
            self._journal.renew(held)
        self._on_beat()
        self._beat = time.monotonic()

    def _watch(self) -> None:
        """End the process when a call hangs: only that frees its slot and its device (the supervisor starts anew)."""
        now = time.monotonic()
        with self._lock:
            limits_s = {key: self._own_s.get(key, self._budgets_s[key[0]]) for key in self._held}
            hung = [key for key, since in self._held.items() if now - since > limits_s[key]]
        for station, row_id, attempt in hung:
            _log.critical("station_hangs", extra={"stage": str(station), "workflow": f"{station}.{row_id}.{attempt}"})
        if hung:
            self._end_process(WATCHDOG_EXIT)


def guarded(
    station: Station, run: StationCall, journal: Journal, leases: Leases, on_end: Callable[[], None]
) -> StationCall:
    """A station's call that holds its lease, and that ends every error of ours as a failed row with its traceback.

    Where the journal cannot be written the call ends in order: the row is given back once it can, not counted as dead.
    """

    def call(row_id: int, attempt: int) -> str:
        with leases.hold(station, row_id, attempt):
            try:
                return _run_or_fail(station, run, journal, row_id, attempt)
            except JournalUnavailable as error:
                _log.warning("journal_unavailable", exc_info=error, extra={"stage": str(station)})
                leases.owe(station, row_id, attempt)
                return "journal_unavailable"
            finally:
                on_end()

    return call


def _run_or_fail(station: Station, run: StationCall, journal: Journal, row_id: int, attempt: int) -> str:
    try:
        done = run(row_id, attempt)
    except JournalUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a bug, and the row says so
        _log.error("station_failed", exc_info=error, extra={"stage": str(station), "workflow": f"{station}.{row_id}"})
        if journal.fail(station, row_id, attempt, "bug", _trace(error)):
            metrics.JOBS_FAILED.labels(stage=station, cause="bug").inc()
        return "failed"
    journal.outlived((station, row_id, attempt))
    return done


class SweepThread:
    """Turns a sweep again and again, at once when something ended in this process."""

    def __init__(self, sweep: Sweep, engine: DbosEngine, period_s: float) -> None:
        self._sweep = sweep
        self._engine = engine
        self._period_s = period_s
        self._wake = threading.Event()
        self._stopping = False
        self._next_cleaning = 0.0
        self._thread = threading.Thread(target=self._turn_for_ever, name="sweep", daemon=True)
        self.last_turn = time.monotonic()

    def start(self) -> None:
        """Begin to sweep."""
        self._thread.start()

    def wake(self) -> None:
        """Sweep now: something has changed."""
        self._wake.set()

    def stop(self) -> None:
        """End after the turn that runs."""
        self._stopping = True
        self._wake.set()
        self._thread.join(30)

    def _turn_for_ever(self) -> None:
        while not self._stopping:
            self._wake.wait(self._period_s)
            self._wake.clear()
            try:
                self._sweep.turn()
                self._clean()
                self.last_turn = time.monotonic()
            except Exception as error:  # noqa: BLE001 - the engine raises what it likes; the next turn may do
                _log.error("sweep_failed", exc_info=error)
                time.sleep(self._period_s)

    def _clean(self) -> None:
        if time.monotonic() >= self._next_cleaning:
            self._next_cleaning = time.monotonic() + 600.0
            self._engine.forget_finished(timedelta(days=1))


def stop_engine(engine: DbosEngine, leases: Leases, journal: Journal, grace_s: int) -> None:
    """Stop dequeuing, wait for what runs, and give the rest back: due at once, and not counted as a death."""
    engine.stop(grace_s)
    for station, row_id, attempt in leases.stop():
        journal.give_back((station, row_id, attempt), "stopped")
        _log.warning("given_back", extra={"workflow": f"{station}.{row_id}.{attempt}"})


def _flow(station: Station, call: StationCall) -> Callable[[int, int], str]:
    """The workflow of a station: one step, one call."""
    step = DBOS.step(name=station.value)(call)

    @DBOS.workflow(name=station.value, max_recovery_attempts=20)  # a backstop: the journal's three starts come first
    def flow(row_id: int, attempt: int) -> str:
        done: str = step(row_id, attempt)
        return done

    return flow


def _not_here(_row_id: int, _attempt: int) -> str:
    return "not_here"


def _prepare(path: Path) -> None:
    """An engine data base for its owner alone, in WAL mode, which DBOS does not set."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error))[-8000:]
