"""The supervisor: what dies is started again, signals are passed on, and a bad configuration is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

MakeNode = Callable[..., Any]
Scan = Callable[..., list[Path]]


def children(process: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """The roles that run, by name."""
    found = {}
    for child in psutil.Process(process.pid).children():
        try:
            words = child.cmdline()
        except (psutil.ZombieProcess, psutil.NoSuchProcess):
            continue  # it has just ended
        if "role" in words:
            found[words[words.index("role") + 1]] = child
    return found


def test_serve_from_end_to_end(make_node: MakeNode, scan: Scan) -> None:
    """`hilum serve`: a series in, results out; a killed role comes back; SIGHUP keeps receiving; SIGTERM ends all."""
    node = make_node()
    log = (node.folder / "serve.log").open("wb")
    command = [sys.executable, "-m", "node.cli", "serve", "--config", str(node.config)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        node.processes["listener"] = process
        node.await_echo()
        node.send_fast(scan())
        node.await_true(lambda: children(process).keys() == {"listener", "worker", "segmenter"}, "a role is missing")
        old = children(process)
        old["worker"].kill()
        node.await_true(lambda: _restarted(process, "worker", old), "the worker did not come back")
        node.await_end()
        node.check()
        assert len(node.segs()) == 1
        _reload(node, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not any(child.is_running() for child in old.values())
    finally:
        node.processes.clear()
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()


def _restarted(process: subprocess.Popen[bytes], role: str, old: dict[str, psutil.Process]) -> bool:
    now = children(process)
    return role in now and now[role].pid != old[role].pid


def _reload(node: Any, process: subprocess.Popen[bytes]) -> None:
    """SIGHUP: refused while the file cannot be used; then worker and segmenter are new and the listener is the same."""
    before, text = children(process), node.config.read_text()
    node.config.write_text(text + "\n[nonsense]\n")
    process.send_signal(signal.SIGHUP)
    time.sleep(2.0)
    assert {role: child.pid for role, child in children(process).items()} == {r: c.pid for r, c in before.items()}
    node.config.write_text(text)
    process.send_signal(signal.SIGHUP)
    for role in ("worker", "segmenter"):
        node.await_true(lambda role=role: _restarted(process, role, before), f"{role} was not restarted")
    assert children(process)["listener"].pid == before["listener"].pid
