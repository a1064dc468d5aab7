"""Scanner to PACS with software of others at both ends: DCMTK sends real series, Orthanc keeps what comes out."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

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
UNEVEN = ("ct-ge-hispeed-tilt-uneven",)
"""Of them, whose planes an image of one spacing and three right angles, as dcmqi writes it, cannot hold."""


def dcmsend(port: int, folder: Path) -> None:
    """Send a folder as DCMTK's user does; any answer but success makes it fail (NET-7)."""
    command = ["/usr/bin/dcmsend", "-aet", "CT1", "-aec", "HILUM", "+sd", "+r", "-nh"]
    done = subprocess.run(
        [*command, "127.0.0.1", str(port), str(folder)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def by_highdicom(seg: Path) -> dict[int, NDArray[np.float64]]:
    """Voxel centres, LPS mm, by segment number, from the plane positions (tilted and uneven stacks as well)."""
    read = highdicom.seg.segread(seg)
    shared = read.SharedFunctionalGroupsSequence[0]
    found: dict[int, list[NDArray[np.float64]]] = {}
    frames = read.get_stored_frames().reshape(-1, read.Rows, read.Columns)
    for group, frame in zip(read.PerFrameFunctionalGroupsSequence, frames, strict=True):
        orientation = (group if "PlaneOrientationSequence" in group else shared).PlaneOrientationSequence[0]
        measures = (group if "PixelMeasuresSequence" in group else shared).PixelMeasuresSequence[0]
        row, column = np.array(orientation.ImageOrientationPatient, float).reshape(2, 3)
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        between_rows, between_columns = (float(x) for x in measures.PixelSpacing)
        j, i = np.nonzero(frame)
        number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        at = origin + np.outer(i * between_columns, row) + np.outer(j * between_rows, column)
        found.setdefault(number, []).append(at)
    return {number: np.concatenate(points) for number, points in found.items()}


def by_dcmqi(seg: Path, folder: Path) -> sitk.Image:
    """The same object as dcmqi reads it: one image whose values are segment numbers."""
    folder.mkdir()
    command = ["segimage2itkimage", "--inputDICOM", str(seg), "--outputDirectory", str(folder)]
    subprocess.run([*command, "--mergeSegments", "-t", "nrrd"], check=True, capture_output=True, timeout=300)
    return sitk.ReadImage(str(folder / "1.nrrd"))


def differing_voxels(image: sitk.Image, segments: Mapping[int, NDArray[np.float64]]) -> int:
    """How many voxels of an image are not the segments that lie there in patient coordinates."""
    axes = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    found = sitk.GetArrayFromImage(image)
    same = 0
    for number, points in segments.items():
        ideal = np.linalg.solve(axes, (points - np.array(image.GetOrigin())).T).T
        index = np.rint(ideal).astype(int)
        assert np.abs(ideal - index).max() < 0.02
        k, j, i = index[:, ::-1].T
        same += int((found[k, j, i] == number).sum())
    return sum(len(points) for points in segments.values()) - same + abs(int(np.count_nonzero(found)) - same)


def test_real_series_go_from_dcmtk_to_orthanc_and_come_out_right(
    orthanc: Any, serve: Callable[[int, str], Any], real_series: Path, tmp_path: Path
) -> None:
    """NET-7, NET-22, ASM-34, ASM-47, ASM-56, RES-3, RES-7."""
    node = serve(orthanc.dicom_port, EVERYTHING)
    for name in SENT:
        dcmsend(node.port, real_series / name)
    named = {
        str(pydicom.dcmread(path, stop_before_pixels=True, force=True).get("SeriesInstanceUID", "")): name
        for name in SENT
        for path in (real_series / name).rglob("*")
        if path.is_file() and path.read_bytes()[128:132] == b"DICM"
    }
    sent = set(named) - {""}
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
    compared = set()
    for number, one in enumerate(segs):
        path = orthanc.fetch(f"/instances/{one}/file", tmp_path / f"seg{number}.dcm")
        segments = by_highdicom(path)
        assert segments
        source = named[str(pydicom.dcmread(path).ReferencedSeriesSequence[0].SeriesInstanceUID)]
        if source not in UNEVEN:
            assert differing_voxels(by_dcmqi(path, tmp_path / f"dcmqi{number}"), segments) == 0, source
            compared.add(source)
    assert compared


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
    assert differing_voxels(by_dcmqi(seg_path, tmp_path / "dcmqi"), by_highdicom(seg_path)) == 0


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """DCMTK's receiver; its port and its folder."""
    folder = tmp_path / "storescp"
    folder.mkdir()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
    process = subprocess.Popen(["/usr/bin/storescp", "-aet", "PACS", "-od", str(folder), str(port)])
    yield port, folder
    process.terminate()
    process.wait(30)


def test_orthanc_and_storescu_send_and_storescp_receives(
    orthanc: Any, storescp: tuple[int, Path], serve: Callable[[int, str], Any], real_series: Path, tmp_path: Path
) -> None:
    """NET-7, NET-22, NET-24: each peer at the other end of the road as well."""
    port, kept = storescp
    node = serve(port, EVERYTHING)
    crop = sorted((real_series / "mr-ge-mr750-brain-study/13-HippoCrop").glob("*"))
    wrist = sorted((real_series / "mr-ge-genesis-16").glob("*"))
    orthanc.forward(crop, "HILUM", node.port)
    command = ["/usr/bin/storescu", "-aet", "CT1", "-aec", "HILUM", "127.0.0.1", str(node.port)]
    subprocess.run([*command, *map(str, wrist)], check=True, capture_output=True, timeout=120)
    node.await_end(2)
    with node.journal() as journal:
        seen = {one.sender.calling_ae_title: one.instances for one in journal.list_series()}
        jobs = journal.list_jobs()
        frozen = {o.sop_instance_uid: o.path for job in jobs for o in journal.show_job(job.id).objects}
    assert seen == {"PACS": len(crop), "CT1": len(wrist)}
    assert [job.state for job in jobs] == ["done", "done"]
    received = [(path, pydicom.dcmread(path)) for path in sorted(kept.iterdir())]
    assert sorted(ds.Modality for _, ds in received) == ["DOC", "DOC", "SEG", "SEG", "SR", "SR"]
    for number, (path, ds) in enumerate(received):
        assert ds == pydicom.dcmread(frozen[ds.SOPInstanceUID]), "what arrived is not what was frozen"
        if ds.Modality == "SEG":
            assert differing_voxels(by_dcmqi(path, tmp_path / f"dcmqi{number}"), by_highdicom(path)) == 0


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
