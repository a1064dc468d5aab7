"""The conformance statement says what the tables say, all of it, and nothing else (NET-42)."""

from __future__ import annotations

import re

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID

from node.config import ListenerSection
from node.dicom import conformance, scu
from node.dicom.conformance import CREATED, REJECTIONS, STATEMENT, STORE_ANSWERS, STORE_REACTIONS, main, render
from node.dicom.header_walk import WalkLimits
from node.dicom.pixels import decoders
from node.dicom.storage_classes import COMPRESSED, HELD, PROCESSED, UNCOMPRESSED, VERIFICATION, storage_contexts
from node.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dicom.upper_layer import Limits, Rejection
from node.domain.job import ObjectKind
from node.domain.variants import SEG_CLASSES, proposed_classes
from node.errors import PeerUnavailable, PermanentlyRefused, Refused


@pytest.fixture(scope="module")
def text() -> str:
    return STATEMENT.read_text()


def test_the_file_is_what_the_tables_say() -> None:
    assert main(["--check"]) == 0


def test_a_drift_is_found(tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One changed byte fails the check, and the command without the option mends it."""
    copy = tmp_path / "CONFORMANCE.md"  # type: ignore[operator]
    copy.write_text(STATEMENT.read_text().replace("0117", "0118"))
    monkeypatch.setattr(conformance, "STATEMENT", copy)
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0


def test_every_sop_class_and_syntax_that_is_accepted_appears(text: str) -> None:
    """What is negotiated, not what a table was meant to hold."""
    for context in storage_contexts(decoders()):
        assert f"| {context.abstract_syntax} |" in text
        assert all(f"| {syntax} |" in text for syntax in context.transfer_syntaxes)
    assert f"| {VERIFICATION} |" in text


def test_no_other_uid_of_the_standard_appears(text: str) -> None:
    known = {*PROCESSED, *HELD, *UNCOMPRESSED, *COMPRESSED, VERIFICATION, *(uid for uid, _, _ in CREATED)}
    found = set(re.findall(r"1\.2\.840\.10008[\d.]*\d", text))
    assert found - known == {"1.2.840.10008.3.1.1.1"}, "the application context"


@pytest.mark.parametrize("uid", [*PROCESSED, *HELD])
def test_a_sop_class_has_the_name_of_the_dictionary(uid: str) -> None:
    """A UID with the name of another one would be accepted, and misread by everyone."""
    # pydicom's dictionary does not have Label Map Segmentation yet and answers with the UID.
    assert {**PROCESSED, **HELD}[uid] == UID(uid).name or UID(uid).name == uid == SEG_CLASSES["labelmap"]


@pytest.mark.parametrize("uid", [*UNCOMPRESSED, *COMPRESSED])
def test_a_transfer_syntax_is_one_and_of_the_family_that_it_is_called_by(uid: str) -> None:
    assert UID(uid).is_transfer_syntax
    name = {**UNCOMPRESSED, **COMPRESSED}[uid]
    assert UID(uid).name.startswith(name.split()[0].rstrip(","))


def test_a_syntax_without_a_decoder_is_not_in_the_statement() -> None:
    """NET-6."""
    jpeg_ls = "1.2.840.10008.1.2.4.80"
    assert jpeg_ls in render([jpeg_ls], Limits(), WalkLimits())
    assert jpeg_ls not in render([], Limits(), WalkLimits())


def _all_refusals(kind: type[Refused] = Refused) -> set[type[Refused]]:
    return {kind}.union(*(_all_refusals(below) for below in kind.__subclasses__()))


def test_every_status_that_is_answered_appears(text: str) -> None:
    """Each class of refusal has its row, and each row its line."""
    assert {kind.status for kind in _all_refusals()} <= {row.status for row in STORE_ANSWERS}
    assert all(f"| {row.code} | {row.name} |" in text for row in (*STORE_ANSWERS, *STORE_REACTIONS))


@pytest.mark.parametrize("row", STORE_REACTIONS, ids=lambda row: row.code)
def test_the_reaction_to_a_status_is_the_one_that_is_stated(row: conformance.StatusRow) -> None:
    """NET-23: the sender itself is asked."""
    answer = Dataset()
    answer.Status = row.status
    fate = "stored"
    try:
        scu._status(answer, "C-STORE")
    except scu.UnknownStatus:
        fate = "sent again a few times"
    except PeerUnavailable:
        fate = "sent again later"
    except PermanentlyRefused:
        fate = "not sent again"
    assert row.meaning.lower().startswith(fate)


def test_every_rejection_appears() -> None:
    from node.dicom import upper_layer

    in_code = {value for value in vars(upper_layer).values() if isinstance(value, Rejection)}
    assert in_code == {rejection for rejection, _ in REJECTIONS}


def test_every_class_that_is_proposed_is_created() -> None:
    proposed = {uid for kind in ObjectKind for uid in proposed_classes(kind)}
    assert proposed == {uid for uid, _, _ in CREATED}


def test_identifiers(text: str) -> None:
    """NET-39."""
    assert IMPLEMENTATION_CLASS_UID in text
    assert IMPLEMENTATION_VERSION_NAME in text


def test_the_stated_limits_are_those_of_a_shipped_configuration() -> None:
    """NET-14 to NET-16: who configures nothing runs with what the statement says."""
    shipped, limits, walk = ListenerSection(), Limits(), WalkLimits()
    assert (limits.associations, limits.per_address) == (shipped.max_associations, shipped.max_associations_per_address)
    assert limits.pdu_bytes == shipped.max_pdu_bytes
    assert limits.request_bytes == shipped.max_associate_rq_bytes
    assert limits.command_bytes == shipped.max_command_bytes
    assert limits.object_bytes == shipped.max_object_bytes
    assert (limits.handshake_s, limits.artim_s, limits.progress_s) == (
        shipped.handshake_s,
        shipped.artim_s,
        shipped.progress_s,
    )
    assert (walk.header_bytes, walk.elements, walk.depth) == (
        shipped.max_header_bytes,
        shipped.max_elements,
        shipped.max_depth,
    )
