"""A folder of DICOM files as the node would see it, had it come over the network; and what was left out."""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import UID, MediaStorageDirectoryStorage

from node.commands.terminal import NotThere
from node.dicom.headers import file_meta_uids, read_header
from node.domain.instance import InstanceHeader, Sender
from node.errors import CannotUnderstand

SENDER = Sender("folder", "", "", "", "")
"""Who sent what lies in a folder."""

_WHENCE = {
    "SOPClassUID": "was taken from the file meta information",
    "SOPInstanceUID": "was taken from the file meta information",
    "StudyInstanceUID": "was made up: no archive knows it",
    "SeriesInstanceUID": "was made up: no archive knows it",
}
"""What is done about each UID that is empty."""


@dataclass(frozen=True)
class DicomFolder:
    """What lies in a folder."""

    series: Mapping[str, tuple[InstanceHeader, ...]]
    """Headers by Series Instance UID, in the order of file names."""
    paths: Mapping[str, Path]
    """File by SOP Instance UID."""
    skipped: Mapping[str, int]
    """How many files were left out, by reason."""
    notes: tuple[str, ...] = ()
    """What a person should know about the way the files were read."""
    unread: tuple[str, ...] = ()
    """Of a received series: images that cannot be read, and that its scans may lack (ASM-4)."""
    nothing: str = "there is no DICOM image in it"
    """What to say where no series is in it."""


@dataclass
class _Reading:
    scratch: Path
    series: dict[str, list[InstanceHeader]] = field(default_factory=lambda: defaultdict(list))
    paths: dict[str, Path] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)


def files_below(folder: Path) -> Iterator[Path]:
    """Every regular file below the folder, in the order of names; the folder may be one file.

    Raises
    ------
    NotThere
        Where there is no such folder.
    """
    if not folder.exists():
        raise NotThere(f"{folder}: there is no such folder")
    if folder.is_file():
        yield folder
    else:
        yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def read_folder(folder: Path, scratch: Path, progress: Callable[[float], None] | None = None) -> DicomFolder:
    """Read every header below a folder.

    Parameters
    ----------
    scratch
        Folder for copies of objects that lack a UID. SOP class and instance are taken from the file meta, study and
        series are made up from what the objects share, and the copies are read in place of the files: results cannot
        refer to an empty UID.

    Raises
    ------
    NotThere
        Where there is no such folder.
    """
    files = list(files_below(folder))
    reading = _Reading(scratch)
    for n, path in enumerate(files):
        if reason := _read(path, reading):
            reading.skipped[reason] += 1
        if progress is not None:
            progress((n + 1) / len(files))
    notes = (
        f"{word} was empty in {reading.mended[word]} data sets and {whence}"
        for word, whence in _WHENCE.items()
        if reading.mended[word]
    )
    series = {uid: tuple(headers) for uid, headers in reading.series.items()}
    return DicomFolder(series, reading.paths, dict(reading.skipped), tuple(notes))


def series_name(header: InstanceHeader) -> str:
    """Number and description of a series, for a person."""
    number = "" if header.series_number is None else str(header.series_number)
    return f"{number} {header.series_description or header.modality}".strip()


def left_out(skipped: Mapping[str, int]) -> str:
    """How many files were left out, and why, in words."""
    return "files left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))


def _read(path: Path, reading: _Reading) -> str:
    """Read one file; returns why it was left out, or nothing."""
    try:
        sop_class_uid, sop_instance_uid = file_meta_uids(path)
    except CannotUnderstand:
        return "not DICOM"
    if sop_class_uid == MediaStorageDirectoryStorage:
        return "DICOMDIR"
    try:
        header = read_header(path, sop_class_uid, sop_instance_uid)
        if empty := _empty_uids(path, header):
            reading.mended.update(empty)
            path = _mended(path, header, reading.scratch)
            header = read_header(path)
    except CannotUnderstand:
        return "cannot be understood"
    if header.sop_instance_uid in reading.paths:
        return "SOP Instance UID seen before"
    reading.paths[header.sop_instance_uid] = path
    reading.series[header.series_instance_uid].append(header)
    return ""


def _empty_uids(path: Path, header: InstanceHeader) -> list[str]:
    """The UIDs that the data set itself does not have."""
    ds = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
    empty = [word for word in ("SOPClassUID", "SOPInstanceUID") if not ds.get(word)]
    empty += [] if header.study_instance_uid else ["StudyInstanceUID"]
    return empty + ([] if header.series_instance_uid else ["SeriesInstanceUID"])


def _mended(path: Path, header: InstanceHeader, scratch: Path) -> Path:
    """A copy of the file in which no UID is empty; everything else is as it was."""
    here = path.parent.absolute()
    ds = dcmread(path)
    ds.SOPClassUID = header.sop_class_uid
    ds.SOPInstanceUID = header.sop_instance_uid
    ds.StudyInstanceUID = header.study_instance_uid or _made_up(f"study|{here}")
    shared = f"series|{here}|{header.frame_of_reference_uid}|{header.series_number}"
    ds.SeriesInstanceUID = header.series_instance_uid or _made_up(shared)
    scratch.mkdir(parents=True, exist_ok=True)
    copy = scratch / f"{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]}.dcm"
    ds.save_as(copy)
    return copy


def _made_up(name: str) -> UID:
    """A UID below 2.25 (PS3.5 B.2), the same each time."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}")
