"""What is read from a header, where makers and object kinds keep it, and what is called a defect."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
)

from node.dicom import headers
from node.dicom.headers import file_meta_uids, read_header, read_source
from node.domain.instance import MANUFACTURER, MODEL_NAME, InstanceHeader
from node.errors import CannotUnderstand
from node.selftest.phantom import CT, MR, image_on
from node.selftest.scanner import Acquisition, enhanced, planes_around

EXPLICIT = ExplicitVRLittleEndian


def _image(modality: str = "CT", **changes: object) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = EXPLICIT
    ds.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.1", "1.2.2"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, "1.2.3"
    ds.Modality, ds.PatientID, ds.PatientName, ds.PatientAge = modality, "P1", "Doe^Jane", "018M"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 4, 6, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [1, 2, 3], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.InstanceNumber = [0.5, 0.25], 7
    if modality == "CT":
        ds.RescaleSlope, ds.RescaleIntercept = "1", "-1024"
    ds.PixelData = bytes(48)
    for keyword, value in changes.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("read", [read_header, read_source])
def test_what_the_machine_says_is_no_word_about_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, read: Callable[[Path], object]
) -> None:
    """It may be read later, so it must not end as an object that cannot be understood."""
    path = _saved(_image(), tmp_path)

    def broken(*_: object, **__: object) -> Dataset:
        raise error

    monkeypatch.setattr(headers, "dcmread", broken)
    with pytest.raises(type(error)):
        read(path)


def _read(ds: Dataset, folder: Path, **given: str) -> InstanceHeader:
    return read_header(_saved(ds, folder), **given)


def _saved(ds: Dataset, folder: Path) -> Path:
    path = folder / "image.dcm"
    ds["PixelData"].VR = "OB" if ds.file_meta.TransferSyntaxUID.is_compressed else "OW"
    ds.save_as(path, enforce_file_format=True)
    return path


def _words(header: InstanceHeader) -> list[str]:
    return [defect.partition(":")[0] for defect in header.defects]


@pytest.mark.parametrize("spelling", ["Doe^Jane^", "Doe^Jane^^^", "Doe^Jane "])
def test_one_name_in_two_spellings_is_one_patient(tmp_path: Path, spelling: str) -> None:
    """ASM-8: trailing separators of a name mean nothing (PS3.5 6.2.1.1); another name is another name."""
    one, same = (_read(_image(PatientName=name), tmp_path) for name in ("Doe^Jane", spelling))
    assert same.identity == one.identity
    assert same.copied == one.copied
    other = _read(_image(PatientName="Doe^^Jane"), tmp_path)
    assert other.identity != one.identity
    assert other.copied != one.copied


def test_a_plain_image(tmp_path: Path) -> None:
    header = _read(_image(SliceThickness="2.5", GantryDetectorTilt="-8", SpacingBetweenSlices="-3"), tmp_path)
    assert header.defects == ()
    assert (header.rows, header.columns, header.bits_stored, header.pixel_representation) == (4, 6, 12, 0)
    assert header.identity.patient_id == "P1"
    assert header.patient_age_years == pytest.approx(1.5)
    assert header.instance_number == 7
    assert (header.slice_thickness_mm, header.spacing_between_slices_mm, header.gantry_tilt_deg) == (2.5, 3.0, -8.0)
    (frame,) = header.frames
    assert frame.number == 1
    assert frame.position_mm == (1.0, 2.0, 3.0)
    assert frame.orientation == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert frame.pixel_spacing_mm == (0.5, 0.25)
    assert (frame.rescale_slope, frame.rescale_intercept) == (1.0, -1024.0)


def test_conditional_attributes_of_a_single_frame(tmp_path: Path) -> None:
    """ASM-15 to ASM-21."""
    ds = _image("MR", EchoTime="7.001", EchoNumbers=2, InversionTime="900", FlipAngle="9", RepetitionTime="1800",
                TemporalPositionIdentifier=3, TriggerTime="12.5", AcquisitionTime="101112.5", AcquisitionNumber=4,
                DiffusionBValue=800.0, DiffusionGradientOrientation=[0.0, 1.0, 0.0], StackID="2",
                NominalPercentageOfCardiacPhase=40.0, ReceiveCoilName="Head", SequenceName="*tfl3d1")  # fmt: skip
    (frame,) = _read(ds, tmp_path).frames
    assert (frame.echo_time, frame.echo_number, frame.inversion_time) == (7.001, "2", 900.0)
    assert (frame.flip_angle, frame.repetition_time, frame.temporal_position) == (9.0, 1800.0, "3")
    assert (frame.trigger_time, frame.acquisition_time, frame.acquisition_number) == (12.5, "101112.5", "4")
    assert (frame.b_value, frame.gradient, frame.stack_id) == (800.0, (0.0, 1.0, 0.0), "2")
    assert (frame.cardiac_phase, frame.coil, frame.sequence_name) == (40.0, "Head", "*tfl3d1")


def test_broken_numbers_in_optional_attributes_do_not_stop_us(tmp_path: Path) -> None:
    """NET-8: defects that do not stop us are no reason to refuse; and no value of theirs is raised."""
    path = _saved(_image("MR", EchoTime="8.0", SliceThickness="3"), tmp_path)
    broken = path.read_bytes().replace(b"8.0 ", b"abcd").replace(b"DS\x02\x003 ", b"DS\x02\x00??")
    path.write_bytes(broken)
    header = read_header(path)
    assert header.frames[0].echo_time is None
    assert header.slice_thickness_mm is None


# UIDs


def test_empty_uids_are_refused_unless_given(tmp_path: Path) -> None:
    """R19: only the file meta carries them; the network refuses, a folder hands them in."""
    ds = _image()
    ds.SOPClassUID = ds.SOPInstanceUID = ""
    path = _saved(ds, tmp_path)
    with pytest.raises(CannotUnderstand, match="no SOPClassUID"):
        read_header(path)
    header = read_header(path, *file_meta_uids(path))
    assert (header.sop_class_uid, header.sop_instance_uid) == (CTImageStorage, "1.2.3")
    assert read_source(path, *file_meta_uids(path)).SOPInstanceUID == "1.2.3"


def test_own_uids_go_before_given_ones(tmp_path: Path) -> None:
    assert _read(_image(), tmp_path, sop_class_uid="9.9", sop_instance_uid="9.8").sop_instance_uid == "1.2.3"


def test_source_has_no_pixels(tmp_path: Path) -> None:
    source = read_source(_saved(_image(), tmp_path))
    assert source.PatientName == "Doe^Jane"
    assert "PixelData" not in source


@pytest.mark.parametrize("data", [b"", b"garbage", bytes(200), bytes(128) + b"DICM"])
def test_what_is_no_dicom_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(CannotUnderstand):
        read_header(path)


def test_a_cut_header_is_refused_or_lacks_its_pixels(tmp_path: Path) -> None:
    """ASM-40: cut anywhere, the answer is a refusal or a defect, never another exception."""
    whole = _saved(_image(), tmp_path).read_bytes()
    for length in range(0, len(whole), 7):
        path = tmp_path / "cut"
        path.write_bytes(whole[:length])
        try:
            header = read_header(path)
        except CannotUnderstand as error:
            assert "Doe" not in str(error)
        else:
            seen = set(_words(header)) & {"no_pixel_data", "pixel_length", "bits"}
            assert seen or 0 in (header.rows, header.columns)


# Defects


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"PixelData": bytes(46)}, "pixel_length"),
        ({"PixelData": bytes(480)}, "pixel_length"),
        ({"BitsStored": 17}, "bits"),
        ({"BitsStored": 0}, "bits"),
        ({"HighBit": 10}, "bits"),
        ({"HighBit": 16}, "bits"),
        ({"BitsAllocated": 24}, "bits"),
        ({"PixelRepresentation": 2}, "bits"),
        ({"Rows": 65535, "Columns": 65535}, "too_large"),
        ({"NumberOfFrames": 2}, "pixel_length"),
        ({"RescaleSlope": None}, "no_rescale"),
        ({"RescaleIntercept": None}, "no_rescale"),
    ],
)
def test_defects_of_native_images(tmp_path: Path, changes: dict[str, object], word: str) -> None:
    """ASM-40, ASM-42, ASM-43, SEC-6."""
    assert _words(_read(_image(**changes), tmp_path)) == [word]


def test_padding_to_an_even_length_is_no_defect(tmp_path: Path) -> None:
    ds = _image(Rows=3, Columns=5, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=bytes(16))
    assert _read(ds, tmp_path).defects == ()


def test_modality_lut(tmp_path: Path) -> None:
    """ASM-45."""
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType, lut.LUTData = [2, 0, 16], "HU", [0, 1]
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    assert _words(_read(_image("MR", ModalityLUTSequence=DicomSequence([lut])), tmp_path)) == ["modality_lut"]


@pytest.mark.parametrize(
    ("frames", "declared", "word"), [(2, 2, None), (1, 2, "frame_count"), (1, 1, None)], ids=["two", "short", "one"]
)
def test_frame_count_of_encapsulated_images(tmp_path: Path, frames: int, declared: int, word: str | None) -> None:
    """ASM-40."""
    ds = _image()
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.NumberOfFrames = declared
    ds.PixelData = encapsulate([bytes(40)] * frames, has_bot=False)
    ds["PixelData"].is_undefined_length = True
    assert _words(_read(ds, tmp_path)) == ([word] if word else [])


def test_encapsulated_frames_that_are_cut(tmp_path: Path) -> None:
    """ASM-40."""
    ds = _image()
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.PixelData = encapsulate([bytes(400)])
    ds["PixelData"].is_undefined_length = True
    path = _saved(ds, tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    assert _words(read_header(path)) == ["pixel_length"]


def test_an_rle_bomb(tmp_path: Path) -> None:
    """SEC-6: 64 bytes cannot hold half a gigabyte."""
    ds = _image(Rows=8000, Columns=8000, PixelData=encapsulate([bytes(64)]))
    ds.file_meta.TransferSyntaxUID = RLELossless
    ds["PixelData"].is_undefined_length = True
    assert _words(_read(ds, tmp_path)) == ["too_large"]


def test_lossy_by_attribute_and_by_transfer_syntax(tmp_path: Path) -> None:
    """R12."""
    assert not _read(_image(), tmp_path).lossy
    assert _read(_image(LossyImageCompression="01"), tmp_path).lossy


@pytest.mark.parametrize(("sign", "value", "expected"), [(1, 63536, -2000), (1, -2000, -2000), (0, -2000, 63536)])
def test_pixel_padding_value_of_the_wrong_vr(tmp_path: Path, sign: int, value: int, expected: int) -> None:
    """ASM-44: writers take US for SS and the reverse."""
    ds = _image(PixelRepresentation=sign)
    ds.add_new(0x00280120, "US" if value > 0 else "SS", value)
    assert _read(ds, tmp_path).pixel_padding_value == expected


# Whose it is


def test_own_results_are_known(tmp_path: Path) -> None:
    """NET-36: by its equipment, or by having contributed."""
    assert not _read(_image(Manufacturer="Hilum phantom scanner"), tmp_path).own_result
    assert _read(_image(Manufacturer=MANUFACTURER, ManufacturerModelName=MODEL_NAME), tmp_path).own_result
    item = Dataset()
    item.Manufacturer, item.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    assert _read(_image(ContributingEquipmentSequence=DicomSequence([item])), tmp_path).own_result


def test_rules_never_see_who_it_is(tmp_path: Path) -> None:
    ds = _image(SeriesDescription="Abd", AccessionNumber="A77", StudyID="S77", ReferringPhysicianName="Foe^John",
                PatientComments="Jane", KVP="120", PatientSex="F")  # fmt: skip
    tags = _read(ds, tmp_path).tags
    assert tags["SeriesDescription"] == "Abd"
    assert tags["ImageType"] == "ORIGINAL\\PRIMARY\\AXIAL"
    assert tags["KVP"] == "120"
    assert not any(word in " ".join(tags.values()) for word in ("Doe", "Foe", "Jane", "P1", "A77", "S77"))


def test_procedure_codes(tmp_path: Path) -> None:
    """ASM-51."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "RPID16", "RADLEX", "CT Abdomen"
    tags = _read(_image(ProcedureCodeSequence=DicomSequence([code])), tmp_path).tags
    assert (tags["ProcedureCodeValue"], tags["ProcedureCodeMeaning"]) == ("RPID16", "CT Abdomen")


