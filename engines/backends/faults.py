"""Errors of libraries made ours: no room, or an engine that does not work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from engines.backends.base import REFERENCE, Engine
from engines.errors import LIBRARY_FAULTS, BackendUnavailable, EngineError, OutOfDeviceMemory


@contextlib.contextmanager
def ours(engine: Engine, what: str) -> Iterator[None]:
    """Let whatever a library raises inside be of an engine.

    Parameters
    ----------
    what
        Is being done, as `no room in memory to open it` will name it.

    Raises
    ------
    OutOfDeviceMemory
        Where memory was asked for in vain.
    BackendUnavailable
        For every other fault of an engine but the reference: another one can do its work. A fault of the reference
        flies as it is, for nothing stands behind it, and it may be one of ours.
    """
    try:
        yield
    except EngineError:
        raise
    except LIBRARY_FAULTS as error:
        if no_room(error):
            raise OutOfDeviceMemory(f"{engine}: no room in memory to {what}: {first_line(error)}") from error
        if engine == REFERENCE:
            raise
        raise BackendUnavailable(f"{engine}: cannot {what}: {type(error).__name__}: {first_line(error)}") from error


def no_room(error: Exception) -> bool:
    """Whether memory was asked for in vain; torch's allocator for the processor has no error class of its own."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def first_line(error: Exception) -> str:
    """Of what a library says, which may go on with its own lines of code."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else "without a word"
