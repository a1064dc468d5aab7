"""Every metric of the node, in one list: what it counts, which role serves it, and the closed sets of its labels.

A label never takes a word from outside (OBS-1): a sender is its name in the configuration, a reason is one that the
code knows, and whatever else is handed in becomes `unknown` or `other`. Thus the number of time series is fixed when a
role starts.

A role calls `initialise` once: every combination of labels of its counters and histograms then exists at 0 (OBS-3),
since Prometheus cannot see the first increase of a counter that appears with it. The registry that it returns is what
the role's port shows.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class Role(StrEnum):
    """The process that serves a metric."""

    LISTENER = "listener"
    WORKER = "worker"
    SEGMENTER = "segmenter"


class Configured(StrEnum):
    """A set of label values that is known when the settings have been read."""

    SENDERS = "senders"
    DESTINATIONS = "destinations"
    MODELS = "models"
    REASONS = "reasons"


UNKNOWN = "unknown"
"""A sender or destination that the configuration does not name; a model where none was chosen."""
OTHER = "other"
"""A word that is not in the closed set of its label."""

REFUSALS = ("refused_peer", "refused_called", "refused_limit", "refused_draining", "refused_protocol")
ENDS = ("released", "aborted_by_peer", "disconnected", "timed_out", "protocol", "drained", "error")
ASSOCIATION_RESULTS = ("accepted", *REFUSALS, *ENDS, OTHER)
"""How an association began, and how an accepted one ended."""
OPERATIONS = ("c-echo", "c-store", OTHER)
STATUS_CLASSES = (
    *("success", "out_of_resources", "mismatch", "cannot_understand", "invalid_uid", "not_storage", "unrecognised"),
    OTHER,
)
RECEIVED_KINDS = ("kept", "held", "quarantined", "duplicate", OTHER)
EVIDENCE = ("silence", "released", "multiframe", "concatenation", "forced", "operator", "folder", OTHER)
ELIGIBLE = ("true", "false")
STAGES = ("assemble", "load", "wait", "segment", "compose", "deliver", OTHER)
CAUSES = (
    "bug",
    "crashed",
    "exhausted",
    "refused",
    "readback",
    "bundle",
    "backend",
    "outdated",
    "input",
    "memory",
    "time",
    OTHER,
)
KINDS = ("seg", "sr", "pdf", OTHER)
SEND_RESULTS = ("stored", "warning", "unavailable", "refused", "exhausted", "superseded", OTHER)

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 15)
_STAGE = (0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800)
_WAIT = (1, 5, 15, 20, 30, 60, 90, 120, 300, 900, 1800, 5400)
_TURNAROUND = (10, 30, 60, 90, 120, 180, 300, 450, 600, 900, 1800, 3600, 7200)

Allowed = tuple[str, ...] | Configured
M = TypeVar("M", Counter, Gauge, Histogram)


class Family(Generic[M]):
    """A metric with labels, each of a closed set.

    Parameters
    ----------
    kind
        `Counter`, `Gauge` or `Histogram`.
    labels
        For each label its words, or the set of words that the settings give.
    buckets
        Upper bounds of a histogram.
    """

    def __init__(
        self,
        kind: Callable[..., M],
        name: str,
        text: str,
        labels: Mapping[str, Allowed],
        buckets: tuple[float, ...] | None = None,
    ) -> None:
        options = {} if buckets is None else {"buckets": buckets}
        self.metric: M = kind(name, text, tuple(labels), registry=None, **options)
        self._labels = labels
        self._words: dict[str, tuple[str, ...]] = {
            label: (allowed if isinstance(allowed, tuple) else (_fallback(label),)) for label, allowed in labels.items()
        }

    def close(self, sets: Mapping[Configured, tuple[str, ...]]) -> None:
        """Fix the words of every label; of a counter and a histogram, make each combination at 0."""
        self._words = {
            label: sets[allowed] if isinstance(allowed, Configured) else allowed
            for label, allowed in self._labels.items()
        }
        if not isinstance(self.metric, Gauge):
            for combination in itertools.product(*self._words.values()):
                self.metric.labels(*combination)

    def labels(self, **values: str) -> M:
        """Return the series of these labels; a word that is not of its set becomes `unknown` or `other`."""
        return self.metric.labels(
            **{label: value if value in self._words[label] else _fallback(label) for label, value in values.items()}
        )


def _fallback(label: str) -> str:
    return UNKNOWN if label in {"sender", "destination", "model"} else OTHER


# Every role ----------------------------------------------------------------------------------------------------------

BUILD_INFO = Gauge("hilum_build_info", "1; what runs.", ["version", "model_set"], registry=None)

# Listener: who sends, what is refused, how fast it is answered -------------------------------------------------------

ASSOCIATIONS = Family(
    Counter,
    "hilum_associations_total",
    "Associations by how they began (accepted, refused_*) and how accepted ones ended.",
    {"sender": Configured.SENDERS, "result": ASSOCIATION_RESULTS},
)
OPEN_ASSOCIATIONS = Family(Gauge, "hilum_open_associations", "Associations open now.", {"sender": Configured.SENDERS})
DIMSE_REQUESTS = Family(
    Counter,
    "hilum_dimse_requests_total",
    "Requests answered, by operation and class of status.",
    {"op": OPERATIONS, "sender": Configured.SENDERS, "status_class": STATUS_CLASSES},
)
STORE_DURATION = Histogram(
    "hilum_store_duration_seconds",
    "From the last byte of an object to its C-STORE response: flush, journal commit, answer.",
    buckets=_FAST,
    registry=None,
)
RECEIVED_INSTANCES = Family(
    Counter,
    "hilum_received_instances_total",
    "Objects acknowledged, by what became of them.",
    {"sender": Configured.SENDERS, "kind": RECEIVED_KINDS},
)
RECEIVED_BYTES = Family(
    Counter, "hilum_received_bytes_total", "Data set bytes acknowledged.", {"sender": Configured.SENDERS}
)
SENDER_LAST_INSTANCE = Family(
    Gauge,
    "hilum_sender_last_instance_timestamp_seconds",
    "When a sender last stored an object, Unix time; the listener's start until then.",
    {"sender": Configured.SENDERS},
)
SENDER_EXPECTED_ACTIVE = Family(
    Gauge,
    "hilum_sender_expected_active",
    "1 where the configuration says that silence of this sender is worth a ticket.",
    {"sender": Configured.SENDERS},
)
SPOOL_FREE_BYTES = Gauge("hilum_spool_free_bytes", "Bytes that the spool may still take.", registry=None)
WATERMARK_STATE = Gauge(
    "hilum_watermark_state", "0: room; 1: the hard mark is reached and C-STORE is answered 0xA700.", registry=None
)

# Worker: completion, decisions, delivery, and what the journal holds --------------------------------------------------

SERIES_COMPLETED = Family(
    Counter,
    "hilum_series_completed_total",
    "Series settled, by evidence, and whether at least one stack of it went to a model.",
    {"evidence": EVIDENCE, "eligible": ELIGIBLE},
)
COMPLETION_WAIT = Histogram(
    "hilum_completion_wait_seconds",
    "From the last instance of a series to the decision that it is whole.",
    buckets=_WAIT,
    registry=None,
)
SERIES_REOPENED = Family(
    Counter,
    "hilum_series_reopened_total",
    "Series settled again, as late slices had opened them: the silence that was waited for was too short.",
    {"sender": Configured.SENDERS},
)
LATE_INSTANCES = Family(
    Counter,
    "hilum_late_instances_total",
    "Instances that came after their series had been settled, counted when it is settled again.",
    {"sender": Configured.SENDERS},
)
SERIES_INELIGIBLE = Family(
    Counter,
    "hilum_series_ineligible_total",
    "Stacks, or frames that form none, that no model was chosen for.",
    {"reason": Configured.REASONS},
)
RESULTS_STORED = Family(
    Counter,
    "hilum_results_stored_total",
    "Result objects that a destination has taken.",
    {"destination": Configured.DESTINATIONS, "kind": KINDS},
)
SEGMENTATIONS_MISREAD = Family(
    Counter,
    "hilum_segmentations_often_misread_total",
    "BINARY segmentations stored although common viewers garble their image size (RES-2): no LABELMAP was taken.",
    {"destination": Configured.DESTINATIONS},
)
SEND_ATTEMPTS = Family(
    Counter,
    "hilum_send_attempts_total",
    "Tries to send one object, by result; `refused` and `exhausted` end the delivery as FAILED.",
    {"destination": Configured.DESTINATIONS, "result": SEND_RESULTS},
)
DESTINATION_UP = Family(
    Gauge,
    "hilum_destination_up",
    "1 where the destination answered the last C-ECHO or C-STORE.",
    {"destination": Configured.DESTINATIONS},
)
DESTINATION_CONTEXT_OK = Family(
    Gauge,
    "hilum_destination_context_ok",
    "1 where the destination accepted a presentation context for this kind of object when last asked.",
    {"destination": Configured.DESTINATIONS, "kind": KINDS},
)
TURNAROUND = Family(
    Histogram,
    "hilum_turnaround_seconds",
    "From the last slice received to the last result object stored at a destination.",
    {"model": Configured.MODELS},
    buckets=_TURNAROUND,
)
FIRST_SLICE_TURNAROUND = Family(
    Histogram,
    "hilum_first_slice_turnaround_seconds",
    "From the first slice received to the last result object stored at a destination.",
    {"model": Configured.MODELS},
    buckets=_TURNAROUND,
)

# Worker and segmenter: jobs ------------------------------------------------------------------------------------------

STAGE_DURATION = Family(
    Histogram,
    "hilum_stage_duration_seconds",
    "How long one stage of one job took.",
    {"stage": STAGES, "model": Configured.MODELS},
    buckets=_STAGE,
)
JOBS_STARTED = Family(
    Counter, "hilum_jobs_started_total", "Jobs begun by the segmenter, retries included.", {"model": Configured.MODELS}
)
JOBS_FAILED = Family(
    Counter,
    "hilum_jobs_failed_total",
    "Jobs and deliveries that ended FAILED: a person must look.",
    {"stage": STAGES, "cause": CAUSES},
)
JOBS_RETRIED = Family(Counter, "hilum_jobs_retried_total", "Tries put off to a later time.", {"stage": STAGES})
JOBS_REJECTED = Family(
    Counter,
    "hilum_jobs_rejected_total",
    "Jobs that ended REJECTED: the scan cannot serve the model.",
    {"reason": Configured.REASONS},
)
ESTIMATE_RATIO = Family(
    Histogram,
    "hilum_segment_estimate_ratio",
    "What a case took over what was told before it began; above 1 it took more.",
    {"quantity": ("memory", "seconds")},
    buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 4),
)
GPU_OOM = Counter("hilum_gpu_oom_total", "Times a device had too little memory for a case.", registry=None)
MODEL_LOAD = Histogram("hilum_model_load_seconds", "Opening one model on its device.", buckets=_STAGE, registry=None)

Declared = Family[Counter] | Family[Gauge] | Family[Histogram] | Counter | Gauge | Histogram

JOB_METRICS: tuple[Declared, ...] = (STAGE_DURATION, JOBS_FAILED, JOBS_RETRIED, JOBS_REJECTED)
BY_ROLE: Mapping[Role, tuple[Declared, ...]] = {
    Role.LISTENER: (
        ASSOCIATIONS,
        OPEN_ASSOCIATIONS,
        DIMSE_REQUESTS,
        STORE_DURATION,
        RECEIVED_INSTANCES,
        RECEIVED_BYTES,
        SENDER_LAST_INSTANCE,
        SENDER_EXPECTED_ACTIVE,
        SPOOL_FREE_BYTES,
        WATERMARK_STATE,
    ),
    Role.WORKER: (
        SERIES_COMPLETED,
        COMPLETION_WAIT,
        SERIES_REOPENED,
        LATE_INSTANCES,
        SERIES_INELIGIBLE,
        RESULTS_STORED,
        SEGMENTATIONS_MISREAD,
        SEND_ATTEMPTS,
        DESTINATION_UP,
        DESTINATION_CONTEXT_OK,
        TURNAROUND,
        FIRST_SLICE_TURNAROUND,
        *JOB_METRICS,
    ),
    Role.SEGMENTER: (JOBS_STARTED, ESTIMATE_RATIO, GPU_OOM, MODEL_LOAD, *JOB_METRICS),
}
"""Which role shows which metric; a role shows nothing that it cannot know."""


@dataclass(frozen=True)
class Vocabulary:
    """The label values that the settings give, and what runs."""

    version: str
    model_set: str
    """Names of the enabled models with the first digits of their digests, in order."""
    senders: Collection[str] = ()
    expected_active: Collection[str] = ()
    """Those senders whose silence is worth a ticket."""
    destinations: Collection[str] = ()
    models: Collection[str] = ()
    reasons: Collection[str] = ()
    """Every reason for which a stack may be ineligible, quarantined or rejected."""


class QueueCount(Protocol):
    """What the scrape reads of one queue; `node.domain.counts.QueueCount` is one."""

    @property
    def depth(self) -> int:
        """Work that has not ended."""

    @property
    def oldest_age_s(self) -> float:
        """Age of the oldest of it."""


class JournalCounts(Protocol):
    """What the worker's scrape reads from the journal; `node.domain.counts.JournalCounts` is one."""

    @property
    def queues(self) -> Mapping[str, QueueCount]:
        """By station."""

    @property
    def series_open(self) -> int:
        """Series that slices may still come for."""

    @property
    def quarantined(self) -> Mapping[str, int]:
        """By reason."""

    @property
    def outbox(self) -> Mapping[str, int]:
        """Deliveries not ended, by destination."""

    @property
    def failed_jobs(self) -> int:
        """Jobs that wait for a person."""

    @property
    def failed_deliveries(self) -> Mapping[str, int]:
        """Deliveries that wait for a person, by destination."""

    @property
    def spool_bytes(self) -> Mapping[str, int]:
        """Bytes that rows name, by class."""


