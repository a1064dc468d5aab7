"""What a case will take, told beforehand: it grows with what it should grow with, and memory not with length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from engines.backends.base import Engine, Placement
from engines.inference.estimate import activation_bytes
from engines.inference.segmenter import Segmenter
from engines.model.bundle import Bundle
from engines.model.plan import Plan
from engines.volume import Grid, Volume


@pytest.fixture
def segmenter(make_bundle: Callable[..., Bundle]) -> Segmenter:
    return Segmenter.open(make_bundle(mirroring=True), Engine("torch"), Placement(threads=1))


def grid(*shape: int) -> Grid:
    d, h, w = shape
    return Grid((d, h, w), np.eye(4))


def test_patches_are_those_that_are_computed(segmenter: Segmenter) -> None:
    """Windows, times flips; what the network was asked for in truth."""
    seen = 0
    network = segmenter._members["small"].networks[0]
    answers = network.answers

    def counted(patches):
        nonlocal seen
        for answer in answers(patches):
            seen += 1
            yield answer

    network.answers = counted
    volume = Volume(grid(9, 20, 12), np.random.default_rng(0).random((9, 20, 12), dtype=np.float32), "MR")
    told = segmenter.estimate(volume.grid)
    segmenter.seconds_per_patch["small"] = 1000.0
    segmenter.segment(volume)
    assert 0 < segmenter.seconds_per_patch["small"] < 10
    assert told.patches == seen > 8
    assert told.seconds == pytest.approx(told.patches * segmenter._members["small"].tested_s)
    again = segmenter.estimate(volume.grid)
    assert again.seconds == pytest.approx(again.patches * segmenter.seconds_per_patch["small"])


def test_sums_do_not_grow_with_the_length_of_the_scan(segmenter: Segmenter) -> None:
    short, long = segmenter.estimate(grid(100, 64, 64)), segmenter.estimate(grid(1100, 64, 64))
    # Image and label map do: float32 of one channel, as crop, turned and as result; labels twice.
    assert long.memory_bytes - short.memory_bytes <= 1000 * 64 * 64 * (3 * 4 + 2)
    assert long.patches > 10 * short.patches
    assert short.device_bytes == 0


def test_what_computes_beside_each_other_is_held_beside_each_other(plan: Plan) -> None:
    one = activation_bytes(plan, Placement(), 3)
    assert activation_bytes(plan, Placement(lanes=3), 3) > 2 * one
    assert activation_bytes(plan, Placement(device="cuda", batch=4), 3) == 4 * activation_bytes(
        plan, Placement(device="cuda"), 3
    )
    assert activation_bytes(plan, Placement(precision="bfloat16"), 3) < one < activation_bytes(plan, Placement(), 118)
    assert activation_bytes(replace(plan, patch_size=(16, 16, 16)), Placement(), 3) == 8 * one
