"""From files to voxels and back: decoders, stored values, padding, placement, tilt, uneven steps, doubles."""

from __future__ import annotations

import errno
import itertools
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.pixels.decoders.base import JPEGExtended12BitDecoder, JPEGLosslessDecoder, JPEGLosslessSV1Decoder
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, RLELossless

from engines.measures import dice
from engines.volume import LabelMap, Volume
from node.dicom import decoding
from node.dicom.decoding import decoders, stored_frames
from node.dicom.golden_frames import GOLDEN_FRAMES, GoldenFrame
from node.dicom.headers import file_meta_uids, read_header
from node.dicom.pixels import AIR_HU, WayBack, read_volume, split_series
from node.domain.stack import Lattice, Stack, Unstackable, split
from node.errors import Unsuitable
from node.selftest.phantom import CT, MR, STANDARD, Planes, labels_on, rotation
from node.selftest.scanner import Acquisition, chosen, datasets, enhanced, moved, planes_around

ALL = {
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.5",
    *(f"1.2.840.10008.1.2.4.{leaf}" for leaf in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
}


# Decoders


def test_every_transfer_syntax_of_the_table_has_a_working_decoder() -> None:
    """NET-6, REQUIREMENTS 1.2."""
    assert set(decoders()) == ALL


def test_the_test_of_the_decoders_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """`hilum check` and the logs hold our words only: libjpeg writes past Python, to standard error itself."""
    decoders()
    assert capfd.readouterr().err == ""


def test_a_missing_decoder_takes_its_transfer_syntaxes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """NET-6: without GDCM the node starts, and offers no JPEG Lossless."""
    for decoder in (JPEGLosslessDecoder, JPEGLosslessSV1Decoder, JPEGExtended12BitDecoder):
        monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr("node.dicom.jpeg_extended.find_spec", lambda name: None)
    lost = {f"1.2.840.10008.1.2.4.{leaf}" for leaf in (51, 57, 70)}
    assert ALL - set(decoders()) == lost


def test_a_wrong_decoder_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """NET-6: a frame of the right size with one wrong pixel is not right."""
    real = decoding._decode

    def off_by_one(source: Any, syntax: str, indices: Sequence[int]) -> Any:
        for array in real(source, syntax, indices):
            if syntax == "1.2.840.10008.1.2.4.80":
                array[3, 3] += 1
            yield array

    monkeypatch.setattr(decoding, "_decode", off_by_one)
    assert ALL - set(decoders()) == {"1.2.840.10008.1.2.4.80"}


def test_golden_frames_are_small_and_whole() -> None:
    assert sum(len(frame.codestream) for frame in GOLDEN_FRAMES) < 25_000
    assert {frame.transfer_syntax_uid for frame in GOLDEN_FRAMES} == ALL - {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}
    assert all(isinstance(frame, GoldenFrame) for frame in GOLDEN_FRAMES)


def _stored(path: Path) -> NDArray[np.int64]:
    header = read_header(path, *file_meta_uids(path))
    return next(stored_frames(path, header, [0])).astype(np.int64)


@pytest.mark.data
@pytest.mark.parametrize("leaf", ["1.2", "5", "4.57", "4.70", "4.80", "4.90"])
def test_lossless_syntaxes_of_one_slice_decode_to_the_same_pixels(test_data: Path, leaf: str) -> None:
    """ASM-42."""
    folder = test_data / "dicom-single/ct-one-slice-all-transfer-syntaxes"
    (reference,) = folder.glob("*_1.2.840.10008.1.2.1.dcm")
    uid = "1.2.840.10008.1.2" if leaf == "1.2" else f"1.2.840.10008.1.2.{leaf}"
    (path,) = folder.glob(f"*_{uid}.dcm")
    assert np.array_equal(_stored(path), _stored(reference))


@pytest.mark.data
@pytest.mark.parametrize(("leaf", "most"), [("4.81", 20), ("4.91", 60)])
def test_lossy_syntaxes_come_near(test_data: Path, leaf: str, most: int) -> None:
    folder = test_data / "dicom-single/ct-one-slice-all-transfer-syntaxes"
    (reference,) = folder.glob("*_1.2.840.10008.1.2.1.dcm")
    (path,) = folder.glob(f"*_1.2.840.10008.1.2.{leaf}.dcm")
    assert np.abs(_stored(path) - _stored(reference)).mean() < most
    assert read_header(path, *file_meta_uids(path)).lossy


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "name"),
    [(f"nema-wg04-{image}", f"{image}_{kind}") for image in ("CT2", "MR4") for kind in ("J2KR", "JLSL", "JPLL", "RLE")],
)
def test_nema_lossless_images_decode_to_the_reference(test_data: Path, folder: str, name: str) -> None:
    """ASM-42: Toshiba CT and Philips MR."""
    base = test_data / "dicom-single" / folder
    assert np.array_equal(_stored(base / name), _stored(base / f"{name[:3]}_UNC"))


