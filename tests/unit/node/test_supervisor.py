"""The order in which roles are started again; real processes stand in for the roles."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from node.supervisor import Supervisor

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
