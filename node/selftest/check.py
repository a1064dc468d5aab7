"""Whether results are right: SEG and SR of a phantom against what is known of it, and against the node's own label map.

SEG and SR are read here with pydicom alone, frame by frame in patient coordinates: none of the code that wrote them
is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from engines.measures import dice
from node.domain.segments import SegmentDescription
from node.selftest.phantom import LABELS, ORGANS, Planes, centroids_mm
from node.selftest.scanner import Acquisition

MAX_VOLUME_ERROR = 0.03
MIN_DICE = 0.95

_SAME_PLACE_MM = 0.01
_SAME_DIRECTION = 1e-4


@dataclass(frozen=True)
class OrganResult:
    """One line of the table."""

    series: str
    organ: str
    true_ml: float
    reported_ml: float | None
    """What the SR says; None where it says nothing."""
    dice: float
    """SEG against the analytic organ."""
    centroid_off_mm: float | None
    """Distance of the SEG's centroid from the analytic one; None where the SEG has no voxel of the organ."""


@dataclass(frozen=True)
class Verdict:
    """What was found, and what is wrong with it: nothing where `violations` is empty."""

    rows: tuple[OrganResult, ...]
    violations: tuple[str, ...]


def judge(truth: Acquisition, labels: NDArray[np.uint8], reported_ml: Mapping[str, float]) -> Verdict:
    """Compare what a SEG and an SR say with the analytic patient.

    Parameters
    ----------
    labels
        From `read_seg`: uint8, on the planes of the acquisition, numbered as `phantom.LABELS`.
    reported_ml
        From `read_sr`, by name of the organ.
    """
    true_labels, planes = truth.labels, truth.planes
    series = truth.contrast.modality
    centres = centroids_mm(labels, planes, list(LABELS.values()))
    rows, violations = [], []
    for organ in ORGANS:
        label, part = LABELS[organ], truth.patient.parts[organ]
        centre = centres.get(label)
        off = None if centre is None else centre - part.centre_mm
        row = OrganResult(
            series,
            organ,
            part.volume_ml,
            reported_ml.get(organ),
            dice(labels == label, true_labels == label),
            None if off is None else float(np.linalg.norm(off)),
        )
        rows.append(row)
        violations += [f"{series} {organ}: {fault}" for fault in _faults(row, off, planes)]
    violations += [f"{series}: {fault}" for fault in _exchanged(labels, true_labels)]
    return Verdict(tuple(rows), tuple(violations))


def _faults(row: OrganResult, off: NDArray[np.float64] | None, planes: Planes) -> Iterator[str]:
    if row.reported_ml is None:
        yield "the report gives no volume"
    elif abs(row.reported_ml - row.true_ml) > MAX_VOLUME_ERROR * row.true_ml:
        yield f"volume {row.reported_ml:.1f} mL, true {row.true_ml:.1f} mL: more than {MAX_VOLUME_ERROR:.0%} apart"
    if not row.dice >= MIN_DICE:
        yield f"Dice {row.dice:.3f}, less than {MIN_DICE}"
    if off is None:
        yield "the segmentation has no voxel of it"
    else:
        edges = planes.voxel_axes_mm
        sizes = np.linalg.norm(edges, axis=1)
        if (np.abs(edges / sizes[:, None] @ off) > sizes).any():
            yield f"centroid {np.linalg.norm(off):.1f} mm off, more than a voxel"


def _exchanged(labels: NDArray[np.uint8], true_labels: NDArray[np.uint8]) -> Iterator[str]:
    """Organs that lie rather where another one truly is: left and right, or any two, exchanged."""
    for organ in ORGANS:
        found = labels == LABELS[organ]
        there = np.bincount(true_labels[found], minlength=max(LABELS.values()) + 1)
        for other in ORGANS:
            if other != organ and there[LABELS[other]] > there[LABELS[organ]]:
                sides = {organ, other} == {"kidney_left", "kidney_right"}
                yield f"{'left and right are exchanged: ' if sides else ''}{organ} lies where {other} truly is"


