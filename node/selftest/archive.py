"""A small PACS for demo, self-test and tests: C-ECHO, C-STORE, C-FIND and C-GET over one folder, on loopback.

It keeps what it is sent byte for byte. It can be told to misbehave: to refuse classes, to answer a given status, to
be slow.
"""

from __future__ import annotations

import fnmatch
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import generate_uid
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import EventHandlerType

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
VERIFICATION = "1.2.840.10008.1.1"

_PENDING = 0xFF00
_SUCCESS = 0x0000
_CANNOT_UNDERSTAND = 0xC000
_CANCELLED = 0xFE00

_LEVEL_KEY = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
_QUERY_CONTROL = {"QueryRetrieveLevel", "SpecificCharacterSet", "RetrieveAETitle"}


@dataclass(frozen=True)
class Behaviour:
    """How the archive answers; the ordinary one takes everything at once.

    Attributes
    ----------
    refused_sop_classes
        Never accepted when an association is negotiated.
    statuses
        C-STORE status by SOP class; an object that is answered with a failure is not kept.
    answer_after_s
        How long each C-STORE waits for its answer.
    offers_retrieval
        Whether C-FIND and C-GET are offered.
    """

    refused_sop_classes: frozenset[str] = frozenset()
    statuses: Mapping[str, int] = field(default_factory=dict)
    answer_after_s: float = 0.0
    offers_retrieval: bool = True


@dataclass(frozen=True)
class Kept:
    """One object as it was sent."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    path: Path
    status: int
    received_at: float
    """Monotonic clock, s."""


class Archive:
    """A running archive; a context manager that stops it. Every object, sent once or again, is a row of `received`."""

    def __init__(
        self,
        folder: Path,
        ae_title: str = "ARCHIVE",
        host: str = "127.0.0.1",
        port: int = 0,
        behaviour: Behaviour | None = None,
    ) -> None:
        """Start to listen.

        Parameters
        ----------
        folder
            Where objects are kept; objects of an earlier run that lie there are found again.
        port
            0 takes a free one; `port` then says which.

        Raises
        ------
        OSError
            Where the port is taken.
        """
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._stopped = False
        self._received: list[Kept] = []
        self._index: dict[str, Dataset] = {}
        for path in sorted(folder.glob("*.dcm")):
            self._remember(path)
        self.behaviour = behaviour or Behaviour()
        self.ae_title = ae_title
        self.host = host
        entity = AE(ae_title=ae_title)
        _support(entity, self.behaviour)
        entity.maximum_pdu_size = 131072
        handlers: list[EventHandlerType] = [
            (evt.EVT_C_ECHO, _answer_echo),
            (evt.EVT_C_STORE, self._keep),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_C_GET, self._get),
        ]
        server = entity.start_server((host, port), block=False, evt_handlers=handlers)
        if server is None:
            raise OSError(f"{host}:{port}: the archive's server did not start")
        self._server = server
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop to listen and end open associations; a second time does nothing."""
        if not self._stopped:
            self._stopped = True
            self._server.shutdown()

    @property
    def received(self) -> tuple[Kept, ...]:
        """All C-STOREs since the start, in order of their answers, repeated and failed ones included."""
        with self._lock:
            return tuple(self._received)

    def objects(self, sop_class_uid: str | None = None) -> tuple[Kept, ...]:
        """What is kept now: the last of each SOP Instance, of one class or of all."""
        latest = {kept.sop_instance_uid: kept for kept in self.received if kept.status == _SUCCESS}
        return tuple(kept for kept in latest.values() if sop_class_uid in (None, kept.sop_class_uid))

    def _keep(self, event: evt.Event) -> int:
        request = event.request
        if not isinstance(request, C_STORE):
            return _CANNOT_UNDERSTAND
        if self.behaviour.answer_after_s:
            time.sleep(self.behaviour.answer_after_s)
        status = self.behaviour.statuses.get(str(request.AffectedSOPClassUID), _SUCCESS)
        path = self._folder / f"{generate_uid()}.dcm"
        if status == _SUCCESS:
            path.write_bytes(event.encoded_dataset())
        row = Kept(
            str(request.AffectedSOPClassUID),
            str(request.AffectedSOPInstanceUID),
            str(event.context.transfer_syntax),
            str(event.assoc.requestor.ae_title).strip(),
            path,
            status,
            time.monotonic(),
        )
        if status == _SUCCESS:
            self._remember(path)
        with self._lock:
            self._received.append(row)
        return status

    def _remember(self, path: Path) -> None:
        header = dcmread(path, stop_before_pixels=True)
        header.filename = path
        with self._lock:
            self._index[str(header.SOPInstanceUID)] = header

    def _matches(self, query: Dataset) -> list[Dataset]:
        with self._lock:
            headers = list(self._index.values())
        return [header for header in headers if all(_agrees(header, element) for element in query)]

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        level = str(query.get("QueryRetrieveLevel", ""))
        if level not in _LEVEL_KEY:
            yield _CANNOT_UNDERSTAND, None
            return
        answered = set()
        for header in self._matches(query):
            key = header.get(_LEVEL_KEY[level])
            if key in answered:
                continue
            if event.is_cancelled:
                yield _CANCELLED, None
                return
            answered.add(key)
            yield _PENDING, self._answer(query, header, level)

    def _answer(self, query: Dataset, header: Dataset, level: str) -> Dataset:
        answer = Dataset()
        for element in query:
            if element.keyword and element.keyword in header:
                answer[element.tag] = header[element.tag]
        answer.QueryRetrieveLevel, answer.RetrieveAETitle = level, self.ae_title
        setattr(answer, _LEVEL_KEY[level], header.get(_LEVEL_KEY[level]))
        if "SpecificCharacterSet" in header:
            answer.SpecificCharacterSet = header.SpecificCharacterSet
        return answer

    def _get(self, event: evt.Event) -> Iterator[int | tuple[int, Dataset | None]]:
        found = self._matches(event.identifier)
        yield len(found)
        for header in found:
            if event.is_cancelled:
                yield _CANCELLED, None
                return
            yield _PENDING, dcmread(header.filename)


def _answer_echo(_: evt.Event) -> int:
    return _SUCCESS


def _support(entity: AE, behaviour: Behaviour) -> None:
    """Verification, query and retrieve, and all storage classes but the refused ones, in both roles for C-GET."""
    retrieval = (STUDY_ROOT_FIND, STUDY_ROOT_GET) if behaviour.offers_retrieval else ()
    for service in (VERIFICATION, *retrieval):
        entity.add_supported_context(service)
    for storage in AllStoragePresentationContexts:
        if storage.abstract_syntax is not None and storage.abstract_syntax not in behaviour.refused_sop_classes:
            entity.add_supported_context(storage.abstract_syntax, ALL_TRANSFER_SYNTAXES, scu_role=True, scp_role=True)


def _agrees(header: Dataset, element: object) -> bool:
    """Single value, list of UID and wildcard matching (PS3.4 C.2.2.2); an empty key is universal."""
    keyword, wanted = element.keyword, element.value  # type: ignore[attr-defined]
    if not keyword or keyword in _QUERY_CONTROL or wanted in (None, ""):
        return True
    there = str(header.get(keyword, ""))
    options = list(wanted) if isinstance(wanted, MultiValue) else [wanted]
    return not options or any(fnmatch.fnmatchcase(there, str(option)) for option in options)
