"""A DICOM file's header, read once and turned into the typed attributes that the domain decides by."""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import Dataset, dcmread
from pydicom.config import IGNORE, settings
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.multival import MultiValue

from node.dicom.diffusion import b_value, gradient
from node.dicom.own_results import is_own_result
from node.dicom.pixel_element import PixelElement, read_pixel_element
from node.dicom.result_header import COPIED, encoded
from node.domain.attributes import CODE_SEQUENCES, coded_fields, is_asked_for
from node.domain.instance import FrameHeader, InstanceHeader, PatientIdentity
from node.errors import CannotUnderstand

# pydicom warns of a broken value by printing it, and it may be a patient's (SEC-20).
settings.reading_validation_mode = IGNORE

_MOST_FRAMES = 100_000
_ASCII_VRS = frozenset({"AE", "AS", "CS", "DS", "IS"})


def read_header(path: Path, sop_class_uid: str = "", sop_instance_uid: str = "") -> InstanceHeader:
    """Read what decisions need; the pixel data stays on disk, only its length and frame count are looked at.

    Parameters
    ----------
    sop_class_uid, sop_instance_uid
        Taken where the data set's own are empty: the command's of a C-STORE, or the file meta's of a folder
        (`file_meta_uids`).

    Raises
    ------
    CannotUnderstand
        Where the file is no DICOM, is cut inside the header, or has no SOP Class or Instance UID from either side.
    """
    with _opened(path) as file:
        ds = _dataset(file)
        pixels = read_pixel_element(file, ds)
    _identify(ds, sop_class_uid, sop_instance_uid)
    with _values_understood():
        return _header(ds, pixels)


def read_source(path: Path, sop_class_uid: str = "", sop_instance_uid: str = "") -> Dataset:
    """The whole header without pixel data, for the composers; UIDs are filled in as by `read_header`.

    Raises
    ------
    CannotUnderstand
        As `read_header`.
    """
    with _opened(path) as file:
        ds = _dataset(file)
    _identify(ds, sop_class_uid, sop_instance_uid)
    return ds


def file_meta_uids(path: Path) -> tuple[str, str]:
    """MediaStorageSOPClassUID and MediaStorageSOPInstanceUID of a file, empty where absent (PS3.10 section 7.1).

    Raises
    ------
    CannotUnderstand
        Where the file is no DICOM.
    """
    with _values_understood():
        meta = read_file_meta_info(path)
    return str(meta.get("MediaStorageSOPClassUID", "")), str(meta.get("MediaStorageSOPInstanceUID", ""))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as file, _values_understood():
        yield file


@contextmanager
def _values_understood() -> Iterator[None]:
    """Turn what pydicom raises on a broken data set into our own error; the message never holds a value."""
    try:
        yield
    except InvalidDicomError as error:
        raise CannotUnderstand("not a DICOM file") from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, EOFError, NotImplementedError) as error:
        raise CannotUnderstand(f"the header cannot be read ({type(error).__name__})") from error
    except (struct.error, zlib.error) as error:
        raise CannotUnderstand("the header is cut or garbled") from error
    except (OverflowError, RecursionError) as error:
        raise CannotUnderstand(f"the header breaks a limit ({type(error).__name__})") from error


def _dataset(file: BinaryIO) -> Dataset:
    ds = dcmread(file, stop_before_pixels=True)
    if len(ds) == 0:
        raise CannotUnderstand("the data set is empty")
    if not ds.file_meta.get("TransferSyntaxUID"):
        raise CannotUnderstand("the file meta names no transfer syntax")
    return ds


def _identify(ds: Dataset, sop_class_uid: str, sop_instance_uid: str) -> None:
    """Fill in empty UIDs, and refuse what has none (research R19)."""
    for keyword, given in (("SOPClassUID", sop_class_uid), ("SOPInstanceUID", sop_instance_uid)):
        if not ds.get(keyword):
            if not given:
                raise CannotUnderstand(f"no {keyword} in the data set")
            setattr(ds, keyword, given)


