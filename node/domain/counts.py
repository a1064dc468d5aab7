"""What the journal holds right now, counted: the numbers that say whether anything is stuck, and since when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class QueueCount:
    """Work that has not ended: how much, and how old the oldest of it is."""

    depth: int
    oldest_age_s: float
    """Since it was made, not since it was last tried; 0 where the queue is empty."""


@dataclass(frozen=True)
class JournalCounts:
    """One consistent reading of the journal."""

    queues: Mapping[str, QueueCount]
    """By station: `assemble` (open series), `segment` (jobs queued or running), `deliver` (deliveries not ended)."""
    series_open: int
    quarantined: Mapping[str, int]
    """Series or instances in doubt, by reason."""
    outbox: Mapping[str, int]
    """Deliveries not ended, by destination."""
    failed_jobs: int
    """Jobs that wait for a person."""
    failed_deliveries: Mapping[str, int]
    """Deliveries that wait for a person, by destination."""
    spool_bytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes that rows name, by class: `incoming`, `results`."""
