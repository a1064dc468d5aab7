"""On which NVIDIA cards each way of using one has run, and what is said to whoever takes one that never did."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class CardPath:
    """One way of running networks on a card."""

    backend: str
    name: str
    ran_on: tuple[str, ...]
    """Cards, as their driver names them; empty: none."""
    without_a_card: str
    """What was shown where there is none."""

    def __str__(self) -> str:
        ran = f"has run on {', '.join(self.ran_on)}" if self.ran_on else "has never run on any card"
        return f"{self.name} {ran}; without a card: {self.without_a_card}"


CARD_PATHS = (
    CardPath("torch", "torch on CUDA", (), "the same code, in float32 on processors"),
    CardPath("tensorrt", "TensorRT", (), "nothing, it was never installed"),
    CardPath("tensorrt", "TensorRT-RTX", (), "engines of each shipped bundle were built"),
)
"""No path is taken unasked on any card; whoever asks for one that never ran on theirs is warned."""


@dataclass(frozen=True)
class Caution:
    """What is to be known of a path before anybody relies on it."""

    text: str
    mend: str

    def __str__(self) -> str:
        return f"{self.text}: {self.mend}"


def cautions(backends: Collection[str], card: str = "") -> tuple[Caution, ...]:
    """Of the ways that these backends use a card, those that never ran on one like it; by the card's name."""
    return tuple(_caution(path) for path in CARD_PATHS if path.backend in backends and card not in path.ran_on)


def _caution(path: CardPath) -> Caution:
    engine = "" if path.backend == "torch" else f" --engine '{path.backend} float16'"
    command = f"hilum-models verify BUNDLE --volumes FOLDER --device cuda{engine}"
    return Caution(f"{path.name} has never run on such a card", f"verify it on yours with `{command}`")
