"""THE TABLE: for each real series its stacks, order, spacing, tilt, kept and dropped frames, and what becomes of them.

The expected values were read from the headers and from the collection's description, series by series.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedMRImage
from pydicom import dcmread
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from engines.volume import Volume
from node.dicom.headers import file_meta_uids, read_header
from node.dicom.pixels import read_volume, split_series
from node.domain.instance import InstanceHeader, Sender
from node.domain.routing import Condition, Ineligible, ModelFacts, ModelLimits, Routed, Rule, explain, route
from node.domain.stack import Lattice, Stack, Unstackable, largest_block
from node.errors import CannotUnderstand

pytestmark = pytest.mark.data

SENDER = Sender("folder", "", "", "", "")
MODELS = {"phantom": ModelFacts("phantom", "", ("CT", "MR"), selftest_only=True)}
EVERYTHING = Rule("everything", "phantom", (), (), allow_selftest_model=True)


@dataclass(frozen=True)
class Scan:
    """A stack as it must come out.

    Attributes
    ----------
    ends
        (InstanceNumber, frame number) of the first and of the last frame along row x column.
    axes
        Patient directions in which slices, rows and columns of the volume grow.
    outcome
        `phantom`: routed by a rule that takes everything; else the reason why not.
    """

    slices: int
    size: tuple[int, int]
    pixel_mm: tuple[float, float]
    step_mm: float
    ends: tuple[tuple[int, int], tuple[int, int]]
    axes: str
    outcome: str = "phantom"
    lattice: Lattice = Lattice.REGULAR
    tilt_deg: float = 0.0
    keys: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, int, int] | None = None
    """Of the volume, where it is not (slices, *size)."""


@dataclass(frozen=True)
class Rest:
    """Frames that form no scan."""

    frames: int
    reason: str
    quarantined: bool = False
    says: str = ""


# 40 slices at 3 mm from z = -60; volume n of the series is instances 40n+1 to 40n+40. The first is b = 0, then come
# twelve directions of b = 1500, told in ImageComments alone.
CANON_DIRECTIONS = [
    *("0.895\\0.000\\0.445", "0.000\\-0.445\\0.895", "0.445\\-0.895\\0.000", "0.895\\-0.445\\0.000"),
    *("0.000\\-0.895\\0.445", "0.445\\0.000\\0.895", "0.895\\0.000\\-0.445", "0.000\\0.445\\0.895"),
    *("-0.445\\-0.895\\0.000", "0.895\\0.445\\0.000", "0.000\\-0.895\\-0.445", "-0.445\\0.000\\0.895"),
]
CANON = [
    Scan(40, (80, 80), (3.0, 3.0), 3.0, ((40 * n + 1, 1), (40 * n + 40, 1)), "SPL",
         outcome="phantom" if n == 0 else "higher_b_value",
         keys={"DiffusionGradientOrientation": f"1500 {CANON_DIRECTIONS[n - 1]}" if n else "none"})
    for n in range(13)
]  # fmt: skip

# Philips numbers echo and slice in turns, magnitude first: 1, 3, ... 59 are the first echo, 2, 4, ... 60 the second;
# 61 to 120 are the phase images (PHASE MAP, mrad) of the same.
PHILIPS = [
    Scan(30, (96, 96), (2.8125, 2.8125), 4.0, ((first, 1), (first + 58, 1)), "SPL", outcome=outcome,
         keys={"ImageType": meaning, "EchoTime": echo})
    for first, echo, meaning, outcome in (
        (1, "7.001", "MAGNITUDE ORIGINAL", "phantom"),
        (2, "10", "MAGNITUDE ORIGINAL", "phantom"),
        (61, "7.001", "PHASE ORIGINAL", "not_magnitude"),
        (62, "10", "PHASE ORIGINAL", "not_magnitude"),
    )
]  # fmt: skip

TABLE: dict[str, list[Scan | Rest]] = {
    # Gantry +18.5 degrees, table steps of 4.22, 1.14 (the feeds overlap) and 7.38 mm; times cos 18.5: 4.002, 1.08 and
    # 6.999 along the normal. SliceThickness 4 and 7: the thick slices touch, nothing is missing. The frames rise by
    # 144.09 mm along the normal: 36 steps of 4.002; the drift of 48.2 mm in the plane is 99 rows of 0.488 mm.
    "ct-ge-hispeed-tilt-uneven": [
        Scan(28, (512, 512), (0.4882812, 0.4882812), 4.002, ((1, 1), (28, 1)), "SPL", lattice=Lattice.UNEVEN,
             tilt_deg=18.5, shape=(37, 611, 512)),
    ],
    # ImageType LOCALIZER, and a DICOMDIR without SOP Class UID, which no C-STORE could carry.
    "ct-philips-ingenuity-study/S1000": [Rest(1, "localizer")],
    "ct-philips-ingenuity-study/S2010": [
        Scan(28, (512, 512), (0.451171875, 0.451171875), 5.0, ((1, 1), (28, 1)), "SPL"),
    ],
    # Secondary captures with Modality CT: surview reference, patient information, dose, results.
    "ct-philips-ingenuity-study/S4010": [Rest(6, "secondary_capture")],
    # IOP 1\0\0\0\0.9703\-0.2419: 14 degrees; table steps of 5 mm along z.
    "icometrix-small/failing_gantrytilting_001": [
        Scan(4, (512, 512), (0.41796875, 0.41796875), 4.851, ((1, 1), (4, 1)), "SPL", lattice=Lattice.SHEARED,
             tilt_deg=14.0, shape=(4, 521, 512)),
    ],
    # z = 18.1, 23.1, 28.1, 38.1: one slice lacks at 33.1, although the numbers 9 and 10 follow each other.
    "icometrix-small/failing_sliceincrement_001": [
        Rest(4, "missing_slices", says="1 at 33.11 mm, between instance 9 at 28.11 mm and instance 10 at 38.11 mm"),
    ],
    "icometrix-small/ge_anatomical_001_implicit": [
        Scan(4, (256, 256), (1.0, 1.0), 1.0, ((112, 1), (115, 1)), "RIP"),
    ],
    # Four volumes of four slices; the private b-values were removed with all else that told them apart.
    "icometrix-small/ge_dti_002": [Rest(16, "ambiguous", quarantined=True, says="16 frames at 4 positions")],
    # Row +y, column -z: the normal is -x; the numbers rise with x.
    "icometrix-small/generic_compressed_001": [
        Scan(4, (256, 256), (1.0, 1.0), 1.0, ((4, 1), (1, 1)), "RIP"),
    ],
    "icometrix-small/hitachi_anatomical_001": [
        Scan(4, (64, 64), (2.34375, 2.34375), 4.0, ((11, 1), (8, 1)), "RIP"),
    ],
    # x falls from 100.3 with the frame number; the normal is -x.
    "icometrix-small/philips_enhanced_anatomical_001": [
        Scan(8, (256, 256), (1.0, 1.0), 1.2, ((1, 1), (1, 8)), "RIP"),
    ],
    "icometrix-small/philips_fmri_001": [Rest(8, "ambiguous", quarantined=True, says="8 frames at 2 positions")],
    "icometrix-small/siemens_multiframe_anatomical_001": [
        Scan(8, (256, 256), (0.9375, 0.9375), 0.9, ((1, 1), (1, 8)), "SPL"),
    ],
    "mr-canon-dti-4d": [*CANON],
    # Only the description says that it is a localizer; ImageType is ORIGINAL\PRIMARY\OTHER.
    "mr-ge-3plane-localizer": [Rest(21, "localizer")],
    # Ten time points of fifteen slices; nothing but InstanceNumber tells them apart.
    "mr-ge-epi-4d": [Rest(150, "ambiguous", quarantined=True, says="150 frames at 15 positions")],
    # Row +x, column -z: the normal is +y; a wrist, head first prone.
    "mr-ge-genesis-16": [Scan(16, (256, 256), (0.234375, 0.234375), 2.0, ((1, 1), (16, 1)), "PIL")],
    # Thickness 5, step 6.5; the file names are not in the order of the slices.
    "mr-ge-mr750-brain-study/12-T1post": [Scan(22, (512, 512), (0.4297, 0.4297), 6.5, ((1, 1), (22, 1)), "SPL")],
    # DERIVED\SECONDARY\AXIAL, SeriesNumber and Manufacturer empty: a scan all the same.
    "mr-ge-mr750-brain-study/13-HippoCrop": [Scan(32, (51, 35), (1.0, 1.0), 1.0, ((1, 1), (32, 1)), "SPL")],
    "mr-philips-dual-echo": [*PHILIPS],
    "mr-siemens-fieldmap-phase": [
        Scan(36, (64, 64), (3.25, 3.25), 3.6, ((1, 1), (36, 1)), "SPL", outcome="not_magnitude"),
    ],
    # x from -100.4 to 89.6: instance 1 is the rightmost, and the normal is -x.
    "mr-siemens-jpegll-fragmented": [Scan(96, (128, 128), (2.0, 2.0), 2.0, ((96, 1), (1, 1)), "RIP")],
    "mr-siemens-mosaic": [Rest(6, "mosaic")],
    "mr-siemens-mosaic-9-transfer-syntaxes": [Rest(9, "mosaic")],
    "mr-siemens-prone-hfp": [Scan(35, (256, 256), (1.015625, 1.015625), 4.8, ((35, 1), (1, 1)), "RIP")],
    # A fractional anisotropy map is no picture of anatomy; the coloured one is not even of a class that we process.
    "mr-siemens-xa30-enhanced/13_DWI_dir80_PA": [
        Scan(39, (72, 72), (3.0, 3.0), 3.0, ((1, 1), (1, 39)), "SPL", outcome="parametric_map"),
    ],
    "mr-siemens-xa30-enhanced/14_DWI_dir80_PA": [Rest(39, "sop_class")],
    "mr-siemens-xa30-enhanced/5_anat-T1w_acq-tfl": [Scan(96, (128, 128), (2.0, 2.0), 2.0, ((1, 96), (1, 1)), "RIP")],
    # One object for each echo, both in one series.
    "mr-siemens-xa30-enhanced/8_gre_field_mapping": [
        Scan(33, (64, 64), (3.375, 3.375), 3.4, ((1, 1), (1, 33)), "SPL", keys={"EchoTime": "10"}),
        Scan(33, (64, 64), (3.375, 3.375), 3.4, ((2, 1), (2, 33)), "SPL", keys={"EchoTime": "12.46"}),
    ],
}  # fmt: skip

REFUSED = {
    # Study, Series, SOP Class and SOP Instance UID are empty in the data set; only the file meta has the last two.
    "ct-siemens-mct-j2k": 20,
    # DICOMDIR files among the images.
    "ct-philips-ingenuity-study/S1000": 1,
    "ct-philips-ingenuity-study/S2010": 1,
    "ct-philips-ingenuity-study/S4010": 1,
}


@dataclass(frozen=True)
class _Read:
    series: dict[str, list[InstanceHeader]]
    paths: dict[str, Path]
    refused: Counter[str]


@cache
def _read(root: Path) -> _Read:
    """Every file as it would come over the network: no help from the file meta. One series is one SeriesInstanceUID."""
    series: dict[str, list[InstanceHeader]] = {}
    paths: dict[str, Path] = {}
    refused: Counter[str] = Counter()
    names: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.name == ".complete":
            continue
        folder = str(path.parent.relative_to(root))
        try:
            header = read_header(path)
        except CannotUnderstand:
            refused[folder] += 1
            continue
        name = names.setdefault(header.series_instance_uid, folder)
        series.setdefault(name, []).append(header)
        paths[header.sop_instance_uid] = path
    return _Read(series, paths, refused)


def test_the_table_names_every_series(real_series: Path) -> None:
    read = _read(real_series)
    assert set(read.series) == set(TABLE)
    assert dict(read.refused) == REFUSED


@pytest.mark.parametrize("name", TABLE)
def test_real_series(real_series: Path, name: str) -> None:
    """ASM-11 to ASM-36, ASM-40 to ASM-47, ASM-52, ASM-56."""
    read = _read(real_series)
    headers = read.series[name]
    parts = split_series(headers, read.paths)
    answers = route(parts, SENDER, [EVERYTHING], MODELS)
    scans = [row for row in TABLE[name] if isinstance(row, Scan)]
    rests = [row for row in TABLE[name] if isinstance(row, Rest)]
    stacks = [answer for answer in answers if isinstance(answer.stack, Stack)]
    others = [answer for answer in answers if isinstance(answer.stack, Unstackable)]
    assert len(stacks) == len(scans)
    for row in scans:
        (answer,) = (a for a in stacks if dict(a.stack.keys) == row.keys)
        _check_scan(answer, row)
        if row.outcome in ("phantom", "not_magnitude"):
            _check_volume(answer.stack, row, read.paths)
    assert [(len(a.stack.frames), a.reason) for a in others if isinstance(a, Ineligible)] == [
        (row.frames, row.reason) for row in rests
    ]
    for answer, row in zip(others, rests, strict=True):
        assert isinstance(answer.stack, Unstackable)
        assert answer.stack.quarantined is row.quarantined
        assert row.says in answer.stack.detail
    frames = sum(len(part.frames) + len(part.dropped if isinstance(part, Stack) else ()) for part in parts)
    assert frames == sum(len(header.frames) for header in headers)


def _check_scan(answer: Routed | Ineligible, row: Scan) -> None:
    stack = answer.stack
    assert isinstance(stack, Stack)
    geometry = stack.geometry
    assert len(stack.frames) == row.slices
    assert stack.dropped == ()
    assert (geometry.rows, geometry.columns) == row.size
    assert geometry.pixel_spacing_mm == pytest.approx(row.pixel_mm, abs=1e-6)
    assert geometry.step_mm == pytest.approx(row.step_mm, abs=2e-3)
    assert geometry.tilt_deg == pytest.approx(row.tilt_deg, abs=0.02)
    assert geometry.lattice is row.lattice
    first, last = stack.frames[0], stack.frames[-1]
    ends = ((first.header.instance_number, first.frame.number), (last.header.instance_number, last.frame.number))
    assert ends == row.ends
    assert (answer.model if isinstance(answer, Routed) else answer.reason) == row.outcome


def _check_volume(stack: Stack | Unstackable, row: Scan, paths: dict[str, Path]) -> None:
    """The voxels can be read; the grid lies where the positions say, and its axes where the anatomy does."""
    assert isinstance(stack, Stack)
    volume, _ = read_volume(stack, paths)
    assert volume.grid.shape == (row.shape or (row.slices, *row.size))
    assert volume.grid.axis_codes == row.axes
    assert np.isfinite(volume.voxels).all()
    assert float(volume.voxels.std()) > 0.0
    if row.lattice is Lattice.REGULAR:
        for k in (0, len(stack.frames) - 1):
            position = (volume.grid.affine @ [k, 0, 0, 1])[:3]
            assert position == pytest.approx(stack.frames[k].frame.position_mm, abs=0.02)


def test_broken_uids_are_taken_from_the_file_meta_of_a_folder(real_series: Path) -> None:
    """R19: refused over the network, read from a folder; 20 slices of 3 mm, 2 mm apart, numbered downwards."""
    headers, paths = [], {}
    for path in sorted((real_series / "ct-siemens-mct-j2k").iterdir()):
        header = read_header(path, *file_meta_uids(path))
        headers.append(header)
        paths[header.sop_instance_uid] = path
    (answer,) = route(split_series(headers, paths), SENDER, [EVERYTHING], MODELS)
    row = Scan(20, (512, 512), (0.9765625, 0.9765625), 2.0, ((286, 1), (267, 1)), "SPL")
    _check_scan(answer, row)
    _check_volume(answer.stack, row, paths)


def test_hippocampus_crop_is_chosen_and_its_sibling_is_not(real_series: Path) -> None:
    """ASM-50, ASM-52: by a rule on the description, and by the model's field of view alone."""
    read = _read(real_series)
    limits = ModelLimits(min_slices=16, max_extent_mm=(80.0, 90.0, 90.0), max_step_mm=2.0)
    models = {"hippocampus-mr": ModelFacts("hippocampus-mr", "", ("MR",), limits)}
    by_name = Rule("crop", "hippocampus-mr", (Condition("SeriesDescription", "regex", "(?i)hippo"),), ("pacs",))
    by_size = Rule("any MR", "hippocampus-mr", (), ("pacs",))
    for rule, reason in ((by_name, "no_rule"), (by_size, "step_too_large")):
        (crop,) = route(
            split_series(read.series["mr-ge-mr750-brain-study/13-HippoCrop"], read.paths), SENDER, [rule], models
        )
        assert isinstance(crop, Routed)
        (whole,) = route(
            split_series(read.series["mr-ge-mr750-brain-study/12-T1post"], read.paths), SENDER, [rule], models
        )
        assert isinstance(whole, Ineligible)
        assert whole.reason == reason


