"""The findings as a structured report: TID 1500, one measurement group for each organ (PS3.16; REQUIREMENTS 3.5)."""

from __future__ import annotations

from typing import Any

from highdicom import sr
from pydicom import Dataset
from pydicom.sr.coding import Code as PydicomCode
from pydicom.uid import ExplicitVRLittleEndian

from node.dicom.composition import Composition, Predecessor
from node.dicom.result_header import agreed_element, coded, copy_verbatim, referenced_series, start_result
from node.dicom.seg import tracking
from node.domain.findings import Finding, Outcome
from node.domain.job import ObjectKind
from node.domain.segments import SegmentDescription
from node.domain.variants import NO_SEG, SR_CLASSES, sop_class_of, sr_variant

RESEARCH_LINE = "For research use only. Not for clinical use."
"""The line that every page and report of research use bears (RES-13)."""

_REPORT = PydicomCode("126000", "DCM", "Imaging Measurement Report")
_ANY_PROCEDURE = PydicomCode("363679005", "SCT", "Imaging procedure")
_LANGUAGE = PydicomCode("en", "RFC5646", "English")
_VOLUME = PydicomCode("118565006", "SCT", "Volume")
_CUBIC_CENTIMETRE = PydicomCode("cm3", "UCUM", "Cubic centimeter")
_VOXEL_SUM = PydicomCode("126030", "DCM", "Sum of segmented voxel method for volume")
_FAMILY = PydicomCode("123110", "DCM", "Artificial Intelligence")
_COMMENT = PydicomCode("121106", "DCM", "Comment")
_QUALITY = PydicomCode("111052", "DCM", "Quality Finding")
_LATERALITIES = frozenset({"7771000", "24028007", "51440002"})
_ANSWERS = {
    Outcome.PARTIAL: PydicomCode("130576", "DCM", "Anatomy coverage incomplete"),
    Outcome.NOT_FOUND: PydicomCode("122288", "DCM", "Not visualized"),
    Outcome.NOT_EVALUATED: PydicomCode("373121007", "SCT", "Not Evaluated"),
}
"""What is said of a segment that was not plainly measured; CIDs 6315 and 3703."""


def report_content(c: Composition, seg_variant: str) -> Dataset:
    """The content tree, from the root container downwards; the same for every SR class.

    Parameters
    ----------
    seg_variant
        The form of SEG that the report refers to; `none` where there is none.
    """
    groups = [_group(c, finding, seg_variant) for finding in c.findings.findings]
    report = sr.MeasurementReport(
        observation_context=_observer(c),
        procedure_reported=_procedure(c),
        imaging_measurements=groups,
        title=_REPORT,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            sr.CodedConcept.from_code(_LANGUAGE)
        ),
    )
    root = report[0]
    lines = ([RESEARCH_LINE] if c.style.research_use else []) + list(c.findings.flags)
    root.ContentSequence.extend(_comment(line) for line in lines)
    return root


def build_sr(
    c: Composition, form: str, seg_variant: str, content: Dataset, earlier: Predecessor | None = None
) -> Dataset:
    """A report of one SR class around a content tree.

    Parameters
    ----------
    form
        `comprehensive3d`, `comprehensive` or `enhanced`.
    content
        From `report_content` with the same `seg_variant`; shared between the classes, never changed.
    earlier
        The report that this one replaces.
    """
    syntax = str(ExplicitVRLittleEndian)
    variant = sr_variant(form, seg_variant, earlier.sr_sop_instance_uid if earlier else "")
    result = start_result(c, ObjectKind.SR, variant, SR_CLASSES[form], syntax)
    result.Modality = "SR"
    result.CompletionFlag, result.VerificationFlag = "COMPLETE", "UNVERIFIED"
    if c.style.preliminary:
        result.PreliminaryFlag = "PRELIMINARY"
    result.ReferencedPerformedProcedureStepSequence = []
    result.PerformedProcedureCodeSequence = []
    result.CurrentRequestedProcedureEvidenceSequence = [_evidence(c, seg_variant)]
    _add_request(result, c)
    if earlier is not None:
        result.PredecessorDocumentsSequence = [_predecessor(earlier)]
    for element in content:
        result[element.tag] = element
    return result


