"""The sweep's rules with an engine that only remembers; leases, watchdog and the guard around stations."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.domain.instance import ReceivedInstance, Sender
from node.domain.job import JobState, ObjectKind
from node.domain.series import ArrivingSeries, Completeness, Evidence, SettlePolicy
from node.domain.work import JobDraft, PartDraft, Settlement, Station, WorkRow
from node.errors import JournalUnavailable
from node.stations.sweep import EngineRow, EngineState, Stopwatch, Sweep, SweepPolicy
from node.store.journal import Journal
from node.workflows import APPLICATION_VERSION, WATCHDOG_EXIT, Leases, Refuse, guarded, stop_engine

SENDER = Sender("ct1", "CT1", "HILUM", "10.0.0.1", "a1")
SERIES = "1.2.3"


class Engine:
    """What the sweep asks of the durable engine, as a dictionary."""

    def __init__(self) -> None:
        self.known: dict[str, EngineRow] = {}
        self.enqueued: list[str] = []
        self.cancelled: list[str] = []

    def rows(self, keys: Sequence[str]) -> Mapping[str, EngineRow]:
        return {key: self.known[key] for key in keys if key in self.known}

    def enqueue(self, row: WorkRow) -> None:
        self.enqueued.append(row.key)
        self.known.setdefault(row.key, EngineRow(EngineState.ENQUEUED))

    def cancel(self, key: str) -> None:
        self.cancelled.append(key)


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> datetime:
        return datetime(2026, 11, 24, tzinfo=UTC) + timedelta(seconds=self.now)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def fast() -> Iterator[Path]:
    """A folder in memory: these tests ask what a commit does, not how long a flush takes."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="hilum-", dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def journal(fast: Path, clock: Clock) -> Iterator[Journal]:
    with Journal.open(f"sqlite:///{fast / 'journal.db'}", clock.wall) as opened:
        yield opened


@pytest.fixture
def sweep(journal: Journal, engine: Engine, clock: Clock) -> Sweep:
    return Sweep(
        journal, engine, lambda _sender: SettlePolicy(60.0, 15.0, 5400.0), SweepPolicy(), clock=clock, wall=clock.wall
    )


def receive(journal: Journal, number: int = 0) -> None:
    journal.commit(
        ReceivedInstance(
            sop_instance_uid=f"1.2.3.{number}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            study_instance_uid="1.2",
            series_instance_uid=SERIES,
            patient_id="P",
            path=Path(f"/spool/{number}.dcm"),
            length=number,
            crc32=number,
            sender=SENDER,
            received_at=datetime.now(UTC),
        )
    )


def queued_job(journal: Journal) -> int:
    receive(journal)
    (series,) = journal.open_series()
    journal.judge(series, Evidence.SILENCE)
    work = journal.begin_series(series.id, 1)
    assert work is not None
    draft = JobDraft("rule", "phantom", "m", "c", ("pacs",), 100, 64)
    part = PartDraft(1, "v", {}, ("1.2.3.0",), (), "processed", job=draft)
    settlement = Settlement(Evidence.SILENCE, Completeness.COMPLETE, 1.0, "processed", "", (part,))
    assert journal.settle(work, settlement)
    return journal.list_jobs()[0].id


def job_of(journal: Journal, job_id: int) -> Any:
    record = journal.show_job(job_id)
    assert record is not None
    return record.job


# The rules ------------------------------------------------------------------------------------------------------------


def test_rule_1_what_is_due_and_unknown_is_enqueued(journal: Journal, engine: Engine, sweep: Sweep) -> None:
    """Also after the engine's rows were deleted under load: the same key is enqueued again."""
    job_id = queued_job(journal)
    sweep.turn()
    sweep.turn()
    assert engine.enqueued == [f"segment.{job_id}.1"]
    engine.known.clear()
    sweep.turn()
    assert engine.enqueued == [f"segment.{job_id}.1"] * 2


def test_rule_2_claimed_but_never_begun(journal: Journal, engine: Engine, sweep: Sweep, clock: Clock) -> None:
    """T9: the engine gave it to a worker that died before the journal heard of it."""
    job_id = queued_job(journal)
    engine.known[f"segment.{job_id}.1"] = EngineRow(EngineState.CLAIMED)
    for _ in range(11):
        sweep.turn()
        clock.now += 3.0
    assert job_of(journal, job_id).attempt == 1
    sweep.turn()
    assert job_of(journal, job_id).attempt == 2
    assert engine.cancelled == [f"segment.{job_id}.1"]
    sweep.turn()
    assert engine.enqueued == [f"segment.{job_id}.2"]


