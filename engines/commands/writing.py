"""Files that commands write for whoever called them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.errors import EngineError


def check_folder_of(path: Path) -> None:
    """Refuse a file that no folder is there for, before the work begins whose outcome it shall hold.

    Raises
    ------
    EngineError
        Where the folder is missing, or the path is a folder itself.
    """
    if path.is_dir():
        raise EngineError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise EngineError(f"{path}: there is no folder {path.parent}; make it first, or name another")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a file: a system's error, or SimpleITK's, says which file it was.

    Raises
    ------
    EngineError
        Where the file cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).strip().splitlines()[-1]
        raise EngineError(f"{path}: cannot be written: {reason}; name another file") from error
