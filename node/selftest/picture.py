"""The picture that a demo ends with: the slice of largest area of each organ, outlined as found and as it truly is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from node.dicom.pictures import outlined
from node.domain.segments import SegmentDescription
from node.selftest.phantom import LABELS, ORGANS, Planes, image_on
from node.selftest.scanner import Acquisition, chosen

_PIXELS_PER_MM = 1.6
_CAPTION = 30
_FONT = ImageFont.load_default(17)
_WINDOWS = {"CT": (-350.0, 1400.0), "MR": (0.0, 950.0)}
_TRUE_COLOUR = (255, 255, 255)


def write_overlay(
    path: Path, acquisition: Acquisition, labels: NDArray[np.uint8], segments: Mapping[str, SegmentDescription]
) -> None:
    """Write a PNG with one tile for each organ.

    Parameters
    ----------
    labels
        What was found: uint8, on the planes of the acquisition, numbered as `phantom.LABELS`.
    """
    truth = acquisition.labels
    tiles = [_tile(acquisition, labels, truth, organ, segments) for organ in ORGANS]
    width, height = tiles[0].size
    sheet = Image.new("RGB", (3 * width, 2 * height))
    for n, tile in enumerate(tiles):
        sheet.paste(tile, (n % 3 * width, n // 3 * height))
    legend = (
        f"Hilum, standard patient, {acquisition.contrast.modality}\n\ncoloured line: the SEG from the archive\n"
        "white dots: the true organ\n\neach organ on the image where it is largest\n\nfor research use only"
    )
    ImageDraw.Draw(sheet).text(
        (2 * width + 40, height + _CAPTION + 40), legend, fill=_TRUE_COLOUR, font=_FONT, spacing=8
    )
    sheet.save(path)


def _tile(
    acquisition: Acquisition,
    labels: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    organ: str,
    segments: Mapping[str, SegmentDescription],
) -> Image.Image:
    areas = np.count_nonzero(truth == LABELS[organ], axis=(1, 2))
    index = int(areas.argmax())
    planes = chosen(acquisition.planes, [index])
    plane = image_on(acquisition.patient, planes, acquisition.contrast, index)[0]
    low, high = _WINDOWS[acquisition.contrast.modality]
    grey = _enlarged(np.clip((plane - low) / (high - low) * 255, 0, 255).astype(np.uint8), planes)
    picture = np.stack([grey] * 3, axis=-1)
    for name in ORGANS:
        picture = outlined(picture, labels[index] == LABELS[name], segments[name].colour)
    dotted = _border(_enlarged((truth[index] == LABELS[organ]).astype(np.uint8) * 255, planes) >= 128)
    rows, columns = np.indices(dotted.shape)
    picture[dotted & ((rows + columns) % 8 < 3)] = _TRUE_COLOUR
    tile = Image.new("RGB", (picture.shape[1], picture.shape[0] + _CAPTION))
    tile.paste(Image.fromarray(picture), (0, _CAPTION))
    caption = f"{segments[organ].label}, image {index + 1}"
    ImageDraw.Draw(tile).text((8, 6), caption, fill=segments[organ].colour, font=_FONT)
    return tile


def _enlarged(plane: NDArray[np.uint8], planes: Planes) -> NDArray[np.uint8]:
    """A plane at its true proportions: uint8, smooth."""
    width = planes.columns * float(np.linalg.norm(planes.row)) * _PIXELS_PER_MM
    height = planes.rows * float(np.linalg.norm(planes.column)) * _PIXELS_PER_MM
    return np.asarray(Image.fromarray(plane).resize((round(width), round(height)), Image.Resampling.BILINEAR))


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The inner border of a mask, a pixel wide."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask))
