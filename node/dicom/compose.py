"""From findings to result objects on disk: every form that a destination may need, each read back before it counts."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TypeVar

from pydicom import Dataset, dcmwrite

from node.dicom.composition import Composed, Composition, Predecessor, ResultStyle
from node.dicom.document import build_document
from node.dicom.readback import Mismatch, verify_document, verify_seg, verify_sr
from node.dicom.result_header import check_sources
from node.dicom.seg import build_seg
from node.dicom.sr import build_sr, report_content
from node.domain.job import ObjectKind
from node.domain.variants import NO_SEG, SR_CLASSES, sr_variant

__all__ = ["Composed", "Composition", "Mismatch", "Predecessor", "ResultStyle", "compose"]

T = TypeVar("T")


def compose(
    c: Composition,
    folder: Path,
    segs: frozenset[str] = frozenset({"binary"}),
    sr: bool = True,
    pdf: bool = True,
    *,
    new_path: Callable[[], Path] | None = None,
) -> tuple[Composed, ...]:
    """Build, write, flush and verify every form of every result.

    Where nothing was found there is no SEG, and the report refers to none (RES-6).

    Parameters
    ----------
    folder
        Where the files go, as `seg-binary.dcm` and so on, unless `new_path` gives a place for each.
    segs
        The forms of SEG: `binary`, `labelmap`.

    Raises
    ------
    Unsuitable
        Where the source slices do not agree on whose they are (RES-31).
    Mismatch
        Where a file that was read again differs from what it was made from: a fault of ours.
    """
    check_sources(c.sources)
    writer = _Writer(folder, new_path)
    forms = sorted(segs) if c.findings.present else []
    volumes_ml: dict[str, Mapping[int, float]] = {NO_SEG: {}}
    for form in forms:
        writer.write(ObjectKind.SEG, form, build_seg(c, form))
        volumes_ml[form] = writer.read_back(partial(verify_seg, c=c, variant=form))
    for form in (forms or [NO_SEG]) if sr else ():
        content = report_content(c, form)
        for earlier, sr_class in product((None, *c.predecessors), SR_CLASSES):
            variant = sr_variant(sr_class, form, earlier.sr_sop_instance_uid if earlier else "")
            writer.write(ObjectKind.SR, variant, build_sr(c, sr_class, form, content, earlier))
            writer.read_back(partial(verify_sr, c=c, variant=variant, volumes_ml=volumes_ml[form]))
    if pdf:
        writer.write(ObjectKind.PDF, "pdf", build_document(c))
        writer.read_back(partial(verify_document, c=c))
    return tuple(writer.composed)


class _Writer:
    """Writes data sets as files that are durable before they are named."""

    def __init__(self, folder: Path, new_path: Callable[[], Path] | None) -> None:
        self._folder, self._new_path = folder, new_path
        self.composed: list[Composed] = []

    def read_back(self, verify: Callable[[Path], T]) -> T:
        """Verify the file that was written last, and note how long that took."""
        began = time.monotonic()
        found = verify(self.composed[-1].path)
        self.composed[-1] = replace(self.composed[-1], readback_s=time.monotonic() - began)
        return found

    def write(self, kind: ObjectKind, variant: str, result: Dataset) -> None:
        """One object, its bytes and its name flushed to the disk."""
        path = self._new_path() if self._new_path else self._folder / f"{_file_name(kind, variant)}.dcm"
        with path.open("wb") as file:
            dcmwrite(file, result, enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())
        _flush_folder(path.parent)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        meta = result.file_meta
        uids = str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID), str(meta.TransferSyntaxUID)
        self.composed.append(Composed(kind, variant, *uids, path, digest))


def _file_name(kind: ObjectKind, variant: str) -> str:
    """`seg-binary`, `sr-comprehensive3d-binary`, `pdf`."""
    return kind.value if variant == kind.value else f"{kind.value}-{variant}"


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
