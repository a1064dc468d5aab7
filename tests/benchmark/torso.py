"""A torso made of mathematics, and a U-Net of random weights fitted to find its organs, as nnU-Net leaves a model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.conversion.nnunet import ANY_ORIENTATION, Description, Selection, import_results_folders
from engines.model.bundle import Bundle

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

_CT = {
    "mean": 100.0,
    "median": 60.0,
    "std": 300.0,
    "percentile_00_5": -220.0,
    "percentile_99_5": 1500.0,
    "min": -1024.0,
    "max": 1600.0,
}
_AIR, _BODY = -1000.0, -150.0
_NOISE_HU = 6.0
_RIDGE = 1e-4
_LARGEST_LOGIT = 60.0
"""Far within what nnU-Net's float16 sums hold."""


@dataclass(frozen=True)
class Network:
    """A PlainConvUNet as nnU-Net plans it: two convolutions a stage, stride 2 between stages."""

    patch: int
    features: tuple[int, ...]
    spacing_mm: float = 1.5


NETWORKS = {
    "small": Network(96, (16, 32, 64, 128, 256)),
    "standard": Network(128, (32, 64, 128, 256, 320, 320)),
    "tiny": Network(32, (4, 8, 16), 4.0),
}


@dataclass(frozen=True)
class Organ:
    """An ellipsoid; centre and half axes in parts of the torso's extent, (D, H, W)."""

    centre: Triple
    half: Triple
    hu: float


@dataclass(frozen=True)
class Torso:
    """A body of one density and its organs, each denser and of a density of its own, in a field of view of `extent_mm`.

    The same torso on every grid: what it holds depends on the number of classes and the extent alone.
    """

    classes: int
    extent_mm: Triple

    @cached_property
    def organs(self) -> tuple[Organ, ...]:
        """Apart from each other where there is room, inside the body."""
        rng = np.random.default_rng(24)
        count = self.classes - 1
        densities = rng.permutation(np.linspace(-50.0, 1450.0, count))
        size = 0.16 * (24 / max(count, 24)) ** (1 / 3)
        placed: list[Organ] = []
        for hu in densities:
            half = _triple(rng.uniform(0.45, 1.0, 3) * size)
            centre = next(c for c in self._places(rng, half, placed))
            placed.append(Organ(centre, half, float(hu)))
        return tuple(placed)

    def _places(self, rng: np.random.Generator, half: Triple, placed: Sequence[Organ]) -> Iterator[Triple]:
        """Centres inside the body, those far from all other organs first; after many tries any."""
        for attempt in range(400):
            d, h, w = rng.uniform(0.12, 0.88, 3)
            if ((h - 0.5) / 0.30) ** 2 + ((w - 0.5) / 0.38) ** 2 > 1:
                continue
            apart = all(
                sum(((a - b) / (p + q)) ** 2 for a, b, p, q in zip((d, h, w), o.centre, half, o.half, strict=True)) > 1
                for o in placed
            )
            if apart or attempt > 300:
                yield float(d), float(h), float(w)
        yield 0.5, 0.5, 0.5

    def labels(self, shape: Shape) -> NDArray[np.uint8]:
        """uint8, (D, H, W): 0 for all that is no organ."""
        found = np.zeros(shape, np.uint8)
        axes = [(np.arange(n) + 0.5) / n for n in shape]
        for label, organ in enumerate(self.organs, start=1):
            box = tuple(
                slice(int(np.searchsorted(a, c - r)), int(np.searchsorted(a, c + r)))
                for a, c, r in zip(axes, organ.centre, organ.half, strict=True)
            )
            d, h, w = (((a[s] - c) / r) ** 2 for a, s, c, r in zip(axes, box, organ.centre, organ.half, strict=True))
            found[box][d[:, None, None] + h[:, None] + w < 1] = label
        return found

    def image(self, shape: Shape) -> NDArray[np.float32]:
        """float32, (D, H, W), HU, with noise."""
        table = np.array([_BODY, *(organ.hu for organ in self.organs)], np.float32)
        voxels = table[self.labels(shape)]
        h, w = ((np.arange(n) + 0.5) / n - 0.5 for n in shape[1:])
        voxels[:, (h[:, None] / 0.36) ** 2 + (w / 0.46) ** 2 > 1] = _AIR
        rng = np.random.default_rng(7)
        for plane in voxels:
            plane += rng.normal(0.0, _NOISE_HU, plane.shape).astype(np.float32)
        return np.clip(np.round(voxels), -1024, 1600).astype(np.float32)


def _triple(values: Sequence[float]) -> Triple:
    d, h, w = values
    return float(d), float(h), float(w)


