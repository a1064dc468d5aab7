"""Scores of labelled cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.backends.base import Engine, Placement
from engines.errors import UnsuitableVolume
from engines.inference.evaluation import evaluate, pair_cases, score, summary
from engines.inference.segmenter import Segmenter
from engines.model.bundle import Bundle
from engines.nifti import write_label_map, write_volume
from engines.volume import Grid, LabelMap, Volume

NAMES = {1: "liver", 2: "spleen"}


def label_map(*counts: int) -> LabelMap:
    labels = np.zeros(100, dtype=np.uint8)
    start = 0
    for label, count in enumerate(counts, start=1):
        labels[start : start + count] = label
        start += count
    return LabelMap(Grid((1, 10, 10), np.diag([10.0, 10.0, 10.0, 1.0])), labels.reshape(1, 10, 10), NAMES)


def test_score_and_summary() -> None:
    scores = [*score("a", label_map(8, 2), label_map(10, 0)), *score("b", label_map(10, 10), label_map(10, 10))]
    first = scores[0]
    assert (first.case, first.name) == ("a", "liver")
    assert (first.reported_ml, first.true_ml) == pytest.approx((8.0, 10.0))
    assert first.dice == pytest.approx(16 / 18)
    assert first.volume_agreement == pytest.approx(0.8)
    figures = summary(scores)
    assert figures["cases"] == 2
    assert figures["dice spleen"] == 1.0  # case a has none: not part of the mean
    assert figures["volume agreement liver"] == pytest.approx(0.9)


def test_unreported_labels_are_not_scored() -> None:
    assert [each.label for each in score("a", label_map(8, 2), label_map(8, 2), unreported=[1])] == [2]


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    grid = Grid((6, 8, 8), np.eye(4)[[2, 1, 0, 3]])
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    voxels = np.random.default_rng(0).standard_normal((6, 8, 8)).astype(np.float32)
    write_volume(tmp_path / "images/one_0000.nii.gz", Volume(grid, voxels, "MR"))
    write_label_map(tmp_path / "labels/one.nii.gz", LabelMap(grid, (voxels > 1).astype(np.uint8), NAMES))
    return tmp_path


def test_evaluate_a_folder(make_bundle: Callable[..., Bundle], cases: Path) -> None:
    said: list[str] = []
    with Segmenter.open(make_bundle(), Engine.parse("torch"), Placement(threads=1)) as segmenter:
        scores = list(evaluate(segmenter, pair_cases(cases / "images", cases / "labels"), said.append))
    assert [(each.case, each.label) for each in scores] == [("one", 1), ("one", 2)]
    assert said == ["1/1 one"]


def test_label_without_image_and_empty_folder(cases: Path, tmp_path: Path) -> None:
    (cases / "images/one_0000.nii.gz").rename(cases / "images/other_0000.nii.gz")
    with pytest.raises(UnsuitableVolume, match=r"no image one\.nii\.gz"):
        pair_cases(cases / "images", cases / "labels")
    with pytest.raises(UnsuitableVolume, match="no label file"):
        pair_cases(cases / "images", tmp_path / "gone")


def test_other_grid_is_refused(make_bundle: Callable[..., Bundle], cases: Path) -> None:
    grid = Grid((6, 8, 8), np.diag([2.0, 1.0, 1.0, 1.0]))
    write_label_map(cases / "labels/one.nii.gz", LabelMap(grid, np.zeros((6, 8, 8), dtype=np.uint8), NAMES))
    with (
        Segmenter.open(make_bundle(), Engine.parse("torch"), Placement(threads=1)) as segmenter,
        pytest.raises(UnsuitableVolume, match="does not lie on the grid"),
    ):
        list(evaluate(segmenter, pair_cases(cases / "images", cases / "labels")))
