"""The supervisor: starts the roles as processes, starts again what dies, passes signals on. It holds no other state.

SIGTERM and SIGINT stop all roles in order and then itself. SIGHUP reads the configuration again: where it can be used,
the worker and the segmenter are restarted with it while the listener goes on receiving; an invalid one is refused.
Where it dies itself, the roles notice and stop (`node.service.process`).
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from node.config import load_settings
from node.errors import ConfigError
from node.monitor import logs
from node.service.process import SUPERVISOR_PID

_log = logging.getLogger(__name__)

ROLES = ("listener", "worker", "segmenter")
RELOADED = ("worker", "segmenter")
_FIRST_WAIT_S, _LONGEST_WAIT_S, _STEADY_S = 0.5, 30.0, 30.0
_LOOK_S = 0.2
_STOP_S = 35.0
"""Longer than any role takes to stop in order (NET-37: 30 s)."""
CONFIGURATION_STATUS = 2
"""Exit status of a role whose configuration cannot be used: starting it again would not help."""


@dataclass
class Child:
    """One role, its process, and when it may be started again."""

    role: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    wait_s: float = _FIRST_WAIT_S
    not_before: float = 0.0
    stopping: bool = False
    steady: bool = False
    """It has run for a while: its configuration can be used."""


@dataclass
class Supervisor:
    """Keeps one process for each role.

    Attributes
    ----------
    command
        What to run for a role.
    """

    config: Path
    command: Callable[[str, Path], list[str]]
    children: Mapping[str, Child] = field(default_factory=lambda: {role: Child(role) for role in ROLES})
    told: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)

    def run(self) -> int:
        """Supervise until told to stop; returns the exit status."""
        for wanted in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(wanted, self._told)
        while True:
            for child in self.children.values():
                if not self._tend(child):
                    self._stop_all()
                    return CONFIGURATION_STATUS
            try:
                number = self.told.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            if number == signal.SIGHUP:
                self._reload()
            else:
                self._stop_all()
                return 0

    def _told(self, number: int, _frame: FrameType | None) -> None:
        self.told.put(number)

    def _tend(self, child: Child) -> bool:
        """Start a role that does not run; False where its configuration could not be used from the beginning.

        Of a role that has worked before, that is no reason to end the others: reception goes on.
        """
        now = time.monotonic()
        if child.process is None:
            if now >= child.not_before and not self._would_be_too_new(child):
                self._start(child)
            return True
        status = child.process.poll()
        child.steady = child.steady or now - child.started >= _STEADY_S
        if status is None:
            return True
        if status == CONFIGURATION_STATUS and not child.steady:
            _log.critical("role_not_configured", extra={"entity": child.role, "exit_code": status})
            return False
        self._await_restart(child, status, now)
        return True

    def _would_be_too_new(self, child: Child) -> bool:
        """A new segmenter waits for the end of the old worker, whose last jobs are of the old configuration.

        It refuses such jobs where they are younger than itself.
        """
        worker = self.children["worker"]
        return child.role == "segmenter" and worker.stopping and worker.process is not None

    def _start(self, child: Child) -> None:
        environment = os.environ | {SUPERVISOR_PID: str(os.getpid())}
        command = self.command(child.role, self.config)
        child.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
        child.started = time.monotonic()
        child.stopping = False
        _log.info("role_started", extra={"entity": child.role, "pid_of": child.process.pid})

    def _await_restart(self, child: Child, status: int, now: float) -> None:
        """Start it again: at once where it was told to stop, else after a wait that doubles while it keeps dying."""
        steady = child.stopping or now - child.started >= _STEADY_S
        wait_s = 0.0 if child.stopping else _FIRST_WAIT_S if steady else child.wait_s
        child.process = None
        child.not_before = now + wait_s
        child.wait_s = _FIRST_WAIT_S if steady else min(child.wait_s * 2, _LONGEST_WAIT_S)
        level = logging.INFO if child.stopping else logging.ERROR
        facts = {"entity": child.role, "exit_code": status, "due_in_s": round(wait_s, 1)}
        _log.log(level, "role_ended", extra=facts)

    def _reload(self) -> None:
        """Restart the roles that read rules and models, with a configuration that can be used."""
        try:
            load_settings(self.config)
        except ConfigError as error:
            _log.error("configuration_refused", exc_info=error)
            return
        _log.info("configuration_reloaded")
        for role in RELOADED:
            child = self.children[role]
            if child.process is not None and child.process.poll() is None:
                child.stopping = True
                child.process.terminate()

    def _stop_all(self) -> None:
        """Tell every role to stop, and end those that do not."""
        running = [child.process for child in self.children.values() if child.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _STOP_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.error("role_killed", extra={"pid_of": process.pid})
                process.kill()
                process.wait()


def serve(config: Path) -> int:
    """Run the node of a configuration file until told to stop; returns the exit status.

    Raises
    ------
    ConfigError
        Where the file cannot be used.
    """
    settings = load_settings(config)
    folder = settings.node.data_dir
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    level = logging.getLevelNamesMapping()[settings.monitor.log_level.upper()]
    logs.configure(logs.LogStyle("supervisor", logs.site_key(folder / "log.key"), level))
    logs.catch_uncaught()
    return Supervisor(config.absolute(), role_command).run()


def role_command(role: str, config: Path) -> list[str]:
    """The command line of one role."""
    return [sys.executable, "-m", "node.cli", "role", role, "--config", str(config)]
