"""The phantom's analytic volumes, places and sides against what is sampled of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from engines.volume import Grid
from node.selftest.phantom import (
    CT,
    LABELS,
    MR,
    ORGANS,
    STANDARD,
    Part,
    Planes,
    centroids_mm,
    image_on,
    label_map,
    labels_on,
    rotation,
    share_on,
)
from node.selftest.scanner import planes_around


def _voxel_ml(planes: Planes) -> float:
    return abs(float(np.linalg.det(planes.voxel_axes_mm))) / 1000


@pytest.mark.parametrize("power", [2.0, 2.5, 4.0])
def test_volume_of_a_superellipsoid_is_its_integral(power: float) -> None:
    part = Part("x", (1.0, -2.0, 3.0), (21.0, 17.0, 26.0), rotation(20.0, 30.0, -40.0), power)
    grid = Grid((72, 72, 72), np.array([[0, 0, 1.0, -35], [0, 1, 0, -38], [1, 0, 0, -33], [0, 0, 0, 1]]))
    assert float(share_on(part, Planes.of(grid)).sum()) * grid.voxel_ml == pytest.approx(part.volume_ml, rel=2e-3)


@pytest.mark.parametrize(
    "planes",
    [
        planes_around(),
        planes_around(turn=rotation(17.0, -21.0, 25.0), pixel_mm=(1.7, 2.3)),
        planes_around(plane="sagittal", turn=rotation(5.0, 5.0, -20.0)),
        planes_around(plane="coronal", step_mm=5.0),
        planes_around(tilt_deg=18.0),
    ],
    ids=["axial", "oblique", "sagittal", "coronal", "tilted"],
)
def test_sampled_volume_and_centroid_agree_with_the_analytic_ones(planes: Planes) -> None:
    labels = labels_on(STANDARD, planes)
    centres = centroids_mm(labels, planes, list(LABELS.values()))
    for organ in STANDARD.organs:
        label = LABELS[organ.name]
        assert np.count_nonzero(labels == label) * _voxel_ml(planes) == pytest.approx(organ.volume_ml, rel=0.015)
        assert float(share_on(organ, planes).sum()) * _voxel_ml(planes) == pytest.approx(organ.volume_ml, rel=0.003)
        assert np.abs(centres[label] - organ.centre_mm).max() < 0.2


def test_organs_are_large_apart_and_inside_the_body() -> None:
    grid = Grid((115, 90, 125), np.array([[0, 0, 2.0, -125], [0, 2, 0, -90], [2, 0, 0, -114], [0, 0, 0, 1]]))
    labels = label_map(STANDARD, grid).labels
    outside = ndimage.distance_transform_edt(labels != 0, sampling=2.0)
    for organ in STANDARD.organs:
        assert organ.volume_ml >= 60
        mask = labels == LABELS[organ.name]
        assert outside[mask].min() > 4
        others = (labels > LABELS["body"]) & ~mask
        assert ndimage.distance_transform_edt(~others, sampling=2.0)[mask].min() > 4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_patient_is_another_patient(axis: int) -> None:
    grid = Grid((115, 90, 125), np.array([[0, 0, 2.0, -124], [0, 2, 0, -89], [2, 0, 0, -114], [0, 0, 0, 1]]))
    labels = label_map(STANDARD, grid).labels
    mirrored = np.flip(labels, axis=axis)
    overlaps = []
    for organ in ORGANS:
        mask = labels == LABELS[organ]
        overlaps.append(np.count_nonzero(mask & (mirrored == LABELS[organ])) / np.count_nonzero(mask))
    assert sum(overlap < 0.6 for overlap in overlaps) >= 3


def test_sides_are_those_of_lps() -> None:
    centre = {name: part.centre_mm for name, part in STANDARD.parts.items()}
    assert centre["kidney_left"][0] > 0 > centre["kidney_right"][0]
    assert centre["spleen"][0] > 0 > centre["liver"][0]
    assert centre["liver"][2] > 0 > centre["urinary_bladder"][2]
    assert centre["kidney_left"][1] > 0 > centre["urinary_bladder"][1]


def test_contrast_noise_and_air() -> None:
    planes = planes_around(step_mm=6.0, pixel_mm=(3.0, 3.0))
    labels = labels_on(STANDARD, planes)
    for contrast in (CT, MR):
        image = image_on(STANDARD, planes, contrast, seed=5)
        assert np.array_equal(image, image_on(STANDARD, planes, contrast, seed=5))
        assert not np.array_equal(image, image_on(STANDARD, planes, contrast, seed=6))
        for organ in ORGANS:
            inner = ndimage.binary_erosion(labels == LABELS[organ], iterations=2)
            assert float(image[inner].mean()) == pytest.approx(contrast.values[organ], rel=contrast.bias + 0.05)
    assert float(image_on(STANDARD, planes, CT)[0].mean()) == pytest.approx(-1000, abs=2)
    assert float(image_on(STANDARD, planes, MR).min()) > 0


def test_partial_volume_is_the_share_of_the_slice_thickness() -> None:
    thin = planes_around(step_mm=1.0, pixel_mm=(4.0, 4.0))
    organ = STANDARD.parts["liver"]
    origins = thin.origins_mm[1::3]
    thick = Planes(origins, thin.row, thin.column, thin.rows, thin.columns, 3.0)
    of_thin = share_on(organ, thin)
    mean = sum(of_thin[k : k + 3 * len(origins) : 3][: len(origins) - 1] for k in range(3)) / 3
    assert np.abs(mean - share_on(organ, thick)[: len(origins) - 1]).max() < 0.07
