"""The labels of the source frames as DICOM SEG: BINARY and LABELMAP (PS3.3 A.51, C.8.20)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import highdicom
import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.sr.coding import Code as PydicomCode
from pydicom.uid import ExplicitVRLittleEndian, RLELossless
from pydicom.valuerep import format_number_as_ds

from node.dicom.composition import Composition
from node.dicom.result_header import (
    agreed_element,
    agreed_text,
    code_item,
    coded,
    copy_verbatim,
    referenced_series,
    start_result,
)
from node.dicom.rle import encode_frame
from node.domain.findings import Finding, segment_numbers
from node.domain.instance import SourceFrame
from node.domain.job import ObjectKind
from node.domain.planes import Lattice, StackGeometry
from node.domain.segments import Code
from node.domain.variants import is_whole, seg_base, sop_class_of

TRANSFER_SYNTAXES: Mapping[str, str] = MappingProxyType(
    {"binary": str(ExplicitVRLittleEndian), "labelmap": str(RLELossless)}
)
"""How each form is encoded; RLE is the one compressed syntax that all common readers of LABELMAP decode."""

_ALGORITHM_FAMILY = PydicomCode("123110", "DCM", "Artificial Intelligence")
_BACKGROUND_CATEGORY = Code("309825002", "SCT", "Spatial and Relational Concept")
_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_ORTHONORMAL = 1e-4
_SERIES_ATTRIBUTES = ("BodyPartExamined", "Laterality", "RequestAttributesSequence")
_LOSSY_ATTRIBUTES = ("LossyImageCompressionRatio", "LossyImageCompressionMethod")


def build_seg(c: Composition, variant: str) -> Dataset:
    """A SEG on the source frames, with one segment for each finding that has voxels.

    Every frame keeps the plane position of its source frame and names it, so that oblique, sheared and uneven stacks
    lie exactly where the images lie (RES-3).

    Parameters
    ----------
    variant
        `binary` or `labelmap`; with `-whole`, frames without a voxel are kept (RES-4).

    Raises
    ------
    ValueError
        Where no finding has voxels: there is no SEG of nothing (RES-6).
    """
    if not c.findings.present:
        raise ValueError("no segment has a voxel; an empty SEG is never written")
    header = start_result(
        c, ObjectKind.SEG, variant, sop_class_of(ObjectKind.SEG, variant), TRANSFER_SYNTAXES[seg_base(variant)]
    )
    pixels = segment_numbers(c.findings)[c.labels.labels]
    result = _highdicom_seg(c, variant, pixels, header)
    _take_over(header, result)
    if seg_base(variant) == "labelmap":
        _compress(result)
    _add_content(result, c)
    _refer_to_sources(result, c)
    _set_dimensions(result, c, variant, pixels)
    if seg_base(variant) == "labelmap":
        _put_background_last(result)
    return result


def tracking(c: Composition, finding: Finding) -> tuple[str, str]:
    """Tracking identifier and UID of a segment, the same in SEG and report (RES-5)."""
    return f"{c.findings.provenance.model_name} {finding.segment.name}"[:64], c.uid("tracking", finding.segment.name)


def plane_orientation(stack_frames: Sequence[SourceFrame], geometry: StackGeometry) -> tuple[float, ...]:
    """ImageOrientationPatient for all frames: the source's own where all state one that is orthonormal."""
    stated = {frame.frame.orientation for frame in stack_frames}
    settled = (*geometry.row_direction, *geometry.column_direction)
    if len(stated) != 1 or None in stated:
        return settled
    own = stated.pop() or settled
    row, column = np.array(own[:3]), np.array(own[3:])
    error = max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column))
    return own if error < _ORTHONORMAL else settled


