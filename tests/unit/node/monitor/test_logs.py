"""Log lines: nothing of a patient, nothing that an attacker can shape, no secret."""

from __future__ import annotations

import io
import json
import logging
import socket
import stat
import subprocess
import sys
import textwrap
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import config
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context
from pynetdicom.sop_class import Verification

from node.domain.admission import lines_to_add
from node.errors import CannotUnderstand
from node.monitor import logs
from node.monitor.logs import LogStyle, configure, hashed, redacted, site_key

KEY = b"k" * 32
CANARIES = ("Canary^Name", "PID-CANARY-1", "19700102", "ACC-CANARY")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """The stream that lines are written to; the logging of pytest is put back afterwards."""
    root = logging.getLogger()
    handlers, level, show = tuple(root.handlers), root.level, warnings.showwarning
    stream = io.StringIO()
    configure(LogStyle("listener", KEY), stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    warnings.showwarning = show


def only_line(stream: io.StringIO) -> dict[str, object]:
    text = stream.getvalue()
    assert text.count("\n") == 1
    answer: dict[str, object] = json.loads(text)
    return answer


def test_a_line_is_one_json_object_with_its_facts(lines: io.StringIO) -> None:
    logging.getLogger("node.stations.assemble").info("series_settled", extra={"series": "1.2.3", "count": 120})
    line = only_line(lines)
    assert (line["event"], line["role"], line["count"], line["level"]) == ("series_settled", "listener", 120, "info")
    assert line["series"] == hashed("1.2.3", KEY)
    assert str(line["at"]).endswith("+00:00")


def test_a_field_that_is_not_listed_is_left_out(lines: io.StringIO) -> None:
    """SEC-20: a new field needs a new entry in the list, and thereby a look."""
    logging.getLogger("node.x").info("received", extra={"patient_id": CANARIES[1], "detail": CANARIES[0]})
    assert not any(canary in lines.getvalue() for canary in CANARIES)


def test_the_lines_to_add_for_a_refused_peer_can_be_copied(lines: io.StringIO) -> None:
    """NET-13, SEC-21: still one line of the log, and TOML once its JSON is read; a peer's own words add no line."""
    told = lines_to_add('CT 1"\n[[peer]]', "10.1.2.3")
    logging.getLogger("node.dicom.scp").warning("association_refused", extra={"line": told})
    line = only_line(lines)["line"]
    assert line == told
    (peer,) = tomllib.loads(str(line))["peer"]
    assert peer == {"name": "ct-1-peer", "ae_title": 'CT 1"\n[[peer]]', "addresses": ["10.1.2.3"]}


def test_arguments_are_not_put_into_the_event(lines: io.StringIO) -> None:
    logging.getLogger("node.x").info("received %s", CANARIES[0])
    assert only_line(lines)["event"] == "received %s"


@pytest.mark.parametrize("library", ["pydicom", "highdicom.sr", "sqlalchemy.engine", "dbos", "x"])
def test_the_words_of_a_library_are_dropped(lines: io.StringIO, library: str) -> None:
    logging.getLogger(library).error(f"invalid value for PatientName {CANARIES[0]}")
    line = only_line(lines)
    assert str(line["event"]).startswith("library: test_logs.py:")
    assert line["logger"] == library
    assert "Canary" not in lines.getvalue()


def test_an_ordinary_refusal_of_a_peer_is_no_error_of_a_library(lines: io.StringIO) -> None:
    """A destination that is down is told once, by us: pynetdicom's own lines are errors without words."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        AE("HILUM").associate("127.0.0.1", nobody.getsockname()[1], [build_context(Verification)])
    assert lines.getvalue() == ""


def test_a_warning_of_pydicom_is_told_without_the_value(lines: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """pydicom quotes the value that it does not like."""
    monkeypatch.setattr(config.settings, "_writing_validation_mode", config.WARN)
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.WARN)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = logs._log_warning
        ds = Dataset()
        ds.PatientBirthDate = "CANARY-" + "9" * 40
    assert "library_warning" in lines.getvalue()
    assert "CANARY" not in lines.getvalue()


def test_an_exception_keeps_its_type_and_way_but_not_its_words(lines: io.StringIO) -> None:
    try:
        raise ValueError(f"cannot parse {CANARIES[2]}")
    except ValueError:
        logging.getLogger("node.workflows").exception("step_failed")
    line = only_line(lines)
    assert str(line["error"]).startswith("builtins.ValueError at test_logs.py:")
    assert CANARIES[2] not in lines.getvalue()


def test_our_own_errors_keep_their_words(lines: io.StringIO) -> None:
    try:
        raise CannotUnderstand("pixel data is truncated")
    except CannotUnderstand:
        logging.getLogger("node.dicom.scp").exception("refused")
    assert "pixel data is truncated" in str(only_line(lines)["error"])


@pytest.mark.parametrize(
    "text", ["a\nlevel: info", "\x1b[31mred", "<img onerror=x>", "x\u202etxt", "a\x00b", "x" * 5000]
)
def test_text_from_outside_cannot_shape_the_log(lines: io.StringIO, text: str) -> None:
    """SEC-21: newline, ANSI, HTML, direction marks, NUL, length."""
    logging.getLogger("node.dicom.scp").warning("association_refused", extra={"calling_ae_title": text})
    raw = lines.getvalue()
    only_line(lines)
    assert raw.isascii()
    assert not any(c in raw[:-1] for c in "\n\x1b<>\x00")
    assert len(raw) < 700


def test_a_password_in_a_url_is_not_written(lines: io.StringIO) -> None:
    """SEC-13."""
    logging.getLogger("node.service").info("open", extra={"line": "postgresql://hilum:hunter2@db/hilum"})
    assert "hunter2" not in lines.getvalue()
    assert "postgresql://hilum:[redacted]@db/hilum" in lines.getvalue()


def test_settings_are_dumped_without_secrets() -> None:
    """SEC-13: planted secrets are not in the dump."""
    planted = {
        "store": {"url": "postgresql://hilum:hunter2@db/x", "password": "hunter3"},
        "peers": [{"name": "ct", "token": "hunter4"}],
        "tls": {"private_key_file": "/run/secrets/hunter5"},
        "port": 11112,
    }
    dump = redacted(planted)
    assert "hunter" not in json.dumps(dump)
    assert dump["port"] == 11112


def test_the_key_of_a_site_is_made_once_and_is_private(tmp_path: Path) -> None:
    key = site_key(tmp_path / "log.key")
    assert site_key(tmp_path / "log.key") == key
    assert len(key) == 32
    assert stat.S_IMODE((tmp_path / "log.key").stat().st_mode) == 0o600


def test_pynetdicom_logs_no_identifiers_in_a_process_that_is_configured() -> None:
    """SEC-20: on by default there."""
    program = """
        from node.monitor.logs import LogStyle, configure
        configure(LogStyle("worker", b"k"))
        from pynetdicom import _config
        print(_config.LOG_REQUEST_IDENTIFIERS, _config.LOG_RESPONSE_IDENTIFIERS)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert run.stdout == "False False\n"
