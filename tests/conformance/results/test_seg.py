"""SEG through independent validators and readers: dicom3tools, highdicom, dcmqi, DCMTK (RES-1 to RES-6, table 3.3)."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.charset import convert_encodings
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from node.dicom.compose import compose
from node.dicom.composition import Composed, Composition, ResultStyle
from node.domain.job import ObjectKind
from node.domain.segments import Code, SegmentDescription
from node.errors import Unsuitable
from node.selftest import phantom, scanner
from node.selftest.scanner import Acquisition, planes_around

BOTH = frozenset({"binary", "labelmap"})
COARSE: dict[str, Any] = {"pixel_mm": (4.0, 4.0), "step_mm": 8.0}


def seg_of(c: Composition, folder: Path, variant: str) -> Path:
    """Compose SEG alone; compose() itself reads each file back and compares every voxel."""
    folder.mkdir(exist_ok=True)
    made = {each.variant: each for each in compose(c, folder, BOTH, sr=False, pdf=False)}
    return made[variant].path


def sized(rows: int, columns: int, pixel_mm: tuple[float, float]) -> Acquisition:
    """The standard patient on planes of a given size."""
    planes = planes_around(pixel_mm=pixel_mm, step_mm=8.0)
    return Acquisition(dataclasses.replace(planes, rows=rows, columns=columns), phantom.CT)


REGULAR = {
    "axial": Acquisition(planes_around(**COARSE), phantom.CT),
    "oblique": Acquisition(planes_around(turn=phantom.rotation(20, -15, 10), **COARSE), phantom.CT),
    "sagittal": Acquisition(planes_around(plane="sagittal", **COARSE), phantom.MR),
    "coronal": Acquisition(planes_around(plane="coronal", **COARSE), phantom.MR),
    "non-square": Acquisition(planes_around(pixel_mm=(3.0, 5.0), step_mm=8.0), phantom.MR),
    "250 x 250": sized(250, 250, (1.0, 1.0)),
    "51 x 35": sized(51, 35, (4.6, 7.0)),
    "reversed": Acquisition(scanner.chosen(planes_around(**COARSE), list(range(30))[::-1]), phantom.CT),
}


@pytest.mark.parametrize("variant", sorted(BOTH))
@pytest.mark.parametrize("case", REGULAR)
def test_validators_and_readers_find_the_same_voxels(
    case: str,
    variant: str,
    tmp_path: Path,
    composition_of: Callable[..., Composition],
    dciodvfy: Callable[[Path], list[str]],
    read_by_dcmqi: Callable[[Path], tuple[Any, list[Any]]],
    differing_voxels: Callable[[Any, Composition], int],
) -> None:
    """RES-1, RES-3: every plane orientation and image size, in patient coordinates."""
    c = composition_of(REGULAR[case])
    path = seg_of(c, tmp_path / "out", variant)
    assert dciodvfy(path) == []
    image, description = read_by_dcmqi(path)
    assert differing_voxels(image, c) == 0
    labels = {item["labelID"]: item["SegmentLabel"] for items in description for item in items}
    labels.pop(0, None)
    assert labels == {finding.segment_number: finding.segment.label for finding in c.findings.present}
    assert subprocess.run(["/usr/bin/dcmdump", "-q", str(path)], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("variant", sorted(BOTH))
def test_highdicom_rebuilds_the_volume(
    variant: str, tmp_path: Path, small: Acquisition, composition_of: Callable[..., Composition]
) -> None:
    """The spacing of slices is the stack's, so a reader gets one volume back with the label map in it."""
    c = composition_of(small)
    seg = highdicom.seg.segread(seg_of(c, tmp_path / "out", variant))
    volume = seg.get_volume(combine_segments=True, skip_overlap_checks=True, allow_missing_positions=True)
    assert volume.spacing[0] == pytest.approx(8.0, abs=1e-6)
    counts = {number: int(np.count_nonzero(volume.array == number)) for number in range(1, 6)}
    assert counts == {finding.segment_number: finding.voxels for finding in c.findings.present}


