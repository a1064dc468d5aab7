"""How frames are told apart, ordered and judged: one test for each rule of REQUIREMENTS 2.3 and 2.4."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.domain.instance import FrameHeader, InstanceHeader, PatientIdentity
from node.domain.stack import Lattice, Stack, Unstackable, across_gaps, ambiguous_frames, largest_block, split

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
PATIENT = PatientIdentity("P1", "", "Doe^Jane", "19700101")

Vector = tuple[float, float, float]
_uids = itertools.count(1)


def _frame(position: Sequence[float] = (0.0, 0.0, 0.0), **changes: object) -> FrameHeader:
    base = FrameHeader(1, (position[0], position[1], position[2]), AXIAL, (0.7, 0.7), ("ORIGINAL", "PRIMARY", "AXIAL"))
    return replace(base, **changes)  # type: ignore[arg-type]


def _header(frames: Sequence[FrameHeader], number: int | None = 1, **changes: object) -> InstanceHeader:
    base = InstanceHeader(
        sop_instance_uid=f"1.2.3.{next(_uids)}",
        sop_class_uid=CT,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        study_instance_uid="1.2.1",
        series_instance_uid="1.2.2",
        frame_of_reference_uid="1.2.4",
        identity=PATIENT,
        modality="CT",
        rows=512,
        columns=512,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=16,
        bits_stored=12,
        high_bit=11,
        pixel_representation=0,
        frames=tuple(frames),
        image_type=frames[0].image_type if frames else (),
        instance_number=number,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def _series(
    distances: Iterable[float],
    orientation: Sequence[float] = AXIAL,
    aside: Callable[[float], Vector] = lambda d: (0.0, 0.0, 0.0),
    frame: dict[str, object] | None = None,
    **header: object,
) -> list[InstanceHeader]:
    """Single-frame instances at these distances along the normal, numbered in this order."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    found = []
    for number, distance in enumerate(distances, start=1):
        position = normal * distance + np.array(aside(distance))
        one = _frame(position, orientation=tuple(orientation), **(frame or {}))
        found.append(_header([one], number, **header))
    return found


def _mr(distances: Iterable[float], **changes: object) -> list[InstanceHeader]:
    frame = {"image_type": ("ORIGINAL", "PRIMARY", "M", "ND")} | dict(changes)
    return _series(distances, frame=frame, modality="MR", sop_class_uid=MR)


def _stacks(parts: Sequence[Stack | Unstackable]) -> list[Stack]:
    return [part for part in parts if isinstance(part, Stack)]


def _only(parts: Sequence[Stack | Unstackable]) -> Stack:
    (part,) = parts
    assert isinstance(part, Stack), part
    return part


def _misfit(parts: Sequence[Stack | Unstackable]) -> Unstackable:
    (part,) = parts
    assert isinstance(part, Unstackable), part
    return part


def _numbers(stack: Stack) -> list[int | None]:
    return [source.header.instance_number for source in stack.frames]


# Order and orientation


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL], ids=["axial", "sagittal", "coronal"])
@pytest.mark.parametrize("sign", [1, -1], ids=["ascending", "descending"])
def test_order_is_along_the_normal(orientation: tuple[float, ...], sign: int) -> None:
    """ASM-22, ASM-36: numbering up or down, the frames lie in the direction of row x column."""
    stack = _only(split(_series([sign * 2.5 * n for n in range(12)], orientation)))
    assert np.all(np.diff(stack.geometry.distances_mm) > 0)
    assert _numbers(stack) == (list(range(1, 13)) if sign > 0 else list(range(12, 0, -1)))
    assert stack.geometry.lattice is Lattice.REGULAR
    assert stack.geometry.step_mm == pytest.approx(2.5)


def test_lying_slice_location_and_instance_number_decide_nothing() -> None:
    """ASM-22: shuffled instance numbers change neither order nor outcome; SliceLocation is not even read."""
    headers = _series([3.0 * n for n in range(10)])
    shuffled = [replace(header, instance_number=(7 * n) % 10) for n, header in enumerate(headers)]
    stack = _only(split(shuffled))
    assert [f.sop_instance_uid for f in stack.frames] == [h.sop_instance_uid for h in headers]


def test_prone_feet_first() -> None:
    """ASM-36: the patient's position in the scanner is in the cosines; nothing else is asked."""
    stack = _only(split(_series([2.0 * n for n in range(8)], (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0))))
    assert stack.geometry.normal == pytest.approx((0.0, 0.0, -1.0))
    assert stack.geometry.lattice is Lattice.REGULAR


def test_rows_and_columns_that_differ_and_pixels_that_are_not_square() -> None:
    """ASM-36."""
    headers = _series([1.0 * n for n in range(5)], frame={"pixel_spacing_mm": (0.9, 0.4)}, rows=200, columns=320)
    geometry = _only(split(headers)).geometry
    assert (geometry.rows, geometry.columns) == (200, 320)
    assert geometry.pixel_spacing_mm == pytest.approx((0.9, 0.4))


