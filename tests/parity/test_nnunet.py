"""Our engine against the nnunetv2 package on the same real volumes, to the tolerances that were measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from engines.backends.base import Engine, Placement
from engines.backends.openvino import OpenVinoBackend
from engines.backends.torch import TorchBackend
from engines.inference.arithmetic import DeviceArithmetic, HostArithmetic, Rule
from engines.inference.labelling import Source, label_volume
from engines.inference.segmenter import Segmenter
from engines.inference.sliding_window import Plane, Windowing, gaussian, planes, windows
from engines.preprocessing.preprocess import preprocess
from engines.volume import Grid, Volume

pytestmark = pytest.mark.data

Array = NDArray[np.float32]

FLAT = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
PREPROCESSING = {
    "3d, finer": ({"spacing": (2.0, 2.2, 2.4)}, (3.0, 3.0, 3.0)),
    "3d, coarser": ({"spacing": (4.5, 4.0, 3.7)}, (3.0, 3.0, 3.0)),
    "same grid": ({"spacing": (3.0, 3.0, 3.0)}, (3.0, 3.0, 3.0)),
    "thick slices, separate z from the image": ({"spacing": (5.0, 1.2, 1.2)}, (7.5, 1.0, 1.0)),
    "thick slices, separate z from the plan": ({"spacing": (4.0, 1.0, 1.0)}, (2.5, 1.1, 1.1)),
    "thin axis last": ({"spacing": (1.5, 1.5, 6.0)}, (1.0, 1.0, 4.0)),
    "two equal largest: not separate": ({"spacing": (1.0, 4.0, 4.0)}, (1.0, 5.0, 5.0)),
    "transposed": ({"spacing": (4.0, 2.0, 3.0), "transpose": (2, 0, 1)}, (3.0, 3.5, 2.5)),
    "transposed, separate z": ({"spacing": (5.0, 1.0, 1.3), "transpose": (1, 0, 2)}, (1.0, 6.0, 1.2)),
    "CT": ({"spacing": (4.0, 4.0, 4.0), "normalization": "CTNormalization"}, (3.0, 3.0, 3.0)),
    "masked z-score": ({"spacing": (4.0, 4.0, 4.0), "use_mask": True}, (3.0, 3.0, 3.0)),
    "0 to 1": ({"spacing": (4.0, 4.0, 4.0), "normalization": "RescaleTo01Normalization"}, (3.0, 3.0, 3.0)),
    "as it is": ({"spacing": (3.0, 3.0, 3.0), "normalization": "NoNormalization"}, (3.0, 3.0, 3.0)),
    "torch": ({"spacing": (4.0, 2.5, 4.0), "torch_resampling": True}, (3.0, 3.0, 3.0)),
    "torch, separate z": ({"spacing": (5.0, 1.2, 1.2), "torch_resampling": True}, (7.5, 1.0, 1.0)),
    "2d": ({"spacing": (2.0, 2.5), "patch": (24, 24), "strides": ((1, 1), (2, 2))}, (9.0, 3.0, 3.0)),
}


def padded_brain(volume: Volume) -> Array:
    """A real image with a zero frame and a hole inside, as skull-stripped scans have."""
    image = np.zeros(tuple(n + 7 for n in volume.grid.shape), dtype=np.float32)
    image[3:-4, 5:-2, 1:-6] = np.where(volume.voxels > np.median(volume.voxels), volume.voxels, 0)
    image[15:18, 20:24, 15:18] = 0
    return image


@pytest.mark.parametrize("case", PREPROCESSING)
def test_preprocessing_and_way_back_equal_nnunet(case: str, nnunet_plan: Any, recipe: Any, hippocampus: Volume) -> None:
    """The image to 1e-5; labels from the same logits but for a voxel in a million, two of so small a volume."""
    changes, spacing = PREPROCESSING[case]
    image = padded_brain(hippocampus) / np.float32(100)
    model = nnunet_plan(recipe(**{"strides": ((1, 1, 1), (2, 2, 2)), **changes}))
    expected, properties = model.preprocessed(image, spacing)
    ours = preprocess(image, spacing, model.plan)
    assert ours.image.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max()) / 10)  # in normalised units, which "as it is" does not have
    assert float(np.abs(ours.image.numpy() - expected).max()) < 1e-5 * scale
    box = [(each.start, each.stop) for each in ours.box]
    assert box == [tuple(pair) for pair in properties["bbox_used_for_cropping"]]

    noise = np.random.default_rng(3).standard_normal((4, *ours.image.shape[1:]))
    logits = torch.from_numpy(ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 1.5)) * 20).half()
    truth = model.labels(logits.numpy(), properties)
    halved = model.plan.logit_resampling.function == "resample_data_or_seg_to_shape"
    for arithmetic in (HostArithmetic(1), DeviceArithmetic()):
        taken = (Plane(logits[:, z].float(), torch.ones(logits.shape[2:])) for z in range(logits.shape[1]))
        kept = label_volume([Source(taken, ours.taps(), halved)], Rule(), arithmetic, 3)
        assert_labels(ours.uncropped(kept), truth, image.shape)


def assert_labels(labels: NDArray[Any], truth: NDArray[Any], shape: tuple[int, ...]) -> None:
    assert labels.shape == truth.shape == shape
    assert labels.dtype == truth.dtype
    assert len(np.unique(labels)) == 4
    assert int((labels != truth).sum()) <= 2


@pytest.mark.parametrize("size", [(16, 24, 24), (17, 24, 25), (40, 59, 33), (128, 24, 61)])
def test_windows_and_gaussian_equal_nnunet_bit_for_bit(size: tuple[int, int, int]) -> None:
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

    patch = (16, 24, 24)
    steps = compute_steps_for_sliding_window(size, patch, 0.5)
    placed = [(z, y, x) for z in steps[0] for y in steps[1] for x in steps[2]]
    assert [tuple(axis.start for axis in window) for window in windows(size, patch)] == placed
    expected = compute_gaussian(patch, 1.0 / 8, 10, device=torch.device("cpu"))
    assert gaussian(patch).dtype == expected.dtype
    assert torch.equal(gaussian(patch), expected)


@pytest.mark.parametrize(
    ("network", "mirroring"), [("PlainConvUNet", ()), ("ResidualEncoderUNet", ()), ("PlainConvUNet", (0, 2))]
)
def test_logits_with_half_sums_equal_nnunet_bit_for_bit(
    network: str, mirroring: tuple[int, ...], nnunet_model: Any, recipe: Any, hippocampus: Volume
) -> None:
    """Network key for key, padding, windows, flips: with nnU-Net's own float16 sums nothing is left to differ."""
    image = hippocampus.voxels[:22, :30, :20]  # smaller than the patch in one axis
    model = nnunet_model(recipe(network=network, strides=FLAT, mirroring=mirroring), image, (1.0, 1.0, 1.0))
    data = torch.from_numpy(model.preprocessed(image, (1.0, 1.0, 1.0))[0])
    expected = model.predictor().predict_logits_from_preprocessed_data(data)
    member = model.bundle.members[0]
    plan = member.plan
    backend = TorchBackend.open(plan, member.weights("0"), Placement(threads=1))
    windowing = Windowing(plan.patch_size, plan.outputs, mirroring_axes=member.mirroring_axes, sums=torch.float16)
    found = torch.stack([(p.sums / p.weights).clone() for p in planes(data, [backend], windowing)], dim=1)
    assert torch.equal(found, expected)