@pytest.mark.parametrize("variant", sorted(BOTH))
def test_empty_frames_are_kept_where_a_destination_wants_them(
    variant: str,
    tmp_path: Path,
    small: Acquisition,
    composition_of: Callable[..., Composition],
    dciodvfy: Callable[[Path], list[str]],
) -> None:
    """RES-4: a frame for each plane, of BINARY for each segment; read back as all others, and another object."""
    c = composition_of(small)
    made = {each.variant: each for each in compose(c, tmp_path, frozenset({variant, f"{variant}-whole"}), pdf=False)}
    plain, whole = (dcmread(made[name].path) for name in (variant, f"{variant}-whole"))
    each_plane = len(c.stack.frames) * (len(c.findings.present) if variant == "binary" else 1)
    assert plain.NumberOfFrames < whole.NumberOfFrames == each_plane
    assert whole.SOPInstanceUID != plain.SOPInstanceUID
    assert dciodvfy(made[f"{variant}-whole"].path) == []
    report = dcmread(made[f"comprehensive3d-{variant}-whole"].path)
    assert whole.SOPInstanceUID in str(report.CurrentRequestedProcedureEvidenceSequence)


@pytest.mark.parametrize("variant", sorted(BOTH))
@pytest.mark.parametrize("tilt", [True, False])
def test_sheared_and_uneven_stacks_keep_their_own_planes(
    tilt: bool,
    variant: str,
    tmp_path: Path,
    composition_of: Callable[..., Composition],
    dciodvfy: Callable[..., list[str]],
) -> None:
    """R4: no organisation as `3D` and no one spacing; each frame lies where its image lies (read back by compose)."""
    planes = planes_around(tilt_deg=13.5 if tilt else 0.0, **COARSE)
    if not tilt:
        along = np.where(np.arange(len(planes.origins_mm)) > 15, 4.0 * (np.arange(len(planes.origins_mm)) - 15), 0.0)
        planes = scanner.moved(planes, along)
    c = composition_of(Acquisition(planes, phantom.CT, gantry_tilt_deg=13.5 if tilt else 0.0))
    seg = dcmread(seg_of(c, tmp_path / "out", variant))
    assert "DimensionOrganizationType" not in seg
    assert "SpacingBetweenSlices" not in seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert dciodvfy(tmp_path / "out" / f"seg-{variant}.dcm") == []


