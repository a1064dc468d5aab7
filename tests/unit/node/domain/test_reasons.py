"""Reasons are a closed set: what the code gives is listed, what is listed is given, and all of it is explained."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from node.domain.reasons import DOUBT, GEOMETRY, NOT_A_SCAN, PIXELS, REASONS, ROUTING

ROOT = Path(__file__).parents[4]
GIVERS = {"Exclusion", "Misfit", "Unsuitable", "Unstackable", "Ineligible", "Refusal"}
"""What takes a reason as an argument."""
CONSTANTS = {
    "HELD_CLASS",
    "OTHER_BYTES",
    "IDENTITY_CONFLICT",
    "UID_IN_TWO_SERIES",
    "INPUTS_PURGED",
    "SET_ASIDE",
    "UNREADABLE",
    "_NOTHING_LEFT",
    "MISSING_SLICES",
}


def _reasons_given() -> dict[str, str]:
    """Each literal reason in the code, and where it stands."""
    found: dict[str, str] = {}
    for path in (*ROOT.glob("node/domain/*.py"), *ROOT.glob("node/dicom/*.py"), *ROOT.glob("node/st*/*.py")):
        for item in ast.walk(ast.parse(path.read_text())):
            for literal in _literals(item):
                found[literal] = f"{path.name}:{getattr(item, 'lineno', 0)}"
    return found


def _literals(item: ast.AST) -> list[str]:
    if isinstance(item, ast.Call) and isinstance(item.func, ast.Name) and item.func.id in GIVERS:
        return [arg.value for arg in item.args if isinstance(arg, ast.Constant) and _is_word(arg.value)][:1]
    if isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute) and item.func.attr == "_reject":
        return [arg.value for arg in item.args if isinstance(arg, ast.Constant) and _is_word(arg.value)]
    if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name) and item.targets[0].id in CONSTANTS:
        return [item.value.value] if isinstance(item.value, ast.Constant) else []
    defect = item.value if isinstance(item, ast.Constant) and isinstance(item.value, str) else ""
    match = re.match(r"([a-z]+(?:_[a-z]+)*): ", defect)
    return [match[1]] if match and match[1] in PIXELS else []


def _is_word(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z]+(_[a-z]+)*", value) is not None


def test_every_reason_in_the_code_is_listed() -> None:
    """OBS-1: an unlisted one would be counted as `other`, and nobody would know why."""
    missing = {reason: place for reason, place in _reasons_given().items() if reason not in REASONS}
    assert not missing


def test_every_listed_reason_is_given_somewhere() -> None:
    """A word that nothing gives would be a promise in the documentation that nothing keeps."""
    assert set(REASONS) - set(_reasons_given()) == set()


def test_a_word_stands_in_one_group() -> None:
    groups = (NOT_A_SCAN, PIXELS, GEOMETRY, DOUBT, ROUTING)
    assert sum(len(group) for group in groups) == len(REASONS)


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_is_explained_to_the_operator(reason: str) -> None:
    text = (ROOT / "docs" / "operate.md").read_text()
    assert f"| `{reason}` | {REASONS[reason]} |" in text


def test_no_reason_is_explained_that_nothing_gives() -> None:
    """The other direction: what stands in the tables of scans is one of ours."""
    text = (ROOT / "docs" / "operate.md").read_text()
    tables = text.partition("## Reasons")[2].partition("**Of jobs and deliveries**")[0]
    explained = re.findall(r"^\| `([a-z_]+)` \|", tables, re.MULTILINE)
    assert sorted(explained) == sorted(REASONS)
