"""The list of metrics: complete at 0 from the start, closed against words from outside, one role's own."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from node.dicom.scp import End, Refusal
from node.domain.counts import JournalCounts, QueueCount
from node.domain.instance import InstanceState
from node.domain.job import ObjectKind
from node.domain.series import Evidence
from node.monitor import metrics
from node.monitor.metrics import BY_ROLE, Family, Role, Vocabulary, initialise

VOCABULARY = Vocabulary(
    version="0.1.0",
    model_set="phantom@1234",
    senders=("ct-1", "mr-1"),
    expected_active=("ct-1",),
    destinations=("pacs",),
    models=("phantom",),
    reasons=("missing_slices", "mosaic"),
)
COUNTS = JournalCounts(
    queues={"assemble": QueueCount(2, 31.5), "segment": QueueCount(0, 0.0), "deliver": QueueCount(4, 7200.0)},
    series_open=2,
    quarantined={"missing_slices": 1, "a reason that nobody listed": 2},
    outbox={"pacs": 4, "gone": 1},
    failed_jobs=1,
    failed_deliveries={"pacs": 3},
    spool_bytes={"incoming": 1000},
)


def page(registry: CollectorRegistry) -> dict[str, float]:
    """The scrape as `{name{labels}: value}`."""
    lines = generate_latest(registry).decode().splitlines()
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


@pytest.fixture(autouse=True)
def nothing_happened() -> None:
    """The metrics are the process's own: forget what other tests counted."""
    for declared in {declared for of_role in BY_ROLE.values() for declared in of_role}:
        if isinstance(declared, Family):
            declared.metric.clear()


@pytest.mark.parametrize("role", list(Role))
def test_every_counter_is_there_at_zero_before_anything_happened(role: Role) -> None:
    """OBS-3."""
    shown = page(initialise(role, VOCABULARY))
    for declared in BY_ROLE[role]:
        if isinstance(declared, Family) and declared.metric._type != "gauge":
            name = declared.metric._name
            assert any(key.startswith(name) for key in shown), name
    if role is Role.WORKER:
        assert shown['hilum_results_stored_total{destination="pacs",kind="seg"}'] == 0
        assert shown['hilum_series_ineligible_total{reason="mosaic"}'] == 0
        assert shown['hilum_turnaround_seconds_bucket{le="600.0",model="phantom"}'] == 0


def test_random_ae_titles_make_no_series() -> None:
    """OBS-1: 10,000 senders, operations and reasons from outside, and the number of lines stays."""
    registry = initialise(Role.LISTENER, VOCABULARY)
    worker = initialise(Role.WORKER, VOCABULARY)
    metrics.OPEN_ASSOCIATIONS.labels(sender="unknown").set(0)
    metrics.SENDER_LAST_INSTANCE.labels(sender="unknown").set(0)
    before = len(page(registry)), len(page(worker))
    dice = random.Random(1)
    for _ in range(10_000):
        word = "".join(dice.choices(string.printable, k=12))
        metrics.ASSOCIATIONS.labels(sender=word, result=word).inc()
        metrics.DIMSE_REQUESTS.labels(op=word, sender=word, status_class=word).inc()
        metrics.SENDER_LAST_INSTANCE.labels(sender=word).set(1)
        metrics.SERIES_INELIGIBLE.labels(reason=word).inc()
        metrics.STAGE_DURATION.labels(stage=word, model=word).observe(1)
    assert (len(page(registry)), len(page(worker))) == before
    assert page(registry)['hilum_associations_total{result="other",sender="unknown"}'] >= 10_000


def test_a_role_shows_only_what_it_can_know() -> None:
    """A gauge that another process keeps would be a false 0 here, and ring an alert."""
    listener, worker, segmenter = (page(initialise(role, VOCABULARY)) for role in Role)
    assert not any(key.startswith("hilum_destination_up") for key in {**listener, **segmenter})
    assert not any(key.startswith("hilum_received") for key in {**worker, **segmenter})
    assert all('hilum_build_info{model_set="phantom@1234",version="0.1.0"}' in shown for shown in (listener, worker))


def test_the_worker_shows_the_counts_of_the_journal_as_they_are_at_the_scrape() -> None:
    readings = iter([COUNTS, JournalCounts({}, 7, {}, {}, 0, {})])
    registry = initialise(Role.WORKER, VOCABULARY, lambda: next(readings))
    shown = page(registry)
    assert shown['hilum_queue_depth{queue="assemble"}'] == 2
    assert shown['hilum_queue_oldest_age_seconds{queue="deliver"}'] == 7200
    assert shown['hilum_quarantined{reason="missing_slices"}'] == 1
    assert shown['hilum_quarantined{reason="other"}'] == 2
    assert shown['hilum_quarantined{reason="mosaic"}'] == 0
    assert shown['hilum_outbox_depth{destination="unknown"}'] == 1
    assert shown['hilum_failed_deliveries{destination="pacs"}'] == 3
    assert page(registry)["hilum_series_open"] == 7


def test_silence_of_a_sender_counts_from_the_start_of_the_listener() -> None:
    shown = page(initialise(Role.LISTENER, VOCABULARY))
    assert shown['hilum_sender_last_instance_timestamp_seconds{sender="ct-1"}'] > 1.7e9
    assert shown['hilum_sender_expected_active{sender="ct-1"}'] == 1
    assert shown['hilum_sender_expected_active{sender="mr-1"}'] == 0


def test_the_closed_sets_are_those_of_the_domain() -> None:
    """`monitor` stands above nothing and repeats the words; they must be the same words."""
    assert {evidence.value for evidence in Evidence} <= set(metrics.EVIDENCE)
    assert {kind.value for kind in ObjectKind} <= set(metrics.KINDS)
    assert {state.value for state in InstanceState} <= set(metrics.RECEIVED_KINDS)
    assert {end.value for end in End} == set(metrics.ENDS)
    assert {refusal.value for refusal in Refusal} == set(metrics.REFUSALS)


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (0x0000, "success"),
        (0xA700, "out_of_resources"),
        (0xA900, "mismatch"),
        (0xC000, "cannot_understand"),
        (0xC211, "cannot_understand"),
        (0x0117, "invalid_uid"),
        (0x0122, "not_storage"),
        (0x0211, "unrecognised"),
        (0x0124, "other"),
        (0xB000, "other"),
    ],
)
def test_status_class(status: int, word: str) -> None:
    assert metrics.status_class(status) == word
    assert word in metrics.STATUS_CLASSES


def test_every_name_is_a_base_unit_and_carries_the_prefix() -> None:
    names = [
        declared.metric._name if isinstance(declared, Family) else declared._name
        for role in Role
        for declared in BY_ROLE[role]
    ]
    assert all(name.startswith("hilum_") for name in names)
    assert not any(name.endswith(("_ms", "_mb", "_minutes")) for name in names)


def test_every_metric_is_set_somewhere() -> None:
    """A metric that nothing touches is a panel that stays empty and an alert that never rings."""
    root = Path(metrics.__file__).parents[1]
    code = "\n".join(path.read_text() for path in root.rglob("*.py"))
    names = [name for name, value in vars(metrics).items() if isinstance(value, Family | Counter | Gauge | Histogram)]
    own = {"BUILD_INFO", "SENDER_EXPECTED_ACTIVE"}
    assert not [name for name in names if name not in own and f"metrics.{name}" not in code]
