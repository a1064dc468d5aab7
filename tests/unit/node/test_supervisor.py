"""The order in which roles are started again; real processes stand in for the roles."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from node.config import load_settings
from node.service.process import runs
from node.supervisor import Supervisor

ROOT = Path(__file__).parents[3]

_ROLE = """
import pathlib, signal, sys, time
log, role, wait_s = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
def say(what):
    with log.open("a") as out:
        out.write(f"{role} {what}\\n")
def stop(*_):
    time.sleep(wait_s)
    say("ended")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
say("started")
while True:
    time.sleep(0.05)
"""


def _wait(log: Path, said: str, times: int = 1) -> list[str]:
    for _ in range(600):
        lines = log.read_text().splitlines() if log.exists() else []
        if lines.count(said) >= times:
            return lines
        time.sleep(0.05)
    pytest.fail(f"never said: {said}")


def test_a_new_segmenter_waits_for_the_end_of_the_old_worker(tmp_path: Path) -> None:
    """After SIGHUP: the jobs that the old worker still makes are of the old configuration, and older than it."""
    log, config = tmp_path / "log", tmp_path / "node.toml"
    config.write_text("")

    def command(role: str, _config: Path) -> list[str]:
        return [sys.executable, "-c", _ROLE, str(log), role, "1.5" if role == "worker" else "0"]

    def act() -> None:
        for role in ("listener", "worker", "segmenter"):
            _wait(log, f"{role} started")
        os.kill(os.getpid(), signal.SIGHUP)
        _wait(log, "segmenter started", 2)
        os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    acting = threading.Thread(target=act)
    acting.start()
    try:
        assert Supervisor(config, command).run() == 0
    finally:
        acting.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    lines = log.read_text().splitlines()
    assert lines.count("listener started") == 1
    second_start = [n for n, line in enumerate(lines) if line == "segmenter started"][1]
    assert lines.index("segmenter ended") < lines.index("worker ended") < second_start


_SUPERVISED = """
import os, subprocess, sys, time
from node.service.process import SUPERVISOR_PID
environment = os.environ | {SUPERVISOR_PID: str(os.getpid())}
words = [sys.executable, "-m", "node.cli", "role", "worker", "--config", sys.argv[1]]
print(subprocess.Popen(words, env=environment, stderr=open(sys.argv[2], "w")).pid, flush=True)
time.sleep(600)
"""


def test_roles_stop_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    """Orphans would hold the locks and the port, and nobody would start again what dies."""
    config, log = tmp_path / "node.toml", tmp_path / "log"
    config.write_text("[monitor]\nworker_port = 0\n")
    words = [sys.executable, "-c", _SUPERVISED, str(config), str(log)]
    supervisor = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    role = int(supervisor.stdout.readline())
    settings = load_settings(config)
    try:
        _until(lambda: runs(settings, "worker"))
        supervisor.kill()
        _until(lambda: not runs(settings, "worker"))
    finally:
        supervisor.kill()
        supervisor.communicate()
        with contextlib.suppress(ProcessLookupError):
            os.kill(role, signal.SIGKILL)
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert "supervisor_gone" in events
    assert events[-1] == "stopped"


def _until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.1)
