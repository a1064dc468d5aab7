"""Labels of a cascade's first network on the second's grid: ties, slabs, and what lies outside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engines.model.plan import Resampling, ResamplingFunction
from engines.preprocessing import previous_stage
from engines.preprocessing.previous_stage import OUTSIDE, fill_one_hot, resample_labels
from engines.preprocessing.resampling import Step

LINEAR = Resampling("resample_data_or_seg_to_shape", order=1, order_z=0, force_separate_z=False)


def step(shape: tuple[int, int, int], to: tuple[int, int, int]) -> Step:
    spacing_to = tuple(n / m for n, m in zip(shape, to, strict=True))
    return Step(shape, to, (1.0, 1.0, 1.0), (spacing_to[0], spacing_to[1], spacing_to[2]))


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, (6, 7, 8)).astype(np.int16)


def test_a_tie_goes_to_the_nearest_label() -> None:
    """Halfway between two labels the nearest neighbour is the higher voxel, whatever the labels' numbers."""
    row = np.array([[[1, 3]]], dtype=np.int16)
    assert resample_labels(row, step((1, 1, 2), (1, 1, 1)), LINEAR).tolist() == [[[3]]]
    assert resample_labels(row[..., ::-1].copy(), step((1, 1, 2), (1, 1, 1)), LINEAR).tolist() == [[[1]]]


def test_of_a_tie_that_the_nearest_label_lost_the_lowest_wins() -> None:
    """At the middle of eight voxels: 1 and 2 three times each, 3 twice, and the nearest is a 3."""
    for told in ([3, 1, 1, 1, 2, 2, 2, 3], [3, 2, 2, 2, 1, 1, 1, 3]):
        block = np.array(told, dtype=np.int16).reshape(2, 2, 2)
        assert resample_labels(block, step((2, 2, 2), (1, 1, 1)), LINEAR).tolist() == [[[1]]]


def test_what_lies_outside_competes_with_background() -> None:
    """Both together would win; each by itself loses."""
    block = np.array([4, 0, 0, 4, 4, OUTSIDE, OUTSIDE, 0], dtype=np.int16).reshape(2, 2, 2)
    assert resample_labels(block, step((2, 2, 2), (1, 1, 1)), LINEAR).tolist() == [[[0]]]
    block[1, 1, 1] = OUTSIDE
    block[0, 0, 1] = 4
    assert resample_labels(block, step((2, 2, 2), (1, 1, 1)), LINEAR).tolist() == [[[4]]]


@pytest.mark.parametrize("function", ["resample_data_or_seg_to_shape", "resample_torch_fornnunet"])
def test_labels_of_one_grid_stay(labels: np.ndarray, function: ResamplingFunction) -> None:
    assert resample_labels(labels, step((6, 7, 8), (6, 7, 8)), replace(LINEAR, function=function)) is labels


def test_slabs_change_nothing(labels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resample_labels(labels, step((6, 7, 8), (11, 9, 13)), LINEAR)
    monkeypatch.setattr(previous_stage, "_SLAB_VOXELS", 250)
    assert np.array_equal(resample_labels(labels, step((6, 7, 8), (11, 9, 13)), LINEAR), whole)
    assert set(np.unique(whole)) == {0, 1, 2, 3}


def test_order_0_is_the_nearest_neighbour(labels: np.ndarray) -> None:
    found = resample_labels(labels, step((6, 7, 8), (12, 14, 16)), replace(LINEAR, order=0))
    assert np.array_equal(found, labels.repeat(2, 0).repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize("function", ["resample_data_or_seg_to_shape", "resample_torch_fornnunet"])
def test_separate_axis_is_nearest_by_itself(labels: np.ndarray, function: ResamplingFunction) -> None:
    thick = Step((6, 7, 8), (12, 7, 8), (9.0, 1.0, 1.0), (4.5, 1.0, 1.0))
    separate = Resampling(function, order=1, order_z=0, force_separate_z=None)
    assert np.array_equal(resample_labels(labels, thick, separate), labels.repeat(2, axis=0))


def test_each_wanted_label_has_its_channel(labels: np.ndarray) -> None:
    channels = torch.full((2, *labels.shape), 7.0)
    fill_one_hot(channels, labels, (3, 1))
    assert np.array_equal(channels.numpy(), np.stack([labels == 3, labels == 1]))