def test_rule_2_what_waits_in_a_process_is_left_alone(
    journal: Journal, engine: Engine, sweep: Sweep, clock: Clock
) -> None:
    """Claimed and not begun is well while its process says that it waits there for its place."""
    job_id = queued_job(journal)
    engine.known[f"segment.{job_id}.1"] = EngineRow(EngineState.CLAIMED)
    for _ in range(20):
        journal.renew([(Station.SEGMENT, job_id, 1)])
        sweep.turn()
        clock.now += 3.0
    assert (job_of(journal, job_id).attempt, job_of(journal, job_id).state) == (1, JobState.QUEUED)
    for _ in range(12):
        sweep.turn()
        clock.now += 3.0
    assert job_of(journal, job_id).attempt == 2


def test_rule_3_enqueued_by_another_version(journal: Journal, engine: Engine, sweep: Sweep) -> None:
    """T4: after an update nothing moves, unless somebody asks for it anew."""
    job_id = queued_job(journal)
    engine.known[f"segment.{job_id}.1"] = EngineRow(EngineState.ENQUEUED, same_version=False)
    sweep.turn()
    assert job_of(journal, job_id).attempt == 2


def test_rule_4_a_young_lease_is_left_alone(journal: Journal, engine: Engine, sweep: Sweep, clock: Clock) -> None:
    """Even where the engine knows nothing of it."""
    job_id = queued_job(journal)
    assert journal.begin_job(job_id, 1) is not None
    for _ in range(10):
        sweep.turn()
        clock.now += 4.0
        journal.renew([(Station.SEGMENT, job_id, 1)])
    assert (job_of(journal, job_id).attempt, engine.enqueued) == (1, [])


def test_rule_5_an_old_lease_is_taken_over(journal: Journal, engine: Engine, sweep: Sweep, clock: Clock) -> None:
    job_id = queued_job(journal)
    assert journal.begin_job(job_id, 1) is not None
    engine.known[f"segment.{job_id}.1"] = EngineRow(EngineState.CLAIMED)
    for _ in range(12):
        sweep.turn()
        clock.now += 3.0
    job = job_of(journal, job_id)
    assert (job.state, job.attempt, engine.cancelled) == (JobState.QUEUED, 2, [f"segment.{job_id}.1"])


def test_rule_5_for_a_series(journal: Journal, engine: Engine, sweep: Sweep, clock: Clock) -> None:
    receive(journal)
    (series,) = journal.open_series()
    journal.judge(series, Evidence.SILENCE)
    assert journal.begin_series(series.id, 1) is not None
    for _ in range(13):
        sweep.turn()
        clock.now += 3.0
    assert engine.enqueued == [f"assemble.{series.id}.2"]


def test_rule_5_for_a_delivery(journal: Journal, engine: Engine, sweep: Sweep, clock: Clock) -> None:
    job_id = queued_job(journal)
    journal.begin_job(job_id, 1)
    journal.compose(job_id, 1, [], [("pacs", ObjectKind.SEG)], {})
    (row,) = journal.work(Station.DELIVER)
    assert journal.begin_delivery(row.id, 1) is not None
    for _ in range(13):
        sweep.turn()
        clock.now += 3.0
    assert engine.enqueued == [f"deliver.{row.id}.2"]


@pytest.mark.parametrize("begun", [False, True])
def test_rule_6_given_up_by_the_engine(journal: Journal, engine: Engine, sweep: Sweep, begun: bool) -> None:
    job_id = queued_job(journal)
    if begun:
        journal.begin_job(job_id, 1)
    engine.known[f"segment.{job_id}.1"] = EngineRow(EngineState.ERROR, error="the engine gave up: ERROR")
    sweep.turn()
    record = journal.show_job(job_id)
    assert record is not None
    assert (record.job.state, record.job.reason, record.detail) == (
        JobState.FAILED,
        "engine_error",
        "the engine gave up: ERROR",
    )


