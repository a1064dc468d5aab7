"""Volume, Dice and volume agreement."""

from __future__ import annotations

import numpy as np
import pytest

from engines.measures import count_by_slice, dice, label_volumes_ml, volume_agreement


def labels() -> np.ndarray:
    out = np.zeros((3, 4, 5), dtype=np.uint8)
    out[0, :2] = 1
    out[1:, 0, 0] = 3
    return out


def test_count_by_slice() -> None:
    assert count_by_slice(labels(), 4).tolist() == [[10, 10, 0, 0, 0], [19, 0, 0, 1, 0], [19, 0, 0, 1, 0]]


def test_count_by_slice_refuses_a_label_above_the_highest() -> None:
    with pytest.raises(ValueError, match="0 to 2"):
        count_by_slice(labels(), 2)


def test_volumes_of_even_and_uneven_slices() -> None:
    assert label_volumes_ml(labels(), 0.5) == {1: 5.0, 3: 1.0}
    assert label_volumes_ml(labels(), [0.1, 2.0, 4.0]) == pytest.approx({1: 1.0, 3: 6.0})


def test_volumes_of_nothing() -> None:
    assert label_volumes_ml(np.zeros((2, 3, 3), dtype=np.uint16), 1.0) == {}


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([1, 1, 0, 0], [1, 0, 0, 0], 2 / 3), ([0, 0], [0, 0], 1.0), ([1, 0], [0, 1], 0.0), ([1, 1], [1, 1], 1.0)],
)
def test_dice(a: list[int], b: list[int], expected: float) -> None:
    assert dice(np.array(a, dtype=bool), np.array(b, dtype=bool)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reported", "true", "expected"),
    [(97.0, 100.0, 0.97), (103.0, 100.0, 0.97), (0.0, 0.0, 1.0), (1.0, 0.0, float("-inf")), (300.0, 100.0, -1.0)],
)
def test_volume_agreement(reported: float, true: float, expected: float) -> None:
    assert volume_agreement(reported, true) == pytest.approx(expected)
