"""Outgoing associations, all by pynetdicom: C-ECHO, C-STORE from the file, C-GET, and a probe that only proposes.

What a peer answers becomes one of four things (NET-23): stored; `PeerUnavailable`, tried again; `PermanentlyRefused`,
never again; `UnknownStatus`, tried a few times. pynetdicom answers an abort or a timeout with an empty Dataset, so that
"is there a status" is asked before what it is.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import build_context, build_role

from node.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.domain.job import Destination
from node.errors import PeerUnavailable, PermanentlyRefused

logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # what matters of it is in our errors
_config.STORE_SEND_CHUNKED_DATASET = True  # from the file, so that its bytes arrive as they are
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False

VERIFICATION, STUDY_ROOT_GET = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.2.2.3"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
_MAXIMUM_PDU = 131072
_MOST_CONTEXTS = 128
_WARNINGS = frozenset((0xB000, 0xB006, 0xB007))
"""Coercion, elements discarded, data set does not match its class: stored all the same (PS3.4 B.2.3)."""
_PENDING = 0xFF00


class UnknownStatus(PeerUnavailable):
    """A status that the standard does not know: tried a few times, then given up."""


class FileToSend(NamedTuple):
    """A DICOM file and what its context must be."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True)
class Sent:
    """What became of one file.

    Attributes
    ----------
    outcome
        `stored`, `warning`, `unavailable`, `refused` or `unknown`.
    status
        C-STORE status; None where there was no context to ask in.
    """

    path: Path
    outcome: str
    status: int | None
    detail: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether the peer has it."""
        return self.outcome in ("stored", "warning")


def echo(destination: Destination) -> None:
    """Ask for C-ECHO; raise PeerUnavailable where there is no good answer."""
    with associate(destination, [(VERIFICATION, (EXPLICIT, IMPLICIT))]) as association:
        if not association.accepted_contexts:
            raise PermanentlyRefused("verification is not accepted")
        _status(association.send_c_echo(), "C-ECHO")


def probe(destination: Destination, sop_classes: Collection[str]) -> frozenset[str]:
    """Propose, and send nothing: return the SOP classes that the peer would store (NET-38)."""
    try:
        with Outbound(destination, sop_classes) as outbound:
            return outbound.accepted
    except PermanentlyRefused:  # not one of them: pynetdicom has no association without contexts
        return frozenset()


def send(
    destination: Destination,
    files: Sequence[tuple[Path, str, str, str]],
    on_each: Callable[[Sent], None],
) -> tuple[Sent, ...]:
    """Send files over as few associations as their contexts allow; a refused file does not stop the others.

    Parameters
    ----------
    files
        Path, SOP Class UID, SOP Instance UID and transfer syntax UID of each, as in its file meta.
    on_each
        Called after each answer.

    Raises
    ------
    PeerUnavailable
        There is no association, or it was lost.
    """
    sent: list[Sent] = []
    for group in _by_contexts([FileToSend(*file) for file in files]):
        syntaxes: dict[str, set[str]] = {}
        for file in group:
            syntaxes.setdefault(file.sop_class_uid, set()).add(file.transfer_syntax_uid)
        with Outbound(destination, tuple(syntaxes), syntaxes) as outbound:
            for file in group:
                sent.append(_send_one(outbound, file.path))
                on_each(sent[-1])
    return tuple(sent)


def files_to_send(folder: Path) -> tuple[tuple[FileToSend, ...], tuple[Path, ...]]:
    """Return the DICOM files below a folder in the order of their names, and the files that are not DICOM."""
    found: list[FileToSend] = []
    others: list[Path] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            meta = read_file_meta_info(path)
            wanted = (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID)
        except (InvalidDicomError, AttributeError, ValueError, EOFError, NotImplementedError):
            others.append(path)
        else:
            found.append(FileToSend(path, *(str(uid) for uid in wanted)))
    return tuple(found), tuple(others)


def fetch_by_get(
    destination: Destination,
    study_uid: str,
    sop_classes: Collection[str],
    folder: Path,
    series_uid: str = "",
) -> tuple[Path, ...]:
    """Fetch the objects of these classes of a study, or of one series, by C-GET; names of files are random (SEC-9).

    Objects of other classes have no context to come in, and are left where they are.

    Raises
    ------
    PeerUnavailable
        No association, or the peer failed.
    PermanentlyRefused
        The peer does not offer C-GET.
    """
    fetched: list[Path] = []

    def keep(event: evt.Event) -> int:
        path = folder / f"{secrets.token_hex(12)}.dcm"
        try:
            path.write_bytes(event.encoded_dataset())
        except OSError:
            path.unlink(missing_ok=True)
            return 0xA700
        fetched.append(path)
        return 0

    contexts = [(STUDY_ROOT_GET, (EXPLICIT, IMPLICIT)), *((uid, (EXPLICIT, IMPLICIT)) for uid in sop_classes)]
    roles = [build_role(uid, scp_role=True) for uid in sop_classes]
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES" if series_uid else "STUDY"
    identifier.StudyInstanceUID = study_uid
    if series_uid:
        identifier.SeriesInstanceUID = series_uid
    with associate(destination, contexts, roles, [(evt.EVT_C_STORE, keep)]) as association:
        if STUDY_ROOT_GET not in {str(context.abstract_syntax) for context in association.accepted_contexts}:
            raise PermanentlyRefused("C-GET is not accepted")
        for answer, _ in association.send_c_get(identifier, UID(STUDY_ROOT_GET)):
            status = _status_of(answer)
            # 0xB000 and 0xA702: some or all objects could not come, which those of other classes cannot.
            if status not in (_PENDING, 0x0000, 0xB000, 0xA702):
                raise PeerUnavailable(f"C-GET ended with status {status:04X}")
    return tuple(fetched)


class Outbound:
    """An association to store by, as a context manager.

    Parameters
    ----------
    sop_classes
        Proposed with Explicit VR Little Endian and, in a context of its own, Implicit: the peer can take both.
    syntaxes
        Other transfer syntaxes for a class, each proposed by itself.
    """

    def __init__(
        self,
        destination: Destination,
        sop_classes: Collection[str],
        syntaxes: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self._destination = destination
        self._contexts = [
            (uid, (syntax,))
            for uid in sop_classes
            for syntax in dict.fromkeys((*(syntaxes or {}).get(uid, ()), EXPLICIT, IMPLICIT))
        ][:_MOST_CONTEXTS]
        self._stack = contextlib.ExitStack()
        self._accepted: dict[str, set[str]] = {}
        self._association: Association | None = None

    def __enter__(self) -> Outbound:
        """Associate; raise PeerUnavailable where the peer does not answer or rejects."""
        self._association = self._stack.enter_context(associate(self._destination, self._contexts))
        for context in self._association.accepted_contexts:
            self._accepted.setdefault(str(context.abstract_syntax), set()).add(str(context.transfer_syntax[0]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release, or abort after an error."""
        self._stack.__exit__(kind, error, trace)

    @property
    def accepted(self) -> frozenset[str]:
        """SOP classes that the peer stores."""
        return frozenset(self._accepted)

    def takes(self, sop_class_uid: str, transfer_syntax_uid: str) -> bool:
        """Whether an object of this class can be sent as it is encoded, or after a change of VR encoding alone."""
        syntaxes = self._accepted.get(sop_class_uid, set())
        if transfer_syntax_uid in (EXPLICIT, IMPLICIT):
            return bool(syntaxes & {EXPLICIT, IMPLICIT})
        return transfer_syntax_uid in syntaxes

    def store(self, path: Path) -> int:
        """Send one file; return the status, which is success or a warning.

        The data set goes out byte for byte where its transfer syntax was accepted; where only Implicit VR was, it is
        re-encoded on its way.

        Raises
        ------
        PeerUnavailable
            Aborted, timed out, or a status of class A7: may work later. `UnknownStatus` where the status is none that
            the standard knows.
        PermanentlyRefused
            No context, or a status of class A9, C or 01.
        """
        association = self._association
        if association is None or not association.is_established:
            raise PeerUnavailable("the association was lost")
        try:
            answer = association.send_c_store(self._what(path))
        except RuntimeError as error:
            raise PeerUnavailable("the association was lost") from error
        except (ValueError, AttributeError) as error:
            raise PermanentlyRefused(f"cannot be sent: {error}") from error
        return _status(answer, "C-STORE")

    def _what(self, path: Path) -> Path | Dataset:
        meta = read_file_meta_info(path)
        syntaxes = self._accepted.get(str(meta.MediaStorageSOPClassUID), set())
        if meta.TransferSyntaxUID in syntaxes:
            return path
        if meta.TransferSyntaxUID in (EXPLICIT, IMPLICIT) and syntaxes & {EXPLICIT, IMPLICIT}:
            return dcmread(path)
        raise PermanentlyRefused("no presentation context was accepted for it")


