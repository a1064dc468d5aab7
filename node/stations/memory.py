"""The host's memory: what this process may still take, by machine and control group, and its own peak."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_GIVEN_BACK = ("inactive_file", "active_file", "slab_reclaimable")
"""What a group has used and gives back when memory is asked for; version 1 has each with its children's as `total_`."""


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    available: int
    """May be taken now, page cache that the kernel would give back included."""
    limit: int
    """May be taken at the most, with nothing else running."""


def memory_now(proc: Path = _PROC, cgroup: Path = _CGROUP) -> Memory:
    """Of the machine, or of the tightest control group that this process is in (version 1 or 2)."""
    fields = _fields(proc / "meminfo", r"(\w+):\s+(\d+) kB")
    found = Memory(1024 * fields.get("MemAvailable", 0), 1024 * fields.get("MemTotal", 0))
    for group in _groups(proc, cgroup):
        found = Memory(min(found.available, group.available), min(found.limit, group.limit))
    return found


def _groups(proc: Path, cgroup: Path) -> Iterator[Memory]:
    """The control groups that limit this process; a container may see its own as the root."""
    for line in _text(proc / "self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):
            root = cgroup / controllers
            names = (
                ("memory.max", "memory.current")
                if not controllers
                else ("memory.limit_in_bytes", "memory.usage_in_bytes")
            )
            folder = root / name.lstrip("/")
            for each in (folder, *folder.parents):
                if not each.is_relative_to(root):
                    break
                if (group := _group(each, *names)) is not None:
                    yield group


def _group(folder: Path, limit_name: str, used_name: str) -> Memory | None:
    """None where the group sets no limit, or is not to be seen."""
    limit, used = _text(folder / limit_name).strip(), _text(folder / used_name).strip()
    if not limit.isdigit() or not used.isdigit():
        return None
    stat = _fields(folder / "memory.stat", r"(\w+) (\d+)")
    cache = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in _GIVEN_BACK)
    return Memory(min(int(limit), max(0, int(limit) - int(used) + cache)), int(limit))


def resident_bytes(proc: Path = _PROC) -> int:
    """What this process holds now, all threads counted; 0 where the kernel does not say."""
    return _status_bytes(proc, "VmRSS")


class Peak:
    """What this process holds at the most, beyond what it held when this was made; all threads counted."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._known = False
        with contextlib.suppress(OSError):
            (proc / "self/clear_refs").write_text("5", encoding="ascii")  # the peak counts anew (proc(5))
            self._known = True
        self._before = resident_bytes(proc)

    def grown_bytes(self) -> int | None:
        """None where the kernel does not say."""
        return _status_bytes(self._proc, "VmHWM") - self._before if self._known and self._before else None


def _status_bytes(proc: Path, name: str) -> int:
    return 1024 * _fields(proc / "self/status", r"(\w+):\s+(\d+) kB").get(name, 0)


def _fields(path: Path, pattern: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(pattern, _text(path))}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