def _header(ds: Dataset, pixels: PixelElement) -> InstanceHeader:
    modality = _text(ds, "Modality")
    return InstanceHeader(
        sop_instance_uid=str(ds.SOPInstanceUID),
        sop_class_uid=str(ds.SOPClassUID),
        transfer_syntax_uid=str(ds.file_meta.TransferSyntaxUID),
        study_instance_uid=_text(ds, "StudyInstanceUID"),
        series_instance_uid=_text(ds, "SeriesInstanceUID"),
        frame_of_reference_uid=_text(ds, "FrameOfReferenceUID"),
        identity=PatientIdentity(
            _text(ds, "PatientID"),
            _text(ds, "IssuerOfPatientID"),
            _person_name(ds, "PatientName"),
            _text(ds, "PatientBirthDate"),
        ),
        modality=modality,
        rows=_int(ds, "Rows") or 0,
        columns=_int(ds, "Columns") or 0,
        samples_per_pixel=_int(ds, "SamplesPerPixel") or 0,
        photometric_interpretation=_text(ds, "PhotometricInterpretation"),
        bits_allocated=_int(ds, "BitsAllocated") or 0,
        bits_stored=_int(ds, "BitsStored") or 0,
        high_bit=_int(ds, "HighBit") or 0,
        pixel_representation=_int(ds, "PixelRepresentation") or 0,
        frames=_frames(ds),
        image_type=_words(ds, "ImageType"),
        instance_number=_int(ds, "InstanceNumber"),
        series_number=_int(ds, "SeriesNumber"),
        series_description=_text(ds, "SeriesDescription"),
        study_description=_text(ds, "StudyDescription"),
        protocol_name=_text(ds, "ProtocolName"),
        body_part_examined=_text(ds, "BodyPartExamined"),
        manufacturer=_text(ds, "Manufacturer"),
        patient_age_years=_age_years(_text(ds, "PatientAge")),
        pixel_padding_value=_stored_value(ds, "PixelPaddingValue"),
        pixel_padding_limit=_stored_value(ds, "PixelPaddingRangeLimit"),
        slice_thickness_mm=_measure(ds, "SliceThickness"),
        spacing_between_slices_mm=_measure(ds, "SpacingBetweenSlices"),
        gantry_tilt_deg=_float(ds, "GantryDetectorTilt"),
        lossy=_text(ds, "LossyImageCompression") == "01" or pixels.lossy,
        multi_energy=_text(ds, "MultienergyCTAcquisition") == "YES",
        concatenation_uid=_text(ds, "ConcatenationUID"),
        concatenation_total=_int(ds, "InConcatenationTotalNumber"),
        images_in_acquisition=_int(ds, "ImagesInAcquisition"),
        is_mosaic=_is_mosaic(ds),
        own_result=is_own_result(ds),
        copied=_copied(ds),
        defects=(*pixels.defects, *_value_defects(ds, modality)),
        tags=_tags(ds),
    )


# Frames


class _FrameSource:
    """Looks an attribute up where the kind of object keeps it (PS3.3 C.7.6.16.1, C.7.6.16.2, C.7.6.16.2.25)."""

    def __init__(self, ds: Dataset, own: Dataset | None) -> None:
        self.ds = ds
        shared = ds.get("SharedFunctionalGroupsSequence")
        self._groups = [item for item in (own, shared[0] if shared else None) if item is not None]

    def get(self, group: str, *keywords: str) -> Any:
        """The first value found: frame, shared, converted attributes, then the object itself."""
        for holder in self._holders(group):
            for keyword in keywords:
                value = holder.get(keyword)
                if value is not None and value != "" and not (isinstance(value, MultiValue) and len(value) == 0):
                    return value
        return None

    def _holders(self, group: str) -> Iterator[Dataset]:
        unassigned = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
        for name in (group, *unassigned):
            for item in self._groups:
                sequence = item.get(name)
                if sequence:
                    yield sequence[0]
        yield self.ds

    def text(self, group: str, *keywords: str) -> str:
        value = self.get(group, *keywords)
        return "" if value is None else _as_text(value)

    def number(self, group: str, *keywords: str) -> float | None:
        value = self.get(group, *keywords)
        return _as_float(_first(value))

    def vector(self, group: str, keyword: str, length: int) -> tuple[float, ...] | None:
        value = self.get(group, keyword)
        if not isinstance(value, MultiValue | list | tuple) or len(value) != length:
            return None
        numbers = [_as_float(item) for item in value]
        return tuple(n for n in numbers if n is not None) if None not in numbers else None