EXACT = {"torch": True, "openvino": False}
"""The reference sums as nnU-Net does; every other engine in float32, and is compared with nnU-Net doing so."""
END_TO_END = {
    "MR, isotropic": {"spacing": (1.0, 1.0, 1.0), "orientation": "SAR"},
    "MR, residual, transposed, three folds": {
        "network": "ResidualEncoderUNet",
        "folds": 3,
        "spacing": (1.3, 1.1, 1.2),
        "transpose": (1, 2, 0),
        "orientation": "SAR",
    },
}


@pytest.mark.parametrize("case", END_TO_END)
def test_segmenter_equals_nnunet_on_mr(
    case: str, nnunet_model: Any, recipe: Any, hippocampus: Volume, assert_agree: Any
) -> None:
    spacing = hippocampus.grid.spacing_mm
    model = nnunet_model(recipe(**END_TO_END[case]), hippocampus.voxels, spacing)
    for backend, exact in EXACT.items():
        with Segmenter.open(model.bundle, Engine.parse(backend), Placement(threads=1)) as segmenter:
            result = segmenter.segment(hippocampus)
        assert result.backend == backend
        expected = model.predicted(hippocampus.voxels, spacing, wide=not exact)
        assert_agree(result.label_map.labels, expected, exact=exact)