def _highdicom_seg(c: Composition, variant: str, pixels: NDArray[np.uint8], header: Dataset) -> Segmentation:
    """The image, segments and functional groups, built on stand-ins for the source frames."""
    try:
        return Segmentation(
            source_images=_stand_ins(c),
            pixel_array=pixels,
            segmentation_type=seg_base(variant).upper(),
            omit_empty_frames=not is_whole(variant),
            segment_descriptions=[_description(c, finding) for finding in c.findings.present],
            series_instance_uid=header.SeriesInstanceUID,
            series_number=header.SeriesNumber,
            sop_instance_uid=header.SOPInstanceUID,
            instance_number=1,
            manufacturer=c.style.manufacturer,
            manufacturer_model_name=c.style.model_name,
            software_versions=c.style.software_version,
            device_serial_number=c.style.serial,
            transfer_syntax_uid=str(ExplicitVRLittleEndian),
            content_label="AI_SEGMENTATION",
        )
    except ValueError as cause:
        raise RuntimeError(f"highdicom refuses to build the SEG: {cause}") from cause


def _slice_thickness(c: Composition) -> float:
    """The source's nominal thickness; where it states none, the distance of the planes."""
    stated = c.stack.frames[0].header.slice_thickness_mm
    return stated if stated is not None and stated > 0 else c.stack.geometry.step_mm or 1.0


def _stand_ins(c: Composition) -> list[Dataset]:
    """For each frame, a single-frame image that holds its geometry and nothing of the patient.

    highdicom copies, checks and completes what it finds in its sources; what is copied into a result is our decision,
    so it is given none of it. The number of a frame is the end of its UID.
    """
    geometry = c.stack.geometry
    orientation = list(plane_orientation(c.stack.frames, geometry))
    first = c.stack.frames[0].header
    images = []
    for index, source in enumerate(c.stack.frames):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = _CT_IMAGE, f"2.25.{index + 1}"
        image.StudyInstanceUID, image.SeriesInstanceUID = first.study_instance_uid, first.series_instance_uid
        image.FrameOfReferenceUID = first.frame_of_reference_uid or c.uid("frame of reference")
        image.PatientID = image.PatientName = image.PatientBirthDate = image.PatientSex = None
        image.AccessionNumber = image.StudyID = image.StudyDate = image.StudyTime = None
        image.Modality, image.Rows, image.Columns = first.modality, geometry.rows, geometry.columns
        image.ImagePositionPatient = _decimals(source.frame.position_mm or ())
        image.ImageOrientationPatient = _decimals(orientation)
        image.PixelSpacing = _decimals(geometry.pixel_spacing_mm)
        image.SliceThickness = format_number_as_ds(_slice_thickness(c))
        if geometry.lattice is Lattice.REGULAR and geometry.step_mm > 0:
            image.SpacingBetweenSlices = format_number_as_ds(round(geometry.step_mm, 6))
        images.append(image)
    return images


def _decimals(values: Sequence[float]) -> list[str]:
    """Numbers as DS, at most 16 characters."""
    return [format_number_as_ds(float(value)) for value in values]


def _value(text: str) -> str:
    """The value of an algorithm parameter: highdicom writes and reads them as `name=value`, parted by commas."""
    return text.replace(",", ";").replace("=", ":")


def _description(c: Composition, finding: Finding) -> highdicom.seg.SegmentDescription:
    """One item of the SegmentSequence (PS3.3 C.8.20.4)."""
    segment, made = finding.segment, c.findings.provenance
    tracking_id, tracking_uid = tracking(c, finding)
    item = highdicom.seg.SegmentDescription(
        segment_number=finding.segment_number or 0,
        segment_label=segment.label,
        segmented_property_category=coded(segment.category),
        segmented_property_type=coded(segment.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=made.model_name[:64],
            family=_ALGORITHM_FAMILY,
            version=made.model_version[:64],
            source=c.style.manufacturer,
            parameters={
                "model": made.model_digest,
                "configuration": made.config_digest,
                "engine": _value(made.engine),
                "way": _value(made.way),
                "choice": _value(made.choice),
            },
        ),
        tracking_uid=tracking_uid,
        tracking_id=tracking_id,
        display_color=CIELabColor.from_rgb(*segment.colour),
    )
    if segment.modifier is not None:
        # Inside the type's own item; highdicom has no argument for it.
        modifier = code_item(segment.modifier)
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return item


