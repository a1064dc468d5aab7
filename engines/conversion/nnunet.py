"""Results folders of nnU-Net v2 made into a bundle: one configuration, a cascade, or an ensemble of several."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from engines.backends.base import Placement
from engines.backends.torch import TorchBackend
from engines.conversion.checkpoint import Checkpoint, read_checkpoints
from engines.conversion.dataset import Labels, read_labels
from engines.conversion.json_file import read_json
from engines.conversion.own_words import card_of, modalities_of, name_of, orientation_of
from engines.conversion.plans import read_plan, read_previous_stage
from engines.conversion.postprocessing import find_postprocessing, read_postprocessing
from engines.errors import BundleError
from engines.inference.postprocessing import KeepLargest
from engines.model.bundle import (
    Bundle,
    Contents,
    Limits,
    MemberContents,
    ParityCrop,
    Storage,
    stored_tensors,
    write_bundle,
)
from engines.model.plan import Plan

ANY_ORIENTATION = "any"
"""The word for a network that takes images as they lie; in the bundle, no axis codes."""
_REORIENTED = "SAR"
"""What `...WithReorient` readers turn every image to: their RAS, as the axis codes of an array (k, j, i)."""
_ORIENTATION_LACKS = (
    "orientation (--orientation): nobody tells how the training images lay; there are no masks in fold_x/validation, "
    "or they lie in several ways. The plan's reader {reader} takes images as they lie, and the wrong way round left "
    "and right are exchanged: name the axis codes of the training images, which are those of "
    "nibabel.aff2axcodes(nibabel.load(IMAGE).affine) backwards (R, A, S gives SAR; L, P, S gives SPL), or 'any' if the "
    "network was trained on images that lie in all ways"
)
_FLIPS = (
    "Without mirroring: {configuration} was trained so that nnUNetv2_predict averages over flips by default, and "
    "--mirroring does so too, 2 to 8 times slower; this bundle is as `nnUNetv2_predict --disable_tta`."
)
_PARITY_LOGITS = 131_072
"""Values kept of the parity crop's answer: half a megabyte."""


@dataclass(frozen=True)
class Description:
    """What a person says of a model; the results folder's own words stand in for what is left out."""

    name: str = ""
    """Left out: that of the data set."""
    version: str = "1"
    modalities: Sequence[str] = ()
    """Left out: what the names of the channels tell."""
    card: Path | None = None
    """The model card, a Markdown file; None: one that lists what the folder says."""
    orientation: str | None = None
    """Axis codes of the arrays that the network was trained on, as `Grid.axis_codes` gives them; `ANY_ORIENTATION` for
    a network trained on images that lie in all ways. May be left out where the plan's reader turns every image, and
    so decides it, or where the masks of nnU-Net's validation, which lie as the training images do, all lie alike. Any
    other network told nothing would mistake left for right without a word."""
    label_names: Mapping[int, str] = field(default_factory=dict)
    """Other names for labels than dataset.json has."""
    unreported: Sequence[int | str] = ()
    """Labels, by number or name, that results shall not mention."""
    limits: Limits = field(default_factory=Limits)
    intended_use: str = ""
    licence: str = ""
    training_data: str = ""
    evaluation: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """What of the results folders is taken, and how."""

    configuration: str | None = None
    """Of a data set's folder that holds several."""
    previous_stage: Path | None = None
    """Results folder of a cascade's first network; None: the one beside the second's, by nnU-Net's naming."""
    folds: Sequence[str | int] | None = None
    """The folds to take as an ensemble; None: all that there are."""
    checkpoint: str = "checkpoint_final.pth"
    storage: Storage = "float32"
    """float16 halves the files, and moves a voxel here and there."""
    mirroring: bool = False
    """Average over flips as nnU-Net does by default: 2, 4 or 8 times slower."""
    further_trainers: Sequence[str] = ()
    """Trainers that keep the plan's network, beside `TRAINERS`."""
    postprocessing: Path | None = None
    """Another postprocessing.json than that of the results folder: nnU-Net's of an ensemble lies elsewhere."""
    without_postprocessing: bool = False
    """Leave out what nnU-Net's cross-validation found to help."""


