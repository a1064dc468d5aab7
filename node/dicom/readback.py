"""What was written, read again from its file and compared with what it was made from (RES-30)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from node.dicom.composition import Composition
from node.dicom.result_header import COPIED, encoded, referenced_series
from node.dicom.seg import TRANSFER_SYNTAXES, plane_orientation, tracking
from node.dicom.sr import rounded_ml
from node.domain.findings import Finding, segment_numbers
from node.domain.job import ObjectKind
from node.domain.variants import is_whole, seg_base, sop_class_of, sr_parts
from node.errors import HilumError

_POSITION_TOLERANCE_MM = 1e-3
_DIRECTION_TOLERANCE = 1e-6
_COUNTING_ERROR = 1e-6
"""Relative; both sides add up the same voxels, in another order."""
_MEASUREMENTS, _GROUP, _TRACKING_UID = "126010", "125007", "112040"
_READERS: Mapping[str, Any] = {
    "comprehensive3d": highdicom.sr.Comprehensive3DSR,
    "comprehensive": highdicom.sr.ComprehensiveSR,
    "enhanced": highdicom.sr.EnhancedSR,
}
_FINDING, _REFERENCED_SEGMENT, _VOLUME = "121071", "121191", "118565006"


class Mismatch(HilumError):
    """A result on disk is not what it was made from: a fault of this product; nothing of the job is sent."""


def verify_seg(path: Path, c: Composition, variant: str) -> dict[int, float]:
    """Compare a SEG with the labels, voxel by voxel in patient coordinates.

    Returns
    -------
    The volume of each segment in mL, counted again on the file's own frames.

    Raises
    ------
    Mismatch
        Naming the attribute, segment or plane that differs.
    """
    seg = highdicom.seg.segread(path)
    _verify_identity(seg, c, ObjectKind.SEG, variant)
    _same("SegmentationType", seg.SegmentationType, seg_base(variant).upper())
    _same("TransferSyntaxUID", seg.file_meta.TransferSyntaxUID, TRANSFER_SYNTAXES[seg_base(variant)])
    _same("FrameOfReferenceUID", seg.FrameOfReferenceUID, _frame_of_reference(c))
    _verify_references(seg.ReferencedSeriesSequence, c)
    _verify_segments(seg, c, variant)
    _verify_plane(seg, c)
    return _verify_voxels(seg, c, variant)


def verify_sr(path: Path, c: Composition, variant: str, volumes_ml: Mapping[int, float]) -> None:
    """Compare a report with the findings, and its volumes with those counted on the SEG.

    Parameters
    ----------
    variant
        SR class and form of SEG, as `comprehensive3d-binary`.
    volumes_ml
        From `verify_seg`, by segment number.

    Raises
    ------
    Mismatch
        Naming the attribute or organ that differs.
    """
    sr_class, seg_variant, replaced = sr_parts(variant)
    report = _READERS[sr_class].from_dataset(dcmread(path), copy=False)
    _verify_identity(report, c, ObjectKind.SR, variant)
    flags = report.CompletionFlag, report.VerificationFlag
    _same("CompletionFlag and VerificationFlag", flags, ("COMPLETE", "UNVERIFIED"))
    _verify_evidence(report, c, seg_variant)
    _verify_predecessor(report, c, replaced)
    groups = {
        str(uid.UID): group
        for container in _items(report, _MEASUREMENTS)
        for group in _items(container, _GROUP)
        for uid in _items(group, _TRACKING_UID)
    }
    _same("tracking UIDs", set(groups), {tracking(c, finding)[1] for finding in c.findings.findings})
    for finding in c.findings.findings:
        _verify_group(groups[tracking(c, finding)[1]], c, finding, seg_variant, volumes_ml)
    _verify_as_read(report.content, c, seg_variant)


def verify_document(path: Path, c: Composition) -> None:
    """Compare the readable report's data set with the case, and that it holds a whole PDF.

    Raises
    ------
    Mismatch
        Naming the attribute that differs.
    """
    document = dcmread(path)
    _verify_identity(document, c, ObjectKind.PDF, "pdf")
    _same("MIMETypeOfEncapsulatedDocument", document.MIMETypeOfEncapsulatedDocument, "application/pdf")
    pdf = document.EncapsulatedDocument[: document.EncapsulatedDocumentLength]
    if not pdf.startswith(b"%PDF-") or not pdf.rstrip().endswith(b"%%EOF"):
        raise Mismatch("EncapsulatedDocument is not a whole PDF")
    sources = {header.sop_instance_uid for header in (frame.header for frame in c.stack.frames)}
    named = {item.ReferencedSOPInstanceUID for item in document.SourceInstanceSequence}
    _same("SourceInstanceSequence", named, sources)


def _same(what: str, found: object, expected: object) -> None:
    """Raise unless both are equal; values are not shown, they may be the patient's."""
    if found != expected:
        raise Mismatch(f"{what} in the written object is not what it was made from")