def test_a_slice_taken_out_of_a_real_series_is_missed(real_series: Path) -> None:
    """ASM-4, ASM-31: slice 40 of 96; the larger block is what a rule may take."""
    read = _read(real_series)
    kept = [h for h in read.series["mr-siemens-jpegll-fragmented"] if h.instance_number != 40]
    (part,) = split_series(kept, read.paths)
    assert isinstance(part, Unstackable)
    assert part.reason == "missing_slices"
    assert "between instance 41 at" in part.detail
    assert "(instance 40 lacking)" in part.detail
    block = largest_block(part)
    assert isinstance(block, Stack)
    assert len(block.frames) == 56


def test_explanations_name_no_patient(real_series: Path) -> None:
    """SEC-20."""
    read = _read(real_series)
    for name, headers in read.series.items():
        lines = "\n".join(explain(split_series(headers, read.paths) if len(headers) < 40 else (), SENDER, [], MODELS))
        for header in headers[:1]:
            for value in (header.identity.name, header.identity.patient_id):
                assert len(value) < 4 or value not in lines, name


TRANSCODERS = {
    "JPEG lossless": ["dcmcjpeg"],
    "JPEG lossless, process 14": ["dcmcjpeg", "+el"],
    "JPEG-LS": ["dcmcjpls"],
    "RLE": ["dcmcrle"],
    "big endian": ["dcmconv", "+tb"],
    "implicit": ["dcmconv", "+ti"],
    "undefined lengths": ["dcmconv", "+te", "-e"],
    "JPEG 2000": ["gdcmconv", "--j2k"],
}


