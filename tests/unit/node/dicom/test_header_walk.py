"""The walk by length: each finding that decides a C-STORE answer; no bytes do more than refuse (SEC-3, SEC-4)."""

from __future__ import annotations

import contextlib
import mmap
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from node.dicom.header_walk import WalkLimits, check, is_uid, peek_series
from node.errors import CannotUnderstand, DataSetMismatch, InvalidInstanceUid, Refused

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT, IMPLICIT, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.5"
UID = "1.2.3.4"


def image(**changes: object) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CT, UID
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P-17", "1.2.3", "1.2.3.5"
    ds.Rows = ds.Columns = 4
    ds.PixelData = bytes(32)
    ds["PixelData"].VR = "OW"
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def encode(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = syntax == IMPLICIT, True
    write_dataset(out, ds)
    return out.getvalue()


def explicit(tag: int, vr: bytes, length: int, value: bytes = b"", long: bool = False) -> bytes:
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<HI", 0, length) if long else struct.pack("<H", length)) + value


def item(length: int, value: bytes = b"") -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, length) + value


ITEM_END, SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
WHOLE = encode(image())
HEADER = encode(image(PixelData=None))
UNDEFINED = 0xFFFFFFFF


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_finds_the_uids_and_the_patient(syntax: str) -> None:
    walked = check(encode(image(), syntax), syntax, CT, UID)
    assert (walked.sop_class_uid, walked.sop_instance_uid) == (CT, UID)
    assert (walked.study_instance_uid, walked.series_instance_uid, walked.patient_id) == ("1.2.3", "1.2.3.5", "P-17")
    assert walked.has_pixel_data


def test_starts_where_the_head_of_a_file_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100) + WHOLE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert check(data, EXPLICIT, CT, UID, start=100).series_instance_uid == "1.2.3.5"


def test_object_without_pixel_data_is_whole() -> None:
    assert not check(HEADER, EXPLICIT, CT, UID).has_pixel_data


@pytest.mark.parametrize("end", [1, 8, 31, 40])
def test_truncated_pixel_data(end: int) -> None:
    """C000: pynetdicom and DCMTK answer this with success."""
    with pytest.raises(CannotUnderstand) as caught:
        check(WHOLE[:-end], EXPLICIT, CT, UID)
    assert caught.value.status == 0xC000


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_cut_anywhere_is_refused_or_lacks_its_pixels(syntax: str) -> None:
    whole = encode(image(), syntax)
    for end in range(len(whole)):
        try:
            walked = check(whole[:end], syntax, CT, UID)
        except Refused:
            continue
        assert not walked.has_pixel_data


def test_unknown_vr() -> None:
    with pytest.raises(CannotUnderstand, match="VR") as caught:
        check(HEADER + explicit(0x00290010, b"XX", 2, b"ab"), EXPLICIT, CT, UID)
    assert caught.value.element == 0x00290010


@pytest.mark.parametrize("group", [0x0000, 0x0002, 0x0006])
def test_group_below_0008(group: int) -> None:
    with pytest.raises(CannotUnderstand, match="0008"):
        check(explicit(group << 16 | 0x10, b"UI", 2, b"1\0") + WHOLE, EXPLICIT, CT, UID)


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, ""])
def test_one_of_the_four_uids_missing(keyword: str, value: str | None) -> None:
    with pytest.raises(CannotUnderstand, match="UID missing"):
        check(encode(image(**{keyword: value})), EXPLICIT, CT, UID)


def test_patient_id_may_be_missing() -> None:
    assert check(encode(image(PatientID=None)), EXPLICIT, CT, UID).patient_id == ""


def test_element_there_twice() -> None:
    """Two readers could disagree on whose it is."""
    twice = HEADER + explicit(0x0020000E, b"UI", 8, b"1.2.3.6\0")
    with pytest.raises(CannotUnderstand, match="twice"):
        check(twice, EXPLICIT, CT, UID)


def test_class_or_instance_differs_from_the_command() -> None:
    """NET-11: A900."""
    for sop_class_uid, sop_instance_uid in ((CT + ".1", UID), (CT, UID + ".1")):
        with pytest.raises(DataSetMismatch) as caught:
            check(WHOLE, EXPLICIT, sop_class_uid, sop_instance_uid)
        assert caught.value.status == 0xA900


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2.x", "1.2\\1.3", "1." + "2" * 64, "1.2\n", "1 2", "\uff11.2"])
def test_hostile_uid(uid: str) -> None:
    """SEC-9: 0117."""
    assert not is_uid(uid)
    raw = uid.encode("utf-8")
    raw += b"\0" * (len(raw) % 2)
    data = encode(image(SeriesInstanceUID=None, PixelData=None, Rows=None, Columns=None))
    with pytest.raises(InvalidInstanceUid) as caught:
        check(data + explicit(0x0020000E, b"UI", len(raw), raw), EXPLICIT, CT, UID)
    assert caught.value.status == 0x0117


