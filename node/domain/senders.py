"""Routing where the slices of one series came from more than one peer: every one of them must be allowed (RES-42)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from node.domain.instance import Sender
from node.domain.routing import Ineligible, ModelFacts, Routed, Rule, route
from node.domain.stack import Stack, Unstackable


def route_for_all(
    parts: Sequence[Stack | Unstackable],
    senders: Mapping[str, Sender],
    rules: Sequence[Rule],
    models: Mapping[str, ModelFacts],
) -> tuple[Routed | Ineligible, ...]:
    """What becomes of each part: as `route` where it came from one peer; else what a rule gives to each of its peers.

    A result goes only where those who sent its images may have it go. Slices of two peers for which no rule agrees are
    refused, rather than sent where the first, or the last, of the peers would send them.

    Parameters
    ----------
    senders
        Who sent each SOP Instance UID.
    """
    whose = {uid: replace(sender, association_id="") for uid, sender in senders.items()}
    answers = {sender: route(parts, sender, rules, models) for sender in dict.fromkeys(whose.values())}
    final: list[Routed | Ineligible] = []
    for part in parts:
        final += _for_part(part, _senders_of(part, whose) or tuple(answers), answers)
    return tuple(final)


def _senders_of(part: Stack | Unstackable, whose: Mapping[str, Sender]) -> tuple[Sender, ...]:
    return tuple(dict.fromkeys(whose[frame.sop_instance_uid] for frame in part.frames))


def _for_part(
    part: Stack | Unstackable,
    senders: Sequence[Sender],
    answers: Mapping[Sender, Sequence[Routed | Ineligible]],
) -> list[Routed | Ineligible]:
    """The answers that a part has from every peer that sent some of it, or the one reason why there is none."""
    own = [[answer for answer in answers[sender] if _is_of(answer, part)] for sender in senders]
    chosen = [{_key(answer): answer for answer in each if isinstance(answer, Routed)} for each in own]
    agreed = [answer for key, answer in chosen[0].items() if all(key in other for other in chosen[1:])]
    if agreed:
        return list(agreed)
    if any(chosen):
        names = " and ".join(sorted({sender.alias for sender in senders}))
        return [Ineligible(part, "senders_disagree", f"slices came from {names}, and no rule holds for each of them")]
    return own[0]


def _is_of(answer: Routed | Ineligible, part: Stack | Unstackable) -> bool:
    """Whether an answer is about this part, or about a block of it."""
    frames = {(frame.sop_instance_uid, frame.frame.number) for frame in part.frames}
    return all((frame.sop_instance_uid, frame.frame.number) in frames for frame in answer.stack.frames)


def _key(answer: Routed) -> tuple[str, str]:
    return answer.rule, answer.stack.volume_id