ROTATIONS = [
    np.array([[s if p == c else 0.0 for c in range(3)] for p, s in zip(permutation, signs, strict=True)])
    for permutation in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
TWENTY_FOUR = [matrix for matrix in ROTATIONS if np.linalg.det(matrix) > 0]


@pytest.mark.parametrize("turn", TWENTY_FOUR, ids=range(24))
def test_twenty_four_orientations(turn: np.ndarray) -> None:
    """ASM-36: turning patient and planes together changes no distance, no step, no tilt and no order."""
    distances = [0.0, 3.0, 6.0, 9.0, 12.0, 15.0]
    plain = _only(split(_series(distances, aside=lambda d: (0.0, 0.2 * d, 0.0)))).geometry
    turned = []
    for number, d in enumerate(distances, start=1):
        position = turn @ np.array([0.0, 0.2 * d, d])
        cosines = (*(turn @ [1.0, 0.0, 0.0]), *(turn @ [0.0, 1.0, 0.0]))
        turned.append(_header([_frame(position, orientation=cosines)], number))
    stack = _only(split(turned))
    assert _numbers(stack) == [1, 2, 3, 4, 5, 6]
    assert stack.geometry.distances_mm == pytest.approx(plain.distances_mm)
    assert stack.geometry.tilt_deg == pytest.approx(plain.tilt_deg)
    assert stack.geometry.lattice is plain.lattice is Lattice.SHEARED


def test_oblique() -> None:
    """ASM-36: a double oblique scan with rounded cosines and positions is regular."""
    a, b = math.radians(23.0), math.radians(-11.0)
    row = np.array([math.cos(a), math.sin(a), 0.0])
    column = np.array([-math.sin(a) * math.cos(b), math.cos(a) * math.cos(b), math.sin(b)])
    cosines = tuple(round(float(x), 6) for x in (*row, *column))
    normal = np.cross(row, column)
    headers = [_header([_frame(np.round(normal * 1.25 * n, 3), orientation=cosines)], n + 1) for n in range(60)]
    geometry = _only(split(headers)).geometry
    assert geometry.lattice is Lattice.REGULAR
    assert geometry.step_mm == pytest.approx(1.25, abs=2e-3)
    assert geometry.tilt_deg < 0.01


# Cosines


@pytest.mark.parametrize(("scale", "mended"), [(1.0005, True), (0.9995, True), (0.99, False), (1.01, False)])
def test_length_of_cosines(scale: float, mended: bool) -> None:
    """ASM-30: off by up to 0.1 % is mended and flagged, more is refused."""
    orientation = (scale, 0.0, 0.0, 0.0, 1.0, 0.0)
    parts = split(_series([2.0 * n for n in range(6)], orientation))
    if not mended:
        assert _misfit(parts).reason == "bad_orientation"
        return
    stack = _only(parts)
    assert "orientation_corrected" in stack.flags
    assert np.linalg.norm(stack.geometry.row_direction) == pytest.approx(1.0)


@pytest.mark.parametrize(("skew_deg", "mended"), [(0.04, True), (1.0, False)])
def test_skewed_cosines(skew_deg: float, mended: bool) -> None:
    """ASM-30."""
    skew = math.radians(skew_deg)
    parts = split(_series([2.0 * n for n in range(6)], (1.0, 0.0, 0.0, math.sin(skew), math.cos(skew), 0.0)))
    if mended:
        geometry = _only(parts).geometry
        assert np.dot(geometry.row_direction, geometry.column_direction) == pytest.approx(0.0, abs=1e-12)
    else:
        assert _misfit(parts).reason == "bad_orientation"


# Steps


@pytest.mark.parametrize("digits", [3, 2, 1])
def test_rounded_positions_are_uniform(digits: int) -> None:
    """ASM-31: positions rounded to a tenth of a millimetre are still one step."""
    stack = _only(split(_series([round(0.7 * n, digits) for n in range(200)])))
    assert stack.geometry.lattice is Lattice.REGULAR
    assert stack.flags == ()


@pytest.mark.parametrize(
    ("jitter_mm", "lattice", "flags"),
    [
        (0.04, Lattice.REGULAR, ()),
        (0.2, Lattice.UNEVEN, ("jitter", "resampled")),
        (0.45, Lattice.UNEVEN, ("jitter", "resampled")),
        (0.8, Lattice.UNEVEN, ("uneven", "resampled")),
    ],
)
def test_jitter_sweep(jitter_mm: float, lattice: Lattice, flags: tuple[str, ...]) -> None:
    """ASM-31: up to 1 % of the step is uniform, up to 10 % is resampled; beyond, it is uneven where no slice lacks."""
    wobble = [0.0, 0.0, jitter_mm, -jitter_mm, 0.0, jitter_mm, 0.0, -jitter_mm, 0.0, 0.0]
    stack = _only(split(_series([5.0 * n + wobble[n] for n in range(10)])))
    assert (stack.geometry.lattice, stack.flags) == (lattice, flags)


def test_spacing_is_measured_not_read() -> None:
    """ASM-32: thickness 5 and a wrong SpacingBetweenSlices beside steps of 2.5."""
    headers = _series([2.5 * n for n in range(9)], slice_thickness_mm=5.0, spacing_between_slices_mm=7.0)
    assert _only(split(headers)).geometry.step_mm == pytest.approx(2.5)


@pytest.mark.parametrize("lost", [[4], [3, 4, 5, 6, 7]], ids=["one", "five"])
def test_missing_slices_are_named(lost: list[int]) -> None:
    """ASM-31, ASM-4: how many, where along the normal, between which instances, and which numbers."""
    kept = [header for header in _series([5.0 * n for n in range(20)]) if header.instance_number - 1 not in lost]
    part = _misfit(split(kept))
    assert part.reason == "missing_slices"
    assert not part.quarantined
    assert f"{len(lost)} slice" in part.detail
    assert f"{5.0 * lost[0]:.2f}" in part.detail
    assert f"between instance {lost[0]} at" in part.detail
    lacking = (
        f"instance {lost[0] + 1} lacking" if len(lost) == 1 else f"instance {lost[0] + 1} to {lost[-1] + 1} lacking"
    )
    assert lacking in part.detail


def test_missing_slices_at_the_end_cannot_be_seen() -> None:
    """ASM-4: the grid alone does not know where the scan should have ended."""
    assert len(_only(split(_series([5.0 * n for n in range(17)]))).frames) == 17


def test_two_gaps_are_both_named() -> None:
    kept = [h for h in _series([1.5 * n for n in range(30)]) if h.instance_number not in (8, 21, 22)]
    detail = _misfit(split(kept)).detail
    assert detail.startswith("3 slices missing")
    assert "10.50 mm" in detail
    assert "30.00, 31.50 mm" in detail


def test_largest_block_and_across_gaps() -> None:
    """ASM-4: the two policies beside refusal; every frame is accounted for, and the result is flagged as partial."""
    kept = [h for h in _series([2.0 * n for n in range(20)]) if h.instance_number != 7]
    part = _misfit(split(kept))
    block = largest_block(part)
    assert isinstance(block, Stack)
    assert _numbers(block) == list(range(8, 21))
    assert block.geometry.lattice is Lattice.REGULAR
    assert "partial" in block.flags
    assert {d.reason for d in block.dropped} == {"outside_largest_block"}
    assert len(block.frames) + len(block.dropped) == len(kept)
    whole = across_gaps(part)
    assert isinstance(whole, Stack)
    assert len(whole.frames) == len(kept)
    assert whole.geometry.lattice is Lattice.UNEVEN
    assert "partial" in whole.flags


def test_bed_overlap_and_variable_thickness_are_uneven_not_missing() -> None:
    """ASM-35: 4 mm slices, an overlap of the table feeds, then 7 mm slices, as scanners of the head do."""
    thin = [4.0 * n for n in range(14)]
    thick = [thin[-1] + 1.1 + 7.0 * n for n in range(14)]
    headers = _series(thin, slice_thickness_mm=4.0) + _series(thick, slice_thickness_mm=7.0)
    stack = _only(split(headers))
    assert stack.geometry.lattice is Lattice.UNEVEN
    extents = stack.geometry.slice_extents_mm
    assert extents[0] == pytest.approx(4.0)
    assert extents[13] == pytest.approx((4.0 + 1.1) / 2)
    assert extents[-1] == pytest.approx(7.0)
    assert sum(extents) == pytest.approx(thick[-1] + (4.0 + 7.0) / 2)


def test_thick_slices_that_touch_are_not_missing_ones() -> None:
    """ASM-32, ASM-35: 3 mm, then 6 mm: a step of just two usual ones, but SliceThickness says that nothing lacks."""
    positions = [3.0 * n for n in range(14)] + [39.0 + 4.5 + 6.0 * n for n in range(6)]
    thin, thick = _series(positions[:14], slice_thickness_mm=3.0), _series(positions[14:], slice_thickness_mm=6.0)
    assert _only(split(thin + thick)).geometry.lattice is Lattice.UNEVEN
    assert _misfit(split(_series(positions, slice_thickness_mm=3.0))).reason == "missing_slices"


@pytest.mark.parametrize("thickness", [2.5, 5.0, 7.5, None])
@pytest.mark.parametrize("lost", [[1], [12], [12, 13], [5, 20]], ids=["near the end", "one", "two", "twice"])
def test_a_lost_slice_is_missed_where_slices_overlap(lost: list[int], thickness: float | None) -> None:
    """ASM-4, ASM-31: slices of twice the step touch across a lost one, which is no reason for the wide step."""
    whole = _series([2.5 * n for n in range(30)], slice_thickness_mm=thickness)
    part = _misfit(split([header for header in whole if header.instance_number - 1 not in lost]))
    assert part.reason == "missing_slices"
    assert part.detail.startswith(f"{len(lost)} slice")
    assert f"{2.5 * lost[0]:.2f}" in part.detail


def test_a_lost_slice_is_missed_where_slices_overlap_and_grow_thicker() -> None:
    """ASM-31: 5 mm slices every 2.5 mm, then 10 mm slices every 5 mm: complete it is uneven, and a hole is seen."""
    positions = [2.5 * n for n in range(20)] + [47.5 + 5.0 * n for n in range(1, 10)]
    headers = _series(positions[:20], slice_thickness_mm=5.0) + _series(positions[20:], slice_thickness_mm=10.0)
    grown = [replace(header, instance_number=n) for n, header in enumerate(headers)]
    grown[19] = replace(grown[19], slice_thickness_mm=10.0)
    assert _only(split(grown)).geometry.lattice is Lattice.UNEVEN
    for lost in (8, 24):
        assert _misfit(split(grown[:lost] + grown[lost + 1 :])).reason == "missing_slices"


def test_variable_thickness_without_the_tag_is_uneven_where_steps_are_no_multiple() -> None:
    """ASM-35: a run of equal wide steps of 1.75 usual ones is a second table feed, not a row of lost slices."""
    positions = [4.0 * n for n in range(14)] + [52.0 + 7.0 * n for n in range(1, 8)]
    assert _only(split(_series(positions))).geometry.lattice is Lattice.UNEVEN


def test_one_plane_is_no_volume() -> None:
    """ASM-38."""
    assert _misfit(split(_series([0.0]))).reason == "single_slice"


def test_planes_aside_of_each_other() -> None:
    """ASM-31: planes that jump about inside themselves are no scan."""
    jump = {4.0: 30.0, 8.0: -12.0}
    parts = split(_series([4.0 * n for n in range(6)], aside=lambda d: (jump.get(d, 0.0), 0.0, 0.0)))
    assert _misfit(parts).reason == "irregular_spacing"


# Tilt


@pytest.mark.parametrize("tilt_deg", [13.5, -13.5, 0.2])
@pytest.mark.parametrize("tag", [None, 0.0, -40.0])
def test_tilt_comes_from_positions(tilt_deg: float, tag: float | None) -> None:
    """ASM-33: GantryDetectorTilt may be wrong or absent."""
    slope = math.tan(math.radians(tilt_deg))
    headers = _series([3.0 * n for n in range(40)], aside=lambda d: (0.0, slope * d, 0.0), gantry_tilt_deg=tag)
    stack = _only(split(headers))
    assert stack.geometry.tilt_deg == pytest.approx(abs(tilt_deg), abs=1e-6)
    assert stack.geometry.lattice is Lattice.SHEARED
    assert stack.geometry.step_mm == pytest.approx(3.0)
    assert set(stack.flags) == {"tilted", "resampled"}


def test_a_tilt_below_a_tenth_of_a_degree_is_none() -> None:
    """ASM-34."""
    slope = math.tan(math.radians(0.05))
    stack = _only(
        split(_series([3.0 * n for n in range(40)], aside=lambda d: (0.0, slope * d, 0.0), gantry_tilt_deg=20.0))
    )
    assert stack.geometry.lattice is Lattice.REGULAR


# Hard keys


def test_scout_in_the_series() -> None:
    """ASM-11, ASM-52: an overview of another size and image type beside the slices."""
    scout = _header(
        [_frame(orientation=CORONAL, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))], 0, rows=256, columns=900
    )
    parts = split([scout, *_series([2.0 * n for n in range(10)])])
    assert [len(part.frames) for part in _stacks(parts)] == [10]
    (other,) = (part for part in parts if isinstance(part, Unstackable))
    assert (other.reason, len(other.frames)) == ("localizer", 1)


