"""nnU-Net's preprocessing of one case, and the typed way back from logits to labels on the image's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from engines.errors import UnsuitableVolume
from engines.model.plan import PICTURES, Plan
from engines.preprocessing.normalization import normalize
from engines.preprocessing.previous_stage import OUTSIDE, fill_one_hot, resample_labels
from engines.preprocessing.resampling import Shape, Spacing, Step, Taps, linear_taps, new_shape, resample

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """What the network sees, and how to return from it.

    Attributes
    ----------
    image
        float32, (C, D, H, W), normalised, at the plan's spacing, axes in the plan's order; below the images a channel
        of 0 and 1 for each of the plan's `previous_labels`.
    full_shape
        Of the given image, axes in the plan's order.
    box
        The part of `full_shape` that was kept: where any voxel differs from zero.
    step
        From the kept part to `image`.
    """

    image: torch.Tensor
    plan: Plan
    full_shape: Shape
    box: tuple[slice, slice, slice]
    step: Step

    def taps(self) -> tuple[Taps, Taps, Taps]:
        """How the kept part of the image's grid is mixed from the network's, along each axis."""
        return linear_taps(self.step.back(), self.plan.logit_resampling)

    def uncropped(self, kept: NDArray[_T]) -> NDArray[_T]:
        """Labels of the whole image, axes in its own order, from those of the kept part; 0 outside."""
        full = np.zeros(self.full_shape, dtype=kept.dtype)
        full[self.box] = kept
        return full.transpose(self.plan.transpose_backward)


def preprocess(
    images: NDArray[np.float32],
    spacing_mm: Sequence[float],
    plan: Plan,
    previous: NDArray[np.integer[Any]] | None = None,
    device: str = "cpu",
) -> NetworkInput:
    """Transpose, crop to nonzero, normalise, resample: in this order, as nnU-Net does.

    Parameters
    ----------
    images
        float32, (C, D, H, W), one for each channel of the plan, or (D, H, W) where it has one; on one grid, in the
        orientation that the model was trained on.
    spacing_mm
        Along (D, H, W).
    previous
        Integers, (D, H, W), on the same grid: what the first network of a cascade gave, where the plan is of the
        second.
    device
        Where the images are normalised and resampled, and where the network's input lies. Labels of an earlier
        network are resampled on the processor.

    Raises
    ------
    UnsuitableVolume
        Where a voxel is not finite, the number of images is not that of the plan's channels, or its normalisation
        does not take the values.
    """
    several = images if images.ndim == 4 else images[None]
    _check(several, plan, previous)
    turned = several.transpose(0, *(axis + 1 for axis in plan.transpose_forward))
    nonzero = turned[0] != 0
    for image in turned[1:]:
        nonzero |= image != 0
    box = nonzero_box(nonzero)
    step = grid_step(nonzero[box].shape, spacing_mm, plan)
    earlier = None if previous is None else previous.transpose(plan.transpose_forward)[box].astype(np.int16)
    inside = _inside(nonzero[box], plan, earlier)
    mask = None if inside is None else torch.from_numpy(inside).to(device)
    seen = torch.empty((plan.inputs, *step.shape_to), device=device)
    for index, channel in enumerate(plan.channels):
        # A copy, in order: what follows works in place.
        crop = torch.from_numpy(np.array(turned[index][box], dtype=np.float32, order="C")).to(device)
        normalize(crop, channel, mask)
        resample(crop, step, plan.resampling, seen[index])
    if earlier is not None and inside is not None and plan.label_resampling is not None:
        earlier[~inside] = OUTSIDE
        labels = resample_labels(earlier, step, plan.label_resampling)
        fill_one_hot(seen[len(plan.channels) :], labels, plan.previous_labels)
    return NetworkInput(seen, plan, _shape(nonzero.shape), box, step)


def _check(images: NDArray[np.float32], plan: Plan, previous: NDArray[np.integer[Any]] | None) -> None:
    names = [channel.name for channel in plan.channels]
    if len(images) != len(names):
        raise UnsuitableVolume(f"{len(images)} images; the model needs {len(names)}, in this order: {', '.join(names)}")
    for image, name in zip(images, names, strict=True):
        # One of them is NaN where any voxel is.
        if not (np.isfinite(image.min()) and np.isfinite(image.max())):
            raise UnsuitableVolume(f"the image {name} holds voxels that are not finite")
    if (previous is not None) != bool(plan.previous_labels):
        raise ValueError(f"{plan.configuration}: labels of an earlier network and the plan's go together")
    if previous is not None and previous.shape != images.shape[1:]:
        raise ValueError(f"earlier labels of shape {previous.shape} for images of {images.shape[1:]}")


def _inside(nonzero: NDArray[np.bool_], plan: Plan, earlier: NDArray[np.int16] | None) -> NDArray[np.bool_] | None:
    """The nonzero region with its holes filled; None where nothing asks for it.

    To nnU-Net, what the first network of a cascade labelled lies inside, wherever it is.
    """
    if earlier is None and not any(channel.use_mask for channel in plan.channels):
        return None
    filled = nonzero if nonzero.all() else ndimage.binary_fill_holes(nonzero)
    return filled if earlier is None else filled | (earlier != 0)


def grid_step(shape: Sequence[int], spacing_mm: Sequence[float], plan: Plan) -> Step:
    """From the kept part of an image, its axes in the plan's order, to the network's grid; spacings in the image's."""
    # Pictures know no millimetres, and nnU-Net's reader makes these up.
    given = (999.0, 1.0, 1.0) if plan.reader == PICTURES else spacing_mm
    spacing = _triple([float(given[axis]) for axis in plan.transpose_forward])
    # A 2D network sees single slices: the first axis keeps its own spacing.
    target = _triple([spacing[0], *plan.spacing_mm] if plan.is_2d else plan.spacing_mm)
    resizes = plan.resampling.function != "no_resampling_hack"
    return Step(_shape(shape), _shape(new_shape(shape, spacing, target) if resizes else shape), spacing, target)


def nonzero_box(image: NDArray[Any]) -> tuple[slice, slice, slice]:
    """The smallest box that holds every voxel other than zero (or False); all of an image that holds none.

    nnU-Net fills holes first, which cannot change the box.
    """
    nonzero = image != 0
    slices = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        there = np.flatnonzero(nonzero.any(axis=others))
        slices.append(slice(int(there[0]), int(there[-1]) + 1) if len(there) else slice(0, image.shape[axis]))
    return slices[0], slices[1], slices[2]


def _shape(shape: Sequence[int]) -> Shape:
    d, h, w = shape
    return int(d), int(h), int(w)


def _triple(spacing: Sequence[float]) -> Spacing:
    d, h, w = spacing
    return float(d), float(h), float(w)
