"""Images in a folder, by nnU-Net's naming: CASE.nii.gz, or CASE_0000.nii.gz with a file for each channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.errors import UnsuitableVolume
from engines.nifti import read_volume
from engines.volume import Volume

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
_FIRST = "_0000"


@dataclass(frozen=True)
class Case:
    """One image."""

    name: str
    files: tuple[Path, ...]
    """One for each channel, in the model's order."""

    def read(self, modality: str) -> tuple[Volume, ...]:
        """The channels, on one grid.

        Raises
        ------
        UnsuitableVolume
            Where a file cannot be read, has voxels that are not finite, or lies on another grid than the first.
        """
        volumes = tuple(read_volume(path, modality) for path in self.files)
        for path, volume in zip(self.files, volumes, strict=True):
            if not np.isfinite(volume.voxels).all():
                raise UnsuitableVolume(f"{path}: holds voxels that are not finite; mend the image or leave it out")
            if not volume.grid.same_as(volumes[0].grid):
                raise UnsuitableVolume(f"{path}: does not lie on the grid of {self.files[0].name}")
        return volumes


def find_cases(folder: Path, channels: int) -> tuple[Case, ...]:
    """The images of a folder, by name. A model of one channel takes files with and without `_0000`.

    Raises
    ------
    UnsuitableVolume
        Where there is no folder, no image in it, or an image lacks a channel.
    """
    if not folder.is_dir():
        raise UnsuitableVolume(f"{folder}: there is no such folder of images")
    found: dict[str, Case] = {}
    for path in sorted(folder.iterdir()):
        ending = next((each for each in ENDINGS if path.name.endswith(each)), None)
        if ending is None or path.name.startswith("."):
            continue
        stem = path.name.removesuffix(ending)
        if channels == 1:
            name = stem.removesuffix(_FIRST)
            found[name] = Case(name, (path,))
        elif stem.endswith(_FIRST):
            name = stem.removesuffix(_FIRST)
            found[name] = Case(name, _channels(folder, name, ending, channels))
    if not found:
        wanted = f"CASE{_FIRST}.nii.gz to CASE_{channels - 1:04d}.nii.gz" if channels > 1 else "CASE.nii.gz"
        raise UnsuitableVolume(f"{folder}: no image in it; needed: {wanted}")
    return tuple(found.values())


def _channels(folder: Path, name: str, ending: str, channels: int) -> tuple[Path, ...]:
    files = tuple(folder / f"{name}_{number:04d}{ending}" for number in range(channels))
    if missing := [path.name for path in files if not path.is_file()]:
        raise UnsuitableVolume(f"{folder / missing[0]}: is missing; the model needs {channels} channels of {name}")
    return files


def only_or_all(volumes: Sequence[Volume]) -> Volume | Sequence[Volume]:
    """What a segmenter is handed: one volume by itself, several channels as a sequence."""
    return volumes[0] if len(volumes) == 1 else volumes