def rounded_ml(volume_ml: float) -> float:
    """A volume as the report states it: to 0.01 below 100, else to 0.1; what is there is never 0 (RES-12)."""
    if volume_ml >= 100:
        return round(volume_ml, 1)
    return round(volume_ml, 2) or float(f"{volume_ml:.2g}")


def _observer(c: Composition) -> sr.ObservationContext:
    """The device that made it, and no person (TID 1001, 1002, 1004)."""
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=c.model_uid,
        name=c.style.deployment,
        manufacturer_name=c.style.manufacturer,
        model_name=c.style.model_name,
        serial_number=c.style.serial,
    )
    context = sr.ObserverContext(sr.CodedConcept("121007", "DCM", "Device"), device)
    return sr.ObservationContext(observer_device_context=context)


def _procedure(c: Composition) -> PydicomCode:
    """The imaging procedure that the report is about, never the algorithm (121058)."""
    for sequence in ("ProcedureCodeSequence", "RequestAttributesSequence"):
        if agreed_element(c.sources, sequence) is None:
            continue
        item = c.sources[0][sequence].value[0]
        if sequence == "RequestAttributesSequence":
            item = next(iter(item.get("RequestedProcedureCodeSequence") or []), Dataset())
        parts = tuple(str(item.get(part, "")) for part in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"))
        if all(parts) and all(part.isascii() for part in parts):
            return PydicomCode(*parts)
    return _ANY_PROCEDURE


def _group(
    c: Composition, finding: Finding, seg_variant: str
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations | sr.MeasurementsAndQualitativeEvaluations:
    """One organ: TID 1411 where it has a segment, TID 1501 where there is only an answer (RES-6)."""
    segment, made = finding.segment, c.findings.provenance
    tracking_id, tracking_uid = tracking(c, finding)
    shared: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(uid=tracking_uid, identifier=tracking_id),
        "finding_category": coded(segment.category),
        "finding_type": coded(segment.type),
        "finding_sites": [_site(segment)],
        "algorithm_id": sr.AlgorithmIdentification(
            name=made.model_name,
            version=made.model_version,
            parameters=[
                f"model {made.model_digest}",
                f"configuration {made.config_digest}",
                f"engine {made.engine}",
                *(f"{name} {text}" for name, text in (("way", made.way), ("choice", made.choice)) if text),
            ],
            family=_FAMILY,
        ),
        "qualitative_evaluations": _evaluations(finding),
    }
    group: sr.VolumetricROIMeasurementsAndQualitativeEvaluations | sr.MeasurementsAndQualitativeEvaluations
    if finding.segment_number is None:
        group = sr.MeasurementsAndQualitativeEvaluations(**shared)
    else:
        group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=_referenced_segment(c, finding.segment_number, seg_variant),
            measurements=_measurements(finding),
            **shared,
        )
    group[0].ContentSequence.extend(_comment(flag) for flag in finding.flags)
    return group


def _site(segment: SegmentDescription) -> sr.FindingSite:
    """The organ as finding site, with its side or part."""
    modifier = segment.modifier
    if modifier is None:
        return sr.FindingSite(coded(segment.type))
    if modifier.value in _LATERALITIES:
        return sr.FindingSite(coded(segment.type), laterality=coded(modifier))
    return sr.FindingSite(coded(segment.type), topographical_modifier=coded(modifier))


def _measurements(finding: Finding) -> list[sr.Measurement] | None:
    """The volume; nothing where none was computed, never 0."""
    if finding.volume_ml is None:
        return None
    value = rounded_ml(finding.volume_ml)
    return [sr.Measurement(name=_VOLUME, value=value, unit=_CUBIC_CENTIMETRE, method=_VOXEL_SUM)]


