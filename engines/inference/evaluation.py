"""Labelled cases segmented and scored: Dice and volume agreement, case by case and label by label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from engines.errors import UnsuitableVolume
from engines.inference.cases import ENDINGS, Case, find_cases
from engines.inference.fastest import FastestSegmenter
from engines.inference.segmenter import Segmenter
from engines.measures import dice, label_volumes_ml, volume_agreement
from engines.nifti import read_label_map
from engines.volume import LabelMap


@dataclass(frozen=True)
class LabelScore:
    """One label of one case."""

    case: str
    label: int
    name: str
    dice: float
    reported_ml: float
    true_ml: float

    @property
    def volume_agreement(self) -> float:
        """1 is perfect; see `engines.measures`."""
        return volume_agreement(self.reported_ml, self.true_ml)


@dataclass(frozen=True)
class LabelledCase:
    """An image and its true labels."""

    image: Case
    label: Path

    @property
    def name(self) -> str:
        """The image's."""
        return self.image.name


def pair_cases(images: Path, labels: Path, channels: int = 1) -> tuple[LabelledCase, ...]:
    """The cases of two folders: every label file, with the image of its name, as `find_cases` names it.

    Raises
    ------
    UnsuitableVolume
        Where there is no label file, or one has no image, or an image lacks a channel.
    """
    found = {case.name: case for case in find_cases(images, channels)}
    cases = []
    for label in sorted(labels.iterdir()) if labels.is_dir() else []:
        ending = next((e for e in ENDINGS if label.name.endswith(e)), None)
        if ending is None or label.name.startswith("."):
            continue
        name = label.name.removesuffix(ending)
        if name not in found:
            raise UnsuitableVolume(f"{label}: no image {name}{ending} or {name}_0000{ending} in {images}")
        cases.append(LabelledCase(found[name], label))
    if not cases:
        raise UnsuitableVolume(f"{labels}: no label file in it")
    return tuple(cases)


def evaluate(
    segmenter: Segmenter | FastestSegmenter,
    cases: Sequence[LabelledCase],
    progress: Callable[[str], None] | None = None,
) -> Iterator[LabelScore]:
    """Segment each case and score every label that the model reports.

    Raises
    ------
    UnsuitableVolume
        Where a file cannot be read, or an image and its labels lie on different grids.
    """
    for number, case in enumerate(cases, start=1):
        if progress is not None:
            progress(f"{number}/{len(cases)} {case.name}")
        volumes = case.image.read(segmenter.bundle.modalities[0])
        truth = read_label_map(case.label, segmenter.bundle.labels)
        if not volumes[0].grid.same_as(truth.grid, tolerance_mm=0.1):
            raise UnsuitableVolume(f"{case.label}: does not lie on the grid of {case.image.files[0]}")
        found = segmenter.segment(volumes).label_map
        yield from score(case.name, found, truth, segmenter.bundle.unreported)


def score(case: str, found: LabelMap, truth: LabelMap, unreported: Sequence[int] = ()) -> Iterator[LabelScore]:
    """Compare two label maps of one shape, label by label."""
    voxel_ml = truth.grid.voxel_ml
    reported, true = label_volumes_ml(found.labels, voxel_ml), label_volumes_ml(truth.labels, voxel_ml)
    for label, name in found.names.items():
        if label not in unreported:
            overlap = dice(np.asarray(found.labels == label), np.asarray(truth.labels == label))
            yield LabelScore(case, label, name, overlap, reported.get(label, 0.0), true.get(label, 0.0))


def summary(scores: Sequence[LabelScore]) -> dict[str, float]:
    """Mean Dice and mean volume agreement, of all labels and of each; labels that a case lacks are left out of both."""
    there = [each for each in scores if each.true_ml > 0]
    figures: dict[str, float] = {}
    for name in dict.fromkeys(each.name for each in there):
        own = [each for each in there if each.name == name]
        figures[f"dice {name}"] = fmean(each.dice for each in own)
        figures[f"volume agreement {name}"] = fmean(each.volume_agreement for each in own)
    if there:
        figures["dice"] = fmean(each.dice for each in there)
        figures["volume agreement"] = fmean(each.volume_agreement for each in there)
    figures["cases"] = float(len({each.case for each in scores}))
    return figures
