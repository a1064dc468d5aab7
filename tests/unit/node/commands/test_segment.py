"""`hilum segment` on a folder of several scans: what one of them meets is not the end of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.errors import OutOfDeviceMemory
from node.cli import main
from node.commands import segment as command
from node.errors import DeviceBusy, DoesNotFit, TooLong
from node.selftest.phantom import CT
from node.selftest.scanner import Acquisition, planes_around, write_series


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two series."""
    monkeypatch.chdir(tmp_path)
    planes = planes_around(pixel_mm=(6.0, 6.0), step_mm=8.0)
    for number in (1, 2):
        write_series(Acquisition(planes, CT, series=f"s{number}", series_number=number), tmp_path / f"in/{number}")
    return tmp_path / "in"


def segmented(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    status = main(["segment", str(folder), "--out", "out", "--json", "--model", "phantom"])
    return status, json.loads(capsys.readouterr().out)["scans"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DeviceBusy("1.0 GB are free now"), "memory"),
        (DoesNotFit("allows 2.0 GB in all"), "memory"),
        (OutOfDeviceMemory("2 GB of a card"), "memory"),
        (MemoryError("no room"), "memory"),
        (TooLong("about 50 hours here"), "time"),
    ],
)
def test_scans_without_room_or_time_are_listed(
    two: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, reason: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(command, "segment_stack", fails)
    status, scans = segmented(two, capsys)
    assert status == 1
    assert [(scan["outcome"], scan["reason"]) for scan in scans] == [("failed", reason)] * 2
    assert all(str(error) in scan["detail"] for scan in scans)


def test_the_next_scan_goes_on(two: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real, seen = command.segment_stack, []

    def first_fails(*arguments: Any, **options: Any) -> Any:
        seen.append(arguments)
        if len(seen) == 1:
            raise DoesNotFit("allows 2.0 GB in all")
        return real(*arguments, **options)

    monkeypatch.setattr(command, "segment_stack", first_fails)
    status, scans = segmented(two, capsys)
    assert [scan["outcome"] for scan in scans] == ["failed", "segmented"]
    assert status == 1, "not everything was done"