# Mosaic, diffusion


def test_mosaic_by_word_and_by_number_of_tiles(tmp_path: Path) -> None:
    """ASM-52."""
    assert _read(_image("MR", ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), tmp_path).is_mosaic
    ds = _image("MR")
    ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 35)
    assert _read(ds, tmp_path).is_mosaic
    ds.private_block(0x0019, "SIEMENS MR HEADER")[0x0A].value = 1
    assert not _read(ds, tmp_path).is_mosaic


@pytest.mark.parametrize("syntax", [EXPLICIT, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
@pytest.mark.parametrize(
    ("maker", "b", "direction"),
    [
        ("siemens", 1000.0, (0.5, 0.5, 0.25)),
        ("ge", 800.0, (1.0, 0.0, 0.0)),
        ("philips", 600.0, (0.0, 1.0, 0.0)),
        ("canon", 1500.0, (0.895, 0.0, 0.445)),
    ],
)
def test_diffusion_where_makers_keep_it(
    tmp_path: Path, syntax: str, maker: str, b: float, direction: tuple[float, ...]
) -> None:
    """ASM-17: private elements, in Implicit VR too, where their VR is lost."""
    ds = _image("MR")
    ds.file_meta.TransferSyntaxUID = syntax
    if maker == "siemens":
        block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0C, "IS", "1000")
        block.add_new(0x0E, "FD", list(direction))
    elif maker == "ge":
        ds.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x39, "IS", ["1000000800", "8", "0", "0"])
        block = ds.private_block(0x0019, "GEMS_ACQU_01", create=True)
        for offset, value in zip((0xBB, 0xBC, 0xBD), direction, strict=True):
            block.add_new(offset, "DS", str(value))
    elif maker == "philips":
        ds.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x03, "FL", b)
        block = ds.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        for offset, value in zip((0xB0, 0xB1, 0xB2), direction, strict=True):
            block.add_new(offset, "FL", value)
    else:
        ds.ImageComments = "b=1500(0.895,0.000,0.445)"
    (frame,) = _read(ds, tmp_path).frames
    assert frame.b_value == b
    assert frame.gradient == pytest.approx(direction)


