"""Several channels, regions, cascades and ensembles against the nnunetv2 package, on real volumes."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from engines.backends.base import Engine, Placement
from engines.conversion.checkpoint import TRAINERS
from engines.conversion.dataset import read_labels
from engines.conversion.nnunet import Description, import_results_folders
from engines.conversion.plans import read_plan
from engines.errors import UnsuitableVolume
from engines.inference.segmenter import Segmenter
from engines.model.bundle import Bundle
from engines.model.network import tensors
from engines.preprocessing.preprocess import preprocess
from engines.volume import Grid, Volume

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


EXACT = {"torch float32": True, "openvino float32": False}
"""The reference sums as nnU-Net does; every other engine in float32, and is compared with nnU-Net doing so."""
DEEP = ((1, 1, 1), (2, 2, 2), (2, 2, 2))


def segmented(bundle: Bundle, images: Volume | Sequence[Volume], engine: str) -> NDArray[Any]:
    with Segmenter.open(bundle, Engine.parse(engine), Placement(threads=1)) as segmenter:
        return segmenter.segment(images).label_map.labels


@pytest.mark.parametrize("changes", [{}, {"transpose": (1, 2, 0)}, {"torch_resampling": True}])
def test_cascade_equals_nnunet(
    changes: Any, nnunet_model: Any, recipe: Any, hippocampus: Volume, assert_agree: Any
) -> None:
    """Each stage on the same labels: a network of random weights makes hundreds of differing voxels of one in the
    labels that it is shown, nnU-Net's too.
    """
    spacing, voxels = hippocampus.grid.spacing_mm, hippocampus.voxels
    chosen = {"strides": DEEP, "orientation": "SAR", **changes}
    first = nnunet_model(recipe(name="first", spacing=(2.1, 1.9, 2.0), **chosen), voxels, spacing)
    earlier = first.predicted(voxels, spacing).astype(np.int16)
    second = nnunet_model(
        recipe(name="second", spacing=(1.2, 1.1, 0.9), previous_stage=True, **chosen), voxels, spacing, earlier
    )
    assert [member.name for member in second.bundle.members] == ["first", "second"]
    for engine, exact in EXACT.items():
        shown = segmented(first.bundle, hippocampus, engine)
        assert_agree(shown, first.predicted(voxels, spacing, wide=not exact), exact=exact)
        expected = second.predicted(voxels, spacing, shown.astype(np.int16), wide=not exact)
        assert_agree(segmented(second.bundle, hippocampus, engine), expected, exact=exact)
    # The second network heeds the first: without its labels the map is another.
    assert (second.predicted(voxels, spacing, np.zeros_like(earlier)) != expected).mean() > 0.01


def test_regions_equal_nnunet(nnunet_model: Any, recipe: Any, hippocampus: Volume, assert_agree: Any) -> None:
    spacing, voxels = hippocampus.grid.spacing_mm, hippocampus.voxels
    chosen = recipe(
        regions=((1, 2, 3), (2, 3), (3,)), spacing=(1.3, 1.1, 1.2), strides=DEEP, orientation="SAR", folds=2
    )
    model = nnunet_model(chosen, voxels, spacing)
    expected = model.predicted(voxels, spacing)
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    assert model.bundle.labels[1] == "region 1 without region 2 and region 3"
    for engine, exact in EXACT.items():
        expected = model.predicted(voxels, spacing, wide=not exact)
        assert_agree(segmented(model.bundle, hippocampus, engine), expected, exact=exact)


def test_several_channels_equal_nnunet(nnunet_model: Any, recipe: Any, hippocampus: Volume, assert_agree: Any) -> None:
    """An image with a zero frame and one without, each by its own scheme."""
    spacing = hippocampus.grid.spacing_mm
    voxels = several(framed(hippocampus) * 100, 2)
    grid = Grid(voxels.shape[1:], hippocampus.grid.affine)
    volumes = [Volume(grid, np.ascontiguousarray(each), "MR") for each in voxels]
    model = nnunet_model(
        recipe(channels=TWO, spacing=(1.3, 1.1, 1.2), strides=DEEP, orientation="SAR"), voxels, spacing
    )
    for engine, exact in EXACT.items():
        expected = model.predicted(voxels, spacing, wide=not exact)
        assert_agree(segmented(model.bundle, volumes, engine), expected, exact=exact)
    with pytest.raises(UnsuitableVolume, match="needs 2 images"):
        segmented(model.bundle, volumes[0], "torch float32")


@pytest.mark.parametrize("regions", [(), ((1, 2, 3), (2, 3), (3,))])
def test_ensemble_of_2d_and_3d_equals_nnunet(
    regions: Any, nnunet_model: Any, recipe: Any, hippocampus: Volume, assert_agree: Any
) -> None:
    """The mean of their probabilities, softmax or sigmoid, on the image's own grid."""
    spacing, voxels = hippocampus.grid.spacing_mm, hippocampus.voxels
    chosen = {"orientation": "SAR", "regions": regions}
    flat = recipe(name="flat", patch=(32, 24), spacing=(1.1, 1.0), strides=((1, 1), (2, 2), (2, 2)), **chosen)
    full = recipe(name="full", spacing=(1.3, 1.1, 1.2), strides=DEEP, **chosen)
    models = [nnunet_model(each, voxels, spacing) for each in (flat, full)]
    bundle = models[0].imported(*(model.results for model in models))
    assert [member.name for member in bundle.averaged] == ["flat", "full"]
    for engine, exact in EXACT.items():
        mean = np.mean([model.probabilities(voxels, spacing, wide=not exact) for model in models], axis=0)
        expected = models[0].label_manager.convert_probabilities_to_segmentation(mean)
        assert_agree(segmented(bundle, hippocampus, engine), expected, exact=exact)
    assert all((model.predicted(voxels, spacing) != expected).mean() > 0.001 for model in models)


