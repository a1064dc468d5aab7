"""Slices with outlines: grey by modality, pixels made square, coloured contours of even width."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from engines.volume import LabelMap, Reorientation, Volume
from node.domain.instance import SourceFrame
from node.domain.planes import StackGeometry
from node.domain.segments import SegmentDescription

Colour = tuple[int, int, int]

_CT_WINDOWS = {"39607008": (-600.0, 1500.0), "91609006": (400.0, 2000.0)}
"""Centre and width in HU by the type of the organ: lung, bone."""
_CT_SOFT_TISSUE = (40.0, 400.0)
_OUTLINE_PX = 2.0
"""Half the width of an outline."""
_RADIOLOGICAL = "IPL"
"""Axis codes in which every plane is shown: head up, patient's left on the viewer's right."""
_PANEL_PX = 420
_MARGIN_PX = 14
_TITLE_PX = 26
_LEAST_LINE_PX, _LARGEST_LINE_PX = 18, 28
"""Height of a line of the legend."""
_PAPER: Colour = (12, 14, 18)
_INK: Colour = (235, 235, 235)
_UNNAMED: tuple[Colour, ...] = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0))
"""For labels without a description."""


@dataclass(frozen=True, eq=False)
class Crop:
    """A rectangle of a slice, drawn with square pixels.

    Attributes
    ----------
    pixels
        uint8, (H, W, 3), RGB.
    mm_per_pixel
        Of the drawing, in both directions.
    """

    pixels: NDArray[np.uint8]
    mm_per_pixel: float


def window(values: NDArray[np.float32], modality: str, type_code: str = "") -> tuple[float, float]:
    """The grey range for a picture: for CT a fixed window by organ, else what lies between the 1st and 99.5th centile.

    Parameters
    ----------
    values
        float32, any shape; HU where modality is CT.
    """
    if modality == "CT":
        centre, width = _CT_WINDOWS.get(type_code, _CT_SOFT_TISSUE)
        return centre - width / 2, centre + width / 2
    low, high = np.percentile(values, (1.0, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def frame_image(
    volume: Volume, geometry: StackGeometry, frames: Sequence[SourceFrame], index: int
) -> NDArray[np.float32]:
    """The values of one source frame: float32, (rows, columns).

    A volume that was resampled for tilt or uneven steps is read where the frame lies.
    """
    plane = _plane_affine(geometry, frames[index])
    to_grid = np.linalg.inv(volume.grid.affine) @ plane
    ideal = np.array([[0, 0, index], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float)
    if volume.grid.shape == (len(frames), geometry.rows, geometry.columns) and np.abs(to_grid - ideal).max() < 1e-2:
        return np.asarray(volume.voxels[index])
    j, i = np.mgrid[: geometry.rows, : geometry.columns]
    points = to_grid @ np.stack([j.ravel(), i.ravel(), np.ones(j.size)])
    values = ndimage.map_coordinates(volume.voxels, points[:3], order=1, mode="nearest")
    return np.asarray(values, dtype=np.float32).reshape(geometry.rows, geometry.columns)


def organ_crop(
    image: NDArray[np.float32],
    mask: NDArray[np.bool_],
    spacing_mm: tuple[float, float],
    *,
    grey: tuple[float, float],
    colour: Colour,
    size_px: int,
) -> Crop:
    """An organ and what surrounds it, with its outline.

    Parameters
    ----------
    image, mask
        (rows, columns).
    spacing_mm
        Between rows, between columns.
    size_px
        Of the longer side of the drawing.
    """
    rows, columns = _surroundings(mask, spacing_mm)
    extent = (rows.stop - rows.start) * spacing_mm[0], (columns.stop - columns.start) * spacing_mm[1]
    mm_per_pixel = max(extent) / size_px
    shape = max(1, round(extent[0] / mm_per_pixel)), max(1, round(extent[1] / mm_per_pixel))
    pixels = _grey(image[rows, columns], grey, shape)
    return Crop(outlined(pixels, mask[rows, columns], colour), mm_per_pixel)


def overlay_png(
    volume: Volume,
    label_map: LabelMap,
    segments: Mapping[str, SegmentDescription],
    volumes: Mapping[int, str] | None = None,
    unreported: Collection[int] = (),
) -> bytes:
    """One picture: an axial, a coronal and a sagittal plane through as many organs as can be, outlines, and a legend.

    Parameters
    ----------
    segments
        Colours and labels by name; labels that are not in it get a colour of their own.
    volumes
        In words, such as `>= 117 mL`, by label: written into the legend.
    unreported
        Labels to leave out, such as the body.

    Returns
    -------
    A PNG file.
    """
    turn = Reorientation.between(volume.grid.axis_codes, _RADIOLOGICAL)
    voxels, labels = turn.apply(volume.voxels), turn.apply(label_map.labels)
    spacing = turn.grid(volume.grid).spacing_mm
    grey = window(voxels, volume.modality)
    colours = _colours(label_map, segments, unreported)
    panels = [_panel(voxels, labels, spacing, axis, grey=grey, colours=colours) for axis in range(3)]
    legend = _legend(label_map, segments=segments, colours=colours, volumes=volumes or {})
    width = 3 * _PANEL_PX + 5 * _MARGIN_PX + legend.width
    sheet = Image.new("RGB", (width, _PANEL_PX + 2 * _MARGIN_PX + _TITLE_PX), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (title, panel) in enumerate(zip(("Axial", "Coronal", "Sagittal"), panels, strict=True)):
        left = _MARGIN_PX + place * (_PANEL_PX + _MARGIN_PX)
        at = left + (_PANEL_PX - panel.width) // 2, _MARGIN_PX + _TITLE_PX + (_PANEL_PX - panel.height) // 2
        sheet.paste(panel, at)
        draw.text((left, _MARGIN_PX - 2), title, fill=_INK, font=ImageFont.load_default(18))
    sheet.paste(legend, (3 * _PANEL_PX + 4 * _MARGIN_PX, _MARGIN_PX + _TITLE_PX))
    file = BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _plane_affine(geometry: StackGeometry, frame: SourceFrame) -> NDArray[np.float64]:
    """float64, (4, 3): (j, i, 1) of a frame to patient coordinates, LPS mm."""
    affine = np.zeros((4, 3))
    affine[:3, 0] = np.array(geometry.column_direction) * geometry.pixel_spacing_mm[0]
    affine[:3, 1] = np.array(geometry.row_direction) * geometry.pixel_spacing_mm[1]
    affine[:3, 2] = frame.frame.position_mm or (0.0, 0.0, 0.0)
    affine[3, 2] = 1.0
    return affine


def _surroundings(mask: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> tuple[slice, slice]:
    """A square part of the slice around an organ: two and a half times its extent, at least 90 mm, within the image."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    spans = ((rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1))
    longest = max((stop - start) * step for (start, stop), step in zip(spans, spacing_mm, strict=True))
    side = max(90.0, 2.5 * longest)
    cut = []
    for (start, stop), step, length in zip(spans, spacing_mm, mask.shape, strict=True):
        wanted = min(length, round(side / step))
        first = min(max(0, round((start + stop - wanted) / 2)), length - wanted)
        cut.append(slice(first, first + wanted))
    return cut[0], cut[1]


