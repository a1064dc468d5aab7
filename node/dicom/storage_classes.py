"""What the listener takes in: SOP classes by what becomes of them, and transfer syntaxes in our order of preference.

The conformance statement is made from these tables (NET-42).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from node.dicom.upper_layer import STORAGE_COMMITMENT, Context

VERIFICATION = "1.2.840.10008.1.1"
_STORAGE = "1.2.840.10008.5.1.4.1.1."

PROCESSED: Mapping[str, str] = MappingProxyType(
    {
        _STORAGE + "2": "CT Image Storage",
        _STORAGE + "2.1": "Enhanced CT Image Storage",
        _STORAGE + "2.2": "Legacy Converted Enhanced CT Image Storage",
        _STORAGE + "4": "MR Image Storage",
        _STORAGE + "4.1": "Enhanced MR Image Storage",
        _STORAGE + "4.4": "Legacy Converted Enhanced MR Image Storage",
    }
)
"""Stored, and may become part of a stack."""

HELD: Mapping[str, str] = MappingProxyType(
    {
        _STORAGE + "4.2": "MR Spectroscopy Storage",
        _STORAGE + "4.3": "Enhanced MR Color Image Storage",
        _STORAGE + "7": "Secondary Capture Image Storage",
        _STORAGE + "7.1": "Multi-frame Single Bit Secondary Capture Image Storage",
        _STORAGE + "7.2": "Multi-frame Grayscale Byte Secondary Capture Image Storage",
        _STORAGE + "7.3": "Multi-frame Grayscale Word Secondary Capture Image Storage",
        _STORAGE + "7.4": "Multi-frame True Color Secondary Capture Image Storage",
        _STORAGE + "11.1": "Grayscale Softcopy Presentation State Storage",
        _STORAGE + "11.2": "Color Softcopy Presentation State Storage",
        _STORAGE + "66": "Raw Data Storage",
        _STORAGE + "66.4": "Segmentation Storage",
        _STORAGE + "66.7": "Label Map Segmentation Storage",
        _STORAGE + "88.11": "Basic Text SR Storage",
        _STORAGE + "88.22": "Enhanced SR Storage",
        _STORAGE + "88.33": "Comprehensive SR Storage",
        _STORAGE + "88.34": "Comprehensive 3D SR Storage",
        _STORAGE + "88.35": "Extensible SR Storage",
        _STORAGE + "88.40": "Procedure Log Storage",
        _STORAGE + "88.50": "Mammography CAD SR Storage",
        _STORAGE + "88.59": "Key Object Selection Document Storage",
        _STORAGE + "88.65": "Chest CAD SR Storage",
        _STORAGE + "88.67": "X-Ray Radiation Dose SR Storage",
        _STORAGE + "88.68": "Radiopharmaceutical Radiation Dose SR Storage",
        _STORAGE + "88.69": "Colon CAD SR Storage",
        _STORAGE + "88.71": "Acquisition Context SR Storage",
        _STORAGE + "88.76": "Enhanced X-Ray Radiation Dose SR Storage",
        _STORAGE + "104.1": "Encapsulated PDF Storage",
        _STORAGE + "128": "Positron Emission Tomography Image Storage",
        _STORAGE + "128.1": "Legacy Converted Enhanced PET Image Storage",
        _STORAGE + "130": "Enhanced PET Image Storage",
        _STORAGE + "481.3": "RT Structure Set Storage",
    }
)
"""Stored, never processed: a failure status would stop the sender's whole job (NET-7)."""

UNCOMPRESSED: Mapping[str, str] = MappingProxyType(
    {
        "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
        "1.2.840.10008.1.2": "Implicit VR Little Endian",
    }
)
"""Always accepted, in this order: with Implicit VR the VRs of private elements are lost."""

COMPRESSED: Mapping[str, str] = MappingProxyType(
    {
        "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
        "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
        "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000 Lossless",
        "1.2.840.10008.1.2.4.202": "High-Throughput JPEG 2000 RPCL Lossless",
        "1.2.840.10008.1.2.4.70": "JPEG Lossless, Process 14 SV1",
        "1.2.840.10008.1.2.4.57": "JPEG Lossless, Process 14",
        "1.2.840.10008.1.2.5": "RLE Lossless",
        "1.2.840.10008.1.2.4.81": "JPEG-LS Near-lossless",
        "1.2.840.10008.1.2.4.91": "JPEG 2000",
        "1.2.840.10008.1.2.4.203": "High-Throughput JPEG 2000",
        "1.2.840.10008.1.2.4.50": "JPEG Baseline (Process 1)",
        "1.2.840.10008.1.2.4.51": "JPEG Extended (Process 2 and 4)",
    }
)
"""Accepted after these where a decoder proved itself (NET-6), lossless first. Deflated and Big Endian: off (SEC-5)."""


def storage_contexts(decodable: Collection[str], *, commitment_reports: bool = False) -> tuple[Context, ...]:
    """Return what the listener accepts.

    Parameters
    ----------
    decodable
        Transfer syntaxes whose decoder passed its self-test; others are not offered.
    commitment_reports
        Take Storage Commitment associations whose requestor is the SCP.
    """
    uncompressed = tuple(UNCOMPRESSED)
    syntaxes = uncompressed + tuple(uid for uid in COMPRESSED if uid in decodable)
    contexts = [Context(VERIFICATION, uncompressed)]
    contexts += [Context(uid, syntaxes) for uid in (*PROCESSED, *HELD)]
    if commitment_reports:
        contexts.append(Context(STORAGE_COMMITMENT, uncompressed))
    return tuple(contexts)
