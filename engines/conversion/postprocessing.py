"""The postprocessing that nnU-Net found to help in cross-validation, from postprocessing.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.conversion.dataset import Labels
from engines.conversion.json_file import read_json
from engines.errors import BundleError
from engines.inference.postprocessing import KeepLargest

_KEEP_LARGEST = "remove_all_but_largest_component_from_segmentation"
_MEND = "or import without it (--without-postprocessing) where its effect is not wanted"


def find_postprocessing(results: Path, labels: Labels) -> tuple[KeepLargest, ...]:
    """What a results folder says: nnU-Net leaves it beside the folds, as JSON and as a pickle.

    Raises
    ------
    BundleError
        Where there is only the pickle, two files differ, or a step is not understood.
    """
    found: dict[Path, tuple[KeepLargest, ...]] = {}
    for folder in (results, *sorted(results.glob("crossval_results*"))):
        written, pickled = folder / "postprocessing.json", folder / "postprocessing.pkl"
        if written.is_file():
            found[written] = read_postprocessing(written, labels)
        elif pickled.is_file():
            raise BundleError(f"{pickled}: a pickle, which is never read; write postprocessing.json beside it, {_MEND}")
    if len(set(found.values())) > 1:
        raise BundleError(f"{' and '.join(str(path) for path in found)} differ; remove one of them, {_MEND}")
    return next(iter(found.values()), ())


def read_postprocessing(path: Path, labels: Labels) -> tuple[KeepLargest, ...]:
    """The steps of one file, in order.

    Raises
    ------
    BundleError
        Where a step is not understood, or names what is no label of the model.
    """
    content = read_json(path)
    functions, arguments = content.get("postprocessing_fns"), content.get("postprocessing_kwargs", [])
    if not isinstance(functions, list) or not isinstance(arguments, list) or len(functions) != len(arguments):
        raise BundleError(f"{path}: postprocessing_fns and postprocessing_kwargs must be lists of one length, {_MEND}")
    steps = [_step(path, function, named, labels) for function, named in zip(functions, arguments, strict=True)]
    return tuple(step for step in steps if step)


def _step(path: Path, function: object, named: object, labels: Labels) -> KeepLargest:
    """The labels that are taken together; a region is written as its labels, of which results hold the painted."""
    if function != _KEEP_LARGEST or not isinstance(named, Mapping) or set(named) != {"labels_or_regions"}:
        raise BundleError(f"{path}: {function} with {named} is not known; known: {_KEEP_LARGEST}, {_MEND}")
    told = tuple(_flat(named["labels_or_regions"]))
    if not told or not set(told) <= {*labels.names, *labels.foreground}:
        raise BundleError(f"{path}: labels_or_regions: {named['labels_or_regions']} are not labels of the model")
    return tuple(label for label in told if label in labels.names)


def _flat(labels_or_regions: Any) -> Iterator[Any]:
    """nnU-Net takes the union of a label, a list of labels, or a list of regions, which are lists of labels."""
    if isinstance(labels_or_regions, list):
        for each in labels_or_regions:
            yield from _flat(each)
    else:
        yield labels_or_regions