@pytest.fixture
def fabricated(tmp_path: Path) -> Callable[..., Bundle]:
    """A bundle of real JSON files and random weights of the network that they describe."""

    def make(plans: dict[str, Any], dataset: dict[str, Any], configuration: str) -> Bundle:
        folder = tmp_path / f"nnUNetTrainer__nnUNetPlans__{configuration}"
        (folder / "fold_0").mkdir(parents=True)
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(dataset))
        plan = read_plan(plans, configuration, read_labels(dataset))
        source = torch.Generator().manual_seed(0)
        shapes = tensors(plan.architecture, plan.inputs, plan.outputs)
        checkpoint = {
            "network_weights": {key: 0.05 * torch.randn(shape, generator=source) for key, shape in shapes.items()},
            "init_args": {"configuration": configuration},
            "trainer_name": "nnUNetTrainer",
        }
        torch.save(checkpoint, folder / "fold_0/checkpoint_final.pth")
        (tmp_path / "card.md").write_text("# Random weights\n")
        description = Description("real-json", "1", ["MR"], tmp_path / "card.md", "SPL")
        return import_results_folders([folder], tmp_path / "bundle", description)

    return make


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_real_plans_of_four_channels_and_regions(
    configuration: str, fabricated: Callable[..., Bundle], test_data: Path
) -> None:
    """The new style; dataset.json as nnU-Net's own conversion script of BraTS writes it."""
    plans = json.loads((test_data / "nnunet-json/brats2021-4ch-3d-new-style/nnUNetPlans.json").read_text())
    dataset = {
        "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"},
        "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
        "regions_class_order": [1, 2, 3],
        "numTraining": 1251,
        "file_ending": ".nii.gz",
    }
    bundle = fabricated(plans, dataset, configuration)
    plan = bundle.members[0].plan
    assert bundle.channels == ("T1", "T1ce", "T2", "Flair")
    assert (plan.inputs, plan.outputs, plan.region_order) == (4, 3, (1, 2, 3))
    assert bundle.labels[2] == "tumor core without enhancing tumor"
    assert bundle.labels[3] == "enhancing tumor"


def test_real_plans_of_pictures_in_the_old_style(fabricated: Callable[..., Bundle], test_data: Path) -> None:
    folder = test_data / "nnunet-json/stenosis-2d-old-style-model-folder"
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("plans.json", "dataset.json"))
    bundle = fabricated(plans, dataset, "2d")
    plan = bundle.members[0].plan
    assert plan.is_2d
    assert plan.reader == "NaturalImage2DIO"
    assert dict(bundle.labels) == {1: "sten"}


def test_pictures_are_preprocessed_as_nnunet_does(nnunet_plan: Any, recipe: Any, hippocampus: Volume) -> None:
    """Its reader gives every picture the spacing 999, 1, 1."""
    model = nnunet_plan(recipe(spacing=(1.0, 1.0), patch=(24, 24), strides=((1, 1), (2, 2))))
    model.plans["image_reader_writer"] = "NaturalImage2DIO"
    plan = read_plan(model.plans, "small", read_labels(model.dataset))
    slices = hippocampus.voxels[10:14]
    expected, _ = model.preprocessed(slices, (999.0, 1.0, 1.0))
    assert float(np.abs(preprocess(slices, (2.5, 0.8, 0.8), plan).image.numpy() - expected).max()) < 1e-5


def test_known_trainers_are_those_that_keep_the_network() -> None:
    """Every trainer of the installed nnunetv2 that neither it nor a parent of its own builds a network for."""
    bases: dict[str, list[str]] = {}
    builders = set()
    for path in Path(str(files("nnunetv2"))).glob("training/nnUNetTrainer/**/*.py"):
        for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(item, ast.ClassDef):
                bases[item.name] = [base.id for base in item.bases if isinstance(base, ast.Name)]
                if any(isinstance(each, ast.FunctionDef) and each.name in BUILDS for each in item.body):
                    builders.add(item.name)

    def keeps(name: str) -> bool:
        if name == "nnUNetTrainer":
            return True
        return name not in builders and any(keeps(base) for base in bases.get(name, []))

    assert {name for name in bases if keeps(name)} <= TRAINERS
    assert not {name for name in bases if not keeps(name)} & TRAINERS


BUILDS = {"build_network_architecture", "initialize"}
