"""Whether an object of any class is a result of this product, sent back to it (NET-36)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import Tag

from node.domain.instance import MANUFACTURER, MODEL_NAME

_MAKERS = tuple(
    Tag(name)
    for name in ("SpecificCharacterSet", "Manufacturer", "ManufacturerModelName", "ContributingEquipmentSequence")
)
"""In order; nothing after the last is read, as the frames of a segmentation can be any number."""
_BROKEN = (
    *(InvalidDicomError, ValueError, TypeError, KeyError, AttributeError, IndexError, EOFError, NotImplementedError),
    *(struct.error, zlib.error, OverflowError, RecursionError),
)
"""What pydicom raises on a broken data set."""


def made_here(path: Path) -> bool:
    """Whether this product made the object, as far as its header can be read; of the rest of it nothing is read."""
    try:
        with path.open("rb") as file:
            return is_own_result(read_partial(file, lambda tag, *_: tag > _MAKERS[-1], specific_tags=list(_MAKERS)))
    except _BROKEN:
        return False


def is_own_result(ds: Dataset) -> bool:
    """Whether this product made it or helped to make it: what a site calls the product stands beside its own name."""
    makers = [ds, *(ds.get("ContributingEquipmentSequence") or [])]
    return any(
        str(maker.get("Manufacturer", "")).strip() == MANUFACTURER
        and str(maker.get("ManufacturerModelName", "")).strip() == MODEL_NAME
        for maker in makers
    )
