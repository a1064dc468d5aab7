"""The spool: files made ahead under random names, the reserve, flushes, orphans (NET-2, NET-9, NET-10, SEC-9)."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.errors import OutOfResources
from node.store import spool as module
from node.store.spool import INCOMING, RESULTS, Spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool", reserve_bytes=0)
    yield opened
    opened.close()


def test_file_keeps_head_and_bytes_and_counts_only_the_bytes(spool: Spool) -> None:
    file = spool.take()
    file.write([memoryview(b"abc"), memoryview(b"defg")], head=b"HEAD")
    file.write([memoryview(b"h")])
    file.flush()
    assert file.path.read_bytes() == b"HEADabcdefgh"
    assert (file.length, file.head_length, file.crc32) == (8, 4, zlib.crc32(b"abcdefgh"))


def test_many_fragments_are_written_in_order(spool: Spool) -> None:
    """More than writev takes at once."""
    pieces = [bytes([n % 256]) * (n % 7) for n in range(3000)]
    file = spool.take()
    file.write([memoryview(piece) for piece in pieces])
    file.flush()
    assert file.path.read_bytes() == b"".join(pieces)


def test_short_write_is_continued(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(module.os, "writev", lambda fd, parts: real(fd, [memoryview(parts[0])[:3]]))
    file = spool.take()
    file.write([memoryview(b"abcdefgh"), memoryview(b"ij")])
    assert file.path.read_bytes() == b"abcdefghij"


def test_names_are_random_and_files_private(spool: Spool) -> None:
    """SEC-9: nothing of the name comes from a peer; SEC-20: only the owner reads."""
    files = [spool.take() for _ in range(5)]
    assert len({file.path.name for file in files}) == 5
    for file in files:
        assert len(file.path.stem) == 24
        assert set(file.path.stem) <= set("0123456789abcdef")
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE((spool.folder / INCOMING).stat().st_mode) == 0o700


def test_directory_is_flushed_once_for_a_refill_and_before_any_file_is_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NET-2: the name is durable before the first byte is written."""
    flushed: list[Path] = []
    real = module._flush_folder
    monkeypatch.setattr(module, "_flush_folder", lambda folder: (flushed.append(folder), real(folder)))
    spool = Spool(tmp_path, reserve_bytes=0)
    flushed.clear()
    for _ in range(20):
        spool.take()
    assert flushed == [tmp_path / INCOMING]
    spool.close()


def test_pool_is_refilled_and_never_runs_dry(spool: Spool) -> None:
    paths = {spool.take().path for _ in range(300)}
    assert len(paths) == 300


def test_threads_never_share_a_file(spool: Spool) -> None:
    taken: list[Path] = []
    threads = [threading.Thread(target=lambda: taken.extend(spool.take().path for _ in range(50))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 400


def test_close_removes_what_nobody_took(spool: Spool) -> None:
    kept = spool.take()
    kept.write([memoryview(b"x")])
    kept.flush()
    spool.close()
    assert list((spool.folder / INCOMING).iterdir()) == [kept.path]


def test_below_the_reserve_nothing_is_taken(tmp_path: Path) -> None:
    """NET-10: the hard mark is OutOfResources, and room that comes back is used again."""
    spool = Spool(tmp_path, reserve_bytes=1 << 60)
    with pytest.raises(OutOfResources, match="full") as caught:
        spool.take()
    assert caught.value.status == 0xA700
    spool._reserve_bytes = 0
    assert spool.take().path.exists()
    spool.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EDQUOT])
def test_pool_that_cannot_be_filled_is_out_of_resources_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """NET-9."""
    spool = Spool(tmp_path, reserve_bytes=0)
    real = os.open

    def refuse(path: object, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, "injected")
        return real(path, flags, *rest)

    monkeypatch.setattr(module.os, "open", refuse)
    with pytest.raises(OutOfResources):
        spool.take()
    monkeypatch.undo()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            spool.take()
            break
        except OutOfResources:
            time.sleep(0.1)
    else:
        pytest.fail("the pool did not recover")
    spool.close()


def test_failed_flush_is_raised_and_not_repeated(tmp_path: Path) -> None:
    """The kernel may have dropped the pages: a second flush would lie (research: never retry)."""
    calls = []

    def fail(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, "injected")

    spool = Spool(tmp_path, reserve_bytes=0, flush=fail)
    file = spool.take()
    file.write([memoryview(b"x")])
    with pytest.raises(OSError, match="injected"):
        file.flush()
    file.discard()
    file.discard()
    assert len(calls) == 1
    assert not file.path.exists()
    spool.close()


def test_orphans_are_swept_and_rows_are_not(spool: Spool) -> None:
    """A file without a row is garbage; other things in the folder are left alone."""
    room = spool.folder / INCOMING
    (room / "known.dcm").write_bytes(b"1")
    (room / "orphan.dcm").write_bytes(b"2")
    (room / "folder").mkdir()
    (room / "link").symlink_to(room / "known.dcm")
    assert spool.sweep_orphans({"known.dcm"}) == 1
    assert sorted(path.name for path in room.iterdir()) == ["folder", "known.dcm", "link"]


def test_young_results_survive_the_sweep(spool: Spool) -> None:
    old, young = spool.new_result_path(), spool.new_result_path()
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    assert spool.sweep_orphans(set(), RESULTS, older_than_s=3600) == 1
    assert young.exists()
    assert not old.exists()


def test_delete_stays_inside(spool: Spool, tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.write_bytes(b"x")
    for path in (outside, spool.folder / INCOMING / ".." / ".." / "precious", spool.folder / "journal.db"):
        with pytest.raises(ValueError, match="spool"):
            spool.delete(path)
    inside = spool.folder / RESULTS / "a.dcm"
    inside.write_bytes(b"x")
    spool.delete(inside)
    spool.delete(inside)
    assert outside.exists()
    assert not inside.exists()
