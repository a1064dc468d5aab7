"""The checkpoints of an nnU-Net results folder. They are pickles: read with an allow-list, never run."""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.errors import BundleError
from engines.model.bundle import check_weights
from engines.model.network import tensors
from engines.model.plan import Plan

TRAINERS = frozenset(
    {
        "nnUNetTrainer",
        "nnUNetTrainerAdam",
        "nnUNetTrainerAdam1en3",
        "nnUNetTrainerAdam3en4",
        "nnUNetTrainerAdan",
        "nnUNetTrainerAdan1en1",
        "nnUNetTrainerAdan1en3",
        "nnUNetTrainerAdan3en4",
        "nnUNetTrainerAdanCosAnneal",
        "nnUNetTrainerBenchmark_5epochs",
        "nnUNetTrainerBenchmark_5epochs_noDataLoading",
        "nnUNetTrainerCELoss",
        "nnUNetTrainerCELoss_5epochs",
        "nnUNetTrainerCosAnneal",
        "nnUNetTrainerDA5",
        "nnUNetTrainerDA5Segord0",
        "nnUNetTrainerDA5_10epochs",
        "nnUNetTrainerDA5ord0",
        "nnUNetTrainerDiceCELoss_noSmooth",
        "nnUNetTrainerDiceLoss",
        "nnUNetTrainerDiceTopK10Loss",
        "nnUNetTrainerNoDA",
        "nnUNetTrainerNoDeepSupervision",
        "nnUNetTrainerNoMirroring",
        "nnUNetTrainerTopk10Loss",
        "nnUNetTrainerTopk10LossLS01",
        "nnUNetTrainerVanillaAdam",
        "nnUNetTrainerVanillaAdam1en3",
        "nnUNetTrainerVanillaAdam3en4",
        "nnUNetTrainer_DASegOrd0",
        "nnUNetTrainer_DASegOrd0_NoMirroring",
        "nnUNetTrainer_noDummy2DDA",
        "nnUNetTrainer_onlyMirror01",
        "nnUNetTrainer_onlyMirror01_1500ep",
        "nnUNetTrainer_onlyMirror01_DA5",
        "nnUNetTrainer_onlyMirror01_DASegOrd0",
        "nnUNetTrainer_probabilisticOversampling",
        "nnUNetTrainer_probabilisticOversampling_010",
        "nnUNetTrainer_probabilisticOversampling_033",
        "nnUNetTrainer_warmup",
        *(f"nnUNetTrainer_{n}epoch{'s' if n > 1 else ''}" for n in (1, 5, 10, 20, 50, 100, 250, 500, 750)),
        *(f"nnUNetTrainer_{n}epochs" for n in (2000, 4000, 8000)),
        *(f"nnUNetTrainer_{n}epochs_NoMirroring" for n in (250, 2000, 4000, 8000)),
        "nnUNet_Trainer_BS8",
        # TotalSegmentator's own
        "nnUNetTrainerDiceTopK10Loss_2000epochs",
        "nnUNetTrainerSkeletonRecall",
        "nnUNetTrainer_MOSAIC_1k_QuarterLR_NoMirroring",
        # of engines.training
        "BudgetTrainer",
    }
)
"""Trainers that leave the plan's network as it is: of nnunetv2, of TotalSegmentator, and of `engines.training`."""


# The other names that nnU-Net's checkpoints give to the same tensors, and heads that only training uses.
_DUPLICATE = re.compile(r"(^|\.)all_modules\.\d+\.|^decoder\.encoder\.|^decoder\.seg_layers\.\d+\.(weight|bias)$")


@dataclass(frozen=True)
class Checkpoint:
    """What one fold was trained to, and how."""

    path: Path
    fold: str
    trainer: str
    configuration: str
    mirroring_axes: tuple[int, ...]
    weights: Mapping[str, NDArray[np.float32]]

    def own_tensors(self, plan: Plan) -> dict[str, NDArray[np.float32]]:
        """Each tensor of the plan's network once, without second names and without deep supervision.

        Raises
        ------
        BundleError
            Where a tensor is missing, unknown or of another shape than the plan's network needs.
        """
        needed = tensors(plan.architecture, plan.inputs, plan.outputs)
        kept = {key: array for key, array in self.weights.items() if key in needed or not _DUPLICATE.search(key)}
        check_weights(str(self.path), {key: array.shape for key, array in kept.items()}, plan)
        return {key: kept[key] for key in needed}


def read_checkpoints(
    results: Path, folds: Sequence[str | int] | None, file: str, further_trainers: Collection[str] = ()
) -> list[Checkpoint]:
    """The folds of a results folder.

    Parameters
    ----------
    folds
        Which to take; None: all that are there, as nnU-Net does: `all` only where no numbered one is.

    Raises
    ------
    BundleError
        Where a fold is missing or not whole, its trainer is not known, or folds differ in more than their weights.
    """
    names = _folds(results, file) if folds is None else [str(fold) for fold in folds]
    taken = [_read(results / f"fold_{name}" / file, name, TRAINERS | set(further_trainers)) for name in names]
    for other in taken[1:]:
        if _without_weights(other) != _without_weights(taken[0]):
            raise BundleError(f"{results}: folds {taken[0].fold} and {other.fold} differ in trainer or configuration")
    return taken


def _folds(results: Path, file: str) -> list[str]:
    folders = sorted(folder for folder in results.glob("fold_*") if folder.is_dir())
    names = [folder.name.removeprefix("fold_") for folder in folders]
    names = [name for name in names if name != "all"] or names
    if not any((results / f"fold_{name}" / file).is_file() for name in names):
        raise BundleError(f"{results}: no fold_x/{file} in it; --checkpoint names another file")
    for name in names:
        if not (results / f"fold_{name}" / file).is_file():
            raise BundleError(
                f"{results / f'fold_{name}'}: no {file} in it: not trained to its end, or half copied; "
                "copy it, or name the folds to take (--fold)"
            )
    return names


def _without_weights(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, path=Path(), fold="", weights={})


def _read(path: Path, fold: str, trainers: Collection[str]) -> Checkpoint:
    content = _unpickle_safely(path)
    try:
        trainer, weights = str(content["trainer_name"]), content["network_weights"]
        configuration = str(content["init_args"]["configuration"])
        axes = tuple(int(axis) for axis in content.get("inference_allowed_mirroring_axes") or ())
        arrays = {str(key): tensor.detach().to(torch.float32).numpy() for key, tensor in weights.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: not a checkpoint of nnU-Net v2: {error!r}") from error
    if trainer not in trainers:
        raise BundleError(
            f"{path}: trainer {trainer} is not known to keep the plan's network; if it does, name it (--trainer)"
        )
    return Checkpoint(path, fold, trainer, configuration, axes, arrays)


def _unpickle_safely(path: Path) -> Mapping[str, Any]:
    """Torch's restricted unpickler, with the numpy scalars that nnU-Net logs and nothing else (SEC-10)."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]  # numpy has no public name for it
    dtypes = [getattr(np.dtypes, name) for name in np.dtypes.__all__]
    older_name = (scalar, "numpy.core.multiarray.scalar")
    try:
        with torch.serialization.safe_globals([scalar, older_name, np.dtype, *dtypes]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        wanted = f"asks to run {asked[1]}" if asked else "is not a plain checkpoint"
        raise BundleError(f"{path}: refused: it {wanted}, which no checkpoint of nnU-Net needs") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise BundleError(f"{path}: not a checkpoint, or cut short: {type(error).__name__}") from error
    if not isinstance(content, Mapping):
        raise BundleError(f"{path}: not a checkpoint of nnU-Net v2")
    return content
