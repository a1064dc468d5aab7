"""UIDs derived from what a result is made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from node.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, result_uid

PARTS = st.lists(st.text(max_size=20), min_size=1, max_size=6)


@given(PARTS)
def test_uid_is_valid_and_short(parts: list[str]) -> None:
    """RES-20: at most 44 characters under 2.25."""
    uid = result_uid(None, *parts)
    assert UID(uid).is_valid
    assert uid.startswith("2.25.")
    assert len(uid) <= 44
    assert uid == result_uid(None, *parts)


@given(PARTS, PARTS)
def test_other_parts_make_another_uid(one: list[str], other: list[str]) -> None:
    """Parts cannot run into each other: ("ab", "c") is not ("a", "bc")."""
    if one != other:
        assert result_uid(None, *one) != result_uid(None, *other)
    assert result_uid(None, "ab", "c") != result_uid(None, "a", "bc")


@pytest.mark.parametrize("root", ["1.2.3", "1.2.826.0.1.3680043.9.7433", "1." + "2." * 20 + "3"])
def test_root_of_an_organisation(root: str) -> None:
    """RES-20: the root's own digits, then ours, never more than 64."""
    uid = result_uid(root, "x")
    assert UID(uid).is_valid
    assert uid.startswith(root + ".")
    assert len(uid) <= 64


def test_root_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="20"):
        result_uid("1" * 50, "x")


def test_own_implementation() -> None:
    """NET-39: valid, and nobody else's."""
    assert UID(IMPLEMENTATION_CLASS_UID).is_valid
    assert len(IMPLEMENTATION_VERSION_NAME) <= 16
