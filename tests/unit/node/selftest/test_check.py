"""The judge of demo and self-test: right results pass; what the demo promises to find is provoked and found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from node.dicom.compose import compose
from node.dicom.composition import Composition, ResultStyle
from node.dicom.headers import read_header, read_source
from node.domain.findings import Provenance, measure
from node.domain.job import ObjectKind
from node.domain.segments import SegmentDescription, load_segments
from node.domain.stack import FrameLabels, Stack, split
from node.selftest.check import compare_with_label_map, judge, read_seg, read_sr, table
from node.selftest.phantom import CT, LABELS, MR, ORGANS, Contrast, rotation
from node.selftest.scanner import Acquisition, planes_around, write_series

PLANES = planes_around(turn=rotation(12.0, -9.0, 11.0), pixel_mm=(2.5, 2.4), step_mm=3.0)
TRUTH = Acquisition(PLANES, CT)
REPORTED = {organ: TRUTH.patient.volume_ml(organ) for organ in ORGANS}


@pytest.fixture(scope="module")
def labels() -> NDArray[np.uint8]:
    found = TRUTH.labels
    found[found == LABELS["body"]] = 0
    return found


@pytest.fixture(scope="module")
def segments() -> Mapping[str, SegmentDescription]:
    return load_segments(Path("dicom_config/segments.csv").read_text(encoding="utf-8"))


def test_the_truth_passes(labels: NDArray[np.uint8]) -> None:
    verdict = judge(TRUTH, labels, REPORTED)
    assert verdict.violations == ()
    assert len(verdict.rows) == len(ORGANS)
    assert all(row.dice == 1.0 for row in verdict.rows)
    assert len(table(verdict.rows).splitlines()) == len(ORGANS) + 1


@pytest.mark.parametrize("factor", [0.969, 1.031])
def test_a_volume_more_than_three_percent_off(labels: NDArray[np.uint8], factor: float) -> None:
    reported = REPORTED | {"spleen": factor * REPORTED["spleen"]}
    assert [v for v in judge(TRUTH, labels, reported).violations if "spleen: volume" in v]
    assert judge(TRUTH, labels, REPORTED | {"spleen": 1.029 * REPORTED["spleen"]}).violations == ()


def test_a_volume_that_is_not_reported(labels: NDArray[np.uint8]) -> None:
    reported = {organ: ml for organ, ml in REPORTED.items() if organ != "liver"}
    assert judge(TRUTH, labels, reported).violations == ("CT liver: the report gives no volume",)


def test_a_dice_below_the_limit(labels: NDArray[np.uint8]) -> None:
    where = np.argwhere(labels == LABELS["liver"])
    worse = labels.copy()
    worse[tuple(where[::9].T)] = 0
    assert any("liver: Dice" in violation for violation in judge(TRUTH, worse, REPORTED).violations)


def test_an_organ_that_is_not_there(labels: NDArray[np.uint8]) -> None:
    without = np.where(labels == LABELS["kidney_left"], 0, labels).astype(np.uint8)
    assert any("no voxel" in violation for violation in judge(TRUTH, without, REPORTED).violations)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_centroid_more_than_a_voxel_away(labels: NDArray[np.uint8], axis: int) -> None:
    moved = np.roll(labels, 2, axis=axis)
    assert any("centroid" in violation for violation in judge(TRUTH, moved, REPORTED).violations)


def test_left_and_right_exchanged(labels: NDArray[np.uint8]) -> None:
    exchange = np.arange(256, dtype=np.uint8)
    exchange[[LABELS["kidney_left"], LABELS["kidney_right"]]] = LABELS["kidney_right"], LABELS["kidney_left"]
    violations = judge(TRUTH, exchange[labels], REPORTED).violations
    assert any("left and right are exchanged" in violation for violation in violations)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flipped_label_map(labels: NDArray[np.uint8], axis: int) -> None:
    assert judge(TRUTH, np.flip(labels, axis), REPORTED).violations != ()


def test_one_voxel_that_differs_from_the_label_map(labels: NDArray[np.uint8]) -> None:
    assert compare_with_label_map("CT", labels, TRUTH.labels) == ()
    other = labels.copy()
    other[20, 30, 30] ^= 1
    assert compare_with_label_map("CT", other, TRUTH.labels) == ("CT: the SEG differs from the label map in 1 voxels",)


@pytest.fixture(scope="module", params=["CT", "MR"])
def composed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, segments: Mapping[str, SegmentDescription]
) -> tuple[Acquisition, Mapping[str, Path]]:
    """A phantom series with its true labels, and what the product's own composers make of them."""
    folder = tmp_path_factory.mktemp(request.param)
    contrast: Contrast = {"CT": CT, "MR": MR}[request.param]
    acquisition = replace(TRUTH, contrast=contrast)
    paths = write_series(acquisition, folder / "images")
    headers = [read_header(path) for path in paths]
    by_uid = {header.sop_instance_uid: path for header, path in zip(headers, paths, strict=True)}
    (stack,) = split(headers)
    assert isinstance(stack, Stack)
    order = [[header.sop_instance_uid for header in headers].index(frame.sop_instance_uid) for frame in stack.frames]
    names = {label: name for name, label in LABELS.items()}
    frame_labels = FrameLabels(acquisition.labels[order], names)
    provenance = Provenance("phantom", "1", "0" * 64, "torch", "float32", "cpu", "test", "1" * 64, "0")
    findings = measure(stack, frame_labels, segments, provenance, unreported={LABELS["body"]})
    sources = [read_source(by_uid[frame.sop_instance_uid]) for frame in stack.frames]
    composition = Composition(
        stack, sources, None, frame_labels, findings, ResultStyle(), "job", 1, datetime(2026, 1, 5, tzinfo=UTC)
    )
    made = compose(composition, folder, segs=frozenset({"binary", "labelmap"}), pdf=False)
    return acquisition, {each.variant: each.path for each in made if each.kind is not ObjectKind.PDF}


@pytest.mark.parametrize("form", ["binary", "labelmap"])
def test_what_the_composers_write_is_read_back_to_the_truth(
    composed: tuple[Acquisition, Mapping[str, Path]], segments: Mapping[str, SegmentDescription], form: str
) -> None:
    acquisition, paths = composed
    labels = read_seg(paths[form], acquisition.planes, segments)
    assert compare_with_label_map("x", labels, acquisition.labels) == ()
    reported = read_sr(paths[f"comprehensive3d-{form}"], segments)
    assert set(reported) == set(ORGANS)
    assert judge(acquisition, labels, reported).violations == ()


def test_a_seg_that_lies_elsewhere_is_refused(
    composed: tuple[Acquisition, Mapping[str, Path]], segments: Mapping[str, SegmentDescription], tmp_path: Path
) -> None:
    acquisition, paths = composed
    ds = dcmread(paths["binary"])
    position = ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    position.ImagePositionPatient = [float(x) + 0.5 for x in position.ImagePositionPatient]
    ds.save_as(tmp_path / "moved.dcm")
    with pytest.raises(ValueError, match="from the nearest image"):
        read_seg(tmp_path / "moved.dcm", acquisition.planes, segments)
