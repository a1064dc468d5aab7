"""Only the largest piece stays, as nnunetv2's own function has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from engines.backends.base import Engine, Placement
from engines.inference.postprocessing import postprocess
from engines.inference.segmenter import Segmenter
from engines.model.bundle import Bundle
from engines.volume import Grid, Volume


@given(st.integers(0, 2**32 - 1), st.sampled_from([[(1,)], [(1, 2)], [(2,), (1, 2, 3)], [(4,)]]))
def test_as_nnunet_does_it(seed: int, steps: list[tuple[int, ...]]) -> None:
    """Random labels: touching at corners, equal sizes, a label that is not there."""
    rng = np.random.default_rng(seed)
    labels = (rng.integers(1, 4, (7, 8, 9)) * (rng.random((7, 8, 9)) < rng.uniform(0.02, 0.5))).astype(np.uint8)
    expected = labels
    for step in steps:
        if np.isin(expected, step).any():  # nnunetv2 fails on an empty mask
            expected = remove_all_but_largest_component_from_segmentation(expected, list(step))
    assert np.array_equal(postprocess(labels.copy(), steps), expected)


def test_the_segmenter_applies_it(make_bundle: Callable[..., Bundle], results: Path) -> None:
    grid = Grid((24, 24, 24), np.diag([1.0, 1.0, 1.0, 1.0]))
    volume = Volume(grid, np.random.default_rng(1).normal(size=grid.shape).astype(np.float32), "MR")
    with Segmenter.open(make_bundle(), Engine("torch"), Placement()) as segmenter:
        plain = segmenter.segment(volume).label_map.labels
    name = "remove_all_but_largest_component_from_segmentation"
    (results / "postprocessing.json").write_text(
        f'{{"postprocessing_fns": ["{name}"], "postprocessing_kwargs": [{{"labels_or_regions": 2}}]}}'
    )
    with Segmenter.open(make_bundle("cleaned"), Engine("torch"), Placement()) as segmenter:
        cleaned = segmenter.segment(volume).label_map.labels
    assert not np.array_equal(cleaned, plain)
    assert np.array_equal(cleaned, postprocess(plain.copy(), [(2,)]))


@pytest.mark.parametrize("labels", [np.zeros((2, 2, 2), np.uint8), np.ones((1, 1, 1), np.uint16)])
def test_nothing_and_one_voxel(labels: np.ndarray) -> None:
    assert np.array_equal(postprocess(labels.copy(), [(1,)]), labels)
