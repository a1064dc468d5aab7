"""The sweep: the one loop that makes work of what the journal says is due, and takes over what was lost.

It is the only one who enqueues, so that new work and lost work take the same road, and recovery is exercised all day.
All that it does is compare-and-swap on state and attempt, so any number of sweeps may run.

What it does with a row, by what the durable engine knows of the row's current attempt:

    1  waits, due   nothing known                              enqueue
    2  waits        claimed, no word of it for the TTL         next attempt
    3  waits        enqueued under another version than ours   next attempt
    4  runs         lease younger than the TTL                 nothing
    5  runs         lease older than the TTL                   next attempt
    6  either       ended with an error                        FAILED, with that error
    7  waits        ended, or cancelled                        next attempt

Time is measured by this process's monotonic clock from the moment at which a value was first seen: no jump of a clock
settles a series or takes a row over, and a sweep that has just started, or was stopped for long, judges nobody (ASM-2).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from node.domain.series import SeriesActivity, SettlePolicy, settle_decision
from node.domain.work import OpenSeries, Station, WorkRow
from node.monitor import metrics
from node.store.journal import Journal
from node.store.records import utc_now

_log = logging.getLogger(__name__)

ENGINE_ERROR = "engine_error"
"""Reason of a row that the durable engine gave up."""


class EngineState(StrEnum):
    """What the durable engine knows of a piece of work."""

    ENQUEUED = "enqueued"
    CLAIMED = "claimed"
    ENDED = "ended"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True)
class EngineRow:
    """One piece of work in the durable engine."""

    state: EngineState
    same_version: bool = True
    """Enqueued under the application version that runs here."""
    error: str = ""


class Engine(Protocol):
    """What the sweep asks of the durable engine."""

    def rows(self, keys: Sequence[str]) -> Mapping[str, EngineRow]:
        """What is known of these keys; the unknown are left out."""

    def enqueue(self, row: WorkRow) -> None:
        """Put a row into its station's queue; nothing happens where its key is there already."""

    def cancel(self, key: str) -> None:
        """Take a key out; whoever works on it may go on, but what it writes no longer counts."""


@dataclass(frozen=True)
class SweepPolicy:
    """Seconds."""

    period_s: float = 0.5
    ttl_s: float = 30.0
    """How old a lease may be: many renewals, as a busy machine may keep a process waiting. A role that starts again
    gets back at once what it had begun; only a machine that is gone, or a thread, is waited for so long."""