def _verify_identity(result: Dataset, c: Composition, kind: ObjectKind, variant: str) -> None:
    """UIDs as derived; patient and study as in the sources, which were found to agree (RES-31)."""
    expected = sop_class_of(kind, variant), c.uid(kind, variant)
    meta = result.file_meta
    _same("file meta", (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID), expected)
    _same("SOPClassUID or SOPInstanceUID", (result.SOPClassUID, result.SOPInstanceUID), expected)
    _same("SeriesInstanceUID", result.SeriesInstanceUID, c.uid("series", kind))
    source = c.sources[0]
    for keyword in COPIED:
        same_bytes = encoded(result, keyword) == encoded(source, keyword)
        if not same_bytes and str(result.get(keyword, "")) != str(source.get(keyword, "")):
            raise Mismatch(f"{keyword} differs from the source")
    research = result.get("ContentQualification") == "RESEARCH"
    _same("ContentQualification", research, c.style.research_use)


def _verify_references(series: Sequence[Dataset], c: Composition) -> None:
    """Every instance of the stack is named, and no other."""
    _same("ReferencedSeriesSequence", _instances(series, "ReferencedInstanceSequence"), _source_instances(c))


def _instances(series: Sequence[Dataset], keyword: str) -> set[tuple[str, str, str]]:
    """Series, class and instance of everything that is referenced."""
    return {
        (str(one.SeriesInstanceUID), str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
        for one in series
        for item in one[keyword].value
    }


def _source_instances(c: Composition) -> set[tuple[str, str, str]]:
    """Series, class and instance of everything in the stack."""
    return _instances(referenced_series(c), "ReferencedInstanceSequence")


def _verify_segments(seg: Dataset, c: Composition, variant: str) -> None:
    """Numbers, terms, tracking and place of the Background item."""
    items = list(seg.SegmentSequence)
    if seg_base(variant) == "labelmap":
        background = items.pop()
        _same("number of the last segment item", background.SegmentNumber, 0)
    _same("segment numbers", [item.SegmentNumber for item in items], [f.segment_number for f in c.findings.present])
    for item, finding in zip(items, c.findings.present, strict=True):
        _same(f"terms of segment {finding.segment_number}", _terms(item), _expected_terms(c, finding))


def _terms(item: Dataset) -> tuple[object, ...]:
    """What an item of the SegmentSequence says of its segment."""
    segment_type = item.SegmentedPropertyTypeCodeSequence[0]
    modifiers = segment_type.get("SegmentedPropertyTypeModifierCodeSequence") or []
    return (
        item.SegmentLabel,
        item.SegmentedPropertyCategoryCodeSequence[0].CodeValue,
        segment_type.CodeValue,
        tuple(modifier.CodeValue for modifier in modifiers),
        item.SegmentAlgorithmType,
        item.SegmentAlgorithmName,
        item.TrackingID,
        item.TrackingUID,
    )


def _expected_terms(c: Composition, finding: Finding) -> tuple[object, ...]:
    """What it must say."""
    segment = finding.segment
    modifiers = (segment.modifier.value,) if segment.modifier else ()
    name = c.findings.provenance.model_name[:64]
    described = segment.label, segment.category.value, segment.type.value, modifiers
    return (*described, "AUTOMATIC", name, *tracking(c, finding))


def _verify_plane(seg: Dataset, c: Composition) -> None:
    """Rows, columns, spacing and orientation: those of the source."""
    geometry = c.stack.geometry
    _same("Rows and Columns", (seg.Rows, seg.Columns), (geometry.rows, geometry.columns))
    shared = seg.SharedFunctionalGroupsSequence[0]
    spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    if np.abs(spacing - geometry.pixel_spacing_mm).max() > _DIRECTION_TOLERANCE:
        raise Mismatch("PixelSpacing differs from the source")
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    if np.abs(orientation - plane_orientation(c.stack.frames, geometry)).max() > _DIRECTION_TOLERANCE:
        raise Mismatch("ImageOrientationPatient differs from the source")


def _verify_voxels(seg: highdicom.seg.Segmentation, c: Composition, variant: str) -> dict[int, float]:
    """Each frame against the labels of the plane that lies where it lies; no voxel may be left over."""
    numbered = segment_numbers(c.findings)
    positions = np.array([frame.frame.position_mm for frame in c.stack.frames], dtype=float)
    extents, spacing = c.stack.geometry.slice_extents_mm, c.stack.geometry.pixel_spacing_mm
    volumes = dict.fromkeys((int(finding.segment_number or 0) for finding in c.findings.present), 0.0)
    seen: set[tuple[int, int]] = set()
    for index, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        plane = _plane_at(group.PlanePositionSequence[0].ImagePositionPatient, positions, index)
        _verify_source_frame(group, c, plane)
        pixels = seg.get_stored_frame(index + 1)
        expected = numbered[c.labels.labels[plane]]
        for number in _verified_numbers(group, seg, pixels, expected, variant=variant, plane=plane):
            if (plane, number) in seen:
                raise Mismatch(f"plane {plane + 1} of segment {number} stands twice")
            seen.add((plane, number))
            count = np.count_nonzero(pixels == number if seg_base(variant) == "labelmap" else pixels)
            volumes[number] += float(count) * extents[plane] * spacing[0] * spacing[1] / 1000.0
    _same("the set of planes", seen, _planes_to_be(numbered, c, variant))
    if is_whole(variant) and seg_base(variant) == "labelmap":
        _same("the number of frames", seg.NumberOfFrames, len(c.stack.frames))
    return volumes


def _plane_at(position: Sequence[float], positions: NDArray[np.float64], index: int) -> int:
    """The source plane at a position in the patient."""
    apart = np.linalg.norm(positions - np.array(position, float), axis=1)
    nearest = int(np.argmin(apart))
    if apart[nearest] > _POSITION_TOLERANCE_MM:
        raise Mismatch(f"frame {index + 1} lies at no plane of the source")
    return nearest


def _verify_source_frame(group: Dataset, c: Composition, plane: int) -> None:
    """The derivation names the source frame that lies there."""
    item = group.DerivationImageSequence[0].SourceImageSequence[0]
    source = c.stack.frames[plane]
    number = int(item.get("ReferencedFrameNumber", source.frame.number))
    found = (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID, number)
    expected = (source.header.sop_class_uid, source.header.sop_instance_uid, source.frame.number)
    _same(f"source image of plane {plane + 1}", found, expected)


def _verified_numbers(
    group: Dataset,
    seg: Dataset,
    pixels: NDArray[np.generic],
    expected: NDArray[np.uint8],
    *,
    variant: str,
    plane: int,
) -> list[int]:
    """The segment numbers in one frame, after its pixels were found to be those of the labels."""
    if seg_base(variant) == "labelmap":
        agree, numbers = np.array_equal(pixels, expected), [int(n) for n in np.unique(expected) if n]
    else:
        holder = group if "SegmentIdentificationSequence" in group else seg.SharedFunctionalGroupsSequence[0]
        number = int(holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        agree, numbers = np.array_equal(pixels != 0, expected == number), [number]
    if not agree:
        raise Mismatch(f"plane {plane + 1} differs from the label map")
    return numbers


def _planes_to_be(numbered: NDArray[np.uint8], c: Composition, variant: str) -> set[tuple[int, int]]:
    """Every plane and segment number that must have a frame; in a whole BINARY, each plane of each segment."""
    if is_whole(variant) and seg_base(variant) == "binary":
        numbers = [finding.segment_number or 0 for finding in c.findings.present]
        return {(plane, number) for plane in range(len(c.stack.frames)) for number in numbers}
    return {
        (plane, int(number))
        for plane, labels in enumerate(c.labels.labels)
        for number in np.unique(numbered[labels])
        if number
    }


def _verify_evidence(report: Dataset, c: Composition, seg_variant: str) -> None:
    """All sources and the SEG are evidence, and nothing else."""
    expected = _source_instances(c)
    if c.findings.present:
        seg = sop_class_of(ObjectKind.SEG, seg_variant), c.uid(ObjectKind.SEG, seg_variant)
        expected.add((c.uid("series", ObjectKind.SEG), *seg))
    found: set[tuple[str, str, str]] = set()
    for study in report.CurrentRequestedProcedureEvidenceSequence:
        found |= _instances(study.ReferencedSeriesSequence, "ReferencedSOPSequence")
    _same("evidence", found, expected)


def _verify_group(
    group: Dataset, c: Composition, finding: Finding, seg_variant: str, volumes_ml: Mapping[int, float]
) -> None:
    """One organ: what it is, where its segment is, and its volume."""
    name = finding.segment.name
    terms = [_code(item) for item in _items(group, _FINDING)]
    _same(f"finding of {name}", terms, [finding.segment.type.value])
    segments = [
        (str(reference.ReferencedSOPInstanceUID), int(reference.ReferencedSegmentNumber))
        for item in _items(group, _REFERENCED_SEGMENT)
        for reference in item.ReferencedSOPSequence
    ]
    seg_uid = c.uid(ObjectKind.SEG, seg_variant)
    _same(f"segment of {name}", segments, [(seg_uid, number) for number in (finding.segment_number,) if number])
    measured = [item.MeasuredValueSequence[0] for item in _items(group, _VOLUME)]
    found = [(float(one.NumericValue), one.MeasurementUnitsCodeSequence[0].CodeValue) for one in measured]
    expected = [] if finding.volume_ml is None else [(rounded_ml(finding.volume_ml), "cm3")]
    _same(f"volume of {name}", found, expected)
    if finding.volume_ml is not None and finding.segment_number is not None:
        counted = volumes_ml[finding.segment_number]
        if abs(counted - finding.volume_ml) > _COUNTING_ERROR * counted:
            raise Mismatch(f"volume of {name} is not what the SEG holds")


def _verify_predecessor(report: Dataset, c: Composition, replaced: str) -> None:
    """The one report that is replaced, or none."""
    expected = {
        (one.series_instance_uid, one.sr_sop_class_uid, one.sr_sop_instance_uid)
        for one in c.predecessors
        if one.sr_sop_instance_uid == replaced
    }
    found: set[tuple[str, str, str]] = set()
    for study in report.get("PredecessorDocumentsSequence") or []:
        found |= _instances(study.ReferencedSeriesSequence, "ReferencedSOPSequence")
    _same("PredecessorDocumentsSequence", found, expected)


def _verify_as_read(content: highdicom.sr.MeasurementReport, c: Composition, seg_variant: str) -> None:
    """The same groups as highdicom's own reading of TID 1500 finds them: another reader's eyes, not our own."""
    groups = [*content.get_volumetric_roi_measurement_groups(), *content.get_image_measurement_groups()]
    read = {str(group.tracking_uid): _as_read(group) for group in groups}
    seg_uid = c.uid(ObjectKind.SEG, seg_variant)
    expected = {
        tracking(c, finding)[1]: (
            finding.segment.type.value,
            [] if finding.volume_ml is None else [("118565006", rounded_ml(finding.volume_ml), "cm3")],
            [(seg_uid, [finding.segment_number])] if finding.segment_number else [],
        )
        for finding in c.findings.findings
    }
    _same("report as highdicom reads it", read, expected)


def _as_read(group: Any) -> tuple[object, ...]:
    """Finding, measurements and segment of a group."""
    segment = getattr(group, "referenced_segment", None)
    return (
        str(group.finding_type.value),
        [(str(one.name.value), float(one.value), str(one.unit.value)) for one in group.get_measurements()],
        []
        if segment is None
        else [(str(segment.referenced_sop_instance_uid), list(segment.referenced_segment_numbers))],
    )


def _items(container: Dataset, concept: str) -> list[Dataset]:
    """The content items right below a container that have a concept name (DCM or SCT code value)."""
    return [
        item
        for item in container.get("ContentSequence") or []
        if "ConceptNameCodeSequence" in item and item.ConceptNameCodeSequence[0].CodeValue == concept
    ]


def _code(item: Dataset) -> str:
    """The code value of a CODE item."""
    return str(item.ConceptCodeSequence[0].CodeValue)


def _frame_of_reference(c: Composition) -> str:
    """The source's, or where it has none, ours."""
    return c.stack.frames[0].header.frame_of_reference_uid or c.uid("frame of reference")