def test_overview_of_another_size_without_a_word_is_a_part_of_its_own() -> None:
    """ASM-11: some cone-beam scanners put a larger picture at the end."""
    odd = _header([_frame((0.0, 0.0, 90.0))], 99, rows=700, columns=700)
    parts = split([odd, *_series([2.0 * n for n in range(10)])])
    assert sorted(len(part.frames) for part in parts) == [1, 10]
    assert [part.reason for part in parts if isinstance(part, Unstackable)] == ["single_slice"]


def test_three_planes_in_one_series() -> None:
    """ASM-12: three orientations are three stacks; told by their cosines."""
    headers = [h for plane in (AXIAL, SAGITTAL, CORONAL) for h in _series([15.0 * n for n in range(7)], plane)]
    stacks = _stacks(split(headers))
    assert [len(stack.frames) for stack in stacks] == [7, 7, 7]
    assert all("ImageOrientationPatient" in stack.keys for stack in stacks)


@pytest.mark.parametrize(("off", "parts"), [(1e-6, 1), (5e-4, 1), (3e-3, 2)])
def test_rounding_of_cosines_does_not_split(off: float, parts: int) -> None:
    """ASM-12: cosines within 1e-3 are one orientation."""
    turned = (math.cos(off), math.sin(off), 0.0, -math.sin(off), math.cos(off), 0.0)
    headers = _series([0.0, 4.0, 8.0]) + _series([2.0, 6.0, 10.0], turned)
    assert len(_stacks(split(headers))) == parts


