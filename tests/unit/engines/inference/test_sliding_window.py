"""Windows cover, sums average, flips and folds are means, and a long scan is only arithmetic."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from engines.errors import OutOfDeviceMemory, UnsuitableVolume
from engines.inference.sliding_window import Windowing, gaussian, predict, window_starts, windows


def identity(patches: torch.Tensor) -> torch.Tensor:
    """Two classes: the image and its negative."""
    return torch.cat([patches, -patches], dim=1)


@pytest.mark.parametrize("size", [8, 9, 11, 12, 13, 20, 21, 333, 2000])
def test_windows_cover_and_are_at_most_half_a_patch_apart(size: int) -> None:
    starts = window_starts(size, 8)
    assert (starts[0], starts[-1]) == (0, size - 8)
    assert all(0 < b - a <= 4 for a, b in pairwise(starts))


def test_two_thousand_slices() -> None:
    placed = windows((2000, 64, 64), (64, 64, 64))
    assert len(placed) == 62
    assert placed[-1] == (slice(1936, 2000), slice(0, 64), slice(0, 64))


def test_2d_windows_meet_each_slice() -> None:
    placed = windows((3, 8, 12), (8, 8))
    assert len(placed) == 6
    assert placed[:2] == [(0, slice(0, 8), slice(0, 8)), (0, slice(0, 8), slice(4, 12))]


def test_gaussian_is_never_zero() -> None:
    bell = gaussian((64, 64, 64))
    assert bell.dtype == torch.float16
    assert float(bell.max()) == 10.0
    assert float(bell.min()) > 0


@pytest.mark.parametrize("shape", [(8, 8, 8), (3, 8, 1), (17, 9, 12)])
@pytest.mark.parametrize("batch", [1, 3])
def test_average_of_what_each_window_says(shape: tuple[int, int, int], batch: int) -> None:
    image = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0)).half().float()
    answer = predict(image, [identity], Windowing((8, 8, 8), 2, batch=batch))
    assert answer.shape == (2, *shape)
    assert torch.allclose(answer, torch.cat([image, -image]), atol=2e-3)
    assert torch.equal(answer, answer.half().float())


def test_2d_network_over_a_volume() -> None:
    image = torch.randn((1, 5, 9, 12))
    answer = predict(image, [identity], Windowing((8, 8), 2, batch=4))
    assert torch.allclose(answer[0], image[0], atol=2e-3)


def test_mean_over_flips_and_folds() -> None:
    """A network that answers its own position sees every flip cancel it."""
    ramp = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(1, 2, 8, 8, 8)
    image = torch.zeros((1, 8, 8, 8))
    flipped = predict(image, [lambda patches: ramp + 0 * patches], Windowing((8, 8, 8), 2, mirroring_axes=(0, 2)))
    assert torch.allclose(flipped, torch.full_like(flipped, 3.5))
    folds = predict(image, [lambda patches: 0 * ramp + 1, lambda patches: 0 * ramp + 4], Windowing((8, 8, 8), 2))
    assert torch.allclose(folds, torch.full_like(folds, 2.5))


def test_progress_ends_at_one() -> None:
    heard: list[float] = []
    predict(torch.zeros((1, 8, 8, 20)), [identity], Windowing((8, 8, 8), 2), heard.append)
    assert heard == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_answers_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(UnsuitableVolume, match="the network's answer"):
        predict(torch.zeros((1, 8, 8, 8)), [lambda patches: identity(patches) + value], Windowing((8, 8, 8), 2))


def test_no_room_for_the_sums() -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"GiB: 1000000000 classes"):
        predict(torch.zeros((1, 64, 64, 64)), [identity], Windowing((8, 8, 8), 10**9))
