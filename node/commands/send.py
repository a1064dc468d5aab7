"""send: the DICOM files of a folder by C-STORE, for tests and for bringing something in again."""

from __future__ import annotations

import argparse
import shutil
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, MediaStorageDirectoryStorage

from node.commands.configuration import configured_path, settings_of
from node.commands.terminal import ANSWER_IS_NO, DONE, NotThere, document, harmless, note, progress, say
from node.config import load_settings
from node.dicom import scu
from node.domain.job import Destination
from node.errors import ConfigError

_PREAMBLE = 132
"""Bytes before the file meta: the preamble, and `DICM` (PS3.10 7.1)."""


def send(options: argparse.Namespace) -> int:
    """Send the files as they are; status 1 where the peer did not store every object."""
    destination = _destination(options)
    files, others = _files(options.folder)
    if not files:
        raise NotThere(f"{options.folder}: there is no DICOM object in it, and {others} other files")
    done: list[scu.Sent] = []

    with (
        tempfile.TemporaryDirectory(prefix="hilum-") as scratch,
        progress(f"sending to {destination.ae_title}", quiet=options.json) as shown,
    ):
        named = [_named_as_inside(file, Path(scratch) / str(number)) for number, file in enumerate(files)]
        source = {copy.path: file.path for copy, file in zip(named, files, strict=True)}

        def on_each(sent: scu.Sent) -> None:
            done.append(replace(sent, path=source[sent.path]))
            shown(len(done) / len(files))

        scu.send(destination, named, on_each)
    return _ended(options, destination, done, others)


def _destination(options: argparse.Namespace) -> Destination:
    """The destination that --to names, or one made of --host, --port and --ae-title.

    Raises
    ------
    ConfigError
        Where neither or both are given.
    NotThere
        Where the configuration has no such destination.
    """
    if (options.to is None) == (options.host is None):
        raise ConfigError("name the receiver by --to NAME, or by --host HOST")
    if options.host is not None:
        path = configured_path(options)
        calling = options.calling or (load_settings(path).node.ae_title if path is not None else "HILUM")
        return Destination("receiver", options.ae_title, options.host, options.port, calling)
    known = settings_of(options).destinations()
    if options.to not in known:
        raise NotThere(f"there is no [[destination]] named {options.to!r}; there are: {', '.join(known) or 'none'}")
    destination = known[options.to]
    return replace(destination, calling_ae_title=options.calling) if options.calling else destination


def _files(folder: Path) -> tuple[list[scu.FileToSend], int]:
    """The objects below a folder, or the one file, and how many files are none."""
    if not folder.exists():
        raise NotThere(f"{folder}: there is no such folder")
    found, others = scu.files_to_send(folder if folder.is_dir() else folder.parent)
    if folder.is_file():
        found, others = tuple(file for file in found if file.path == folder), ()
    files = [file for file in found if file.sop_class_uid != MediaStorageDirectoryStorage]
    return files, len(others) + len(found) - len(files)


def _named_as_inside(file: scu.FileToSend, copy: Path) -> scu.FileToSend:
    """The file; or a copy of it, data set byte for byte, whose file meta names the same object as its data set.

    The command of a C-STORE takes its UIDs from the file meta, and a receiver refuses an object that names itself
    otherwise (PS3.4 B.2.2.1.2): so do files whose data set alone was changed, as by some tools that take names out.
    """
    with file.path.open("rb") as opened:
        uids = _uids_inside(opened) or (file.sop_class_uid, file.sop_instance_uid)
        if uids == (file.sop_class_uid, file.sop_instance_uid):
            return file
        opened.seek(_PREAMBLE)
        meta = FileMetaDataset(read_dataset(opened, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2))
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = map(UID, uids)
        with copy.open("xb") as made:
            made.write(bytes(_PREAMBLE - 4) + b"DICM")
            write_file_meta_info(DicomIO(made), meta, enforce_standard=False)
            shutil.copyfileobj(opened, made)
    return scu.FileToSend(copy, *uids, file.transfer_syntax_uid)


def _uids_inside(opened: BinaryIO) -> tuple[str, str] | None:
    """SOP Class and SOP Instance UID of the data set; None where it has none, or cannot be read."""
    try:
        ds = dcmread(opened, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
        return str(ds.SOPClassUID), str(ds.SOPInstanceUID)
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, NotImplementedError, struct.error, zlib.error):
        return None


def _ended(options: argparse.Namespace, destination: Destination, done: Sequence[scu.Sent], others: int) -> int:
    stored = sum(sent.is_stored for sent in done)
    if options.json:
        say(document({"to": destination.ae_title, "sent": done, "stored": stored, "other_files": others}))
    else:
        for sent in done:
            if sent.outcome != "stored":
                note(f"{sent.path}: {sent.outcome}: {harmless(sent.detail)}")
        counts = Counter(sent.outcome for sent in done)
        say(
            f"{stored} of {len(done)} objects stored by {destination.ae_title}"
            + (f"; {others} other files left out" if others else "")
        )
        if counts["warning"]:
            say(f"{counts['warning']} of them with a warning: the receiver changed something")
    return DONE if stored == len(done) else ANSWER_IS_NO