def test_refusals_hold_no_value_of_the_data_set() -> None:
    """SEC-20: neither does their element say more than a tag."""
    for data in (encode(image(StudyInstanceUID="JOHN^DOE")), WHOLE[:-3]):
        with pytest.raises(Refused) as caught:
            check(data, EXPLICIT, CT, UID)
        assert "DOE" not in str(caught.value)
        assert "P-17" not in caught.value.comment


# --- sequences and fragments ---


def nested(depth: int, undefined: bool) -> Dataset:
    ds = Dataset()
    ds.CodeValue = "x"
    for _ in range(depth):
        outer = Dataset()
        outer.ConceptCodeSequence = Sequence([ds])
        outer["ConceptCodeSequence"].is_undefined_length = undefined
        ds.is_undefined_length_sequence_item = undefined
        ds = outer
    return ds


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("undefined", [True, False])
def test_sequences_are_passed(syntax: str, undefined: bool) -> None:
    ds = image()
    ds.update(nested(5, undefined))
    assert check(encode(ds, syntax), syntax, CT, UID).has_pixel_data


def test_nesting_of_64_levels_and_one_more() -> None:
    """SEC-4; the walk has a stack, so that no depth ends it by recursion."""
    for depth, fits in ((64, True), (65, False)):
        ds = image()
        ds.update(nested(depth, True))
        if fits:
            check(encode(ds), EXPLICIT, CT, UID)
        else:
            with pytest.raises(CannotUnderstand, match="deep"):
                check(encode(ds), EXPLICIT, CT, UID)
    flood = (
        HEADER
        + explicit(0x00400100, b"SQ", UNDEFINED, long=True)
        + (item(UNDEFINED) + explicit(0x00400100, b"SQ", UNDEFINED, long=True)) * 100_000
    )
    with pytest.raises(CannotUnderstand, match="deep"):
        check(flood, EXPLICIT, CT, UID)


def test_sequence_without_end() -> None:
    start = HEADER + explicit(0x00400100, b"SQ", UNDEFINED, long=True)
    for tail in (
        b"",
        item(UNDEFINED),
        item(UNDEFINED) + ITEM_END,
        item(100, b"x"),
        ITEM_END,
        item(UNDEFINED) + SEQUENCE_END,
    ):
        with pytest.raises(CannotUnderstand):
            check(start + tail, EXPLICIT, CT, UID)
    check(start + item(UNDEFINED) + ITEM_END + item(0) + SEQUENCE_END, EXPLICIT, CT, UID)


def test_un_of_undefined_length_is_an_implicit_sequence() -> None:
    """PS3.5 6.2.2: whatever the transfer syntax of the data set is."""
    inner = struct.pack("<HHI", 0x0009, 0x1001, 2) + b"ab"
    un = explicit(0x00091000, b"UN", UNDEFINED, long=True) + item(UNDEFINED) + inner + ITEM_END + SEQUENCE_END
    position = WHOLE.index(b"\x10\x00\x20\x00LO")  # between groups 0008 and 0010
    data, rest = WHOLE[:position], WHOLE[position:]
    check(data + un + rest, EXPLICIT, CT, UID)


def test_undefined_length_where_none_is_allowed() -> None:
    with pytest.raises(CannotUnderstand, match="undefined"):
        check(HEADER + explicit(0x00420011, b"OB", UNDEFINED, long=True) + SEQUENCE_END, EXPLICIT, CT, UID)


FRAGMENTS = explicit(0x7FE00010, b"OB", UNDEFINED, long=True) + item(0) + item(4, b"abcd")


def test_encapsulated_pixel_data() -> None:
    assert check(HEADER + FRAGMENTS + SEQUENCE_END, RLE, CT, UID).has_pixel_data


@pytest.mark.parametrize("tail", [b"", SEQUENCE_END[:-1], item(9, b"abc"), ITEM_END])
def test_encapsulated_pixel_data_cut(tail: bytes) -> None:
    with pytest.raises(CannotUnderstand):
        check(HEADER + FRAGMENTS + tail, RLE, CT, UID)


