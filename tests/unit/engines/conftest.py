"""A small nnU-Net results folder, made without nnunetv2, and a bundle of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.conversion.dataset import read_labels
from engines.conversion.nnunet import Description, Selection, import_results_folders
from engines.conversion.plans import read_plan
from engines.model.bundle import Bundle
from engines.model.network import tensors
from engines.model.plan import Plan

PATCH = (8, 8, 8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other crawl on a busy machine, and these networks are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def plans() -> dict[str, Any]:
    """plans.json in the new style; `small` inherits from `3d_fullres`."""
    resampling = {"order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(PATCH),
        "median_image_size_in_voxels": [20.0, 20.0, 20.0],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, **resampling, "order": 3},
        "resampling_fn_seg_kwargs": {"is_seg": True, **resampling},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, **resampling},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [4, 8],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
                "strides": [[1, 1, 1], [2, 2, 2]],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
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
        "dataset_name": "Dataset901_Unit",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [20, 20, 20],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration, "small": {"inherits_from": "3d_fullres", "batch_size": 1}},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 0.0, "std": 1.0, "percentile_00_5": -2.0, "percentile_99_5": 2.0}
        },
    }


@pytest.fixture
def dataset() -> dict[str, Any]:
    """dataset.json of two organs."""
    return {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "file_ending": ".nii.gz",
    }


@pytest.fixture
def plan(plans: dict[str, Any], dataset: dict[str, Any]) -> Plan:
    """The configuration `small`, typed."""
    return read_plan(plans, "small", read_labels(dataset))


@pytest.fixture
def checkpoint(plan: Plan) -> dict[str, Any]:
    """What nnU-Net would save: every tensor under its several names, numpy scalars in the log."""
    source = torch.Generator().manual_seed(1)
    own = {}
    for key, shape in tensors(plan.architecture, 1, plan.outputs).items():
        own[key] = torch.randn(shape, generator=source) if len(shape) > 1 else torch.zeros(shape)
        if key.endswith("norm.weight"):
            own[key] += 1
    second = {key.replace(".conv.", ".all_modules.0."): each for key, each in own.items() if ".conv." in key}
    third = {f"decoder.{key}": each for key, each in own.items() if key.startswith("encoder.")}
    return {
        "network_weights": {**own, **second, **third},
        "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.25)]},
        "current_epoch": 3,
        "init_args": {"configuration": "small", "fold": 0},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A model card."""
    path = tmp_path / "card.md"
    path.write_text("# Unit\n")
    return path


@pytest.fixture
def results(tmp_path: Path, plans: dict[str, Any], dataset: dict[str, Any], checkpoint: dict[str, Any]) -> Path:
    """A whole results folder of one fold."""
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__small"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


@pytest.fixture
def more_results(tmp_path: Path, plans: dict[str, Any], dataset: dict[str, Any]) -> Callable[..., Path]:
    """Makes a further results folder of one fold, random weights, beside the others.

    `plans` and `dataset` take the place of the fixtures' own; `configuration` must be in the plans.
    """

    def make(configuration: str, prefix: str = "nnUNetTrainer__nnUNetPlans", **changes: Any) -> Path:
        own_plans, own_dataset = changes.get("plans", plans), changes.get("dataset", dataset)
        folder = changes.get("parent", tmp_path) / f"{prefix}__{configuration}"
        (folder / "fold_0").mkdir(parents=True)
        (folder / "plans.json").write_text(json.dumps(own_plans))
        (folder / "dataset.json").write_text(json.dumps(own_dataset))
        plan = read_plan(own_plans, configuration, read_labels(own_dataset))
        source = torch.Generator().manual_seed(len(configuration))
        shapes = tensors(plan.architecture, plan.inputs, plan.outputs)
        checkpoint = {
            "network_weights": {key: torch.randn(shape, generator=source) for key, shape in shapes.items()},
            "init_args": {"configuration": configuration, "fold": 0},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": None,
        }
        torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
        return folder

    return make


@pytest.fixture
def make_bundle(results: Path, card: Path, tmp_path: Path) -> Callable[..., Bundle]:
    """Import the results folder; keyword arguments are the fields of `Description` and `Selection`."""

    def make(folder: str = "bundle", folders: Sequence[Path] = (), **changes: Any) -> Bundle:
        told: dict[str, Any] = {
            "name": "unit",
            "version": "1.0",
            "modalities": ["MR"],
            "card": card,
            "orientation": "any",
            **changes,
        }
        chosen = {each.name: told.pop(each.name) for each in fields(Selection) if each.name in told}
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
        return import_results_folders(folders or [results], tmp_path / folder, Description(**told), Selection(**chosen))

    return make
