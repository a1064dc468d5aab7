"""Reading results back from an archive, as a client: which there are, and the objects themselves.

By association that is C-FIND and C-GET; over the web it is QIDO-RS and WADO-RS (`dicomweb-client`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dicomweb_client.web import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
)
from pynetdicom import build_role, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from requests import Session
from requests.adapters import HTTPAdapter
from requests.exceptions import RequestException
from urllib3.util.retry import Retry

from node.dicom.scu import associate
from node.domain.job import Destination
from node.errors import PeerUnavailable
from node.selftest.archive import STUDY_ROOT_FIND, STUDY_ROOT_GET, VERIFICATION

_COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
_ENHANCED_SR = "1.2.840.10008.5.1.4.1.1.88.22"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"

RESULT_CLASSES = (
    SegmentationStorage,
    LABEL_MAP,
    _COMPREHENSIVE_3D_SR,
    ComprehensiveSRStorage,
    _ENHANCED_SR,
    EncapsulatedPDFStorage,
)
"""The classes that results may have."""

_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless)
_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_PENDING = (0xFF00, 0xFF01)


def retrievable(peer: Destination) -> frozenset[str]:
    """The classes of results that an archive gives back by C-GET; none where it offers no C-FIND and C-GET to us.

    An archive may store a class that it knows nothing of, and yet grant no role to give it back in.

    Raises
    ------
    PeerUnavailable
        Where the archive does not answer.
    """
    models = {STUDY_ROOT_FIND, STUDY_ROOT_GET}
    # Verification, as without one accepted context there is no association.
    contexts: list[tuple[str, Sequence[str]]] = [(service, _PLAIN) for service in (VERIFICATION, *models)]
    contexts += [(sop_class, (ExplicitVRLittleEndian,)) for sop_class in RESULT_CLASSES]
    with associate(peer, contexts, _roles()) as association:
        accepted = {str(context.abstract_syntax): context for context in association.accepted_contexts}
    if not models <= set(accepted):
        return frozenset()
    return frozenset(uid for uid in RESULT_CLASSES if uid in accepted and accepted[uid].as_scp)


class Reader(Protocol):
    """One way to read results back."""

    def find_results(self, study_instance_uid: str) -> dict[str, str]:
        """The series of a study that are results: modality by Series Instance UID.

        Raises
        ------
        PeerUnavailable
            Where the archive does not answer.
        """

    def get_series(self, study_instance_uid: str, series: Sequence[str], folder: Path) -> tuple[Path, ...]:
        """Fetch the objects of some series into a folder.

        Raises
        ------
        PeerUnavailable
            Where the archive does not answer, or not all objects came.
        """


@dataclass(frozen=True)
class ByAssociation:
    """C-FIND and C-GET; objects are kept byte for byte as the archive sends them."""

    peer: Destination

    def find_results(self, study_instance_uid: str) -> dict[str, str]:
        """See `Reader`."""
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "SERIES", study_instance_uid
        query.SeriesInstanceUID = query.Modality = ""
        found = {}
        with associate(self.peer, [(STUDY_ROOT_FIND, _PLAIN)]) as association:
            for status, answer in association.send_c_find(query, STUDY_ROOT_FIND):
                if status.get("Status") in _PENDING and answer is not None:
                    found[str(answer.SeriesInstanceUID)] = str(answer.Modality)
        return _results_of(found)

    def get_series(self, study_instance_uid: str, series: Sequence[str], folder: Path) -> tuple[Path, ...]:
        """See `Reader`."""
        folder.mkdir(parents=True, exist_ok=True)
        paths: list[Path] = []

        def keep(event: evt.Event) -> int:
            if not isinstance(event.request, C_STORE):
                return 0xC000
            path = folder / f"{len(paths):02d}.dcm"
            path.write_bytes(event.encoded_dataset())
            paths.append(path)
            return 0x0000

        # A context for each syntax: an archive that cannot convert then has the one that it needs.
        results = [(sop_class, (syntax,)) for sop_class, syntax in itertools.product(RESULT_CLASSES, _SYNTAXES)]
        contexts = [(STUDY_ROOT_GET, _PLAIN), *results]
        with associate(self.peer, contexts, _roles(), [(evt.EVT_C_STORE, keep)]) as association:
            for series_instance_uid in series:
                query = Dataset()
                query.QueryRetrieveLevel, query.StudyInstanceUID = "SERIES", study_instance_uid
                query.SeriesInstanceUID = series_instance_uid
                last = 0xC000
                for status, _ in association.send_c_get(query, STUDY_ROOT_GET):
                    last = int(status.get("Status", 0xC000))
                if last != 0x0000:
                    association.abort()
                    raise PeerUnavailable(f"{self.peer.name}: C-GET of a result ended with status 0x{last:04X}")
        return tuple(paths)


class OverTheWeb:
    """QIDO-RS and WADO-RS (PS3.18) at `Destination.dicomweb_url`; a password is read from ~/.netrc."""

    def __init__(self, peer: Destination) -> None:
        self._name = peer.name
        # A server that is busy storing may close a connection before it answers: reading again changes nothing there.
        again = Retry(total=4, backoff_factor=0.5, status=0, redirect=0, allowed_methods=("GET",))
        session = Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=again))
        # A connection for each request: servers close idle ones, and whoever polls would meet that.
        closing = {"Connection": "close"}
        timeout_s = peer.network_timeout_s
        self._client = DICOMwebClient(peer.dicomweb_url, session=session, timeout=timeout_s, headers=closing)
        self._client.set_http_retry_params(retry=False)  # whoever waits for results asks again

    def find_results(self, study_instance_uid: str) -> dict[str, str]:
        """See `Reader`."""
        with self._spoken_of():
            answers = self._client.search_for_series(study_instance_uid)
        listed = [Dataset.from_json(answer) for answer in answers]
        return _results_of({str(each.SeriesInstanceUID): str(each.get("Modality", "")) for each in listed})

    def get_series(self, study_instance_uid: str, series: Sequence[str], folder: Path) -> tuple[Path, ...]:
        """See `Reader`; the encoding is the one in which the archive holds each object."""
        folder.mkdir(parents=True, exist_ok=True)
        paths: list[Path] = []
        for series_instance_uid in series:
            with self._spoken_of():
                objects = self._client.retrieve_series(
                    study_instance_uid, series_instance_uid, media_types=(("application/dicom", "*"),)
                )
            for each in objects:
                paths.append(folder / f"{len(paths):02d}.dcm")
                each.save_as(paths[-1], enforce_file_format=True)
        return tuple(paths)

    @contextmanager
    def _spoken_of(self) -> Iterator[None]:
        """Turns what the library raises into this node's own error."""
        try:
            yield
        except (RequestException, ValueError, InvalidDicomError) as error:
            raise PeerUnavailable(f"{self._name}: DICOMweb: {error}") from error


def _results_of(found: dict[str, str]) -> dict[str, str]:
    return {uid: modality for uid, modality in found.items() if modality in ("SEG", "SR", "DOC")}


def _roles() -> list[SCP_SCU_RoleSelectionNegotiation]:
    """Results come back to us as the SCP of their classes (PS3.7 D.3.3.4)."""
    return [build_role(sop_class, scp_role=True) for sop_class in RESULT_CLASSES]