@pytest.mark.parametrize("state", [EngineState.ENDED, EngineState.CANCELLED])
def test_rule_7_ended_but_the_row_waits(journal: Journal, engine: Engine, sweep: Sweep, state: EngineState) -> None:
    job_id = queued_job(journal)
    engine.known[f"segment.{job_id}.1"] = EngineRow(state)
    sweep.turn()
    assert job_of(journal, job_id).attempt == 2


def test_any_number_of_sweeps(journal: Journal, engine: Engine, sweep: Sweep, clock: Clock) -> None:
    """Two sweeps take a row over once."""
    job_id = queued_job(journal)
    journal.begin_job(job_id, 1)
    other = Sweep(journal, engine, lambda _: SettlePolicy(), SweepPolicy(), clock=clock, wall=clock.wall)
    for _ in range(13):
        sweep.turn()
        other.turn()
        clock.now += 3.0
    assert job_of(journal, job_id).attempt == 2


def test_a_sweep_that_stood_still_judges_nobody(journal: Journal, engine: Engine, sweep: Sweep, clock: Clock) -> None:
    """SIGSTOP of the worker: what is old by its clock may be young by everybody else's."""
    job_id = queued_job(journal)
    journal.begin_job(job_id, 1)
    sweep.turn()
    clock.now += 45.0
    sweep.turn()
    assert job_of(journal, job_id).attempt == 1


# Settling -------------------------------------------------------------------------------------------------------------


def turns(sweep: Sweep, clock: Clock, journal: Journal, seconds: float, *, alive: bool = True) -> None:
    """Turn once a second of the test's clock, with the listener's heartbeat or without."""
    for _ in range(int(seconds)):
        if alive:
            journal.heartbeat("l1", _STARTED, 0, [])
        sweep.turn()
        clock.now += 1.0


_STARTED = datetime(2026, 11, 23, tzinfo=UTC)


def test_silence_is_measured_by_the_monotonic_clock(journal: Journal, sweep: Sweep, clock: Clock) -> None:
    """ASM-2: a series whose rows say that it is an hour old has, to this process, just come."""
    journal.heartbeat("l1", _STARTED, 0, [])
    turns(sweep, clock, journal, 62)
    receive(journal)
    turns(sweep, clock, journal, 14)
    assert journal.work(Station.ASSEMBLE) == ()
    turns(sweep, clock, journal, 3)
    (row,) = journal.work(Station.ASSEMBLE)
    record = journal.show_series(SERIES)
    assert record is not None
    assert record.summary.evidence == Evidence.RELEASED
    assert not row.running


def test_bytes_in_flight_are_no_silence(journal: Journal, sweep: Sweep, clock: Clock) -> None:
    """ASM-2: an object that takes 90 s does not let its series settle."""
    receive(journal)
    for _ in range(150):
        journal.heartbeat("l1", _STARTED, 1, [ArrivingSeries(SERIES, 1, clock.wall())])
        sweep.turn()
        clock.now += 1.0
    assert journal.work(Station.ASSEMBLE) == ()


def test_gate_2_a_dead_listener_is_no_silence(journal: Journal, sweep: Sweep, clock: Clock) -> None:
    """T7: the listener dies in mid-series for less than a minute; nothing settles while nobody listens."""
    turns(sweep, clock, journal, 62)
    receive(journal)
    turns(sweep, clock, journal, 5)
    turns(sweep, clock, journal, 50, alive=False)
    assert journal.work(Station.ASSEMBLE) == ()


# Leases, guard, serializer --------------------------------------------------------------------------------------------


def test_leases_are_renewed_while_a_station_runs(journal: Journal, clock: Clock) -> None:
    job_id = queued_job(journal)
    journal.begin_job(job_id, 1)
    before = journal.work(Station.SEGMENT)[0].lease_at
    leases = Leases(journal, dict.fromkeys(Station, 60.0), lambda: None, period_s=0.05)
    leases.start()
    clock.now += 1.0
    with leases.hold(Station.SEGMENT, job_id, 1):
        time.sleep(1.0)
    after = journal.work(Station.SEGMENT)[0].lease_at
    assert before is not None
    assert after == clock.wall()
    assert leases.stop() == ()