def _send_one(outbound: Outbound, path: Path) -> Sent:
    try:
        status = outbound.store(path)
    except UnknownStatus as error:
        return Sent(path, "unknown", error.args[1], str(error.args[0]))
    except PermanentlyRefused as error:
        return Sent(path, "refused", error.args[1] if len(error.args) > 1 else None, str(error.args[0]))
    except PeerUnavailable as error:
        if len(error.args) < 2:
            raise  # no answer: the association is gone
        return Sent(path, "unavailable", error.args[1], str(error.args[0]))
    return Sent(path, "warning" if status else "stored", status)


def _by_contexts(files: Sequence[FileToSend]) -> Iterator[list[FileToSend]]:
    """Divide files so that each part needs no more contexts than one association may propose (PS3.8 9.3.2.2)."""
    group: list[FileToSend] = []
    contexts: set[tuple[str, str]] = set()
    for file in files:
        needed = {(file.sop_class_uid, uid) for uid in (file.transfer_syntax_uid, EXPLICIT, IMPLICIT)}
        if group and len(contexts | needed) > _MOST_CONTEXTS:
            yield group
            group, contexts = [], set()
        group.append(file)
        contexts |= needed
    if group:
        yield group


@contextlib.contextmanager
def associate(
    destination: Destination,
    contexts: Sequence[tuple[str, Sequence[str]]],
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[tuple[evt.InterventionEvent, Callable[[evt.Event], int]]] = (),
) -> Iterator[Association]:
    """Open an association; release it at the end and after an answer of the peer, abort it after any other error.

    Parameters
    ----------
    contexts
        Abstract syntax and its transfer syntaxes, of each presentation context.

    Raises
    ------
    PeerUnavailable
        Where the peer does not answer, or rejects the association.
    PermanentlyRefused
        Where it accepts none of the contexts.
    """
    entity = AE(ae_title=destination.calling_ae_title)
    entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_pdu_size = _MAXIMUM_PDU
    wait = destination.network_timeout_s
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = wait
    association = entity.associate(
        destination.host,
        destination.port,
        [build_context(uid, list(syntaxes)) for uid, syntaxes in contexts],
        ae_title=destination.ae_title,
        ext_neg=list(roles),
        evt_handlers=[(evt.EVT_CONN_OPEN, _no_delay), *handlers],
    )
    if not association.is_established:
        raise _not_established(association)
    _take_answers_alone(association)
    try:
        yield association
    except (PeerUnavailable, PermanentlyRefused):
        raise
    except BaseException:
        association.abort()
        raise
    finally:
        if association.is_established:
            association.release()


