"""What was written is not sent when it is not what it was made from: each checked field, changed, is found (RES-30)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from node.dicom import compose as compose_module
from node.dicom.compose import compose
from node.dicom.composition import Composition
from node.dicom.readback import Mismatch, verify_document, verify_seg, verify_sr
from node.domain.stack import FrameLabels
from node.selftest.scanner import Acquisition

Change = Callable[[Dataset], None]


def shared(ds: Dataset) -> Dataset:
    """The groups that all frames share."""
    return ds.SharedFunctionalGroupsSequence[0]


def frame(ds: Dataset, index: int = 3) -> Dataset:
    """The groups of one frame."""
    return ds.PerFrameFunctionalGroupsSequence[index]


def move(ds: Dataset) -> None:
    position = frame(ds).PlanePositionSequence[0].ImagePositionPatient
    frame(ds).PlanePositionSequence[0].ImagePositionPatient = [position[0], position[1], float(position[2]) + 0.01]


def flip_bit(ds: Dataset) -> None:
    data = bytearray(ds.PixelData)
    data[len(data) // 2] ^= 1
    ds.PixelData = bytes(data)


def exchange_segments(ds: Dataset) -> None:
    for group in ds.PerFrameFunctionalGroupsSequence:
        number = group.SegmentIdentificationSequence[0]
        number.ReferencedSegmentNumber = {3: 4, 4: 3}.get(
            number.ReferencedSegmentNumber, number.ReferencedSegmentNumber
        )


def other_source(ds: Dataset) -> None:
    mine, other = (frame(ds, n).DerivationImageSequence[0].SourceImageSequence[0] for n in (3, 4))
    mine.ReferencedSOPInstanceUID = other.ReferencedSOPInstanceUID


def other_side(ds: Dataset) -> None:
    kidney = ds.SegmentSequence[2].SegmentedPropertyTypeCodeSequence[0]
    kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue = "24028007"


IDENTITY: dict[str, Change] = {
    "PatientID": lambda ds: setattr(ds, "PatientID", "OTHER"),
    "PatientName": lambda ds: setattr(ds, "PatientName", "Other^One"),
    "PatientBirthDate": lambda ds: setattr(ds, "PatientBirthDate", "19000101"),
    "StudyInstanceUID": lambda ds: setattr(ds, "StudyInstanceUID", "1.2.3"),
    "AccessionNumber": lambda ds: setattr(ds, "AccessionNumber", "X"),
    "SOPInstanceUID": lambda ds: setattr(ds, "SOPInstanceUID", "1.2.3"),
    "SeriesInstanceUID": lambda ds: setattr(ds, "SeriesInstanceUID", "1.2.3"),
    "ContentQualification": lambda ds: delattr(ds, "ContentQualification"),
}
SEG: dict[str, Change] = {
    "PlanePosition": move,
    "pixels": flip_bit,
    "segment numbers": exchange_segments,
    "source image": other_source,
    "laterality": other_side,
    "FrameOfReferenceUID": lambda ds: setattr(ds, "FrameOfReferenceUID", "1.2.3"),
    "PixelSpacing": lambda ds: setattr(shared(ds).PixelMeasuresSequence[0], "PixelSpacing", [4.0, 4.01]),
    "ImageOrientationPatient": lambda ds: setattr(
        shared(ds).PlaneOrientationSequence[0], "ImageOrientationPatient", [1, 0, 0, 0, -1, 0]
    ),
    "SegmentLabel": lambda ds: setattr(ds.SegmentSequence[0], "SegmentLabel", "Spleen"),
    "TrackingUID": lambda ds: setattr(ds.SegmentSequence[0], "TrackingUID", "1.2.3"),
    "ReferencedSeriesSequence": lambda ds: ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence.pop(),
    "a frame less": lambda ds: drop_last_frame(ds),
}


def drop_last_frame(ds: Dataset) -> None:
    ds.PerFrameFunctionalGroupsSequence = list(ds.PerFrameFunctionalGroupsSequence)[:-1]
    ds.NumberOfFrames = len(ds.PerFrameFunctionalGroupsSequence)


def group(ds: Dataset, index: int = 0) -> Dataset:
    """One measurement group of a report."""
    measurements = next(item for item in ds.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "126010")
    return measurements.ContentSequence[index]


def item(ds: Dataset, concept: str) -> Dataset:
    """One content item of the first group."""
    return next(one for one in group(ds).ContentSequence if one.ConceptNameCodeSequence[0].CodeValue == concept)


def other_predecessor() -> Dataset:
    """A document that nobody was sent."""
    study, series, document = Dataset(), Dataset(), Dataset()
    document.ReferencedSOPClassUID, document.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.3"
    series.SeriesInstanceUID, series.ReferencedSOPSequence = "1.2.4", [document]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = "1.2.5", [series]
    return study


SR: dict[str, Change] = {
    "volume": lambda ds: setattr(item(ds, "118565006").MeasuredValueSequence[0], "NumericValue", "17.5"),
    "unit": lambda ds: setattr(
        item(ds, "118565006").MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0], "CodeValue", "mm3"
    ),
    "finding": lambda ds: setattr(item(ds, "121071").ConceptCodeSequence[0], "CodeValue", "78961009"),
    "segment number": lambda ds: setattr(item(ds, "121191").ReferencedSOPSequence[0], "ReferencedSegmentNumber", 2),
    "segmentation": lambda ds: setattr(item(ds, "121191").ReferencedSOPSequence[0], "ReferencedSOPInstanceUID", "1.2"),
    "tracking": lambda ds: setattr(item(ds, "112040"), "UID", "1.2.3"),
    "verification": lambda ds: setattr(ds, "VerificationFlag", "VERIFIED"),
    "predecessor": lambda ds: setattr(ds, "PredecessorDocumentsSequence", [other_predecessor()]),
    "evidence": lambda ds: ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence.pop(),
}
PDF: dict[str, Change] = {
    "document": lambda ds: setattr(
        ds, "EncapsulatedDocument", ds.EncapsulatedDocument[: len(ds.EncapsulatedDocument) // 2]
    ),
    "sources": lambda ds: ds.SourceInstanceSequence.pop(),
}


@pytest.fixture
def written(small: Acquisition, tmp_path: Path, composition_of: Callable[..., Composition]) -> tuple[Composition, Path]:
    """A composition and the folder of its results, all found right."""
    c = composition_of(small)
    compose(c, tmp_path, frozenset({"binary", "labelmap"}))
    return c, tmp_path


def changed(path: Path, change: Change) -> Path:
    """A copy with one change."""
    ds = dcmread(path)
    change(ds)
    copy = path.with_name("changed.dcm")
    ds.save_as(copy)
    return copy


def test_every_change_to_a_seg_is_found(written: tuple[Composition, Path]) -> None:
    c, folder = written
    volumes = verify_seg(folder / "seg-binary.dcm", c, "binary")
    assert volumes == pytest.approx({one.segment_number: one.volume_ml for one in c.findings.present})
    for name, change in {**IDENTITY, **SEG}.items():
        path = changed(folder / "seg-binary.dcm", change)
        with pytest.raises(Mismatch):
            verify_seg(path, c, "binary")
            pytest.fail(f"a changed {name} was not found")


def test_every_change_to_a_report_is_found(written: tuple[Composition, Path]) -> None:
    c, folder = written
    variant = "comprehensive3d-binary"
    volumes = {one.segment_number: one.volume_ml for one in c.findings.present}
    verify_sr(folder / f"sr-{variant}.dcm", c, variant, volumes)
    for name, change in {**IDENTITY, **SR}.items():
        path = changed(folder / f"sr-{variant}.dcm", change)
        with pytest.raises(Mismatch):
            verify_sr(path, c, variant, volumes)
            pytest.fail(f"a changed {name} was not found")
    with pytest.raises(Mismatch, match="SEG holds"):
        verify_sr(folder / f"sr-{variant}.dcm", c, variant, {**volumes, 1: volumes[1] * 1.001})


def test_every_change_to_a_document_is_found(written: tuple[Composition, Path]) -> None:
    c, folder = written
    for name, change in {**IDENTITY, **PDF}.items():
        path = changed(folder / "pdf.dcm", change)
        with pytest.raises(Mismatch):
            verify_document(path, c)
            pytest.fail(f"a changed {name} was not found")


def test_labels_of_another_plane_order_are_found(written: tuple[Composition, Path]) -> None:
    """R1: the one mistake that no validator sees; the planes exchanged end for end."""
    c, folder = written
    turned = FrameLabels(np.ascontiguousarray(c.labels.labels[::-1]), c.labels.names)
    for variant in ("binary", "labelmap"):
        with pytest.raises(Mismatch, match="plane"):
            verify_seg(folder / f"seg-{variant}.dcm", dataclasses.replace(c, labels=turned), variant)


def test_message_shows_no_value(written: tuple[Composition, Path]) -> None:
    """SEC-20: what differs is named, the values are the patient's."""
    c, folder = written
    path = changed(folder / "pdf.dcm", IDENTITY["PatientName"])
    with pytest.raises(Mismatch) as caught:
        verify_document(path, c)
    assert "PatientName" in str(caught.value)
    assert "Other" not in str(caught.value)
    assert "Phantom" not in str(caught.value)


def test_a_fault_in_writing_stops_the_composition(
    small: Acquisition, tmp_path: Path, composition_of: Callable[..., Composition], monkeypatch: pytest.MonkeyPatch
) -> None:
    """compose() raises before anything may be named a result."""
    original = compose_module.build_seg

    def wrong(c: Composition, variant: str) -> Dataset:
        seg = original(c, variant)
        flip_bit(seg)
        return seg

    monkeypatch.setattr(compose_module, "build_seg", wrong)
    with pytest.raises(Mismatch, match="plane"):
        compose(composition_of(small), tmp_path, frozenset({"binary"}))