@dataclass(frozen=True)
class _Source:
    """One results folder, read."""

    folder: Path
    labels: Labels
    plan: Plan
    checkpoints: Sequence[Checkpoint]
    previous_stage: str | None
    """The configuration whose labels this one sees."""


def import_results_folders(
    folders: Sequence[Path],
    out: Path,
    description: Description,
    selection: Selection | None = None,
    tell: Callable[[str], None] | None = None,
) -> Bundle:
    """Make a bundle from results folders (plans.json, dataset.json, fold_x/checkpoint) of nnU-Net v2.

    Parameters
    ----------
    folders
        Each named `TRAINER__PLANS__CONFIGURATION`, or a data set's folder that holds such. Several are an ensemble,
        whose probabilities are averaged. The second network of a cascade brings its first with it.
    out
        The bundle's folder, which must not exist.
    tell
        Told where the bundle departs from what nnUNetv2_predict does by default.

    Raises
    ------
    BundleError
        Where anything is missing, unknown, not taken or does not fit; the message names what and where.
    """
    selection = selection or Selection()
    folders = [_results_folder(folder, selection.configuration) for folder in folders]
    told = _read_json_files(folders[0])[0]
    postprocessing = _postprocessing(folders, told, selection)
    chains = [_chain(folder, selection) for folder in folders]
    sources = [source for chain in chains for source in chain]
    _check_one_case(sources)
    orientation = _orientation(sources, description.orientation)
    labels = told.renamed(description.label_names)
    name = description.name or name_of(sources[0].plan.dataset)
    contents = Contents(
        name=name,
        version=description.version,
        modalities=tuple(description.modalities) or modalities_of(told.channels),
        labels=labels.names,
        members=_members(chains, selection),
        card=_text(description.card) if description.card else card_of(name, _facts(sources, description)),
        storage=selection.storage,
        orientation=orientation,
        postprocessing=postprocessing,
        unreported=tuple(_label(labels, each) for each in description.unreported),
        limits=description.limits,
        intended_use=description.intended_use,
        licence=description.licence,
        training_data=description.training_data,
        evaluation=description.evaluation,
    )
    bundle = write_bundle(out, contents)
    if tell is not None and not selection.mirroring:
        for source in sources:
            if source.checkpoints[0].mirroring_axes:
                tell(_FLIPS.format(configuration=source.plan.configuration))
    return bundle


def own_name(folder: Path, description: Description, selection: Selection) -> str:
    """The name that a bundle of this folder will have; raises as `import_results_folders`."""
    if description.name:
        return description.name
    plans = _read_json_files(_results_folder(folder, selection.configuration))[1]
    return name_of(str(plans.get("dataset_name", "")))


def _results_folder(folder: Path, configuration: str | None) -> Path:
    """The folder itself, or the one that a data set's folder holds (as TotalSegmentator's task folders do)."""
    inside = sorted(each.parent for each in folder.glob("*__*__*/plans.json"))
    if (folder / "plans.json").is_file() or (folder / "dataset.json").is_file() or not inside:
        return folder  # what it lacks is said where it is read
    fitting = [each for each in inside if configuration in (None, each.name.rpartition("__")[2], each.name)]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(each.name for each in inside)
    raise BundleError(f"{folder}: holds {known}; name one, by its configuration or its whole name (--configuration)")


def _chain(folder: Path, selection: Selection) -> list[_Source]:
    """A results folder, after that of the first network where it is the second of a cascade."""
    source = _read_source(folder, selection)
    if selection.configuration not in (None, source.plan.configuration, folder.name):
        raise BundleError(f"{folder}: is {source.plan.configuration}, not {selection.configuration} (--configuration)")
    if source.previous_stage is None:
        return [source]
    first = _read_source(_previous_folder(source, selection), selection)
    if first.plan.configuration != source.previous_stage or first.previous_stage is not None:
        raise BundleError(
            f"{first.folder}: is {first.plan.configuration}, but {folder.name} follows {source.previous_stage}"
        )
    return [first, source]


