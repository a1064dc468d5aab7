"""SEG, SR and PDF on real series: thresholded masks come back through dcmqi where the images lie."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.volume import LabelMap
from node.dicom.compose import compose
from node.dicom.composition import Composition, ResultStyle
from node.dicom.headers import read_header, read_source
from node.dicom.pixels import read_volume, split_series
from node.domain.findings import Provenance, measure
from node.domain.planes import Lattice
from node.domain.segments import load_segments
from node.domain.stack import FrameLabels, Stack

SEGMENTS = load_segments((Path(__file__).parents[3] / "dicom_config" / "segments.csv").read_text(encoding="utf-8"))
NAMES = {1: "liver", 2: "spleen", 3: "kidney_left"}
SERIES = (
    "ct-philips-ingenuity-study/S2010",
    "ct-ge-hispeed-tilt-uneven",
    "icometrix-small/failing_gantrytilting_001",
    "icometrix-small/philips_enhanced_anatomical_001",
    "icometrix-small/generic_compressed_001",
    "mr-ge-genesis-16",
    "mr-ge-mr750-brain-study/13-HippoCrop",
    "mr-philips-dual-echo",
    "mr-siemens-fieldmap-phase",
    "mr-siemens-prone-hfp",
    "mr-siemens-xa30-enhanced/5_anat-T1w_acq-tfl",
)
INHERITED = (
    "PatientSex",
    "PatientAge",
    "StudyID",
    "AccessionNumber",
    "PatientName",
    "PatientID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)
"""Attributes that results copy as they are; what is wrong with them is wrong in the source."""
FOREIGN_UID = "Illegal root for UID"
"""Of the source's instances and series, which results must name as they are."""


def thresholded(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Three labels by brightness, none on the outermost planes."""
    cuts = np.percentile(values, (85, 92, 97))
    labels = np.digitize(values, cuts).astype(np.uint8)
    labels[[0, -1]] = 0
    return labels


@pytest.mark.data
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SERIES)
def test_real_series(
    name: str,
    real_series: Path,
    tmp_path: Path,
    dciodvfy: Callable[[Path], list[str]],
    read_by_dcmqi: Callable[[Path], tuple[Any, list[Any]]],
    differing_voxels: Callable[[Any, Composition], int],
) -> None:
    """RES-3, RES-30: read back by us for every stack, by dcmqi for regular ones; validators find nothing of ours."""
    files = sorted(path for path in (real_series / name).rglob("*") if path.is_file() and path.name != "DIRFILE")
    headers = [read_header(path) for path in files]
    paths = {header.sop_instance_uid: path for header, path in zip(headers, files, strict=True)}
    stack = next(part for part in split_series(headers, paths) if isinstance(part, Stack))
    volume, way_back = read_volume(stack, paths)
    labels: FrameLabels = way_back.labels(LabelMap(volume.grid, thresholded(volume.voxels), NAMES))
    provenance = Provenance("threshold", "1", "a" * 64, "numpy", "float32", "CPU", "", "b" * 64, "0")
    c = Composition(
        stack=stack,
        sources=[read_source(paths[uid]) for uid in dict.fromkeys(frame.sop_instance_uid for frame in stack.frames)],
        volume=volume,
        labels=labels,
        findings=measure(stack, labels, SEGMENTS, provenance),
        style=ResultStyle(),
        job_key="threshold",
        revision=1,
        made_at=datetime(2026, 7, 1, tzinfo=UTC),
    )
    for each in compose(c, tmp_path, frozenset({"binary", "labelmap"})):
        if "labelmap" in each.variant and each.kind == "sr":
            continue
        errors = [line for line in dciodvfy(each.path) if FOREIGN_UID not in line]
        assert [line for line in errors if not any(f"{word}(" in line for word in INHERITED)] == [], each.variant
        if each.kind == "seg" and stack.geometry.lattice is Lattice.REGULAR:
            assert differing_voxels(read_by_dcmqi(each.path)[0], c) == 0
