"""Volumes, edges, plausibility and numbers of segments."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.domain.findings import Outcome, Provenance, measure, readable_ml, segment_numbers
from node.domain.planes import Lattice, StackGeometry
from node.domain.segments import load_segments
from node.domain.stack import FrameLabels, Stack
from node.errors import ConfigError

SEGMENTS = load_segments((Path(__file__).parents[4] / "dicom_config" / "segments.csv").read_text(encoding="utf-8"))
PROVENANCE = Provenance("m", "1", "d" * 64, "torch", "float32", "CPU", "", "c" * 64, "0")
NAMES = {1: "body", 2: "liver", 3: "spleen", 4: "kidney_left"}


def stack(distances: list[float], rows: int = 10, columns: int = 12, **changes: object) -> Stack:
    """A stack of planes at given distances; 2 x 3 mm pixels."""
    steps = np.diff(distances)
    geometry = StackGeometry(
        rows=rows,
        columns=columns,
        pixel_spacing_mm=(2.0, 3.0),
        row_direction=(1.0, 0.0, 0.0),
        column_direction=(0.0, 1.0, 0.0),
        normal=(0.0, 0.0, 1.0),
        distances_mm=tuple(distances),
        step_mm=float(np.median(steps)) if len(steps) else 0.0,
        tilt_deg=0.0,
        lattice=Lattice.REGULAR,
    )
    return dataclasses.replace(Stack((), geometry, "0" * 64, {}), **changes)


def labelled(planes: int, *boxes: tuple[int, slice, slice, slice]) -> FrameLabels:
    """Labels that are zero but for boxes."""
    labels = np.zeros((planes, 10, 12), np.uint8)
    for label, *box in boxes:
        labels[tuple(box)] = label
    return FrameLabels(labels, NAMES)


INNER = slice(3, 6)


def test_volume_is_pixels_times_spacing_times_step() -> None:
    """ASM-37: 27 voxels of 2 x 3 x 5 mm."""
    found = measure(stack([5.0 * n for n in range(9)]), labelled(9, (2, INNER, INNER, INNER)), SEGMENTS, PROVENANCE)
    liver = found.findings[1]
    assert (liver.outcome, liver.voxels, liver.volume_ml) == (Outcome.MEASURED, 27, pytest.approx(27 * 0.03))


@given(st.lists(st.floats(0.5, 8.0), min_size=4, max_size=20))
def test_uneven_planes_count_by_their_share(steps: list[float]) -> None:
    """ASM-35: a cylinder through all planes is as long as the planes reach."""
    distances = [0.0, *np.cumsum(steps)]
    labels = labelled(len(distances), (2, slice(None), INNER, INNER))
    found = measure(stack(distances), labels, SEGMENTS, PROVENANCE).findings[1]
    extent = distances[-1] + steps[0] / 2 + steps[-1] / 2
    assert found.volume_ml == pytest.approx(9 * 6.0 * extent / 1000)


@pytest.mark.parametrize(
    ("box", "where"),
    [
        ((slice(0, 3), INNER, INNER), "the inferior end of the scan"),
        ((slice(6, 9), INNER, INNER), "the superior end of the scan"),
        ((INNER, slice(0, 2), INNER), "the border of the image"),
        ((INNER, slice(8, 10), INNER), "the border of the image"),
        ((INNER, INNER, slice(0, 2)), "the border of the image"),
        ((INNER, INNER, slice(10, 12)), "the border of the image"),
        ((slice(None), INNER, INNER), "the inferior end of the scan and the superior end of the scan"),
    ],
)
def test_what_touches_the_edge_is_partial(box: tuple[slice, slice, slice], where: str) -> None:
    """RES-6: the volume is a lower bound, and the reader is told which edge."""
    found = measure(stack([5.0 * n for n in range(9)]), labelled(9, (2, *box)), SEGMENTS, PROVENANCE).findings[1]
    assert found.outcome is Outcome.PARTIAL
    assert found.volume_ml is not None
    assert found.flags[0] == f"Reaches {where}; the volume is a lower bound."


def test_ends_are_named_by_the_normal() -> None:
    """A stack that runs from head to feet, and a sagittal one."""
    upside = stack([5.0 * n for n in range(9)])
    down = dataclasses.replace(upside, geometry=dataclasses.replace(upside.geometry, normal=(0.1, 0.0, -0.99)))
    right = dataclasses.replace(upside, geometry=dataclasses.replace(upside.geometry, normal=(-1.0, 0.0, 0.0)))
    labels = labelled(9, (2, slice(0, 3), INNER, INNER))
    assert "superior end" in measure(down, labels, SEGMENTS, PROVENANCE).findings[1].flags[0]
    assert "left end" in measure(right, labels, SEGMENTS, PROVENANCE).findings[1].flags[0]


def test_numbers_run_without_gaps_and_leave_out_what_is_not_reported() -> None:
    """RES-5, RES-6: body is not reported, spleen is absent."""
    labels = labelled(
        9, (1, slice(None), slice(None), slice(None)), (2, INNER, INNER, INNER), (4, INNER, INNER, slice(7, 9))
    )
    found = measure(stack([5.0 * n for n in range(9)]), labels, SEGMENTS, PROVENANCE, unreported={1})
    assert [(one.label, one.outcome, one.segment_number) for one in found.findings] == [
        (2, Outcome.MEASURED, 1),
        (3, Outcome.NOT_FOUND, None),
        (4, Outcome.MEASURED, 2),
    ]
    assert found.findings[1].volume_ml is None
    assert [one.label for one in found.present] == [2, 4]
    assert [int(n) for n in segment_numbers(found)[:6]] == [0, 0, 1, 0, 2, 0]


def test_implausible_volumes_are_flagged_and_kept() -> None:
    """RES-12: 0.8 mL of liver; a cut organ may be small."""
    whole = measure(stack([5.0 * n for n in range(9)]), labelled(9, (2, INNER, INNER, INNER)), SEGMENTS, PROVENANCE)
    assert whole.findings[1].flags == ("Outside the plausible range of 200 to 3500 mL; check the outline.",)
    assert whole.findings[1].volume_ml is not None
    cut = measure(stack([5.0 * n for n in range(9)]), labelled(9, (2, slice(0, 2), INNER, INNER)), SEGMENTS, PROVENANCE)
    assert len(cut.findings[1].flags) == 1


def test_a_single_plane_has_no_volume() -> None:
    """NOT_EVALUATED rather than 0 mL: there is no extent along the normal."""
    found = measure(stack([0.0]), labelled(1, (2, slice(None), INNER, INNER)), SEGMENTS, PROVENANCE).findings[1]
    assert (found.outcome, found.volume_ml, found.voxels, found.segment_number) == (Outcome.NOT_EVALUATED, None, 9, 1)


def test_flags_of_the_scan_are_sentences() -> None:
    """Words of the stack are told in full, each once; other flags as they are."""
    lossy = stack([5.0 * n for n in range(9)], flags=("lossy", "lossy"))
    found = measure(lossy, labelled(9), SEGMENTS, PROVENANCE, flags=("Something else.",))
    assert found.flags == ("The images went through lossy compression.", "Something else.")


def test_a_label_without_a_row_is_a_configuration_error() -> None:
    """At start every label must have its row; the message names the label."""
    labels = FrameLabels(np.zeros((9, 10, 12), np.uint8), {1: "pineal"})
    with pytest.raises(ConfigError, match="pineal"):
        measure(stack([5.0 * n for n in range(9)]), labels, SEGMENTS, PROVENANCE)


@pytest.mark.parametrize(
    ("volume_ml", "outcome", "shown"),
    [
        (1848.4, Outcome.MEASURED, "1848"),
        (42.26, Outcome.MEASURED, "42.3"),
        (1.234, Outcome.MEASURED, "1.23"),
        (0.002, Outcome.MEASURED, "< 0.01"),
        (117.3, Outcome.PARTIAL, ">= 117"),
        (0.002, Outcome.PARTIAL, "> 0"),
    ],
)
def test_volumes_for_people(volume_ml: float, outcome: Outcome, shown: str) -> None:
    """RES-12: a lower bound says that it is one, and what is there is never 0."""
    assert readable_ml(volume_ml, outcome) == shown


def test_results_say_of_the_engines_the_one_that_was_taken() -> None:
    made = dataclasses.replace(PROVENANCE, backend_reason="openvino: taken, certified; torch: failed in /some/where")
    assert made.choice == "openvino: taken, certified"
    assert dataclasses.replace(made, backend_reason="x" * 1000).choice == "x" * 197 + "..."
    assert PROVENANCE.choice == ""
    loose = dataclasses.replace(made, looser_limits="Dice at least 0.95 (default 0.995)")
    assert loose.choice.endswith("certified, by looser limits of this site: Dice at least 0.95 (default 0.995)")
