"""What a segment is called: coded terms and colours, one row of `segments.csv` for each (REQUIREMENTS 3.2)."""

from __future__ import annotations

from dataclasses import dataclass


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
