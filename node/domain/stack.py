"""Frames of one series that form one scan: how they are told apart, ordered and judged (REQUIREMENTS 2.3 and 2.4)."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from node.domain.exclusions import LEAVES_GAP, Exclusion, exclusion
from node.domain.identity import disagreement
from node.domain.instance import InstanceHeader, SourceFrame
from node.domain.partition import Part, condition_text, hard_parts, position_numbers, separate, slices_of
from node.domain.planes import Lattice, Misfit, Planes, StackGeometry, judge

__all__ = [
    "MISSING_SLICES",
    "Dropped",
    "FrameLabels",
    "Lattice",
    "PixelDigests",
    "SourceFrame",
    "Stack",
    "StackGeometry",
    "Unstackable",
    "across_gaps",
    "ambiguous_frames",
    "largest_block",
    "split",
    "volume_id",
]

MISSING_SLICES = "missing_slices"
"""Reason of a scan that lacks slices: they never came, or came and cannot be used. A rule may take it all the same."""
_TOLD = 5

PixelDigests = Mapping[tuple[str, int], str]
"""(SOP Instance UID, frame number) to a digest of the decoded pixels; frames that are not in it are like no other."""


@dataclass(frozen=True)
class Dropped:
    """A frame that is not part of any stack, and why."""

    sop_instance_uid: str
    frame_number: int
    reason: str
    """`duplicate_position`, `localizer`, ... : a word of a closed set."""


@dataclass(frozen=True)
class Stack:
    """Frames of one snapshot that form one scan, in order, each with its own plane position."""

    frames: tuple[SourceFrame, ...]
    geometry: StackGeometry
    volume_id: str
    """SHA-256 over sorted SOP Instance UIDs and frame numbers (ASM-24)."""
    keys: Mapping[str, str]
    """What told this stack apart from others of its series, for `hilum explain`."""
    flags: tuple[str, ...] = ()
    """What a reader of the result should know: `resampled`, `lossy`, `partial`, ..."""
    dropped: tuple[Dropped, ...] = ()


@dataclass(frozen=True)
class Unstackable:
    """Frames that form no scan that a model can be run on, and why; nothing of a series is forgotten (ASM-56)."""

    frames: tuple[SourceFrame, ...]
    reason: str
    """A word of a closed set: `missing_slices`, `irregular_spacing`, `mosaic`, `localizer`, `ambiguous`, ..."""
    detail: str
    keys: Mapping[str, str]
    quarantined: bool = False
    """Content in doubt, rather than not of use."""
    dropped: tuple[Dropped, ...] = ()


@dataclass(frozen=True, eq=False)
class FrameLabels:
    """Labels on the source frames of a stack: what SEG, measures and report are cut from.

    Attributes
    ----------
    labels
        uint8, (N, rows, columns), in the order of `Stack.frames`; 0 is background.
    names
        Every label that the model can give, absent ones included.
    """

    labels: NDArray[np.uint8]
    names: Mapping[int, str]


def split(
    headers: Sequence[InstanceHeader], pixel_digests: PixelDigests | None = None, unread: Collection[str] = ()
) -> tuple[Stack | Unstackable, ...]:
    """Split a series into scans (ASM-11 to ASM-36, ASM-40 to ASM-45, ASM-52).

    Every frame ends in exactly one part, or in the `dropped` of one (ASM-56); the order of the headers changes nothing.
    Equal pixels cannot be seen in headers: without digests, frames in one place that no key tells apart are
    `ambiguous`; with the digests of those frames, equal ones are dropped (ASM-23). `pixels.split_series` does both.

    Parameters
    ----------
    headers
        All instances of one series, in any order.
    pixel_digests
        Of the frames that a first call without it called ambiguous.
    unread
        SOP Instance UIDs of images of the series whose headers cannot be read: every scan may lack them (ASM-4).
    """
    ordered = sorted(headers, key=lambda header: (header.sop_instance_uid, repr(header)))
    frames = [SourceFrame(header, frame) for header in ordered for frame in header.frames]
    doubt = _series_doubt(ordered)
    if doubt is not None:
        return (Unstackable(tuple(frames), doubt.reason, doubt.detail, {}, quarantined=True),) if frames else ()
    useful, useless = [], defaultdict[Exclusion, list[SourceFrame]](list)
    for source in frames:
        found = exclusion(source)
        if found is None:
            useful.append(source)
        else:
            useless[found].append(source)
    lost = [
        (why, source)
        for why in sorted(useless, key=lambda why: (why.reason, why.detail))
        for source in useless[why]
        # Of a page of text that says no place, and no doubt is about, nobody misses a slice.
        if why.reason in LEAVES_GAP and (why.quarantined or source.frame.position_mm is not None)
    ]
    parts: list[Stack | Unstackable] = [
        _lacking(part, lost, unread) for hard in hard_parts(useful) for part in _scans(hard, pixel_digests or {})
    ]
    parts += [
        Unstackable(tuple(useless[why]), why.reason, why.detail, {}, why.quarantined)
        for why in sorted(useless, key=lambda why: (why.reason, why.detail))
    ]
    return tuple(parts)


def largest_block(part: Unstackable) -> Stack | Unstackable:
    """The longest run of slices without a gap, for rules that take it (ASM-4); the frames outside it are dropped."""
    found = judge(part.frames)
    if isinstance(found, Planes):
        return across_gaps(part)  # what is missing lies at an end
    if not found.gaps:
        return part
    ends = [-1, *(gap.after for gap in found.gaps), len(found.order) - 1]
    runs = [found.order[first + 1 : last + 1] for first, last in pairwise(ends)]
    longest = max(runs, key=len)
    block = _stack(Part(tuple(part.frames[n] for n in longest), part.keys))
    if isinstance(block, Unstackable):
        return part
    outside = [part.frames[n] for run in runs if run is not longest for n in run]
    dropped = tuple(
        Dropped(source.sop_instance_uid, source.frame.number, "outside_largest_block") for source in outside
    )
    return replace(block, dropped=(*part.dropped, *dropped), flags=(*block.flags, "partial"))


def across_gaps(part: Unstackable) -> Stack | Unstackable:
    """The scan as if nothing were missing, for rules that take it (ASM-4): uneven, and flagged as partial."""
    found = _stack(Part(part.frames, part.keys), bear_gaps=True)
    if isinstance(found, Unstackable):
        return part
    return replace(found, flags=(*found.flags, "partial"), dropped=part.dropped)


def _lacking(
    part: Stack | Unstackable, lost: Sequence[tuple[Exclusion, SourceFrame]], unread: Collection[str]
) -> Stack | Unstackable:
    """A scan is gapped too where slices of it came that cannot be used, although what is left looks whole (ASM-40)."""
    if isinstance(part, Unstackable) and part.reason != MISSING_SLICES:
        return part
    lacking = {id(source) for source in slices_of([source for _, source in lost], part.frames)}
    told = [f"instance {_number(source)} ({why.reason}: {why.detail})" for why, source in lost if id(source) in lacking]
    told += [f"object {uid} (its header cannot be read)" for uid in sorted(unread)]
    if not told:
        return part
    more = f" and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
    detail = f"{len(told)} received, but not usable: {', '.join(told[:_TOLD])}{more}"
    before = f"{part.detail}; " if isinstance(part, Unstackable) else ""
    return Unstackable(part.frames, MISSING_SLICES, before + detail, part.keys, dropped=part.dropped)


def _number(source: SourceFrame) -> str:
    number = source.header.instance_number
    return f"{source.sop_instance_uid} without number" if number is None else str(number)


def ambiguous_frames(parts: Sequence[Stack | Unstackable]) -> tuple[SourceFrame, ...]:
    """The frames whose pixel digests could make a difference: those that share a place and that no key tells apart."""
    doubtful = (part for part in parts if isinstance(part, Unstackable) and part.reason == "ambiguous")
    return tuple(source for part in doubtful for source in part.frames if source.frame.position_mm is not None)


def _series_doubt(headers: Sequence[InstanceHeader]) -> Exclusion | None:
    """Why the series as a whole is in doubt: two patients (ASM-8), or two objects under one UID (NET-12)."""
    disagree = disagreement(headers)
    if disagree:
        return Exclusion("identity_mismatch", disagree, quarantined=True)
    uids = [header.sop_instance_uid for header in headers]
    if len(set(uids)) != len(uids):
        twice = len(uids) - len(set(uids))
        return Exclusion(
            "duplicate_uid", f"{twice} further objects under a SOP Instance UID that is taken", quarantined=True
        )
    return None


def _scans(hard: Part, digests: PixelDigests) -> Iterator[Stack | Unstackable]:
    """The scans of frames that share every hard key."""
    single, doubles = _without_doubles(hard, digests)
    separated = separate(single)
    if separated is None:
        places = position_numbers(single.frames)
        yield Unstackable(
            hard.frames,
            "ambiguous",
            f"{len(single.frames)} frames at {len(set(places))} positions, and no attribute tells them apart",
            hard.keys,
            quarantined=True,
        )
        return
    for part in separated:
        mine = [double for source in part.frames for double in doubles.get(_name(source), ())]
        dropped = tuple(Dropped(double.sop_instance_uid, double.frame.number, "duplicate_position") for double in mine)
        yield replace(_stack(part), dropped=dropped)


def _name(source: SourceFrame) -> tuple[str, int]:
    return source.sop_instance_uid, source.frame.number


def _without_doubles(hard: Part, digests: PixelDigests) -> tuple[Part, dict[tuple[str, int], list[SourceFrame]]]:
    """Frames without those sent twice (ASM-23), and which were left out beside which.

    One place, one digest and one value of every conditional key: two echoes may both be black at the edge of a scan.
    """
    if not digests:
        return hard, {}
    kept: dict[tuple[object, ...], SourceFrame] = {}
    doubles: dict[tuple[str, int], list[SourceFrame]] = defaultdict(list)
    by_number = sorted(
        zip(hard.frames, position_numbers(hard.frames), strict=True),
        key=lambda pair: (pair[0].header.instance_number or 0, *_name(pair[0])),
    )
    for source, place in by_number:
        digest: object = digests.get(_name(source), _name(source))
        first = kept.setdefault((place, digest, condition_text(source)), source)
        if first is not source:
            doubles[_name(first)].append(source)
    names = {_name(source) for source in kept.values()}
    return Part(tuple(source for source in hard.frames if _name(source) in names), hard.keys), doubles


def _stack(part: Part, bear_gaps: bool = False) -> Stack | Unstackable:
    """A scan of frames no two of which share a place, or why they are none."""
    planes = judge(part.frames, bear_gaps)
    frames = tuple(part.frames[n] for n in planes.order)
    if isinstance(planes, Misfit):
        return Unstackable(frames, planes.reason, planes.detail, part.keys)
    conflict = _conflict(frames)
    if conflict:
        return Unstackable(frames, "conflicting_headers", conflict, part.keys, quarantined=True)
    flags = (*planes.flags, *(["lossy"] if any(source.header.lossy for source in frames) else []))
    return Stack(frames, planes.geometry, volume_id(frames), part.keys, flags)


def _conflict(frames: Sequence[SourceFrame]) -> str:
    """Which slices differ from the others in what a result must copy from all of them, without a value (RES-31)."""
    sources = list({source.sop_instance_uid: source for source in frames}.values())
    if all(source.header.copied == sources[0].header.copied for source in sources):
        return ""
    told = []
    for keyword in sorted({name for source in sources for name in source.header.copied}):
        values = [source.header.copied.get(keyword, "") for source in sources]
        ((usual, _),) = Counter(values).most_common(1)
        odd = [_number(source) for source, value in zip(sources, values, strict=True) if value != usual]
        if odd:
            more = f" and {len(odd) - _TOLD} more" if len(odd) > _TOLD else ""
            told.append(f"{keyword}: instance {', '.join(odd[:_TOLD])}{more}")
    return f"slices differ from the others in {'; '.join(told)}"


def volume_id(frames: Sequence[SourceFrame]) -> str:
    """SHA-256, hex, over the sorted SOP Instance UIDs and frame numbers (ASM-24)."""
    lines = sorted(f"{source.sop_instance_uid}:{source.frame.number}" for source in frames)
    return hashlib.sha256("\n".join(lines).encode("ascii", "replace")).hexdigest()