def test_segmenter_equals_nnunet_on_anisotropic_ct(
    nnunet_model: Any, recipe: Any, body_ct: Volume, assert_agree: Any
) -> None:
    """12 x 3 x 3 mm: the slice axis is resampled by itself, both ways; the model wants the slices upside down."""
    grid = Grid((28, 101, 122), body_ct.grid.affine @ np.diag([4.0, 1.0, 1.0, 1.0]))
    volume = Volume(grid, body_ct.voxels[::4], "CT")
    seen = volume.voxels[::-1, ::-1]  # S and A turned into I and P
    chosen = recipe(
        patch=(8, 32, 32),
        spacing=(14.0, 5.0, 5.5),
        strides=FLAT,
        normalization="CTNormalization",
        modality="CT",
        orientation="IPR",
    )
    spacing = grid.spacing_mm
    model = nnunet_model(chosen, seen, spacing)
    for backend, exact in EXACT.items():
        with Segmenter.open(model.bundle, Engine.parse(backend), Placement(threads=1)) as segmenter:
            result = segmenter.segment(volume)
        assert result.label_map.grid is grid
        expected = model.predicted(seen, spacing, wide=not exact)[::-1, ::-1]
        assert_agree(result.label_map.labels, expected, exact=exact)


def test_segmenter_equals_nnunet_in_2d(nnunet_model: Any, recipe: Any, hippocampus: Volume, assert_agree: Any) -> None:
    spacing = hippocampus.grid.spacing_mm
    chosen = recipe(patch=(32, 24), spacing=(1.1, 1.0), strides=((1, 1), (2, 2), (2, 2)))
    volume = Volume(Grid((8, *hippocampus.grid.shape[1:]), hippocampus.grid.affine), hippocampus.voxels[10:18], "MR")
    model = nnunet_model(chosen, volume.voxels, spacing)
    for backend, exact in EXACT.items():
        expected = model.predicted(volume.voxels, spacing, wide=not exact)
        with Segmenter.open(model.bundle, Engine.parse(backend), Placement(threads=1)) as segmenter:
            assert_agree(segmenter.segment(volume).label_map.labels, expected, exact=exact)


@pytest.mark.parametrize("shape", [(1, 50, 34), (9, 10, 11)])
def test_volume_smaller_than_the_patch_equals_nnunet(
    shape: tuple[int, int, int], nnunet_model: Any, recipe: Any, hippocampus: Volume, assert_agree: Any
) -> None:
    """One voxel thick, and smaller in every axis."""
    volume = Volume(Grid(shape, hippocampus.grid.affine), hippocampus.voxels[tuple(slice(n) for n in shape)], "MR")
    model = nnunet_model(recipe(spacing=(1.0, 1.2, 1.0)), volume.voxels, (1.0, 1.0, 1.0))
    expected = model.predicted(volume.voxels, (1.0, 1.0, 1.0))
    with Segmenter.open(model.bundle, Engine.parse("torch"), Placement(threads=1)) as segmenter:
        assert_agree(segmenter.segment(volume).label_map.labels, expected, exact=True)


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_openvino_equals_torch(network: str, nnunet_model: Any, recipe: Any, hippocampus: Volume) -> None:
    model = nnunet_model(recipe(network=network, strides=FLAT), hippocampus.voxels, (1.0, 1.0, 1.0))
    plan, weights = model.bundle.members[0].plan, model.bundle.members[0].weights("0")
    patches = torch.randn((2, 1, *plan.patch_size), generator=torch.Generator().manual_seed(5))
    placement = Placement(threads=1)
    reference = torch.stack([each.clone() for each in TorchBackend.open(plan, weights, placement).answers(patches)])
    answer = torch.stack([each.clone() for each in OpenVinoBackend.open(plan, weights, placement).answers(patches)])
    assert float((answer - reference).abs().max() / reference.std()) < 1e-3
    assert float((answer.argmax(1) == reference.argmax(1)).float().mean()) >= 0.9995
