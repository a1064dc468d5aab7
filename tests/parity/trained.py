"""Two small models, really trained with nnunetv2 in a minute each: `python tests/parity/trained.py MODEL DATA WORK`.

nnunetv2 reads its folders from the environment when it is first imported; so each training has a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engines.training.budget import Budget
from engines.training.dataset import LabelledCase, Split, decathlon_cases, hippocampus_subject
from engines.training.experiments import Experiment, prepare, train

HELD_OUT = 3


@dataclass(frozen=True)
class Training:
    """A data set, how many of its cases are used, and what is learnt from them."""

    folder: str
    cases: Callable[[Path], tuple[LabelledCase, ...]]
    fitted: int
    experiment: Experiment
    budget: Budget


def _openkbp_cases(folder: Path) -> tuple[LabelledCase, ...]:
    """Those with the full field of view."""
    whole = [each["case"] for each in json.loads((folder / "cases.json").read_text()) if each["fov"] == "full"]
    return tuple(
        LabelledCase(name, name, folder / "imagesTr" / f"{name}_0000.nii.gz", folder / "labelsTr" / f"{name}.nii.gz")
        for name in whole
    )


TRAININGS = {
    "3d": Training(
        "train-mr-hippocampus",
        lambda folder: decathlon_cases(folder, hippocampus_subject),
        fitted=12,
        experiment=Experiment(
            dataset="Dataset004_Hippocampus",
            channel_names={"0": "MRI"},
            labels={"background": 0, "Anterior": 1, "Posterior": 2},
            configuration="3d_small",
            inherits="3d_fullres",
            changes={"batch_size": 2, "patch_size": [32, 40, 32]},
            architecture_changes={
                "n_stages": 3,
                "features_per_stage": [8, 16, 32],
                "kernel_sizes": [[3, 3, 3]] * 3,
                "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
                "n_conv_per_stage": [2] * 3,
                "n_conv_per_stage_decoder": [2] * 2,
            },
        ),
        budget=Budget(epochs=2, iterations_per_epoch=30, validation_iterations=1, adam_rate=5e-3, augment=False),
    ),
    "2d": Training(
        "train-ct-headneck",
        _openkbp_cases,
        fitted=5,
        experiment=Experiment(
            dataset="Dataset005_HeadNeck",
            channel_names={"0": "CT"},
            labels={
                "background": 0,
                "Brainstem": 1,
                "SpinalCord": 2,
                "RightParotid": 3,
                "LeftParotid": 4,
                "Mandible": 5,
            },
            configuration="2d_small",
            inherits="2d",
            changes={"batch_size": 8, "patch_size": [64, 64]},
            architecture_changes={
                "n_stages": 4,
                "features_per_stage": [8, 16, 32, 64],
                "kernel_sizes": [[3, 3]] * 4,
                "strides": [[1, 1], [2, 2], [2, 2], [2, 2]],
                "n_conv_per_stage": [2] * 4,
                "n_conv_per_stage_decoder": [2] * 3,
            },
        ),
        budget=Budget(
            epochs=6,
            iterations_per_epoch=60,
            validation_iterations=1,
            adam_rate=1e-2,
            foreground_share=0.75,
            mirror=False,
            augment=False,
        ),
    ),
}


def split_of(training: Training, data: Path) -> Split:
    """The first cases to fit, one to watch, and the last ones held out; people on one side only."""
    cases = training.cases(data / training.folder)
    return Split(cases[: training.fitted], cases[training.fitted : training.fitted + 2], cases[-HELD_OUT:])


def main() -> None:
    """Prepare, train, and print nnU-Net's results folder."""
    training, data, work = TRAININGS[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3])
    prepare(training.experiment, split_of(training, data), work, processes=1)
    # No processes of its own for what takes a minute; planning needs one.
    os.environ |= {"nnUNet_n_proc_DA": "0"}
    np.random.seed(0)
    torch.set_num_threads(1)  # threads that wait for each other crawl on a busy machine
    print(train(training.experiment, work, [training.budget]))


if __name__ == "__main__":
    main()
