"""What a segment is called: coded terms and colours, one row of `segments.csv` for each (REQUIREMENTS 3.2)."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from types import MappingProxyType

from node.errors import ConfigError

COLUMNS = (
    *("name", "label"),
    *("category_code", "category_scheme", "category_meaning"),
    *("type_code", "type_scheme", "type_meaning"),
    *("modifier_code", "modifier_scheme", "modifier_meaning"),
    *("r", "g", "b", "plausible_min_ml", "plausible_max_ml"),
)
"""The header line of `segments.csv`."""

_LABEL_LENGTH = 64
_CODE_LENGTH = 16


@dataclass(frozen=True)
class Code:
    """A coded concept: value, scheme designator, meaning (PS3.3 8.8)."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class SegmentDescription:
    """How a label of a model is described in SEG, SR and report."""

    name: str
    """The label's name in the model, the key of the table."""
    label: str
    """SegmentLabel, for a reader."""
    category: Code
    type: Code
    modifier: Code | None
    """Laterality or other modifier of the type."""
    colour: tuple[int, int, int]
    """sRGB, 0 to 255."""
    plausible_ml: tuple[float, float] | None = None
    """Range of volumes that raises no flag; a value outside is flagged, never removed (RES-12)."""


def load_segments(text: str) -> Mapping[str, SegmentDescription]:
    """The table of segments from the text of `segments.csv`, by name.

    Raises
    ------
    ConfigError
        Where a column is missing, a cell is empty, too long or not a number, or a name stands twice; with the line.
    """
    reader = csv.DictReader(StringIO(text), restkey="", restval="")
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ConfigError(f"segments.csv, line 1: the columns must be {','.join(COLUMNS)}")
    table: dict[str, SegmentDescription] = {}
    for row in reader:
        try:
            segment = _segment(row)
        except ValueError as defect:
            raise ConfigError(f"segments.csv, line {reader.line_num}: {defect}") from defect
        if segment.name in table:
            raise ConfigError(f"segments.csv, line {reader.line_num}: {segment.name!r} stands twice; remove one row")
        table[segment.name] = segment
    return MappingProxyType(table)


def _segment(row: Mapping[str, str]) -> SegmentDescription:
    """One row; ValueError names the column and what it must hold."""
    if "" in row:
        raise ValueError(f"more than {len(COLUMNS)} cells; a comma inside a cell needs quotation marks")
    cells = {key: value.strip() for key, value in row.items()}
    for column in ("name", "label"):
        if not 0 < len(cells[column]) <= _LABEL_LENGTH:
            raise ValueError(f"{column} must hold 1 to {_LABEL_LENGTH} characters")
    modifier = any(cells[f"modifier_{part}"] for part in ("code", "scheme", "meaning"))
    return SegmentDescription(
        name=cells["name"],
        label=cells["label"],
        category=_code(cells, "category"),
        type=_code(cells, "type"),
        modifier=_code(cells, "modifier") if modifier else None,
        colour=(_shade(cells, "r"), _shade(cells, "g"), _shade(cells, "b")),
        plausible_ml=_plausible(cells),
    )


def _code(cells: Mapping[str, str], prefix: str) -> Code:
    """A coded concept whose three parts fit SH, SH and LO (PS3.3 8.8)."""
    for part, longest in (("code", _CODE_LENGTH), ("scheme", _CODE_LENGTH), ("meaning", _LABEL_LENGTH)):
        if not 0 < len(cells[f"{prefix}_{part}"]) <= longest:
            raise ValueError(f"{prefix}_{part} must hold 1 to {longest} characters")
    return Code(cells[f"{prefix}_code"], cells[f"{prefix}_scheme"], cells[f"{prefix}_meaning"])


def _shade(cells: Mapping[str, str], column: str) -> int:
    """One of r, g, b."""
    if not cells[column].isdecimal() or int(cells[column]) > 255:
        raise ValueError(f"{column} must be a whole number from 0 to 255, not {cells[column]!r}")
    return int(cells[column])


def _plausible(cells: Mapping[str, str]) -> tuple[float, float] | None:
    """The plausible range in mL; None where both cells are empty."""
    low, high = cells["plausible_min_ml"], cells["plausible_max_ml"]
    if not low and not high:
        return None
    try:
        span = float(low), float(high)
    except ValueError:
        raise ValueError(f"plausible_min_ml and plausible_max_ml must be numbers, not {low!r} and {high!r}") from None
    if not 0 <= span[0] < span[1] < float("inf"):
        raise ValueError(f"plausible_min_ml must be below plausible_max_ml, and neither below 0: {low} and {high}")
    return span