def _frames(ds: Dataset) -> tuple[FrameHeader, ...]:
    """One for each frame; objects that are no image have one without a position, so that nothing is forgotten."""
    count = max(1, _int(ds, "NumberOfFrames") or 1)
    if count > _MOST_FRAMES:
        raise CannotUnderstand("too many frames")
    groups = ds.get("PerFrameFunctionalGroupsSequence") or []
    if groups:
        return tuple(_frame(_FrameSource(ds, group), number) for number, group in enumerate(groups, start=1))
    if count > 1 and "SharedFunctionalGroupsSequence" not in ds:
        # Without functional groups no frame but the first has a place of its own.
        return tuple(FrameHeader(number, None, None, None, _words(ds, "ImageType")) for number in range(1, count + 1))
    return tuple(_frame(_FrameSource(ds, None), number) for number in range(1, count + 1))


def _frame(source: _FrameSource, number: int) -> FrameHeader:
    position = source.vector("PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = source.vector("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = source.vector("PixelMeasuresSequence", "PixelSpacing", 2)
    content, timing = "FrameContentSequence", "MRTimingAndRelatedParametersSequence"
    slope = source.number("PixelValueTransformationSequence", "RescaleSlope")
    return FrameHeader(
        number=number,
        position_mm=(position[0], position[1], position[2]) if position else None,
        orientation=(*orientation[:3], *orientation[3:]) if orientation else None,  # type: ignore[arg-type]
        pixel_spacing_mm=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
        image_type=_frame_type(source),
        rescale_slope=1.0 if slope is None else slope,
        rescale_intercept=source.number("PixelValueTransformationSequence", "RescaleIntercept") or 0.0,
        rescale_type=source.text("PixelValueTransformationSequence", "RescaleType"),
        echo_time=source.number("MREchoSequence", "EffectiveEchoTime", "EchoTime"),
        echo_number=source.text("MREchoSequence", "EchoNumbers"),
        inversion_time=source.number("MRModifierSequence", "InversionTimes", "InversionTime"),
        flip_angle=source.number(timing, "FlipAngle"),
        repetition_time=source.number(timing, "RepetitionTime"),
        temporal_position=source.text(content, "TemporalPositionIndex", "TemporalPositionIdentifier"),
        trigger_time=source.number("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", "TriggerTime"),
        acquisition_time=source.text(content, "FrameAcquisitionDateTime", "AcquisitionTime"),
        acquisition_number=source.text(content, "FrameAcquisitionNumber", "AcquisitionNumber"),
        b_value=b_value(source.ds, source.get("MRDiffusionSequence", "DiffusionBValue")),
        gradient=gradient(source.ds, _gradient_of(source)),
        stack_id=source.text(content, "StackID"),
        in_stack_position=_as_int(source.get(content, "InStackPositionNumber")),
        dimension_index=_dimension_index(source.get(content, "DimensionIndexValues")),
        convolution_kernel=source.text("CTReconstructionSequence", "ConvolutionKernel"),
        kvp=source.number("CTXRayDetailsSequence", "KVP"),
        exposure=source.number("CTExposureSequence", "ExposureInmAs", "Exposure"),
        contrast=_contrast(source),
        complex_component=source.text("MRImageFrameTypeSequence", "ComplexImageComponent"),
        coil=source.text("MRReceiveCoilSequence", "ReceiveCoilName"),
        sequence_name=source.text("", "PulseSequenceName", "SequenceName"),
        cardiac_phase=source.number("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
        energy=_energy(source),
    )


def _frame_type(source: _FrameSource) -> tuple[str, ...]:
    for group in ("CTImageFrameTypeSequence", "MRImageFrameTypeSequence"):
        value = source.get(group, "FrameType")
        if value is not None:
            return _as_words(value)
    return _words(source.ds, "ImageType")


def _gradient_of(source: _FrameSource) -> tuple[float, ...] | None:
    directions = source.get("MRDiffusionSequence", "DiffusionGradientDirectionSequence")
    value = directions[0].get("DiffusionGradientOrientation") if directions else None
    if value is None:
        return source.vector("MRDiffusionSequence", "DiffusionGradientOrientation", 3)
    return tuple(float(item) for item in value)


def _dimension_index(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(item) for item in (value if isinstance(value, MultiValue | list | tuple) else [value]))


def _contrast(source: _FrameSource) -> str:
    """Agent, phase of administration and start: what tells an arterial from a venous pass."""
    usage = source.get("", "ContrastBolusUsageSequence")
    phase = usage[0].get("ContrastBolusAgentPhase", "") if usage else ""
    parts = (
        source.text("ContrastBolusUsageSequence", "ContrastBolusAgent"),
        source.text("ContrastBolusUsageSequence", "ContrastBolusAgentPhase") or str(phase),
        source.text("", "ContrastBolusStartTime"),
    )
    return " ".join(part for part in parts if part)


def _energy(source: _FrameSource) -> str:
    """Energy of a virtual monoenergetic image in keV, or the material of a decomposition (PS3.3 C.8.15.3)."""
    kev = source.number("MonoenergeticEnergyEquivalentSequence", "MonoenergeticEnergyEquivalent")
    if kev is not None:
        return f"{kev:g} keV"
    processing = source.get("MultienergyCTProcessingSequence", "DecompositionMaterialSequence")
    code = processing[0].get("MaterialCodeSequence") if processing else None
    return str(code[0].get("CodeMeaning", "")) if code else ""


# The object as a whole


def _is_mosaic(ds: Dataset) -> bool:
    """Siemens tiles: the plane attributes speak of the whole picture, not of the tiles (ASM-52)."""
    if "MOSAIC" in _words(ds, "ImageType"):
        return True
    try:
        tiles = ds.private_block(0x0019, "SIEMENS MR HEADER")[0x0A].value
    except KeyError:
        return False
    return (_as_int(tiles) or 0) > 1


def _copied(ds: Dataset) -> dict[str, str]:
    """A digest of each attribute that results copy (RES-31), by keyword; of a sequence too."""
    values = {keyword: encoded(ds, keyword) for keyword in (*COPIED, "SpecificCharacterSet")}
    return {name: hashlib.blake2b(value, digest_size=8).hexdigest() for name, value in values.items() if value}


def _value_defects(ds: Dataset, modality: str) -> tuple[str, ...]:
    """What makes stored values mean something else than the rescale attributes say (ASM-43, ASM-45)."""
    defects = []
    if "ModalityLUTSequence" in ds:
        defects.append("modality_lut: a table, not a slope, turns stored values into output units")
    enhanced = "PerFrameFunctionalGroupsSequence" in ds or "SharedFunctionalGroupsSequence" in ds
    rescaled = ds.get("RescaleSlope") not in (None, "") and ds.get("RescaleIntercept") not in (None, "")
    if modality == "CT" and not enhanced and not rescaled and "Rows" in ds:
        defects.append("no_rescale: a CT image without RescaleSlope or RescaleIntercept has no Hounsfield units")
    return tuple(defects)


def _stored_value(ds: Dataset, keyword: str) -> int | None:
    """A pixel value as stored. The VR, US or SS, follows PixelRepresentation, yet writers get it wrong: fold it in."""
    value = _as_int(ds.get(keyword))
    bits = _int(ds, "BitsAllocated") or 16
    if value is None:
        return None
    if _int(ds, "PixelRepresentation") == 1 and value >= 1 << (bits - 1):
        return value - (1 << bits)
    if _int(ds, "PixelRepresentation") == 0 and value < 0:
        return value + (1 << bits)
    return value


def _measure(ds: Dataset, keyword: str) -> float | None:
    groups = ds.get("PerFrameFunctionalGroupsSequence")
    value = _FrameSource(ds, groups[0] if groups else None).number("PixelMeasuresSequence", keyword)
    return abs(value) if value else None


def _age_years(text: str) -> float | None:
    """Age string, PS3.5 6.2: three digits and D, W, M or Y."""
    found = re.fullmatch(r"(\d{1,3})([DWMY])", text)
    return int(found[1]) / {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[found[2]] if found else None


def _tags(ds: Dataset) -> dict[str, str]:
    """Values by keyword for configured rules: short texts and numbers, nothing that names a person."""
    tags = {}
    for tag in ds.keys():  # noqa: SIM118 - iterating the data set itself would convert every element
        keyword = keyword_for_tag(tag)
        if not keyword or not is_asked_for(tag.group, keyword, dictionary_VR(tag)):
            continue
        text = _plain_text(ds.get_item(tag)) or _text(ds, keyword)
        if text and len(text) <= 256:
            tags[keyword] = text
    tags.update(_coded_tags(ds))
    return tags


def _plain_text(element: object) -> str:
    """The text of an unread element of a VR that holds plain ASCII, without the cost of making a value of it."""
    if isinstance(element, RawDataElement) and element.value and dictionary_VR(element.tag) in _ASCII_VRS:
        return "\\".join(part.strip(" \0") for part in element.value.decode("ascii", "replace").split("\\"))
    return ""


def _coded_tags(ds: Dataset) -> Mapping[str, str]:
    """Codes of procedure and anatomy, as `ProcedureCodeValue`, `ProcedureCodeMeaning`, ... (ASM-51)."""
    found = {}
    for name in CODE_SEQUENCES:
        value, meaning = coded_fields(name)
        for code in (ds.get(name) or [])[:1]:
            found[value] = _text(code, "CodeValue")
            found[meaning] = _text(code, "CodeMeaning")
    return found


# Values


def _text(ds: Dataset, keyword: str) -> str:
    value = ds.get(keyword)
    return "" if value is None else _as_text(value)


def _person_name(ds: Dataset, keyword: str) -> str:
    """A name without the separators of components that are not there, which mean nothing (PS3.5 6.2.1.1)."""
    return "=".join(group.rstrip("^ ") for group in _text(ds, keyword).split("="))


def _as_text(value: Any) -> str:
    if isinstance(value, MultiValue | list | tuple):
        return "\\".join(str(item).strip() for item in value)
    return str(value).strip().rstrip("\0")


def _words(ds: Dataset, keyword: str) -> tuple[str, ...]:
    return _as_words(ds.get(keyword))


def _as_words(value: Any) -> tuple[str, ...]:
    return tuple(word.strip().upper() for word in _as_text(value).split("\\")) if value else ()


def _float(ds: Dataset, keyword: str) -> float | None:
    return _as_float(ds.get(keyword))


def _as_float(value: Any) -> float | None:
    """A finite number, or None for what is none: a broken DS in an optional attribute is no reason to stop."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None


def _int(ds: Dataset, keyword: str) -> int | None:
    return _as_int(ds.get(keyword))


def _as_int(value: Any) -> int | None:
    number = _as_float(_first(value))
    return None if number is None else int(number)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, MultiValue | list | tuple) and len(value) else value
