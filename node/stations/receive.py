"""Receiving: an object is durable, and has its row in the journal, before its sender hears success (NET-2).

The order is bytes, header check, flush, row, answer; whether the object is known already the journal finds with the
row, so that what is new, which is nearly everything, is looked up once. A crash before the row leaves a file that the
next start removes and a sender that repeats; a crash after it leaves an object that is ours, and the repetition is
found to be the same. What we keep are the data set bytes exactly as they came (NET-3), behind a preamble and file meta
of ours.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from node.dicom.association import Stored, StoreRequest
from node.dicom.header_walk import DEFAULT_LIMITS, Walked, WalkLimits, check, is_uid, peek_series
from node.dicom.own_results import made_here
from node.dicom.storage_classes import PROCESSED
from node.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.domain.instance import CommitOutcome, InstanceJournal, InstanceState, KnownInstance, ReceivedInstance
from node.errors import CannotUnderstand, HilumError, InvalidInstanceUid, OutOfResources
from node.store.spool import Spool, SpoolFile

_log = logging.getLogger(__name__)

HELD_CLASS = "class_not_processed"
"""Reason of a held instance: its SOP class is stored and never processed (NET-7)."""
OWN_RESULT = "own_result"
"""Reason of a held instance: this product made it, and somebody sends it back, as a PACS that forwards all (NET-36)."""
_PEEK_BYTES = 1 << 20


def utc_now() -> datetime:
    """Return the time, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Receiver:
    """The receiving station: gives each incoming object its sink.

    Attributes
    ----------
    processed
        SOP classes that may become part of a stack; all others are held.
    """

    spool: Spool
    journal: InstanceJournal
    limits: WalkLimits = DEFAULT_LIMITS
    processed: Collection[str] = frozenset(PROCESSED)
    clock: Callable[[], datetime] = utc_now

    def open(self, request: StoreRequest) -> Incoming:
        """Begin an object.

        Raises
        ------
        InvalidInstanceUid
            A UID of the command holds something else than digits and dots.
        OutOfResources
            The spool is at its hard mark, or cannot make a file.
        """
        if not is_uid(request.sop_instance_uid):
            raise InvalidInstanceUid("UID invalid", 0x00001000)
        if not is_uid(request.sop_class_uid):
            raise InvalidInstanceUid("UID invalid", 0x00000002)
        return Incoming(self, request, self.spool.take())