class JournalCollector(Collector):
    """Asks the journal at each scrape, so that the numbers are the journal's own and survive a restart.

    Parameters
    ----------
    read
        Returns the counts from a read-only transaction; it is called in the thread of the scrape and takes no lock of
        the DICOM path.
    """

    def __init__(self, read: Callable[[], JournalCounts], vocabulary: Vocabulary) -> None:
        self._read = read
        self._sets = _sets(vocabulary)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Name the metrics without asking the journal."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Turn one reading of the journal into gauges."""
        counts = self._read()
        depth = GaugeMetricFamily("hilum_queue_depth", "Work that has not ended, by station.", labels=["queue"])
        age = GaugeMetricFamily(
            "hilum_queue_oldest_age_seconds", "Age of the oldest work that has not ended.", labels=["queue"]
        )
        for queue, count in counts.queues.items():
            depth.add_metric([queue], count.depth)
            age.add_metric([queue], count.oldest_age_s)
        yield depth
        yield age
        yield GaugeMetricFamily("hilum_series_open", "Series that slices may still come for.", counts.series_open)
        yield GaugeMetricFamily("hilum_failed_jobs", "Jobs that wait for a person.", counts.failed_jobs)
        yield self._by("hilum_quarantined", "In doubt, a person must look.", "reason", counts.quarantined)
        yield self._by("hilum_outbox_depth", "Deliveries not ended.", "destination", counts.outbox)
        yield self._by(
            "hilum_failed_deliveries", "Deliveries that wait for a person.", "destination", counts.failed_deliveries
        )
        spool = GaugeMetricFamily("hilum_spool_bytes", "Bytes in the spool that rows name.", labels=["class"])
        for name, size in counts.spool_bytes.items():
            spool.add_metric([name], size)
        yield spool

    def _by(self, name: str, text: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
        """Make a gauge with each word of the closed set; what is not in it is added up under the fallback."""
        words = self._sets[Configured.REASONS if label == "reason" else Configured.DESTINATIONS]
        sums = dict.fromkeys(words, 0)
        for value, number in values.items():
            sums[value if value in sums else _fallback(label)] += number
        family = GaugeMetricFamily(name, text, labels=[label])
        for value, number in sums.items():
            family.add_metric([value], number)
        return family


def initialise(
    role: Role, vocabulary: Vocabulary, read_journal: Callable[[], JournalCounts] | None = None
) -> CollectorRegistry:
    """Create every series of a role's counters at 0 and return the registry that its port shows.

    Parameters
    ----------
    read_journal
        For the worker: returns the journal's counts, at each scrape.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    sets = _sets(vocabulary)
    for declared in BY_ROLE[role]:
        if isinstance(declared, Family):
            declared.close(sets)
            registry.register(declared.metric)
        else:
            registry.register(declared)
    BUILD_INFO.clear()
    BUILD_INFO.labels(version=vocabulary.version, model_set=vocabulary.model_set).set(1)
    registry.register(BUILD_INFO)
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    if role is Role.LISTENER:
        _start_senders(vocabulary)
    if read_journal is not None:
        registry.register(JournalCollector(read_journal, vocabulary))
    return registry


def status_class(status: int) -> str:
    """Return the word of `STATUS_CLASSES` for a DIMSE status (PS3.7 annex C, PS3.4 table B.2-1)."""
    exact = {0x0000: "success", 0x0117: "invalid_uid", 0x0122: "not_storage", 0x0211: "unrecognised"}
    by_class = {0xA7: "out_of_resources", 0xA9: "mismatch"}
    if status in exact:
        return exact[status]
    if status >> 12 == 0xC:
        return "cannot_understand"
    return by_class.get(status >> 8, OTHER)


def _start_senders(vocabulary: Vocabulary) -> None:
    """Silence is counted from the start of the listener, as what came before it is not known here."""
    now = time.time()
    for sender in vocabulary.senders:
        OPEN_ASSOCIATIONS.labels(sender=sender).set(0)
        SENDER_LAST_INSTANCE.labels(sender=sender).set(now)
        SENDER_EXPECTED_ACTIVE.labels(sender=sender).set(1 if sender in vocabulary.expected_active else 0)


def _sets(vocabulary: Vocabulary) -> dict[Configured, tuple[str, ...]]:
    """Return the configured sets, each with the word that stands for everything else."""
    return {
        Configured.SENDERS: tuple(sorted({*vocabulary.senders, UNKNOWN})),
        Configured.DESTINATIONS: tuple(sorted({*vocabulary.destinations, UNKNOWN})),
        Configured.MODELS: tuple(sorted({*vocabulary.models, UNKNOWN})),
        Configured.REASONS: tuple(sorted({*vocabulary.reasons, OTHER})),
    }
