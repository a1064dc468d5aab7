"""Labels by convexity: the same as interpolating every class and taking the largest, on both arithmetics."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from engines.errors import UnsuitableVolume
from engines.inference import kernels
from engines.inference.arithmetic import Arithmetic, DeviceArithmetic, Head, HostArithmetic, Rule, largest_class
from engines.inference.labelling import Source, label_volume
from engines.inference.sliding_window import Plane
from engines.model.plan import Resampling
from engines.preprocessing.resampling import Step, Taps, linear_taps

LINEAR = Resampling("resample_data_or_seg_to_shape", order=1, order_z=0, force_separate_z=None)
ARITHMETICS = {"one thread": HostArithmetic(1), "three threads": HostArithmetic(3), "torch": DeviceArithmetic()}


@pytest.fixture(params=ARITHMETICS)
def arithmetic(request: pytest.FixtureRequest) -> Arithmetic:
    return ARITHMETICS[request.param]


def smooth_logits(classes: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(classes + 100 * seed).standard_normal((classes, *shape))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 2, 2, 2)) * 30).half().float().contiguous()


def taps_to(shape: tuple[int, int, int], target: tuple[int, int, int], z: float = 1.0) -> tuple[Taps, Taps, Taps]:
    return linear_taps(Step(shape, target, (z, 1.0, 1.0), (1.0, 1.0, 1.0)), LINEAR)


def as_planes(logits: torch.Tensor, weight: float = 1.0) -> Iterator[Plane]:
    for z in range(logits.shape[1]):
        yield Plane(logits[:, z].clone() * weight, torch.full(logits.shape[2:], weight))


def source(logits: torch.Tensor, taps: tuple[Taps, Taps, Taps], halved: bool = True) -> Source:
    return Source(as_planes(logits), taps, halved)


def interpolated(logits: torch.Tensor, taps: tuple[Taps, Taps, Taps]) -> NDArray[np.float64]:
    """Every class on the other grid, in double precision."""
    full = logits.numpy().astype(float)
    for axis, t in enumerate(taps, start=1):
        weight = t.weight.reshape([-1 if a == axis else 1 for a in range(4)])
        full = full.take(t.low, axis) * (1 - weight) + full.take(t.high, axis) * weight
    return full


@pytest.mark.parametrize("target", [(20, 31, 17), (5, 4, 40), (10, 12, 14), (1, 1, 1), (3, 90, 71)])
@pytest.mark.parametrize("z", [1.0, 4.0])
def test_equals_interpolating_every_class(target: tuple[int, int, int], z: float, arithmetic: Arithmetic) -> None:
    logits = smooth_logits(5, (10, 12, 14))
    taps = taps_to((10, 12, 14), target, z)
    full = interpolated(logits, taps)
    found = label_volume([source(logits, taps)], Rule(), arithmetic, 4)
    assert found.dtype == np.uint8
    assert (found != full.astype(np.float16).argmax(0)).mean() < 1e-3  # double against single at ties of float16
    exact = label_volume([source(logits, taps, halved=False)], Rule(), arithmetic, 4)
    assert (exact == full.argmax(0)).mean() > 0.999


def test_regions_paint_in_order(arithmetic: Arithmetic) -> None:
    logits = smooth_logits(3, (10, 12, 14))
    taps = taps_to((10, 12, 14), (17, 25, 20))
    full = interpolated(logits, taps).astype(np.float16)
    expected = np.zeros(full.shape[1:], dtype=np.uint8)
    for region, paints in zip(full, (1, 3, 2), strict=True):
        expected[1 / (1 + np.exp(-region.astype(np.float32))) > 0.5] = paints
    found = label_volume([source(logits, taps)], Rule((1, 3, 2)), arithmetic, 3)
    assert set(np.unique(found)) == {0, 1, 2, 3}
    assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize("regions", [(), (2, 1, 3)])
def test_members_on_different_grids_are_averaged(regions: tuple[int, ...], arithmetic: Arithmetic) -> None:
    target = (12, 30, 21)
    members = [smooth_logits(3, (10, 12, 14)), smooth_logits(3, (12, 9, 17), seed=1)]
    taps = [taps_to(tuple(each.shape[1:]), target) for each in members]
    mean = np.zeros((3, *target), dtype=np.float32)
    for logits, each in zip(members, taps, strict=True):
        values = torch.from_numpy(interpolated(logits, each).astype(np.float16)).float()
        mean += (torch.sigmoid(values) if regions else torch.softmax(values, 0)).numpy()
    if regions:
        expected = np.zeros(target, dtype=np.uint8)
        for region, paints in zip(mean / 2, regions, strict=True):
            expected[region > 0.5] = paints
    else:
        expected = mean.argmax(0).astype(np.uint8)
    sources = [source(logits, each) for logits, each in zip(members, taps, strict=True)]
    found = label_volume(sources, Rule(regions), arithmetic, 3)
    alone = label_volume([source(members[0], taps[0])], Rule(regions), arithmetic, 3)
    assert (found != expected).mean() < 1e-3
    assert (alone != expected).mean() > 0.05


def test_a_head_makes_logits_of_summed_features(arithmetic: Arithmetic) -> None:
    features = smooth_logits(2, (6, 7, 8))
    matrix, bias = torch.randn((5, 2)), torch.randn(5)
    logits = (torch.einsum("ck,kzyx->czyx", matrix, features) + bias.view(-1, 1, 1, 1)).half().float()
    taps = taps_to((6, 7, 8), (9, 13, 11))
    summed = Source(as_planes(features, weight=3.0), taps, True, Head(matrix, bias))
    expected = label_volume([source(logits, taps)], Rule(), arithmetic, 4)
    assert (label_volume([summed], Rule(), arithmetic, 4) == expected).mean() > 0.99


def test_threads_change_nothing() -> None:
    logits = smooth_logits(4, (5, 140, 150))
    taps = taps_to((5, 140, 150), (9, 260, 300))
    one, three = (
        label_volume([source(logits, taps)], Rule(), ARITHMETICS[name], 3) for name in ("one thread", "three threads")
    )
    assert np.array_equal(one, three)


def test_ties_go_to_the_lowest_class(arithmetic: Arithmetic) -> None:
    logits = torch.zeros((3, 2, 2, 2))
    logits[2, 0] = 1
    found = label_volume([source(logits, taps_to((2, 2, 2), (2, 2, 2)))], Rule(), arithmetic, 2)
    assert found[0].tolist() == [[2, 2], [2, 2]]
    assert found[1].tolist() == [[0, 0], [0, 0]]
    assert largest_class(logits)[1].unique().tolist() == [0]


def test_more_than_254_labels_are_uint16(arithmetic: Arithmetic) -> None:
    logits = torch.zeros((300, 2, 2, 2))
    logits[299] = 1
    found = label_volume([source(logits, taps_to((2, 2, 2), (3, 3, 3)))], Rule(), arithmetic, 299)
    assert found.dtype == np.uint16
    assert np.unique(found).tolist() == [299]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e6])
def test_answers_that_are_no_numbers_are_refused(value: float, arithmetic: Arithmetic) -> None:
    logits = smooth_logits(3, (4, 5, 6))
    logits[1, 2, 3, 4] = value
    with pytest.raises(UnsuitableVolume, match="the network's answer"):
        label_volume([source(logits, taps_to((4, 5, 6), (4, 5, 6)))], Rule(), arithmetic, 2)


def test_rounding_is_that_of_float16() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.standard_normal(2000) * scale for scale in (1e-7, 1e-5, 1e-3, 1.0, 100.0, 2e4)])
    values = values[np.abs(values) < kernels.HIGHEST_HALF].astype(np.float32)
    rounded = np.array([kernels.halved(value) for value in values])
    assert np.array_equal(rounded, values.astype(np.float16).astype(np.float32))


def test_a_cache_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    """As on a read-only file system: the loops are compiled for this process alone."""
    code = """
import numba.core.caching as caching
def refuse(self, *_):
    raise OSError(30, "Read-only file system")
caching.IndexDataCacheFile.save = refuse
from engines.inference import kernels
kernels.warm_up()
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(kernels.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
