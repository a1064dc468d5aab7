"""Which form of a result a destination gets: the choice between what was composed, by what the peer accepts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from types import MappingProxyType

from node.domain.job import Destination, ObjectKind
from node.errors import PermanentlyRefused

SEG_CLASSES = MappingProxyType({"binary": "1.2.840.10008.5.1.4.1.1.66.4", "labelmap": "1.2.840.10008.5.1.4.1.1.66.7"})
"""SOP class of each form of a SEG."""
SR_CLASSES = MappingProxyType(
    {
        "comprehensive3d": "1.2.840.10008.5.1.4.1.1.88.34",
        "comprehensive": "1.2.840.10008.5.1.4.1.1.88.33",
        "enhanced": "1.2.840.10008.5.1.4.1.1.88.22",
    }
)
"""SOP class of each form of a report, best first (NET-22)."""
PDF_CLASS = "1.2.840.10008.5.1.4.1.1.104.1"
"""Encapsulated PDF Storage."""
NO_SEG = "none"
"""Second half of the name of a report that refers to no SEG."""


def seg_order(preference: str, pixels: int) -> tuple[str, ...]:
    """The forms of a SEG that a destination may be given, best first (RES-2).

    BINARY frames are bits without padding, so where the pixels of a frame are not a multiple of 8, frames begin inside
    a byte, which common viewers show garbled.

    Parameters
    ----------
    preference
        `Destination.seg`.
    pixels
        Rows times columns.
    """
    if preference == "binary":
        return ("binary",)
    if preference == "labelmap" or pixels % 8 != 0:
        return ("labelmap", "binary")
    return ("binary", "labelmap")


def needed_segs(destinations: Iterable[Destination], pixels: int) -> frozenset[str]:
    """The forms of a SEG to compose so that each destination can be given its best, or failing that BINARY."""
    forms = {"binary"}
    for destination in destinations:
        forms.add(seg_order(destination.seg, pixels)[0])
    return frozenset(forms)


def sop_class_of(kind: ObjectKind, variant: str) -> str:
    """SOP Class UID of a variant of a result."""
    if kind is ObjectKind.SEG:
        return SEG_CLASSES[variant]
    if kind is ObjectKind.SR:
        return SR_CLASSES[variant.partition("-")[0]]
    return PDF_CLASS


def proposed_classes(kind: ObjectKind) -> tuple[str, ...]:
    """The SOP classes to propose to a destination for a kind of result, best first."""
    if kind is ObjectKind.SEG:
        return tuple(SEG_CLASSES.values())
    return tuple(SR_CLASSES.values()) if kind is ObjectKind.SR else (PDF_CLASS,)


def choose_variant(  # noqa: PLR0917
    kind: ObjectKind,
    available: Collection[str],
    accepted_sop_classes: frozenset[str],
    seg_preference: str,
    pixels: int,
    sent_seg_variant: str | None,
) -> str:
    """The variant to send.

    A report refers to the SEG that this destination stored, and to no other form of it (RES-7, NET-22).

    Parameters
    ----------
    available
        The variants that were composed.
    accepted_sop_classes
        SOP Class UIDs whose presentation contexts the peer accepted.
    pixels
        Rows times columns of a frame.
    sent_seg_variant
        The form of the SEG that this destination has stored; None where it was sent none.

    Raises
    ------
    PermanentlyRefused
        Where the peer takes none of the variants that it may be given.
    """
    wanted = [variant for variant in _in_order(kind, seg_preference, pixels, sent_seg_variant) if variant in available]
    for variant in wanted:
        if sop_class_of(kind, variant) in accepted_sop_classes:
            return variant
    if not wanted:
        raise PermanentlyRefused(f"no {kind} was composed that this destination may be given")
    classes = ", ".join(sop_class_of(kind, variant) for variant in wanted)
    raise PermanentlyRefused(f"the peer accepts none of the SOP classes for {kind}: {classes}")


def _in_order(kind: ObjectKind, preference: str, pixels: int, sent_seg: str | None) -> tuple[str, ...]:
    """All variants of a kind that the destination may be given, best first."""
    if kind is ObjectKind.SEG:
        return seg_order(preference, pixels)
    if kind is ObjectKind.SR:
        return tuple(f"{form}-{sent_seg or NO_SEG}" for form in SR_CLASSES)
    return ("pdf",)
