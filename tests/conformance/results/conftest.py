"""Compositions made from phantoms on disk, and independent validators and readers for the results."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import Dataset

from engines.volume import Volume
from node.dicom.composition import Composition, ResultStyle
from node.dicom.headers import read_header, read_source
from node.dicom.pixels import read_volume
from node.domain.findings import Provenance, measure, segment_numbers
from node.domain.planes import Lattice
from node.domain.segments import SegmentDescription, load_segments
from node.domain.stack import FrameLabels, Stack, split
from node.selftest import scanner
from node.selftest.phantom import CT, LABELS, labels_on

SEGMENTS = load_segments((Path(__file__).parents[3] / "dicom_config" / "segments.csv").read_text(encoding="utf-8"))
PROVENANCE = Provenance(
    model_name="phantom",
    model_version="1.0.0",
    model_digest="a1" * 32,
    backend="openvino",
    precision="float32",
    device="CPU",
    backend_reason="openvino float32: taken, 0.05 s a patch, certified against torch float32 2.13.0 on 2026-11-30, "
    "certificate 0123456789ab; torch float32: slower, 0.2 s a patch",
    config_digest="b2" * 32,
    software_version="0.1.0",
    versions="openvino 2026.4.1, torch 2.13.0",
    way="sums in memory",
)
Edit = Callable[[Dataset, int], None]
Relabel = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def _composed_from(
    files: list[Path],
    acquisition: scanner.Acquisition,
    relabel: Relabel | None,
    names: Mapping[int, str] | None,
    segments: Mapping[str, SegmentDescription],
    unreported: tuple[int, ...],
    changes: dict[str, Any],
) -> Composition:
    headers = [read_header(path) for path in files]
    paths = {header.sop_instance_uid: path for header, path in zip(headers, files, strict=True)}
    (stack,) = split(headers)
    assert isinstance(stack, Stack), stack
    labels = _labels(stack, acquisition)
    frame_labels = FrameLabels(relabel(labels) if relabel else labels, names or {v: k for k, v in LABELS.items()})
    volume: Volume = read_volume(stack, paths)[0]
    provenance = changes.pop("provenance", PROVENANCE)
    findings = measure(stack, frame_labels, segments, provenance, unreported=unreported)
    composition = Composition(
        stack=stack,
        sources=[read_source(paths[uid]) for uid in dict.fromkeys(frame.sop_instance_uid for frame in stack.frames)],
        volume=volume,
        labels=frame_labels,
        findings=findings,
        style=ResultStyle(),
        job_key="phantom",
        revision=1,
        made_at=datetime(2026, 7, 1, 12, 30, tzinfo=UTC),
    )
    return dataclasses.replace(composition, **changes)


def _labels(stack: Stack, acquisition: scanner.Acquisition) -> NDArray[np.uint8]:
    """The true labels in the order of the stack's frames."""
    positions = np.array([frame.frame.position_mm for frame in stack.frames])
    order = [int(np.linalg.norm(acquisition.planes.origins_mm - position, axis=1).argmin()) for position in positions]
    return labels_on(acquisition.patient, scanner.chosen(acquisition.planes, order))


@pytest.fixture
def small() -> scanner.Acquisition:
    """The standard patient in 30 coarse slices: 56 rows x 67 columns, not a multiple of 8 pixels."""
    return scanner.Acquisition(scanner.planes_around(pixel_mm=(4.0, 4.0), step_mm=8.0), CT)


