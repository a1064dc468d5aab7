"""Images of a folder by nnU-Net's naming, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.errors import UnsuitableVolume
from engines.inference.cases import Case, find_cases, only_or_all
from engines.nifti import write_volume
from engines.volume import Grid, Volume


def image(value: float = 1.0, step: float = 1.0) -> Volume:
    return Volume(Grid((3, 4, 5), np.diag([step, 1, 1, 1])), np.full((3, 4, 5), value, np.float32), "MR")


def names(cases: tuple[Case, ...]) -> dict[str, list[str]]:
    return {case.name: [path.name for path in case.files] for case in cases}


def test_one_channel_with_and_without_its_number(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a_0000.nii.gz", "c.mha", ".hidden.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    assert names(find_cases(tmp_path, 1)) == {"a": ["a_0000.nii.gz"], "b": ["b.nii.gz"], "c": ["c.mha"]}


def test_several_channels_in_their_order(tmp_path: Path) -> None:
    for channel in (1, 0):
        write_volume(tmp_path / f"a_{channel:04d}.nii.gz", image(channel + 1))
    (case,) = find_cases(tmp_path, 2)
    assert names((case,)) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}
    assert [float(volume.voxels[0, 0, 0]) for volume in case.read("MR")] == [1.0, 2.0]


def test_a_missing_channel_is_named(tmp_path: Path) -> None:
    (tmp_path / "a_0000.nii.gz").touch()
    with pytest.raises(UnsuitableVolume, match=r"a_0001\.nii\.gz: is missing; the model needs 2 channels"):
        find_cases(tmp_path, 2)


@pytest.mark.parametrize(("channels", "needed"), [(1, "CASE.nii.gz"), (2, "CASE_0000.nii.gz to CASE_0001.nii.gz")])
def test_no_image_and_no_folder(tmp_path: Path, channels: int, needed: str) -> None:
    with pytest.raises(UnsuitableVolume, match=needed):
        find_cases(tmp_path, channels)
    with pytest.raises(UnsuitableVolume, match="no such folder"):
        find_cases(tmp_path / "absent", channels)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_refused_with_their_file(tmp_path: Path, value: float) -> None:
    """Of a NIfTI file ITK makes them 0 before anybody sees them, for nnU-Net too."""
    voxels = np.ones((3, 4, 5), np.float32)
    voxels[1, 2, 3] = value
    write_volume(tmp_path / "a.mha", Volume(image().grid, voxels, "MR"))
    (case,) = find_cases(tmp_path, 1)
    with pytest.raises(UnsuitableVolume, match=r"a\.mha: holds voxels that are not finite"):
        case.read("MR")


def test_channels_on_two_grids_are_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "a_0000.nii.gz", image())
    write_volume(tmp_path / "a_0001.nii.gz", image(step=2.0))
    (case,) = find_cases(tmp_path, 2)
    with pytest.raises(UnsuitableVolume, match=r"a_0001\.nii\.gz: does not lie on the grid of a_0000\.nii\.gz"):
        case.read("MR")


def test_what_a_segmenter_is_handed() -> None:
    one, other = image(), image()
    assert only_or_all([one]) is one
    assert only_or_all([one, other]) == [one, other]