@pytest.mark.parametrize("tool", TRANSCODERS.values(), ids=TRANSCODERS)
def test_another_encoding_is_the_same_scan(real_series: Path, tmp_path: Path, tool: list[str]) -> None:
    """ASM-42: a tilted CT, encoded again by DCMTK and GDCM without loss."""
    files = sorted((real_series / "icometrix-small/failing_gantrytilting_001").iterdir())
    for path in files:
        subprocess.run([*tool, str(path), str(tmp_path / path.name)], check=True, capture_output=True, timeout=60)
    before, after = _volume(files), _volume(sorted(tmp_path.iterdir()))
    assert np.array_equal(before.voxels, after.voxels)
    assert np.array_equal(before.grid.affine, after.grid.affine)


def test_a_series_converted_to_one_object_is_the_same_scan(real_series: Path, tmp_path: Path) -> None:
    """ASM-47: Legacy Converted Enhanced MR, made by highdicom."""
    files = sorted((real_series / "mr-ge-mr750-brain-study/13-HippoCrop").iterdir())
    images = [dcmread(path) for path in files]
    converted = LegacyConvertedEnhancedMRImage(images, generate_uid(), 77, generate_uid(), 1)
    converted.save_as(tmp_path / "converted.dcm")
    before, after = _volume(files), _volume([tmp_path / "converted.dcm"])
    assert np.array_equal(before.voxels, after.voxels)
    assert before.grid.affine == pytest.approx(after.grid.affine, abs=1e-3)


