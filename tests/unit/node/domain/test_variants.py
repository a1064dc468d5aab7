"""Which form of a result a destination gets."""

from __future__ import annotations

import pytest

from node.domain.job import Destination, ObjectKind
from node.domain.variants import (
    PDF_CLASS,
    SEG_CLASSES,
    SR_CLASSES,
    choose_variant,
    needed_segs,
    often_misread,
    proposed_classes,
    sop_class_of,
    sr_parts,
    sr_variant,
)
from node.errors import PermanentlyRefused

BOTH = ("binary", "labelmap")
ALL_SEG = frozenset(SEG_CLASSES.values())
ALL_SR = frozenset(SR_CLASSES.values())
EVEN, ODD = 512 * 512, 51 * 35


@pytest.mark.parametrize(
    ("preference", "pixels", "accepted", "chosen"),
    [
        ("auto", EVEN, ALL_SEG, "binary"),
        ("auto", ODD, ALL_SEG, "labelmap"),
        ("auto", ODD, {SEG_CLASSES["binary"]}, "binary"),
        ("auto", EVEN, {SEG_CLASSES["labelmap"]}, "labelmap"),
        ("labelmap", EVEN, ALL_SEG, "labelmap"),
        ("labelmap", EVEN, {SEG_CLASSES["binary"]}, "binary"),
        ("binary", ODD, ALL_SEG, "binary"),
    ],
)
def test_seg_follows_the_site_the_image_size_and_the_peer(
    preference: str, pixels: int, accepted: set[str], chosen: str
) -> None:
    """RES-2."""
    assert choose_variant(ObjectKind.SEG, BOTH, frozenset(accepted), preference, pixels, None) == chosen


@pytest.mark.parametrize(("preference", "accepted"), [("binary", {SEG_CLASSES["labelmap"]}), ("auto", set())])
def test_a_peer_that_takes_no_seg_is_told_of(preference: str, accepted: set[str]) -> None:
    """NET-22: a SEG has no further fallback; a site that asks for BINARY gets nothing else."""
    with pytest.raises(PermanentlyRefused, match="accepts none"):
        choose_variant(ObjectKind.SEG, BOTH, frozenset(accepted), preference, EVEN, None)


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        (ALL_SR, "comprehensive3d"),
        ({SR_CLASSES["comprehensive"], SR_CLASSES["enhanced"]}, "comprehensive"),
        ({SR_CLASSES["enhanced"]}, "enhanced"),
    ],
)
@pytest.mark.parametrize("sent", ["binary", "labelmap", None])
def test_report_steps_down_and_refers_to_the_seg_that_was_sent(
    accepted: set[str], chosen: str, sent: str | None
) -> None:
    """NET-22, RES-7."""
    available = [f"{form}-{seg}" for form in SR_CLASSES for seg in (*BOTH, "none")]
    variant = choose_variant(ObjectKind.SR, available, frozenset(accepted), "auto", EVEN, sent)
    assert variant == f"{chosen}-{sent or 'none'}"


def test_report_names_what_its_destination_has() -> None:
    """RES-34: the predecessor that this destination stored, or none; in the best class that it takes."""
    available = [sr_variant(form, "binary", replaced) for form in SR_CLASSES for replaced in ("", "1.2", "1.3")]
    choices = {
        replaced: choose_variant(ObjectKind.SR, available, ALL_SR, "auto", EVEN, "binary", replaced)
        for replaced in ("", "1.2", "1.3", "1.4")
    }
    assert choices == {
        "": "comprehensive3d-binary",
        "1.2": "comprehensive3d-binary-after-1.2",
        "1.3": "comprehensive3d-binary-after-1.3",
        "1.4": "comprehensive3d-binary",
    }
    older = choose_variant(ObjectKind.SR, available, frozenset({SR_CLASSES["enhanced"]}), "auto", EVEN, "binary", "1.3")
    assert older == "enhanced-binary-after-1.3"
    assert sr_parts(older) == ("enhanced", "binary", "1.3")


def test_no_report_without_the_seg_it_refers_to() -> None:
    """RES-7: the destination refused the SEG, so a report that names it must not be sent."""
    available = [f"{form}-binary" for form in SR_CLASSES]
    with pytest.raises(PermanentlyRefused, match="no sr was composed"):
        choose_variant(ObjectKind.SR, available, ALL_SR, "auto", EVEN, None)


def test_pdf_has_one_form() -> None:
    assert choose_variant(ObjectKind.PDF, ["pdf"], frozenset({PDF_CLASS}), "auto", EVEN, None) == "pdf"
    with pytest.raises(PermanentlyRefused):
        choose_variant(ObjectKind.PDF, ["pdf"], frozenset(), "auto", EVEN, None)


def test_what_is_composed_covers_every_destination() -> None:
    """BINARY always, as the fallback; LABELMAP where somebody's first choice is it."""
    auto, labelmap, binary = (Destination(seg, "A", "h", 1, "B", seg=seg) for seg in ("auto", "labelmap", "binary"))
    assert needed_segs([auto, binary], EVEN) == {"binary"}
    assert needed_segs([auto], ODD) == {"binary", "labelmap"}
    assert needed_segs([binary], ODD) == {"binary"}
    assert needed_segs([labelmap], EVEN) == {"binary", "labelmap"}
    assert needed_segs([], EVEN) == {"binary"}


def test_a_destination_may_keep_empty_frames() -> None:
    """RES-4: its own form, composed for it and given to it alone."""
    whole = Destination("whole", "A", "h", 1, "B", empty_frames=True)
    plain = Destination("plain", "A", "h", 1, "B")
    assert needed_segs([whole, plain], EVEN) == {"binary-whole", "binary"}
    assert needed_segs([whole], ODD) == {"binary-whole", "labelmap-whole"}
    assert sop_class_of(ObjectKind.SEG, "labelmap-whole") == SEG_CLASSES["labelmap"]
    available = ["binary", "binary-whole", "labelmap", "labelmap-whole"]
    binary_only = frozenset({SEG_CLASSES["binary"]})
    for pixels, accepted, chosen in (
        (EVEN, ALL_SEG, "binary"),
        (ODD, ALL_SEG, "labelmap"),
        (ODD, binary_only, "binary"),
    ):
        for empty_frames, form in ((False, chosen), (True, f"{chosen}-whole")):
            found = choose_variant(ObjectKind.SEG, available, accepted, "auto", pixels, None, empty_frames=empty_frames)
            assert found == form
    reports = [sr_variant("comprehensive3d", form) for form in available]
    assert (
        choose_variant(ObjectKind.SR, reports, ALL_SR, "auto", EVEN, "binary-whole") == "comprehensive3d-binary-whole"
    )


@pytest.mark.parametrize(
    ("variant", "pixels", "misread"),
    [
        ("binary", 512 * 512, False),
        ("binary", 250 * 250, True),
        ("binary-whole", 51 * 35, True),
        ("labelmap", 250 * 250, False),
    ],
)
def test_what_is_often_misread(variant: str, pixels: int, misread: bool) -> None:
    """RES-2: frames that begin inside a byte."""
    assert often_misread(variant, pixels) == misread


def test_classes_are_proposed_best_first() -> None:
    assert proposed_classes(ObjectKind.SR)[0] == SR_CLASSES["comprehensive3d"]
    assert proposed_classes(ObjectKind.SEG) == tuple(SEG_CLASSES.values())
    assert proposed_classes(ObjectKind.PDF) == (PDF_CLASS,)