def plans_of(network: Network, inputs: int = 1) -> dict[str, Any]:
    """plans.json of one configuration, with nnU-Net's default resampling."""
    stages = len(network.features)
    resampling = "resample_data_or_seg_to_shape"

    def arguments(order: int, is_seg: bool) -> dict[str, Any]:
        return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}

    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [network.patch] * 3,
        "median_image_size_in_voxels": [250.0, 273.0, 273.0],
        "spacing": [network.spacing_mm] * 3,
        "normalization_schemes": ["CTNormalization"] * inputs,
        "use_mask_for_norm": [False] * inputs,
        "resampling_fn_data": resampling,
        "resampling_fn_seg": resampling,
        "resampling_fn_probabilities": resampling,
        "resampling_fn_data_kwargs": arguments(3, False),
        "resampling_fn_seg_kwargs": arguments(1, True),
        "resampling_fn_probabilities_kwargs": arguments(1, False),
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(network.features),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * stages,
                "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset901_Torso",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.5, 0.8, 0.8],
        "original_median_shape_after_transp": [150, 512, 512],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(n): _CT for n in range(inputs)},
    }


def make_bundle(
    folder: Path, network: Network, torso: Torso, image: NDArray[np.float32], spacing: Sequence[float]
) -> Bundle:
    """Fit a network to the torso, write it as a results folder of nnU-Net, and import that: the same weights twice."""
    plans = plans_of(network)
    labels = {"background": 0, **{f"organ {n}": n for n in range(1, torso.classes)}}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    results = folder / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (results / "fold_0").mkdir(parents=True)
    (results / "plans.json").write_text(json.dumps(plans))
    (results / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": _fitted(network, plans, dataset, torso, image, spacing),
        "logging": {},
        "current_epoch": 1,
        "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": dataset},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, results / "fold_0" / "checkpoint_final.pth")
    card = folder / "card.md"
    card.write_text("# Random weights, the last layer fitted to a torso made of mathematics\n")
    description = Description("torso", "1", ["CT"], card, ANY_ORIENTATION)
    return import_results_folders([results], folder / "bundle", description, Selection(storage="float32"))


def _fitted(
    network: Network,
    plans: dict[str, Any],
    dataset: dict[str, Any],
    torso: Torso,
    image: NDArray[np.float32],
    spacing: Sequence[float],
) -> dict[str, torch.Tensor]:
    """Random weights; the last layer separates the organs, on windows that cover the whole torso."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    data, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        image[None], None, {"spacing": list(spacing)}, manager, configuration, dataset
    )
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            1,
            torso.classes,
            deep_supervision=False,
        ).eval()
    weights, bias = _discriminant(model, data[0], torso.labels(data.shape[1:]), network.patch, torso.classes)
    head = model.decoder.seg_layers[-1]
    with torch.no_grad():
        head.weight.copy_(weights.reshape(head.weight.shape))
        head.bias.copy_(bias)
    return {key: value.clone() for key, value in model.state_dict().items()}


def _discriminant(
    model: torch.nn.Module, data: NDArray[np.float32], truth: NDArray[np.uint8], patch: int, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (classes, features) and bias (classes): Fisher's linear discriminant on the last feature map."""
    gaps = [max(0, patch - n) for n in data.shape]
    data, truth = (np.pad(each, [(0, gap) for gap in gaps], mode="edge") for each in (data, truth))
    counts, sums, square = torch.zeros(classes, dtype=torch.float64), 0.0, 0.0
    kept: list[torch.Tensor] = []
    hook = model.decoder.stages[-1].register_forward_hook(lambda _m, _i, out: kept.append(out))
    for window in _cover(data.shape, patch):
        with torch.inference_mode():
            model(torch.from_numpy(np.ascontiguousarray(data[window]))[None, None])
        features = kept.pop()[0].flatten(1).double()
        target = torch.from_numpy(truth[window].reshape(-1).astype(np.int64))
        counts += torch.bincount(target, minlength=classes)
        sums = sums + torch.zeros(len(features), classes, dtype=torch.float64).index_add_(1, target, features)
        square = square + features @ features.T
    hook.remove()
    means = sums / counts.clamp(min=1)
    within = (square - (means * counts) @ means.T) / counts.sum()
    within += _RIDGE * within.diagonal().mean() * torch.eye(len(within))
    weights = torch.linalg.solve(within, means).T
    bias = (counts.clamp(min=1) / counts.sum()).log() - 0.5 * (weights * means.T).sum(1)
    weights, bias = weights - weights.mean(0), bias - bias.mean()  # the largest stays the largest
    scale = _LARGEST_LOGIT / float((weights @ means + bias[:, None]).abs().max())
    return (scale * weights).float().contiguous(), (scale * bias).float().contiguous()


def _cover(shape: Sequence[int], patch: int) -> Iterator[tuple[slice, ...]]:
    """As few windows as cover the whole."""
    starts = [np.linspace(0, n - patch, -(-n // patch)).round().astype(int) for n in shape]
    for corner in product(*starts):
        yield tuple(slice(int(at), int(at) + patch) for at in corner)
