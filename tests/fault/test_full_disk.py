"""A disk that is full: 0xA700, what was acknowledged stays, and once there is room again all goes on."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.domain.job import JobState

pytestmark = pytest.mark.timeout(600)

MakeNode = Callable[..., Any]
Scan = Callable[..., list[Path]]

_SIZE = 24 << 20


@dataclass(frozen=True)
class Disk:
    """Where a node keeps its data, with room for little."""

    data: Path
    reserve_bytes: int
    """What the node is told to leave free (NET-10)."""

    @property
    def ballast(self) -> Path:
        return self.data / "ballast"

    def fill(self, leave: int) -> None:
        """Take all the room but so many bytes."""
        with self.ballast.open("wb", buffering=0) as file:
            while (room := self.room() - leave) > 0:
                file.write(bytes(min(room, 1 << 16)))

    def room(self) -> int:
        found = os.statvfs(self.data)
        return found.f_bavail * found.f_frsize - self.reserve_bytes

    def give_back(self) -> None:
        self.ballast.unlink()


def may_mount() -> bool:
    """Whether this user may mount a file system: tried where nobody sees it."""
    tried = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False, timeout=60
    )
    return tried.returncode == 0


@pytest.fixture(params=["own_file_system" if may_mount() else "hard_mark"])
def disk(request: pytest.FixtureRequest, fast: Path) -> Iterator[Disk]:
    """A small file system, filled to the last byte, where one may be mounted; else the hard mark of a large one."""
    data = fast / "data"
    data.mkdir(mode=0o700)
    if request.param == "hard_mark":
        free = os.statvfs(data)
        yield Disk(data, free.f_bavail * free.f_frsize - _SIZE)
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=0700", "tmpfs", str(data)], check=True)
    yield Disk(data, 0)
    subprocess.run(["umount", "-l", str(data)], check=True)


def storescu(port: int, path: Path) -> str:
    """DCMTK's sender with one file; returns what it says of the answer."""
    command = ["/usr/bin/storescu", "-v", "-aet", "CT1", "-aec", "HILUM", "-to", "10", "127.0.0.1", str(port)]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def test_full_and_then_not(disk: Disk, make_node: MakeNode, scan: Scan) -> None:
    """NET-10: one series ends while there is room, one is cut by the full disk and comes whole when there is room."""
    node = make_node(reserve_bytes=disk.reserve_bytes)
    node.start()
    node.send_fast(scan("before"))
    node.await_end()
    disk.fill(leave=256 << 10)
    paths = scan("cut")
    said = []
    for path in paths:
        said.append(storescu(node.port, path))
        if "Received Store Response (Success)" in said[-1]:
            node.took([path])
    assert "Refused: OutOfResources" in said[-1], said[-1]
    for answer in said:
        assert "(Success)" in answer or "Refused: OutOfResources" in answer, answer
    time.sleep(5.0)
    assert all(process.poll() is None for process in node.processes.values())
    disk.give_back()
    node.send_fast(paths)
    node.await_end()
    node.check()
    done = [job for job in node.jobs() if job.state is JobState.DONE]
    assert len({job.series_id for job in done}) == 2
    assert {job.state for job in node.jobs()} <= {JobState.DONE, JobState.CANCELLED}
    with node.journal() as journal:
        known = {Path(i.path).name for uid in node.acknowledged for i in journal.show_series(uid).instances}
    assert known <= {path.name for path in (disk.data / "spool" / "incoming").iterdir()}