@pytest.mark.data
def test_sign_of_a_codestream_that_disagrees(test_data: Path) -> None:
    """ASM-42: PixelRepresentation wins over the sign in a JPEG 2000 codestream."""
    stored = _stored(test_data / "dicom-single/pylibjpeg-data/TOSHIBA_J2K_SIZ0_PixRep1.dcm")
    assert (stored.min(), stored.max()) == (-2048, 1717)
    mismatch = _stored(test_data / "dicom-single/pydicom-core/J2K_pixelrep_mismatch.dcm")
    assert mismatch.min() == -2000


@pytest.mark.data
def test_a_sign_that_was_lost_is_refused(test_data: Path, tmp_path: Path) -> None:
    """ASM-42, ASM-43: where PixelRepresentation itself is wrong, the values are no Hounsfield units."""
    source = dcmread(test_data / "dicom-single/pylibjpeg-data/TOSHIBA_J2K_SIZ1_PixRep0.dcm")
    stored = source.pixel_array
    assert stored.dtype == np.uint16
    (stack,), paths = _written(_pair(stored), tmp_path)
    assert isinstance(stack, Stack)
    with pytest.raises(Unsuitable, match="not_hounsfield"):
        read_volume(stack, paths)


@pytest.mark.data
def test_a_broken_frame_is_unsuitable_not_a_crash(test_data: Path, tmp_path: Path) -> None:
    whole = test_data / "dicom-single/nema-wg04-MR4/MR4_J2KR"
    header = read_header(whole, *file_meta_uids(whole))
    data = bytearray(whole.read_bytes())
    start = data.rindex(b"\xff\x4f\xff\x51")
    data[start : start + 60] = bytes(60)
    broken = tmp_path / "broken"
    broken.write_bytes(data)
    with pytest.raises(Unsuitable, match="undecodable"):
        next(stored_frames(broken, header, [0]))


# Stored values


def _image(stored: NDArray[Any], number: int = 1, modality: str = "CT", **changes: object) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.3.{number}", "1.2.1", "1.2.2"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.Modality, ds.ImageType, ds.InstanceNumber = modality, ["ORIGINAL", "PRIMARY", "AXIAL"], number
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = 1 if stored.dtype.kind == "i" else 0
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 2.0 * number], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [1, 1]
    if modality == "CT":
        ds.RescaleSlope, ds.RescaleIntercept = "1", "0"
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def _written(sets: Sequence[Dataset], folder: Path) -> tuple[tuple[Stack | Unstackable, ...], dict[str, Path]]:
    """Written, read again and split, with the path of each instance."""
    paths, headers = {}, []
    for n, ds in enumerate(sets):
        path = folder / f"{n}.dcm"
        ds.save_as(path, enforce_file_format=True)
        header = read_header(path)
        headers.append(header)
        paths[header.sop_instance_uid] = path
    return split(headers), paths


def _volume(sets: Sequence[Dataset], folder: Path) -> tuple[Volume, WayBack, Stack]:
    (stack,), paths = _written(sets, folder)
    assert isinstance(stack, Stack), stack
    volume, back = read_volume(stack, paths)
    return volume, back, stack


