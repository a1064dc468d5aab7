"""From a stack's files to a volume for the model, and the way back from its labels to the source frames."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.volume import Grid, LabelMap, Volume
from node.dicom.decoding import decoders, frame_digest, stored_frames
from node.domain.instance import InstanceHeader, SourceFrame
from node.domain.planes import axes_of, positions_of
from node.domain.stack import FrameLabels, Lattice, Stack, Unstackable, ambiguous_frames, split
from node.errors import Unsuitable

__all__ = ["AIR_HU", "WayBack", "decoders", "output_values", "read_volume", "split_series"]

AIR_HU = -1000.0
_LEAST_HU = -1024.0
_OUTSIDE_HU = -1500.0
"""CT values from here down are no tissue and no noise but a mark for "outside the field of view" (ASM-44)."""
_MOST_HU = 20_000.0
_ON_VOXEL = 1e-4
"""Nearer than this part of a voxel, a pixel lies on it."""
_MOST_PLANES = 4
"""A resampled grid has at most so many planes for each frame."""

Frame = NDArray[np.float32]
Progress = Callable[[float], None]


def split_series(
    headers: Sequence[InstanceHeader], paths: Mapping[str, Path], unread: Collection[str] = ()
) -> tuple[Stack | Unstackable, ...]:
    """`stack.split`, and once more with pixel digests where frames share a place and no attribute tells them apart.

    Only those frames are decoded; one that cannot be is like no other (ASM-23).

    Parameters
    ----------
    paths
        By SOP Instance UID.
    unread
        SOP Instance UIDs of images of the series whose headers cannot be read.
    """
    parts = split(headers, unread=unread)
    doubtful = ambiguous_frames(parts)
    digests = {}
    for source in doubtful:
        try:
            digest = frame_digest(paths[source.sop_instance_uid], source.header, source.frame.number - 1)
        except Unsuitable:
            continue
        digests[source.sop_instance_uid, source.frame.number] = digest
    return split(headers, digests, unread) if digests else parts


@dataclass(frozen=True, eq=False)
class WayBack:
    """How labels on the model's grid come back to the frames of a stack (ASM-34, ASM-35).

    Attributes
    ----------
    grid
        Of the volume that `read_volume` gave.
    offsets
        float64, (N, 3): plane, row and column of the grid, as fractions, where each frame's first pixel lies. Pixels
        of frame and grid are of one size.
    """

    grid: Grid
    frame_shape: tuple[int, int]
    offsets: NDArray[np.float64]

    def labels(self, label_map: LabelMap) -> FrameLabels:
        """The label of each pixel of each frame, in the order of `Stack.frames`.

        Where a pixel lies between voxels they vote, by the weights of a linear interpolation, so that an outline is
        moved by less than a pixel; where it lies on one, its label is taken.

        Raises
        ------
        ValueError
            Where the label map is on another grid, or has a label beyond 255.
        """
        if not label_map.grid.same_as(self.grid):
            raise ValueError("the label map is not on the grid of the volume")
        if max(label_map.names, default=0) > 255 or int(label_map.labels.max()) > 255:
            raise ValueError("more than 255 labels")
        found = np.zeros((len(self.offsets), *self.frame_shape), dtype=np.uint8)
        for n in range(len(self.offsets)):
            found[n] = _voted(list(self._corners(n, label_map.labels)))
        found.setflags(write=False)
        return FrameLabels(found, label_map.names)

    def _corners(self, n: int, labels: NDArray[np.integer[Any]]) -> Iterator[tuple[float, NDArray[np.integer[Any]]]]:
        """Weight and labels of each of the up to eight voxels around the pixels of a frame."""
        rows, columns = self.frame_shape
        for plane, down, right in itertools.product(*(_neighbours(float(at)) for at in self.offsets[n])):
            (k, wk), (j, wj), (i, wi) = plane, down, right
            yield wk * wj * wi, labels[k, j : j + rows, i : i + columns]


def _neighbours(at: float) -> list[tuple[int, float]]:
    """The indices on both sides and their weights; one, where it is met."""
    low = math.floor(at + _ON_VOXEL)
    part = at - low
    return [(low, 1.0)] if part < _ON_VOXEL else [(low, 1.0 - part), (low + 1, part)]


def _voted(corners: Sequence[tuple[float, NDArray[np.integer[Any]]]]) -> NDArray[np.integer[Any]]:
    """The label with most weight at each pixel; at a draw, that of the corner named first."""
    winner = corners[0][1].copy()
    disputed = np.zeros(winner.shape, dtype=np.bool_)
    for _, labels in corners[1:]:
        disputed |= labels != corners[0][1]
    if not disputed.any():
        return winner
    weights = np.array([weight for weight, _ in corners])
    candidates = np.stack([labels[disputed] for _, labels in corners])
    votes = np.stack([weights @ (candidates == candidate) for candidate in candidates])
    best = votes.argmax(axis=0)
    winner[disputed] = candidates[best, np.arange(len(best))]
    return winner


def read_volume(stack: Stack, paths: Mapping[str, Path], progress: Progress | None = None) -> tuple[Volume, WayBack]:
    """Decode, rescale and place the frames of a stack (ASM-34, ASM-35, ASM-41 to ASM-47).

    Regular stacks are their own grid. Tilted and uneven ones are resampled to a rectilinear grid along the normal that
    holds every frame whole; no more than two source frames are in memory beside the volume.

    Parameters
    ----------
    paths
        By SOP Instance UID.
    progress
        Told the part that is done, 0 to 1.

    Raises
    ------
    Unsuitable
        `undecodable`, `not_hounsfield` or `not_finite`, with the instance.
    """
    frames = _told(_frames_in_order(stack, paths), len(stack.frames), progress)
    if stack.geometry.lattice is Lattice.REGULAR:
        grid, back = _own_grid(stack)
        voxels = np.empty(grid.shape, dtype=np.float32)
        for n, frame in enumerate(frames):
            voxels[n] = frame
    else:
        plan = _plan(stack)
        grid, back = plan.grid, plan.way_back()
        voxels = plan.resample(frames)
        _fill(voxels, stack.frames[0].header.modality)
    modality = stack.frames[0].header.modality
    if modality == "CT":
        _check_hounsfield(voxels)
    return Volume(grid, voxels, modality), back


def volume_bytes(stack: Stack) -> int:
    """What the volume of a stack will take, told from its geometry before a pixel is read: voxels, and their labels."""
    grid = _own_grid(stack)[0] if stack.geometry.lattice is Lattice.REGULAR else _plan(stack).grid
    return (np.dtype(np.float32).itemsize + np.dtype(np.uint8).itemsize) * math.prod(grid.shape)


def _told(frames: Iterator[Frame], count: int, progress: Progress | None) -> Iterator[Frame]:
    for n, frame in enumerate(frames, start=1):
        yield frame
        if progress is not None:
            progress(n / count)


# One frame


def _frames_in_order(stack: Stack, paths: Mapping[str, Path]) -> Iterator[Frame]:
    """Rescaled frames in stack order. Each file is opened once, and closed after its last frame."""
    wanted: dict[str, list[int]] = {}
    for source in stack.frames:
        wanted.setdefault(source.sop_instance_uid, []).append(source.frame.number - 1)
    left = {uid: len(indices) for uid, indices in wanted.items()}
    opened: dict[str, Iterator[NDArray[np.generic]]] = {}
    with ExitStack() as closers:
        for source in stack.frames:
            uid = source.sop_instance_uid
            if uid not in opened:
                decoded = stored_frames(paths[uid], source.header, wanted[uid])
                opened[uid] = closers.enter_context(closing(decoded))  # type: ignore[type-var]
            yield output_values(next(opened[uid]), source)
            left[uid] -= 1
            if left[uid] == 0:
                # Exhausting it lets it close its file now, not at the end of the stack.
                next(opened[uid], None)


def output_values(stored: NDArray[np.generic], source: SourceFrame) -> Frame:
    """Stored values of one frame in output units: float32, (rows, columns), HU for CT (ASM-41 to ASM-46).

    The standard rescale is applied to MR too; Philips' private scale slope (2005,100E) is not, as anatomy models need
    no units (ASM-46).

    Raises
    ------
    Unsuitable
        Where a value is not finite.
    """
    header, frame = source.header, source.frame
    values = _signed(stored, header)
    padding = _padding(stored, values, header)
    if header.photometric_interpretation == "MONOCHROME1":
        values = _inverted(values, header)
    output: Frame = (values * frame.rescale_slope + frame.rescale_intercept).astype(np.float32)
    if not np.isfinite(output).all():
        raise Unsuitable("not_finite", f"instance {header.instance_number} has values that are no numbers")
    if header.modality == "CT":
        output[padding | (output <= _OUTSIDE_HU)] = AIR_HU
        np.maximum(output, _LEAST_HU, out=output)
    elif padding.any():
        output[padding] = output[~padding].min() if not padding.all() else 0.0
    return output


def _signed(stored: NDArray[np.generic], header: InstanceHeader) -> NDArray[np.int64]:
    """Stored values without the bits above HighBit, signed as PixelRepresentation says (ASM-42, PS3.5 8.1.1).

    Old writers kept overlays in the unused high bits; some decoders extend a sign into them.
    """
    values = stored.astype(np.int64)
    bits = header.bits_stored
    native = header.transfer_syntax_uid in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
    if native and header.high_bit + 1 > bits:
        values >>= header.high_bit + 1 - bits
    values &= (1 << bits) - 1
    if header.pixel_representation == 1:
        sign = 1 << (bits - 1)
        values = (values ^ sign) - sign
    return values


def _padding(stored: NDArray[np.generic], values: NDArray[np.int64], header: InstanceHeader) -> NDArray[np.bool_]:
    """Pixels that stand for "nothing was measured here" (PS3.3 C.7.5.1.1.2): PixelPaddingValue to its range limit.

    Some writers pad with a value that needs the unused high bits, so both readings of the stored value are compared.
    """
    if header.pixel_padding_value is None:
        return np.zeros(values.shape, dtype=np.bool_)
    limit = header.pixel_padding_value if header.pixel_padding_limit is None else header.pixel_padding_limit
    low, high = sorted((header.pixel_padding_value, limit))
    whole = stored.astype(np.int64)
    return ((values >= low) & (values <= high)) | ((whole >= low) & (whole <= high))


def _inverted(values: NDArray[np.int64], header: InstanceHeader) -> NDArray[np.int64]:
    """MONOCHROME1: the smallest stored value is the brightest (PS3.3 C.7.6.3.1.2)."""
    return (-1 if header.pixel_representation == 1 else (1 << header.bits_stored) - 1) - values


def _check_hounsfield(voxels: NDArray[np.float32]) -> None:
    """Refuse values that are no Hounsfield units, whatever the header says (ASM-43).

    A CT without its rescale has nothing near air and water at 1024; a sign that was lost has air beyond every bone.
    """
    sample = voxels[:: max(1, len(voxels) // 16), ::4, ::4]
    darkest, bright, brightest = np.percentile(sample, [0.5, 90.0, 99.0])
    if (darkest > -300.0 and bright > 900.0) or brightest > _MOST_HU:
        raise Unsuitable("not_hounsfield", f"the values lie between {darkest:.0f} and {brightest:.0f}")


# The grid


def _own_grid(stack: Stack) -> tuple[Grid, WayBack]:
    """The frames as a grid, placed by a regression over all positions (research R1: never by order alone)."""
    geometry = stack.geometry
    count = len(stack.frames)
    positions = positions_of(stack.frames)
    index = np.arange(count, dtype=np.float64) - (count - 1) / 2
    step = (index @ positions) / (index @ index)
    first = positions.mean(axis=0) - step * (count - 1) / 2
    affine = np.eye(4)
    affine[:3] = np.stack(
        [
            step,
            np.array(geometry.column_direction) * geometry.pixel_spacing_mm[0],
            np.array(geometry.row_direction) * geometry.pixel_spacing_mm[1],
            first,
        ],
        axis=1,
    )
    grid = Grid((count, geometry.rows, geometry.columns), affine)
    shape = (geometry.rows, geometry.columns)
    offsets = np.zeros((count, 3))
    offsets[:, 0] = np.arange(count)
    return grid, WayBack(grid, shape, offsets)


@dataclass(frozen=True, eq=False)
class _Resampling:
    """A rectilinear grid around frames that lie aside of each other, or unevenly.

    Attributes
    ----------
    offsets
        float64, (N, 2): row and column of the grid, as fractions, where each frame's first pixel lies.
    depths
        float64, (N,): where each frame lies along the normal, in planes of the grid; ascending.
    """

    grid: Grid
    frame_shape: tuple[int, int]
    offsets: NDArray[np.float64]
    depths: NDArray[np.float64]

    def way_back(self) -> WayBack:
        depths = np.clip(self.depths, 0, self.grid.shape[0] - 1)
        return WayBack(self.grid, self.frame_shape, np.column_stack([depths, self.offsets]))

    def resample(self, frames: Iterator[Frame]) -> NDArray[np.float32]:
        """Linear along the normal and in the plane; NaN where no frame reaches.

        Each plane of the grid lies between two frames; both are moved in their plane first, so that what is mixed lies
        at one place of the patient.
        """
        voxels = np.empty(self.grid.shape, dtype=np.float32)
        before = at = self._moved(next(frames), 0)
        reached = 0
        for plane in range(self.grid.shape[0]):
            while reached + 1 < len(self.depths) and self.depths[reached] < plane - 1e-6:
                reached += 1
                before, at = at, self._moved(next(frames), reached)
            if reached == 0:
                voxels[plane] = at
                continue
            width = self.depths[reached] - self.depths[reached - 1]
            part = min(1.0, max(0.0, (plane - self.depths[reached - 1]) / width))
            voxels[plane] = _mixed(before, at, part)
        return voxels

    def _moved(self, frame: Frame, number: int) -> Frame:
        """A frame on the rows and columns of the grid, NaN outside it."""
        down, right = self.offsets[number]
        return _along_rows(_along_rows(frame, float(down), self.grid.shape[1]).T, float(right), self.grid.shape[2]).T


def _plan(stack: Stack) -> _Resampling:
    """The smallest rectilinear grid that holds every frame, with their pixels and their usual step."""
    geometry = stack.geometry
    axes = axes_of(stack.frames)
    local = positions_of(stack.frames) @ axes.T
    spacing = np.array(geometry.pixel_spacing_mm)
    # Axis 0 of the local frame is along a row (columns grow), axis 1 along a column (rows grow).
    low = local.min(axis=0)
    offsets = np.stack([(local[:, 1] - low[1]) / spacing[0], (local[:, 0] - low[0]) / spacing[1]], axis=1)
    planes, step = _plane_step(local[:, 2])
    extra_rows, extra_columns = np.ceil(offsets.max(axis=0) - _ON_VOXEL).astype(int)
    shape = (planes, geometry.rows + int(extra_rows), geometry.columns + int(extra_columns))
    affine = np.eye(4)
    affine[:3] = np.stack([axes[2] * step, axes[1] * spacing[0], axes[0] * spacing[1], axes.T @ low], axis=1)
    frame_shape = (geometry.rows, geometry.columns)
    return _Resampling(Grid(shape, affine), frame_shape, offsets, (local[:, 2] - low[2]) / step)


def _plane_step(distances: NDArray[np.float64]) -> tuple[int, float]:
    """Number of planes and their step in mm: the finer of the usual steps, a whole number of them from end to end."""
    steps = np.diff(distances)
    extent = float(distances[-1] - distances[0])
    usual = max(float(np.percentile(steps, 25)), extent / (_MOST_PLANES * len(distances)))
    intervals = max(1, round(extent / usual))
    return intervals + 1, extent / intervals


def _along_rows(image: Frame, offset: float, count: int) -> Frame:
    """Rows of an image at `n - offset`, n from 0 to count; linear, NaN more than half a row outside the image."""
    at = np.arange(count) - offset
    inside = (at >= -0.5) & (at <= len(image) - 0.5)
    low = np.floor(at).astype(np.int64)
    part = (at - low).astype(np.float32)[:, None]
    first = image[np.clip(low, 0, len(image) - 1)]
    moved: Frame = first + part * (image[np.clip(low + 1, 0, len(image) - 1)] - first)
    moved[~inside] = np.nan
    return moved


def _mixed(before: Frame, after: Frame, part: float) -> Frame:
    """Two planes by weight; where only one has a value, that one."""
    mixed = before + np.float32(part) * (after - before)
    return np.where(np.isnan(mixed), np.where(np.isnan(before), after, before), mixed)


def _fill(voxels: NDArray[np.float32], modality: str) -> None:
    """Air, or the darkest value of the scan, where no frame reaches."""
    outside = np.isnan(voxels)
    voxels[outside] = AIR_HU if modality == "CT" else np.nanmin(voxels)
