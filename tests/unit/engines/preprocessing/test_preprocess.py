"""Forward and back: transposition, crop, shapes; every label where its voxel was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engines.model.plan import Plan
from engines.preprocessing.preprocess import nonzero_box, preprocess


def one_hot(network_labels: np.ndarray, classes: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([network_labels == c for c in range(classes)]).astype(np.float32))


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_way_back_undoes_transposition_and_crop(plan: Plan, transpose: tuple[int, int, int]) -> None:
    backward = tuple(transpose.index(axis) for axis in range(3))
    turned = replace(plan, transpose_forward=transpose, transpose_backward=backward)
    image = np.zeros((10, 12, 14), dtype=np.float32)
    image[2:9, 3:11, 1:12] = 5 + np.random.default_rng(0).random((7, 8, 11), dtype=np.float32)
    ours = preprocess(image, (1.0, 1.0, 1.0), turned)
    kept = tuple((7, 8, 11)[axis] for axis in transpose)
    assert tuple(ours.image.shape[1:]) == kept
    pattern = (image > 5.5).astype(np.uint8)
    network_labels = pattern.transpose(transpose)[ours.box]
    assert np.array_equal(ours.labels(one_hot(network_labels, 3)), pattern)


def test_box_is_all_of_an_empty_image() -> None:
    assert nonzero_box(np.zeros((3, 4, 5), dtype=np.float32)) == (slice(0, 3), slice(0, 4), slice(0, 5))


def test_image_of_the_caller_is_left_alone(plan: Plan) -> None:
    image = np.random.default_rng(0).random((6, 6, 6), dtype=np.float32)
    before = image.copy()
    preprocess(image, (1.0, 1.0, 1.0), plan)
    assert np.array_equal(image, before)


def test_2d_plan_keeps_the_slices_apart(plan: Plan) -> None:
    flat = replace(plan, patch_size=(8, 8), spacing_mm=(0.5, 0.5))
    image = np.random.default_rng(0).random((5, 6, 7), dtype=np.float32)
    assert tuple(preprocess(image, (8.0, 1.0, 1.0), flat).image.shape) == (1, 5, 12, 14)


def test_filled_holes_are_normalised_and_outside_is_not(plan: Plan) -> None:
    masked = replace(plan, channels=(replace(plan.channels[0], use_mask=True),))
    image = np.zeros((8, 8, 8), dtype=np.float32)
    image[1:7, 1:7, 1:7] = 10 + np.random.default_rng(0).random((6, 6, 6), dtype=np.float32)
    image[3, 3, 3] = 0
    image[1, 1, 1:7] = 0
    out = preprocess(image, (1.0, 1.0, 1.0), masked).image[0].numpy()
    assert out[2, 2, 2] < -1
    assert np.all(out[0, 0] == 0)
