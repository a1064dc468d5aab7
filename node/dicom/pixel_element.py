"""The pixel data element without its pixels: whether it is as long as the header says, and safe to decode."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from pydicom import Dataset
from pydicom.uid import UID, AllTransferSyntaxes, DeflatedExplicitVRLittleEndian, RLELossless

_PIXEL_DATA = (0x7FE0, 0x0010)
_UNDEFINED = 0xFFFFFFFF
_MOST_FRAME_BYTES = 1 << 28
_MOST_BYTES = 1 << 33
_RLE_GAIN = 64
"""A run of two bytes stands for at most 128 (PS3.5 G.3.1)."""
_LOSSY = frozenset(f"1.2.840.10008.1.2.4.{leaf}" for leaf in (50, 51, 81, 91, 203))


@dataclass(frozen=True)
class PixelElement:
    """What was seen of it.

    Attributes
    ----------
    defects
        Words of a closed set with a detail: `no_pixel_data`, `float_pixels`, `bits`, `too_large`, `pixel_length`,
        `frame_count`.
    lossy
        The transfer syntax loses something.
    """

    defects: tuple[str, ...]
    lossy: bool = False


@dataclass(frozen=True)
class _Shape:
    """Rows to frames as the header says."""

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    frames: int

    @property
    def frame_bytes(self) -> int:
        return (self.rows * self.columns * self.samples * self.bits_allocated + 7) // 8

    @property
    def all_bytes(self) -> int:
        return (self.rows * self.columns * self.samples * self.bits_allocated * self.frames + 7) // 8


def read_pixel_element(file: BinaryIO, ds: Dataset) -> PixelElement:
    """Judge the element at the file's position, where pydicom stopped before the pixels (ASM-40, ASM-42, SEC-6).

    Objects without Rows are no images and have no defects here.
    """
    syntax = UID(str(ds.file_meta.TransferSyntaxUID))
    lossy = syntax in _LOSSY
    if not ds.get("Rows") or not ds.get("Columns"):
        return PixelElement((), lossy)
    if syntax == DeflatedExplicitVRLittleEndian or syntax not in AllTransferSyntaxes:
        return PixelElement((f"transfer_syntax: {syntax} is not read",), lossy)
    shape = _shape(ds)
    defects = [*_bit_defects(ds), *_size_defects(shape)]
    element = _element(file, syntax)
    if element is None:
        defects.append("no_pixel_data: the object ends before its pixels")
    elif element[0] != _PIXEL_DATA:
        defects.append("float_pixels: floating point pixel data")
    elif not defects:
        length = element[1]
        native = not syntax.is_compressed
        defects += _native_defects(file, shape, length) if native else _item_defects(file, shape, length, syntax)
    return PixelElement(tuple(defects), lossy)


def _shape(ds: Dataset) -> _Shape:
    values = [ds.get(name) for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames")]
    rows, columns, samples, bits, frames = (int(value) if value else 1 for value in values)
    return _Shape(rows, columns, samples, bits, max(1, frames))


def _bit_defects(ds: Dataset) -> list[str]:
    """Bits, high bit and sign must fit together (PS3.3 C.7.6.3, PS3.5 8.1.1)."""
    allocated, stored, high = (int(ds.get(name) or 0) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    sign = ds.get("PixelRepresentation")
    if allocated not in (1, 8, 16, 32) or not 0 < stored <= allocated or not stored - 1 <= high < allocated:
        return [f"bits: {stored} stored in {allocated} with high bit {high}"]
    return [] if sign in (0, 1) else ["bits: PixelRepresentation is neither 0 nor 1"]


def _size_defects(shape: _Shape) -> list[str]:
    if shape.frame_bytes > _MOST_FRAME_BYTES or shape.all_bytes > _MOST_BYTES:
        return [f"too_large: {shape.frames} frames of {shape.rows} x {shape.columns}"]
    return []


def _element(file: BinaryIO, syntax: UID) -> tuple[tuple[int, int], int] | None:
    """Tag and length of the element at the file's position; leaves the file at its value."""
    order = "<" if syntax.is_little_endian else ">"
    head = file.read(8)
    if len(head) < 8:
        return None
    group, element = struct.unpack(order + "HH", head[:4])
    if group != 0x7FE0:
        return None
    if syntax.is_implicit_VR:
        return (group, element), struct.unpack(order + "L", head[4:])[0]
    if head[4:6] not in (b"OB", b"OW", b"UN", b"OF", b"OD"):
        return None
    length = file.read(4)
    return ((group, element), struct.unpack(order + "L", length)[0]) if len(length) == 4 else None


def _left(file: BinaryIO) -> int:
    """Bytes from the file's position to its end."""
    here = file.tell()
    end = file.seek(0, 2)
    file.seek(here)
    return end - here


def _native_defects(file: BinaryIO, shape: _Shape, length: int) -> list[str]:
    present = min(length, _left(file))
    if present < shape.all_bytes:
        return [f"pixel_length: {present} bytes where {shape.all_bytes} belong"]
    # One byte of padding is due; some writers pad to a block. More is another geometry than the header's.
    if present > shape.all_bytes + max(1, shape.frame_bytes // 4):
        return [f"pixel_length: {present} bytes where {shape.all_bytes} belong"]
    return []


def _item_defects(file: BinaryIO, shape: _Shape, length: int, syntax: UID) -> list[str]:
    """Walk the items of encapsulated pixel data (PS3.5 A.4): offset table, fragments, delimiter."""
    if length != _UNDEFINED:
        return ["pixel_length: encapsulated pixel data with a defined length"]
    items: list[int] = []
    left = _left(file)
    while left >= 8:
        group, element, size = struct.unpack("<HHL", file.read(8))
        left -= 8
        if (group, element) == (0xFFFE, 0xE0DD):
            return _fragment_defects(shape, items, syntax)
        if (group, element) != (0xFFFE, 0xE000) or size > left:
            break
        items.append(size)
        file.seek(size, 1)
        left -= size
    return ["pixel_length: the encapsulated frames are cut"]


def _fragment_defects(shape: _Shape, items: list[int], syntax: UID) -> list[str]:
    table, fragments = (items[0], items[1:]) if items else (0, [])
    if len(fragments) < shape.frames or (table and table // 4 != shape.frames):
        return [f"frame_count: {max(len(fragments), table // 4)} of {shape.frames} frames"]
    if syntax == RLELossless and shape.all_bytes > _RLE_GAIN * sum(fragments):
        return ["too_large: the encoded frames are too short for their size"]
    return []
