"""retry --series N --accept: whose the images of a series with two identities are is for a person to say.

A patient's identity is corrected at the scanner or in the PACS and the series is sent again; or it was sent for the
wrong patient. The node cannot know which it is, and processes neither until somebody says so.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from node.dicom.headers import read_header, read_source
from node.dicom.result_header import encoded
from node.domain.history import InstanceRecord, SeriesRecord
from node.domain.identity import instance_numbers, owner_of
from node.domain.instance import InstanceHeader
from node.domain.job import NotAllowed
from node.errors import CannotUnderstand
from node.store.journal import Journal
from node.store.reception import IDENTITY_CONFLICT, claimants

Which = Literal["newest", "oldest"]


def accept(journal: Journal, series_id: int, which: Which) -> str:
    """Keep the images that have the identity of the newest, or oldest, one; set the others aside; judge anew.

    Returns
    -------
    What was done, in words.

    Raises
    ------
    NotAllowed
        Where there is no such series, its identity is not in doubt, or the images are no longer here.
    """
    record = journal.show_series(series_id)
    if record is None:
        raise NotAllowed(f"there is no series {series_id}")
    candidates = claimants(record.instances)
    if not any(each.reason == IDENTITY_CONFLICT for each in candidates):
        raise NotAllowed(f"the identity of series {series_id} is not in doubt")
    headers = {each.id: header for each in candidates if (header := _header(each)) is not None}
    chosen = _chosen(candidates, headers, which)
    kept = _agreeing(headers, chosen)
    owner = headers[chosen.id].study_instance_uid, _patient_id_as_received(Path(chosen.path))
    seen = record.summary.revision, record.summary.instances
    return journal.accept_identity(series_id, kept, owner, seen, f"{which}, by {_who()}")


def choices(record: SeriesRecord) -> tuple[str, ...]:
    """What each answer of `--accept` would keep, in words; nothing where the identity of the series is in no doubt."""
    candidates = claimants(record.instances)
    if not any(each.reason == IDENTITY_CONFLICT for each in candidates):
        return ()
    try:
        headers = {each.id: header for each in candidates if (header := _header(each)) is not None}
    except OSError as error:
        return (f"whose images they are cannot be shown here: {error.strerror}",)
    return tuple(_choice(record.summary.id, candidates, headers, which) for which in get_args(Which))


def _choice(
    series_id: int, candidates: Sequence[InstanceRecord], headers: Mapping[int, InstanceHeader], which: Which
) -> str:
    asked = f"hilum retry --series {series_id} --accept {which}"
    try:
        kept = _agreeing(headers, _chosen(candidates, headers, which))
    except NotAllowed as error:
        return f"{asked}: {error}"
    return f"{asked}: keeps {instance_numbers(headers[number] for number in kept)}, sets aside " + (
        instance_numbers(headers[number] for number in headers if number not in set(kept))
    )


def _header(instance: InstanceRecord) -> InstanceHeader | None:
    if instance.purged:
        return None
    try:
        return read_header(Path(instance.path))
    except CannotUnderstand:
        return None


def _chosen(
    candidates: Sequence[InstanceRecord], headers: Mapping[int, InstanceHeader], which: Which
) -> InstanceRecord:
    """The image that says whose the series is."""
    last = max if which == "newest" else min
    first = last(candidates, key=lambda each: (each.received_at, each.id))
    if first.id not in headers:
        raise NotAllowed(f"the {which} image was purged or cannot be read: send the series again")
    return first


def _agreeing(headers: Mapping[int, InstanceHeader], chosen: InstanceRecord) -> list[int]:
    whose = owner_of(headers[chosen.id])
    return [number for number, header in headers.items() if owner_of(header) == whose]


def _patient_id_as_received(path: Path) -> str:
    """The PatientID as reception reads it, byte for byte: with that it compares whatever comes later for the series."""
    return encoded(read_source(path), "PatientID").strip(b" \0").decode("latin-1")


def _who() -> str:
    """The login name of whoever runs this command."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"
