"""An nnU-Net v2 results folder made into a bundle. Its checkpoints are pickles: read with an allow-list, never run."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from engines.backends.base import Placement
from engines.backends.torch import TorchBackend
from engines.errors import BundleError
from engines.inference.postprocessing import KeepLargest
from engines.model.bundle import (
    Bundle,
    Contents,
    Limits,
    MemberContents,
    ParityCrop,
    Storage,
    check_weights,
    stored_tensors,
    write_bundle,
)
from engines.model.dataset import Labels, read_labels
from engines.model.network import tensors
from engines.model.plan import Plan, read_plan

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
        "BudgetTrainer",
    }
)
"""Trainers that leave the plan's network as it is: nnunetv2's own, and that of `engines.training`."""

ANY_ORIENTATION = "any"
"""The word for a network that takes images as they lie; in the bundle, no axis codes."""
_REORIENTED = "SAR"
"""What `...WithReorient` readers turn every image to: their RAS, as the axis codes of an array (k, j, i)."""
_ORIENTATION_LACKS = (
    "orientation (--orientation) is not told: the plan's reader {reader} takes images as they lie, and the wrong way "
    "round left and right are exchanged; name the axis codes of the training images, which are those of "
    "nibabel.aff2axcodes(nibabel.load(IMAGE).affine) backwards (R, A, S gives SAR; L, P, S gives SPL), or 'any' if the "
    "network was trained on images that lie in all ways"
)
_PARITY_LOGITS = 131_072
"""Values kept of the parity crop's answer: half a megabyte."""

# The other names that nnU-Net's checkpoints give to the same tensors, and heads that only training uses.
_DUPLICATE = re.compile(r"(^|\.)all_modules\.\d+\.|^decoder\.encoder\.|^decoder\.seg_layers\.\d+\.(weight|bias)$")


@dataclass(frozen=True)
class _Checkpoint:
    fold: str
    trainer: str
    configuration: str
    mirroring_axes: tuple[int, ...]
    weights: Mapping[str, NDArray[np.float32]]


def import_results_folder(
    results: Path,
    out: Path,
    *,
    name: str,
    version: str,
    modalities: Sequence[str],
    card: Path,
    orientation: str | None = None,
    folds: Sequence[str | int] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    storage: Storage = "float16",
    mirroring: bool = False,
    further_trainers: Sequence[str] = (),
    without_postprocessing: bool = False,
    unreported: Sequence[int | str] = (),
    limits: Limits | None = None,
    intended_use: str = "",
    licence: str = "",
    training_data: str = "",
    evaluation: Mapping[str, float] = MappingProxyType({}),
) -> Bundle:
    """Make a bundle from a results folder (plans.json, dataset.json, fold_x/checkpoint) of nnU-Net v2.

    Parameters
    ----------
    results
        The folder named `TRAINER__PLANS__CONFIGURATION`.
    out
        The bundle's folder, which must not exist.
    orientation
        Axis codes of the arrays that the network was trained on, as `Grid.axis_codes` gives them; `ANY_ORIENTATION`
        for a network trained on images that lie in all ways. May be left out only where the plan's reader turns every
        image, and so decides it: any other network told nothing would mistake left for right without a word.
    folds
        Which folds to take as an ensemble; None: all that have the checkpoint.
    without_postprocessing
        Leave out what nnU-Net's cross-validation found to help (postprocessing.json, here or in crossval_results).
    mirroring
        Average over flips as nnU-Net does by default: 2, 4 or 8 times slower.
    unreported
        Labels, by number or name, that results shall not mention.

    Raises
    ------
    BundleError
        Where anything is missing, unknown, not taken or does not fit; the message names what and where.
    """
    labels, plans = read_labels(_json(results / "dataset.json")), _json(results / "plans.json")
    postprocessing = _read_postprocessing(results, labels, without_postprocessing)
    taken = _read_checkpoints(results, folds, checkpoint, TRAINERS | set(further_trainers))
    plan = read_plan(plans, taken[0].configuration, labels)
    turned_to = _orientation(plan, orientation)
    weights = {each.fold: _own_tensors(each, results / f"fold_{each.fold}" / checkpoint, plan) for each in taken}
    stored = {fold: _rounded(tensors_of_fold, storage) for fold, tensors_of_fold in weights.items()}
    contents = Contents(
        name=name,
        version=version,
        modalities=tuple(modalities),
        labels=labels.names,
        members=[
            MemberContents(
                name=plan.configuration,
                plan=plan,
                weights=weights,
                parity=_parity_crop(plan, next(iter(stored.values()))),
                source={each: (results / each).read_bytes() for each in ("plans.json", "dataset.json")},
                mirroring_axes=taken[0].mirroring_axes if mirroring else (),
            )
        ],
        card=_text(card),
        storage=storage,
        orientation=turned_to,
        postprocessing=postprocessing,
        unreported=tuple(_label(labels, each) for each in unreported),
        limits=limits or Limits(),
        intended_use=intended_use,
        licence=licence,
        training_data=training_data,
        evaluation=evaluation,
    )
    return write_bundle(out, contents)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}: not a results folder of nnU-Net v2, or half copied") from error
    except ValueError as error:
        raise BundleError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path}: holds no JSON object")
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}: a bundle needs a model card") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: a model card is UTF-8 text") from error


def _orientation(plan: Plan, told: str | None) -> str | None:
    if not plan.reader.endswith("WithReorient"):
        if told is None:
            raise BundleError(_ORIENTATION_LACKS.format(reader=plan.reader or "(none named)"))
        return None if told == ANY_ORIENTATION else told
    if told not in (None, _REORIENTED):
        raise BundleError(f"orientation {told}: the plan's reader {plan.reader} turns every image to {_REORIENTED}")
    return _REORIENTED


