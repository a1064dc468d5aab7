"""A live Prometheus scrapes our real ports: each alert rule and each query of the board runs, on metrics that exist."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from node.domain.counts import JournalCounts, QueueCount
from node.monitor import metrics
from node.monitor.http import Health, MonitorServer
from node.monitor.metrics import Role, Vocabulary, initialise

DEPLOY = Path(__file__).parents[2] / "deploy"
EXTERNAL = {"up", "ALERTS", "DCGM_FI_DEV_XID_ERRORS"}
"""Not ours: Prometheus's own, and NVIDIA's exporter."""
LARGE_SITE = Vocabulary(
    version="0.1.0",
    model_set="phantom@12345678,hippocampus-mr@12345678",
    senders=[f"scanner-{n}" for n in range(24)],
    expected_active=["scanner-0"],
    destinations=["pacs", "archive", "workstation"],
    models=[f"model-{n}" for n in range(8)],
    reasons=[f"reason_{n}" for n in range(60)],
)
COUNTS = JournalCounts(
    queues={name: QueueCount(3, 40.0) for name in ("assemble", "segment", "deliver")},
    series_open=3,
    quarantined={"reason_1": 1},
    outbox={"pacs": 2},
    failed_jobs=1,
    failed_deliveries={"pacs": 1},
    spool_bytes={"incoming": 10**9},
)


def _traffic() -> None:
    """One of everything that can happen, through the metrics that the stations use."""
    for sender in ("scanner-0", "an AE title that nobody configured"):
        for result in metrics.ASSOCIATION_RESULTS:
            metrics.ASSOCIATIONS.labels(sender=sender, result=result).inc()
        metrics.OPEN_ASSOCIATIONS.labels(sender=sender).set(2)
        for status in (0x0000, 0xA700, 0xC000):
            metrics.DIMSE_REQUESTS.labels(op="c-store", sender=sender, status_class=metrics.status_class(status)).inc()
        metrics.RECEIVED_INSTANCES.labels(sender=sender, kind="kept").inc()
        metrics.RECEIVED_BYTES.labels(sender=sender).inc(524288)
        metrics.SERIES_REOPENED.labels(sender=sender).inc()
        metrics.SENDER_LAST_INSTANCE.labels(sender=sender).set_to_current_time()
    metrics.STORE_DURATION.observe(0.004)
    metrics.SPOOL_FREE_BYTES.set(9e10)
    metrics.WATERMARK_STATE.set(0)
    metrics.SERIES_COMPLETED.labels(evidence="silence", eligible="true").inc()
    metrics.COMPLETION_WAIT.observe(15)
    metrics.SERIES_INELIGIBLE.labels(reason="reason_2").inc()
    for destination in ("pacs", "archive"):
        metrics.DESTINATION_UP.labels(destination=destination).set(1)
        metrics.DESTINATION_CONTEXT_OK.labels(destination=destination, kind="seg").set(1)
        metrics.RESULTS_STORED.labels(destination=destination, kind="seg").inc()
        for result in metrics.SEND_RESULTS:
            metrics.SEND_ATTEMPTS.labels(destination=destination, result=result).inc()
    for model in ("model-1", "model-2"):
        metrics.TURNAROUND.labels(model=model).observe(95)
        metrics.FIRST_SLICE_TURNAROUND.labels(model=model).observe(140)
        metrics.JOBS_STARTED.labels(model=model).inc()
        metrics.STAGE_DURATION.labels(stage="segment", model=model).observe(20)
    metrics.JOBS_FAILED.labels(stage="segment", cause="bug").inc()
    metrics.JOBS_RETRIED.labels(stage="deliver").inc()
    metrics.JOBS_REJECTED.labels(reason="reason_3").inc()
    metrics.GPU_OOM.inc()
    metrics.MODEL_LOAD.observe(3)


@dataclass(frozen=True)
class Live:
    """A Prometheus that scrapes, and the ports that it scrapes."""

    port: int
    roles: dict[Role, int]
    at: float = 0.0
    """When everything had been scraped, Unix time: a later scrape that fails on a busy machine changes nothing."""

    def value(self, query: str) -> Any:
        """Return the samples of a query, as it was then."""
        return self.ask("query", query=query, time=f"{self.at:.3f}")["result"]

    def ask(self, path: str, **query: str) -> Any:
        """Return `data` of an answer of the HTTP interface."""
        with urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(query)}", timeout=10) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        return document["data"]

    def names(self) -> set[str]:
        """Every metric name that has been scraped."""
        return set(self.ask("label/__name__/values"))


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _configuration(folder: Path, roles: dict[Role, int]) -> Path:
    """The shipped configuration, asked more often and pointed at the ports of this test."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / "rules.yml")]
    (scrape,) = config["scrape_configs"]
    scrape["scrape_timeout"] = "2s"
    for target in scrape["static_configs"]:
        target["targets"] = [f"127.0.0.1:{roles[Role(target['labels']['role'])]}"]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Three roles with traffic, scraped for some seconds by Debian's Prometheus on loopback."""
    folder = tmp_path_factory.mktemp("prometheus")
    with ExitStack() as stack:
        roles = {}
        for role in Role:
            registry = initialise(role, LARGE_SITE, (lambda: COUNTS) if role is Role.WORKER else None)
            roles[role] = stack.enter_context(MonitorServer("127.0.0.1", 0, registry, Health(role))).port
        port = _free_port()
        command = [
            "prometheus",
            f"--config.file={_configuration(folder, roles)}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={"GOMAXPROCS": "1", "PATH": "/usr/bin"})
        stack.callback(process.wait, timeout=20)
        stack.callback(process.terminate)
        running = Live(port, roles)
        yield replace(running, at=_scraped_under_traffic(running, process, folder / "log"))


def _scraped_under_traffic(live: Live, process: subprocess.Popen[bytes], log: Path) -> float:
    """Let things happen until each role has been scraped six times with success; return when that was."""
    deadline = time.monotonic() + 120
    while True:
        _traffic()
        time.sleep(0.3)
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            scraped = live.ask("query", query='sum_over_time(up{job="hilum"}[5m]) >= 6 and up{job="hilum"} == 1')[
                "result"
            ]
        except OSError:
            continue
        if len(scraped) == len(Role):
            return float(scraped[0]["value"][0])


def _names_in(expression: str) -> set[str]:
    """Metric names of an expression: what is left without strings, labels in braces, durations and `by (...)`."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', "", expression)
    bare = re.sub(r"\b(by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)", "", bare)
    return {word for word in re.findall(r"[A-Za-z_]\w*", bare) if "_" in word or word in EXTERNAL} - FUNCTIONS


FUNCTIONS = {"predict_linear", "histogram_quantile", "group_left"}


def _board_queries() -> list[tuple[str, str]]:
    board = json.loads((DEPLOY / "grafana" / "hilum.json").read_text())
    panels = [
        (panel["title"], target["expr"].replace("$__rate_interval", "1m"))
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]
    return panels + [("annotation", entry["expr"]) for entry in board["annotations"]["list"]]


@pytest.mark.parametrize(("title", "query"), _board_queries())
def test_each_query_of_the_board_runs_on_metrics_that_exist(live: Live, title: str, query: str) -> None:
    """OBS-7: what nobody measures would be an empty panel for ever."""
    unknown = _names_in(query) - live.names() - EXTERNAL
    assert not unknown
    result = live.value(query)
    if title != "annotation":
        assert result, "the query is right, but shows nothing although everything has happened"
        assert not all(sample["value"][1] == "NaN" for sample in result)


def test_each_rule_runs_on_metrics_that_exist(live: Live) -> None:
    """OBS-6."""
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"][0]["rules"]
    deadline = time.monotonic() + 60
    (group,) = live.ask("rules")["groups"]
    while any(rule["health"] == "unknown" for rule in group["rules"]) and time.monotonic() < deadline:
        time.sleep(0.5)
        (group,) = live.ask("rules")["groups"]
    assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in shipped]
    for rule in group["rules"]:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
    for rule in shipped:
        assert not _names_in(rule["expr"]) - live.names() - EXTERNAL, rule["alert"]


def test_a_label_of_a_rule_has_the_value_that_is_served(live: Live) -> None:
    """A bucket is `600.0` here and `600` elsewhere, and a rule that asks for the wrong one never rings."""
    for text in ((DEPLOY / "prometheus" / "rules.yml").read_text(), (DEPLOY / "grafana" / "hilum.json").read_text()):
        for name, bound in re.findall(r'(\w+_bucket)\{le=\\?"([^"\\]+)\\?"\}', text):
            assert live.value(f'count({name}{{le="{bound}"}})'), (name, bound)


def _lines(port: int) -> list[str]:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return [line for line in answer.read().decode().splitlines() if not line.startswith("#")]


def test_series_budget_of_a_large_site(live: Live) -> None:
    """OBS-2: less than 5,000 series for all roles together, and no more after more traffic."""
    before = {role: len(_lines(port)) for role, port in live.roles.items()}
    assert sum(before.values()) < 5000
    for _ in range(200):
        _traffic()
    assert {role: len(_lines(port)) for role, port in live.roles.items()} == before


def test_a_scrape_is_answered_while_everything_counts(live: Live) -> None:
    """OBS-5: under a second beside ten threads that count as fast as they can."""
    stop = threading.Event()

    def count() -> None:
        while not stop.wait(0.001):
            _traffic()

    threads = [threading.Thread(target=count) for _ in range(10)]
    for thread in threads:
        thread.start()
    try:
        took = []
        for _ in range(5):
            began = time.monotonic()
            _lines(live.roles[Role.WORKER])
            took.append(time.monotonic() - began)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert sorted(took)[2] < 1.0