def test_the_watchdog_ends_a_process_that_hangs(journal: Journal) -> None:
    """T13: only the end of the process frees a slot whose call does not return."""
    ended: list[int] = []
    leases = Leases(journal, dict.fromkeys(Station, 0.1), lambda: None, 0.05, ended.append)
    leases.start()
    with leases.hold(Station.SEGMENT, 1, 1):
        time.sleep(1.0)
    leases.stop()
    assert ended
    assert ended[0] == WATCHDOG_EXIT == 75


def test_who_waits_for_others_does_not_hang(journal: Journal) -> None:
    """Its time stands still while it rests, and goes on afterwards; its lease is renewed all the while."""
    job_id = queued_job(journal)
    ended: list[int] = []
    leases = Leases(journal, dict.fromkeys(Station, 0.5), lambda: None, 0.05, ended.append)
    leases.start()
    row = (Station.SEGMENT, job_id, 1)
    with leases.hold(*row):
        with leases.rest(*row):
            time.sleep(1.2)
        assert not ended
        assert journal.work(Station.SEGMENT)[0].lease_at is not None, "it waits here, and that is known"
        with leases.rest(*row):
            pass
        time.sleep(1.2)
    leases.stop()
    assert ended


def test_a_row_may_be_allowed_more_than_its_station(journal: Journal) -> None:
    """From the moment on at which that is said; the next one has the station's time again."""
    job_id = queued_job(journal)
    ended: list[int] = []
    leases = Leases(journal, dict.fromkeys(Station, 0.3), lambda: None, 0.05, ended.append)
    leases.start()
    row = (Station.SEGMENT, job_id, 1)
    with leases.hold(*row):
        leases.allow(*row, 60.0)
        time.sleep(0.8)
        assert not ended
    with leases.hold(*row):
        time.sleep(0.8)
    leases.stop()
    assert ended


def died_over(fast: Path, job_id: int, attempt: int) -> None:
    """Another process begins a job, and is gone."""
    with Journal.open(f"sqlite:///{fast / 'journal.db'}") as other:
        assert other.begin_job(job_id, attempt) is not None


@pytest.mark.parametrize("how", ["stopped", "journal_unavailable", "not_mine"])
@pytest.mark.parametrize("taken_over", [False, True])
def test_what_only_waited_was_not_begun(journal: Journal, fast: Path, how: str, taken_over: bool) -> None:
    """Its lease was renewed here while it waited; no death is struck out that an earlier try died."""
    job_id = queued_job(journal)
    died_over(fast, job_id, 1)
    if taken_over:
        journal.take_over(journal.work(Station.SEGMENT)[0], "lease_lapsed")
    row = (Station.SEGMENT, job_id, 2 if taken_over else 1)
    leases = Leases(journal, dict.fromkeys(Station, 60.0), lambda: None)

    def run(_id: int, _attempt: int) -> str:
        leases._beat_once()
        assert journal.work(Station.SEGMENT)[0].lease_at is not None
        if how == "stopped":
            leases.start()
            stop_engine(SimpleNamespace(stop=lambda _: None), leases, journal, 1)  # type: ignore[arg-type]
        if how == "journal_unavailable":
            raise JournalUnavailable("database is locked")
        return how

    guarded(Station.SEGMENT, run, journal, leases, lambda: None)(*row[1:])
    leases._beat_once()
    assert journal.starts_of(job_id) == 1


def test_what_another_process_begins_meanwhile_is_not_struck_out(journal: Journal, fast: Path) -> None:
    """A call that finds its row taken over has outlived nothing: it had begun nothing."""
    job_id = queued_job(journal)
    journal.take_over(journal.work(Station.SEGMENT)[0], "claimed_never_begun")
    died_over(fast, job_id, 2)
    assert _call(journal, lambda *row: "not_mine" if journal.begin_job(*row) is None else "begun")(job_id, 1)
    assert journal.starts_of(job_id) == 1


def _call(journal: Journal, run: Any) -> Any:
    leases = Leases(journal, dict.fromkeys(Station, 60.0), lambda: None)
    return guarded(Station.SEGMENT, run, journal, leases, lambda: None)


