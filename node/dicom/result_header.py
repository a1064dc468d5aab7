"""The attributes that every result shares: patient and study as the source has them, the rest ours (table 3.3)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from datetime import timedelta, timezone
from typing import cast

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.sr.coding import Code as PydicomCode
from pydicom.tag import Tag
from pydicom.uid import UID

from node.dicom.composition import Composition, ResultStyle
from node.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.domain.instance import MANUFACTURER, MODEL_NAME
from node.domain.job import ObjectKind
from node.domain.segments import Code
from node.domain.stack import Stack
from node.errors import Unsuitable

_PATIENT = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID"),
    *("PatientBirthDate", "PatientBirthTime", "PatientSex", "OtherPatientIDs", "OtherPatientIDsSequence"),
    *("OtherPatientNames", "QualityControlSubject", "EthnicGroup", "PatientComments"),
    *("PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription"),
    *("PatientBreedCodeSequence", "BreedRegistrationSequence", "ResponsiblePerson", "ResponsiblePersonRole"),
    *("ResponsibleOrganization", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("DeidentificationMethodCodeSequence",),
)
_STUDY = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
    *("ReferringPhysicianIdentificationSequence", "StudyID", "AccessionNumber", "IssuerOfAccessionNumberSequence"),
    *("StudyDescription", "PhysiciansOfRecord", "ProcedureCodeSequence", "LongitudinalTemporalInformationModified"),
    *("AdmittingDiagnosesDescription", "PatientAge", "PatientSize", "PatientWeight", "PregnancyStatus"),
    *("SmokingStatus", "Occupation", "AdditionalPatientHistory", "PatientSexNeutered", "ReasonForVisit"),
    *("AdmissionID", "IssuerOfAdmissionIDSequence"),
)
_TRIAL = (
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID"),
    *("ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID"),
    *("ClinicalTrialTimePointDescription", "ClinicalTrialProtocolEthicsCommitteeName"),
    *("ClinicalTrialProtocolEthicsCommitteeApprovalNumber",),
)
COPIED = (*_PATIENT, *_STUDY, *_TRIAL)
"""Copied verbatim; every source must agree on them (RES-31)."""
COPIED_IF_AGREED = ("TimezoneOffsetFromUTC", "SpecificCharacterSet")
"""Copied where all sources agree; on the character set they must."""

_REQUIRED_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
"""Type 2: present even where the source lacks them."""

_SCANNER = Code("109101", "DCM", "Acquisition Equipment")
_PRODUCT = Code("109102", "DCM", "Processing Equipment")
_ALGORITHM = Code("Newcode1", "99IHE", "Processing Algorithm")

_SERIES_STEP = 10_000
_KINDS = (ObjectKind.SEG, ObjectKind.SR, ObjectKind.PDF)
_LONGEST_IS = 2**31 - 1


def check_sources(sources: Sequence[Dataset]) -> None:
    """That all sources agree on what results copy from them (RES-31).

    Raises
    ------
    Unsuitable
        `conflicting_headers`, naming the attributes and never their values.
    """
    disagreed = [keyword for keyword in (*COPIED, "SpecificCharacterSet") if not _agreed(sources, keyword)]
    if disagreed:
        raise Unsuitable("conflicting_headers", f"the slices do not agree on {', '.join(disagreed)}")


def agreed_element(sources: Sequence[Dataset], keyword: str) -> DataElement | RawDataElement | None:
    """The element where every source has the same, not empty, value; else None."""
    if not encoded(sources[0], keyword) or not _agreed(sources, keyword):
        return None
    return sources[0].get_item(keyword)


def agreed_text(sources: Sequence[Dataset], keyword: str) -> str:
    """The value as text where every source has the same; else empty. For attributes without character set only."""
    return encoded(sources[0], keyword).decode("ascii", "replace") if _agreed(sources, keyword) else ""


def agreed_value(sources: Sequence[Dataset], keyword: str) -> str:
    """The value decoded by the source's character set, where every source has the same; else empty."""
    element = agreed_element(sources, keyword)
    return "" if element is None else str(_decoded(element, sources[0]).value)


def agreed_date(sources: Sequence[Dataset], keyword: str) -> str:
    """A DA as 2026-01-31, where every source has the same and it is one; else empty."""
    text = agreed_text(sources, keyword)
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdecimal() else ""


