"""What may still be taken, by the machine and by control groups of both versions; and the process's own peak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from node.stations.memory import Memory, Peak, memory_now

GB = 1_000_000_000


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text("MemTotal:       16000000 kB\nMemFree:  100 kB\nMemAvailable:    8000000 kB\n")
    (folder / "self/cgroup").write_text("0::/\n")
    return folder


def group(folder: Path, limit: str, used: int, cache: int, v1: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(f"{limit}\n")
    (folder / ("memory.usage_in_bytes" if v1 else "memory.current")).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{'total_inactive_file' if v1 else 'inactive_file'} {cache}\n")


def test_the_machine_where_nothing_else_limits(proc: Path, tmp_path: Path) -> None:
    assert memory_now(proc, tmp_path / "none") == Memory(8_192_000_000, 16_384_000_000)


@pytest.mark.parametrize("v1", [False, True])
def test_the_tightest_group_counts_and_its_page_cache_does_not(proc: Path, tmp_path: Path, v1: bool) -> None:
    """A group above may be tighter than one's own; one without a limit says nothing."""
    name = "/hilum.slice/segmenter"
    (proc / "self/cgroup").write_text(f"4:memory:{name}\n0::/\n" if v1 else f"0::{name}\n")
    root = tmp_path / "cgroup" / ("memory" if v1 else "")
    group(root / name[1:], "max", 0, 0, v1)
    group(root / "hilum.slice", str(6 * GB), 5 * GB, 2 * GB, v1)
    assert memory_now(proc, tmp_path / "cgroup") == Memory(3 * GB, 6 * GB)


@pytest.mark.parametrize("v1", [False, True])
def test_pages_in_use_of_files_are_not_taken(proc: Path, tmp_path: Path, v1: bool) -> None:
    """A node that reads images all day has gigabytes of active page cache, which the kernel gives back all the same."""
    (proc / "self/cgroup").write_text("4:memory:/\n" if v1 else "0::/\n")
    root = tmp_path / "cgroup" / ("memory" if v1 else "")
    group(root, str(12 * GB), 11 * GB, 0, v1)
    prefix = "total_" if v1 else ""
    (root / "memory.stat").write_text(
        f"active_file 1\n{prefix}active_file 8000000000\n{prefix}inactive_file 1000000000\nslab_reclaimable 500000000\n"
    )
    (proc / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 15000000 kB\n")
    assert memory_now(proc, tmp_path / "cgroup") == Memory(10_500_000_000, 12 * GB)


def test_in_a_container_the_own_group_is_the_root(proc: Path, tmp_path: Path) -> None:
    (proc / "self/cgroup").write_text("0::/system.slice/docker-1.scope\n")
    group(tmp_path / "cgroup", str(4 * GB), GB, 0)
    assert memory_now(proc, tmp_path / "cgroup") == Memory(3 * GB, 4 * GB)


def test_here() -> None:
    found = memory_now()
    assert 0 < found.available <= found.limit


def test_the_peak_counts_from_its_beginning() -> None:
    np.ones(300_000_000, np.uint8)
    peak = Peak()
    first = peak.grown_bytes()
    assert first is not None
    assert first < 50_000_000
    np.ones(200_000_000, np.uint8)
    grown = peak.grown_bytes()
    assert grown is not None
    assert 190_000_000 <= grown < 280_000_000


def test_a_kernel_that_does_not_say(tmp_path: Path) -> None:
    assert Peak(tmp_path).grown_bytes() is None