def test_a_bug_fails_the_job_with_its_traceback(journal: Journal) -> None:
    job_id = queued_job(journal)

    def run(row_id: int, attempt: int) -> str:
        journal.begin_job(row_id, attempt)
        raise ZeroDivisionError("a bug")

    assert _call(journal, run)(job_id, 1) == "failed"
    record = journal.show_job(job_id)
    assert record is not None
    assert (record.job.state, record.job.reason) == (JobState.FAILED, "bug")
    assert "ZeroDivisionError: a bug" in record.detail


def test_a_process_that_was_only_slow_did_not_die(journal: Journal) -> None:
    """A busy machine lets a lease lapse; three of those must not end a job as one whose process died three times."""
    job_id = queued_job(journal)

    def run(row_id: int, attempt: int) -> str:
        assert journal.begin_job(row_id, attempt) is not None
        journal.take_over(journal.work(Station.SEGMENT)[0], "lease_lapsed")
        return "outrun"

    for attempt in range(1, 7):
        assert _call(journal, run)(job_id, attempt) == "outrun"
    assert job_of(journal, job_id).state is JobState.QUEUED


def test_a_journal_that_is_away_fails_nothing(journal: Journal) -> None:
    job_id = queued_job(journal)

    def run(row_id: int, attempt: int) -> str:
        journal.begin_job(row_id, attempt)
        raise JournalUnavailable("away")

    assert _call(journal, run)(job_id, 1) == "journal_unavailable"
    assert job_of(journal, job_id).state is JobState.RUNNING


@pytest.mark.parametrize("begun", [True, False])
def test_a_locked_journal_is_no_death_of_the_job(journal: Journal, begun: bool) -> None:
    """However often the data base is locked, the job is given back and due again; the poison counter stands still."""
    job_id = queued_job(journal)
    leases = Leases(journal, dict.fromkeys(Station, 60.0), lambda: None, period_s=0.01)

    def run(row_id: int, attempt: int) -> str:
        if begun:
            assert journal.begin_job(row_id, attempt) is not None
        raise JournalUnavailable("database is locked")

    call = guarded(Station.SEGMENT, run, journal, leases, lambda: None)
    leases.start()
    for attempt in range(1, 7):
        assert call(job_id, attempt) == "journal_unavailable"
        deadline = time.monotonic() + 5.0
        while job_of(journal, job_id).attempt == attempt and time.monotonic() < deadline:
            time.sleep(0.01)
    leases.stop()
    job = job_of(journal, job_id)
    assert (job.state, job.attempt, job.starts) == (JobState.QUEUED, 7, 0)


def test_a_locked_journal_is_no_death_where_a_sweep_is_quicker(journal: Journal, engine: Engine, sweep: Sweep) -> None:
    """The lease lapsed while the data base was locked; nor does a stop forget what is to be given back."""
    job_id = queued_job(journal)
    leases = Leases(journal, dict.fromkeys(Station, 60.0), lambda: None)

    def run(row_id: int, attempt: int) -> str:
        journal.begin_job(row_id, attempt)
        raise JournalUnavailable("database is locked")

    guarded(Station.SEGMENT, run, journal, leases, lambda: None)(job_id, 1)
    (row,) = journal.work(Station.SEGMENT)
    assert journal.take_over(row, "lease_lapsed")
    leases._beat_once()
    job = job_of(journal, job_id)
    assert (job.attempt, job.starts) == (2, 0)
    guarded(Station.SEGMENT, run, journal, leases, lambda: None)(job_id, 2)
    leases.start()
    assert leases.stop() == ((Station.SEGMENT, job_id, 2),)


