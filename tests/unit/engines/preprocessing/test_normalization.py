"""Each of nnU-Net's normalisation schemes, on numbers small enough to do by hand."""

from __future__ import annotations

import pytest
import torch

from engines.errors import BundleError, UnsuitableVolume
from engines.model.plan import Channel, Intensities, Normalization
from engines.preprocessing.normalization import normalize

CT = Intensities(mean=50.0, std=100.0, percentile_00_5=-100.0, percentile_99_5=300.0)


def run(scheme: Normalization, values: list[float], inside: list[bool] | None = None) -> list[float]:
    image = torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1)
    mask = None if inside is None else torch.tensor(inside).reshape(1, 1, -1)
    normalize(image, Channel("x", scheme, mask is not None, CT), mask)
    return image.flatten().tolist()


def test_ct_clips_then_scales() -> None:
    assert run("CTNormalization", [-1000, 50, 150, 3000]) == [-1.5, 0.0, 1.0, 2.5]


def test_zscore_of_all_and_of_the_inside() -> None:
    assert run("ZScoreNormalization", [1, 3]) == [-1.0, 1.0]
    assert run("ZScoreNormalization", [0, 1, 3, 0], [False, True, True, False]) == [0.0, -1.0, 1.0, 0.0]
    assert run("ZScoreNormalization", [0, 5], [False, False]) == [0.0, 5.0]


def test_constant_image_becomes_zero() -> None:
    assert run("ZScoreNormalization", [4, 4, 4]) == [0.0, 0.0, 0.0]
    assert run("RescaleTo01Normalization", [4, 4]) == [0.0, 0.0]


def test_others() -> None:
    assert run("RescaleTo01Normalization", [10, 20, 30]) == [0.0, 0.5, 1.0]
    assert run("RGBTo01Normalization", [0, 51, 255]) == pytest.approx([0.0, 0.2, 1.0])
    assert run("NoNormalization", [-3, 7]) == [-3.0, 7.0]


def test_rgb_refuses_other_values() -> None:
    with pytest.raises(UnsuitableVolume, match="0 to 255"):
        run("RGBTo01Normalization", [-1, 5])


def test_ct_without_statistics() -> None:
    with pytest.raises(BundleError, match="without intensity statistics"):
        normalize(torch.zeros((1, 1, 1)), Channel("x", "CTNormalization", False, None), None)