def compare_with_label_map(series: str, labels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> tuple[str, ...]:
    """Whether a SEG holds exactly the label map that it was made from: both uint8 on the same planes.

    The body is not reported, so it is left out of the label map here.
    """
    reported = np.where(expected == LABELS["body"], 0, expected)
    differing = int(np.count_nonzero(labels != reported))
    if differing:
        return (f"{series}: the SEG differs from the label map in {differing} voxels",)
    return ()


def read_seg(path: Path, planes: Planes, segments: Mapping[str, SegmentDescription]) -> NDArray[np.uint8]:
    """The labels of a BINARY or LABELMAP SEG on the planes of its source: uint8, numbered as `phantom.LABELS`.

    Frames are placed by PlanePositionSequence and PlaneOrientationSequence, segments named by their codes.

    Raises
    ------
    ValueError
        Where a frame lies on none of the planes, has another orientation or pixel size, or a code is unknown.
    """
    ds = dcmread(path)
    names = {int(item.SegmentNumber): _name_of(item, segments) for item in _segments(ds)}
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    if frames.shape[1:] != planes.shape[1:]:
        raise ValueError(f"{path}: frames of {frames.shape[1:]} pixels, the images have {planes.shape[1:]}")
    labels = np.zeros(planes.shape, dtype=np.uint8)
    shared = ds.SharedFunctionalGroupsSequence[0]
    for frame, groups in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        index = _plane_of(shared, groups, planes)
        if ds.SegmentationType == "BINARY":
            number = int(_group(shared, groups, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            labels[index][frame > 0] = LABELS[names[number]]
        else:
            for number, name in names.items():
                labels[index][frame == number] = LABELS[name]
    return labels


def _segments(ds: Dataset) -> list[Dataset]:
    """The segments without the background that a LABELMAP describes as its value 0 or its padding value."""
    padding = ds.get("PixelPaddingValue")
    return [item for item in ds.SegmentSequence if padding is None or int(item.SegmentNumber) != int(padding)]


def _name_of(item: Dataset, segments: Mapping[str, SegmentDescription]) -> str:
    type_item = item.SegmentedPropertyTypeCodeSequence[0]
    modifiers = type_item.get("SegmentedPropertyTypeModifierCodeSequence") or item.get(
        "SegmentedPropertyTypeModifierCodeSequence", []
    )
    return _name_by_codes(str(type_item.CodeValue), [str(code.CodeValue) for code in modifiers], segments)


def _name_by_codes(type_code: str, modifiers: list[str], segments: Mapping[str, SegmentDescription]) -> str:
    for name in LABELS:
        row = segments[name]
        own = [] if row.modifier is None else [row.modifier.value]
        if row.type.value == type_code and own == modifiers:
            return name
    raise ValueError(f"no part of the phantom has type code {type_code} with modifiers {modifiers}")


def _group(shared: Dataset, groups: Dataset, keyword: str) -> Dataset:
    """A functional group's item, of the frame or of all frames (PS3.3 C.7.6.16)."""
    sequence = groups.get(keyword) or shared.get(keyword)
    if not sequence:
        raise ValueError(f"a frame has no {keyword}")
    item: Dataset = sequence[0]
    return item


def _plane_of(shared: Dataset, groups: Dataset, planes: Planes) -> int:
    """The index of the plane on which a frame lies."""
    position = np.array(_group(shared, groups, "PlanePositionSequence").ImagePositionPatient, dtype=np.float64)
    cosines = np.array(_group(shared, groups, "PlaneOrientationSequence").ImageOrientationPatient, dtype=np.float64)
    spacing = np.array(_group(shared, groups, "PixelMeasuresSequence").PixelSpacing, dtype=np.float64)
    steps = np.concatenate([cosines[:3] * spacing[1], cosines[3:] * spacing[0]])
    if np.abs(steps - np.concatenate([planes.row, planes.column])).max() > _SAME_DIRECTION * spacing.max():
        raise ValueError("a frame has another orientation or pixel size than the images")
    distances = np.linalg.norm(planes.origins_mm - position, axis=1)
    index = int(distances.argmin())
    if distances[index] > _SAME_PLACE_MM:
        raise ValueError(f"a frame lies {distances[index]:.2f} mm from the nearest image")
    return index


def read_sr(path: Path, segments: Mapping[str, SegmentDescription]) -> dict[str, float]:
    """The volumes of a TID 1500 report in mL, by the name of the organ that the codes of its group say.

    Raises
    ------
    ValueError
        Where a volume is not in cm3, a code is unknown, or an organ has two volumes.
    """
    found: dict[str, float] = {}
    for group in _containers(dcmread(path), "125007"):
        volumes = [item for item in group.ContentSequence if _concept(item) == "118565006" and item.ValueType == "NUM"]
        if not volumes or not volumes[0].MeasuredValueSequence:
            continue
        measured = volumes[0].MeasuredValueSequence[0]
        unit = str(measured.MeasurementUnitsCodeSequence[0].CodeValue)
        name = _organ_of(group, segments)
        if unit not in ("cm3", "mL") or name in found:
            raise ValueError(f"{path}: {name}: unit {unit}, or a second volume")
        found[name] = float(measured.get("FloatingPointValue", measured.NumericValue))
    return found


def _containers(ds: Dataset, concept: str) -> Iterator[Dataset]:
    for item in ds.get("ContentSequence", []):
        if item.ValueType == "CONTAINER" and _concept(item) == concept:
            yield item
        yield from _containers(item, concept)


def _concept(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else ""


_FINDING, _FINDING_SITE = "121071", "363698007"
_SITE_MODIFIERS = {"272741003", "106233006"}
"""Laterality and topographical modifier, the modifiers of a finding site (TID 1419)."""


def _organ_of(group: Dataset, segments: Mapping[str, SegmentDescription]) -> str:
    """The organ of a measurement group: its finding site where there is one, else its finding, with the modifiers."""
    by_concept = {_concept(item): item for item in group.ContentSequence if item.ValueType == "CODE"}
    item = by_concept.get(_FINDING_SITE) or by_concept.get(_FINDING)
    if item is None:
        raise ValueError("a measurement group names no organ")
    inner = [child for child in item.get("ContentSequence", []) if _concept(child) in _SITE_MODIFIERS]
    beside = [by_concept[concept] for concept in _SITE_MODIFIERS if concept in by_concept]
    modifiers = [str(child.ConceptCodeSequence[0].CodeValue) for child in inner or beside]
    return _name_by_codes(str(item.ConceptCodeSequence[0].CodeValue), modifiers, segments)


def table(rows: tuple[OrganResult, ...]) -> str:
    """The rows for a reader, a line each."""
    lines = [f"{'':4}{'organ':18}{'true mL':>9}{'reported mL':>13}{'off':>8}{'Dice':>8}{'centre off':>12}"]
    for row in rows:
        reported, off, centre = "none", "", ""
        if row.reported_ml is not None:
            reported = f"{row.reported_ml:.1f}"
            off = f"{100 * (row.reported_ml / row.true_ml - 1):+.1f} %"
        if row.centroid_off_mm is not None:
            centre = f"{row.centroid_off_mm:.2f} mm"
        lines.append(f"{row.series:4}{row.organ:18}{row.true_ml:9.1f}{reported:>13}{off:>8}{row.dice:8.3f}{centre:>12}")
    return "\n".join(lines)
