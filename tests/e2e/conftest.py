"""Real peers on loopback: Orthanc as the PACS, and a whole node as its users run it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.store.journal import Journal

ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/bin") or "/usr/sbin/Orthanc"
NOTHING = "nothing that was received is still on its way"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc; its REST interface, as a PACS administrator would ask it."""

    dicom_port: int
    http_port: int

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=30) as answer:
            return json.load(answer)

    def fetch(self, path: str, to: Path) -> Path:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=60) as answer:
            to.write_bytes(answer.read())
        return to

    def put(self, method: str, path: str, body: bytes | dict[str, Any] | list[str]) -> Any:
        """Send it a file, or a document."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read() or b"null")

    def forward(self, files: Sequence[Path], ae_title: str, port: int) -> None:
        """Take files in and send them on by C-STORE; any answer but success makes it fail."""
        taken = [self.put("POST", "/instances", path.read_bytes())["ID"] for path in files]
        self.put("PUT", "/modalities/next", {"AET": ae_title, "Host": "127.0.0.1", "Port": port})
        self.put("POST", "/modalities/next/store", taken)

    def objects(self, modality: str) -> list[str]:
        """Orthanc's ids of the instances of a modality (SEG, SR, DOC)."""
        found = []
        for series in self.get("/series"):
            described = self.get(f"/series/{series}")
            if described["MainDicomTags"].get("Modality") == modality:
                found += described["Instances"]
        return found


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """Orthanc with LABELMAP unknown to it, as Debian ships it; only this machine may ask."""
    peer = Orthanc(free_port(), free_port())
    settings = {
        "Name": "PACS",
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "HttpPort": peer.http_port,
        "DicomPort": peer.dicom_port,
        "DicomAet": "PACS",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "Plugins": [],
    }
    config = tmp_path / "orthanc.json"
    config.write_text(json.dumps(settings))
    log = (tmp_path / "orthanc.log").open("wb")
    process = subprocess.Popen([ORTHANC, str(config)], stdout=log, stderr=log)
    try:
        await_true(lambda: _answers(peer), 60, f"Orthanc does not start: {tmp_path / 'orthanc.log'}")
        yield peer
    finally:
        process.terminate()
        process.wait(30)


def _answers(peer: Orthanc) -> bool:
    try:
        return bool(peer.get("/system"))
    except OSError:
        return False


def await_true(what: Callable[[], object], timeout_s: float, why: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.3)


@dataclass(frozen=True)
class Served:
    """`hilum serve` as a process."""

    folder: Path
    port: int

    def journal(self) -> Journal:
        return Journal.open(f"sqlite:///{self.folder / 'data' / 'journal.db'}")

    def await_end(self, series: int, timeout_s: float = 300.0) -> None:
        """Wait until so many series are settled and every job of theirs has ended."""

        def ended() -> bool:
            with self.journal() as journal:
                seen = journal.list_series(limit=1000)
                jobs = journal.list_jobs(limit=1000)
            settled = [one for one in seen if one.state == "settled" and one.outcome]
            return len(settled) >= series and not any(job.state in ("queued", "running", "composed") for job in jobs)

        try:
            await_true(ended, timeout_s, NOTHING)
        except AssertionError:
            print((self.folder / "serve.log").read_text()[-6000:])
            raise


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[int, str], Served]]:
    """Starts `hilum serve` with one peer, CT1, the given PACS, and the rules that a test writes."""
    started: list[subprocess.Popen[bytes]] = []

    def start(pacs_port: int, rules: str) -> Served:
        folder, port = tmp_path / "node", free_port()
        folder.mkdir()
        (folder / "node.toml").write_text(_node_toml(port, pacs_port, rules))
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-m", "node.cli", "serve", "--config", str(folder / "node.toml")]
        log = (folder / "serve.log").open("wb")
        started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True))
        await_true(lambda: _echoes(port), 90, f"the node does not answer: {folder / 'serve.log'}")
        return Served(folder, port)

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _echoes(port: int) -> bool:
    command = ["/usr/bin/echoscu", "-aet", "CT1", "-aec", "HILUM", "-to", "5", "127.0.0.1", str(port)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _node_toml(port: int, pacs_port: int, rules: str) -> str:
    return f"""
[node]
data_dir = "data"
serial = "e2e"
[listener]
host = "127.0.0.1"
port = {port}
[[peer]]
name = "ct1"
ae_title = "CT1"
addresses = ["127.0.0.1"]
[[peer]]
name = "pacs"
ae_title = "PACS"
addresses = ["127.0.0.1"]
[[destination]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs_port}
first_retry_s = 1.0
longest_retry_s = 3.0
{rules}
[completion]
quiet_s = 6.0
released_quiet_s = 2.0
[spool]
reserve_bytes = 1000000
[monitor]
listener_port = 0
worker_port = 0
segmenter_port = 0
"""
