"""nnunetv2's predictor rebuilt from a bundle answers as it does when it is opened by hand from the results folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.conversion.reference import NnunetPredictor
from engines.model.bundle import Bundle
from engines.volume import Grid, Volume

pytestmark = pytest.mark.data

DEEP = ((1, 1, 1), (2, 2, 2), (2, 2, 2))


def assert_same(bundle: Bundle, volumes: list[Volume], expected: NDArray[Any]) -> None:
    """But for a voxel or two that hang by a hair: a network's first call on a machine may round otherwise."""
    found = NnunetPredictor(bundle).segment(volumes)
    assert found.labels.shape == expected.shape
    assert len(np.unique(expected)) > 2
    assert int((found.labels != expected).sum()) <= 2
    assert set(found.seconds) == {"preprocess", "network", "labels", "total"}


@pytest.mark.parametrize(
    "changes",
    [
        {"folds": 2, "mirroring": (0, 2)},
        {"network": "ResidualEncoderUNet", "transpose": (1, 2, 0)},
        {"regions": ((1, 2, 3), (2, 3), (3,))},
        {"patch": (32, 24), "spacing": (1.1, 1.0), "strides": ((1, 1), (2, 2), (2, 2))},
    ],
)
def test_one_configuration(changes: Any, nnunet_model: Any, recipe: Any, hippocampus: Volume) -> None:
    spacing, voxels = hippocampus.grid.spacing_mm, hippocampus.voxels
    chosen = {"spacing": (1.3, 1.1, 1.2), "strides": DEEP, "orientation": "SAR", **changes}
    model = nnunet_model(recipe(**chosen), voxels, spacing)
    assert_same(model.bundle, [hippocampus], model.predicted(voxels, spacing))


def test_the_images_are_turned_as_the_bundle_says(nnunet_model: Any, recipe: Any, hippocampus: Volume) -> None:
    """The model wants slices upside down; the labels come back as the image lies."""
    spacing, seen = hippocampus.grid.spacing_mm, np.ascontiguousarray(hippocampus.voxels[::-1, :, ::-1])
    model = nnunet_model(recipe(spacing=(1.3, 1.1, 1.2), strides=DEEP, orientation="IAL"), seen, spacing)
    assert hippocampus.grid.axis_codes == "SAR"
    assert_same(model.bundle, [hippocampus], model.predicted(seen, spacing)[::-1, :, ::-1])


def test_a_cascade(nnunet_model: Any, recipe: Any, hippocampus: Volume) -> None:
    spacing, voxels = hippocampus.grid.spacing_mm, hippocampus.voxels
    chosen = {"strides": DEEP, "orientation": "SAR"}
    first = nnunet_model(recipe(name="first", spacing=(2.1, 1.9, 2.0), **chosen), voxels, spacing)
    earlier = first.predicted(voxels, spacing).astype(np.int16)
    second = nnunet_model(
        recipe(name="second", spacing=(1.2, 1.1, 0.9), previous_stage=True, **chosen), voxels, spacing, earlier
    )
    assert len(second.bundle.members) == 2
    assert_same(second.bundle, [hippocampus], second.predicted(voxels, spacing, earlier))


def test_an_ensemble(nnunet_model: Any, recipe: Any, hippocampus: Volume) -> None:
    spacing, voxels = hippocampus.grid.spacing_mm, hippocampus.voxels
    flat = recipe(name="flat", patch=(32, 24), spacing=(1.1, 1.0), strides=((1, 1), (2, 2), (2, 2)), orientation="SAR")
    full = recipe(name="full", spacing=(1.3, 1.1, 1.2), strides=DEEP, orientation="SAR")
    models = [nnunet_model(each, voxels, spacing) for each in (flat, full)]
    mean = np.mean([model.probabilities(voxels, spacing) for model in models], axis=0)
    expected = models[0].label_manager.convert_probabilities_to_segmentation(mean)
    assert_same(models[0].imported(*(model.results for model in models)), [hippocampus], np.asarray(expected))


def test_several_channels(nnunet_model: Any, recipe: Any, hippocampus: Volume) -> None:
    spacing = hippocampus.grid.spacing_mm
    voxels = np.stack([hippocampus.voxels, np.sqrt(np.abs(hippocampus.voxels))]).astype(np.float32)
    two = (("CT", "CTNormalization", False), ("MR", "ZScoreNormalization", True))
    chosen = recipe(channels=two, spacing=(1.3, 1.1, 1.2), strides=DEEP, orientation="SAR")
    model = nnunet_model(chosen, voxels, spacing)
    grid = Grid(voxels.shape[1:], hippocampus.grid.affine)
    assert_same(model.bundle, [Volume(grid, each, "MR") for each in voxels], model.predicted(voxels, spacing))


def test_what_it_answers_to_one_patch_is_what_the_bundle_stores(
    nnunet_model: Any, recipe: Any, hippocampus: Volume
) -> None:
    chosen = recipe(folds=2, spacing=(1.3, 1.1, 1.2), strides=DEEP, orientation="SAR")
    model = nnunet_model(chosen, hippocampus.voxels, hippocampus.grid.spacing_mm)
    (member,) = model.bundle.members
    crop = member.parity()
    answer = NnunetPredictor(model.bundle).logits(member.name, crop.image)
    sampled = answer[(slice(None), *(slice(None, None, crop.step),) * 3)]
    assert float(np.abs(sampled - crop.logits).max()) < 1e-3 * float(crop.logits.std())
