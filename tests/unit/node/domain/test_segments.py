"""The table of segments: its own rules, and the codes of the shipped rows against pydicom's dictionary."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.sr._concepts_dict import concepts

from node.domain.segments import COLUMNS, Code, load_segments
from node.errors import ConfigError

SHIPPED = (Path(__file__).parents[4] / "dicom_config" / "segments.csv").read_text(encoding="utf-8")
HEADER = ",".join(COLUMNS)
LIVER = "liver,Liver,91723000,SCT,Anatomical Structure,10200004,SCT,Liver,,,,221,130,101,200,3500"


def meanings(code: Code) -> set[str]:
    """What pydicom's dictionary calls a code."""
    return {
        meaning
        for entries in concepts[code.scheme].values()
        for value, (meaning, _) in entries.items()
        if value == code.value
    }


def context_groups(code: Code) -> set[int]:
    """The context groups that hold a code."""
    return {
        group
        for entries in concepts[code.scheme].values()
        for value, (_, groups) in entries.items()
        if value == code.value
        for group in groups
    }


@pytest.mark.parametrize("name", load_segments(SHIPPED))
def test_every_code_is_what_the_standard_calls_it(name: str) -> None:
    """Table 3.2, R13 to R15: anatomical structures of CID 7151 or 7192, sides of CID 244, parts of CID 2."""
    segment = load_segments(SHIPPED)[name]
    assert segment.category == Code("91723000", "SCT", "Anatomical Structure")
    assert segment.category.meaning in meanings(segment.category)
    assert segment.type.meaning in meanings(segment.type)
    assert context_groups(segment.type) & {7151, 7192}
    if segment.modifier is not None:
        assert segment.modifier.meaning in meanings(segment.modifier)
        assert context_groups(segment.modifier) & {2, 244}


def test_sides_are_told_by_the_modifier_alone() -> None:
    """R14: the structure code is that of the organ; left and right differ in nothing else."""
    table = load_segments(SHIPPED)
    for left, right in (
        ("kidney_left", "kidney_right"),
        ("adrenal_gland_left", "adrenal_gland_right"),
        ("lung_left", "lung_right"),
        ("LeftParotid", "RightParotid"),
    ):
        assert table[left].type == table[right].type
        assert table[left].modifier == Code("7771000", "SCT", "Left")
        assert table[right].modifier == Code("24028007", "SCT", "Right")


def test_hippocampus_parts_claim_no_side() -> None:
    """Every image of the training set shows one side, so the model cannot know which it is."""
    table = load_segments(SHIPPED)
    assert table["Anterior"].type == table["Posterior"].type == Code("5366008", "SCT", "Hippocampus")
    assert {table[name].modifier.meaning for name in ("Anterior", "Posterior")} == {"Anterior", "Posterior"}


def test_errors_of_the_mapping_that_was_drawn_from_are_not_copied() -> None:
    """R15: a code for the right side alone is not that of both; a code that says its side needs no modifier."""
    table = load_segments(SHIPPED)
    assert table["subclavian_artery_left"].type == Code("36765005", "SCT", "Subclavian artery")
    assert table["subclavian_artery_right"].type == table["subclavian_artery_left"].type
    assert table["atrial_appendage_left"].type == Code("33626005", "SCT", "Left auricular appendage")
    assert table["atrial_appendage_left"].modifier is None
    assert table["lung_middle_lobe_right"].modifier is None


def test_name_and_modifier_tell_one_side() -> None:
    for name, segment in load_segments(SHIPPED).items():
        for side, other in (("left", "right"), ("right", "left")):
            if name.endswith(f"_{side}"):
                assert segment.label.lower().find(other) < 0
                assert side in segment.label.lower()
                assert segment.modifier is None or segment.modifier.meaning.lower() == side


def test_colours_of_the_shipped_models_differ() -> None:
    """Organs of one picture can be told apart."""
    table = load_segments(SHIPPED)
    organs = ("liver", "spleen", "kidney_left", "kidney_right", "urinary_bladder")
    assert len({table[name].colour for name in organs}) == len(organs)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (LIVER.replace("liver,", ",", 1), "name must hold"),
        (LIVER.replace("10200004", ""), "type_code must hold"),
        (LIVER.replace("10200004", "1" * 17), "type_code must hold"),
        (LIVER.replace("221", "256"), "r must be a whole number"),
        (LIVER.replace("221", "red"), "r must be a whole number"),
        (LIVER.replace("200,3500", "3500,200"), "plausible_min_ml must be below"),
        (LIVER.replace("200,3500", "few,many"), "must be numbers"),
        (LIVER.replace("Liver,,,,", "Liver,7771000,,,"), "modifier_scheme must hold"),
        (LIVER + ",more", "cells"),
        (LIVER + "\n" + LIVER, "stands twice"),
    ],
)
def test_a_defect_is_named_with_its_line(row: str, told: str) -> None:
    """ConfigError names the line and the mend."""
    with pytest.raises(ConfigError, match=told) as caught:
        load_segments(f"{HEADER}\n{row}\n")
    assert "line 2" in str(caught.value) or "line 3" in str(caught.value)


def test_other_columns_are_refused() -> None:
    with pytest.raises(ConfigError, match="line 1"):
        load_segments("name,label\nliver,Liver\n")


def test_no_range_means_no_flag() -> None:
    assert load_segments(f"{HEADER}\n{LIVER.replace('200,3500', ',')}\n")["liver"].plausible_ml is None
