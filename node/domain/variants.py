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
_AFTER = "-after-"
"""Stands in the name of a report before the UID of the one that it replaces."""
_WHOLE = "-whole"
"""End of the name of a SEG that keeps its empty frames."""


def sr_variant(sr_class: str, seg_form: str, replaced: str = "") -> str:
    """The name of a report of one class, beside one form of SEG, that replaces a report of this UID, or none."""
    return f"{sr_class}-{seg_form}" + (f"{_AFTER}{replaced}" if replaced else "")


def sr_parts(variant: str) -> tuple[str, str, str]:
    """Class, form of SEG and UID of the replaced report, which may be empty, of a report's name."""
    name, _, replaced = variant.partition(_AFTER)
    sr_class, _, seg_form = name.partition("-")
    return sr_class, seg_form, replaced


def seg_base(variant: str) -> str:
    """`binary` or `labelmap`, of a form of SEG."""
    return variant.removesuffix(_WHOLE)


def is_whole(variant: str) -> bool:
    """Whether a form of SEG has a frame for each plane of the source, empty ones too (RES-4)."""
    return variant.endswith(_WHOLE)


def seg_order(preference: str, pixels: int, *, empty_frames: bool = False) -> tuple[str, ...]:
    """The forms of a SEG that a destination may be given, best first (RES-2).

    BINARY frames are bits without padding, so where the pixels of a frame are not a multiple of 8, frames begin inside
    a byte, which common viewers show garbled.

    Parameters
    ----------
    preference
        `Destination.seg`.
    pixels
        Rows times columns.
    empty_frames
        `Destination.empty_frames`.
    """
    if preference == "binary":
        order: tuple[str, ...] = ("binary",)
    elif preference == "labelmap" or pixels % 8 != 0:
        order = ("labelmap", "binary")
    else:
        order = ("binary", "labelmap")
    return tuple(form + _WHOLE for form in order) if empty_frames else order


def often_misread(variant: str, pixels: int) -> bool:
    """Whether common viewers show this form of SEG garbled at this image size (RES-2)."""
    return seg_base(variant) == "binary" and pixels % 8 != 0


def needed_segs(destinations: Iterable[Destination], pixels: int) -> frozenset[str]:
    """The forms of a SEG to compose so that each destination can be given its best, or failing that BINARY."""
    forms: set[str] = set()
    for destination in destinations:
        order = seg_order(destination.seg, pixels, empty_frames=destination.empty_frames)
        forms |= {order[0], *(form for form in order if seg_base(form) == "binary")}
    return frozenset(forms or {"binary"})


def sop_class_of(kind: ObjectKind, variant: str) -> str:
    """SOP Class UID of a variant of a result."""
    if kind is ObjectKind.SEG:
        return SEG_CLASSES[seg_base(variant)]
    if kind is ObjectKind.SR:
        return SR_CLASSES[sr_parts(variant)[0]]
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
    replaced_report: str = "",
    *,
    empty_frames: bool = False,
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
    replaced_report
        UID of the report of an earlier revision that this destination has stored; empty: none. The new
        report names that one, or none (RES-34).

    Raises
    ------
    PermanentlyRefused
        Where the peer takes none of the variants that it may be given.
    """
    if kind is ObjectKind.SEG:
        # The other frames are the last resort: the site may have changed its mind since the SEG was composed.
        order = tuple(
            form
            for whole in (empty_frames, not empty_frames)
            for form in seg_order(seg_preference, pixels, empty_frames=whole)
        )
    else:
        order = _reports(sent_seg_variant, replaced_report) if kind is ObjectKind.SR else ("pdf",)
    wanted = [variant for variant in order if variant in available]
    for variant in wanted:
        if sop_class_of(kind, variant) in accepted_sop_classes:
            return variant
    if not wanted:
        raise PermanentlyRefused(f"no {kind} was composed that this destination may be given")
    classes = ", ".join(sop_class_of(kind, variant) for variant in wanted)
    raise PermanentlyRefused(f"the peer accepts none of the SOP classes for {kind}: {classes}")


def _reports(sent_seg: str | None, replaced: str) -> tuple[str, ...]:
    """The reports that a destination may be given, best first."""
    replacing = [replaced, ""] if replaced else [""]
    return tuple(sr_variant(form, sent_seg or NO_SEG, earlier) for earlier in replacing for form in SR_CLASSES)