def test_the_standard_b_value_goes_before_a_private_one(tmp_path: Path) -> None:
    ds = _image("MR", DiffusionBValue=50.0)
    ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", "1000")
    assert _read(ds, tmp_path).frames[0].b_value == 50.0


# Multi-frame


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_enhanced_by_shared_and_per_frame_groups(tmp_path: Path, modality: str) -> None:
    """ASM-47."""
    contrast = CT if modality == "CT" else MR
    acquisition = Acquisition(planes_around(pixel_mm=(12.0, 12.0), step_mm=30.0), contrast)
    ds = enhanced(acquisition)
    ds.SharedFunctionalGroupsSequence[0].MREchoSequence = DicomSequence([_item(EffectiveEchoTime=4.5)])
    ds.PerFrameFunctionalGroupsSequence[2].MREchoSequence = DicomSequence([_item(EffectiveEchoTime=9.0)])
    path = tmp_path / "enhanced.dcm"
    ds.save_as(path, enforce_file_format=True)
    header = read_header(path)
    assert header.defects == ()
    assert len(header.frames) == len(acquisition.planes.origins_mm)
    for frame, origin in zip(header.frames, acquisition.planes.origins_mm, strict=True):
        assert frame.position_mm == pytest.approx(tuple(origin), abs=1e-6)
        assert frame.pixel_spacing_mm == (12.0, 12.0)
        assert frame.rescale_intercept == (-1024.0 if modality == "CT" else 0.0)
        assert frame.image_type == ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")
        assert frame.dimension_index == (frame.number,)
        assert frame.in_stack_position == frame.number
        assert frame.echo_time == (9.0 if frame.number == 3 else 4.5)
    assert image_on(acquisition.patient, acquisition.planes, contrast).shape[0] == len(header.frames)