def test_padding_after_pixel_data_is_walked() -> None:
    check(WHOLE + explicit(0xFFFCFFFC, b"OB", 4, bytes(4), long=True), EXPLICIT, CT, UID)


# --- limits ---


def test_element_limit_and_one_more() -> None:
    data = HEADER + b"".join(explicit(0x00290000 + n, b"US", 2, b"\0\0") for n in range(50))
    count = 50 + len(image(PixelData=None))
    check(data, EXPLICIT, CT, UID, WalkLimits(elements=count))
    with pytest.raises(CannotUnderstand, match="many"):
        check(data, EXPLICIT, CT, UID, WalkLimits(elements=count - 1))


def test_each_frame_allows_more_elements() -> None:
    ds = image(NumberOfFrames=3)
    ds.PerFrameFunctionalGroupsSequence = Sequence([nested(2, True) for _ in range(3)])
    ds["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    for frame in ds.PerFrameFunctionalGroupsSequence:
        frame.is_undefined_length_sequence_item = True
    check(encode(ds), EXPLICIT, CT, UID, WalkLimits(elements=12, elements_per_frame=20))
    with pytest.raises(CannotUnderstand, match="many"):
        check(encode(ds), EXPLICIT, CT, UID, WalkLimits(elements=12, elements_per_frame=1))


def test_header_limit_is_what_stands_before_the_pixels() -> None:
    check(WHOLE, EXPLICIT, CT, UID, WalkLimits(header_bytes=len(HEADER) + 12))
    with pytest.raises(CannotUnderstand, match="large"):
        check(WHOLE, EXPLICIT, CT, UID, WalkLimits(header_bytes=len(HEADER) + 11))
    with pytest.raises(CannotUnderstand, match="large"):
        check(HEADER, EXPLICIT, CT, UID, WalkLimits(header_bytes=len(HEADER) - 1))


# --- peeking, fuzz, real files ---


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_peek_tells_the_series_as_soon_as_it_is_here(syntax: str) -> None:
    whole = encode(image(), syntax)
    end = whole.index(b"1.2.3.5") + 8
    assert peek_series(whole[:end], syntax) == "1.2.3.5"
    assert peek_series(whole, syntax) == "1.2.3.5"
    assert peek_series(whole[: end - 1], syntax) == ""
    assert peek_series(b"", syntax) == ""


@given(st.binary(max_size=300), st.integers(0, 400), st.sampled_from([EXPLICIT, IMPLICIT, RLE]))
def test_any_bytes_are_walked_or_refused(noise: bytes, where: int, syntax: str) -> None:
    """SEC-8."""
    damaged = WHOLE[:where] + noise + WHOLE[where + len(noise) :]
    for data in (damaged, noise):
        with contextlib.suppress(Refused):
            check(data, syntax, CT, UID)
        peek_series(data, syntax)


EXPECTED_REFUSALS = {
    "MR_truncated.dcm": "element past the end",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "encapsulated pixel data is cut",
    "bad_sequence.dcm": "UID invalid",
    "HTJ2KLossless_08_RGB.dcm": "UID missing",
    "JLSL_08_07_0_1F.dcm": "UID missing",
    "JLSL_16_15_1_1F.dcm": "UID missing",
}


@pytest.mark.data
def test_real_files(test_data: Path) -> None:
    """Every file of the collection passes, but those that are cut or lack a UID; pydicom finds the same values."""
    passed, refused = 0, {}
    for path in sorted((test_data / "dicom-single").rglob("*.dcm")):
        data = path.read_bytes()
        ds = dcmread(path, stop_before_pixels=True, force=True)
        syntax = str(ds.file_meta.get("TransferSyntaxUID", ""))
        if not syntax or syntax in ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99") or "SOPClassUID" not in ds:
            continue
        start = 144 + int(ds.file_meta.FileMetaInformationGroupLength)
        try:
            walked = check(data, syntax, str(ds.SOPClassUID), str(ds.SOPInstanceUID), start=start)
        except Refused as error:
            refused[path.name] = error.comment
            continue
        assert [walked.study_instance_uid, walked.series_instance_uid] == [ds.StudyInstanceUID, ds.SeriesInstanceUID]
        passed += 1
    assert passed > 40
    assert refused.keys() == EXPECTED_REFUSALS.keys()
    assert all(refused[name].startswith(text) for name, text in EXPECTED_REFUSALS.items())