def _previous_folder(source: _Source, selection: Selection) -> Path:
    if selection.previous_stage is not None:
        return _results_folder(selection.previous_stage, source.previous_stage)
    trainer_and_plans = source.folder.resolve().name.rpartition("__")[0]
    beside = source.folder.resolve().parent / f"{trainer_and_plans}__{source.previous_stage}"
    if not beside.is_dir():
        raise BundleError(
            f"{source.folder}: the second network of a cascade, which needs its first, {source.previous_stage}; "
            f"there is no {beside.name} beside it: copy it there, or name it (--previous-stage)"
        )
    return beside


def _read_source(folder: Path, selection: Selection) -> _Source:
    labels, plans = _read_json_files(folder)
    taken = read_checkpoints(folder, selection.folds, selection.checkpoint, selection.further_trainers)
    configuration = taken[0].configuration
    try:
        plan, earlier = read_plan(plans, configuration, labels), read_previous_stage(plans, configuration)
    except BundleError as error:
        raise BundleError(f"{folder}: {error}") from error
    return _Source(folder, labels, plan, taken, earlier)


def _read_json_files(folder: Path) -> tuple[Labels, dict[str, Any]]:
    dataset, plans = read_json(folder / "dataset.json"), read_json(folder / "plans.json")
    try:
        return read_labels(dataset), plans
    except BundleError as error:
        raise BundleError(f"{folder}: {error}") from error


def _check_one_case(sources: Sequence[_Source]) -> None:
    """All networks of a bundle see one case, in one order of axes, and give the same labels."""
    first = sources[0]
    for other in sources[1:]:
        for what, one, another in (
            ("labels", first.labels.names, other.labels.names),
            ("regions", first.labels.regions, other.labels.regions),
            ("channels", first.labels.channels, other.labels.channels),
            ("transpose_forward", first.plan.transpose_forward, other.plan.transpose_forward),
        ):
            if one != another:
                raise BundleError(
                    f"{first.folder} and {other.folder}: {what} differ: {_plain(one)} and {_plain(another)}"
                )


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return str(value)


def _members(chains: Sequence[Sequence[_Source]], selection: Selection) -> list[MemberContents]:
    """The networks in the order of computation, each under a name of its own."""
    members: list[MemberContents] = []
    for chain in chains:
        earlier = None
        for source in chain:
            taken = [member.name for member in members]
            members.append(_member(source, _free_name(source.plan.configuration, taken), earlier, selection))
            earlier = members[-1].name
    return members


