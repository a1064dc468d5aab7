"""The ports of the real roles: what a listener and a worker process show, while strangers knock and images come."""

from __future__ import annotations

import json
import random
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

from node.dicom.scu import Outbound
from node.domain.job import Destination

CONFIG = """
[node]
data_dir = "data"
[listener]
host = "127.0.0.1"
port = {dicom}
[[peer]]
name = "scanner"
ae_title = "SCANNER"
addresses = ["127.0.0.1"]
[[destination]]
name = "gone"
ae_title = "GONE"
host = "127.0.0.1"
port = {nobody}
timeout_s = 2.0
[[rule]]
name = "any"
model = "hippocampus-mr"
destinations = ["gone"]
[monitor]
listener_port = {listener}
worker_port = {worker}
segmenter_port = 0
"""


def _ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    numbers = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return numbers


class Node:
    """Two roles of a node as processes."""

    def __init__(self, folder: Path) -> None:
        names = ("dicom", "nobody", "listener", "worker")
        self.ports = dict(zip(names, _ports(len(names)), strict=True))
        self.config = folder / "node.toml"
        self.config.write_text(CONFIG.format(**self.ports))
        self.logs = {role: folder / f"{role}.log" for role in ("listener", "worker")}
        self.processes = {role: self._start(role) for role in self.logs}

    def _start(self, role: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "node.cli", "role", role, "--config", str(self.config)]
        with self.logs[role].open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])

    def page(self, role: str, path: str) -> tuple[int, str]:
        """Status and text of a page."""
        try:
            with urlopen(f"http://127.0.0.1:{self.ports[role]}{path}", timeout=5) as answer:
                return int(answer.status), answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def wait_until_ready(self, role: str) -> None:
        """Until `/readyz` says so."""
        deadline = time.monotonic() + 120
        while True:
            assert self.processes[role].poll() is None, self.logs[role].read_text()
            assert time.monotonic() < deadline, self.logs[role].read_text()
            try:
                if self.page(role, "/readyz")[0] == 200:
                    return
            except URLError:
                pass
            time.sleep(0.2)

    def metrics(self, role: str) -> dict[str, float]:
        """The scrape as `{name{labels}: value}`."""
        lines = self.page(role, "/metrics")[1].splitlines()
        return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def peer(self, calling: str) -> Destination:
        """The listener as somebody with this AE title sees it."""
        return Destination("node", "HILUM", "127.0.0.1", self.ports["dicom"], calling, network_timeout_s=10.0)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A listener and a worker; the segmenter is not needed here."""
    running = Node(tmp_path_factory.mktemp("node"))
    try:
        for role in running.processes:
            running.wait_until_ready(role)
        yield running
    finally:
        for process in running.processes.values():
            process.terminate()
        for process in running.processes.values():
            process.wait(60)


def test_each_role_says_that_it_lives_and_is_ready(node: Node) -> None:
    """OBS-4: a dead destination does not make anybody unready."""
    for role in node.processes:
        assert node.page(role, "/healthz")[0] == 200
        status, text = node.page(role, "/readyz")
        assert (status, json.loads(text)["role"]) == (200, role)


def test_everything_stands_at_zero_before_the_first_image(node: Node) -> None:
    """OBS-3, in the processes that run."""
    listener, worker = node.metrics("listener"), node.metrics("worker")
    assert listener['hilum_received_instances_total{kind="kept",sender="scanner"}'] == 0
    assert worker['hilum_results_stored_total{destination="gone",kind="seg"}'] == 0
    assert worker['hilum_series_ineligible_total{reason="missing_slices"}'] == 0
    assert worker['hilum_queue_depth{queue="segment"}'] == 0
    assert 'hilum_turnaround_seconds_bucket{le="600.0",model="hippocampus-mr"}' in worker


def test_a_destination_that_nobody_answers_for_is_down(node: Node) -> None:
    deadline = time.monotonic() + 60
    while node.metrics("worker").get('hilum_destination_up{destination="gone"}') != 0:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_strangers_make_no_series_and_a_peer_is_counted_by_its_name(node: Node) -> None:
    """OBS-1: sixty AE titles that nobody configured, and one that somebody did."""
    before = node.metrics("listener")
    dice = random.Random(3)
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", node.ports["dicom"])) as sock:
            sock.sendall(_request("".join(dice.choices(string.ascii_letters + string.digits + " <>\"'=", k=12))))
            assert sock.recv(16)[:1] == b"\x03", "A-ASSOCIATE-RJ"
    with Outbound(node.peer("SCANNER"), ["1.2.840.10008.5.1.4.1.1.2"]) as outbound:
        assert outbound.accepted
    after = node.metrics("listener")
    assert after.keys() - before.keys() <= {'hilum_open_associations{sender="scanner"}'}
    refused = 'hilum_associations_total{result="refused_peer",sender="unknown"}'
    accepted = 'hilum_associations_total{result="accepted",sender="scanner"}'
    assert after[refused] - before[refused] == 60
    assert after[accepted] - before[accepted] == 1


def test_every_line_of_the_log_is_one_object_without_anything_raw(node: Node) -> None:
    """SEC-20, SEC-21: AE titles with quotes and angle brackets came in by the test before."""
    for log in node.logs.values():
        for raw in log.read_text().splitlines():
            line = json.loads(raw)
            assert {"at", "level", "role", "event"} <= line.keys()
            assert "<" not in raw


def test_the_listener_has_loaded_nothing_that_could_hold_it_up(node: Node) -> None:
    """No torch, no OpenVINO, no DBOS in its memory."""
    maps = Path(f"/proc/{node.processes['listener'].pid}/maps").read_text()
    assert not [name for name in ("libtorch", "libopenvino", "SimpleITK") if name in maps]


def _request(calling: str) -> bytes:
    """A-ASSOCIATE-RQ: C-ECHO in Implicit VR (PS3.8 9.3.2)."""

    def item(kind: int, value: bytes) -> bytes:
        return bytes((kind, 0)) + len(value).to_bytes(2, "big") + value

    context = b"\x01\0\0\0" + item(0x30, b"1.2.840.10008.1.1") + item(0x40, b"1.2.840.10008.1.2")
    user = item(0x51, (16384).to_bytes(4, "big")) + item(0x52, b"1.2.3")
    body = item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    head = b"\0\x01\0\0" + b"HILUM".ljust(16) + calling.encode().ljust(16) + bytes(32)
    return b"\x01\0" + (len(head) + len(body)).to_bytes(4, "big") + head + body