@pytest.mark.parametrize(("spacing", "parts"), [(0.7003, 1), (0.8, 2)])
def test_two_fields_of_view(spacing: float, parts: int) -> None:
    """ASM-13."""
    headers = _series([0.0, 4.0, 8.0]) + _series([2.0, 6.0, 10.0], frame={"pixel_spacing_mm": (spacing, spacing)})
    assert len(_stacks(split(headers))) == parts


def test_dixon_four_in_one() -> None:
    """ASM-14: tokens are matched wherever they stand in ImageType."""
    kinds = (("W", "ND"), ("ND", "F"), ("IN_PHASE", "NORM"), ("NORM", "DIXON", "OPP_PHASE"))
    headers = [
        h for kind in kinds for h in _mr([3.0 * n for n in range(5)], image_type=("ORIGINAL", "PRIMARY", "M", *kind))
    ]
    stacks = _stacks(split(headers))
    assert sorted(stack.keys["ImageType"] for stack in stacks) == [
        "MAGNITUDE FAT ORIGINAL",
        "MAGNITUDE IN_PHASE ORIGINAL",
        "MAGNITUDE OPPOSED_PHASE ORIGINAL",
        "MAGNITUDE WATER ORIGINAL",
    ]


def test_magnitude_and_phase() -> None:
    """ASM-14, ASM-21."""
    headers = _mr([0.0, 3.0, 6.0]) + _mr([0.0, 3.0, 6.0], image_type=("ORIGINAL", "PRIMARY", "P", "ND"))
    assert len(_stacks(split(headers))) == 2


def test_words_of_one_scanner_that_say_nothing_do_not_split() -> None:
    """ASM-14: AXIAL beside AXIAL\\ADD is one scan."""
    added = {"image_type": ("ORIGINAL", "PRIMARY", "AXIAL", "ADD")}
    headers = _series([0.0, 4.0, 8.0]) + _series([12.0, 16.0], frame=added)
    assert len(_only(split(headers)).frames) == 5


# Conditional keys


def _interleaved(values: Sequence[dict[str, object]], count: int = 6, mr: bool = True) -> list[InstanceHeader]:
    build = _mr if mr else lambda distances, **changes: _series(distances, frame=changes)
    headers = [h for value in values for h in build([3.0 * n for n in range(count)], **value)]
    return sorted(headers, key=lambda h: h.frames[0].position_mm or ())