class Stopwatch:
    """How long a value has been what it is, by a monotonic clock, since it was first seen here."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[Hashable, tuple[Hashable, float]] = {}
        self._asked: set[Hashable] = set()

    def elapsed_s(self, name: Hashable, value: Hashable) -> float:
        """Seconds since `name` was first seen with this value."""
        self._asked.add(name)
        known = self._seen.get(name)
        if known is None or known[0] != value:
            self._seen[name] = known = (value, self._clock())
        return self._clock() - known[1]

    def forget_unasked(self) -> None:
        """Drop what nobody has asked for since the last call."""
        self._seen = {name: seen for name, seen in self._seen.items() if name in self._asked}
        self._asked.clear()

    def forget(self) -> None:
        """Begin anew."""
        self._seen.clear()


class Sweep:
    """One sweep.

    Parameters
    ----------
    settle_policy
        How long silence must last, by the name of the sender.
    """

    def __init__(
        self,
        journal: Journal,
        engine: Engine,
        settle_policy: Callable[[str], SettlePolicy],
        policy: SweepPolicy = SweepPolicy(),
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = utc_now,
    ) -> None:
        self._wall = wall
        self._journal = journal
        self._engine = engine
        self._settle_policy = settle_policy
        self._policy = policy
        self._clock = clock
        self._watch = Stopwatch(clock)
        self._last_turn: float | None = None

    def turn(self) -> None:
        """Look at everything once."""
        began = self._clock()
        if self._last_turn is not None and began - self._last_turn > self._policy.ttl_s / 2:
            self._watch.forget()  # we stood still ourselves: what we have seen before says nothing of the others
        self._watch_listener(*self._journal.listening())
        for series in self._journal.open_series():
            self._judge(series)
        rows = [row for station in Station for row in self._journal.work(station)]
        known = self._engine.rows([row.key for row in rows])
        for row in rows:
            self._tend(row, known.get(row.key))
        self._watch.forget_unasked()
        self._last_turn = self._clock()

    def _judge(self, series: OpenSeries) -> None:
        """Note the evidence where a series may be taken as whole."""
        now = self._wall()
        activity = self._measured(series, now)
        evidence = settle_decision(activity, self._settle_policy(series.sender), now)
        if evidence is not None and self._journal.judge(series, evidence):
            _log.debug("series_judged", extra={"evidence": str(evidence)})

    def _watch_listener(self, started_at: datetime | None, seen_at: datetime | None) -> tuple[float, float]:
        """Seconds since its start, and since its sign of life, were first seen: asked at each turn, series or none."""
        return self._watch.elapsed_s("listener_started", started_at), self._watch.elapsed_s("listener_seen", seen_at)

    def _measured(self, series: OpenSeries, now: datetime) -> SeriesActivity:
        """The activity with its times as this clock saw them pass."""
        told = series.activity
        silent_s = self._watch.elapsed_s(("arrivals", series.id), (series.revision, series.arrivals))
        byte_s = self._watch.elapsed_s(("byte", series.id), told.last_byte_at)
        started_s, seen_s = self._watch_listener(told.listener_started_at, told.listener_seen_at)
        if told.listener_seen_at is not None:  # a sign of life that is old already when we begin to look is old
            seen_s = max(seen_s, (now - told.listener_seen_at).total_seconds())
        return replace(
            told,
            last_received_at=now - timedelta(seconds=silent_s),
            last_byte_at=None if told.last_byte_at is None else now - timedelta(seconds=byte_s),
            listener_seen_at=None if told.listener_seen_at is None else now - timedelta(seconds=seen_s),
            listener_started_at=None if told.listener_started_at is None else now - timedelta(seconds=started_s),
        )

    def _tend(self, row: WorkRow, known: EngineRow | None) -> None:
        """Apply the one rule of the table that fits."""
        age_s = self._age_s(row, known)
        if known is not None and known.state is EngineState.ERROR:
            if self._journal.fail(row.station, row.id, row.attempt, ENGINE_ERROR, known.error):  # rule 6
                metrics.JOBS_FAILED.labels(stage=row.station, cause="bug").inc()
                self._say("failed_by_engine", row)
        elif row.running:
            if age_s > self._policy.ttl_s:  # rule 5; else rule 4
                self._take_over(row, "lease_lapsed")
        elif known is None:
            self._engine.enqueue(row)  # rule 1
        elif known.state in (EngineState.ENDED, EngineState.CANCELLED):
            self._take_over(row, "engine_ended")  # rule 7
        elif known.state is EngineState.CLAIMED and age_s > self._policy.ttl_s:
            self._take_over(row, "claimed_never_begun")  # rule 2
        elif known.state is EngineState.ENQUEUED and not known.same_version:
            self._take_over(row, "other_version")  # rule 3

    def _age_s(self, row: WorkRow, known: EngineRow | None) -> float:
        """How long the row stands as it does: with this lease, or with this state in the engine.

        What waits inside a process for its place has a lease too.
        """
        stands = row.lease_at if row.running else (row.lease_at, known.state if known is not None else None)
        return self._watch.elapsed_s((row.station, row.id), (row.attempt, row.running, stands))

    def _take_over(self, row: WorkRow, reason: str) -> None:
        if self._journal.take_over(row, reason):
            self._engine.cancel(row.key)
            self._say("taken_over", row, reason)

    @staticmethod
    def _say(event: str, row: WorkRow, reason: str = "") -> None:
        _log.warning(event, extra={"workflow": row.key, "stage": str(row.station), "reason": reason})
