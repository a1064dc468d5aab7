"""Scanner to PACS with software of others at both ends: DCMTK sends real series, Orthanc keeps what comes out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest

pytestmark = [pytest.mark.data, pytest.mark.timeout(900)]

EVERYTHING = """
[[rule]]
name = "everything"
model = "phantom"
destinations = ["pacs"]
allow_selftest_model = true
"""
HIPPOCAMPUS = """
[[rule]]
name = "hippocampus"
model = "hippocampus-mr"
when = [{ field = "Modality", op = "eq", value = "MR" }]
destinations = ["pacs"]
"""
SENT = (
    "ct-ge-hispeed-tilt-uneven",
    "ct-philips-ingenuity-study",
    "mr-siemens-prone-hfp",
    "mr-ge-genesis-16",
    "mr-siemens-xa30-enhanced",
)
"""CT and MR, tilted and uneven, sagittal, enhanced multi-frame, with scouts and secondary captures among them."""


def dcmsend(port: int, folder: Path) -> None:
    """Send a folder as DCMTK's user does; any answer but success makes it fail (NET-7)."""
    command = ["/usr/bin/dcmsend", "-aet", "CT1", "-aec", "HILUM", "+sd", "+r", "-nh"]
    done = subprocess.run(
        [*command, "127.0.0.1", str(port), str(folder)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def by_highdicom(seg: Path) -> dict[str, set[tuple[int, int, int]]]:
    """Voxel centres by label, LPS in tenths of a millimetre, from the plane positions (tilted stacks as well)."""
    read = highdicom.seg.segread(seg)
    shared = read.SharedFunctionalGroupsSequence[0]
    found: dict[str, set[tuple[int, int, int]]] = {}
    frames = read.get_stored_frames() if hasattr(read, "get_stored_frames") else read.pixel_array
    frames = frames.reshape(-1, read.Rows, read.Columns)
    names = {int(item.SegmentNumber): str(item.SegmentLabel) for item in read.SegmentSequence}
    for group, frame in zip(read.PerFrameFunctionalGroupsSequence, frames, strict=True):
        orientation = (
            group.PlaneOrientationSequence if "PlaneOrientationSequence" in group else shared.PlaneOrientationSequence
        )[0].ImageOrientationPatient
        measures = (group.PixelMeasuresSequence if "PixelMeasuresSequence" in group else shared.PixelMeasuresSequence)[
            0
        ]
        row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        j, i = np.nonzero(frame)
        between_rows, between_columns = (float(x) for x in measures.PixelSpacing)
        at = origin + np.outer(i * between_columns, row) + np.outer(j * between_rows, column)
        name = names[int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
        found.setdefault(name, set()).update(tuple(p) for p in np.rint(at * 10).astype(int).tolist())
    return found


def test_real_series_go_from_dcmtk_to_orthanc_and_come_out_right(
    orthanc: Any, serve: Callable[[int, str], Any], real_series: Path, tmp_path: Path
) -> None:
    """NET-7, NET-22, ASM-34, ASM-47, ASM-56, RES-3, RES-7."""
    node = serve(orthanc.dicom_port, EVERYTHING)
    for name in SENT:
        dcmsend(node.port, real_series / name)
    sent = {
        str(pydicom.dcmread(path, stop_before_pixels=True, force=True).get("SeriesInstanceUID", ""))
        for name in SENT
        for path in (real_series / name).rglob("*")
        if path.is_file() and path.read_bytes()[128:132] == b"DICM"
    } - {""}
    node.await_end(len(sent))
    with node.journal() as journal:
        seen = journal.list_series(limit=100)
        jobs = journal.list_jobs(limit=100)
    assert {one.series_instance_uid for one in seen} == sent
    assert all(one.outcome for one in seen)
    assert jobs
    assert {job.state for job in jobs} == {"done"}
    reports = orthanc.objects("SR")
    assert len(reports) == len(orthanc.objects("DOC")) == len(jobs)
    segs = orthanc.objects("SEG")
    assert 0 < len(segs) <= len(jobs)
    for number, one in enumerate(segs):
        assert by_highdicom(orthanc.fetch(f"/instances/{one}/file", tmp_path / f"seg{number}.dcm"))


def test_the_hippocampus_crop_is_segmented_and_its_sibling_is_not(
    orthanc: Any, serve: Callable[[int, str], Any], real_series: Path, tmp_path: Path
) -> None:
    """ASM-38, ASM-52, ASM-56, RES-2, RES-8: the crop is 51 x 35 pixels, not a multiple of 8."""
    node = serve(orthanc.dicom_port, HIPPOCAMPUS)
    dcmsend(node.port, real_series / "mr-ge-mr750-brain-study")
    node.await_end(2)
    with node.journal() as journal:
        outcomes = {one.series_instance_uid: one.outcome for one in journal.list_series()}
        (job,) = journal.list_jobs()
    assert job.state == "done"
    assert job.model == "hippocampus-mr"
    assert sorted(outcomes.values())
    (seg,) = orthanc.objects("SEG")
    (report,) = orthanc.objects("SR")
    assert len(orthanc.objects("DOC")) == 1
    seg_path = orthanc.fetch(f"/instances/{seg}/file", tmp_path / "seg.dcm")
    ds = pydicom.dcmread(seg_path)
    assert (ds.Rows, ds.Columns) == (51, 35)
    source = {str(item.SeriesInstanceUID) for item in ds.ReferencedSeriesSequence}
    assert len(source) == 1
    volumes = tid1500(orthanc.fetch(f"/instances/{report}/file", tmp_path / "sr.dcm"), tmp_path)
    assert volumes
    assert all(0.3 < ml < 4 for ml in volumes.values()), volumes
    assert {name: len(found) for name, found in by_highdicom(seg_path).items()}


def tid1500(report: Path, folder: Path) -> dict[str, float]:
    """Volumes in mL by tracking identifier, as dcmqi's tid1500reader reads them."""
    out = folder / "sr.json"
    subprocess.run(
        ["tid1500reader", "--inputDICOM", str(report), "--outputMetadata", str(out)], check=True, capture_output=True
    )
    read = json.loads(out.read_text())
    return {
        group["TrackingIdentifier"]: float(item["value"])
        for group in read["Measurements"]
        for item in group.get("measurementItems", [])
    }
