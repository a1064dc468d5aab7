"""b-value and gradient of an MR image, where each maker keeps them (REQUIREMENTS ASM-17)."""

from __future__ import annotations

import re
from typing import Any

from pydicom import Dataset
from pydicom.multival import MultiValue

_GE_SCALE = 1_000_000_000
"""GE adds multiples of it to the b-value from release 14 on."""
_COMMENT = re.compile(r"b=([\d.]+)\(([-\d.]+),([-\d.]+),([-\d.]+)\)")
"""Toshiba and Canon: `b=1500(0.895,0.000,0.445)` in ImageComments."""


def b_value(ds: Dataset, standard: Any) -> float | None:
    """s/mm2, or None where the image is not said to be diffusion weighted.

    Parameters
    ----------
    standard
        DiffusionBValue (0018,9087) of the frame, if it has one; it goes before what makers write.
    """
    if standard is not None:
        return _number(standard)
    siemens = _number(_private(ds, 0x0019, "SIEMENS MR HEADER", 0x0C))
    if siemens is not None:
        return siemens
    ge = _number(_first(_private(ds, 0x0043, "GEMS_PARM_01", 0x39)))
    if ge is not None:
        return ge % _GE_SCALE
    philips = _number(_first(_private(ds, 0x2001, "Philips Imaging DD 001", 0x03)))
    if philips is not None:
        return philips
    comment = _COMMENT.match(str(ds.get("ImageComments", "")))
    return float(comment[1]) if comment else None


def gradient(ds: Dataset, standard: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Direction of diffusion encoding, as the maker gives it, in whatever frame: only compared, never turned."""
    if standard is not None:
        return standard
    siemens = _vector(_private(ds, 0x0019, "SIEMENS MR HEADER", 0x0E))
    if siemens is not None:
        return siemens
    ge = [_number(_private(ds, 0x0019, "GEMS_ACQU_01", offset)) for offset in (0xBB, 0xBC, 0xBD)]
    philips = [_number(_private(ds, 0x2005, "Philips MR Imaging DD 001", offset)) for offset in (0xB0, 0xB1, 0xB2)]
    for parts in (ge, philips):
        known = [part for part in parts if part is not None]
        if len(known) == 3:
            return tuple(known)
    comment = _COMMENT.match(str(ds.get("ImageComments", "")))
    return (float(comment[2]), float(comment[3]), float(comment[4])) if comment else None


def _private(ds: Dataset, group: int, creator: str, offset: int) -> Any:
    try:
        return ds.private_block(group, creator)[offset].value
    except KeyError:
        return None


def _first(value: Any) -> Any:
    """The first of several values; in Implicit VR they come as bytes."""
    if isinstance(value, bytes):
        return value.split(b"\\")[0]
    return value[0] if isinstance(value, MultiValue | list | tuple) and len(value) else value


def _number(value: Any) -> float | None:
    """A number; in Implicit VR a private IS or DS may come as bytes."""
    try:
        return float(value.decode("ascii").strip(" \0") if isinstance(value, bytes) else value)
    except (TypeError, ValueError, UnicodeDecodeError):
        return None


def _vector(value: Any) -> tuple[float, ...] | None:
    if value is None or isinstance(value, bytes | str) or not hasattr(value, "__len__") or len(value) != 3:
        return None
    parts = [_number(item) for item in value]
    return tuple(part for part in parts if part is not None) if None not in parts else None