def _take_over(header: Dataset, result: Segmentation) -> None:
    """Replace what highdicom wrote of patient, study, series and equipment by our own header."""
    library = result.ContributingEquipmentSequence[-1]
    for element_tag in list(header.keys()):
        result[element_tag] = header.get_item(element_tag)
    # The library writes the time of day; two builds of one result are to be the same bytes (RES-21).
    library.pop("ContributionDateTime", None)
    result.ContributingEquipmentSequence = [*header.ContributingEquipmentSequence, library]
    result.file_meta = header.file_meta
    implicit, little = header.original_encoding
    result.set_original_encoding(implicit, little, header.original_character_set)
    # Elements are written as they stand, so a VR that pydicom would settle while writing is settled here.
    result["PixelData"].VR = "OB"
    if "PixelPaddingValue" in result:
        result["PixelPaddingValue"].VR = "US"


def _compress(result: Dataset) -> None:
    """The frames of a LABELMAP as RLE Lossless."""
    frames = np.frombuffer(result.PixelData, np.uint8)[: result.NumberOfFrames * result.Rows * result.Columns]
    encoded = [encode_frame(plane) for plane in frames.reshape(-1, result.Rows, result.Columns)]
    result.PixelData = encapsulate(encoded, has_bot=True)
    result["PixelData"].VR = "OB"
    result["PixelData"].is_undefined_length = True


def _add_content(result: Dataset, c: Composition) -> None:
    """Description, and the attributes of series and image that follow the source."""
    made = c.findings.provenance
    revision = f", revision {c.revision}" if c.revision > 1 or c.predecessors else ""
    replaces = ", replaces an earlier result" if c.predecessors else ""
    result.ContentDescription = f"{made.model_name[:20]} {made.model_version[:8]}{revision}{replaces}"[:64]
    result.ContentCreatorName = None
    result.BurnedInAnnotation = "NO"
    copy_verbatim(c.sources, result, ("PositionReferenceIndicator", *_SERIES_ATTRIBUTES), utf8=c.style.utf8)
    if any(source.get("LossyImageCompression") == "01" for source in c.sources):
        result.LossyImageCompression = "01"
        for keyword in _LOSSY_ATTRIBUTES:
            if agreed_element(c.sources, keyword) is not None:
                copy_verbatim(c.sources, result, (keyword,), utf8=c.style.utf8)
    elif not agreed_text(c.sources, "LossyImageCompression"):
        result.LossyImageCompression = "00"


def _refer_to_sources(result: Dataset, c: Composition) -> None:
    """Name the real source frame of each frame, and every instance of the stack, in place of the stand-ins."""
    items = [
        group.DerivationImageSequence[0].SourceImageSequence[0] for group in result.PerFrameFunctionalGroupsSequence
    ]
    # The frames of several segments on one plane share one item.
    for item in {id(item): item for item in items}.values():
        source = c.stack.frames[int(item.ReferencedSOPInstanceUID.rpartition(".")[2]) - 1]
        item.ReferencedSOPClassUID = source.header.sop_class_uid
        item.ReferencedSOPInstanceUID = source.header.sop_instance_uid
        if len(source.header.frames) > 1:
            item.ReferencedFrameNumber = source.frame.number
    result.ReferencedSeriesSequence = referenced_series(c)
    result.SourceImageSequence = [
        instance for series in result.ReferencedSeriesSequence for instance in series.ReferencedInstanceSequence
    ]


def _set_dimensions(result: Dataset, c: Composition, variant: str, pixels: NDArray[np.uint8]) -> None:
    """A derived organisation UID, and `3D` only where the frames are consecutive planes of a regular stack."""
    uid = c.uid("dimensions", variant)
    result.DimensionOrganizationSequence[0].DimensionOrganizationUID = uid
    for item in result.DimensionIndexSequence:
        item.DimensionOrganizationUID = uid
    consecutive = is_whole(variant) or bool((np.diff(np.flatnonzero(pixels.any(axis=(1, 2)))) == 1).all())
    one_stack = seg_base(variant) == "labelmap" or len(c.findings.present) == 1
    if not (one_stack and consecutive and c.stack.geometry.lattice is Lattice.REGULAR):
        result.pop("DimensionOrganizationType", None)


def _put_background_last(result: Dataset) -> None:
    """The Background item last and coded by CID 7150: common viewers give the first item's colour to segment 1."""
    background, *others = result.SegmentSequence
    background.SegmentedPropertyCategoryCodeSequence = [code_item(_BACKGROUND_CATEGORY)]
    result.SegmentSequence = [*others, background]