def _free_name(configuration: str, taken: Sequence[str]) -> str:
    """The configuration, with a number behind it where another member has that name."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", configuration)[:56]
    number, name = 1, plain
    while name in taken:
        number += 1
        name = f"{plain}-{number}"
    return name


def _member(source: _Source, name: str, previous_stage: str | None, selection: Selection) -> MemberContents:
    weights = {each.fold: each.own_tensors(source.plan) for each in source.checkpoints}
    first = next(iter(weights.values()))
    return MemberContents(
        name=name,
        plan=source.plan,
        weights=weights,
        parity=_parity_crop(source.plan, _rounded(first, selection.storage)),
        source={each: (source.folder / each).read_bytes() for each in ("plans.json", "dataset.json")},
        mirroring_axes=source.checkpoints[0].mirroring_axes if selection.mirroring else (),
        previous_stage=previous_stage,
    )


def _postprocessing(folders: Sequence[Path], labels: Labels, selection: Selection) -> tuple[KeepLargest, ...]:
    """One configuration's own, or the one that is named: each configuration's own was not found for an ensemble."""
    if selection.without_postprocessing:
        return ()
    if selection.postprocessing is not None:
        return read_postprocessing(selection.postprocessing, labels)
    found = {folder: find_postprocessing(folder, labels) for folder in folders}
    if len(folders) > 1 and any(found.values()):
        told = ", ".join(str(folder) for folder, steps in found.items() if steps)
        raise BundleError(
            f"{told}: a postprocessing that was found for one configuration alone; name the ensemble's own "
            "(--postprocessing ensembles/ensemble_.../postprocessing.json), or leave it out (--without-postprocessing)"
        )
    return found[folders[0]]


def _facts(sources: Sequence[_Source], description: Description) -> dict[str, str]:
    """For a card that nobody has written."""
    return {
        "training data": description.training_data or sources[0].plan.dataset,
        "licence": description.licence,
        "channels": ", ".join(sources[0].labels.channels),
        "labels": ", ".join(sources[0].labels.names.values()),
        "networks": "; ".join(
            f"{source.plan.configuration} ({source.plan.architecture.network}), folds "
            + ", ".join(each.fold for each in source.checkpoints)
            for source in sources
        ),
    }


def _orientation(sources: Sequence[_Source], told: str | None) -> str | None:
    decided = {_orientation_of(source, told) for source in sources}
    if len(decided) > 1:
        readers = ", ".join(sorted({source.plan.reader for source in sources}))
        raise BundleError(f"orientation: the readers {readers} turn images to different frames; tell SAR for all")
    return decided.pop()


def _orientation_of(source: _Source, told: str | None) -> str | None:
    """Told by a person, or by the masks of the validation; of a reader that turns every image, by nobody."""
    plan = source.plan
    if not plan.reader.endswith("WithReorient"):
        told = told or orientation_of(source.folder)
        if told is None:
            raise BundleError(_ORIENTATION_LACKS.format(reader=plan.reader or "(none named)"))
        return None if told == ANY_ORIENTATION else told
    if told not in (None, _REORIENTED):
        raise BundleError(f"orientation {told}: the plan's reader {plan.reader} turns every image to {_REORIENTED}")
    return _REORIENTED


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}: a bundle needs a model card") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: a model card is UTF-8 text") from error


def _label(labels: Labels, label: int | str) -> int:
    for number, name in labels.names.items():
        if label in (number, str(number), name):
            return number
    raise BundleError(f"unreported: {label!r} is no label of the model; known: {', '.join(labels.names.values())}")


def _rounded(weights: Mapping[str, NDArray[np.float32]], storage: Storage) -> dict[str, NDArray[np.float32]]:
    """As they will be read back."""
    return {key: array.astype(np.float32) for key, array in stored_tensors(weights, storage).items()}


def _parity_crop(plan: Plan, weights: Mapping[str, NDArray[np.float32]]) -> ParityCrop:
    """A smooth random patch and the reference backend's answer: no patient's image goes into a bundle."""
    image = np.concatenate(list(_parity_channels(plan))).astype(np.float32)
    step = 1
    while plan.outputs * int(np.prod([-(-size // step) for size in plan.patch_size])) > _PARITY_LOGITS:
        step += 1
    network = TorchBackend.open(plan, weights, Placement(threads=torch.get_num_threads()))
    logits = next(network.answers([torch.from_numpy(image)])).numpy()
    network.close()
    sampled = logits[(slice(None), *(slice(None, None, step),) * len(plan.patch_size))]
    return ParityCrop(image, np.ascontiguousarray(sampled), step)


def _parity_channels(plan: Plan) -> Iterator[NDArray[np.float64]]:
    """Smooth noise for each image; below it, for the second network of a cascade, labels of the first."""
    source = np.random.default_rng(0)
    sigma = (0, *(2.0,) * len(plan.patch_size))
    smooth = ndimage.gaussian_filter(source.standard_normal((len(plan.channels), *plan.patch_size)), sigma)
    yield np.round(smooth / smooth.std() * 64) / 64
    if plan.previous_labels:
        noise = source.standard_normal((len(plan.previous_labels) + 1, *plan.patch_size))
        largest = ndimage.gaussian_filter(noise, sigma).argmax(axis=0)
        yield np.stack([largest == index for index in range(1, len(noise))]).astype(np.float64)
