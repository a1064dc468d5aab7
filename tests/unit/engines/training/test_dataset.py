"""Splits keep every subject on one side; the split of the shipped hippocampus model is what its card says."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from engines.training.dataset import (
    LabelledCase,
    Split,
    decathlon_cases,
    hippocampus_subject,
    nnunet_splits,
    split_by_subject,
    write_nnunet_raw,
)
from engines.training.shipped import hippocampus_split


def _cases(folder: Path, count: int) -> tuple[LabelledCase, ...]:
    listed = []
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(1, count + 1):
        file = f"hippocampus_{number:03d}.nii.gz"
        for name in ("imagesTr", "labelsTr"):
            (folder / name / file).write_bytes(f"{name} {number}".encode())
        listed.append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"})
    (folder / "dataset.json").write_text(json.dumps({"training": listed}))
    return decathlon_cases(folder, hippocampus_subject)


def _roles(split: Split) -> list[tuple[LabelledCase, ...]]:
    return [split.training, split.validation, split.held_out]


def _assert_subjects_apart(split: Split) -> None:
    subjects = [{case.subject for case in role} for role in _roles(split)]
    assert all(subjects)
    for one, other in combinations(subjects, 2):
        assert not one & other


@pytest.mark.parametrize(("number", "subject"), [(1, 1), (2, 1), (3, 2), (199, 100), (200, 100)])
def test_two_sides_of_one_person_are_one_subject(number: int, subject: int) -> None:
    assert hippocampus_subject(f"hippocampus_{number:03d}") == f"subject_{subject:03d}"


@pytest.mark.parametrize(("held_out_every", "validation_every"), [(6, 12), (2, 2), (5, 3)])
def test_no_subject_on_two_sides(tmp_path: Path, held_out_every: int, validation_every: int) -> None:
    cases = _cases(tmp_path, 60)
    split = split_by_subject(cases, held_out_every, validation_every)
    _assert_subjects_apart(split)
    assert sorted(case.name for role in _roles(split) for case in role) == sorted(case.name for case in cases)
    assert split == split_by_subject(cases, held_out_every, validation_every)


def test_held_out_cases_are_where_nnunet_never_looks(tmp_path: Path) -> None:
    split = split_by_subject(_cases(tmp_path / "data", 24), 6, 3)
    raw = tmp_path / "raw"
    write_nnunet_raw(raw, split, {"0": "MRI"}, {"background": 0, "x": 1})
    for case in split.held_out:
        assert (raw / "imagesTs" / f"{case.name}_0000.nii.gz").read_bytes() == case.image.read_bytes()
        assert not (raw / "imagesTr" / f"{case.name}_0000.nii.gz").exists()
        assert not (raw / "labelsTr" / f"{case.name}.nii.gz").exists()
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == len(split.training + split.validation)
    (fold,) = nnunet_splits(split)
    assert not {case.name for case in split.held_out} & {*fold["train"], *fold["val"]}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    cases = _cases(tmp_path, 4)
    cases[2].label.unlink()
    with pytest.raises(FileNotFoundError, match="hippocampus_003"):
        decathlon_cases(tmp_path, hippocampus_subject)


@pytest.mark.data
def test_the_shipped_split(test_data: Path) -> None:
    split = hippocampus_split(test_data / "train-mr-hippocampus")
    _assert_subjects_apart(split)
    assert [len(role) for role in _roles(split)] == [152, 16, 32]
    assert len({case.subject for case in split.held_out}) >= 16
