"""The phantom scanner's DICOM: valid, complete, deterministic, and as awkward as it is told to be."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from node.domain.routing import SELFTEST_PATIENT_PREFIX
from node.selftest.phantom import CT, MR, STANDARD, Contrast, image_on, rotation
from node.selftest.scanner import Acquisition, chosen, datasets, enhanced, moved, planes_around, write_series

COARSE = planes_around(turn=rotation(12.0, -7.0, 9.0), pixel_mm=(4.0, 3.5), step_mm=8.0)


def _validator() -> str:
    return shutil.which("dciodvfy", path=str(Path(sys.executable).parent)) or "dciodvfy"


@pytest.mark.parametrize("contrast", [CT, MR], ids=["CT", "MR"])
def test_images_pass_dciodvfy(tmp_path: Path, contrast: Contrast) -> None:
    path = write_series(Acquisition(COARSE, contrast), tmp_path)[7]
    run = subprocess.run([_validator(), "-new", str(path)], capture_output=True, text=True, check=False)
    assert [line for line in (run.stdout + run.stderr).splitlines() if line.startswith("Error")] == []


@pytest.mark.parametrize("contrast", [CT, MR], ids=["CT", "MR"])
@pytest.mark.parametrize("rescale_per_slice", [False, True])
def test_stored_values_give_back_the_image(contrast: Contrast, rescale_per_slice: bool) -> None:
    acquisition = Acquisition(COARSE, contrast, rescale_per_slice=rescale_per_slice, seed=3)
    expected = image_on(STANDARD, COARSE, contrast)
    slopes = set()
    for ds, plane in zip(datasets(acquisition), expected, strict=True):
        slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
        slopes.add(slope)
        values = ds.pixel_array * slope + intercept
        lowest = -1024 if contrast.modality == "CT" else 0
        assert np.abs(values - np.maximum(plane, lowest)).max() <= slope / 2 + 1e-3
    assert (len(slopes) > 1) == rescale_per_slice


def test_identity_and_geometry(tmp_path: Path) -> None:
    acquisition = Acquisition(COARSE, CT, study="unit")
    images = [dcmread(path) for path in write_series(acquisition, tmp_path)]
    assert {ds.PatientID for ds in images} == {f"{SELFTEST_PATIENT_PREFIX}-UNIT"}
    assert len({ds.SOPInstanceUID for ds in images}) == len(images)
    assert {ds.SeriesInstanceUID for ds in images} == {acquisition.series_instance_uid}
    for ds, origin in zip(images, COARSE.origins_mm, strict=True):
        assert np.array(ds.ImagePositionPatient, dtype=float) == pytest.approx(origin, abs=1e-6)
        assert list(map(float, ds.PixelSpacing)) == [4.0, 3.5]
        cosines = np.array(ds.ImageOrientationPatient, dtype=float)
        assert np.cross(cosines[:3], cosines[3:]) == pytest.approx(COARSE.normal, abs=1e-9)


def test_the_same_acquisition_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_series(Acquisition(COARSE, MR, seed=4), tmp_path / "a")
    second = write_series(Acquisition(COARSE, MR, seed=4), tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    other = write_series(Acquisition(COARSE, MR, seed=5), tmp_path / "c")
    assert dcmread(other[0]).SOPInstanceUID != dcmread(first[0]).SOPInstanceUID


def test_series_of_one_study_share_patient_and_frame_of_reference() -> None:
    images = [next(datasets(Acquisition(COARSE, contrast, study="one"))) for contrast in (CT, MR)]
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert images[0][keyword].value == images[1][keyword].value
    assert images[0].SeriesInstanceUID != images[1].SeriesInstanceUID


def test_missing_doubled_reversed_moved_and_tilted_planes() -> None:
    count = len(COARSE.origins_mm)
    order = [n for n in reversed(range(count)) if n != 5] + [3]
    positions = [ds.ImagePositionPatient for ds in datasets(Acquisition(chosen(COARSE, order), CT))]
    assert len(positions) == count
    assert np.array(positions[-1], dtype=float) == pytest.approx(COARSE.origins_mm[3], abs=1e-6)
    jitter = np.linspace(0, 0.5, count)
    assert (moved(COARSE, jitter).origins_mm - COARSE.origins_mm) @ COARSE.normal == pytest.approx(jitter)
    tilted = planes_around(tilt_deg=15.0)
    step = tilted.origins_mm[1] - tilted.origins_mm[0]
    angle = np.degrees(np.arccos(step @ tilted.normal / np.linalg.norm(step)))
    assert angle == pytest.approx(15.0)


def test_echoes_are_in_one_series() -> None:
    images = list(datasets(Acquisition(COARSE, MR, echo_times_ms=(5.0, 25.0))))
    assert len(images) == 2 * len(COARSE.origins_mm)
    assert {float(ds.EchoTime) for ds in images} == {5.0, 25.0}
    assert len({ds.SeriesInstanceUID for ds in images}) == 1
    assert images[-1].pixel_array.max() < images[0].pixel_array.max() or images[-1].pixel_array.mean() > 0


@pytest.mark.parametrize("contrast", [CT, MR], ids=["CT", "MR"])
def test_enhanced_object_has_the_same_frames(tmp_path: Path, contrast: Contrast) -> None:
    acquisition = Acquisition(COARSE, contrast)
    path = tmp_path / "enhanced.dcm"
    enhanced(acquisition).save_as(path, enforce_file_format=True)
    ds = dcmread(path)
    single = list(datasets(acquisition))
    assert np.array_equal(ds.pixel_array, np.stack([image.pixel_array for image in single]))
    for groups, image in zip(ds.PerFrameFunctionalGroupsSequence, single, strict=True):
        assert groups.PlanePositionSequence[0].ImagePositionPatient == image.ImagePositionPatient
