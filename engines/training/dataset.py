"""Labelled NIfTI pairs laid out as an nnU-Net raw dataset, with patients kept whole on one side of every split."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LabelledCase:
    """One image with its label map, and the subject that both belong to."""

    name: str
    subject: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Split:
    """Cases by their role; no subject appears in two of the three."""

    training: tuple[LabelledCase, ...]
    validation: tuple[LabelledCase, ...]
    held_out: tuple[LabelledCase, ...]


def decathlon_cases(folder: Path, subject_of: Callable[[str], str]) -> tuple[LabelledCase, ...]:
    """The pairs of a Medical Segmentation Decathlon folder, in the order of its dataset.json.

    Raises
    ------
    FileNotFoundError
        Where dataset.json, or a file that it names, is missing.
    """
    listed = json.loads((folder / "dataset.json").read_text())["training"]
    cases = []
    for pair in listed:
        image, label = folder / pair["image"], folder / pair["label"]
        for path in (image, label):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: named in {folder / 'dataset.json'} but not there")
        name = image.name.removesuffix(".nii.gz")
        cases.append(LabelledCase(name, subject_of(name), image, label))
    return tuple(cases)


def hippocampus_subject(name: str) -> str:
    """The subject of a Decathlon hippocampus case: numbers 2k-1 and 2k are the two sides of one person."""
    return f"subject_{(int(name.rsplit('_', 1)[1]) + 1) // 2:03d}"


def split_by_subject(cases: Sequence[LabelledCase], held_out_every: int, validation_every: int) -> Split:
    """Every n-th subject held out, then every m-th of the rest for validation; the same input gives the same split."""
    subjects = sorted({case.subject for case in cases})
    held_out = set(subjects[::held_out_every])
    rest = [subject for subject in subjects if subject not in held_out]
    validation = set(rest[::validation_every])
    by_role: dict[str, list[LabelledCase]] = {"held_out": [], "validation": [], "training": []}
    for case in cases:
        role = "held_out" if case.subject in held_out else "validation" if case.subject in validation else "training"
        by_role[role].append(case)
    return Split(tuple(by_role["training"]), tuple(by_role["validation"]), tuple(by_role["held_out"]))


def write_nnunet_raw(
    folder: Path, split: Split, channel_names: dict[str, str], labels: dict[str, int], reader: str = "SimpleITKIO"
) -> None:
    """Copy a split into nnU-Net's raw layout: imagesTr, labelsTr, imagesTs, labelsTs and dataset.json.

    Held-out cases go to imagesTs and labelsTs, which nnU-Net's planning and training never open.
    """
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    fitted = split.training + split.validation
    for suffix, cases in (("Tr", fitted), ("Ts", split.held_out)):
        for case in cases:
            shutil.copyfile(case.image, folder / f"images{suffix}" / f"{case.name}_0000.nii.gz")
            shutil.copyfile(case.label, folder / f"labels{suffix}" / f"{case.name}.nii.gz")
    description = {
        "channel_names": channel_names,
        "labels": labels,
        "numTraining": len(fitted),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": reader,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")


def nnunet_splits(split: Split) -> list[dict[str, list[str]]]:
    """The split as nnU-Net's splits_final.json: one fold, grouped by subject."""
    return [{"train": [case.name for case in split.training], "val": [case.name for case in split.validation]}]