TURNS = {
    "feet first": ("y", 180, "IPR"),
    "prone": ("z", 180, "SAR"),
    "sagittal": ("y", 90, "LPI"),
    "coronal": ("x", 90, "ASL"),
    "oblique": ("x", 17, "SPL"),
}


@pytest.mark.parametrize(("axis", "degrees", "codes"), TURNS.values(), ids=TURNS)
def test_a_turned_copy_is_turned(real_series: Path, tmp_path: Path, axis: str, degrees: float, codes: str) -> None:
    """ASM-30, ASM-35: names and numbers in another order, so that positions alone tell where a slice lies."""
    files = sorted((real_series / "mr-ge-mr750-brain-study/13-HippoCrop").iterdir())
    turn = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    for n, path in enumerate(files):
        ds = dcmread(path)
        cosines = np.array(ds.ImageOrientationPatient, float).reshape(2, 3) @ turn.T
        ds.ImageOrientationPatient = [f"{value:.8f}" for value in cosines.ravel()]
        ds.ImagePositionPatient = [f"{value:.5f}" for value in turn @ np.array(ds.ImagePositionPatient, float)]
        ds.InstanceNumber = 7 * n % 32 + 1
        ds.save_as(tmp_path / f"{13 * n % 32:02d}.dcm")
    before, after = _volume(files), _volume(sorted(tmp_path.iterdir()))
    assert np.array_equal(before.voxels, after.voxels)
    assert after.grid.axis_codes == codes
    assert after.grid.affine[:3] == pytest.approx(turn @ before.grid.affine[:3], abs=1e-3)


def _volume(files: Sequence[Path]) -> Volume:
    """The one stack of some files."""
    headers = [read_header(path) for path in files]
    paths = {header.sop_instance_uid: path for header, path in zip(headers, files, strict=True)}
    (answer,) = route(split_series(headers, paths), SENDER, [EVERYTHING], MODELS)
    assert isinstance(answer, Routed)
    return read_volume(answer.stack, paths)[0]
