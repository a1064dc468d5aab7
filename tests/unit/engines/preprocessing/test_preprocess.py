"""Forward and back: transposition, crop, shapes; every label where its voxel was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engines.errors import UnsuitableVolume
from engines.model.plan import PICTURES, Plan
from engines.preprocessing.preprocess import nonzero_box, preprocess


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
    assert all(np.array_equal(axis.low, np.arange(n)) for axis, n in zip(ours.taps(), kept, strict=True))
    assert np.array_equal(ours.uncropped(network_labels), pattern)


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


@pytest.fixture
def two(plan: Plan) -> Plan:
    """A plan of two images."""
    return replace(plan, channels=(replace(plan.channels[0], name="T1"), replace(plan.channels[0], name="T2")))


@pytest.fixture
def second(plan: Plan) -> Plan:
    """The second network of a cascade."""
    return replace(plan, previous_labels=(1, 2), label_resampling=replace(plan.resampling, order=1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_image_that_is_not_finite_is_refused_by_name(two: Plan, value: float) -> None:
    images = np.random.default_rng(0).random((2, 6, 6, 6), dtype=np.float32)
    images[1, 2, 3, 4] = value
    with pytest.raises(UnsuitableVolume, match="the image T2 holds voxels that are not finite"):
        preprocess(images, (1.0, 1.0, 1.0), two)


@pytest.mark.parametrize("count", [1, 3])
def test_number_of_images_is_that_of_the_plan(two: Plan, count: int) -> None:
    with pytest.raises(UnsuitableVolume, match=f"{count} images; the model needs 2, in this order: T1, T2"):
        preprocess(np.ones((count, 6, 6, 6), dtype=np.float32), (1.0, 1.0, 1.0), two)


def test_box_holds_what_any_image_shows(two: Plan) -> None:
    images = np.zeros((2, 8, 8, 8), dtype=np.float32)
    images[0, 1:3, 4, 4] = 1
    images[1, 4, 2:7, 5] = 1
    assert preprocess(images, (1.0, 1.0, 1.0), two).box == (slice(1, 5), slice(2, 7), slice(4, 6))


def test_earlier_labels_and_plan_go_together(plan: Plan, second: Plan) -> None:
    image, labels = np.ones((6, 6, 6), dtype=np.float32), np.ones((6, 6, 6), dtype=np.uint8)
    with pytest.raises(ValueError, match="go together"):
        preprocess(image, (1.0, 1.0, 1.0), plan, labels)
    with pytest.raises(ValueError, match="go together"):
        preprocess(image, (1.0, 1.0, 1.0), second)
    with pytest.raises(ValueError, match=r"earlier labels of shape \(5, 6, 6\)"):
        preprocess(image, (1.0, 1.0, 1.0), second, labels[1:])


def test_earlier_labels_stand_below_the_image(second: Plan) -> None:
    image = np.random.default_rng(0).random((5, 6, 7), dtype=np.float32) + 1
    labels = np.random.default_rng(1).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    before = labels.copy()
    seen = preprocess(image, (1.0, 1.0, 1.0), second, labels).image.numpy()
    assert seen.shape == (3, 5, 6, 7)
    assert np.array_equal(seen[1:], np.stack([labels == 1, labels == 2]))
    assert np.array_equal(labels, before)


@pytest.mark.parametrize("shape", [(1, 9, 9), (9, 1, 9), (9, 9, 1), (1, 1, 1)])
def test_one_voxel_thick(second: Plan, shape: tuple[int, int, int]) -> None:
    image = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    seen = preprocess(image, (0.4, 2.0, 0.4), second, np.ones(shape, dtype=np.uint8)).image.numpy()
    assert np.isfinite(seen).all()
    assert (seen[1] == 1).all()
    assert (seen[2] == 0).all()


def test_all_zero_images_stay_zero(two: Plan) -> None:
    masked = replace(two, channels=tuple(replace(channel, use_mask=True) for channel in two.channels))
    for plan in (two, masked):
        seen = preprocess(np.zeros((2, 5, 6, 7), dtype=np.float32), (1.0, 1.0, 2.0), plan)
        assert seen.image.shape == (2, 5, 6, 14)
        assert (seen.image == 0).all()


def test_pictures_know_no_millimetres(plan: Plan) -> None:
    """nnU-Net trained on pixels: the same picture at any spacing gives the network the same input."""
    flat = replace(plan, patch_size=(8, 8), spacing_mm=(1.0, 1.0), reader=PICTURES)
    image = np.random.default_rng(0).random((2, 6, 7), dtype=np.float32)
    assert tuple(preprocess(image, (3.0, 0.2, 0.2), flat).image.shape) == (1, 2, 6, 7)