def _evaluations(finding: Finding) -> list[sr.QualitativeEvaluation] | None:
    """The coded answer beside or instead of a volume."""
    if finding.outcome not in _ANSWERS:
        return None
    return [sr.QualitativeEvaluation(name=_QUALITY, value=_ANSWERS[finding.outcome])]


def _referenced_segment(c: Composition, number: int, seg_variant: str) -> sr.ReferencedSegment:
    """The segment of the SEG that the destination stores (RES-7, RES-8)."""
    series = c.stack.frames[0].header.series_instance_uid
    return sr.ReferencedSegment(
        sop_class_uid=sop_class_of(ObjectKind.SEG, seg_variant),
        sop_instance_uid=c.uid(ObjectKind.SEG, seg_variant),
        segment_number=number,
        source_series=sr.SourceSeriesForSegmentation(series),
    )


def _comment(text: str) -> sr.TextContentItem:
    """A line for the reader."""
    return sr.TextContentItem(_COMMENT, text, sr.RelationshipTypeValues.CONTAINS)


def _evidence(c: Composition, seg_variant: str) -> Dataset:
    """Every instance that the report rests on: all source images, and the SEG (RES-9)."""
    item = Dataset()
    item.StudyInstanceUID = c.stack.frames[0].header.study_instance_uid
    item.ReferencedSeriesSequence = []
    for series in referenced_series(c):
        renamed = Dataset()
        renamed.SeriesInstanceUID = series.SeriesInstanceUID
        renamed.ReferencedSOPSequence = list(series.ReferencedInstanceSequence)
        item.ReferencedSeriesSequence.append(renamed)
    if seg_variant != NO_SEG:
        seg, series = Dataset(), Dataset()
        seg.ReferencedSOPClassUID = sop_class_of(ObjectKind.SEG, seg_variant)
        seg.ReferencedSOPInstanceUID = c.uid(ObjectKind.SEG, seg_variant)
        series.SeriesInstanceUID, series.ReferencedSOPSequence = c.uid("series", ObjectKind.SEG), [seg]
        item.ReferencedSeriesSequence.append(series)
    return item


def _add_request(result: Dataset, c: Composition) -> None:
    """ReferencedRequestSequence where the images were made for a request, so that the report finds its order."""
    accession = agreed_element(c.sources, "AccessionNumber")
    request = agreed_element(c.sources, "RequestAttributesSequence")
    if accession is None and request is None:
        return
    item = Dataset()
    item.StudyInstanceUID = c.stack.frames[0].header.study_instance_uid
    item.ReferencedStudySequence = []
    for keyword in (
        *("AccessionNumber", "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest"),
        *("RequestedProcedureID", "RequestedProcedureDescription"),
    ):
        setattr(item, keyword, None)
    item.RequestedProcedureCodeSequence = []
    names = ("AccessionNumber", "IssuerOfAccessionNumberSequence", "PlacerOrderNumberImagingServiceRequest")
    copy_verbatim(c.sources, item, (*names, "FillerOrderNumberImagingServiceRequest"), utf8=c.style.utf8)
    if request is not None:
        wanted = ("RequestedProcedureID", "RequestedProcedureDescription", "RequestedProcedureCodeSequence")
        copy_verbatim([c.sources[0].RequestAttributesSequence[0]], item, wanted, utf8=c.style.utf8)
    item.pop("SpecificCharacterSet", None)
    result.ReferencedRequestSequence = [item]


def _predecessor(earlier: Predecessor) -> Dataset:
    """The report that this one replaces, as one item of PredecessorDocumentsSequence (RES-34)."""
    document, series, study = Dataset(), Dataset(), Dataset()
    document.ReferencedSOPClassUID = earlier.sr_sop_class_uid
    document.ReferencedSOPInstanceUID = earlier.sr_sop_instance_uid
    series.SeriesInstanceUID, series.ReferencedSOPSequence = earlier.series_instance_uid, [document]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = earlier.study_instance_uid, [series]
    return study
