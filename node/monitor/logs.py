"""Logs: one JSON object a line, made of fields listed here; nothing of a patient, nothing in a library's own words.

The rooms log in the ordinary way, with an event's name as the message and its facts as `extra`:

    _log = logging.getLogger(__name__)
    _log.info("series_settled", extra={"series": uid, "evidence": evidence, "count": 120})

What is written is decided here and nowhere else (SEC-20): a field that is not in `FIELDS` is left out, UIDs become
keyed hashes, text is escaped and cut (SEC-21), the text of a library's record or warning is dropped, as pydicom and
pynetdicom put values of attributes into it, and an exception is written as its type and the lines that it came
through. Only our own errors, whose words are chosen to hold no value of a data set, keep their message.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

FIELDS = frozenset(
    {
        "address", "association", "attempt", "backend", "bytes", "called_ae_title", "calling_ae_title", "cause",
        "completeness", "count", "delivery", "destination", "device", "due_in_s", "entity", "estimated_bytes",
        "estimated_seconds", "evidence", "exit_code", "from_state", "instance", "job", "kind", "limit", "line",
        "listening", "model", "op", "pid_of", "port", "precision", "priority", "reason", "revision", "rule", "seconds",
        "sender", "series", "signal", "sop_class", "stage", "state", "status", "study", "to_state", "transfer_syntax",
        "tries", "variant", "version", "workflow",
    }
)  # fmt: skip
"""Every fact that a line may hold. None of them is, or is made from, an attribute of a patient."""
HASHED = frozenset({"instance", "series", "study"})
"""UIDs: written as keyed hashes, so that a line can be joined with another line but not with an image."""
LINES = frozenset({"line"})
"""What may be several lines: lines to add to node.toml, in which all that came from outside is escaped already."""
SPEAKING_ERRORS = ("node.errors", "engines.errors")
"""Modules whose exceptions say nothing of a data set's content."""
LONGEST = 200

_OURS = ("node", "engines", "hilum")
_LIBRARIES: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("pydicom", "highdicom", "sqlalchemy", "dbos"), logging.WARNING),
        # It calls a peer that refuses, or that is not there, an error; what came of it stands in a line of ours.
        "pynetdicom": logging.CRITICAL,
    }
)
"""The least level at which a library is heard."""
_SECRET_NAME = re.compile(r"passw|secret|token|credential|private|api_?key", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]*@")
REDACTED = "[redacted]"

Value = str | int | float | bool | None


@dataclass(frozen=True)
class LogStyle:
    """How lines are written.

    Attributes
    ----------
    role
        Stands in each line: `listener`, `worker`, ...
    key
        Key of the hashes of UIDs; the same for all roles of a site, so that their lines can be joined.
    show_uids
        Write UIDs as they are. A UID leads to a patient for whoever can ask the PACS.
    """

    role: str
    key: bytes
    level: int = logging.INFO
    show_uids: bool = False


class JsonLines(logging.Formatter):
    """Turns a record into one line of JSON that holds only what may be told."""

    def __init__(self, style: LogStyle) -> None:
        super().__init__()
        self._how = style

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "role": self._how.role,
            "pid": record.process,
            "logger": record.name,
            "event": self._event(record),
        }
        facts = {name: value for name, value in vars(record).items() if name in FIELDS}
        line.update({name: self._value(name, value) for name, value in sorted(facts.items())})
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = describe_error(record.exc_info[1])
        text = json.dumps(line, ensure_ascii=True)
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

    @staticmethod
    def _event(record: logging.LogRecord) -> str:
        """Return the name of our event; of a library's record only where it was written."""
        if record.name.split(".")[0] in _OURS and isinstance(record.msg, str):
            return clean(record.msg)
        return f"library: {Path(record.pathname).name}:{record.lineno}"

    def _value(self, name: str, value: object) -> Value:
        if name in HASHED and not self._how.show_uids:
            return hashed(str(value), self._how.key)
        if value is None or isinstance(value, bool | int | float):
            return value
        if name in LINES:
            return "\n".join(clean(line) for line in str(value).splitlines())
        return clean(str(value))


def configure(style: LogStyle, stream: TextIO | None = None) -> None:
    """Send every record and warning of this process through `JsonLines` to `stream` (default: standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(style))
    root = logging.getLogger()
    for old in tuple(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(style.level)
    for noisy, least in _LIBRARIES.items():
        library = logging.getLogger(noisy)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(max(style.level, least))
    _keep_identifiers_out()
    warnings.showwarning = _log_warning


def catch_uncaught() -> None:
    """Make what nobody catches, in any thread, a line of the log: a traceback would show values in plain text."""
    sys.excepthook = lambda _kind, error, _trace: _log_uncaught(error)
    threading.excepthook = lambda raised: _log_uncaught(raised.exc_value)


def _log_uncaught(error: BaseException | None) -> None:
    if error is not None and not isinstance(error, SystemExit):
        logging.getLogger(__name__).critical("crashed", exc_info=error)


def site_key(path: Path) -> bytes:
    """Return the key of the hashes, made at the first call and kept in a file that only its owner can read."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(handle, "wb") as file:
        key = os.urandom(32)
        file.write(key)
    return key


def hashed(uid: str, key: bytes) -> str:
    """Return the first 16 hexadecimal digits of the HMAC-SHA-256 of a UID."""
    return hmac.new(key, uid.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:16]


def clean(text: str) -> str:
    """Return text from outside as a log, a terminal and a page can hold it: one line, printable, short, no password."""
    printable = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: LONGEST + 1])
    shortened = printable if len(printable) <= LONGEST else printable[: LONGEST - 3] + "..."
    return _URL_PASSWORD.sub(rf"\1:{REDACTED}@", shortened)


def describe_error(error: BaseException) -> str:
    """Return what an exception says: our own, its words; any other, its type and way, as its words may hold a value.

    Errors of `SPEAKING_ERRORS` are decisions, not faults of the program: where they were made helps nobody.
    """
    kind = type(error)
    if kind.__module__ in SPEAKING_ERRORS:
        return clean(f"{kind.__qualname__}: {error}")
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    way = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return clean(f"{kind.__module__}.{kind.__qualname__}") + (f" at {way}" if way else "")


def redacted(settings: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of nested settings in which no secret can be read (SEC-13), for dumps and support."""
    return {
        name: REDACTED if _SECRET_NAME.search(name) and value not in (None, "") else _redacted_value(value)
        for name, value in settings.items()
    }


def _redacted_value(value: object) -> object:
    if isinstance(value, Mapping):
        return redacted({str(name): inner for name, inner in value.items()})
    if isinstance(value, list | tuple):
        return [_redacted_value(item) for item in value]
    return _URL_PASSWORD.sub(rf"\1:{REDACTED}@", value) if isinstance(value, str) else value


def _keep_identifiers_out() -> None:
    """Switch off pynetdicom's logging of whole identifiers, which is on by default."""
    from pynetdicom import _config

    _config.LOG_REQUEST_IDENTIFIERS = False
    _config.LOG_RESPONSE_IDENTIFIERS = False


def _log_warning(  # noqa: PLR0917 - the signature of warnings.showwarning
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Write that a library warned, and where; its text may quote a value of a data set."""
    logging.getLogger("hilum.warnings").warning(
        "library_warning", extra={"kind": category.__name__, "line": f"{Path(filename).name}:{lineno}"}
    )
