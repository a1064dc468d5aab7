"""The segmenter's process: the models and their device live here, and a hung call ends it."""

from __future__ import annotations

import logging
from functools import partial
from typing import NoReturn

from engines.errors import BundleError
from engines.inference.building import Builder, Built
from engines.inference.choice import available
from engines.inference.fastest import FastestSegmenter, Happening
from engines.model.attempt import withdraw
from engines.model.bundle import Bundle, load_bundle
from node.config import Settings, software_version
from node.domain.work import Station
from node.monitor.http import Check, Health
from node.monitor.metrics import Role
from node.service.cards import cautions_of
from node.service.engines import open_model, placement, policy
from node.service.house import House, result_style
from node.service.process import Process, leave
from node.stations.admission import LEAST_BUDGET_S
from node.stations.segment import Bench, Models, Recipe
from node.workflows import DbosEngine, Executor, Leases, guarded, stop_engine

_log = logging.getLogger(__name__)

_STOP_GRACE_S = 10


def run(settings: Settings) -> NoReturn:
    """Segment until told to stop, then end the process."""
    process = Process(settings, Role.SEGMENTER)
    with process.running(), House.open(settings) as house:
        for caution in cautions_of(settings):
            _log.warning("path_never_ran", extra={"reason": str(caution)})
        builder = Builder(_built)
        models = Models(house.bundles, lambda bundle: _opened(bundle, settings, builder))
        leases = Leases(house.journal, dict.fromkeys(Station, LEAST_BUDGET_S), lambda: process.beat(house.journal))
        bench = Bench(
            journal=house.journal,
            spool=house.spool,
            models=models,
            recipe=Recipe(house.segments, house.config_digest, software_version(), settings.segmenter.looser_limits),
            style=result_style(settings),
            destinations=house.destinations,
            rest=partial(leases.rest, Station.SEGMENT),
            allow=partial(leases.allow, Station.SEGMENT),
        )
        call = guarded(Station.SEGMENT, bench.run, house.journal, leases, _nothing)
        executor = Executor(settings.engine_path, process.executor_id, frozenset({Station.SEGMENT}))
        engine = DbosEngine(executor, {Station.SEGMENT: call})
        engine.launch()
        with process.monitor(house.vocabulary, _health(settings, leases)):
            leases.start()
            process.stop.wait()
        stop_engine(engine, leases, house.journal, _STOP_GRACE_S)
        withdraw()  # what is being tried is broken off, which is not the engine's fault
    leave(0)


def _opened(bundle: Bundle, settings: Settings, builder: Builder | None = None) -> FastestSegmenter:
    """Open a model, if its files are still those that its digest was taken of when this process began (RES-20)."""
    if load_bundle(bundle.folder).digest != bundle.digest:
        raise BundleError(f"{bundle.folder} was changed since this process began: restart the node")
    opened = open_model(settings, bundle, builder, _happened)
    _log.info("model_opened", extra={"model": bundle.name, "reason": opened.reason})
    return opened


def _happened(found: Happening) -> None:
    """Say what became of an engine."""
    engine = found.engine
    facts = {"model": found.model, "reason": found.reason}
    if engine is not None:
        facts |= {"backend": engine.backend, "precision": engine.precision}
    match found.what:
        case "certified":
            _log.info("engine_certified", extra=facts)
        case "refused":
            _log.warning("engine_refused", extra=facts)
        case "not tried":
            _log.warning("engine_not_tried", extra=facts)
        case "failed":
            _log.error("engine_failed", extra=facts)
        case "not kept":
            _log.warning("certificates_not_kept", extra=facts)


def _built(built: Built) -> None:
    """Say how a build in the background ended."""
    facts = {"model": built.model, "backend": built.engine.backend, "precision": built.engine.precision}
    if built.fault:
        _log.warning("engine_not_built", extra={**facts, "reason": built.fault})
    else:
        _log.info("engine_built", extra={**facts, "seconds": round(built.seconds, 1)})


def _health(settings: Settings, leases: Leases) -> Health:
    """A device that is gone is a capability that is gone: it stops no reception (OBS-4)."""
    usable = any(found.available for _, found in available(policy(settings), placement(settings)))
    return Health(
        role=str(Role.SEGMENTER),
        readiness={"journal": lambda: Check(leases.last_beat_s < 15.0, "journal_locked")},
        capabilities={"device": lambda: Check(usable, "no_device")},
    )


def _nothing() -> None:
    pass
