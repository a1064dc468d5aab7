"""NIfTI in and out: LPS inside, RAS in the file, every voxel where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from engines.errors import UnsuitableVolume
from engines.nifti import read_label_map, read_volume, write_itksnap_labels, write_label_map, write_volume
from engines.volume import Grid, LabelMap, Volume


def oblique_grid(shape: tuple[int, int, int] = (3, 4, 5)) -> Grid:
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]]) @ np.diag([2.5, 0.7, 0.8])
    affine[:3, 3] = [10.0, -20.0, 30.0]
    return Grid(shape, affine)


def test_volume_there_and_back(tmp_path: Path) -> None:
    grid = oblique_grid()
    volume = Volume(grid, np.arange(60, dtype=np.float32).reshape(3, 4, 5), "CT")
    write_volume(tmp_path / "v.nii.gz", volume)
    again = read_volume(tmp_path / "v.nii.gz", "CT")
    assert again.grid.same_as(grid, tolerance_mm=1e-3)
    assert np.array_equal(again.voxels, volume.voxels)
    assert again.modality == "CT"


def test_file_holds_ras(tmp_path: Path) -> None:
    """A voxel one step to the patient's left lies at smaller x in NIfTI, whatever our own frame is."""
    write_volume(tmp_path / "v.nii", Volume(Grid((2, 2, 2), np.eye(4)[[2, 1, 0, 3]]), np.zeros((2, 2, 2)), "MR"))
    header = (tmp_path / "v.nii").read_bytes()[:348]
    srow_x, srow_y, srow_z = np.frombuffer(header[280:328], dtype="<f4").reshape(3, 4)
    assert srow_x[0] == -1.0
    assert srow_y[1] == -1.0
    assert srow_z[2] == 1.0


def test_label_map_there_and_back(tmp_path: Path) -> None:
    labels = np.zeros((3, 4, 5), dtype=np.uint16)
    labels[1, 2, 3] = 300
    write_label_map(tmp_path / "l.nii.gz", LabelMap(oblique_grid(), labels, {300: "rib"}))
    again = read_label_map(tmp_path / "l.nii.gz", {300: "rib"})
    assert again.labels.dtype == np.uint16
    assert np.array_equal(again.labels, labels)


def test_labels_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "l.nii.gz", Volume(oblique_grid(), np.full((3, 4, 5), 0.5), "CT"))
    with pytest.raises(UnsuitableVolume, match="whole numbers"):
        read_label_map(tmp_path / "l.nii.gz", {})


def test_sheared_grid_is_refused(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    with pytest.raises(UnsuitableVolume, match="sheared"):
        write_volume(tmp_path / "v.nii.gz", Volume(Grid((2, 2, 2), affine), np.zeros((2, 2, 2)), "CT"))


def test_garbage_and_4d_are_refused(tmp_path: Path) -> None:
    (tmp_path / "g.nii.gz").write_bytes(b"not an image")
    with pytest.raises(UnsuitableVolume, match=r"g\.nii\.gz"):
        read_volume(tmp_path / "g.nii.gz", "CT")
    sitk.WriteImage(sitk.Image([2, 2, 2, 2], sitk.sitkInt16), str(tmp_path / "four.nii.gz"))
    with pytest.raises(UnsuitableVolume, match="4 dimensions"):
        read_volume(tmp_path / "four.nii.gz", "MR")


@pytest.mark.data
def test_hippocampus_set_is_sar(test_data: Path) -> None:
    """The bundle's orientation: slices grow to S, rows to A, columns to R."""
    path = next((test_data / "train-mr-hippocampus/imagesTr").glob("*.nii.gz"))
    assert read_volume(path, "MR").grid.axis_codes == "SAR"


def test_itksnap_labels(tmp_path: Path) -> None:
    path = tmp_path / "organs.label.txt"
    write_itksnap_labels(path, {2: 'right "upper" lobe', 1: "liver"}, {1: (255, 0, 10), 2: (1, 2, 3)})
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert [line.split()[:7] for line in lines] == [
        ["0", "0", "0", "0", "0", "0", "0"],
        ["1", "255", "0", "10", "1", "1", "1"],
        ["2", "1", "2", "3", "1", "1", "1"],
    ]
    assert lines[1].endswith('"liver"')
    assert lines[2].count('"') == 2


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, ending: str) -> None:
    """ITK would fill it with zeros and say nothing."""
    path = tmp_path / f"image{ending}"
    voxels = np.random.default_rng(0).standard_normal((12, 13, 14)).astype(np.float32)
    write_volume(path, Volume(Grid((12, 13, 14), np.eye(4)), voxels, "MR"))
    assert np.array_equal(read_volume(path, "MR").voxels, voxels)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnsuitableVolume, match="cut short"):
        read_volume(path, "MR")