def start_result(c: Composition, kind: ObjectKind, variant: str, sop_class_uid: str, syntax: str) -> Dataset:
    """A data set with the patient, study, series, equipment and SOP common attributes of a result."""
    result = Dataset()
    result.file_meta = _file_meta(sop_class_uid, c.uid(kind, variant), syntax)
    copy_verbatim(c.sources, result, (*COPIED, *COPIED_IF_AGREED), utf8=c.style.utf8)
    for keyword in _REQUIRED_EMPTY:
        if keyword not in result:
            setattr(result, keyword, None)
    result.SOPClassUID = sop_class_uid
    result.SOPInstanceUID = c.uid(kind, variant)
    result.SeriesInstanceUID = c.uid("series", kind)
    result.SeriesNumber = series_number(c, kind)
    result.SeriesDescription = series_description(c, kind)
    result.InstanceNumber = 1
    _add_equipment(result, c)
    _add_times(result, c)
    if c.style.research_use:
        result.ContentQualification = "RESEARCH"
    return result


def copy_verbatim(sources: Sequence[Dataset], result: Dataset, keywords: Iterable[str], *, utf8: bool = False) -> None:
    """Copy what the sources agree on, byte for byte; with `utf8`, decoded and marked for encoding in ISO_IR 192.

    Results with copied bytes are written through `set_original_encoding`, so that pydicom does not decode them.
    """
    for keyword in keywords:
        element = agreed_element(sources, keyword)
        if element is None:
            continue
        result[element.tag] = _decoded(element, sources[0]) if utf8 else _raw(element, sources[0])
    if utf8:
        result.SpecificCharacterSet = "ISO_IR 192"
    else:
        encodings = _encodings(sources[0])
        result.set_original_encoding(is_implicit_vr=False, is_little_endian=True, character_encoding=encodings)


def series_number(c: Composition, kind: ObjectKind) -> int:
    """The SeriesNumber of one kind of these results (RES-14)."""
    return numbers_in_turn(c.stack, c.style, c.series_turn)[_KINDS.index(kind)]


def numbers_in_turn(stack: Stack, style: ResultStyle, turn: int) -> tuple[int, ...]:
    """Numbers for SEG, SR and PDF: base plus the source's number, in a range of its own for each kind (RES-14).

    Sources with different numbers never collide in their first turn. Where a result of the study has one of these
    numbers already (two models or two stacks of one series, two series of one number) the next turn is taken.
    """
    source, base = stack.frames[0].header.series_number, style.series_number_base
    if source is None or source < 1 or source > (_LONGEST_IS - base) // 4 - _SERIES_STEP:
        source = 1 + int(stack.volume_id[:8], 16) % (_SERIES_STEP - 1)
    kinds = len(_KINDS)
    first = [n * _SERIES_STEP + source if source < _SERIES_STEP else kinds * source + n for n in range(kinds)]
    return tuple(base + number + turn * kinds * _SERIES_STEP for number in first)


def series_description(c: Composition, kind: ObjectKind) -> str:
    """At most 64 characters: use, kind, model, version, number of the source series (RES-13, RES-14)."""
    made, number = c.findings.provenance, c.stack.frames[0].header.series_number
    use = "RUO " if c.style.research_use else ""
    tail = f" {made.model_version[:16]}" + ("" if number is None else f" {number}")
    head = f"{use}AI {kind.upper()} "
    return head + made.model_name[: 64 - len(head) - len(tail)] + tail


def code_item(code: Code) -> Dataset:
    """An item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def coded(code: Code) -> PydicomCode:
    """Our code as pydicom's, which highdicom takes."""
    return PydicomCode(code.value, code.scheme, code.meaning)


def referenced_series(c: Composition) -> list[Dataset]:
    """Items for ReferencedSeriesSequence: every instance of the stack, by series."""
    series: dict[str, list[Dataset]] = {}
    for header in {frame.sop_instance_uid: frame.header for frame in c.stack.frames}.values():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.sop_class_uid, header.sop_instance_uid
        series.setdefault(header.series_instance_uid, []).append(item)
    items = []
    for uid, instances in series.items():
        item = Dataset()
        item.SeriesInstanceUID, item.ReferencedInstanceSequence = uid, instances
        items.append(item)
    return items


def _file_meta(sop_class_uid: str, sop_instance_uid: str, syntax: str) -> FileMetaDataset:
    """File meta information with our own implementation (NET-39)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def _add_equipment(result: Dataset, c: Composition) -> None:
    """General and Enhanced General Equipment: ours; Contributing Equipment: the scanner, and the algorithm."""
    style = c.style
    result.Manufacturer, result.ManufacturerModelName = style.manufacturer, style.model_name
    result.DeviceSerialNumber, result.SoftwareVersions = style.serial, style.software_version
    result.InstanceCreatorUID = IMPLEMENTATION_CLASS_UID
    result.ContributingEquipmentSequence = [_scanner(c), _product(c), _algorithm(c)]


def _scanner(c: Composition) -> Dataset:
    """The equipment that made the images, as far as all of them agree."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item(_SCANNER)]
    item.Manufacturer = ""
    names = ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "StationName")
    copy_verbatim(c.sources, item, names, utf8=c.style.utf8)
    item.pop("SpecificCharacterSet", None)
    if not item.Manufacturer:
        item.Manufacturer = "unknown"
    return item