def _item(**values: object) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def test_legacy_converted_keeps_what_it_could_not_place(tmp_path: Path) -> None:
    """ASM-47: attributes that found no functional group are read from the unassigned ones (PS3.3 C.7.6.16.2.25)."""
    ds = enhanced(Acquisition(planes_around(pixel_mm=(12.0, 12.0), step_mm=40.0), MR))
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.4"
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.UnassignedSharedConvertedAttributesSequence = DicomSequence([_item(EchoTime="20", FlipAngle="30")])
    for n, groups in enumerate(ds.PerFrameFunctionalGroupsSequence):
        unassigned = _item(TriggerTime=str(n * 100), AcquisitionNumber=n)
        groups.UnassignedPerFrameConvertedAttributesSequence = DicomSequence([unassigned])
        del groups.FrameContentSequence[0].FrameAcquisitionNumber
    path = tmp_path / "legacy.dcm"
    ds.save_as(path, enforce_file_format=True)
    frames = read_header(path).frames
    assert {frame.flip_angle for frame in frames} == {30.0}
    assert [frame.trigger_time for frame in frames] == [100.0 * n for n in range(len(frames))]
    assert [frame.acquisition_number for frame in frames] == [str(n) for n in range(len(frames))]


def test_frames_without_functional_groups_have_no_place(tmp_path: Path) -> None:
    """An old multi-frame object: what stands at its top is true of the first frame at most."""
    header = _read(_image("MR", NumberOfFrames=2, PixelData=bytes(96)), tmp_path)
    assert [frame.position_mm for frame in header.frames] == [None, None]


