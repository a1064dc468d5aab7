"""nnU-Net's postprocessing: of some labels, only the largest connected piece is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from engines.inference.labelling import LabelArray

KeepLargest = tuple[int, ...]
"""Labels that are taken together: all pieces of their union but the largest become background."""


def postprocess(labels: LabelArray, steps: Sequence[KeepLargest]) -> LabelArray:
    """Apply the steps in order, in place, and return the array.

    Parameters
    ----------
    labels
        uint8 or uint16, (D, H, W).

    Voxels that touch by a face, an edge or a corner are one piece, and of pieces of equal size all stay, as in
    `nnunetv2.postprocessing.remove_connected_components`.
    """
    for step in steps:
        member = np.isin(labels, step)
        box = ndimage.find_objects(member.astype(np.uint8))
        if box:
            labels[box[0]][_smaller_pieces(member[box[0]])] = 0
    return labels


def _smaller_pieces(member: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, count = ndimage.label(member, structure=np.ones((3,) * member.ndim))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    smaller = np.concatenate([[False], sizes < sizes.max()])
    return np.asarray(smaller[pieces])
