"""What is being tried lies in a file meanwhile: an engine that ends its process is not tried again at each start.

A library may end a process that no `except` sees: a bad instruction, a fault in its memory, memory that the system
takes back. The file is locked while its process lives, so one without a lock was left by a process that died over it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from engines.errors import BackendUnavailable, RecordsError
from engines.model.certificate import EngineKey

Doing = Literal["measured", "built", "certified"]


@dataclass(frozen=True)
class Attempt:
    """One engine of one bundle, tried by some process."""

    key: EngineKey
    doing: Doing
    begun_at: AwareDatetime


_ATTEMPT = TypeAdapter(Attempt)
_under_way: set[Path] = set()
"""The files of this process."""


def attempt_path(site: Path, key: EngineKey) -> Path:
    """The file of an engine, whatever the version of its library."""
    return site / f"{key.digest}.{key.backend}-{key.precision}.trying"


@contextlib.contextmanager
def attempt(site: Path, key: EngineKey, doing: Doing) -> Iterator[None]:
    """Leave a file while something is tried, which is on the disk before it begins.

    Raises
    ------
    BackendUnavailable
        Where another process, or thread, tries the same engine now.
    RecordsError
        Where no file can be left there: then nothing may be tried.
    """
    path = attempt_path(site, key)
    try:
        site.mkdir(parents=True, exist_ok=True)
        held = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise RecordsError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        _write(path, held, Attempt(key, doing, datetime.now(UTC).replace(microsecond=0)))
        _under_way.add(path)
        try:
            yield
        finally:
            _under_way.discard(path)
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(held)


def withdraw() -> None:
    """Remove the files of this process, which is about to end as it was told to: that is no death."""
    for path in tuple(_under_way):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def left_behind(site: Path, key: EngineKey) -> str:
    """Why an engine may not be tried now, in words; empty where it may.

    A file of another version of the library, or another device, says nothing of this one.
    """
    path = attempt_path(site, key)
    found = _read(path)
    if found is None or found.key != key:
        return ""
    if _is_locked(path):
        return f"is being {found.doing} by another process"
    return _words(path, found)


def all_left_behind(site: Path, digest: str) -> tuple[str, ...]:
    """The same of every engine of a bundle that a process died over, with its name."""
    found = ((path, _read(path)) for path in sorted(site.glob(f"{digest}.*.trying")))
    return tuple(f"{each.key.engine} {_words(path, each)}" for path, each in found if each and not _is_locked(path))


def _words(path: Path, found: Attempt) -> str:
    when = f"{found.begun_at:%Y-%m-%d %H:%M} UTC"
    library = found.key.library
    return f"ended the process when it was {found.doing} ({library}, {when}); to try it again, delete {path}"


def _write(path: Path, held: int, new: Attempt) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(held, 0)
        os.write(held, _ATTEMPT.dump_json(new) + b"\n")
        os.fsync(held)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BlockingIOError as error:
        raise BackendUnavailable(f"{new.key.engine} is being tried by another process") from error
    except OSError as error:
        raise RecordsError(f"{path}: cannot be written: {error.strerror}") from error


def _read(path: Path) -> Attempt | None:
    """None where there is none, or one that a full disk cut short: then nothing was begun."""
    try:
        return _ATTEMPT.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _is_locked(path: Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