def test_a_lock_while_a_bug_is_noted_is_no_death_either(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug is met again at the next try, and noted then."""
    job_id = queued_job(journal)

    def run(row_id: int, attempt: int) -> str:
        journal.begin_job(row_id, attempt)
        raise ZeroDivisionError

    def locked(*_: Any, **__: Any) -> bool:
        raise JournalUnavailable("locked")

    monkeypatch.setattr(journal, "fail", locked)
    assert _call(journal, run)(job_id, 1) == "journal_unavailable"


def test_pickles_are_refused() -> None:
    """T15: DBOS would run code from a row of its data base; the names that this rests on are still there."""
    import dbos._serialization

    assert dbos._serialization.DBOSDefaultSerializer.name() == Refuse().name() == "py_pickle"
    for name in ("serialize", "deserialize"):
        with pytest.raises(TypeError):
            getattr(Refuse(), name)("x")


def test_stopwatch_forgets_what_nobody_asks_for(clock: Clock) -> None:
    watch = Stopwatch(clock)
    watch.elapsed_s("a", 1)
    clock.now += 5
    assert watch.elapsed_s("a", 1) == 5.0
    assert watch.elapsed_s("a", 2) == 0.0
    watch.forget_unasked()
    clock.now += 5
    watch.forget_unasked()
    assert watch.elapsed_s("a", 2) == 0.0


# The engine itself ----------------------------------------------------------------------------------------------------

_ENGINE = """
import sys, time, threading
from datetime import timedelta
from pathlib import Path
from node.domain.work import Station, WorkRow
from node.workflows import DbosEngine, Executor
done = []
def call(row_id, attempt):
    done.append((row_id, attempt)); return "done"
executor = Executor(Path(sys.argv[1]), "test-0", frozenset(Station))
engine = DbosEngine(executor, {Station.DELIVER: call, Station.SEGMENT: call})
engine.launch()
rows = [WorkRow(Station.SEGMENT, 1, 1, False, None), WorkRow(Station.DELIVER, 2, 1, False, None, 100, "pacs")]
assert engine.rows([r.key for r in rows]) == {}
for row in rows + rows:
    engine.enqueue(row)
deadline = time.monotonic() + 60
while len(done) < 2 and time.monotonic() < deadline: time.sleep(0.1)
time.sleep(1.0)
known = engine.rows([r.key for r in rows])
assert {k: str(v.state) for k, v in known.items()} == {"segment.1.1": "ended", "deliver.2.1": "ended"}, known
assert sorted(done) == [(1, 1), (2, 1)], done
assert engine.forget_finished(timedelta(seconds=-5)) == 2
assert engine.rows([r.key for r in rows]) == {}
engine.stop(5)
import os; os._exit(0)
"""


def test_the_durable_engine_does_what_the_sweep_asks(tmp_path: Path) -> None:
    """A contract test of every DBOS name that is used; WAL, mode 0600, JSON; the same key twice is one call."""
    path = tmp_path / "engine.db"
    child = subprocess.run([sys.executable, "-c", _ENGINE, str(path)], capture_output=True, text=True, timeout=200)
    assert child.returncode == 0, child.stderr
    import sqlite3

    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert path.stat().st_mode & 0o777 == 0o600
    assert APPLICATION_VERSION == "hilum-1"


def test_the_engine_opens_no_port_and_calls_nobody() -> None:
    """Nothing of the node listens or connects for the engine: it is a file."""
    script = (
        "import sys, socket\nfrom pathlib import Path\nreal = socket.socket.connect\n"
        "def refuse(*a): raise AssertionError('connects')\n"
        "socket.socket.connect = refuse\nsocket.socket.listen = refuse\n"
        "from node.workflows import DbosEngine, Executor\n"
        "import tempfile, time, os\n"
        "engine = DbosEngine(Executor(Path(tempfile.mkdtemp()) / 'e.db', 't', frozenset()), {})\n"
        "engine.launch(); time.sleep(2); engine.stop(2); os._exit(0)\n"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert child.returncode == 0, child.stderr


def test_two_processes_of_one_name(tmp_path: Path) -> None:
    """T3: the second refuses to start, and says what to do."""
    from node.errors import ConfigError
    from node.service.process import _held

    path = tmp_path / "hilum-worker-0.lock"
    held, leave = threading.Event(), threading.Event()

    def first() -> None:
        with _held(path, "hilum-worker-0"):
            held.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(10)
    told = rf"another process, pid {os.getpid()}, runs as hilum-worker-0"
    with pytest.raises(ConfigError, match=told), _held(path, "hilum-worker-0"):
        pass
    leave.set()
    thread.join()
    with _held(path, "hilum-worker-0"):
        pass


def test_the_listener_imports_nothing_that_could_hold_it_up() -> None:
    """SEC-1: no engine, torch, highdicom or durable queue in the process that receives."""
    script = (
        "import sys\nimport node.service, node.service.listener\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('dbos', 'torch', 'highdicom', 'engines', 'openvino')]\n"
        "print(','.join(sorted(bad)))"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=True)
    assert child.stdout.strip() == ""
