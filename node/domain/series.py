"""A series as it arrives, and when it may be taken as whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


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
    OPERATOR = "operator"
    """A person asked to judge it anew as it is: `hilum retry --series`."""
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
class ArrivingSeries:
    """A series that the listener has open now: what its heartbeat says of it."""

    series_instance_uid: str
    open_associations: int
    """Associations still open that carried it."""
    last_byte_at: datetime | None
    """Latest byte of an object in flight; None: no object of it is in flight."""


def uid_digest(uids: Sequence[str]) -> str:
    """SHA-256, hex, over sorted UIDs, one a line."""
    return hashlib.sha256("\n".join(sorted(uids)).encode("ascii", "replace")).hexdigest()


LISTENER_ALIVE_S, LISTENER_GONE_S = 2.0, 60.0
"""A heartbeat younger than the first is of a living listener; older than the second, of one that was taken down."""


def settle_decision(activity: SeriesActivity, policy: SettlePolicy, now: datetime) -> Evidence | None:
    """Why an open series may be taken as whole now; None: wait (ASM-2, ASM-3, ASM-6, ASM-9).

    | what is known                                               | answer                                           |
    |-------------------------------------------------------------|--------------------------------------------------|
    | one whole object, nothing else of the series in flight      | that evidence, at once                           |
    | heartbeat 2 to 60 s old, or started less than `quiet_s` ago | wait: nobody knows what was sent meanwhile       |
    | an object of the series in flight, however slow             | wait: the listener's own deadline will end it    |
    | first instance `force_s` ago, silence of `released_quiet_s` | FORCED, gapped or not                            |
    | a gap                                                       | wait: silence says nothing about a missing slice |
    | no association open, silence of `released_quiet_s`          | RELEASED                                         |
    | silence of `quiet_s`                                        | SILENCE                                          |
    """
    listening = _age_s(activity.listener_seen_at, now) <= LISTENER_GONE_S
    # What a listener that is gone said of open associations and objects in flight is no longer so.
    in_flight = listening and activity.last_byte_at is not None
    if activity.whole_object is not None and not in_flight:
        return activity.whole_object
    if not _silence_counts(activity, policy, now) or in_flight:
        return None
    silence = now - activity.last_received_at
    waited = now - activity.first_received_at
    released_quiet = timedelta(seconds=policy.released_quiet_s)
    if waited >= timedelta(seconds=policy.force_s) and silence >= released_quiet:
        return Evidence.FORCED
    if activity.gapped:
        return None
    if silence >= released_quiet and (activity.open_associations == 0 or not listening):
        return Evidence.RELEASED
    return Evidence.SILENCE if silence >= timedelta(seconds=policy.quiet_s) else None


def _silence_counts(activity: SeriesActivity, policy: SettlePolicy, now: datetime) -> bool:
    """Whether silence means that nothing was sent, rather than that nobody listened (research T7, gate 2)."""
    age_s = _age_s(activity.listener_seen_at, now)
    if LISTENER_ALIVE_S < age_s <= LISTENER_GONE_S:
        return False
    # A clock set back makes ages negative; then nothing is known either.
    return age_s >= 0 and _age_s(activity.listener_started_at, now) >= policy.quiet_s


def _age_s(at: datetime | None, now: datetime) -> float:
    """Seconds since; without end where it never was."""
    return float("inf") if at is None else (now - at).total_seconds()


def completeness(evidence: Evidence, gapped: bool) -> Completeness:
    """What a settled revision rests on: a gap is told whatever ended the wait."""
    if gapped:
        return Completeness.GAPPED
    return Completeness.FORCED if evidence is Evidence.FORCED else Completeness.COMPLETE
