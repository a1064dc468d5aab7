"""NIfTI in and out, and the ITK-SNAP label file. SimpleITK turns NIfTI's RAS into LPS: the only home of that turn."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from engines.errors import UnsuitableVolume
from engines.volume import Grid, LabelMap, Volume

_HEADER = 348
_SHEAR_TOLERANCE = 1e-3
"""Largest cosine between two axes that still counts as a right angle; NIfTI headers hold float32."""


def read_volume(path: Path, modality: str) -> Volume:
    """One image file as a volume: voxels float32, (D, H, W), in the file's own order, on a grid in LPS mm.

    Raises
    ------
    UnsuitableVolume
        Where the file cannot be read or was cut short, is not 3D, or holds an axis direction that is not orthonormal.
    """
    image = _read(path)
    return Volume(_grid(image, path), sitk.GetArrayFromImage(image).astype(np.float32, copy=False), modality)


def read_label_map(path: Path, names: Mapping[int, str]) -> LabelMap:
    """One label file as a label map.

    Raises
    ------
    UnsuitableVolume
        As `read_volume`, and where a voxel is not a whole number from 0 to 65535.
    """
    image = _read(path)
    voxels = sitk.GetArrayFromImage(image)
    whole = voxels.astype(np.uint16)
    if not np.array_equal(whole, voxels):
        raise UnsuitableVolume(f"{path}: labels must be whole numbers from 0 to 65535")
    narrow = int(whole.max()) < 256
    return LabelMap(_grid(image, path), whole.astype(np.uint8) if narrow else whole, names)


def read_axis_codes(path: Path) -> str | None:
    """How one image file lies, as `Grid.axis_codes`; None of a picture of two dimensions. Its voxels are not read.

    Raises
    ------
    UnsuitableVolume
        Where the file cannot be read, has more dimensions, or holds an axis direction that is not orthonormal.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UnsuitableVolume(f"{path}: cannot be read as an image") from error
    if reader.GetDimension() == 2:
        return None
    if reader.GetDimension() != 3:
        raise UnsuitableVolume(f"{path}: has {reader.GetDimension()} dimensions; one 3D image is needed")
    return _grid(reader, path).axis_codes


def write_volume(path: Path, volume: Volume) -> None:
    """Write the voxels of a volume as float32.

    Raises
    ------
    UnsuitableVolume
        Where the grid is sheared: an ITK image cannot hold it.
    """
    _write(path, volume.grid, volume.voxels)


def write_label_map(path: Path, label_map: LabelMap) -> None:
    """Write the labels in their own integer type.

    Raises
    ------
    UnsuitableVolume
        Where the grid is sheared: an ITK image cannot hold it.
    """
    _write(path, label_map.grid, label_map.labels)


def write_itksnap_labels(path: Path, names: Mapping[int, str], colours: Mapping[int, tuple[int, int, int]]) -> None:
    """Write the label description file that ITK-SNAP loads beside a label map.

    Parameters
    ----------
    names
        Name of each label, background left out.
    colours
        Red, green and blue, 0 to 255, of each label in `names`.
    """
    lines = ["# ITK-SnAP Label Description File", "# IDX -R- -G- -B- -A- VIS MSH LABEL"]
    lines.append('    0     0    0    0        0  0  0    "Clear Label"')
    for label, name in sorted(names.items()):
        red, green, blue = colours[label]
        quoted = re.sub(r'["\r\n]', " ", name)
        lines.append(f'{label:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{quoted}"')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read(path: Path) -> sitk.Image:
    _check_whole(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else "unknown reason"
        raise UnsuitableVolume(f"{path}: cannot be read as an image: {reason}") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UnsuitableVolume(f"{path}: has {image.GetDimension()} dimensions; one 3D image of one channel is needed")
    return image


def _check_whole(path: Path) -> None:
    """Refuse a NIfTI file that was cut short: ITK fills what is missing with zeros, and says nothing."""
    try:
        if path.name.endswith(".nii.gz"):
            with gzip.open(path) as stream:
                header, size = stream.read(_HEADER), _HEADER
                while part := stream.read(1 << 24):
                    size += len(part)
        elif path.name.endswith(".nii"):
            with path.open("rb") as stream:
                header, size = stream.read(_HEADER), path.stat().st_size
        else:
            return
    except FileNotFoundError:
        return  # the reader says so
    except (EOFError, OSError, zlib.error) as error:
        raise UnsuitableVolume(f"{path}: cut short or damaged: {error}") from error
    if size < _whole_bytes(header):
        raise UnsuitableVolume(f"{path}: cut short: {size} bytes, its header speaks of {_whole_bytes(header)}")


def _whole_bytes(header: bytes) -> int:
    """How long a NIfTI-1 or NIfTI-2 file must be, by its header; 0 where that is no header of either."""
    for order in "<>":
        if len(header) >= _HEADER and struct.unpack_from(f"{order}i", header)[0] == 348:
            dim, bits = struct.unpack_from(f"{order}8h", header, 40), struct.unpack_from(f"{order}h", header, 72)[0]
            offset = struct.unpack_from(f"{order}f", header, 108)[0]
        elif len(header) >= _HEADER and struct.unpack_from(f"{order}i", header)[0] == 540:
            dim, bits = struct.unpack_from(f"{order}8q", header, 16), struct.unpack_from(f"{order}h", header, 14)[0]
            offset = struct.unpack_from(f"{order}q", header, 168)[0]
        else:
            continue
        voxels: int = prod(max(int(n), 1) for n in dim[1 : 1 + dim[0]])
        return int(offset) + voxels * int(bits) // 8
    return 0


def _grid(image: sitk.Image | sitk.ImageFileReader, path: Path) -> Grid:
    """The grid of an ITK image: its (i, j, k) axes in reverse, its world already LPS."""
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = (direction * np.array(image.GetSpacing()))[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    width, height, depth = image.GetSize()
    try:
        return Grid((depth, height, width), affine)
    except ValueError as error:
        raise UnsuitableVolume(f"{path}: {error}") from error


def _write(path: Path, grid: Grid, array: NDArray[np.generic]) -> None:
    spacing = np.array(grid.spacing_mm)
    direction = grid.affine[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > _SHEAR_TOLERANCE:
        raise UnsuitableVolume(f"{path}: the grid is sheared, which this format cannot hold")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing([float(step) for step in spacing[::-1]])
    image.SetDirection([float(cosine) for cosine in direction[:, ::-1].reshape(-1)])
    image.SetOrigin([float(x) for x in grid.affine[:3, 3]])
    sitk.WriteImage(image, str(path), useCompression=True)
