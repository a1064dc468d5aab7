"""The spool: all bytes that the node keeps, in files under random names that a journal row makes valid.

Received instances take their file from a pool that is created ahead, under its final name in a directory that was
flushed, so that one flush of the bytes and one of the row are all that stand between a data set and its answer
(NET-2). There is no rename: the row is the commit point, and a file without a row is garbage that the next start
removes. Names never come from a peer (SEC-9).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from node.errors import OutOfResources

INCOMING, RESULTS = "incoming", "results"
_SUFFIX = ".dcm"
_LEAST, _MOST = 64, 128
"""The pool is filled up to `_MOST` files once fewer than `_LEAST` are left: one directory flush for 64 files."""
_LONGEST_WAIT_S = 10.0
_MOST_VIEWS = 512
"""Fewer than IOV_MAX (1024 on Linux)."""
_OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class SpoolFile:
    """One file of the pool, open for writing; either flushed and kept, or discarded.

    Attributes
    ----------
    path
        Its final place.
    length, crc32
        Of the bytes written with `write`, without the head.
    """

    def __init__(self, path: Path, fd: int, flush: Callable[[int], None]) -> None:
        self.path = path
        self.length = 0
        self.crc32 = 0
        self.head_length = 0
        self._fd = fd
        self._flush = flush

    def fileno(self) -> int:
        """Return the descriptor, so that the file can be mapped while it is open."""
        return self._fd

    def write(self, fragments: Sequence[bytes | memoryview], head: bytes = b"") -> None:
        """Append; `head` goes before the first fragments and is not counted in `length` and `crc32`.

        Raises
        ------
        OSError
            The file system cannot take it (ENOSPC, EDQUOT, EIO).
        """
        for fragment in fragments:
            self.crc32 = zlib.crc32(fragment, self.crc32)
            self.length += len(fragment)
        self.head_length += len(head)
        _write_all(self._fd, [head, *fragments] if head else list(fragments))

    def flush(self) -> None:
        """Make the bytes durable and close; after OSError the file must be discarded, never flushed again.

        The kernel may drop dirty pages once it has reported an error, so that a second flush would lie.
        """
        self._flush(self._fd)
        self._close()

    def discard(self) -> None:
        """Remove the file; may be called at any time, more than once."""
        self._close()
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Spool:
    """Folder of received instances and results, with a reserve of free space that is not touched.

    Parameters
    ----------
    folder
        Created where it is missing, readable by the owner alone.
    reserve_bytes
        The hard mark (NET-10): below it nothing is taken in. The journal grows in this reserve.
    flush
        Makes the bytes of an open file durable.
    """

    def __init__(self, folder: Path, reserve_bytes: int, flush: Callable[[int], None] = os.fdatasync) -> None:
        self.folder = folder.absolute()
        self._reserve_bytes = reserve_bytes
        self._flush = flush
        self._pool: deque[SpoolFile] = deque()
        self._changed = threading.Condition()
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        for room in (INCOMING, RESULTS):
            (self.folder / room).mkdir(parents=True, exist_ok=True, mode=0o700)
        _flush_folder(self.folder)

    def free_bytes(self) -> int:
        """Return what an ordinary user may still write on the spool's file system."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def take(self) -> SpoolFile:
        """Return an empty file whose name is durable.

        Raises
        ------
        OutOfResources
            Free space is below the reserve, or no file could be made.
        """
        try:
            free = self.free_bytes()
        except OSError:
            raise OutOfResources("storage is not available") from None
        if free < self._reserve_bytes:
            raise OutOfResources("storage is full")
        with self._changed:
            self._start()
            ready = self._changed.wait_for(lambda: self._pool or self._error or self._closing, _LONGEST_WAIT_S)
            if not ready or not self._pool:
                raise OutOfResources("storage is not available")
            file = self._pool.popleft()
            if len(self._pool) < _LEAST:
                self._changed.notify_all()
            return file

    def close(self) -> None:
        """End the pool thread and remove the files that nobody took."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        while self._pool:
            self._pool.popleft().discard()

    def sweep_orphans(self, known: Collection[str], room: str = INCOMING, older_than_s: float = 0.0) -> int:
        """Remove the files of a room whose names are not in `known`; return how many.

        Only while nobody fills that room: the listener sweeps `incoming` before it listens. For `results`, which other
        processes fill, say how old a file must be.
        """
        before = time.time() - older_than_s
        removed = 0
        with os.scandir(self.folder / room) as entries:
            for entry in entries:
                if entry.name in known or not entry.is_file(follow_symlinks=False):
                    continue
                if older_than_s and entry.stat(follow_symlinks=False).st_mtime > before:
                    continue
                Path(entry.path).unlink(missing_ok=True)
                removed += 1
        return removed

    def new_result_path(self) -> Path:
        """Return a path for a result, under a random name; nothing is created."""
        return self.folder / RESULTS / _random_name()

    def delete(self, path: Path) -> None:
        """Remove a file of the spool; nothing happens where it is gone already.

        Raises
        ------
        ValueError
            The path does not lie in the spool.
        """
        if path.parent.parent != self.folder or path.parent.name not in (INCOMING, RESULTS):
            raise ValueError("not a file of the spool")
        path.unlink(missing_ok=True)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._fill_for_ever, name="spool-pool", daemon=True)
            self._thread.start()

    def _fill_for_ever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or len(self._pool) < _LEAST)
                if self._closing:
                    return
                wanted = _MOST - len(self._pool)
            made, error = self._create(wanted)
            with self._changed:
                self._pool.extend(made)
                self._error = error
                self._changed.notify_all()
                if error is not None:  # a full disk is asked again, but not in a hurry
                    self._changed.wait_for(lambda: self._closing, 1.0)

    def _create(self, count: int) -> tuple[list[SpoolFile], OSError | None]:
        """Create files and make their names durable; on an error none of them."""
        made: list[SpoolFile] = []
        room = self.folder / INCOMING
        try:
            for _ in range(count):
                path = room / _random_name()
                made.append(SpoolFile(path, os.open(path, _OPEN_FLAGS, 0o600), self._flush))
            _flush_folder(room)
        except OSError as error:
            for file in made:
                with contextlib.suppress(OSError):
                    file.discard()
            return [], error
        return made, None


def _write_all(fd: int, fragments: list[bytes | memoryview]) -> None:
    for first in range(0, len(fragments), _MOST_VIEWS):
        portion = fragments[first : first + _MOST_VIEWS]
        while portion:
            written = os.writev(fd, portion)  # fewer bytes than asked: the disk is full, and the next call says so
            while portion and written >= len(portion[0]):
                written -= len(portion.pop(0))
            if portion:
                portion[0] = memoryview(portion[0])[written:]


def _flush_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _random_name() -> str:
    return secrets.token_hex(12) + _SUFFIX
