"""What a results folder says of its model by itself, where the person who imports it says nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from engines.errors import BundleError, UnsuitableVolume
from engines.inference.cases import ENDINGS
from engines.nifti import read_axis_codes

_MR = re.compile(r"\b(mri?|t1\w*|t2\w*|flair|adc|dwi|pd)\b", re.IGNORECASE)
_CT = re.compile(r"\bct\b", re.IGNORECASE)


def name_of(dataset: str) -> str:
    """`Dataset004_Hippocampus` as a bundle's name.

    Raises
    ------
    BundleError
        Where nothing is left of it.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", re.sub(r"^Dataset\d+_", "", dataset).lower()).strip("-")[:63]
    if not plain:
        raise BundleError(f"plans.json: dataset_name {dataset!r} makes no name; name the model (--name)")
    return plain


def modalities_of(channels: Sequence[str]) -> tuple[str, ...]:
    """`CT` or `MR`, by the names of the channels in dataset.json.

    Raises
    ------
    BundleError
        Where they do not tell.
    """
    found = {"CT" if _CT.search(name) else "MR" if _MR.search(name) else "" for name in channels}
    if len(found) != 1 or "" in found:
        raise BundleError(f"dataset.json: channel_names {', '.join(channels)} do not tell CT from MR (--modality)")
    return tuple(found)


def orientation_of(results: Path) -> str | None:
    """The axis codes of the training images, by the masks that nnU-Net wrote while it validated each fold.

    Returns
    -------
    Codes as `Grid.axis_codes` gives them, where all masks lie alike; None where there is none, or they lie in
    several ways, or are pictures of two dimensions, which have no frame.

    Raises
    ------
    BundleError
        Where one cannot be read; the message names it.
    """
    try:
        found = {read_axis_codes(path) for path in _masks(results)}
    except UnsuitableVolume as error:
        raise BundleError(
            f"{error}; it was to tell which way the training images lie: copy the folder again, or tell it "
            "(--orientation)"
        ) from error
    return found.pop() if len(found) == 1 else None


def _masks(results: Path) -> Iterable[Path]:
    for folder in sorted(results.glob("fold_*/validation")):
        yield from (path for path in sorted(folder.iterdir()) if path.name.endswith(ENDINGS))


def card_of(name: str, facts: Mapping[str, str]) -> str:
    """A model card of what is known, which says of all else that nobody has stated it."""
    known = "\n".join(f"- {what}: {said or 'not stated'}" for what, said in facts.items())
    return (
        f"# {name}\n\nImported from a results folder of nnU-Net v2. Nobody has written a card for it yet: what follows "
        f"is what the folder says.\n\n{known}\n- intended use, limits, evaluation: not stated\n"
    )
