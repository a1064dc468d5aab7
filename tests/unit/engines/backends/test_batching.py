"""Patches gathered into fixed batches, and their answers given one by one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from engines.backends.batching import in_batches


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [1, 3])
def test_every_patch_is_answered_in_order(count: int, size: int) -> None:
    images = torch.full((size, 1, 2), -1.0)
    seen = []

    def compute() -> torch.Tensor:
        seen.append(images.clone())
        return images * 10

    patches = [torch.full((1, 2), float(number + 1)) for number in range(count)]
    answers = [float(answer[0, 0]) for answer in in_batches(patches, images, compute)]
    assert answers == [10.0 * (number + 1) for number in range(count)]
    assert len(seen) == -(-count // size)


def test_what_a_short_batch_leaves_is_zero() -> None:
    images = torch.zeros((3, 1, 1))
    for _ in in_batches([torch.ones((1, 1))] * 4, images, lambda: images):
        pass
    assert images.flatten().tolist() == [1.0, 0.0, 0.0]


def test_one_buffer_may_hold_every_patch() -> None:
    images, buffer = torch.zeros((2, 1, 1)), torch.zeros((1, 1))

    def patches() -> Iterator[torch.Tensor]:
        for number in range(5):
            yield buffer.fill_(number)

    assert [int(answer) for answer in in_batches(patches(), images, images.clone)] == [0, 1, 2, 3, 4]
