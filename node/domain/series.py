"""A series as it arrives, and when it may be taken as whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from node.domain.instance import InstanceHeader


class SeriesState(StrEnum):
    """OPEN while slices may come; SETTLED once a revision is frozen. A new instance opens it again."""

    OPEN = "open"
    SETTLED = "settled"


class Completeness(StrEnum):
    """What a settled revision rests on."""

    COMPLETE = "complete"
    GAPPED = "gapped"
    FORCED = "forced"


class Evidence(StrEnum):
    """Why a series was taken as whole (REQUIREMENTS 2.1)."""

    SILENCE = "silence"
    """No byte for `quiet_s`."""
    RELEASED = "released"
    """No byte for `released_quiet_s`, and every association that carried the series has ended."""
    MULTIFRAME = "multiframe"
    """One multi-frame object, not part of a concatenation (ASM-9)."""
    CONCATENATION = "concatenation"
    """All parts of the concatenation are here: InConcatenationTotalNumber."""
    FORCED = "forced"
    """The longest wait is over."""
    FOLDER = "folder"
    """The caller named the whole: a folder given on the command line."""


@dataclass(frozen=True)
class SettlePolicy:
    """How long silence must last. Seconds."""

    quiet_s: float = 60.0
    released_quiet_s: float = 15.0
    force_s: float = 5400.0


@dataclass(frozen=True)
class SeriesActivity:
    """What the journal and the listener's heartbeat know of an open series; times by one clock, aware UTC."""

    first_received_at: datetime
    last_received_at: datetime
    last_byte_at: datetime | None
    """Latest byte of an object still in flight for this series, as the heartbeat said."""
    open_associations: int
    """Associations still open that carried this series."""
    listener_started_at: datetime | None
    listener_seen_at: datetime | None
    gapped: bool = False
    """The slices that are here leave a gap (ASM-3: silence does not end a gapped wait)."""
    whole_object: Evidence | None = None
    """Strong evidence: MULTIFRAME or CONCATENATION."""


@dataclass(frozen=True)
class SeriesSnapshot:
    """All headers of a settled series, frozen; a late slice makes a new revision."""

    series_instance_uid: str
    revision: int
    evidence: Evidence
    completeness: Completeness
    headers: tuple[InstanceHeader, ...]
    wait_s: float

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted SOP Instance UIDs: what this revision is made of."""
        return uid_digest([header.sop_instance_uid for header in self.headers])


def uid_digest(uids: Sequence[str]) -> str:
    """SHA-256, hex, over sorted UIDs, one a line."""
    return hashlib.sha256("\n".join(sorted(uids)).encode("ascii", "replace")).hexdigest()