# Real single files


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pydicom-core/MR_truncated.dcm", ["pixel_length"]),
        ("pydicom-data/emri_small_jpeg_2k_lossless_too_short.dcm", ["pixel_length"]),
        ("pydicom-data/emri_small.dcm", []),
        ("pydicom-data/emri_small_jpeg_ls_lossless.dcm", []),
        ("pydicom-data/eCT_Supplemental.dcm", []),
        ("pydicom-data/mlut_18.dcm", ["modality_lut"]),
        ("pydicom-core/MR_small_padded.dcm", []),
        ("pydicom-core/image_dfl.dcm", ["transfer_syntax"]),
        ("ct-fragmented-no-bot/CT0012.fragmented_no_bot_jpeg_baseline.51.dcm", []),
        ("nema-wg04-CT2/CT2_J2KR", []),
    ],
)
def test_real_single_files(test_data: Path, name: str, words: list[str]) -> None:
    """ASM-40, ASM-45."""
    path = test_data / "dicom-single" / name
    assert _words(read_header(path, *file_meta_uids(path))) == words


@pytest.mark.data
def test_float_pixels(test_data: Path) -> None:
    assert "float_pixels" in _words(read_header(test_data / "dicom-single/pydicom-data/parametric_map_float.dcm"))


@pytest.mark.data
def test_every_real_single_file_is_read_or_refused(test_data: Path) -> None:
    """Whatever is wrong with a file, the answer is ours, and it names no patient."""
    read = 0
    for path in sorted((test_data / "dicom-single").rglob("*")):
        if path.is_file() and path.suffix not in (".md", ".tsv") and path.name != "SHA256SUMS":
            try:
                header = read_header(path, *file_meta_uids(path))
            except CannotUnderstand as error:
                assert len(error.comment) <= 64
                continue
            read += 1
            assert len(header.frames) == max(1, int(dcmread(path, stop_before_pixels=True).get("NumberOfFrames") or 1))
    assert read > 60
