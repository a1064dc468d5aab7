"""Reading results back from an archive, as a client: which there are (C-FIND), and the objects themselves (C-GET)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
)
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation

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
_PENDING = (0xFF00, 0xFF01)


def retrievable(peer: Destination) -> frozenset[str]:
    """The classes of results that an archive gives back by C-GET; none where it offers no C-FIND and C-GET to us.

    An archive may store a class that it knows nothing of, and yet grant no role to give it back in.

    Raises
    ------
    PeerUnavailable
        Where the archive does not answer.
    """
    entity = AE(ae_title=peer.calling_ae_title)
    models = {STUDY_ROOT_FIND, STUDY_ROOT_GET}
    for service in (VERIFICATION, *models):  # without one accepted context there is no association
        entity.add_requested_context(service)
    for sop_class in RESULT_CLASSES:
        entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
    association = _associate(entity, peer, _roles())
    accepted = {str(context.abstract_syntax): context for context in association.accepted_contexts}
    association.release()
    if not models <= set(accepted):
        return frozenset()
    return frozenset(uid for uid in RESULT_CLASSES if uid in accepted and accepted[uid].as_scp)


def find_results(peer: Destination, study_instance_uid: str) -> dict[str, str]:
    """The series of a study that are results: modality by Series Instance UID.

    Raises
    ------
    PeerUnavailable
        Where the archive does not answer.
    """
    entity = AE(ae_title=peer.calling_ae_title)
    entity.add_requested_context(STUDY_ROOT_FIND)
    association = _associate(entity, peer)
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID = "SERIES", study_instance_uid
    query.SeriesInstanceUID = query.Modality = ""
    found = {}
    for status, answer in association.send_c_find(query, STUDY_ROOT_FIND):
        if status.get("Status") in _PENDING and answer is not None:
            found[str(answer.SeriesInstanceUID)] = str(answer.Modality)
    association.release()
    return {uid: modality for uid, modality in found.items() if modality in ("SEG", "SR", "DOC")}


def get_series(peer: Destination, study_instance_uid: str, series: Sequence[str], folder: Path) -> tuple[Path, ...]:
    """Fetch the objects of some series by C-GET into a folder, byte for byte as the archive sends them.

    Raises
    ------
    PeerUnavailable
        Where the archive does not answer, or not all objects came.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []

    def keep(event: evt.Event) -> int:
        if not isinstance(event.request, C_STORE):
            return 0xC000
        path = folder / f"{len(paths):02d}.dcm"
        path.write_bytes(event.encoded_dataset())
        paths.append(path)
        return 0x0000

    entity = AE(ae_title=peer.calling_ae_title)
    entity.add_requested_context(STUDY_ROOT_GET)
    for sop_class, syntax in itertools.product(RESULT_CLASSES, _SYNTAXES):
        # A context for each syntax: an archive that cannot convert then has the one that it needs.
        entity.add_requested_context(sop_class, syntax)
    association = _associate(entity, peer, _roles(), [(evt.EVT_C_STORE, keep)])
    for series_instance_uid in series:
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "SERIES", study_instance_uid
        query.SeriesInstanceUID = series_instance_uid
        last = 0xC000
        for status, _ in association.send_c_get(query, STUDY_ROOT_GET):
            last = int(status.get("Status", 0xC000))
        if last != 0x0000:
            association.abort()
            raise PeerUnavailable(f"{peer.name}: C-GET of a result ended with status 0x{last:04X}")
    association.release()
    return tuple(paths)


def _roles() -> list[SCP_SCU_RoleSelectionNegotiation]:
    """Results come back to us as the SCP of their classes (PS3.7 D.3.3.4)."""
    return [build_role(sop_class, scp_role=True) for sop_class in RESULT_CLASSES]


def _associate(
    entity: AE,
    peer: Destination,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[EventHandlerType] = (),
) -> Association:
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = peer.network_timeout_s
    association = entity.associate(
        peer.host, peer.port, ae_title=peer.ae_title, ext_neg=list(roles), evt_handlers=list(handlers)
    )
    if not association.is_established:
        raise PeerUnavailable(f"{peer.name}: no association with {peer.ae_title} at {peer.host}:{peer.port}")
    return association