@pytest.mark.parametrize("variant", sorted(BOTH))
def test_multiframe_source_is_referred_to_by_frame(
    variant: str,
    tmp_path: Path,
    small: Acquisition,
    composition_of: Callable[..., Composition],
    dciodvfy: Callable[..., list[str]],
) -> None:
    """RES-3 with an Enhanced CT: one instance, a frame number for each plane."""
    c = composition_of(small, enhanced=True)
    path = seg_of(c, tmp_path / "out", variant)
    assert dciodvfy(path) == []
    groups = dcmread(path).PerFrameFunctionalGroupsSequence
    references = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in groups]
    assert {reference.ReferencedSOPInstanceUID for reference in references} == {c.sources[0].SOPInstanceUID}
    origins = small.planes.origins_mm
    for group, reference in zip(groups, references, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        assert np.abs(origins[int(reference.ReferencedFrameNumber) - 1] - position).max() < 1e-6


def test_one_segment_and_forty_segments(
    tmp_path: Path,
    small: Acquisition,
    composition_of: Callable[..., Composition],
    dciodvfy: Callable[..., list[str]],
    read_by_dcmqi: Callable[[Path], tuple[Any, list[Any]]],
    differing_voxels: Callable[[Any, Composition], int],
) -> None:
    """RES-5: numbers run from 1 without a gap whatever the model's labels are."""
    one = composition_of(small, relabel=lambda labels: np.where(labels == 3, labels, 0).astype(np.uint8))
    names = {label: f"part {label}" for label in range(5, 45)}
    table = {name: described(name) for name in names.values()}

    def bricks(labels: np.ndarray) -> np.ndarray:
        parts = np.zeros_like(labels)
        for n, label in enumerate(names):
            parts[2 + n // 8 * 4 : 5 + n // 8 * 4, 5:20, 2 + n % 8 * 7 : 7 + n % 8 * 7] = label
        return parts

    forty = composition_of(small, relabel=bricks, names=names, segments=table, unreported=())
    for c, segments in ((one, 1), (forty, 40)):
        for variant in sorted(BOTH):
            path = seg_of(c, tmp_path / f"out{segments}", variant)
            numbers = [item.SegmentNumber for item in dcmread(path).SegmentSequence]
            assert numbers == list(range(1, segments + 1)) + [0] * (variant == "labelmap")
            assert dciodvfy(path) == []
            assert differing_voxels(read_by_dcmqi(path)[0], c) == 0


def described(name: str) -> SegmentDescription:
    """A row of a table of its own."""
    anatomy = Code("91723000", "SCT", "Anatomical Structure")
    return SegmentDescription(name, name, anatomy, Code("51282000", "SCT", "Vertebra"), None, (200, 120, 40))


def test_background_is_last_and_the_segments_are_described(
    tmp_path: Path, small: Acquisition, composition_of: Callable[..., Composition]
) -> None:
    """R8, R14, RES-5: Background coded by CID 7150, sides inside the type item, colours, tracking, algorithm."""
    c = composition_of(small)
    seg = dcmread(seg_of(c, tmp_path / "out", "labelmap"))
    background = seg.SegmentSequence[-1]
    assert background.SegmentNumber == 0
    assert background.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "309825002"
    assert background.SegmentedPropertyTypeCodeSequence[0].CodeValue == "125040"
    assert (seg.BitsAllocated, seg.PhotometricInterpretation, seg.PixelPaddingValue) == (8, "MONOCHROME2", 0)
    left = next(item for item in seg.SegmentSequence if item.SegmentLabel == "Left kidney")
    kidney = left.SegmentedPropertyTypeCodeSequence[0]
    assert (kidney.CodeValue, kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue) == ("64033007", "7771000")
    assert left.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "91723000"
    assert left.SegmentAlgorithmType == "AUTOMATIC"
    assert left.SegmentationAlgorithmIdentificationSequence[0].AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
    for item in seg.SegmentSequence:
        assert len(item.RecommendedDisplayCIELabValue) == 3


def test_the_engine_and_its_certificate_are_named(
    tmp_path: Path, small: Acquisition, composition_of: Callable[..., Composition]
) -> None:
    """And highdicom, which parts the parameters at commas, reads each whole."""
    seg = highdicom.seg.segread(seg_of(composition_of(small), tmp_path / "out", "binary"))
    parameters = seg.get_segment_description(1).algorithm_identification.parameters
    assert set(parameters) == {"model", "configuration", "engine", "way", "choice"}
    assert parameters["engine"] == "openvino float32 (openvino 2026.4.1; torch 2.13.0) on CPU"
    taken = "openvino float32: taken; 0.05 s a patch; certified against torch float32 2.13.0 on 2026-11-30"
    assert parameters["choice"] == f"{taken}; certificate 0123456789ab"


def test_no_foreign_text_is_in_a_result(
    tmp_path: Path, small: Acquisition, composition_of: Callable[..., Composition]
) -> None:
    """What a builder or a library said of an engine that was not taken, and where it lies, stays in journal and log."""
    usual = composition_of(small).findings.provenance
    said = f"{usual.backend_reason}; tensorrt float16: cannot be built: /home/jo/engines: {'[E] ' * 4000}"
    long = f"torch float32: taken, the reference, NOT verified ({'x' * 1000})"
    for reason in (said, long):
        made = dataclasses.replace(usual, backend_reason=reason)
        seg = highdicom.seg.segread(seg_of(composition_of(small, provenance=made), tmp_path / "out", "binary"))
        choice = seg.get_segment_description(1).algorithm_identification.parameters["choice"]
        assert len(choice) <= 200
        assert "/home" not in choice
        shutil.rmtree(tmp_path / "out")


def test_header_is_the_sources_where_it_must_be_and_ours_elsewhere(
    tmp_path: Path, small: Acquisition, composition_of: Callable[..., Composition]
) -> None:
    """Table 3.3, RES-13, RES-14, NET-36, NET-39."""

    def edit(ds: Dataset, _: int) -> None:
        request = Dataset()
        request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP1", "SPS1"
        ds.RequestAttributesSequence = [request]
        ds.IssuerOfPatientID, ds.PatientWeight = "HOSPITAL", "71.5"
        ds.InstitutionName, ds.OperatorsName, ds.ProtocolName = "Somewhere", "Some^One", "Abdomen"
        ds.add_new(0x00091010, "LO", "private")

    seg = dcmread(seg_of(composition_of(small, edit=edit), tmp_path / "out", "binary"))
    assert (seg.IssuerOfPatientID, seg.PatientWeight, seg.AccessionNumber) == ("HOSPITAL", 71.5, "ST000000")
    assert seg.RequestAttributesSequence[0].RequestedProcedureID == "RP1"
    assert (seg.Modality, list(seg.ImageType), seg.BodyPartExamined) == ("SEG", ["DERIVED", "PRIMARY"], "ABDOMEN")
    assert (seg.SeriesNumber, seg.SeriesDescription) == (9001, "RUO AI SEG phantom 1.0.0 1")
    assert (seg.ContentQualification, seg.Manufacturer, seg.DeviceSerialNumber) == ("RESEARCH", "Hilum", "1")
    assert seg.file_meta.ImplementationVersionName.startswith("HILUM")
    purposes = [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in seg.ContributingEquipmentSequence]
    assert purposes[:3] == ["109101", "109102", "Newcode1"]
    assert seg.ContributingEquipmentSequence[0].Manufacturer == "Hilum phantom scanner"
    for keyword in ("InstitutionName", "OperatorsName", "ProtocolName", "TimezoneOffsetFromUTC"):
        assert keyword not in seg
    assert not any(element.tag.is_private for element in seg)


def test_device_of_the_algorithm_changes_with_the_model(
    tmp_path: Path, small: Acquisition, composition_of: Callable[..., Composition]
) -> None:
    """IHE AIR 6.5.3.1: DeviceUID follows the model's digest."""
    first = composition_of(small)
    provenance = dataclasses.replace(first.findings.provenance, model_digest="c3" * 32)
    second = composition_of(small, provenance=provenance)
    uids = {
        dcmread(seg_of(c, tmp_path / name, "binary")).ContributingEquipmentSequence[2].DeviceUID
        for name, c in (("one", first), ("two", second))
    }
    assert len(uids) == 2


NAMES = {
    "Cyrillic": ("ISO_IR 144", "Иванов^Пётр".encode("iso8859_5")),
    "Japanese": ("\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
    "GB18030": ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030")),
    "Latin-1": ("ISO_IR 100", "Müller^Jürgen".encode("latin-1")),
    "none stated": ("", b"M\xfcller^J\xfcrgen"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_are_copied_byte_for_byte(
    case: str,
    tmp_path: Path,
    small: Acquisition,
    composition_of: Callable[..., Composition],
    dciodvfy: Callable[..., list[str]],
) -> None:
    """Table 3.3: whatever the character set, and even where none is stated."""
    charset, name = NAMES[case]
    padded = name + b" " * (len(name) % 2)

    def edit(ds: Dataset, _: int) -> None:
        # Written as bytes, so that nothing but the node decides what becomes of them.
        if charset:
            ds.SpecificCharacterSet = charset.split("\\")
        ds.set_original_encoding(False, True, convert_encodings(charset.split("\\")) if charset else "iso8859")
        ds["PixelData"].VR = "OW"
        for tag, vr in ((0x00100010, "PN"), (0x00081030, "LO")):
            ds[tag] = RawDataElement(Tag(tag), vr, len(padded), padded, 0, False, True, True)

    c = composition_of(small, edit=edit)
    for each in compose(c, tmp_path, BOTH):
        data = each.path.read_bytes()
        assert data.count(b"\x10\x00\x10\x00PN" + len(padded).to_bytes(2, "little") + padded) == 1, each.variant
        assert data.count(b"\x08\x00\x30\x10LO" + len(padded).to_bytes(2, "little") + padded) == 1, each.variant


def test_text_in_utf8_where_the_site_asks(
    tmp_path: Path, small: Acquisition, composition_of: Callable[..., Composition]
) -> None:
    """Table 3.3: re-encode all text to ISO_IR 192."""

    def edit(ds: Dataset, _: int) -> None:
        ds.SpecificCharacterSet, ds.PatientName = "ISO_IR 144", "Иванов^Пётр"

    c = composition_of(small, edit=edit, style=ResultStyle(utf8=True))
    for each in compose(c, tmp_path, BOTH):
        result = dcmread(each.path)
        assert (result.SpecificCharacterSet, str(result.PatientName)) == ("ISO_IR 192", "Иванов^Пётр")


def test_missing_type_2_attributes_are_written_empty(
    tmp_path: Path, small: Acquisition, composition_of: Callable[..., Composition], dciodvfy: Callable[..., list[str]]
) -> None:
    """R19: highdicom would raise."""
    absent = (
        *("PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber"),
        *("ReferringPhysicianName", "Manufacturer", "SeriesNumber", "SliceThickness"),
    )

    def edit(ds: Dataset, _: int) -> None:
        for keyword in absent:
            if keyword in ds:
                del ds[keyword]

    c = composition_of(small, edit=edit)
    for each in compose(c, tmp_path, BOTH):
        result = dcmread(each.path)
        assert result.PatientBirthDate == result.StudyID == ""
        assert 9001 <= result.SeriesNumber - ["seg", "sr", "pdf"].index(each.kind) * 10_000 <= 18_999
        if each.kind is ObjectKind.SEG:
            assert dciodvfy(each.path) == []


def test_lossy_source_marks_the_result(
    tmp_path: Path, small: Acquisition, composition_of: Callable[..., Composition], dciodvfy: Callable[..., list[str]]
) -> None:
    """R12: `01` once lossy, with ratio and method."""

    def edit(ds: Dataset, _: int) -> None:
        ds.LossyImageCompression, ds.LossyImageCompressionRatio = "01", "10"
        ds.LossyImageCompressionMethod = "ISO_10918_1"

    c = composition_of(small, edit=edit)
    for variant in sorted(BOTH):
        path = seg_of(c, tmp_path / "out", variant)
        seg = dcmread(path)
        assert (seg.LossyImageCompression, seg.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
        assert dciodvfy(path) == []


def test_nothing_found_makes_no_seg(
    tmp_path: Path, small: Acquisition, composition_of: Callable[..., Composition]
) -> None:
    """RES-6: a report alone, that refers to no SEG."""
    c = composition_of(small, relabel=np.zeros_like)
    made = compose(c, tmp_path, BOTH)
    assert [(each.kind, each.variant) for each in made] == [
        (ObjectKind.SR, "comprehensive3d-none"),
        (ObjectKind.SR, "comprehensive-none"),
        (ObjectKind.SR, "enhanced-none"),
        (ObjectKind.PDF, "pdf"),
    ]


def test_made_twice_is_the_same_object(
    tmp_path: Path, small: Acquisition, composition_of: Callable[..., Composition]
) -> None:
    """RES-20, RES-21: the same UIDs everywhere in the object, and here even the same bytes."""
    c = composition_of(small)
    made: list[tuple[Composed, ...]] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(compose(c, tmp_path / name, BOTH))
    assert [each.sop_instance_uid for each in made[0]] == [each.sop_instance_uid for each in made[1]]
    assert [each.sha256 for each in made[0]] == [each.sha256 for each in made[1]]
    assert len({each.sop_instance_uid for each in made[0]}) == len(made[0])
    other = dataclasses.replace(c, revision=2)
    assert other.uid(ObjectKind.SEG, "binary") != c.uid(ObjectKind.SEG, "binary")


def test_slices_that_disagree_are_refused(
    tmp_path: Path, small: Acquisition, composition_of: Callable[..., Composition]
) -> None:
    """RES-31: one deviating slice; the message names the attribute and not its value."""
    c = composition_of(small)
    c.sources[7].AccessionNumber = "OTHER"
    with pytest.raises(Unsuitable, match="AccessionNumber") as caught:
        compose(c, tmp_path, BOTH)
    assert caught.value.reason == "conflicting_headers"
    assert "OTHER" not in str(caught.value)
    assert list(tmp_path.glob("*.dcm")) == []