@pytest.mark.parametrize(
    ("values", "key", "mr"),
    [
        ([{"echo_time": 7.001}, {"echo_time": 10.0}], "EchoTime", True),
        ([{"inversion_time": 400.0}, {"inversion_time": 900.0}], "InversionTime", True),
        ([{"flip_angle": 5.0}, {"flip_angle": 26.0}], "FlipAngle", True),
        ([{"repetition_time": 15.0}, {"repetition_time": 40.0}], "RepetitionTime", True),
        ([{"temporal_position": str(n)} for n in (1, 2, 3)], "TemporalPosition", True),
        ([{"cardiac_phase": 10.0 * n} for n in range(4)], "NominalPercentageOfCardiacPhase", True),
        ([{"b_value": 0.0}, {"b_value": 800.0}], "DiffusionBValue", True),
        ([{"stack_id": "1"}, {"stack_id": "2"}], "StackID", True),
        ([{"kvp": 80.0}, {"kvp": 140.0}], "KVP", False),
        ([{"convolution_kernel": "B30f"}, {"convolution_kernel": "B70f"}], "ConvolutionKernel", False),
        ([{"contrast": "ARTERIAL"}, {"contrast": "VENOUS"}], "Contrast", False),
        ([{"energy": "50 keV"}, {"energy": "70 keV"}], "MultienergyCT", False),
        ([{"coil": "H1"}, {"coil": "H2"}], "ReceiveCoilName", True),
        ([{"acquisition_number": "1"}, {"acquisition_number": "2"}], "AcquisitionNumber", False),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_conditional_key(values: list[dict[str, object]], key: str, mr: bool) -> None:
    """ASM-15 to ASM-21: colliding positions are told apart by the one attribute that differs."""
    stacks = _stacks(split(_interleaved(values, mr=mr)))
    assert len(stacks) == len(values)
    assert all(set(stack.keys) == {key} for stack in stacks)
    assert all(len(stack.frames) == 6 for stack in stacks)


def test_conditional_keys_do_not_split_what_does_not_collide() -> None:
    """ASM-18: one scan in many acquisitions stays whole."""
    headers = [
        replace(h, frames=(replace(h.frames[0], acquisition_number=str(n // 3), exposure=100.0 + n),))
        for n, h in enumerate(_series([2.0 * n for n in range(12)]))
    ]
    assert len(_only(split(headers)).frames) == 12


def test_overlapping_acquisitions_are_split() -> None:
    """ASM-18: two helical runs that overlap by two slices."""
    first = _series([2.0 * n for n in range(8)], frame={"acquisition_number": "1"})
    second = _series([12.0 + 2.0 * n for n in range(8)], frame={"acquisition_number": "2"})
    stacks = _stacks(split(first + second))
    assert [len(stack.frames) for stack in stacks] == [8, 8]
    assert [stack.keys["AcquisitionNumber"] for stack in stacks] == ["1", "2"]


def test_echo_times_with_noise_are_one_echo() -> None:
    """ASM-15: echo times within 0.1 ms are one cluster."""
    headers = [
        replace(h, frames=(replace(h.frames[0], echo_time=(10.0 if n < 6 else 40.0) + 0.01 * (n % 3)),))
        for n, h in enumerate(_mr([3.0 * (n % 6) for n in range(12)]))
    ]
    assert [len(stack.frames) for stack in _stacks(split(headers))] == [6, 6]


def test_trigger_time_of_each_slice_splits_nothing() -> None:
    """ASM-16: ungated scans have another trigger time on every slice; here the echo tells two stacks apart."""
    values = [{"echo_time": 5.0}, {"echo_time": 50.0}]
    headers = [
        replace(h, frames=(replace(h.frames[0], trigger_time=13.0 * n),)) for n, h in enumerate(_interleaved(values))
    ]
    stacks = _stacks(split(headers))
    assert [set(stack.keys) for stack in stacks] == [{"EchoTime"}, {"EchoTime"}]


def test_phases_by_acquisition_time_clusters() -> None:
    """ASM-16: four passes of contrast, a time of its own on every slice, minutes between the passes."""
    headers = []
    for phase in range(4):
        for n in range(10):
            seconds = phase * 120 + n * 2
            time = f"10{seconds // 60:02d}{seconds % 60:02d}.500000"
            headers += _mr([3.0 * n], acquisition_time=time)
    stacks = _stacks(split(headers))
    assert [len(stack.frames) for stack in stacks] == [10, 10, 10, 10]
    assert all(set(stack.keys) == {"AcquisitionTime"} for stack in stacks)


def test_diffusion_directions() -> None:
    """ASM-17: b0 and two directions of one shell."""
    values: list[dict[str, object]] = [
        {"b_value": 0.0},
        {"b_value": 800.0, "gradient": (1.0, 0.0, 0.0)},
        {"b_value": 800.0, "gradient": (0.0, 1.0, 0.0)},
    ]
    stacks = _stacks(split(_interleaved(values)))
    assert sorted((stack.frames[0].frame.b_value or 0.0) for stack in stacks) == [0.0, 800.0, 800.0]


def test_two_keys_where_one_is_not_enough() -> None:
    """The smallest set of keys: two echoes in two inversions need both."""
    values: list[dict[str, object]] = [
        {"echo_time": echo, "inversion_time": inversion} for echo in (5.0, 10.0) for inversion in (400.0, 900.0)
    ]
    stacks = _stacks(split(_interleaved(values)))
    assert len(stacks) == 4
    assert all(set(stack.keys) == {"EchoTime", "InversionTime"} for stack in stacks)


def test_exposure_that_follows_the_body_is_no_key() -> None:
    """ASM-20: tube current modulation makes places unique by chance; scattered frames are no scans."""
    headers = [
        replace(h, frames=(replace(h.frames[0], exposure=60.0 + 3.0 * ((n + lag) % 10), contrast=phase),))
        for phase, lag in (("ARTERIAL", 0), ("VENOUS", 5))
        for n, h in enumerate(_series([2.0 * n for n in range(40)]))
    ]
    stacks = _stacks(split(headers))
    assert [set(stack.keys) for stack in stacks] == [{"Contrast"}, {"Contrast"}]


def test_enhanced_two_stacks_three_phases() -> None:
    """ASM-19: stack and phase of one multi-frame object, from its dimensions alone."""
    frames = [
        _frame(
            (0.0, 0.0, 4.0 * place), number=n, stack_id=str(stack), dimension_index=(stack, place + 1, phase),
            image_type=("ORIGINAL", "PRIMARY", "VOLUME", "NONE"),
        )
        for n, (stack, phase, place) in enumerate(itertools.product((1, 2), (1, 2, 3), range(5)), start=1)
    ]  # fmt: skip
    header = _header(frames, modality="MR", sop_class_uid=MR + ".1")
    stacks = _stacks(split([header]))
    assert [len(stack.frames) for stack in stacks] == [5] * 6


def test_frames_that_nothing_tells_apart_are_quarantined() -> None:
    """REQUIREMENTS 2.3: InstanceNumber is never a key, so a time series that says nothing else is in doubt."""
    part = _misfit(split(_interleaved([{}, {}, {}])))
    assert (part.reason, part.quarantined, len(part.frames)) == ("ambiguous", True, 18)
    assert "18 frames at 6 positions" in part.detail


# Doubles


def test_slices_sent_twice_are_dropped_with_digests() -> None:
    """ASM-23: ten of twenty slices sent again under new UIDs."""
    headers = _series([2.0 * n for n in range(20)])
    again = [replace(h, sop_instance_uid=f"{h.sop_instance_uid}.9") for h in headers[5:15]]
    doubtful = split([*headers, *again])
    assert _misfit(doubtful).reason == "ambiguous"
    digests = {(f.sop_instance_uid, f.frame.number): str(f.frame.position_mm) for f in ambiguous_frames(doubtful)}
    stack = _only(split([*again, *headers], digests))
    assert len(stack.frames) == 20
    assert len(stack.dropped) == 10
    assert {d.reason for d in stack.dropped} == {"duplicate_position"}


def test_equal_pixels_of_two_echoes_are_no_doubles() -> None:
    """ASM-23: the black slice at the end of both echoes stays in both."""
    headers = _interleaved([{"echo_time": 5.0}, {"echo_time": 50.0}])
    black = {(h.sop_instance_uid, 1): "black" for h in headers}
    stacks = _stacks(split(headers, black))
    assert [len(stack.frames) for stack in stacks] == [6, 6]
    assert all(not stack.dropped for stack in stacks)


def test_other_pixels_at_one_place_stay_in_doubt() -> None:
    """ASM-23: only equal pixels are dropped."""
    headers = _series([2.0 * n for n in range(6)])
    other = replace(headers[2], sop_instance_uid="1.2.9.9")
    digests = {(h.sop_instance_uid, 1): h.sop_instance_uid for h in [*headers, other]}
    assert _misfit(split([*headers, other], digests)).reason == "ambiguous"


# The whole series in doubt


@pytest.mark.parametrize(
    "change",
    [
        {"identity": replace(PATIENT, patient_id="P2")},
        {"identity": replace(PATIENT, name="Doe^John")},
        {"identity": replace(PATIENT, birth_date="19700102")},
        {"study_instance_uid": "1.2.99"},
    ],
)
def test_one_foreign_slice_quarantines_the_series(change: dict[str, object]) -> None:
    """ASM-8: and the reason never holds a patient's value."""
    headers = _series([2.0 * n for n in range(8)])
    headers[3] = replace(headers[3], **change)  # type: ignore[arg-type]
    part = _misfit(split(headers))
    assert (part.reason, part.quarantined, len(part.frames)) == ("identity_mismatch", True, 8)
    assert not any(value in part.detail for value in ("P1", "P2", "Doe", "1970", "1.2.99"))


def test_two_objects_under_one_uid_are_quarantined() -> None:
    """NET-12: which of the two is meant cannot be known."""
    headers = _series([2.0 * n for n in range(8)])
    twin = replace(headers[0], instance_number=77)
    assert _misfit(split([*headers, twin])).reason == "duplicate_uid"


# Exclusions


@pytest.mark.parametrize(
    ("reason", "quarantined", "frame", "header"),
    [
        ("own_result", False, {}, {"own_result": True}),
        ("secondary_capture", False, {}, {"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7"}),
        ("secondary_capture", False, {}, {"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7.4"}),
        ("sop_class", False, {}, {"sop_class_uid": "1.2.840.10008.5.1.4.1.1.128", "modality": "PT"}),
        ("modality", False, {}, {"modality": "MR"}),
        ("mosaic", False, {}, {"is_mosaic": True}),
        ("screen_save", False, {}, {"image_type": ("DERIVED", "SECONDARY", "SCREEN SAVE")}),
        ("dose_report", False, {}, {"image_type": ("DERIVED", "SECONDARY", "DOSE_INFO")}),
        ("localizer", False, {"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, {}),
        ("localizer", False, {}, {"series_description": "3-Plane Localizer"}),
        ("projection", False, {"image_type": ("DERIVED", "SECONDARY", "AXIAL", "MIP")}, {}),
        ("projection", False, {"image_type": ("DERIVED", "SECONDARY", "MPR")}, {}),
        ("pixel_length", True, {}, {"defects": ("pixel_length: 10 bytes where 20 belong",)}),
        ("frame_count", True, {}, {"defects": ("frame_count: 1 of 2 frames",)}),
        ("bits", True, {}, {"defects": ("bits: 17 stored in 16 with high bit 16",)}),
        ("modality_lut", False, {}, {"defects": ("modality_lut: a table",)}),
        ("float_pixels", False, {}, {"defects": ("float_pixels: floating point pixel data",)}),
        ("no_rescale", False, {}, {"defects": ("no_rescale: none",)}),
        ("colour", False, {}, {"samples_per_pixel": 3, "photometric_interpretation": "RGB"}),
        ("photometric", False, {}, {"photometric_interpretation": "MONOCHROME1"}),
        ("photometric", False, {}, {"photometric_interpretation": "PALETTE COLOR"}),
        ("rescale_type", False, {"rescale_type": "US"}, {}),
        ("rescale_type", False, {"rescale_type": "MGML"}, {}),
        ("material_map", False, {"energy": "Iodine"}, {}),
        ("material_map", False, {"image_type": ("DERIVED", "PRIMARY", "AXIAL", "EFF_ATOMIC_NUM")}, {}),
        ("no_position", False, {"position_mm": None}, {}),
        ("no_pixel_spacing", False, {"pixel_spacing_mm": None}, {}),
        ("bad_orientation", False, {"orientation": None}, {}),
    ],
)
def test_exclusions(reason: str, quarantined: bool, frame: dict[str, object], header: dict[str, object]) -> None:
    """ASM-30, ASM-40, ASM-42, ASM-43, ASM-45, ASM-52, SEC-6, NET-36: one fixture for each."""
    headers = [
        replace(h, frames=(replace(h.frames[0], **frame),), **header)  # type: ignore[arg-type]
        for h in _series([2.0 * n for n in range(5)])
    ]
    part = _misfit(split(headers))
    assert (part.reason, part.quarantined, len(part.frames)) == (reason, quarantined, 5)
    assert part.detail


CUT = ("pixel_length: 10 bytes where 20 belong",)


@pytest.mark.parametrize("at", [0, 5, 11], ids=["first", "inside", "last"])
@pytest.mark.parametrize("defect", [CUT, ("no_rescale: none",), ("transfer_syntax: 1.2 is not read",)])
def test_a_slice_that_cannot_be_used_leaves_a_gap(at: int, defect: tuple[str, ...]) -> None:
    """ASM-4, ASM-40: at the end of a scan too, where positions alone cannot show it; the slice is named."""
    headers = _series([2.0 * n for n in range(12)])
    headers[at] = replace(headers[at], defects=defect)
    gapped, broken = split(headers)
    assert isinstance(gapped, Unstackable)
    assert (gapped.reason, len(gapped.frames), len(broken.frames)) == ("missing_slices", 11, 1)
    assert f"instance {at + 1} ({defect[0]})" in gapped.detail
    across, block = across_gaps(gapped), largest_block(gapped)
    assert isinstance(across, Stack)
    assert isinstance(block, Stack)
    assert (len(across.frames), len(block.frames)) == (11, 6 if at == 5 else 11)
    assert "partial" in across.flags
    assert "partial" in block.flags


def test_an_unread_header_leaves_a_gap_in_every_scan() -> None:
    """ASM-4: nobody knows where the slice would lie."""
    headers = _interleaved([{"echo_time": 5.0}, {"echo_time": 50.0}])
    parts = split(headers, unread=["1.2.9"])
    assert [part.reason for part in parts if isinstance(part, Unstackable)] == ["missing_slices"] * 2
    assert all("1.2.9" in part.detail for part in parts if isinstance(part, Unstackable))


def test_a_header_that_ends_before_the_rows_leaves_a_gap() -> None:
    """ASM-40: cut between two elements, so that the listener could not see it."""
    headers = _series([2.0 * n for n in range(12)])
    bare = replace(headers[11].frames[0], pixel_spacing_mm=None)
    headers[11] = replace(headers[11], rows=0, columns=0, samples_per_pixel=0, frames=(bare,))
    gapped, broken = split(headers)
    assert isinstance(gapped, Unstackable)
    assert isinstance(broken, Unstackable)
    assert (gapped.reason, broken.reason, broken.quarantined) == ("missing_slices", "no_pixel_data", True)


def test_a_broken_slice_whose_place_is_taken_leaves_none() -> None:
    """The sender made it again, under another UID."""
    headers = _series([2.0 * n for n in range(12)])
    broken = replace(headers[11], sop_instance_uid="1.2.9", defects=CUT)
    assert [len(stack.frames) for stack in _stacks(split([*headers, broken]))] == [12]


@pytest.mark.parametrize(
    "change",
    [{"rows": 64}, {"frame_of_reference_uid": "1.9"}, {"series_description": "Localizer"}],
)
def test_a_broken_image_of_another_kind_leaves_none(change: dict[str, object]) -> None:
    headers = _series([2.0 * n for n in range(12)])
    stray = replace(_series([24.0])[0], defects=CUT, **change)  # type: ignore[arg-type]
    assert len(_stacks(split([*headers, stray]))) == 1


def test_a_broken_slice_leaves_a_gap_in_its_own_echo_alone() -> None:
    headers = _interleaved([{"echo_time": 5.0}, {"echo_time": 50.0}])
    last = max((h for h in headers if h.frames[0].echo_time == 50.0), key=lambda h: h.frames[0].position_mm or ())
    parts = split([replace(h, defects=CUT) if h is last else h for h in headers])
    assert [stack.frames[0].frame.echo_time for stack in _stacks(parts)] == [5.0]
    assert [part.reason for part in parts if isinstance(part, Unstackable)] == ["missing_slices", "pixel_length"]


def test_a_page_without_a_place_leaves_none() -> None:
    """A page of text in the class of CT: no rescale, no position, and nobody's slice."""
    headers = _series([2.0 * n for n in range(12)])
    page = replace(_series([0.0])[0], defects=("no_rescale: none",), frames=(_frame(position_mm=None),))
    assert len(_stacks(split([*headers, page]))) == 1


def test_doubles_beside_a_gap_are_not_taken_twice() -> None:
    """ASM-4, ASM-23."""
    headers = _series([2.0 * n for n in range(12) if n != 6])
    again = [replace(h, sop_instance_uid=f"{h.sop_instance_uid}.9") for h in headers[2:5]]
    digests = {(h.sop_instance_uid, 1): str(h.frames[0].position_mm) for h in [*headers, *again]}
    gapped = _misfit(split([*headers, *again], digests))
    assert (gapped.reason, len(gapped.frames), len(gapped.dropped)) == ("missing_slices", 11, 3)
    for taken, dropped in ((across_gaps(gapped), 3), (largest_block(gapped), 8)):
        assert isinstance(taken, Stack)
        assert len(set(taken.geometry.distances_mm)) == len(taken.frames)
        assert len(taken.dropped) == dropped


def test_secondary_alone_never_excludes() -> None:
    """ASM-52: DERIVED\\SECONDARY\\AXIAL of a cropped MR is a scan."""
    headers = _mr([1.0 * n for n in range(32)], image_type=("DERIVED", "SECONDARY", "AXIAL"))
    assert _only(split(headers)).geometry.lattice is Lattice.REGULAR


def test_virtual_monoenergetic_images_are_hounsfield_units() -> None:
    """ASM-43: 70 keV are HU, an iodine map is not."""
    headers = _series([2.0 * n for n in range(5)], frame={"energy": "70 keV", "rescale_type": "HU"})
    assert len(_only(split(headers)).frames) == 5


def test_mr_may_be_monochrome1_and_have_any_rescale_type() -> None:
    """ASM-45, ASM-46."""
    headers = [replace(h, photometric_interpretation="MONOCHROME1") for h in _mr([0.0, 2.0, 4.0], rescale_type="US")]
    assert len(_only(split(headers)).frames) == 3


def test_lossy_is_flagged() -> None:
    """R12: what a lossy source must be said of."""
    assert "lossy" in _only(split(_series([0.0, 2.0, 4.0], lossy=True))).flags


# Properties

_distances = st.lists(st.integers(0, 60), min_size=1, max_size=14, unique=True)
_kinds = st.sampled_from(
    [
        {},
        {"echo_time": 5.0},
        {"echo_time": 50.0},
        {"orientation": SAGITTAL},
        {"pixel_spacing_mm": (1.1, 1.1)},
        {"position_mm": None},
        {"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")},
        {"orientation": (2.0, 0.0, 0.0, 0.0, 1.0, 0.0)},
    ]
)


@st.composite
def _any_series(draw: st.DrawFn) -> list[InstanceHeader]:
    headers = []
    for kind in draw(st.lists(_kinds, min_size=1, max_size=4)):
        for n in draw(_distances):
            one = replace(_frame((0.0, 0.0, 2.0 * n)), **kind)  # type: ignore[arg-type]
            if one.orientation == SAGITTAL:
                one = replace(one, position_mm=(2.0 * n, 0.0, 0.0))
            headers.append(_header([one], n))
    return headers


@settings(max_examples=80, deadline=None)
@given(headers=_any_series(), data=st.data())
def test_every_frame_ends_once_and_order_of_arrival_changes_nothing(
    headers: list[InstanceHeader], data: st.DataObject
) -> None:
    """ASM-1, ASM-24, ASM-56."""
    digests = {
        (h.sop_instance_uid, 1): str(h.frames[0].position_mm) for h in headers if data.draw(st.booleans(), "digest")
    }
    parts = split(headers, digests)
    ended = [(f.sop_instance_uid, f.frame.number) for part in parts for f in part.frames]
    ended += [(d.sop_instance_uid, d.frame_number) for part in parts for d in part.dropped]
    assert sorted(ended) == sorted((h.sop_instance_uid, f.number) for h in headers for f in h.frames)
    shuffled = data.draw(st.permutations(headers))
    assert split(shuffled, digests) == parts


@settings(max_examples=60, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    step=st.floats(0.3, 12.0),
    count=st.integers(2, 40),
    shift=st.tuples(*[st.floats(-800.0, 800.0)] * 3),
)
def test_rigid_motion_changes_no_geometry(
    angles: tuple[float, float, float], step: float, count: int, shift: Vector
) -> None:
    """ASM-36: any rotation and shift of patient and planes together."""
    turn = _rotation(*angles)
    cosines = (*(turn @ [1.0, 0.0, 0.0]), *(turn @ [0.0, 1.0, 0.0]))
    headers = [
        _header([_frame(turn @ [0.0, 0.0, step * n] + np.array(shift), orientation=cosines)], n) for n in range(count)
    ]
    geometry = _only(split(headers)).geometry
    assert geometry.lattice is Lattice.REGULAR
    assert geometry.step_mm == pytest.approx(step, abs=1e-6)
    assert np.diff(geometry.distances_mm) == pytest.approx(step, abs=1e-6)


def _rotation(a: float, b: float, c: float) -> np.ndarray:
    x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    return z @ y @ x


def test_volume_id_is_of_what_the_stack_holds() -> None:
    """ASM-24: another frame, another id; another order, the same."""
    headers = _series([2.0 * n for n in range(5)])
    whole, again = _only(split(headers)), _only(split(headers[::-1]))
    assert whole.volume_id == again.volume_id
    assert whole.volume_id != _only(split(headers[:-1])).volume_id
