"""How the bundles in this repository were trained: `python -m engines.training.shipped hippocampus-mr --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

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


def hippocampus_split(data: Path) -> Split:
    """One subject in six held out, and of the others one in twelve watched during training."""
    return split_by_subject(decathlon_cases(data, hippocampus_subject), held_out_every=6, validation_every=12)


def main() -> None:
    """Train one shipped model into a folder; the import into a bundle is `hilum-models import`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["hippocampus-mr"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled images")
    parser.add_argument("--work", type=Path, required=True, help="folder for nnU-Net's raw, preprocessed and results")
    parser.add_argument("--hours", type=float, default=1.5, help="time budget of the training itself")
    arguments = parser.parse_args()
    split = hippocampus_split(arguments.data)
    prepare(HIPPOCAMPUS, split, arguments.work)
    print(train(HIPPOCAMPUS, arguments.work, arguments.hours))


if __name__ == "__main__":
    main()
