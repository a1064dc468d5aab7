"""What is tried lies in a file meanwhile; a process that ends over it leaves it behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engines.errors import BackendUnavailable, RecordsError
from engines.model.attempt import all_left_behind, attempt, attempt_path, left_behind, withdraw
from engines.model.certificate import EngineKey

KEY = EngineKey("d" * 64, "openvino", "bfloat16", "openvino 1.0", "cpu")

DIES = """
import os, signal, sys
from pathlib import Path
from engines.model.attempt import attempt
from engines.model.certificate import EngineKey
with attempt(Path(sys.argv[1]), EngineKey("d" * 64, "openvino", "bfloat16", "openvino 1.0", "cpu"), "measured"):
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_a_process_that_dies_leaves_it_behind(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGSEGV
    said = left_behind(tmp_path, KEY)
    assert said.startswith("ended the process when it was measured (openvino 1.0, ")
    assert said.endswith(f"to try it again, delete {attempt_path(tmp_path, KEY)}")
    assert all_left_behind(tmp_path, KEY.digest) == (f"openvino bfloat16 {said}",)
    assert left_behind(tmp_path, replace(KEY, library="openvino 1.1")) == ""
    assert left_behind(tmp_path, replace(KEY, precision="float32")) == ""
    with attempt(tmp_path, replace(KEY, library="openvino 1.1"), "built"):
        pass
    assert left_behind(tmp_path, KEY) == ""


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), attempt(tmp_path, KEY, "certified"):
        assert attempt_path(tmp_path, KEY).is_file()
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_another_tries_now_is_no_death(tmp_path: Path) -> None:
    with attempt(tmp_path, KEY, "built"):
        assert left_behind(tmp_path, KEY) == "is being built by another process"
        assert all_left_behind(tmp_path, KEY.digest) == ()
        with pytest.raises(BackendUnavailable, match="another process"), attempt(tmp_path, KEY, "measured"):
            pass
        assert attempt_path(tmp_path, KEY).is_file()


def test_who_ends_as_told_takes_it_back(tmp_path: Path) -> None:
    with attempt(tmp_path, KEY, "certified"):
        withdraw()
        assert not attempt_path(tmp_path, KEY).exists()


def test_where_no_file_can_be_left_nothing_is_tried(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordsError, match="cannot be written"), attempt(tmp_path / "file", KEY, "built"):
        pytest.fail("it was tried")


def test_a_file_that_was_cut_short_says_nothing(tmp_path: Path) -> None:
    attempt_path(tmp_path, KEY).write_bytes(b'{"key"')
    assert left_behind(tmp_path, KEY) == ""
    assert all_left_behind(tmp_path, KEY.digest) == ()
