"""The training set of the phantom model: what its card and the shipped recipe say of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.nifti import read_label_map, read_volume
from engines.training.dataset import decathlon_cases
from engines.training.shipped import PHANTOM, phantom_split
from node.selftest.cohort import random_contrast, random_grid, random_patient, write_cohort
from node.selftest.phantom import BODY, CT, LABELS, MR, ORGANS, STANDARD


def test_the_recipe_has_the_labels_of_the_phantom() -> None:
    assert PHANTOM.labels == {"background": 0, **LABELS}


@pytest.mark.parametrize("seed", range(20))
def test_random_patients_are_sound(seed: int) -> None:
    patient = random_patient(np.random.default_rng(seed))
    assert len(patient.organs) >= 3
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for organ in patient.organs:
        assert 0.3 < organ.volume_ml / STANDARD.parts[organ.name].volume_ml < 2.5
        surface = organ.centre_mm + (directions * organ.semi_axes_mm) @ organ.rotation.T
        assert patient.body.level(surface).max() < 1
        assert all(other.level(surface).min() > 1 for other in patient.organs if other is not organ)


@pytest.mark.parametrize("seed", range(20))
def test_random_grids_are_in_the_order_of_the_bundle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert random_grid(rng, STANDARD).axis_codes == "SPL"


def test_random_contrasts_keep_organs_visible() -> None:
    for standard in (CT, MR):
        for seed in range(20):
            contrast = random_contrast(np.random.default_rng(seed), standard.modality)
            for organ in ORGANS:
                difference = abs(contrast.values[organ] - contrast.values[BODY])
                assert difference > 2 * contrast.noise


def test_a_cohort_is_a_decathlon_folder_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_cohort(tmp_path / name, cases=1, seed=3)
    cases = decathlon_cases(tmp_path / "a", lambda name: name)
    assert [case.name for case in cases] == ["phantom_000"]
    names = {label: name for name, label in LABELS.items()}
    for case in cases:
        image, labels = read_volume(case.image, "CT"), read_label_map(case.label, names)
        assert image.grid.axis_codes == "SPL"
        assert image.grid.same_as(labels.grid)
        assert BODY in {names[label] for label in np.unique(labels.labels) if label}
        other = read_volume(tmp_path / "b" / case.image.relative_to(tmp_path / "a"), "CT")
        assert np.array_equal(image.voxels, other.voxels)
    assert {case.name for case in phantom_split(tmp_path / "a").held_out} == {"phantom_000"}