def _pair(stored: NDArray[Any], modality: str = "CT", **changes: object) -> list[Dataset]:
    return [_image(stored, number, modality, **changes) for number in (1, 2)]


RAMP = np.arange(64, dtype="<i2").reshape(8, 8) * 40 - 1000


def test_signed_and_unsigned_give_one_volume(tmp_path: Path) -> None:
    """ASM-42."""
    signed, _, _ = _volume(_pair(RAMP), tmp_path)
    unsigned, _, _ = _volume(_pair((RAMP + 1024).astype("<u2"), RescaleIntercept="-1024"), tmp_path)
    assert np.array_equal(signed.voxels, unsigned.voxels)
    assert np.array_equal(signed.voxels[0], RAMP)
    assert signed.voxels.dtype == np.float32
    assert not signed.voxels.flags.writeable


def test_high_bits_are_masked(tmp_path: Path) -> None:
    """ASM-42: 12 bits in 16, with an overlay in the others, and a sign that a writer extended."""
    plain = (RAMP + 1024).astype("<u2")
    overlaid = plain | np.where(np.eye(8, dtype=bool), 0xA000, 0).astype("<u2")
    changes = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": "-1024"}
    masked, _, _ = _volume(_pair(overlaid, **changes), tmp_path)
    assert np.array_equal(masked.voxels[0], RAMP)
    signed = np.where(RAMP < 0, RAMP & 0x0FFF, RAMP).astype("<i2")
    extended, _, _ = _volume(_pair(signed, BitsStored=12, HighBit=11), tmp_path)
    assert np.array_equal(extended.voxels[0], RAMP)


def test_values_above_the_low_bits(tmp_path: Path) -> None:
    """ASM-42: 12 bits of which the highest is bit 15."""
    shifted = ((RAMP + 1024) << 4).astype("<u2")
    volume, _, _ = _volume(_pair(shifted, BitsStored=12, HighBit=15, RescaleIntercept="-1024"), tmp_path)
    assert np.array_equal(volume.voxels[0], RAMP)


def test_rescale_of_each_slice(tmp_path: Path) -> None:
    """ASM-41: slopes 1 to n over values divided by them are one float volume."""
    truth = np.full((8, 8), 600.0)
    sets = [
        _image((truth / n).astype("<u2"), n, "MR", RescaleSlope=str(n), RescaleIntercept="0", RescaleType="US")
        for n in range(1, 6)
    ]
    volume, _, _ = _volume(sets, tmp_path)
    assert np.array_equal(volume.voxels, np.full((5, 8, 8), 600.0, dtype=np.float32))


def test_philips_scale_slope_is_not_applied(tmp_path: Path) -> None:
    """ASM-46: the standard rescale is; the private one is for quantities."""
    sets = _pair(np.full((8, 8), 100, dtype="<u2"), "MR", RescaleSlope="2.5", RescaleIntercept="0")
    for ds in sets:
        ds.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", 0.0081)
    volume, _, _ = _volume(sets, tmp_path)
    assert np.all(volume.voxels == 250.0)


@pytest.mark.parametrize("vr", ["SS", "US"])
def test_padding_becomes_air(tmp_path: Path, vr: str) -> None:
    """ASM-44: -2000 outside the field of view, whatever the VR that the writer took."""
    padded = RAMP.copy()
    padded[:2] = -2000
    sets = _pair(padded)
    for ds in sets:
        ds.add_new(0x00280120, vr, -2000 if vr == "SS" else 63536)
    volume, _, _ = _volume(sets, tmp_path)
    assert np.all(volume.voxels[:, :2] == AIR_HU)
    assert np.array_equal(volume.voxels[0, 2:], RAMP[2:])


