"""A training set of random phantoms: `python -m node.selftest.cohort OUT`, in the layout of a Decathlon folder.

Bodies, organs, poses, contrasts, noise, spacing and field of view differ from case to case; half are CT, half MR.
Arrays are written with the axis codes `SPL`, turned by up to 25 degrees about any axis: what any scanner's planes look
like once the segmenter has brought their axes into that order.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.nifti import write_label_map, write_volume
from engines.volume import Grid, Volume
from node.selftest.phantom import BODY, CT, LABELS, MR, STANDARD, Contrast, Part, Patient, label_map, rotation, volume

MARGIN_MM = 45.0
_TURN_DEG = 25.0
_ABSENT = 0.06
"""Share of organs that a case lacks."""
_CROPPED = 0.3
"""Share of cases whose field of view cuts the body."""
_PARITY_MARGIN_MM, _PARITY_STEP_MM, _PARITY_NOISE = 6.0, 3.5, 5.0


def random_patient(rng: np.random.Generator) -> Patient:
    """A patient like the standard one, of another size, with its organs moved, stretched and turned."""
    size = float(rng.uniform(0.86, 1.15))
    body = _varied(STANDARD.body, rng, size, stretch=0.08, shift_mm=0.0, turn_deg=0.0)
    organs: list[Part] = []
    for organ in STANDARD.organs:
        if rng.random() < _ABSENT:
            continue
        for _ in range(50):
            candidate = _varied(organ, rng, size, stretch=0.15, shift_mm=9.0, turn_deg=15.0)
            if _fits(candidate, body, organs):
                organs.append(candidate)
                break
    return Patient(body, tuple(organs))


def _varied(
    part: Part, rng: np.random.Generator, size: float, *, stretch: float, shift_mm: float, turn_deg: float
) -> Part:
    x, y, z = np.asarray(part.centre_mm) * size + rng.uniform(-shift_mm, shift_mm, 3)
    a, b, c = np.asarray(part.semi_axes_mm) * size * rng.uniform(1 - stretch, 1 + stretch, 3)
    turned = rotation(*rng.uniform(-turn_deg, turn_deg, 3)) @ part.rotation
    return replace(part, centre_mm=(x, y, z), semi_axes_mm=(a, b, c), rotation=turned)


def _fits(candidate: Part, body: Part, others: list[Part]) -> bool:
    """Whether an organ stays a few millimetres from the skin and from the other organs."""
    directions = np.random.default_rng(0).normal(size=(400, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    surface = candidate.centre_mm + (directions * candidate.semi_axes_mm) @ candidate.rotation.T * 1.1
    if body.level(surface).max() > 0.96:
        return False
    return all(other.level(surface).min() > 1.05 for other in others)


def random_contrast(rng: np.random.Generator, modality: str) -> Contrast:
    """CT or MR contrast around the standard one; an organ always differs visibly from the body around it."""
    standard = CT if modality == "CT" else MR
    ground = standard.values[BODY] + (rng.uniform(-20, 20) if modality == "CT" else rng.uniform(-10, 10))
    values = {BODY: ground}
    for name, value in standard.values.items():
        if name != BODY:
            values[name] = ground + (value - standard.values[BODY]) * rng.uniform(0.93, 1.07)
    noise = standard.noise * rng.uniform(0.3, 2.0)
    return replace(standard, values=values, noise=noise, bias=standard.bias * rng.uniform(0.0, 2.0))


def random_grid(rng: np.random.Generator, patient: Patient, margin_mm: float = MARGIN_MM) -> Grid:
    """A turned grid around the patient, one axis with thicker slices; sometimes it cuts the body.

    Parameters
    ----------
    margin_mm
        Most air on one side of the body.
    """
    turn = rotation(*rng.uniform(-_TURN_DEG, _TURN_DEG, 3))
    spacing = np.full(3, rng.uniform(1.8, 3.0))
    spacing[rng.integers(3)] = rng.uniform(2.0, 4.0)
    # Columns of `axes`: the directions of slices, rows, columns; S is +z, P is +y, L is +x.
    axes = turn @ np.eye(3)[:, ::-1]
    reach = np.abs(axes.T) @ patient.body.reach_mm
    low, high = -reach, reach.copy()
    for axis in range(3):
        low[axis] -= rng.uniform(2.0, margin_mm)
        high[axis] += rng.uniform(2.0, margin_mm)
    if rng.random() < _CROPPED:
        axis, cut = int(rng.integers(3)), float(rng.uniform(0.1, 0.5))
        if rng.random() < 0.5:
            low[axis] = -reach[axis] * (1 - cut)
        else:
            high[axis] = reach[axis] * (1 - cut)
    return _grid(axes, spacing, low, high)


def _grid(
    axes: NDArray[np.float64], spacing: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = axes @ low
    d, h, w = (int(n) for n in np.ceil((high - low) / spacing))
    return Grid((d, h, w), affine)


def write_cohort(folder: Path, cases: int, seed: int, margin_mm: float = MARGIN_MM) -> None:
    """Write images, label maps and dataset.json; the same seed gives the same files."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    listed = []
    for number in range(cases):
        rng = np.random.default_rng((seed, number))
        patient = random_patient(rng)
        grid = random_grid(rng, patient, margin_mm)
        contrast = random_contrast(rng, "CT" if number % 2 else "MR")
        image, label = f"imagesTr/phantom_{number:03d}.nii.gz", f"labelsTr/phantom_{number:03d}.nii.gz"
        write_volume(folder / image, volume(patient, grid, contrast, seed=number))
        write_label_map(folder / label, label_map(patient, grid))
        listed.append({"image": image, "label": label})
    description = {"name": "phantom", "labels": {str(n): name for name, n in LABELS.items()}, "training": listed}
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")


def parity_volume() -> Volume:
    """The standard patient, coarse and in whole HU: small enough to be shipped, on which engines are certified."""
    reach = STANDARD.body.reach_mm[::-1] + _PARITY_MARGIN_MM
    grid = _grid(np.eye(3)[:, ::-1], np.full(3, _PARITY_STEP_MM), -reach, reach)
    return Volume(grid, np.round(volume(STANDARD, grid, replace(CT, noise=_PARITY_NOISE)).voxels), CT.modality)


def main() -> None:
    """Write the training set of the shipped `phantom` model, or the volume that lies beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for imagesTr, labelsTr and dataset.json")
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--margin-mm", type=float, default=MARGIN_MM, help="most air on one side of the body")
    parser.add_argument("--parity", action="store_true", help="write the parity volume alone, OUT/standard.nii.gz")
    arguments = parser.parse_args()
    if arguments.parity:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_volume(arguments.out / "standard.nii.gz", parity_volume())
        return
    write_cohort(arguments.out, arguments.cases, arguments.seed, arguments.margin_mm)


if __name__ == "__main__":
    main()