def _take_answers_alone(association: Association) -> None:
    """Let nobody but the caller of `send_*` take answers from the queue of an association that serves no requests.

    pynetdicom's reactor thread looks for requests of the peer in the same queue. `send_*` pauses it, but believes a
    flag that the thread, woken and not yet running, has left behind; then that thread takes the answer, and the sender
    waits for it until the time is over (pynetdicom 3.0.4, `Association._run_reactor`).
    """
    take = association.dimse.get_msg

    def only_when_awaited(block: bool = False) -> tuple[Any, Any]:
        return take(block) if block else (None, None)

    association.dimse.get_msg = only_when_awaited  # type: ignore[method-assign]


def _not_established(association: Association) -> Exception:
    """Say why; a rejected AE title can be mended at the peer, so that even a "permanent" rejection is tried again."""
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        return PeerUnavailable(f"association rejected: {answer.reason_str} ({answer.result_str}, {answer.source_str})")
    if association.is_aborted and answer is not None and not association.accepted_contexts:
        return PermanentlyRefused("no presentation context was accepted")
    return PeerUnavailable("no association: nobody answers, or the connection was aborted")


def _no_delay(event: evt.Event) -> None:
    sock = event.assoc.dul.socket
    if sock is not None and sock.socket is not None:
        sock.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _status_of(answer: Dataset) -> int:
    """Return the status; an empty answer is pynetdicom's word for an abort or a timeout."""
    if "Status" not in answer:
        raise PeerUnavailable("no answer: aborted or timed out")
    return int(answer.Status)


def _status(answer: Dataset, what: str) -> int:
    """Return a status that means success; raise the error that the others are (NET-23). Its second argument is it."""
    status = _status_of(answer)
    if status == 0 or status in _WARNINGS:
        return status
    comment = str(answer.get("ErrorComment", ""))[:64]
    text = f"{what} answered {status:04X}" + (f" ({comment.encode('unicode_escape').decode()})" if comment else "")
    if status >> 8 == 0xA7:
        raise PeerUnavailable(text, status)
    if status >> 8 in (0xA9, 0x01) or status >> 12 == 0xC:
        raise PermanentlyRefused(text, status)
    raise UnknownStatus(text, status)
