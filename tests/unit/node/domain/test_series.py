"""When a series is taken as whole: the truth table of ASM-2, ASM-3, ASM-6, ASM-9, and the listener's gate."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.domain.series import Completeness, Evidence, SeriesActivity, SettlePolicy, completeness, settle_decision

NOW = datetime(2026, 1, 5, 12, 0, 0, tzinfo=UTC)
POLICY = SettlePolicy(quiet_s=60.0, released_quiet_s=15.0, force_s=5400.0)


def _ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def _activity(silence_s: float = 0.0, **changes: object) -> SeriesActivity:
    base = SeriesActivity(
        first_received_at=_ago(silence_s + 20.0),
        last_received_at=_ago(silence_s),
        last_byte_at=None,
        open_associations=0,
        listener_started_at=_ago(10_000.0),
        listener_seen_at=_ago(0.5),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("silence_s", "changes", "expected"),
    [
        # ASM-2: the quiet time, shorter once every association has ended.
        (14.9, {}, None),
        (15.0, {}, Evidence.RELEASED),
        (15.0, {"open_associations": 1}, None),
        (59.9, {"open_associations": 1}, None),
        (60.0, {"open_associations": 1}, Evidence.SILENCE),
        # ASM-2: an object in flight holds the series, however long its bytes pause.
        (90.0, {"last_byte_at": _ago(90.0), "open_associations": 1}, None),
        (90.0, {"last_byte_at": _ago(0.1)}, None),
        # ASM-3: a gap ends by data or by force alone.
        (600.0, {"gapped": True}, None),
        (600.0, {"gapped": True, "first_received_at": _ago(5400.0)}, Evidence.FORCED),
        (600.0, {"first_received_at": _ago(5399.0), "gapped": True}, None),
        # The longest wait never cuts a series of which objects still come.
        (1.0, {"first_received_at": _ago(9000.0)}, None),
        (90.0, {"first_received_at": _ago(9000.0), "last_byte_at": _ago(1.0), "open_associations": 1}, None),
        (20.0, {"first_received_at": _ago(9000.0), "open_associations": 1}, Evidence.FORCED),
        # ASM-3, ASM-9: strong evidence ends the wait at once, gapped or not, listener or not.
        (0.0, {"whole_object": Evidence.MULTIFRAME}, Evidence.MULTIFRAME),
        (0.0, {"whole_object": Evidence.CONCATENATION, "gapped": True}, Evidence.CONCATENATION),
        (0.0, {"whole_object": Evidence.MULTIFRAME, "listener_seen_at": _ago(30.0)}, Evidence.MULTIFRAME),
        (0.0, {"whole_object": Evidence.MULTIFRAME, "last_byte_at": _ago(0.2)}, None),
        # Gate 2: silence counts only while the listener lives ...
        (300.0, {"listener_seen_at": _ago(2.0)}, Evidence.RELEASED),
        (300.0, {"listener_seen_at": _ago(2.1)}, None),
        (300.0, {"listener_seen_at": _ago(60.0)}, None),
        (300.0, {"listener_seen_at": _ago(60.1)}, Evidence.RELEASED),
        (300.0, {"listener_seen_at": None, "listener_started_at": None}, Evidence.RELEASED),
        (6000.0, {"listener_seen_at": _ago(30.0), "gapped": True}, None),
        # ... and not before the quiet time after its start (ASM-6).
        (300.0, {"listener_started_at": _ago(59.0)}, None),
        (300.0, {"listener_started_at": _ago(60.0)}, Evidence.RELEASED),
        # What a dead listener said last of objects in flight holds nothing for ever.
        (
            300.0,
            {"listener_seen_at": _ago(61.0), "last_byte_at": _ago(61.0), "open_associations": 3},
            Evidence.RELEASED,
        ),
        # A clock set back settles nothing.
        (-3600.0, {}, None),
        (300.0, {"listener_seen_at": NOW + timedelta(hours=1)}, None),
    ],
)
def test_truth_table(silence_s: float, changes: dict[str, object], expected: Evidence | None) -> None:
    assert settle_decision(_activity(silence_s, **changes), POLICY, NOW) is expected


@settings(deadline=None)
@given(silence=st.floats(0, 20_000), open_associations=st.integers(0, 4), gapped=st.booleans(), more=st.floats(0, 600))
def test_more_silence_never_takes_a_decision_back(
    silence: float, open_associations: int, gapped: bool, more: float
) -> None:
    """ASM-1: with nothing arriving, a series that may settle now may settle later."""
    activity = _activity(silence, open_associations=open_associations, gapped=gapped)
    later = NOW + timedelta(seconds=more)
    alive = replace(activity, listener_seen_at=later)
    if settle_decision(activity, POLICY, NOW) is not None:
        assert settle_decision(alive, POLICY, later) is not None


@settings(deadline=None)
@given(silence=st.floats(0, 5399), open_associations=st.integers(0, 4))
def test_a_gap_never_settles_by_silence(silence: float, open_associations: int) -> None:
    """ASM-3."""
    activity = _activity(silence, gapped=True, open_associations=open_associations, first_received_at=_ago(5399.5))
    assert settle_decision(activity, POLICY, NOW) is None


def test_completeness_tells_a_gap_whatever_ended_the_wait() -> None:
    """ASM-1, ASM-4."""
    assert completeness(Evidence.SILENCE, gapped=False) is Completeness.COMPLETE
    assert completeness(Evidence.FORCED, gapped=False) is Completeness.FORCED
    assert completeness(Evidence.FORCED, gapped=True) is Completeness.GAPPED
    assert completeness(Evidence.CONCATENATION, gapped=True) is Completeness.GAPPED
