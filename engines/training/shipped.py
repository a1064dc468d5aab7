"""How the bundles in this repository were trained: `python -m engines.training.shipped hippocampus-mr --help`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines.training.budget import Budget
from engines.training.dataset import Split, decathlon_cases, hippocampus_subject, split_by_subject
from engines.training.experiments import Experiment, prepare, train

HIPPOCAMPUS = Experiment(
    dataset="Dataset004_Hippocampus",
    channel_names={"0": "MRI"},
    labels={"background": 0, "Anterior": 1, "Posterior": 2},
    configuration="3d_small",
    inherits="3d_fullres",
    changes={"batch_size": 2},
    architecture_changes={"features_per_stage": [16, 32, 64, 128]},
)

PHANTOM = Experiment(
    dataset="Dataset900_Phantom",
    channel_names={"0": "MRI"},  # z-score: one network serves CT and MR
    labels={
        "background": 0,
        "body": 1,
        "liver": 2,
        "spleen": 3,
        "kidney_left": 4,
        "kidney_right": 5,
        "urinary_bladder": 6,
    },
    configuration="3d_small",
    inherits="3d_fullres",
    changes={
        "batch_size": 2,
        "spacing": [3.0, 3.0, 3.0],
        "patch_size": [48, 48, 48],
        "use_mask_for_norm": [False],
    },
    architecture_changes={
        "n_stages": 4,
        "features_per_stage": [8, 16, 32, 64],
        "kernel_sizes": [[3, 3, 3]] * 4,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [2, 2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2, 2],
    },
    one_piece=("liver", "spleen", "kidney_left", "kidney_right", "urinary_bladder"),
)


def hippocampus_split(data: Path) -> Split:
    """One subject in six held out, and of the others one in twelve watched during training."""
    return split_by_subject(decathlon_cases(data, hippocampus_subject), held_out_every=6, validation_every=12)


def phantom_split(data: Path) -> Split:
    """One phantom in eight held out, and of the others one in twelve watched; each is a subject of its own."""
    return split_by_subject(decathlon_cases(data, lambda name: name), held_out_every=8, validation_every=12)


@dataclass(frozen=True)
class Recipe:
    """How one shipped model is trained."""

    experiment: Experiment
    split: Callable[[Path], Split]
    stretches: tuple[Budget, ...]


RECIPES = {
    "hippocampus-mr": Recipe(HIPPOCAMPUS, hippocampus_split, (Budget(epochs=36), Budget(epochs=58))),
    "phantom": Recipe(
        PHANTOM,
        phantom_split,
        (
            Budget(epochs=36, adam_rate=4e-3, foreground_share=0.5, mirror=False),
            Budget(epochs=48, adam_rate=4e-3, foreground_share=0.5, mirror=False, augment=False),
        ),
    ),
}


def main() -> None:
    """Train one shipped model into a folder; the import into a bundle is `hilum-models import`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled images")
    parser.add_argument("--work", type=Path, required=True, help="folder for nnU-Net's raw, preprocessed and results")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.model]
    prepare(recipe.experiment, recipe.split(arguments.data), arguments.work)
    print(train(recipe.experiment, arguments.work, recipe.stretches))


if __name__ == "__main__":
    main()