@pytest.fixture
def composition_of(tmp_path: Path) -> Callable[..., Composition]:
    """Builds a composition from an acquisition that was written to disk and read again.

    Keyword arguments: `edit(dataset, n)` changes each image before it is written; `relabel(labels)` the labels;
    `names`, `segments`, `unreported` as for `measure`; `enhanced` writes one multi-frame object; others replace fields.
    """
    made = 0

    def build(acquisition: scanner.Acquisition, **options: Any) -> Composition:
        nonlocal made
        made += 1
        folder = tmp_path / f"source{made}"
        folder.mkdir()
        images = [scanner.enhanced(acquisition)] if options.pop("enhanced", False) else scanner.datasets(acquisition)
        edit: Edit = options.pop("edit", lambda *_: None)
        files = []
        for number, image in enumerate(images):
            edit(image, number)
            files.append(folder / f"{number:04d}.dcm")
            image.save_as(files[-1], enforce_file_format=True)
        relabel, names = options.pop("relabel", None), options.pop("names", None)
        segments, unreported = options.pop("segments", SEGMENTS), options.pop("unreported", (LABELS["body"],))
        return _composed_from(files, acquisition, relabel, names, segments, unreported, options)

    return build


@pytest.fixture(scope="session")
def dciodvfy() -> Callable[[Path], list[str]]:
    """The error lines of `dciodvfy -new` (dicom3tools); deflated and compressed data need no decoding there."""

    def errors(path: Path) -> list[str]:
        done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False, timeout=120)
        lines = (done.stdout + done.stderr).splitlines()
        assert any(line in ("Segmentation", "LabelMapSegmentation") or "SR" in line or "PDF" in line for line in lines)
        return [line for line in lines if line.startswith("Error")]

    return errors


@pytest.fixture(scope="session")
def read_by_dcmqi(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], tuple[sitk.Image, list[Any]]]:
    """A SEG as dcmqi reads it: one image whose values are segment numbers, and its description."""

    def read(path: Path) -> tuple[sitk.Image, list[Any]]:
        folder = tmp_path_factory.mktemp("dcmqi")
        command = ["segimage2itkimage", "--inputDICOM", str(path), "--outputDirectory", str(folder)]
        subprocess.run([*command, "--mergeSegments", "-t", "nrrd"], check=True, capture_output=True, timeout=300)
        description = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["segmentAttributes"]
        return sitk.ReadImage(str(folder / "1.nrrd")), description

    return read


@pytest.fixture(scope="session")
def differing_voxels() -> Callable[[sitk.Image, Composition], int]:
    """How many voxels of an image in patient coordinates are not the segment numbers that were to be stored."""

    def count(image: sitk.Image, c: Composition) -> int:
        expected = segment_numbers(c.findings)[c.labels.labels]
        found = sitk.GetArrayFromImage(image)
        to_index = np.linalg.inv(_affine_of(image)) @ _frame_affine(c)
        places = np.argwhere(expected > 0)
        ideal = (to_index @ np.c_[places, np.ones(len(places))].T)[:3].T
        index = np.rint(ideal).astype(int)
        assert np.abs(ideal - index).max() < 0.02
        inside = ((index >= 0) & (index < found.shape)).all(axis=1)
        same = found[tuple(index[inside].T)] == expected[tuple(places[inside].T)]
        return int(len(places) - same.sum()) + abs(int(np.count_nonzero(found)) - len(places))

    return count


def _affine_of(image: sitk.Image) -> NDArray[np.float64]:
    """(k, j, i, 1) to LPS mm."""
    direction = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction[:, ::-1], image.GetOrigin()
    return affine


def _frame_affine(c: Composition) -> NDArray[np.float64]:
    """(k, j, i, 1) of a regular stack to LPS mm."""
    geometry = c.stack.geometry
    assert geometry.lattice is Lattice.REGULAR
    first, last = (np.array(c.stack.frames[n].frame.position_mm) for n in (0, -1))
    affine = np.eye(4)
    affine[:3, 0] = (last - first) / max(1, len(c.stack.frames) - 1)
    affine[:3, 1] = np.array(geometry.column_direction) * geometry.pixel_spacing_mm[0]
    affine[:3, 2] = np.array(geometry.row_direction) * geometry.pixel_spacing_mm[1]
    affine[:3, 3] = first
    return affine
