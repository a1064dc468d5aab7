"""Which attributes of a series a rule may ask for; only these are read into `InstanceHeader.tags`.

Short texts and numbers that describe the scan. Nothing that names a person, and no free text in which that may stand.
"""

from __future__ import annotations

_GROUPS = frozenset({0x0008, 0x0018, 0x0020, 0x0028, 0x0032, 0x0040, 0x0054})
_VRS = frozenset({"AE", "AS", "CS", "DS", "FD", "FL", "IS", "LO", "LT", "SH", "SL", "SS", "ST", "UL", "US"})
_UNTOLD = frozenset(
    {
        *("AccessionNumber", "StudyID", "InstitutionAddress", "RequestingService", "CurrentPatientLocation"),
        *("AdmissionID", "ServiceEpisodeID", "DeviceSerialNumber", "ImageComments"),
        *("FillerOrderNumberImagingServiceRequest", "PlacerOrderNumberImagingServiceRequest"),
        *("RequestedProcedureID", "ScheduledProcedureStepID", "PerformedProcedureStepID"),
        *("RequestAttributesSequence", "ReasonForStudy", "ReasonForTheRequestedProcedure"),
    }
)
"""Keywords that say who somebody is, or free text in which it may stand."""

CODE_SEQUENCES = ("ProcedureCodeSequence", "RequestedProcedureCodeSequence", "AnatomicRegionSequence")
"""Of the first item of each, value and meaning can be asked for (ASM-51)."""
_OF_THE_PATIENT = frozenset({"PatientSex"})
"""Keywords of the patient's module that can be asked for all the same."""


def coded_fields(sequence: str) -> tuple[str, str]:
    """The names by which a rule asks for value and meaning of a code: `ProcedureCodeValue`, `ProcedureCodeMeaning`."""
    stem = sequence.removesuffix("Sequence").removesuffix("Code")
    return f"{stem}CodeValue", f"{stem}CodeMeaning"


def is_asked_for(group: int, keyword: str, vr: str) -> bool:
    """Whether a rule may ask for the attribute of this group, keyword and value representation."""
    return keyword in _OF_THE_PATIENT or (group in _GROUPS and vr in _VRS and bool(keyword) and keyword not in _UNTOLD)
