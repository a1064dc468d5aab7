"""What commands say, and how: exit statuses, tables, JSON, progress; text of strangers is made harmless (SEC-21)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from engines.errors import BackendUnavailable, EngineError, OutOfDeviceMemory
from node.errors import ConfigError, HilumError, Transient

DONE, ANSWER_IS_NO, USAGE, NOT_THERE, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130


class NotThere(HilumError):
    """What was asked for does not exist, or its state does not allow it."""


def status_of(error: HilumError | EngineError) -> int:
    """The exit status of a command that ended with this error."""
    for kinds, status in (
        ((ConfigError,), USAGE),
        ((NotThere,), NOT_THERE),
        ((Transient, BackendUnavailable, OutOfDeviceMemory), UNAVAILABLE),
    ):
        if isinstance(error, kinds):
            return status
    return ANSWER_IS_NO


def say(text: str = "") -> None:
    """One line for a person, on standard output."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """One line beside the result, on standard error."""
    sys.stderr.write(f"{text}\n")


def harmless(text: object) -> str:
    """The text with every control character written out: AE titles and tag values are attackers' text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def sentence(error: Exception) -> str:
    """What an error says to a person: its first argument, made harmless but for the ends of its lines."""
    return "\n".join(harmless(line) for line in str(error.args[0] if error.args else error).splitlines())


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], indent: str = "") -> str:
    """Columns side by side, numbers to the right."""
    cells = [[("" if value is None else harmless(value)) for value in row] for row in rows]
    widths = [max(len(line[n]) for line in [list(heads), *cells]) for n in range(len(heads))]
    right = [bool(cells) and all(_is_number(line[n]) for line in cells) for n in range(len(heads))]
    lines = []
    for line in [list(heads), *cells]:
        padded = [
            text.rjust(width) if r else text.ljust(width) for text, width, r in zip(line, widths, right, strict=True)
        ]
        lines.append((indent + "  ".join(padded)).rstrip())
    return "\n".join(lines)


def document(value: object) -> str:
    """The value as one JSON document: dataclasses as objects, times as ISO 8601, paths and enumerations as text."""
    return json.dumps(plain(value), indent=2, ensure_ascii=True)


def plain(value: Any) -> Any:
    """Dataclasses, mappings, sequences, enumerations, times and paths as what JSON knows."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return value


def age(then: datetime | None, now: datetime | None = None) -> str:
    """How long ago, in the largest unit that gives a number of at least 2: `90 s`, `12 min`, `5 h`, `3 d`."""
    if then is None:
        return "never"
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    seconds = max(0.0, ((now or datetime.now(UTC)) - then).total_seconds())
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


class Progress:
    """How far a long piece of work is, on standard error: one line on a terminal, a line for each quarter elsewhere."""

    def __init__(self, what: str, quiet: bool = False) -> None:
        self._what, self._quiet, self._said = what, quiet, -1
        self._terminal = sys.stderr.isatty()

    def __call__(self, fraction: float) -> None:
        """Show the fraction that is done, 0 to 1."""
        step = int(fraction * (100 if self._terminal else 4))
        if self._quiet or step == self._said:
            return
        self._said = step
        percent = f"{self._what}: {min(100.0, 100 * fraction):.0f} %"
        sys.stderr.write(f"\r{percent}" if self._terminal else f"{percent}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """End the line."""
        if self._terminal and self._said >= 0 and not self._quiet:
            sys.stderr.write("\n")


@contextmanager
def progress(what: str, quiet: bool = False) -> Iterator[Progress]:
    """Show progress while the block runs."""
    shown = Progress(what, quiet)
    try:
        yield shown
    finally:
        shown.close()


def _is_number(text: str) -> bool:
    return text.lstrip("<>= ").replace(".", "", 1).replace("-", "", 1).isdigit() or text in {"", "-"}
