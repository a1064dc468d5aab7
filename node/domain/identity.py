"""Whose images a series holds: in what they disagree, and which say what; never a patient's values (ASM-8)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from node.domain.instance import InstanceHeader, PatientIdentity

_COMPARED = ("patient_id", "issuer", "name", "birth_date")
_TOLD = 6
"""So many runs of instance numbers, or groups of images, are named; more of them are told to be there."""


def owner_of(header: InstanceHeader) -> tuple[PatientIdentity, str]:
    """The patient and the study that an image says it is of."""
    return header.identity, header.study_instance_uid


def disagreement(headers: Sequence[InstanceHeader]) -> str:
    """In what images of one series disagree, and which against which; empty where they are of one patient and study.

    Returns
    -------
    Such as `slices disagree in patient_id: instances 1-16, 18-33 against instance 17`, the most first.
    """
    groups: dict[tuple[PatientIdentity, str], list[InstanceHeader]] = {}
    for header in headers:
        groups.setdefault(owner_of(header), []).append(header)
    if len(groups) < 2:
        return ""
    differing = [name for name in _COMPARED if len({getattr(identity, name) for identity, _ in groups}) > 1]
    if len({study for _, study in groups}) > 1:
        differing.append("study_instance_uid")
    most_first = sorted(groups.values(), key=len, reverse=True)
    sides = [instance_numbers(group) for group in most_first[:_TOLD]]
    more = [f"{len(groups) - _TOLD} others"] if len(groups) > _TOLD else []
    return f"slices disagree in {', '.join(differing)}: {' against '.join(sides + more)}"


def instance_numbers(headers: Iterable[InstanceHeader]) -> str:
    """The instance numbers of images in words: `instances 1-16, 18`."""
    images = list(headers)
    numbers = sorted({header.instance_number for header in images if header.instance_number is not None})
    if not numbers:
        return f"{len(images)} images without a number"
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    told = [f"{first}-{last}" if last > first else str(first) for first, last in runs[:_TOLD]]
    return f"instance{'s' * (len(numbers) > 1)} {', '.join(told)}" + (" and more" if len(runs) > _TOLD else "")
