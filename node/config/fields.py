"""What a rule's condition may ask for, and what to say of a field that it may not.

The dictionary of DICOM is loaded only where a file has a condition: help and completion do not wait for it.
"""

from __future__ import annotations

import functools

from node.config.complaints import nearest
from node.domain.attributes import CODE_SEQUENCES, coded_fields, is_asked_for
from node.domain.routing import FACTS

_PATIENT_GROUP = 0x0010


def field_fault(field: str) -> str:
    """What is wrong with the field of a condition, or nothing: one that is never there would silently never hold."""
    known = _known_fields()
    if field in known:
        return ""
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(field)
    if tag is None:
        return f"no DICOM keyword and no derived fact{nearest(field, known, 'docs/configure.md lists the facts')}"
    if tag >> 16 == _PATIENT_GROUP:
        return "patient attributes cannot be asked for, except PatientSex and the derived patient_age_years"
    return "this attribute cannot be asked for: it may say who somebody is, or it is no short text or number"


@functools.cache
def _known_fields() -> frozenset[str]:
    """Keywords and facts that can be asked for."""
    from pydicom.datadict import dictionary_VR, keyword_dict

    keywords = {word for word, tag in keyword_dict.items() if is_asked_for(tag >> 16, word, dictionary_VR(tag))}
    coded = {field for sequence in CODE_SEQUENCES for field in coded_fields(sequence)}
    return frozenset(keywords | coded | set(FACTS))
