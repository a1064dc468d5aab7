"""Windows cover, sums average, flips and folds are means, and a long scan is only arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import pytest
import torch

from engines.errors import OutOfDeviceMemory
from engines.inference.sliding_window import Windowing, gaussian, planes, window_count, window_starts, windows

BOX = (8, 8, 8)


class Computed:
    """A network that is one function of a patch."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.function = function
        self.seen = 0

    def answers(self, patches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for patch in patches:
            self.seen += 1
            yield self.function(patch)


def identity() -> Computed:
    """Two classes: the image and its negative."""
    return Computed(lambda patch: torch.cat([patch, -patch]))


def constant(value: float) -> Computed:
    return Computed(lambda patch: torch.full((2, *patch.shape[1:]), value))


def whole(image: torch.Tensor, networks: list[Computed], windowing: Windowing) -> torch.Tensor:
    """Every plane, divided, side by side."""
    return torch.stack([plane.sums / plane.weights for plane in planes(image, networks, windowing)], dim=1)


@pytest.mark.parametrize("size", [8, 9, 11, 12, 13, 20, 21, 333, 2000])
def test_windows_cover_and_are_at_most_half_a_patch_apart(size: int) -> None:
    starts = window_starts(size, 8)
    assert (starts[0], starts[-1]) == (0, size - 8)
    assert all(0 < b - a <= 4 for a, b in pairwise(starts))


def test_two_thousand_slices() -> None:
    placed = windows((2000, 64, 64), (64, 64, 64))
    assert len(placed) == window_count((2000, 64, 64), (64, 64, 64)) == 62
    assert placed[-1] == (slice(1936, 2000), slice(0, 64), slice(0, 64))


def test_2d_windows_meet_each_slice() -> None:
    placed = windows((3, 8, 12), (8, 8))
    assert len(placed) == window_count((3, 8, 12), (8, 8)) == 6
    assert placed[:2] == [(slice(0, 1), slice(0, 8), slice(0, 8)), (slice(0, 1), slice(0, 8), slice(4, 12))]


def test_windows_of_an_image_smaller_than_the_patch() -> None:
    assert window_count((3, 8, 1), BOX) == 1
    assert window_count((20, 3, 9), (8, 8)) == 20 * 2


def test_gaussian_is_never_zero() -> None:
    bell = gaussian((64, 64, 64))
    assert bell.dtype == torch.float16
    assert float(bell.max()) == 10.0
    assert float(bell.min()) > 0


@pytest.mark.parametrize("shape", [(8, 8, 8), (3, 8, 1), (17, 9, 12), (41, 8, 8)])
@pytest.mark.parametrize("patch", [BOX, (8, 8), (4, 6, 8)])
def test_average_of_what_each_window_says(shape: tuple[int, int, int], patch: tuple[int, ...]) -> None:
    image = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    answer = whole(image, [identity()], Windowing(patch, 2))
    assert answer.shape == (2, *shape)
    assert torch.allclose(answer, torch.cat([image, -image]), atol=1e-5)


def test_memory_does_not_grow_with_the_length_of_the_scan() -> None:
    """Of 400 planes no more than a patch are open; a plane is whole while the next is looked at."""
    image = torch.randn((1, 400, 8, 8))
    held = set()
    before = None
    for z, plane in enumerate(planes(image, [identity()], Windowing(BOX, 2))):
        held.add(plane.sums.untyped_storage().data_ptr())
        if before is not None:
            assert torch.allclose(before.sums[0] / before.weights, image[0, z - 1], atol=1e-5)
        before = plane
    assert z == 399
    # The ring, and copies of the last plane of each group, which are freed as soon as nobody looks.
    assert len(held) < 20


def test_a_plane_comes_before_later_windows_are_computed() -> None:
    network = identity()
    next(planes(torch.randn((1, 400, 8, 8)), [network], Windowing(BOX, 2)))
    assert network.seen == 1


def test_mean_over_flips_and_folds() -> None:
    """A network that answers its own position sees every flip cancel it."""
    ramp = torch.arange(8.0).view(1, 8, 1, 1).expand(2, *BOX)
    image = torch.zeros((1, *BOX))
    flipped = whole(image, [Computed(lambda patch: ramp + 0 * patch)], Windowing(BOX, 2, mirroring_axes=(0, 2)))
    assert torch.allclose(flipped, torch.full_like(flipped, 3.5))
    folds = whole(torch.zeros((1, 19, 8, 8)), [constant(1), constant(4)], Windowing(BOX, 2))
    assert torch.allclose(folds, torch.full_like(folds, 2.5))


def test_features_of_folds_stay_side_by_side() -> None:
    found = whole(torch.zeros((1, 19, 9, 8)), [constant(1), constant(4)], Windowing(BOX, 2, side_by_side=True))
    assert found.shape == (4, 19, 9, 8)
    expected = torch.tensor([1.0, 1, 4, 4]).view(4, 1, 1, 1).expand_as(found)
    assert torch.allclose(found, expected)


def test_answers_in_float16_are_summed_in_float32() -> None:
    """A card answers in float16."""
    image = torch.randn((1, 19, 9, 8))
    answer = whole(image, [Computed(lambda patch: torch.cat([patch, -patch]).half())], Windowing(BOX, 2))
    assert answer.dtype == torch.float32
    assert torch.allclose(answer[0], image[0], atol=2e-3)


def test_progress_ends_at_one() -> None:
    heard: list[float] = []
    list(planes(torch.zeros((1, 8, 8, 20)), [identity()], Windowing(BOX, 2), heard.append))
    assert heard == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_no_room_for_the_sums() -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"no room for sums of .* GiB on cpu"):
        next(planes(torch.zeros((1, 64, 64, 64)), [identity()], Windowing(BOX, 10**9)))