def _label(labels: Labels, label: int | str) -> int:
    for number, name in labels.names.items():
        if label in (number, name):
            return number
    raise BundleError(f"unreported: {label!r} is no label of the model; known: {', '.join(labels.names.values())}")


def _read_postprocessing(results: Path, labels: Labels, without: bool) -> tuple[KeepLargest, ...]:
    """nnU-Net decides it in cross-validation and leaves it beside the folds, as JSON and as a pickle."""
    if without:
        return ()
    found: dict[Path, tuple[KeepLargest, ...]] = {}
    for folder in (results, *sorted(results.glob("crossval_results*"))):
        written, pickled = folder / "postprocessing.json", folder / "postprocessing.pkl"
        if written.is_file():
            found[written] = _postprocessing_steps(written, _json(written), labels)
        elif pickled.is_file():
            raise BundleError(f"{pickled}: a pickle, which is never read; write postprocessing.json beside it, {_MEND}")
    if len(set(found.values())) > 1:
        raise BundleError(f"{' and '.join(str(path) for path in found)} differ; remove one of them, {_MEND}")
    return next(iter(found.values()), ())


_MEND = "or import without it (--without-postprocessing) where its effect is not wanted"


def _postprocessing_steps(path: Path, content: Mapping[str, Any], labels: Labels) -> tuple[KeepLargest, ...]:
    functions, arguments = content.get("postprocessing_fns"), content.get("postprocessing_kwargs", [])
    if not isinstance(functions, list) or not isinstance(arguments, list) or len(functions) != len(arguments):
        raise BundleError(f"{path}: postprocessing_fns and postprocessing_kwargs must be lists of one length, {_MEND}")
    steps: list[KeepLargest] = []
    for function, named in zip(functions, arguments, strict=True):
        if function != _KEEP_LARGEST or not isinstance(named, Mapping) or set(named) != {"labels_or_regions"}:
            raise BundleError(f"{path}: {function} with {named} is not known; known: {_KEEP_LARGEST}, {_MEND}")
        steps.append(tuple(_flat(named["labels_or_regions"])))
        unknown = [label for label in steps[-1] if label not in labels.names]
        if unknown or not steps[-1]:
            raise BundleError(f"{path}: labels_or_regions: {named['labels_or_regions']} are not labels of the model")
    return tuple(steps)


_KEEP_LARGEST = "remove_all_but_largest_component_from_segmentation"


def _flat(labels_or_regions: Any) -> Iterator[Any]:
    """nnU-Net takes the union of a label, a list of labels, or a list of regions, which are lists of labels."""
    if isinstance(labels_or_regions, list):
        for each in labels_or_regions:
            yield from _flat(each)
    else:
        yield labels_or_regions


def _read_checkpoints(
    results: Path, folds: Sequence[str | int] | None, file: str, trainers: frozenset[str] | set[str]
) -> list[_Checkpoint]:
    found = sorted(path.parent.name.removeprefix("fold_") for path in results.glob(f"fold_*/{file}"))
    names = found if folds is None else [str(fold) for fold in folds]
    if not names:
        raise BundleError(f"{results}: no fold_x/{file} in it; --checkpoint names another file")
    taken = [_read_checkpoint(results / f"fold_{name}" / file, name, trainers) for name in names]
    for other in taken[1:]:
        if replace(other, fold="", weights={}) != replace(taken[0], fold="", weights={}):
            raise BundleError(f"{results}: folds {taken[0].fold} and {other.fold} differ in trainer or configuration")
    return taken


def _read_checkpoint(path: Path, fold: str, trainers: frozenset[str] | set[str]) -> _Checkpoint:
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
    return _Checkpoint(fold, trainer, configuration, axes, arrays)


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


def _own_tensors(checkpoint: _Checkpoint, path: Path, plan: Plan) -> dict[str, NDArray[np.float32]]:
    """Each tensor of the plan's network once, without second names and without deep supervision."""
    needed = tensors(plan.architecture, plan.inputs, plan.outputs)
    kept = {key: array for key, array in checkpoint.weights.items() if key in needed or not _DUPLICATE.search(key)}
    check_weights(str(path), {key: array.shape for key, array in kept.items()}, plan)
    return {key: kept[key] for key in needed}


def _rounded(weights: Mapping[str, NDArray[np.float32]], storage: Storage) -> dict[str, NDArray[np.float32]]:
    """As they will be read back."""
    return {key: array.astype(np.float32) for key, array in stored_tensors(weights, storage).items()}


def _parity_crop(plan: Plan, weights: Mapping[str, NDArray[np.float32]]) -> ParityCrop:
    """A smooth random patch and the reference backend's answer: no patient's image goes into a bundle."""
    noise = np.random.default_rng(0).standard_normal((len(plan.channels), *plan.patch_size))
    smooth = ndimage.gaussian_filter(noise, (0, *(2.0,) * len(plan.patch_size)))
    image = (np.round(smooth / smooth.std() * 64) / 64).astype(np.float32)
    step = 1
    while plan.outputs * int(np.prod([-(-size // step) for size in plan.patch_size])) > _PARITY_LOGITS:
        step += 1
    network = TorchBackend.open(plan, weights, Placement(threads=torch.get_num_threads()))
    logits = next(network.answers([torch.from_numpy(image)])).numpy()
    network.close()
    sampled = logits[(slice(None), *(slice(None, None, step),) * len(plan.patch_size))]
    return ParityCrop(image, np.ascontiguousarray(sampled), step)
