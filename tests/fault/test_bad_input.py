"""Bad input through the real listener: DCMTK sends what is wrong, 50 clients stand in the way, a good scan passes."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from node.dicom import scu
from node.domain.job import JobState
from node.selftest.phantom import MR
from node.selftest.scanner import Acquisition, planes_around, write_series

pytestmark = pytest.mark.timeout(600)

MakeNode = Callable[..., Any]
Scan = Callable[..., list[Path]]
Edit = Callable[[Dataset], None]

HOSTILE = "../../../../tmp/hilum-was-here"
HALF_OPEN = 50


@dataclass(frozen=True)
class Scanner:
    """One who sends what a test gives it, and notes what was taken."""

    node: Any

    def dcmsend(self, paths: list[Path]) -> None:
        """A series on one association; every slice must be taken."""
        command = ["/usr/bin/dcmsend", "-aet", "CT1", "-aec", "HILUM", "-nuc", "127.0.0.1", str(self.node.port)]
        done = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        self.node.took(paths)

    def storescu(self, path: Path) -> int:
        """One file; the status that it was answered with."""
        command = ["/usr/bin/storescu", "-d", "-aet", "CT1", "-aec", "HILUM", "127.0.0.1", str(self.node.port)]
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False, timeout=120)
        said = done.stdout + done.stderr
        (line,) = [line for line in said.splitlines() if "DIMSE Status" in line] or [said]
        return int(line.split("0x")[1].split(":")[0], 16)

    def data_set(self, path: Path, data: bytes) -> int | None:
        """Bytes that DCMTK would not send, behind the file meta of a CT; the status, None where there was no answer."""
        ds = dcmread(path, stop_before_pixels=True)
        path.write_bytes(path.read_bytes()[: start_of_data(path)] + data)
        answers: list[scu.Sent] = []
        file = (path, CTImageStorage, str(ds.SOPInstanceUID), ExplicitVRLittleEndian)
        scu.send(self.node.destination, [file], answers.append)
        return answers[0].status


@pytest.fixture(scope="module")
def half_open() -> Iterator[Callable[[int], None]]:
    """Opens connections that never go on: silent ones, half a request, a PDU that is longer than what comes of it."""
    with ExitStack() as stack:

        def open_all(port: int) -> None:
            for n in range(HALF_OPEN):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                client.sendall([b"", b"\x01", struct.pack(">BxI", 1, 200) + b"\0\x01"][n % 3])

        yield open_all


def edited(paths: list[Path], edit: Edit, only: Callable[[int], bool] = lambda _: True) -> list[Path]:
    """The same files with something changed in some."""
    for n, path in enumerate(paths):
        if only(n):
            ds = dcmread(path)
            edit(ds)
            ds.save_as(path)
    return paths


def start_of_data(path: Path) -> int:
    """Where the data set begins, behind preamble and file meta."""
    return int(144 + struct.unpack_from("<I", path.read_bytes(), 140)[0])


def two_echoes(folder: Path) -> list[Path]:
    planes = planes_around(pixel_mm=(8.0, 8.0), step_mm=12.0)
    acquisition = Acquisition(planes, replace(MR), study="echoes", series="echoes", echo_times_ms=(10.0, 40.0))
    return list(write_series(acquisition, folder))


def test_bad_input_beside_a_good_scan(
    make_node: MakeNode, scan: Scan, half_open: Callable[[int], None], fast: Path
) -> None:
    """NET-12, NET-14, SEC-9, ASM-11, ASM-14: each is answered, ends with its reason, and hinders nobody else."""
    node = make_node(force_s=30.0)  # as long as the scan with a broken slice is waited for
    node.start()
    half_open(node.port)
    scanner = Scanner(node)
    good = scan("good")
    refused_at_once(scanner, scan)

    series = {
        "good": good,
        "short pixels": edited(scan("short"), shorten, lambda n: n == 7),
        "two patients": edited(scan("patients"), other_patient, lambda n: n >= 10),
        "hostile words": edited(scan("words"), hostile_words),
        "two echoes": two_echoes(fast / "scanner" / "echoes"),
    }
    for paths in series.values():
        scanner.dcmsend(paths)
    node.await_end()
    node.check()
    assert outcome(node, good) == ("processed", "", [JobState.DONE])
    assert outcome(node, series["two echoes"]) == ("processed", "", [JobState.DONE, JobState.DONE])
    assert outcome(node, series["two patients"]) == ("quarantined", "identity_mismatch", [])
    assert outcome(node, series["short pixels"]) == ("quarantined", "pixel_length", [])
    assert outcome(node, series["hostile words"]) == ("processed", "", [JobState.DONE])
    assert not any("DROP TABLE" in log.read_text() for log in node.folder.glob("*.log")), "a patient's name is logged"
    assert not Path("/tmp/hilum-was-here").exists()


def refused_at_once(scanner: Scanner, scan: Scan) -> None:
    """What is wrong in itself is not taken, and the answer says why (table 1.3)."""
    path = scan("wrong")[0]
    whole, uid = path.read_bytes()[start_of_data(path) :], str(dcmread(path).SOPInstanceUID).encode()
    asked = {
        "empty": (b"", 0xC000),
        "truncated in the pixels": (whole[:-100], 0xC000),
        "truncated in the header": (whole[: len(whole) // 3], 0xC000),
        "garbage": (b"\xff" * 4096, 0xC000),
        "zeros": (bytes(4096), 0xC000),
        "another instance": (whole.replace(uid, uid[:-1] + b"0" if uid[-1:] != b"0" else uid[:-1] + b"1"), 0xA900),
    }
    for what, (data, status) in asked.items():
        assert scanner.data_set(scan("wrong")[0], data) == status, what
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        (hostile,) = edited(scan("hostile")[:1], lambda ds, keyword=keyword: hostile_uid(ds, keyword))
        assert scanner.storescu(hostile) == 0x0117, keyword


def outcome(node: Any, paths: list[Path]) -> tuple[str, str, list[JobState]]:
    with node.journal() as journal:
        record = journal.show_series(str(dcmread(paths[0], stop_before_pixels=True).SeriesInstanceUID))
    return record.summary.outcome, record.summary.reason, [job.state for job in record.jobs]


def shorten(ds: Dataset) -> None:
    ds.PixelData = ds.PixelData[:-64]


def other_patient(ds: Dataset) -> None:
    ds.PatientID, ds.PatientName = "HILUM-SELFTEST-OTHER", "Somebody^Else"


def hostile_uid(ds: Dataset, keyword: str) -> None:
    setattr(ds, keyword, HOSTILE)
    if keyword == "SOPInstanceUID":
        ds.file_meta.MediaStorageSOPInstanceUID = HOSTILE


def hostile_words(ds: Dataset) -> None:
    """In each text that the node shows or copies."""
    ds.PatientName = "'; DROP TABLE series; --^<script>"
    ds.SeriesDescription = "../../etc/passwd\x1b[2J{0.__class__}%n"
    ds.StudyDescription = "\u202e" if ds.get("SpecificCharacterSet") else "${jndi:x}"
    ds.AccessionNumber = "$(reboot)"
