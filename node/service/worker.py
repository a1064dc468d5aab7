"""The worker's process: assemble, deliver, purge, and the sweep that makes work of what is due."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from node.config import Settings
from node.dicom import scu
from node.domain.job import Destination, ObjectKind
from node.domain.variants import proposed_classes
from node.domain.work import Station
from node.errors import HilumError, PeerUnavailable, PermanentlyRefused
from node.monitor import metrics
from node.monitor.http import Check, Health
from node.monitor.metrics import Role
from node.service.house import House
from node.service.process import Process, leave
from node.stations.assemble import Assembler
from node.stations.deliver import Deliverer
from node.stations.purge import KeepPolicy, Purger
from node.stations.sweep import Sweep, SweepPolicy
from node.workflows import DbosEngine, Executor, Leases, StationCall, SweepThread, guarded, stop_engine

_log = logging.getLogger(__name__)

_ASSEMBLE_BUDGET_S = 900.0
_PURGE_S, _PROBE_S = 300.0, 300.0
_STOP_GRACE_S = 20


def run(settings: Settings) -> NoReturn:
    """Work until told to stop, then end the process."""
    process = Process(settings, Role.WORKER)
    with process.running(), House.open(settings) as house:
        Worker(process, house).run()
    leave(0)


class Worker:
    """The stations, queues and clocks of one worker."""

    def __init__(self, process: Process, house: House) -> None:
        self._process = process
        self._house = house
        slowest_s = max((d.network_timeout_s for d in house.destinations.values()), default=30.0)
        budgets_s = {
            Station.ASSEMBLE: _ASSEMBLE_BUDGET_S,
            Station.SEGMENT: _ASSEMBLE_BUDGET_S,
            Station.DELIVER: 600.0 + 10 * slowest_s,
        }
        self._leases = Leases(house.journal, budgets_s, lambda: process.beat(house.journal))
        stations: dict[Station, StationCall] = {
            Station.ASSEMBLE: Assembler(house.journal, house.rules, house.models, house.config_digest).run,
            Station.DELIVER: Deliverer(house.journal, house.destinations).run,
        }
        calls = {
            station: guarded(station, call, house.journal, self._leases, self._wake)
            for station, call in stations.items()
        }
        executor = Executor(process.settings.engine_path, process.executor_id, frozenset(stations))
        self._engine = DbosEngine(executor, calls)
        policy = SweepPolicy()
        sweep = Sweep(house.journal, self._engine, process.settings.settle_policy, policy)
        self._sweeping = SweepThread(sweep, self._engine, policy.period_s)

    def run(self) -> None:
        """Run until the process is told to stop, then give back what did not end in time."""
        house, process = self._house, self._process
        self._engine.launch()
        with process.monitor(house.vocabulary, self._health(), house.journal.counts):
            self._leases.start()
            self._sweeping.start()
            for clock in (_Every(_PURGE_S, "purge", self._purger().run), _Every(_PROBE_S, "probe", self._probe)):
                clock.start()
            process.stop.wait()
            self._sweeping.stop()
        stop_engine(self._engine, self._leases, house.journal, _STOP_GRACE_S)

    def _wake(self) -> None:
        self._sweeping.wake()

    def _health(self) -> Health:
        return Health(
            role=str(self._process.role),
            alive=lambda: time.monotonic() - self._sweeping.last_turn < 60.0,
            readiness={"journal": lambda: Check(self._leases.last_beat_s < 15.0, "journal_locked")},
        )

    def _purger(self) -> Purger:
        spool = self._process.settings.spool
        keep = KeepPolicy(spool.keep_inputs_h, spool.keep_results_h, spool.keep_unused_h, spool.keep_quarantined_h)
        return Purger(self._house.journal, self._house.spool, keep)

    def _probe(self) -> None:
        for destination in self._house.destinations.values():
            probe(destination)


def probe(destination: Destination) -> None:
    """Ask a destination for C-ECHO and for what it would store, and show the answers (NET-38)."""
    try:
        scu.echo(destination)
        metrics.DESTINATION_UP.labels(destination=destination.name).set(1)
        for kind in ObjectKind:
            accepted = scu.probe(destination, proposed_classes(kind))
            metrics.DESTINATION_CONTEXT_OK.labels(destination=destination.name, kind=kind).set(1 if accepted else 0)
    except (PeerUnavailable, PermanentlyRefused) as error:
        metrics.DESTINATION_UP.labels(destination=destination.name).set(0)
        _log.warning("destination_down", exc_info=error, extra={"destination": destination.name})


class _Every:
    """Calls a function at once and then again and again, in a thread of its own."""

    def __init__(self, seconds: float, name: str, call: Callable[[], object]) -> None:
        self._seconds = seconds
        self._name = name
        self._call = call
        self._thread = threading.Thread(target=self._call_for_ever, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _call_for_ever(self) -> None:
        while True:
            try:
                self._call()
            except (HilumError, OSError) as error:
                _log.error(f"{self._name}_failed", exc_info=error)
            time.sleep(self._seconds)