def test_padding_range(tmp_path: Path) -> None:
    """ASM-44: PixelPaddingRangeLimit."""
    sets = _pair(RAMP)
    for ds in sets:
        ds.add_new(0x00280120, "SS", -1000)
        ds.add_new(0x00280121, "SS", -500)
    volume, _, _ = _volume(sets, tmp_path)
    assert np.all(volume.voxels[0][RAMP <= -500] == AIR_HU)
    assert np.array_equal(volume.voxels[0][RAMP > -500], RAMP[RAMP > -500])


@pytest.mark.parametrize("mark", [-2000, -3024])
def test_marks_of_the_outside_become_air_without_a_tag(tmp_path: Path, mark: int) -> None:
    """ASM-44."""
    marked = RAMP.copy()
    marked[0] = mark
    volume, _, _ = _volume(_pair(marked), tmp_path)
    assert np.all(volume.voxels[:, 0] == AIR_HU)
    assert volume.voxels.min() >= -1024


def test_padding_of_an_mr_is_its_darkest_value(tmp_path: Path) -> None:
    """A mark of -32768 would spoil every normalisation."""
    stored = np.arange(64, dtype="<i2").reshape(8, 8) + 10
    stored[0] = -32768
    sets = _pair(stored, "MR")
    for ds in sets:
        ds.add_new(0x00280120, "SS", -32768)
    volume, _, _ = _volume(sets, tmp_path)
    assert volume.voxels.min() == 18.0


def test_monochrome1_of_an_mr_is_inverted(tmp_path: Path) -> None:
    """ASM-45."""
    stored = np.arange(64, dtype="<u2").reshape(8, 8)
    changes: dict[str, object] = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    volume, _, _ = _volume(_pair(stored, "MR", **changes), tmp_path)
    assert np.array_equal(volume.voxels[0], 4095 - stored.astype(np.float32))


def test_a_ct_without_its_rescale_is_refused(tmp_path: Path) -> None:
    """ASM-43: air at 24 and water at 1024 are no Hounsfield units, whatever the header says."""
    stored = np.full((64, 64), 24, dtype="<u2")
    stored[8:56, 8:56] = 1064
    (stack,), paths = _written(_pair(stored), tmp_path)
    assert isinstance(stack, Stack)
    with pytest.raises(Unsuitable, match="not_hounsfield"):
        read_volume(stack, paths)


def test_compressed_and_plain_slices_in_one_series(tmp_path: Path) -> None:
    """NET-6: a series may arrive in two transfer syntaxes."""
    sets = _pair(RAMP)
    sets[1].compress(RLELossless, generate_instance_uid=False)
    volume, _, _ = _volume(sets, tmp_path)
    assert np.array_equal(volume.voxels[1], RAMP)


# Placement

COARSE = {"pixel_mm": (8.0, 8.0), "step_mm": 10.0}


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
@pytest.mark.parametrize("turn", [None, rotation(12.0, -20.0, 31.0)], ids=["straight", "oblique"])
def test_every_voxel_lies_where_its_pixel_does(tmp_path: Path, plane: str, turn: NDArray[np.float64] | None) -> None:
    """ASM-36, R1, R3: position and value of each voxel, whatever the order of numbers and files."""
    planes = planes_around(plane=plane, turn=turn, pixel_mm=(12.0, 9.0), step_mm=15.0)
    planes = chosen(planes, list(range(len(planes.origins_mm)))[::-1])
    sets = list(datasets(Acquisition(planes, CT)))
    volume, _, stack = _volume(sets, tmp_path)
    truth = {
        tuple(np.round([float(x) for x in ds.ImagePositionPatient], 3)): ds.pixel_array + float(ds.RescaleIntercept)
        for ds in sets
    }
    affine = volume.grid.affine
    for k in range(volume.grid.shape[0]):
        origin = (affine @ [k, 0, 0, 1])[:3]
        near = min(truth, key=lambda position: float(np.linalg.norm(np.array(position) - origin)))
        assert np.linalg.norm(np.array(near) - origin) < 1e-3
        assert np.array_equal(volume.voxels[k], truth[near])
    for j, i in ((0, 5), (7, 0)):
        expected = (affine @ [0, 0, 0, 1])[:3] + planes.column * j + planes.row * i
        assert (affine @ [0, j, i, 1])[:3] == pytest.approx(expected, abs=1e-6)
    assert stack.geometry.lattice is Lattice.REGULAR