def _product(c: Composition) -> Dataset:
    """Our own name, whatever the site calls the product: by it a result that comes back is known (NET-36)."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item(_PRODUCT)]
    item.Manufacturer, item.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    item.SoftwareVersions = c.style.software_version
    return item


def _algorithm(c: Composition) -> Dataset:
    """The algorithm; IHE AIR gives the purpose a provisional code only."""
    made = c.findings.provenance
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item(_ALGORITHM)]
    item.Manufacturer, item.ManufacturerModelName = c.style.manufacturer, made.model_name[:64]
    item.SoftwareVersions = made.model_version[:64]
    item.DeviceUID = c.model_uid
    item.ContributionDescription = "Segmentation by neural network"
    return item


def _add_times(result: Dataset, c: Composition) -> None:
    """Generated times, in the zone that the result states; a zone is added only where the site configured one."""
    offset = agreed_text(c.sources, "TimezoneOffsetFromUTC") or c.style.utc_offset(c.made_at)
    local = c.made_at.astimezone(_zone(offset))
    if offset:
        result.TimezoneOffsetFromUTC = offset
    date, time = local.strftime("%Y%m%d"), local.strftime("%H%M%S")
    result.SeriesDate = result.ContentDate = result.InstanceCreationDate = date
    result.SeriesTime = result.ContentTime = result.InstanceCreationTime = time


def _zone(offset: str | None) -> timezone | None:
    """`+0130` as a zone; None, this machine's own, where nothing is stated or it cannot be read."""
    if not offset or len(offset) != 5 or offset[0] not in "+-" or not offset[1:].isdecimal():
        return None
    minutes = int(offset[1:3]) * 60 + int(offset[3:5])
    return timezone(timedelta(minutes=minutes if offset[0] == "+" else -minutes))


def _agreed(sources: Sequence[Dataset], keyword: str) -> bool:
    """Whether an attribute is the same in all sources; absent and empty are the same."""
    first = encoded(sources[0], keyword)
    return all(encoded(source, keyword) == first for source in sources[1:])


def encoded(source: Dataset, keyword: str) -> bytes:
    """The value as it stands or would stand in the file, without padding; empty where it is absent.

    Of a name, without the separators of components that are not there, which mean nothing (PS3.5 6.2.1.1).
    """
    tag = Tag(cast(int, tag_for_keyword(keyword)))
    if tag not in source:
        return b""
    element = source.get_item(tag)
    if isinstance(element, RawDataElement) and dictionary_VR(tag) != "SQ":
        value = element.value or b""
    else:
        value = _write(_decoded(element, source), source)
    if dictionary_VR(tag) == "PN":
        return b"=".join(group.rstrip(b" ^\0") for group in value.split(b"="))
    return value.rstrip(b" \0")


def _encodings(source: Dataset) -> str | list[str]:
    """Python's names for the source's character sets."""
    stated = source.get("SpecificCharacterSet")
    return convert_encodings(stated) if stated else default_encoding


def _write(element: DataElement, source: Dataset) -> bytes:
    """The value field of an element in Explicit VR Little Endian, in the character set of its source."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    write_data_element(buffer, element, source.get("SpecificCharacterSet", default_encoding))
    return buffer.getvalue()[8:]


def _decoded(element: DataElement | RawDataElement | None, source: Dataset) -> DataElement:
    """An element of its own with its values decoded; the source is left as it is."""
    if isinstance(element, RawDataElement):
        return convert_raw_data_element(element, encoding=_encodings(source), ds=source)
    return copy.deepcopy(cast(DataElement, element))


def _raw(element: DataElement | RawDataElement, source: Dataset) -> DataElement | RawDataElement:
    """The element with its bytes as they were; sequences and numbers decoded."""
    vr = dictionary_VR(element.tag)
    if vr in ("SQ", "US", "CS", "UI"):
        return _decoded(element, source)
    value = element.value if isinstance(element, RawDataElement) else _write(element, source)
    value = (value or b"") + (b" " if len(value or b"") % 2 else b"")
    return RawDataElement(element.tag, vr, len(value), value, 0, False, True, True)
