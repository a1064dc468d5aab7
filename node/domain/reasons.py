"""Why a scan was not segmented, or is in doubt: the closed set of words of journal, metrics and `hilum explain`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

NOT_A_SCAN: Mapping[str, str] = MappingProxyType(
    {
        "class_not_processed": "stored as it is: its SOP class is never segmented",
        "set_aside": "an operator accepted another patient or study for its series",
        "own_result": "one of our own results, sent back to us",
        "sop_class": "an image class that is never segmented",
        "modality": "the Modality does not fit the SOP class, or the model",
        "secondary_capture": "a Secondary Capture object",
        "screen_save": "a picture of a screen",
        "dose_report": "a dose report",
        "localizer": "a localizer, scout or survey",
        "projection": "a MIP, MPR or other projection of images",
        "mosaic": "a mosaic: the attributes describe the sheet, not its tiles",
        "phantom": "the Patient ID is that of a phantom or of quality control",
        "not_magnitude": "a phase, real or imaginary image",
        "parametric_map": "a map (ADC, FA, ...), not an image",
        "material_map": "a multi-energy map whose values are no Hounsfield units",
    }
)
"""Not what a model is for."""
PIXELS: Mapping[str, str] = MappingProxyType(
    {
        "colour": "more than one sample for each pixel",
        "photometric": "a photometric interpretation that is not grey values",
        "no_rescale": "a CT without a usable RescaleSlope and RescaleIntercept",
        "rescale_type": "the rescaled values are no Hounsfield units",
        "modality_lut": "a table, not a slope, turns the stored values into output units",
        "float_pixels": "floating point pixel data",
        "transfer_syntax": "a transfer syntax that cannot be decoded here",
        "bits": "BitsAllocated, BitsStored and HighBit contradict each other",
        "pixel_length": "the pixel data is shorter or longer than the header says",
        "frame_count": "fewer frames than the header says",
        "no_pixel_data": "the object ends before its pixels",
        "too_large": "more pixels than are decoded here, or a larger scan than the model takes",
        "undecodable": "a frame cannot be decoded",
        "not_finite": "pixel values that are no numbers",
        "not_hounsfield": "a CT with values like one without its rescale",
        "unsuitable_volume": "the engine cannot use the voxels",
    }
)
"""The pixels cannot be used."""
GEOMETRY: Mapping[str, str] = MappingProxyType(
    {
        "no_position": "no ImagePositionPatient",
        "no_pixel_spacing": "no PixelSpacing",
        "bad_orientation": "direction cosines that are missing or cannot be mended",
        "single_slice": "one plane is no volume",
        "missing_slices": "slices are missing, or came and cannot be used; the detail names them",
        "irregular_spacing": "planes that do not lie in a row",
        "ambiguous": "several frames in one place, and no attribute tells them apart",
    }
)
"""The planes form no volume."""
DOUBT: Mapping[str, str] = MappingProxyType(
    {
        "identity_mismatch": "slices of one series disagree on the patient or the study",
        "duplicate_uid": "two different objects under one SOP Instance UID",
        "duplicate_uid_other_bytes": "an object came again under a known UID with other content; both are kept",
        "uid_in_two_series": "one SOP Instance UID in two series",
        "unreadable_header": "the header cannot be read",
        "no_readable_instance": "no object of the series can be read",
        "conflicting_headers": "slices disagree on attributes that a result must copy",
        "inputs_purged": "a late slice came after the others had been purged: send the series again whole",
    }
)
"""Identity or content is in doubt, or not whole."""
ROUTING: Mapping[str, str] = MappingProxyType(
    {
        "no_rule": "no rule's conditions hold; `hilum explain` shows each",
        "senders_disagree": "the slices came from several peers, and no rule holds for each of them",
        "no_model": "the rule names a model that is not installed",
        "selftest_only": "the model is for the self-test's patient alone",
        "several_channels": "the model sees several images at once, and a series brings one: such a model is used with "
        "`hilum-models segment`",
        "too_few_slices": "fewer slices than the model wants",
        "too_small": "a smaller scan than the model wants",
        "step_too_large": "slices further apart than the model takes",
        "too_young": "a younger patient than the model is for",
        "not_best": "another stack of the study serves the rule better",
        "higher_b_value": "a diffusion image with a higher b-value than its neighbour in the series",
    }
)
"""No rule chose a model, or the model does not take the scan."""

REASONS: Mapping[str, str] = MappingProxyType({**NOT_A_SCAN, **PIXELS, **GEOMETRY, **DOUBT, **ROUTING})
"""All of them, with what they mean."""