@pytest.mark.parametrize("n", range(0, 24, 5))
def test_orientations_of_the_patient(tmp_path: Path, n: int) -> None:
    """ASM-36: the phantom in turned planes; the true organs are found again in the volume's own grid."""
    matrices = [
        np.array([[s if p == c else 0.0 for c in range(3)] for p, s in zip(permutation, signs, strict=True)])
        for permutation in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    ]
    turn = [matrix for matrix in matrices if np.linalg.det(matrix) > 0][n]
    planes = planes_around(turn=turn, pixel_mm=(7.0, 6.0), step_mm=8.0)
    volume, _, stack = _volume(list(datasets(Acquisition(planes, CT))), tmp_path)
    assert stack.geometry.lattice is Lattice.REGULAR
    truth = labels_on(STANDARD, Planes.of(volume.grid))
    body = volume.voxels > -500.0
    assert dice(body, truth > 0) > 0.96


def test_way_back_of_a_regular_stack_is_exact(tmp_path: Path) -> None:
    """R1: frame n of the stack is plane n of the volume."""
    planes = planes_around(pixel_mm=(9.0, 9.0), step_mm=9.0)
    volume, back, stack = _volume(list(datasets(Acquisition(planes, MR))), tmp_path)
    labels = np.random.default_rng(1).integers(0, 5, volume.grid.shape).astype(np.uint8)
    found = back.labels(LabelMap(volume.grid, labels, {n: str(n) for n in range(1, 5)}))
    assert np.array_equal(found.labels, labels)
    assert found.labels.shape == (len(stack.frames), stack.geometry.rows, stack.geometry.columns)
    assert dict(found.names) == {1: "1", 2: "2", 3: "3", 4: "4"}


def test_labels_of_another_grid_are_refused(tmp_path: Path) -> None:
    planes = planes_around(pixel_mm=(9.0, 9.0), step_mm=9.0)
    volume, back, _ = _volume(list(datasets(Acquisition(planes, MR))), tmp_path)
    other = replace(volume.grid, affine=volume.grid.affine + np.eye(4) * [0.01, 0.01, 0.01, 0.0])
    with pytest.raises(ValueError, match="not on the grid"):
        back.labels(LabelMap(other, np.zeros(other.shape, dtype=np.uint8), {1: "x"}))


def _blank(planes: Planes, thickness_mm: Sequence[float] | None = None) -> list[Dataset]:
    """Empty images in these planes: for what only the places decide."""
    cosines = [float(x) for step in (planes.row, planes.column) for x in step / np.linalg.norm(step)]
    spacing = [float(np.linalg.norm(step)) for step in (planes.column, planes.row)]
    empty = np.zeros((planes.rows, planes.columns), dtype="<i2")
    sets = []
    for n, origin in enumerate(planes.origins_mm):
        places = {"ImagePositionPatient": [f"{x:.8g}" for x in origin], "PixelSpacing": spacing}
        ds = _image(empty, n + 1, ImageOrientationPatient=[f"{x:.12g}" for x in cosines], **places)
        if thickness_mm is not None:
            ds.SliceThickness = thickness_mm[n]
        sets.append(ds)
    return sets


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ENOSPC, None])
def test_what_the_machine_says_is_no_word_about_the_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    """An error of the system may pass, so it flies; a decoder's own OSError has no number, and speaks of the frame."""
    path = tmp_path / "one.dcm"
    next(datasets(Acquisition(planes_around(pixel_mm=(8.0, 8.0), step_mm=12.0), CT))).save_as(
        path, enforce_file_format=True
    )
    header = read_header(path)

    def broken(*_: object, **__: object) -> Any:
        raise OSError("broken data stream") if code is None else OSError(code, "no")

    monkeypatch.setattr(decoding, "iter_pixels", broken)
    with pytest.raises(Unsuitable if code is None else OSError):
        next(stored_frames(path, header, [0]))


