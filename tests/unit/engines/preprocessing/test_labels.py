"""Labels by convexity: the same as interpolating every class and taking the largest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from engines.model.plan import Resampling
from engines.preprocessing import labels as module
from engines.preprocessing.labels import labels_at, largest_class
from engines.preprocessing.resampling import Step, linear_taps

LINEAR = Resampling("resample_data_or_seg_to_shape", order=1, order_z=0, force_separate_z=None)


def smooth_logits(classes: int, shape: tuple[int, int, int]) -> torch.Tensor:
    noise = np.random.default_rng(classes).standard_normal((classes, *shape))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 2, 2, 2)) * 30).half().float().contiguous()


@pytest.mark.parametrize("target", [(20, 31, 17), (5, 4, 40), (10, 12, 14), (1, 1, 1)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0)])
def test_equals_interpolating_every_class(target: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    logits = smooth_logits(5, (10, 12, 14))
    step = Step((10, 12, 14), target, spacing, (1.0, 1.0, 1.0))
    taps = linear_taps(step, LINEAR)
    full = logits.numpy().astype(float)
    for axis, t in enumerate(taps, start=1):
        weight = t.weight.reshape([-1 if a == axis else 1 for a in range(4)])
        full = full.take(t.low, axis) * (1 - weight) + full.take(t.high, axis) * weight
    expected = full.astype(np.float16).argmax(0)
    found = labels_at(logits, taps, halved=True)
    assert found.dtype == np.uint8
    assert (found != expected).mean() < 1e-3  # double against single precision at ties of float16
    assert (labels_at(logits, taps, halved=False) == full.argmax(0)).mean() > 0.999


def test_portions_and_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = smooth_logits(4, (9, 10, 11))
    taps = linear_taps(Step((9, 10, 11), (23, 19, 30), (1, 1, 1), (1, 1, 1)), LINEAR)
    whole = labels_at(logits, taps, halved=True)
    monkeypatch.setattr(module, "_PORTION", 60)
    monkeypatch.setattr(module, "_SLAB_VOXELS", 700)
    assert np.array_equal(labels_at(logits, taps, halved=True), whole)


def test_ties_go_to_the_lowest_class() -> None:
    logits = torch.zeros((3, 2, 2, 2))
    logits[2, 0] = 1
    assert largest_class(logits)[0].unique().tolist() == [2]
    assert largest_class(logits)[1].unique().tolist() == [0]


def test_more_than_255_classes_are_uint16() -> None:
    logits = torch.zeros((300, 2, 2, 2))
    logits[299] = 1
    taps = linear_taps(Step((2, 2, 2), (3, 3, 3), (1, 1, 1), (1, 1, 1)), LINEAR)
    found = labels_at(logits, taps, halved=True)
    assert found.dtype == np.uint16
    assert np.unique(found).tolist() == [299]
