"""The few top-level elements and the lengths that decide the answer to a C-STORE, found without building a Dataset.

The walk goes from element to element by length (PS3.5 section 7). It is linear in the number of elements, needs no
memory, does not recurse, and ends where the data ends or where something is wrong.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
from dataclasses import dataclass
from typing import TypeAlias

from node.errors import CannotUnderstand, DataSetMismatch, InvalidInstanceUid

Data: TypeAlias = bytes | bytearray | memoryview | mmap.mmap

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"

SOP_CLASS_UID, SOP_INSTANCE_UID = 0x00080016, 0x00080018
PATIENT_ID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID = 0x00100020, 0x0020000D, 0x0020000E
_NUMBER_OF_FRAMES = 0x00280008
_WANTED = frozenset(
    (SOP_CLASS_UID, SOP_INSTANCE_UID, PATIENT_ID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID, _NUMBER_OF_FRAMES)
)
_UIDS = (SOP_CLASS_UID, SOP_INSTANCE_UID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID)
_PIXEL_DATA = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONGEST_VALUE = 1024
"""What is wanted is shorter than this; a longer value is wrong."""

_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_EXPLICIT = struct.Struct("<HH2sH")
_IMPLICIT = struct.Struct("<HHI")
_LENGTH = struct.Struct("<I")
_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True)
class WalkLimits:
    """Limits of SEC-4 on one data set."""

    elements: int = 100_000
    elements_per_frame: int = 200
    """An enhanced object is allowed this many more for each frame that it declares, up to `frames`."""
    frames: int = 10_000
    depth: int = 64
    header_bytes: int = 64 << 20
    """All that stands before the pixel data."""


DEFAULT_LIMITS = WalkLimits()


@dataclass(frozen=True)
class Walked:
    """What the walk found; UIDs are syntactically valid, `patient_id` is decoded as Latin-1 and may be empty."""

    sop_class_uid: str
    sop_instance_uid: str
    patient_id: str
    study_instance_uid: str
    series_instance_uid: str
    has_pixel_data: bool


def is_uid(text: str) -> bool:
    """Say whether `text` has only digits and dots, 1 to 64 of them (PS3.5 9.1; leading zeros are let pass)."""
    return _UID.fullmatch(text) is not None


def check(
    data: Data,
    transfer_syntax_uid: str,
    sop_class_uid: str,
    sop_instance_uid: str,
    limits: WalkLimits = DEFAULT_LIMITS,
    *,
    start: int = 0,
) -> Walked:
    """Walk the data set from `start` to the end of `data` and compare it with what the command announced.

    Raises
    ------
    CannotUnderstand
        An element, sequence or fragment runs past the end; a VR that PS3.5 does not know; a group below 0008; a limit
        of SEC-4; one of the four UIDs missing, or twice there.
    DataSetMismatch
        SOP Class or SOP Instance UID is not the command's.
    InvalidInstanceUid
        A UID with other characters, or too long.
    """
    walk = _Walk(data, transfer_syntax_uid != IMPLICIT_VR_LITTLE_ENDIAN, limits)
    values = walk.top_level(start)
    uids = []
    for tag in _UIDS:
        if not values.get(tag):
            raise CannotUnderstand("UID missing", tag)
        text = values[tag].decode("latin-1")
        if not is_uid(text):
            raise InvalidInstanceUid("UID invalid", tag)
        uids.append(text)
    if uids[0] != sop_class_uid:
        raise DataSetMismatch("SOP Class UID differs from command", SOP_CLASS_UID)
    if uids[1] != sop_instance_uid:
        raise DataSetMismatch("SOP Instance UID differs from command", SOP_INSTANCE_UID)
    patient_id = values.get(PATIENT_ID, b"").decode("latin-1")
    return Walked(uids[0], uids[1], patient_id, uids[2], uids[3], walk.has_pixel_data)


def peek_series(data: Data, transfer_syntax_uid: str) -> str:
    """Return the Series Instance UID of a data set of which only the beginning is here; empty where it is not (yet)."""
    walk = _Walk(data, transfer_syntax_uid != IMPLICIT_VR_LITTLE_ENDIAN, WalkLimits())
    with contextlib.suppress(CannotUnderstand, InvalidInstanceUid):  # cut in an element: what was found still counts
        walk.top_level(0, until=SERIES_INSTANCE_UID)
    text = walk.values.get(SERIES_INSTANCE_UID, b"").decode("latin-1")
    return text if is_uid(text) else ""


class _Walk:
    """One walk over one data set."""

    def __init__(self, data: Data, explicit: bool, limits: WalkLimits) -> None:
        self._data = data
        self._end = len(data)
        self._explicit = explicit
        self._limits = limits
        self._elements = 0
        self._allowed = limits.elements
        self.values: dict[int, bytes] = {}
        self.has_pixel_data = False

    def top_level(self, position: int, until: int = _UNDEFINED) -> dict[int, bytes]:
        """Walk to the end, or past the tag `until`; return the wanted values, which are in `values` too."""
        start, end = position, self._end
        while position < end:
            tag, vr, length, position = self._element(position, self._explicit)
            if tag < 0x00080000:
                raise CannotUnderstand("group below 0008 in the data set", tag)
            if tag > until:
                break
            if tag in _PIXEL_DATA:
                self._pixel_data(tag, position - start)
            if length == _UNDEFINED:
                position = self._skip_undefined(tag, vr, position)
                continue
            if length > end - position:
                raise CannotUnderstand("element past the end of the data set", tag)
            if tag in _WANTED:
                self._keep(tag, position, length)
            position += length
        if not self.has_pixel_data and until == _UNDEFINED and end - start > self._limits.header_bytes:
            raise CannotUnderstand("header too large")
        return self.values

    def _pixel_data(self, tag: int, header_bytes: int) -> None:
        if header_bytes > self._limits.header_bytes:
            raise CannotUnderstand("header too large", tag)
        self.has_pixel_data = True

    def _keep(self, tag: int, position: int, length: int) -> None:
        if tag in self.values:
            raise CannotUnderstand("element is there twice", tag)
        if length > _LONGEST_VALUE:
            if tag in _UIDS:
                raise InvalidInstanceUid("UID too long", tag)
            raise CannotUnderstand("value too long", tag)
        self.values[tag] = value = bytes(self._data[position : position + length]).strip(b" \0")
        if tag == _NUMBER_OF_FRAMES and value.isdigit():
            frames = min(int(value), self._limits.frames)
            self._allowed = self._limits.elements + self._limits.elements_per_frame * frames

    def _element(self, position: int, explicit: bool) -> tuple[int, bytes, int, int]:
        """Return tag, VR (empty where implicit), length, and where the value begins."""
        self._elements += 1
        if self._elements > self._allowed:
            raise CannotUnderstand("too many elements")
        if self._end - position < 8:
            raise CannotUnderstand("cut element at the end of the data set")
        if not explicit:
            group, element, length = _IMPLICIT.unpack_from(self._data, position)
            return group << 16 | element, b"", length, position + 8
        group, element, vr, length = _EXPLICIT.unpack_from(self._data, position)
        tag = group << 16 | element
        if vr in _SHORT_VRS:
            return tag, vr, length, position + 8
        if group == 0xFFFE:  # item and delimiters have no VR (PS3.5 7.5)
            return tag, b"", _LENGTH.unpack_from(self._data, position + 4)[0], position + 8
        if vr not in _LONG_VRS:
            raise CannotUnderstand("unknown VR", tag)
        if self._end - position < 12:
            raise CannotUnderstand("cut element at the end of the data set", tag)
        return tag, vr, _LENGTH.unpack_from(self._data, position + 8)[0], position + 12

    def _skip_undefined(self, tag: int, vr: bytes, position: int) -> int:
        """Return the position after an undefined-length value: fragments or a sequence, walked with a stack."""
        if tag in _PIXEL_DATA and vr in (b"OB", b"OW"):
            return self._skip_fragments(tag, position)
        if vr not in (b"SQ", b"UN", b""):
            raise CannotUnderstand("undefined length where none is allowed", tag)
        # Each level is the VR encoding of its elements and whether it is an item (else a sequence). The value of a
        # UN of undefined length is an implicit VR sequence whatever the transfer syntax says (PS3.5 6.2.2 note 2).
        levels = [(self._explicit and vr != b"UN", False)]
        while levels:
            explicit, in_item = levels[-1]
            if len(levels) > 2 * self._limits.depth:
                raise CannotUnderstand("sequences nested too deeply", tag)
            inner, vr, length, position = self._element(position, explicit and in_item)
            if inner == (_ITEM_END if in_item else _SEQUENCE_END):
                levels.pop()
            elif inner >> 16 == 0xFFFE and (in_item or inner != _ITEM):
                raise CannotUnderstand("delimiter in the wrong place", tag)
            elif not in_item and inner != _ITEM:
                raise CannotUnderstand("sequence without item", tag)
            elif length == _UNDEFINED:
                if in_item and vr not in (b"SQ", b"UN", b""):
                    raise CannotUnderstand("undefined length where none is allowed", inner)
                levels.append((explicit and vr != b"UN", not in_item))
            elif length > self._end - position:
                raise CannotUnderstand("item past the end of the data set", tag)
            else:
                position += length
        return position

    def _skip_fragments(self, tag: int, position: int) -> int:
        """Return the position after encapsulated pixel data (PS3.5 annex A.4)."""
        while self._end - position >= 8:
            group, element, length = _IMPLICIT.unpack_from(self._data, position)
            position += 8
            inner = group << 16 | element
            if inner == _SEQUENCE_END:
                return position
            if inner != _ITEM or length > self._end - position:
                break
            position += length
        raise CannotUnderstand("encapsulated pixel data is cut", tag)