def _there_and_back(
    planes: Planes, folder: Path, thickness_mm: Sequence[float] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Stack, Volume]:
    """True labels of the frames, and those that come back from a perfect model on the volume's own grid."""
    volume, back, stack = _volume(_blank(planes, thickness_mm), folder)
    perfect = labels_on(STANDARD, Planes.of(volume.grid))
    names = {int(label): str(label) for label in np.unique(perfect) if label}
    found = back.labels(LabelMap(volume.grid, perfect, names)).labels
    order = np.argsort(planes.origins_mm @ planes.normal)
    return labels_on(STANDARD, planes)[order], found, stack, volume


def _millilitres(mask: NDArray[np.bool_], stack: Stack) -> float:
    rows, columns = stack.geometry.pixel_spacing_mm
    return float((mask.sum(axis=(1, 2)) * np.array(stack.geometry.slice_extents_mm)).sum()) * rows * columns / 1000.0


@pytest.mark.parametrize("tilt", [18.5, -13.5])
def test_tilted_stack_there_and_back(tmp_path: Path, tilt: float) -> None:
    """ASM-34: a sheared phantom, Dice >= 0.99 and volume within 1 %."""
    planes = planes_around(pixel_mm=(0.7, 0.7), step_mm=5.0, tilt_deg=tilt)
    truth, found, stack, volume = _there_and_back(planes, tmp_path)
    assert stack.geometry.lattice is Lattice.SHEARED
    axes = volume.grid.affine[:3, :3] / volume.grid.spacing_mm
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    for label in np.unique(truth)[1:]:
        wanted, got = truth == label, found == label
        assert dice(wanted, got) >= 0.99
        assert _millilitres(got, stack) == pytest.approx(_millilitres(wanted, stack), rel=0.01)


def test_tilted_voxels_lie_where_the_anatomy_does(tmp_path: Path) -> None:
    """ASM-34: what the model sees is the patient, not the shear."""
    planes = planes_around(pixel_mm=(4.0, 4.0), step_mm=4.0, tilt_deg=20.0)
    volume, _, _ = _volume(list(datasets(Acquisition(planes, CT))), tmp_path)
    truth = labels_on(STANDARD, Planes.of(volume.grid))
    assert dice(volume.voxels > -500.0, truth > 0) > 0.97
    assert volume.voxels.min() >= -1024.0
    assert np.isfinite(volume.voxels).all()


