"""nnU-Net's preprocessing of one image, and the typed way back from logits to labels on the image's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from engines.model.plan import Plan
from engines.preprocessing.labels import LabelArray, labels_at
from engines.preprocessing.normalization import normalize
from engines.preprocessing.resampling import Shape, Spacing, Step, linear_taps, new_shape, resample


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """What the network sees, and how to return from it.

    Attributes
    ----------
    image
        float32, (C, D, H, W), normalised, at the plan's spacing, axes in the plan's order.
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

    def labels(self, logits: torch.Tensor) -> LabelArray:
        """Labels on the grid that the image was given on.

        Parameters
        ----------
        logits
            float32, (outputs, D, H, W), on the grid of `image`; values that float16 can hold.

        Returns
        -------
        uint8, or uint16 above 255 classes, (D, H, W), axes in the image's own order; 0 outside `box`.
        """
        resampling = self.plan.logit_resampling
        halved = resampling.function == "resample_data_or_seg_to_shape"
        kept = labels_at(logits, linear_taps(self.step.back(), resampling), halved)
        full = np.zeros(self.full_shape, dtype=kept.dtype)
        full[self.box] = kept
        return full.transpose(self.plan.transpose_backward)


def preprocess(image: NDArray[np.float32], spacing_mm: Sequence[float], plan: Plan) -> NetworkInput:
    """Transpose, crop to nonzero, normalise, resample: in this order, as nnU-Net does.

    Parameters
    ----------
    image
        float32, (D, H, W), finite, in the orientation that the model was trained on.
    spacing_mm
        Along (D, H, W).
    """
    order = plan.transpose_forward
    turned = image.transpose(order)
    spacing = _triple([float(spacing_mm[axis]) for axis in order])
    box = nonzero_box(turned)
    crop = turned[box].astype(np.float32)  # a copy: what follows works in place
    masked = any(channel.use_mask for channel in plan.channels)
    inside = ndimage.binary_fill_holes(turned != 0)[box] if masked else None
    normalize(crop, plan.channels[0], inside)
    # A 2D network sees single slices: the first axis keeps its own spacing.
    target = _triple([spacing[0], *plan.spacing_mm] if plan.is_2d else plan.spacing_mm)
    resizes = plan.resampling.function != "no_resampling_hack"
    shape = new_shape(crop.shape, spacing, target) if resizes else crop.shape
    step = Step(_shape(crop.shape), _shape(shape), spacing, target)
    network_image = torch.from_numpy(np.ascontiguousarray(resample(crop, step, plan.resampling)))[None]
    return NetworkInput(network_image, plan, _shape(turned.shape), box, step)


def nonzero_box(image: NDArray[np.float32]) -> tuple[slice, slice, slice]:
    """The smallest box that holds every voxel other than zero; all of an image that holds none.

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
