"""Which frames can never be part of a scan for a model, and why (ASM-30, ASM-40 to ASM-45, ASM-52, NET-36)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from node.domain.instance import InstanceHeader, SourceFrame
from node.domain.partition import image_meaning
from node.domain.planes import orientation_fault

CT_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.2{leaf}" for leaf in ("", ".1", ".2"))
MR_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.4{leaf}" for leaf in ("", ".1", ".4"))
"""CT, Enhanced CT and Legacy Converted Enhanced CT; the same of MR (REQUIREMENTS 1.1)."""
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

_SCREEN = frozenset({"SCREEN SAVE", "SCREENSAVE", "SCREEN_SAVE", "DISPLAY", "SCREENSHOT"})
_DOSE = frozenset({"DOSE_INFO", "DOSE INFO", "DOSE", "DOSE REPORT", "DOSE_REPORT", "PATIENT_PROTOCOL"})
_NOT_HU = frozenset(
    {
        *("MAT_SPECIFIC", "MAT_REMOVED", "MAT_FRACTIONAL", "MAT_MODIFIED", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY"),
        *("IODINE", "IODINE_NO_WATER", "Z_EFF", "WATER_NO_IODINE", "CALCIUM", "URIC_ACID"),
    }
)
"""Multi-energy images whose values are no Hounsfield units (PS3.3 C.8.15.3.8.2, and makers' words)."""
LEAVES_GAP = frozenset(
    {
        *("pixel_length", "frame_count", "bits", "no_pixel_data", "too_large", "transfer_syntax", "float_pixels"),
        *("modality_lut", "no_rescale", "photometric"),
    }
)
"""Reasons that keep a slice out of its scan although it is one of it: the scan lacks it (ASM-4, ASM-40)."""
_LOCALIZER_WORDS = re.compile(r"\b(3[- ]?plane|locali[sz]ers?|scout|topograms?|scanograms?|surview|survey)\b", re.I)


@dataclass(frozen=True)
class Exclusion:
    """A word of a closed set, and the sentence for a person."""

    reason: str
    detail: str
    quarantined: bool = False


def is_image(sop_class_uid: str) -> bool:
    """Whether an object of this class may be a slice of a scan."""
    return sop_class_uid in CT_CLASSES | MR_CLASSES


def exclusion(source: SourceFrame) -> Exclusion | None:
    """The first rule that keeps a frame out of every stack, or None."""
    for rule in (_by_class, _by_content, _by_values, _by_place):
        found = rule(source)
        if found is not None:
            return found
    return None


def _by_class(source: SourceFrame) -> Exclusion | None:
    header = source.header
    if header.own_result:
        return Exclusion("own_result", "made by this product and sent back to it")
    if header.sop_class_uid.startswith(_SECONDARY_CAPTURE):
        return Exclusion("secondary_capture", "a Secondary Capture object")
    if header.sop_class_uid not in CT_CLASSES | MR_CLASSES:
        return Exclusion("sop_class", f"SOP Class {header.sop_class_uid} is stored, not processed")
    expected = "CT" if header.sop_class_uid in CT_CLASSES else "MR"
    if header.modality != expected:
        return Exclusion("modality", f"Modality {header.modality or 'empty'} in an object of class {expected}")
    return None


def _by_content(source: SourceFrame) -> Exclusion | None:
    tokens = {*source.header.image_type, *source.frame.image_type}
    meaning = image_meaning(source)
    if source.header.is_mosaic:
        return Exclusion("mosaic", "tiles of a Siemens MOSAIC; its plane attributes do not describe its tiles")
    if tokens & _SCREEN:
        return Exclusion("screen_save", "a picture of a screen")
    if tokens & _DOSE:
        return Exclusion("dose_report", "a dose report")
    if "localizer" in meaning or _says_localizer(source.header):
        return Exclusion("localizer", "a localizer or scout")
    if "projection" in meaning:
        return Exclusion("projection", f"a {meaning['projection']} of other images")
    return None


def _says_localizer(header: InstanceHeader) -> bool:
    """MR localizers say so in their description only; a word in it excludes, it never splits."""
    return bool(_LOCALIZER_WORDS.search(header.series_description))


def _by_values(source: SourceFrame) -> Exclusion | None:
    header, frame = source.header, source.frame
    for defect in header.defects:
        word, _, detail = defect.partition(": ")
        doubtful = word in ("pixel_length", "frame_count", "bits", "no_pixel_data", "too_large")
        return Exclusion(word, detail or word, quarantined=doubtful)
    if not header.rows or not header.columns:
        return Exclusion("no_pixel_data", "an image without Rows or Columns", quarantined=True)
    if header.samples_per_pixel != 1:
        return Exclusion("colour", f"{header.samples_per_pixel} samples per pixel")
    monochrome = ("MONOCHROME2",) if header.modality == "CT" else ("MONOCHROME1", "MONOCHROME2")
    if header.photometric_interpretation not in monochrome:
        return Exclusion("photometric", f"{header.photometric_interpretation or 'no'} photometric interpretation")
    if header.modality == "CT":
        return _by_hounsfield(source)
    if frame.rescale_slope == 0:
        return Exclusion("no_rescale", "RescaleSlope is zero")
    return None


def _by_hounsfield(source: SourceFrame) -> Exclusion | None:
    frame = source.frame
    if frame.rescale_type.upper() not in ("", "HU"):
        return Exclusion("rescale_type", f"RescaleType {frame.rescale_type}: not Hounsfield units")
    energy = _NOT_HU.intersection((*source.header.image_type, *frame.image_type))
    if energy or (frame.energy and not frame.energy.endswith("keV")):
        what = ", ".join(sorted(energy)) or frame.energy
        return Exclusion("material_map", f"a multi-energy map ({what}), not Hounsfield units")
    if frame.rescale_slope <= 0:
        return Exclusion("no_rescale", f"RescaleSlope {frame.rescale_slope:g}")
    return None


def _by_place(source: SourceFrame) -> Exclusion | None:
    frame = source.frame
    if frame.position_mm is None:
        return Exclusion("no_position", "no ImagePositionPatient")
    if frame.pixel_spacing_mm is None:
        return Exclusion("no_pixel_spacing", "no PixelSpacing")
    fault = orientation_fault(frame)
    if fault:
        return Exclusion("bad_orientation", fault)
    return None