def test_uneven_stack_there_and_back(tmp_path: Path) -> None:
    """ASM-35: thin slices, an overlap of table feeds, then thick ones; the volume is weighted slice by slice."""
    planes = planes_around(pixel_mm=(2.0, 2.0), step_mm=3.0)
    count = len(planes.origins_mm)
    keep = [*range(count // 2), *range(count // 2, count, 2)]
    thick = np.arange(len(keep)) >= count // 2
    uneven = moved(chosen(planes, keep), np.where(thick, -1.9, 0.0))
    truth, found, stack, volume = _there_and_back(uneven, tmp_path, [6.0 if each else 3.0 for each in thick])
    assert stack.geometry.lattice is Lattice.UNEVEN
    assert volume.grid.spacing_mm[0] == pytest.approx(3.0, rel=0.1)
    for organ, label in zip(STANDARD.organs, range(2, 2 + len(STANDARD.organs)), strict=True):
        wanted, got = truth == label, found == label
        assert dice(wanted, got) > 0.93
        assert _millilitres(got, stack) == pytest.approx(STANDARD.volume_ml(organ.name), rel=0.05)


@pytest.mark.parametrize("contrast", [CT, MR], ids=["ct", "mr"])
def test_enhanced_gives_the_volume_of_its_single_frames(tmp_path: Path, contrast: Any) -> None:
    """ASM-47."""
    acquisition = Acquisition(planes_around(**COARSE), contrast)  # type: ignore[arg-type]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    single, _, _ = _volume(list(datasets(acquisition)), tmp_path / "a")
    whole, _, stack = _volume([enhanced(acquisition)], tmp_path / "b")
    assert len({f.sop_instance_uid for f in stack.frames}) == 1
    assert whole.grid.same_as(single.grid)
    assert np.array_equal(whole.voxels, single.voxels)


def test_frames_of_one_object_in_reversed_order(tmp_path: Path) -> None:
    """R3: positions say where a frame lies, its number does not."""
    acquisition = Acquisition(planes_around(**COARSE), CT)  # type: ignore[arg-type]
    last_first = replace(
        acquisition, planes=chosen(acquisition.planes, list(range(len(acquisition.planes.origins_mm)))[::-1])
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ds = enhanced(acquisition)
    turned = enhanced(acquisition)
    turned.PixelData = ds.pixel_array[::-1].tobytes()
    turned.PerFrameFunctionalGroupsSequence = list(ds.PerFrameFunctionalGroupsSequence)[::-1]
    plain, _, _ = _volume([ds], tmp_path / "a")
    reversed_, _, stack = _volume([turned], tmp_path / "b")
    assert [f.frame.number for f in stack.frames] == list(range(len(stack.frames), 0, -1))
    assert np.array_equal(plain.voxels, reversed_.voxels)
    assert len(last_first.planes.origins_mm) == len(stack.frames)


def test_memory_is_the_volume_and_a_few_frames(tmp_path: Path) -> None:
    """One frame is decoded at a time, from a multi-frame object too."""
    planes = planes_around(pixel_mm=(5.0, 5.0), step_mm=4.0)
    (stack,), paths = _written([enhanced(Acquisition(planes, MR))], tmp_path)
    assert isinstance(stack, Stack)
    tracemalloc.start()
    volume, _ = read_volume(stack, paths)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    frame_bytes = volume.voxels[0].nbytes
    assert len(volume.voxels) > 40
    assert peak < volume.voxels.nbytes + 20 * frame_bytes


def test_progress_is_told(tmp_path: Path) -> None:
    (stack,), paths = _written(_pair(RAMP), tmp_path)
    assert isinstance(stack, Stack)
    told: list[float] = []
    read_volume(stack, paths, told.append)
    assert told == [0.5, 1.0]


# Doubles


def test_doubled_slices_are_found_by_their_pixels(tmp_path: Path) -> None:
    """ASM-23: ten slices sent again under new UIDs and in another transfer syntax."""
    sets = list(datasets(Acquisition(planes_around(pixel_mm=(12.0, 12.0), step_mm=12.0), CT)))
    again = []
    for ds in sets[3:13]:
        twin = dcmread(_saved(ds, tmp_path / "twin.dcm"))
        twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = f"{ds.SOPInstanceUID[:50]}.7"
        twin.compress(RLELossless, generate_instance_uid=False)
        again.append(twin)
    parts, paths = _written([*sets, *again], tmp_path)
    assert [type(part) for part in parts] == [Unstackable]
    headers = [read_header(path) for path in paths.values()]
    (stack,) = split_series(headers, paths)
    assert isinstance(stack, Stack)
    assert (len(stack.frames), len(stack.dropped)) == (len(sets), 10)


def _saved(ds: Dataset, path: Path) -> Path:
    ds.save_as(path, enforce_file_format=True)
    return path


def test_time_points_that_nothing_tells_apart_stay_ambiguous(tmp_path: Path) -> None:
    """ASM-23: equal places, other pixels."""
    sets = [_image(RAMP + n, n + 1, ImagePositionPatient=[0, 0, 2.0 * (n % 3)]) for n in range(9)]
    parts, paths = _written(sets, tmp_path)
    headers = [read_header(path) for path in paths.values()]
    (part,) = split_series(headers, paths)
    assert isinstance(part, Unstackable)
    assert (part.reason, len(part.frames)) == ("ambiguous", 9)
    assert len(parts) == 1
