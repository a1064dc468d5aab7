"""Resampling as matrices: against scipy itself, and the rules that choose what is resampled how."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from engines.model.plan import Resampling
from engines.preprocessing.resampling import Step, linear_taps, new_shape, resample, separate_axis

DEFAULT = Resampling("resample_data_or_seg_to_shape", order=3, order_z=0, force_separate_z=None)
LINEAR = Resampling("resample_data_or_seg_to_shape", order=1, order_z=0, force_separate_z=None)


def step(
    a: tuple[int, int, int],
    b: tuple[int, int, int],
    sa: tuple[float, float, float] = (1, 1, 1),
    sb: tuple[float, float, float] = (1, 1, 1),
) -> Step:
    return Step(a, b, sa, sb)


def resampled(image: torch.Tensor, taken: Step) -> np.ndarray:
    out = torch.full(taken.shape_to, float("nan"))
    resample(image, taken, DEFAULT, out)
    return out.numpy()


@pytest.mark.parametrize("target", [(9, 11, 13), (20, 5, 31), (7, 16, 16), (1, 2, 3)])
def test_spline_equals_scipy(target: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).standard_normal((12, 16, 16)).astype(np.float32)
    factors = [b / a for a, b in zip(image.shape, target, strict=True)]
    expected = ndimage.zoom(image.astype(float), factors, order=3, mode="nearest", grid_mode=True)
    expected = expected.clip(image.min(), image.max())
    assert np.abs(resampled(torch.from_numpy(image), step((12, 16, 16), target)) - expected).max() < 1e-5


def test_same_grid_is_the_input() -> None:
    image = torch.randn((3, 4, 5))
    assert np.array_equal(resampled(image, step((3, 4, 5), (3, 4, 5))), image)


def test_one_voxel_thick_and_constant() -> None:
    image = torch.full((1, 4, 4), 7.0)
    assert np.allclose(resampled(image, step((1, 4, 4), (5, 6, 3))), 7.0)


@pytest.mark.parametrize(
    ("now", "then", "force", "axis"),
    [
        ((3.1, 1.0, 1.0), (1.0, 1.0, 1.0), None, 0),
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None, None),  # not above three
        ((1.0, 1.0, 1.0), (1.0, 1.0, 4.0), None, 2),
        ((1.0, 5.0, 5.0), (1.0, 1.0, 1.0), None, None),  # two largest
        ((2.5, 0.8, 0.8), (1.5, 1.5, 1.5), None, 0),
        ((2.0, 0.8, 0.8), (1.5, 1.5, 1.5), None, None),
        ((9.0, 1.0, 1.0), (1.0, 1.0, 1.0), False, None),
        ((1.0, 1.2, 1.0), (1.0, 1.0, 1.0), True, 1),
        ((1.0, 1.0, 1.0), (9.0, 1.0, 1.0), True, None),  # forced: the present spacing decides, and is even
    ],
)
def test_which_axis_is_separate(
    now: tuple[float, float, float], then: tuple[float, float, float], force: bool | None, axis: int | None
) -> None:
    rule = Resampling("resample_data_or_seg_to_shape", 3, 0, force)
    assert separate_axis(step((4, 4, 4), (4, 4, 4), now, then), rule) == axis


def test_new_shape_rounds_half_to_even_as_nnunet() -> None:
    assert new_shape((5, 7, 2), (1.0, 1.0, 1.0), (2.0, 2.0, 4.0)) == (2, 4, 1)
    assert new_shape((2000, 512, 512), (0.5, 0.7, 0.7), (1.5, 1.5, 1.5)) == (667, 239, 239)
    assert new_shape((1, 1, 1), (0.1, 1.0, 1.0), (9.0, 1.0, 1.0)) == (1, 1, 1)


def test_taps_mix_neighbours_and_stay_inside() -> None:
    taps = linear_taps(step((4, 6, 3), (9, 6, 2)), LINEAR)
    for axis, (n_in, n_out) in enumerate([(4, 9), (6, 6), (3, 2)]):
        matrix = np.zeros((n_out, n_in))
        np.add.at(matrix, (np.arange(n_out), taps[axis].low), 1 - taps[axis].weight)
        np.add.at(matrix, (np.arange(n_out), taps[axis].high), taps[axis].weight)
        eye = np.eye(n_in)
        expected = [ndimage.zoom(c, n_out / n_in, order=1, mode="nearest", grid_mode=True) for c in eye]
        assert np.allclose(matrix, np.stack(expected, 1))


def test_model_without_resampling_refuses_another_grid() -> None:
    none = Resampling("no_resampling_hack", 1, 0, None)
    with pytest.raises(ValueError, match="does not resample"):
        linear_taps(step((4, 4, 4), (5, 4, 4)), none)