def _grey(image: NDArray[np.float32], grey: tuple[float, float], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """A windowed image, resampled to a shape, as RGB."""
    low, high = grey
    levels = (np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    drawn = Image.fromarray(levels).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.repeat(np.asarray(drawn)[:, :, None], 3, axis=2)


def outlined(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour) -> NDArray[np.uint8]:
    """The picture with the border of a mask drawn over it, smooth at the edges."""
    shape = pixels.shape[1], pixels.shape[0]
    fine = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(shape, Image.Resampling.BILINEAR)) >= 128
    if not fine.any():
        fine = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(shape, Image.Resampling.NEAREST)) > 0
    if not fine.any() or fine.all():
        return pixels
    distance = np.where(fine, ndimage.distance_transform_edt(fine), ndimage.distance_transform_edt(~fine)) - 0.5
    cover = np.clip(_OUTLINE_PX + 0.5 - distance, 0, 1)[:, :, None]
    mixed = pixels * (1 - cover) + np.array(colour) * cover
    return np.asarray(np.round(mixed), dtype=np.uint8)


def _colours(
    label_map: LabelMap, segments: Mapping[str, SegmentDescription], unreported: Collection[int]
) -> dict[int, Colour]:
    """A colour for each label that is shown."""
    return {
        label: segments[name].colour if name in segments else _UNNAMED[label % len(_UNNAMED)]
        for label, name in sorted(label_map.names.items())
        if label not in unreported
    }


def _panel(
    voxels: NDArray[np.float32],
    labels: NDArray[np.generic],
    spacing: tuple[float, float, float],
    axis: int,
    *,
    grey: tuple[float, float],
    colours: Mapping[int, Colour],
) -> Image.Image:
    """The plane across an axis that shows most of most organs."""
    others = tuple(other for other in range(3) if other != axis)
    shown = np.zeros(labels.shape[axis])
    for label in colours:
        area = np.count_nonzero(labels == label, axis=others)
        shown += area / max(1, area.max())
    place = int(shown.argmax())
    image, plane = np.take(voxels, place, axis), np.take(labels, place, axis)
    extent = [length * spacing[other] for length, other in zip(image.shape, others, strict=True)]
    shape = max(1, round(_PANEL_PX * extent[0] / max(extent))), max(1, round(_PANEL_PX * extent[1] / max(extent)))
    pixels = _grey(image, grey, shape)
    for label in np.unique(plane):
        if int(label) in colours:
            pixels = outlined(pixels, plane == label, colours[int(label)])
    return Image.fromarray(pixels)


def _legend(
    label_map: LabelMap,
    *,
    segments: Mapping[str, SegmentDescription],
    colours: Mapping[int, Colour],
    volumes: Mapping[int, str],
) -> Image.Image:
    """Swatch, name and volume of every label: as high as a panel, in as many columns as that takes."""
    line = max(_LEAST_LINE_PX, min(_LARGEST_LINE_PX, _PANEL_PX // max(1, len(colours))))
    font = ImageFont.load_default(min(16, line - 5))
    texts = {label: _legend_text(label_map.names[label], segments, volumes.get(label)) for label in colours}
    column = line + _MARGIN_PX + math.ceil(max((font.getlength(text) for text in texts.values()), default=0))
    per_column = _PANEL_PX // line
    drawn = Image.new("RGB", (max(1, column * math.ceil(len(texts) / per_column)), _PANEL_PX), _PAPER)
    draw = ImageDraw.Draw(drawn)
    for place, (label, text) in enumerate(texts.items()):
        left, top = place // per_column * column, place % per_column * line
        draw.rectangle((left, top, left + line - 8, top + line - 8), fill=colours[label])
        draw.text((left + line, top - 2), text, fill=_INK, font=font)
    return drawn


def _legend_text(name: str, segments: Mapping[str, SegmentDescription], volume: str | None) -> str:
    label = segments[name].label if name in segments else name
    return label if volume is None else f"{label}  {volume}"
