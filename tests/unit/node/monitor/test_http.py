"""The monitor port: three pages, three questions, and clients that stall."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest
from prometheus_client import CollectorRegistry, Gauge

from node.monitor.http import Check, Health, MonitorServer


class Switch:
    """A fact that a test changes."""

    def __init__(self) -> None:
        self.alive = self.disk = self.device = True


@pytest.fixture
def switch() -> Switch:
    return Switch()


@pytest.fixture
def server(switch: Switch) -> Iterator[MonitorServer]:
    registry = CollectorRegistry()
    Gauge("hilum_example", "One.", registry=registry).set(1)
    health = Health(
        "listener",
        alive=lambda: switch.alive,
        readiness={"spool": lambda: Check(switch.disk, "disk_full")},
        capabilities={"infer": lambda: Check(switch.device, "no_device")},
    )
    with MonitorServer("127.0.0.1", 0, registry, health) as running:
        yield running


def get(server: MonitorServer, path: str, method: str = "GET") -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request(method, path)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_metrics(server: MonitorServer) -> None:
    assert get(server, "/metrics") == (
        200,
        "# HELP hilum_example One.\n# TYPE hilum_example gauge\nhilum_example 1.0\n",
    )


def test_liveness_readiness_and_capability_are_three_questions(server: MonitorServer, switch: Switch) -> None:
    """OBS-4: a device that is gone is shown, and the listener stays ready."""
    assert get(server, "/healthz")[0] == get(server, "/readyz")[0] == 200
    switch.device = False
    status, text = get(server, "/readyz")
    answer = json.loads(text)
    assert status == 200
    assert answer["ready"] is True
    assert answer["capabilities"] == {"infer": "no_device"}
    switch.disk = False
    status, text = get(server, "/readyz")
    assert (status, json.loads(text)["readiness"]) == (503, {"spool": "disk_full"})
    assert get(server, "/healthz")[0] == 200
    switch.alive = False
    assert get(server, "/healthz")[0] == 503


@pytest.mark.parametrize("path", ["/", "/metrics/", "/debug", "/../etc/passwd", "/metrics?x=<script>"])
def test_other_paths_are_not_found(server: MonitorServer, path: str) -> None:
    status, text = get(server, path)
    assert status == 404
    assert "<script>" not in text


def test_nothing_can_be_changed_through_the_port(server: MonitorServer) -> None:
    assert {get(server, "/metrics", method)[0] for method in ("POST", "PUT", "DELETE")} == {501}


def test_silent_clients_do_not_keep_prometheus_out(server: MonitorServer) -> None:
    """More clients than slots connect and say nothing; their time runs out and the page is there again."""
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    try:
        deadline = time.monotonic() + 8
        while True:
            try:
                assert get(server, "/healthz")[0] == 200
                break
            except ConnectionError:
                assert time.monotonic() < deadline, "the port is still blocked"
                time.sleep(0.2)
    finally:
        for client in silent:
            client.close()
