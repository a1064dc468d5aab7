"""Engines that must be built before they can serve: one at a time, in a thread of its own, while another serves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock, Thread, get_native_id

from engines.backends.base import Compiler, Engine, Placement, Weights
from engines.backends.catalogue import backend_class
from engines.errors import ENGINE_FAULTS, BackendUnavailable
from engines.inference.members import answer_of
from engines.inference.trial import engine_key
from engines.model.attempt import attempt
from engines.model.bundle import Bundle
from engines.model.plan import Plan

_NICENESS = 10
"""Half of the way down: what serves goes first on the processor."""


@dataclass(frozen=True)
class Built:
    """How a build ended."""

    model: str
    engine: Engine
    seconds: float
    fault: str
    """Why there is no engine; empty where there is one."""


Tell = Callable[[Built], None]
"""Told of each build that ended, from the thread that built."""


class Build(Thread):
    """One engine of one bundle in the making. A daemon: no process waits for it to end."""

    def __init__(self, work: Callable[[], None], tell: Callable[[float, str], None], turn: Lock) -> None:
        super().__init__(name="engine build", daemon=True)
        self._work, self._tell, self._turn = work, tell, turn
        self.fault = "its build broke off"
        """Of one that ended: why there is no engine; empty where there is one."""

    @property
    def ended(self) -> bool:
        """Whether it was built, or cannot be."""
        return not self.is_alive()

    def run(self) -> None:
        """Build, when it is its turn."""
        # Linux keeps a niceness for each thread, and those that it starts inherit it; POSIX knows one of the process.
        os.setpriority(os.PRIO_PROCESS, get_native_id(), _NICENESS)
        with self._turn:
            began = time.monotonic()
            try:
                self._work()
                self.fault = ""
            except ENGINE_FAULTS as error:
                self.fault = f"cannot be built: {error}"
            self._tell(time.monotonic() - began, self.fault)


class Builder:
    """Begins the builds of one process: one of them works, the others wait for their turn."""

    def __init__(self, tell: Tell) -> None:
        self._tell, self._turn = tell, Lock()

    def begin(self, bundle: Bundle, engine: Engine, placement: Placement) -> Build:
        """Begin to build an engine for every network of a bundle."""
        made = Build(
            partial(build, bundle, engine, placement),
            lambda seconds, fault: self._tell(Built(bundle.name, engine, seconds, fault)),
            self._turn,
        )
        made.start()
        return made


def is_built(bundle: Bundle, engine: Engine, placement: Placement) -> bool:
    """Whether nothing must be built before a bundle is opened; most backends never build."""
    compiler = backend_class(engine.backend)
    if not isinstance(compiler, Compiler):
        return True
    return all(compiler.is_built(*each) for each in _networks(bundle, engine, placement))


def build(bundle: Bundle, engine: Engine, placement: Placement) -> None:
    """Build what is not built yet, and leave a file of it meanwhile where engines are kept.

    Raises
    ------
    BackendUnavailable, OutOfDeviceMemory
        Where it cannot be built.
    RecordsError
        Where no file can be left: then nothing is tried.
    """
    compiler = backend_class(engine.backend)
    if not isinstance(compiler, Compiler):
        return
    if placement.cache is None:
        raise BackendUnavailable(f"{engine}: there is no folder to keep an engine in")
    with attempt(placement.cache, engine_key(bundle, engine, placement.device), "built"):
        for each in _networks(bundle, engine, placement):
            if not compiler.is_built(*each):
                compiler.build(*each)


def _networks(bundle: Bundle, engine: Engine, placement: Placement) -> Iterator[tuple[Plan, Weights, Placement]]:
    """Every network that is opened to serve a bundle, and those that its speed is measured with."""
    placement = replace(placement, precision=engine.precision)
    for member in bundle.members:
        answer = answer_of(member, engine)
        for fold in member.folds:
            yield member.plan, member.weights(fold), replace(placement, answer=answer)
        if answer != "logits":
            yield member.plan, member.weights(member.folds[0]), replace(placement, answer="logits")
