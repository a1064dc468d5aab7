"""Several channels, regions and cascades against the nnunetv2 package, on real volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from engines.preprocessing.preprocess import preprocess
from engines.volume import Volume

pytestmark = pytest.mark.data

Array = NDArray[np.float32]
TWO = (("CT", "CTNormalization", False), ("MR", "ZScoreNormalization", True))
CHANNELS = {
    "CT and masked MR": ({"channels": TWO, "spacing": (2.0, 2.2, 2.4)}, (3.0, 3.0, 3.0)),
    "thick slices": ({"channels": TWO, "spacing": (5.0, 1.2, 1.2)}, (7.5, 1.0, 1.0)),
    "transposed": ({"channels": TWO, "spacing": (4.0, 2.0, 3.0), "transpose": (2, 0, 1)}, (3.0, 3.5, 2.5)),
    "torch": ({"channels": TWO, "spacing": (4.0, 2.5, 4.0), "torch_resampling": True}, (3.0, 3.0, 3.0)),
    "one of each": (
        {
            "channels": (
                ("T1", "ZScoreNormalization", True),
                ("T2", "ZScoreNormalization", False),
                ("map", "RescaleTo01Normalization", True),
                ("mask", "NoNormalization", False),
            ),
            "spacing": (2.5, 3.5, 3.0),
        },
        (3.0, 3.0, 3.0),
    ),
    "2d": (
        {"channels": TWO, "spacing": (2.0, 2.5), "patch": (24, 24), "strides": ((1, 1), (2, 2))},
        (9.0, 3.0, 3.0),
    ),
}
CASCADES = {
    "finer": ({"spacing": (2.0, 2.2, 2.4)}, (3.0, 3.0, 3.0)),
    "coarser": ({"spacing": (4.5, 4.0, 3.7)}, (3.0, 3.0, 3.0)),
    "same grid": ({"spacing": (3.0, 3.0, 3.0)}, (3.0, 3.0, 3.0)),
    "twice as fine, all ties": ({"spacing": (1.5, 1.5, 1.5)}, (3.0, 3.0, 3.0)),
    "half as fine, all ties": ({"spacing": (6.0, 6.0, 6.0)}, (3.0, 3.0, 3.0)),
    "thick slices, separate z from the image": ({"spacing": (5.0, 0.5, 0.5)}, (7.5, 1.0, 1.0)),
    "thick slices, separate z from the plan": ({"spacing": (4.0, 1.0, 1.0)}, (2.5, 1.1, 1.1)),
    "transposed": ({"spacing": (4.0, 2.0, 3.0), "transpose": (2, 0, 1)}, (3.0, 3.5, 2.5)),
    "transposed, separate z": ({"spacing": (5.0, 1.0, 1.3), "transpose": (1, 0, 2)}, (1.0, 6.0, 1.2)),
    "masked, two channels": ({"spacing": (4.0, 4.0, 4.0), "channels": TWO}, (3.0, 3.0, 3.0)),
    "torch": ({"spacing": (4.0, 1.5, 6.0), "torch_resampling": True}, (3.0, 3.0, 3.0)),
    "torch, separate z": ({"spacing": (5.0, 0.5, 0.7), "torch_resampling": True}, (7.5, 1.0, 1.0)),
}


def framed(volume: Volume) -> Array:
    """A real image with a zero frame and holes, as skull-stripped scans have."""
    image = np.zeros(tuple(n + 7 for n in volume.grid.shape), dtype=np.float32)
    image[3:-4, 5:-2, 1:-6] = np.where(volume.voxels > np.median(volume.voxels), volume.voxels, 0)
    image[15:18, 20:24, 15:18] = 0
    return image / np.float32(100)


def several(image: Array, channels: int) -> Array:
    """Channels that differ, each with zeros of its own."""
    made = [image, *(np.roll(image, index, axis=index % 3)[::-1] * np.float32(index) for index in range(1, channels))]
    return np.stack(made).astype(np.float32)


def scattered(shape: tuple[int, ...], classes: int) -> NDArray[np.int16]:
    """Labels in small patches, so that three and more meet in many places."""
    noise = np.random.default_rng(5).standard_normal((classes, *shape))
    return ndimage.gaussian_filter(noise, (0, 1.0, 1.0, 1.0)).argmax(axis=0).astype(np.int16)


@pytest.mark.parametrize("case", CHANNELS)
def test_channels_are_preprocessed_as_nnunet_does(
    case: str, nnunet_plan: Any, recipe: Any, hippocampus: Volume
) -> None:
    changes, spacing = CHANNELS[case]
    images = several(framed(hippocampus), len(changes["channels"]))
    model = nnunet_plan(recipe(**{"strides": ((1, 1, 1), (2, 2, 2)), **changes}))
    expected, properties = model.preprocessed(images, spacing)
    ours = preprocess(images, spacing, model.plan)
    assert ours.image.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max()) / 10)  # in normalised units, which "as it is" does not have
    assert float(np.abs(ours.image.numpy() - expected).max()) < 1e-5 * scale
    assert [(each.start, each.stop) for each in ours.box] == [tuple(p) for p in properties["bbox_used_for_cropping"]]


@pytest.mark.parametrize("case", CASCADES)
def test_earlier_labels_are_stacked_as_nnunet_does(
    case: str, nnunet_plan: Any, recipe: Any, hippocampus: Volume
) -> None:
    """Not one voxel differs, where labels tie and outside the nonzero region too."""
    changes, spacing = CASCADES[case]
    model = nnunet_plan(recipe(**{"strides": ((1, 1, 1), (2, 2, 2)), "previous_stage": True, **changes}))
    image = framed(hippocampus)
    images = several(image, len(model.plan.channels))
    previous = scattered(image.shape, model.recipe.classes)
    expected, _ = model.preprocessed(images, spacing, previous)
    ours = preprocess(images, spacing, model.plan, previous).image.numpy()
    assert ours.shape == expected.shape == (model.recipe.inputs, *expected.shape[1:])
    assert float(np.abs(ours - expected).max()) < 1e-5
    labels = slice(len(model.plan.channels), None)
    assert np.array_equal(ours[labels], expected[labels])
    assert all(0.05 < channel.mean() < 0.95 for channel in ours[labels])
