"""One configuration, one fold: nnU-Net's planning, preprocessing and training, run in a folder of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.training.budget import Budget
from engines.training.dataset import Split, nnunet_splits, write_nnunet_raw


@dataclass(frozen=True)
class Experiment:
    """A data set, and the configuration that is trained on it."""

    dataset: str
    """nnU-Net's name, `Dataset004_Hippocampus`."""
    channel_names: Mapping[str, str]
    labels: Mapping[str, int]
    configuration: str
    inherits: str
    """The configuration of nnU-Net's plan that `configuration` departs from."""
    changes: Mapping[str, Any]
    """What `configuration` changes, as plans.json spells it."""
    architecture_changes: Mapping[str, Any]
    """Keyword arguments of the network that `configuration` changes."""
    one_piece: tuple[str, ...] = ()
    """Labels that are one connected piece by nature; nnU-Net's postprocessing keeps the largest of each."""
    seed: int = 0


def prepare(experiment: Experiment, split: Split, work: Path, processes: int = 2) -> Path:
    """Write the raw data set, plan, add the configuration and preprocess it; returns nnU-Net's preprocessed folder.

    A folder that is preprocessed already is left as it is.

    nnunetv2 reads its folders from the environment when it is imported, so this function sets them first and must run
    before anything else imports nnunetv2.
    """
    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(work / name)
    folder = work / "preprocessed" / experiment.dataset
    if (folder / "splits_final.json").is_file():
        return folder
    write_nnunet_raw(work / "raw" / experiment.dataset, split, dict(experiment.channel_names), dict(experiment.labels))

    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess_dataset,
    )

    number = int(experiment.dataset.removeprefix("Dataset").split("_", 1)[0])
    extract_fingerprints([number], num_processes=processes, check_dataset_integrity=True)
    plan_experiments([number])
    plans_file = folder / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    plans["configurations"][experiment.configuration] = _departure(plans, experiment)
    plans_file.write_text(json.dumps(plans, indent=2) + "\n")
    preprocess_dataset(number, configurations=(experiment.configuration,), num_processes=(processes,))
    (folder / "splits_final.json").write_text(json.dumps(nnunet_splits(split), indent=2) + "\n")
    return folder


def _departure(plans: Mapping[str, Any], experiment: Experiment) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "inherits_from": experiment.inherits,
        "data_identifier": f"nnUNetPlans_{experiment.configuration}",
        **experiment.changes,
    }
    if experiment.architecture_changes:
        architecture = json.loads(json.dumps(plans["configurations"][experiment.inherits]["architecture"]))
        architecture["arch_kwargs"].update(experiment.architecture_changes)
        configuration["architecture"] = architecture
    return configuration


def train(experiment: Experiment, work: Path, stretches: Sequence[Budget]) -> Path:
    """Train fold 0 of a prepared experiment, one stretch after the other; returns nnU-Net's results folder.

    A run that was stopped goes on where it was.
    """
    import torch  # after `prepare`, which sets what nnunetv2 reads when it is imported

    from engines.training.trainer import BudgetTrainer

    torch.manual_seed(experiment.seed)
    folder = work / "preprocessed" / experiment.dataset
    description = json.loads((folder / "dataset.json").read_text())
    for budget in stretches:
        plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
        trainer = BudgetTrainer(plans, experiment.configuration, 0, description, device=torch.device("cpu"))
        trainer.grant(budget)
        trainer.resume()
        if trainer.current_epoch < budget.epochs:
            trainer.run_training()
    results = Path(trainer.output_folder).parent
    _write_postprocessing(results, [experiment.labels[name] for name in experiment.one_piece])
    return results


def _write_postprocessing(results: Path, labels: Sequence[int]) -> None:
    """postprocessing.json as nnU-Net writes it after a cross-validation; here it is known beforehand."""
    content = {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"] * len(labels),
        "postprocessing_kwargs": [{"labels_or_regions": label} for label in labels],
    }
    (results / "postprocessing.json").write_text(json.dumps(content, indent=2) + "\n")