class Incoming:
    """One object on its way into the spool; written, then finished or discarded."""

    def __init__(self, receiver: Receiver, request: StoreRequest, file: SpoolFile) -> None:
        self._receiver = receiver
        self._request = request
        self._file = file
        self._head = file_head(request)
        self._series_instance_uid = ""
        self._in_doubt = False

    @property
    def series_instance_uid(self) -> str:
        """The series, once the first bytes were written and told it; before that empty."""
        return self._series_instance_uid

    def write(self, fragments: Sequence[memoryview]) -> None:
        """Append the next bytes of the data set; OSError where the disk cannot take them."""
        self._file.write(fragments, self._head)
        self._head = b""

    def peek(self) -> None:
        """Look for the series in what has been written so far."""
        end = self._file.head_length + self._file.length
        if self._series_instance_uid or not end:
            return
        with mmap.mmap(self._file.fileno(), min(end, _PEEK_BYTES), access=mmap.ACCESS_READ) as data:
            begun = memoryview(data)[self._file.head_length :]
            try:
                self._series_instance_uid = peek_series(begun, self._request.transfer_syntax_uid)
            finally:
                begun.release()

    def finish(self) -> Stored:
        """Check, flush, commit; return what became of the object.

        Raises
        ------
        Refused
            With the status of PS3.4 table B.2-1: the data set is wrong (A900, C000, 0117), or disk or journal cannot
            take it now (A700).
        """
        walked = self._check()
        self._series_instance_uid = walked.series_instance_uid
        try:
            self._file.flush()
        except OSError as error:
            _log.error("flush_failed", extra={"cause": f"errno {error.errno}"})
            raise OutOfResources("storage is not available") from None
        instance = self._instance(walked)
        if self._commit(instance) is CommitOutcome.DUPLICATE_SAME:
            return self._same_for_the_journal(instance)
        return Stored(walked.series_instance_uid, str(instance.state))

    def discard(self) -> None:
        """Remove the file, unless the journal may hold its row."""
        if not self._in_doubt:
            self._file.discard()

    def _check(self) -> Walked:
        request, limits = self._request, self._receiver.limits
        if request.sop_class_uid not in self._receiver.processed:
            limits = replace(limits, header_bytes=1 << 62)  # raw data and documents are all "header"
        if not self._file.length:
            raise CannotUnderstand("data set is empty")
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return check(
                data,
                request.transfer_syntax_uid,
                request.sop_class_uid,
                request.sop_instance_uid,
                limits,
                start=self._file.head_length,
            )

    def _instance(self, walked: Walked) -> ReceivedInstance:
        kept = walked.sop_class_uid in self._receiver.processed  # an image of ours is found out with all the headers
        return ReceivedInstance(
            sop_instance_uid=walked.sop_instance_uid,
            sop_class_uid=walked.sop_class_uid,
            transfer_syntax_uid=self._request.transfer_syntax_uid,
            study_instance_uid=walked.study_instance_uid,
            series_instance_uid=walked.series_instance_uid,
            patient_id=walked.patient_id,
            path=self._file.path,
            length=self._file.length,
            crc32=self._file.crc32,
            sender=self._request.sender,
            received_at=self._receiver.clock(),
            state=InstanceState.KEPT if kept else InstanceState.HELD,
            reason="" if kept else OWN_RESULT if made_here(self._file.path) else HELD_CLASS,
            move_originator=self._request.move_originator,
        )

    def _commit(self, instance: ReceivedInstance) -> CommitOutcome:
        """Commit the row; while it is in doubt whether there is one, the file must stay.

        A database that loses its connection in the middle of a commit does not say what became of it. The journal is
        asked; where it cannot tell, the file waits for the sweep of the next start.
        """
        self._in_doubt = True
        try:
            outcome = self._receiver.journal.commit(instance)
        except HilumError:
            here = any(known.path == instance.path for known in self._receiver.journal.known(instance.sop_instance_uid))
            if not here:
                self._in_doubt = False
                raise
            return CommitOutcome.NEW
        return outcome

    def _same_for_the_journal(self, instance: ReceivedInstance) -> Stored:
        """The same is here already, so that ours may go; unless bytes differ that should not, or theirs are damaged.

        Raises
        ------
        OutOfResources
            Where they were purged in this moment: sent again, ours will be kept.
        """
        self._in_doubt = False
        known = [other for other in self._receiver.journal.known(instance.sop_instance_uid) if self._is_alike(other)]
        if any(self._same_bytes(other) for other in known):
            self._file.discard()
            return Stored(instance.series_instance_uid, "duplicate")
        if not known:
            raise OutOfResources("known bytes went in this moment")
        if not all(_is_damaged(other) for other in known):
            raise CannotUnderstand("UID is known with other bytes of the same checksum")
        self._in_doubt = True
        self._receiver.journal.restore(instance)
        _log.error("damaged_bytes_replaced", extra={"series": instance.series_instance_uid})
        return Stored(instance.series_instance_uid, str(instance.state))

    def _is_alike(self, other: KnownInstance) -> bool:
        return (other.length, other.crc32) == (self._file.length, self._file.crc32) and other.path != self._file.path

    def _same_bytes(self, other: KnownInstance) -> bool:
        """Compare data sets; a checksum may be chosen by a sender, so it decides nothing alone (NET-12)."""
        try:
            return _digest(self._file.path, self._file.length) == _digest(other.path, other.length)
        except FileNotFoundError:
            return False  # purged in this moment: to us it is not known


def _digest(path: Path, length: int) -> bytes:
    """SHA-256 over the last `length` bytes of a file: its data set."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - length))
        return hashlib.file_digest(file, "sha256").digest()


def _is_damaged(known: KnownInstance) -> bool:
    """Whether a kept file no longer holds the bytes that were acknowledged: the disk lost or changed them."""
    checksum = 0
    try:
        with known.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - known.length))
            while piece := file.read(_PEEK_BYTES):
                checksum = zlib.crc32(piece, checksum)
    except FileNotFoundError:
        return True
    return size < known.length or checksum != known.crc32


def file_head(request: StoreRequest) -> bytes:
    """Return preamble and file meta information (PS3.10 7.1) for a data set that follows as it is."""
    elements = b"".join(
        (
            struct.pack("<HH2sHI2s", 2, 0x0001, b"OB", 0, 2, b"\0\x01"),
            _meta(0x0002, b"UI", request.sop_class_uid),
            _meta(0x0003, b"UI", request.sop_instance_uid),
            _meta(0x0010, b"UI", request.transfer_syntax_uid),
            _meta(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _meta(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
        )
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(elements)) + elements


def _meta(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii")
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value
