"""send: the DICOM files of a folder by C-STORE, for tests and for bringing something in again."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydicom.uid import MediaStorageDirectoryStorage

from node.commands.configuration import configured_path, settings_of
from node.commands.terminal import ANSWER_IS_NO, DONE, NotThere, document, harmless, note, progress, say
from node.config import load_settings
from node.dicom import scu
from node.domain.job import Destination
from node.errors import ConfigError


def send(options: argparse.Namespace) -> int:
    """Send the files as they are; status 1 where the peer did not store every object."""
    destination = _destination(options)
    files, others = _files(options.folder)
    if not files:
        raise NotThere(f"{options.folder}: there is no DICOM object in it, and {others} other files")
    done: list[scu.Sent] = []

    with progress(f"sending to {destination.ae_title}", quiet=options.json) as shown:

        def on_each(sent: scu.Sent) -> None:
            done.append(sent)
            shown(len(done) / len(files))

        scu.send(destination, files, on_each)
    return _ended(options, destination, done, others)


def _destination(options: argparse.Namespace) -> Destination:
    """The destination that --to names, or one made of --host, --port and --ae-title.

    Raises
    ------
    ConfigError
        Where neither or both are given, or the configuration has no such destination.
    """
    if (options.to is None) == (options.host is None):
        raise ConfigError("name the receiver by --to NAME, or by --host HOST")
    if options.host is not None:
        path = configured_path(options)
        calling = options.calling or (load_settings(path).node.ae_title if path is not None else "HILUM")
        return Destination("receiver", options.ae_title, options.host, options.port, calling)
    known = settings_of(options).destinations()
    if options.to not in known:
        raise ConfigError(f"there is no [[destination]] named {options.to!r}; there are: {', '.join(known) or 'none'}")
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
