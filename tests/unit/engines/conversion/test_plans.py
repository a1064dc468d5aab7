"""plans.json and dataset.json: both styles understood, everything unknown refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.conversion.dataset import Labels, read_labels
from engines.conversion.plans import read_plan, read_previous_stage
from engines.errors import BundleError

ORGANS = Labels({1: "liver", 2: "spleen"}, ("MRI",))


def test_inherited_configuration(plans: dict[str, Any], dataset: dict[str, Any]) -> None:
    plan = read_plan(plans, "small", read_labels(dataset))
    assert plan.configuration == "small"
    assert plan.patch_size == (8, 8, 8)
    assert plan.outputs == 3
    assert plan.architecture.features == (4, 8)
    assert plan.architecture.negative_slope == 0.01
    assert plan.resampling.order == 3
    assert not plan.is_2d


@pytest.mark.data
def test_old_style_equals_what_nnunet_makes_of_it(test_data: Path) -> None:
    """A real plans.json of nnU-Net 2.0 to 2.2."""
    folder = test_data / "nnunet-json/stenosis-2d-old-style-model-folder"
    old = json.loads((folder / "plans.json").read_text()) | {"image_reader_writer": "SimpleITKIO"}
    plan = read_plan(old, "2d", read_labels(json.loads((folder / "dataset.json").read_text())))
    assert plan.is_2d
    assert plan.architecture.network == "PlainConvUNet"
    assert plan.architecture.features == (32, 64, 128, 256, 512, 512, 512, 512)
    assert plan.architecture.strides[0] == (1, 1)
    assert plan.architecture.bias


@pytest.mark.data
def test_real_new_style_of_four_channels(test_data: Path) -> None:
    plans = json.loads((test_data / "nnunet-json/brats2021-4ch-3d-new-style/nnUNetPlans.json").read_text())
    plan = read_plan(plans, "3d_fullres", Labels({1: "tumour"}, ("T1", "T1c", "T2", "FLAIR")))
    assert [channel.name for channel in plan.channels] == ["T1", "T1c", "T2", "FLAIR"]
    assert all(channel.use_mask for channel in plan.channels)
    assert plan.channels[3].intensities.std == pytest.approx(4629.87939453125)
    assert plan.inputs == 4


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Set plans[path[0]][path[1]]... to the last of the path."""

    def change(plans: dict[str, Any]) -> None:
        at: Any = plans
        for key in path[:-2]:
            at = at[key]
        at[path[-2]] = path[-1]

    return change


FULL = ("configurations", "3d_fullres")
NET = (*FULL, "architecture", "arch_kwargs")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("colour", 1), "plans.json: unknown key: colour"),
        (_set(*FULL, "patch", [8]), "configurations: small: unknown key: patch"),
        (_set(*NET, "squeeze", True), "arch_kwargs: unknown key: squeeze"),
        (_set(*FULL, "resampling_fn_data_kwargs", {"sigma": 1}), "resampling_fn_data_kwargs: unknown key: sigma"),
        (_set(*FULL, "resampling_fn_data", "my_fn"), "resampling_fn_data: 'my_fn' is not taken"),
        (_set(*FULL, "normalization_schemes", ["Mine"]), "normalization_schemes: 'Mine' is not taken"),
        (_set(*FULL, "preprocessor_name", "Mine"), "preprocessor_name: 'Mine'"),
        (_set(*FULL, "architecture", "network_class_name", "a.b.PrimusM"), "network 'PrimusM' is not taken"),
        (_set(*NET, "norm_op", "torch.nn.BatchNorm3d"), "norm_op: 'BatchNorm3d'"),
        (_set(*NET, "conv_op", "os.system"), "conv_op: 'system'"),
        (_set(*NET, "nonlin_kwargs", {"inplace": True, "weight": 3}), "nonlin_kwargs: unknown key: weight"),
        (_set(*NET, "features_per_stage", [4]), "features_per_stage"),
        (_set(*NET, "kernel_sizes", [[3, 3, 3], [2, 3, 3]]), "even kernels"),
        (_set(*FULL, "patch_size", [8, 8, 9]), "not a multiple of the strides' product"),
        (_set(*FULL, "patch_size", [8, 8]), "differ in dimensions"),
        (_set(*FULL, "spacing", [1.0, 0.0, 1.0]), "spacing"),
        (_set("transpose_forward", [0, 2, 1]), "no inverses"),
        (_set("transpose_forward", [0, 0, 1]), "no inverses"),
        (_set("image_reader_writer", "NaturalImage2DIO"), "reads single pictures"),
        (_set("image_reader_writer", "BlosC2"), "image_reader_writer: 'BlosC2'"),
        (_set(*FULL, "use_mask_for_norm", [None]), "use_mask_for_norm: None"),
        (_set("label_manager", "Mine"), "label_manager: 'Mine'"),
        (_set("configurations", "small", "inherits_from", "gone"), "gone is not there; known: 3d_fullres, small"),
        (_set("configurations", "small", "inherits_from", "small"), "circle"),
        (_set(*FULL, "resampling_fn_probabilities_kwargs", {"is_seg": False, "order": 3}), "order 0 or 1, not 3"),
        (_set(*FULL, "resampling_fn_data_kwargs", {"is_seg": True}), "is_seg"),
        (_set(*FULL, "resampling_fn_data_kwargs", {"order": 9}), "order: 9"),
    ],
)
def test_refused_with_what_and_where(
    plans: dict[str, Any], change: Callable[[dict[str, Any]], None], message: str
) -> None:
    change(plans)
    with pytest.raises(BundleError, match=message):
        read_plan(plans, "small", ORGANS)


def test_ct_normalisation_needs_statistics(plans: dict[str, Any]) -> None:
    _set(*FULL, "normalization_schemes", ["CTNormalization"])(plans)
    plans["foreground_intensity_properties_per_channel"] = {}
    with pytest.raises(BundleError, match="nothing for channel 0"):
        read_plan(plans, "small", ORGANS)


def test_ignore_label_has_no_output(dataset: dict[str, Any], plans: dict[str, Any]) -> None:
    labels = read_labels(dataset | {"labels": {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}})
    plan = read_plan(plans, "small", labels)
    assert (plan.outputs, plan.ignore_label) == (3, 3)


def test_regions_are_the_outputs(dataset: dict[str, Any], plans: dict[str, Any]) -> None:
    regions = {"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3]}, "regions_class_order": [1, 2]}
    plan = read_plan(plans, "small", read_labels(dataset | regions))
    assert (plan.outputs, plan.region_order, plan.labels) == (2, (1, 2), (1, 2))
    assert plan.previous_labels == ()


def test_each_channel_has_its_own_normalisation(plans: dict[str, Any]) -> None:
    _set(*FULL, "normalization_schemes", ["CTNormalization", "ZScoreNormalization"])(plans)
    _set(*FULL, "use_mask_for_norm", [False, True])(plans)
    plan = read_plan(plans, "small", Labels({1: "tumour"}, ("CT", "PET")))
    ct, pet = plan.channels
    assert (ct.name, ct.normalization, ct.use_mask) == ("CT", "CTNormalization", False)
    assert ct.intensities is not None
    assert (pet.name, pet.normalization, pet.use_mask, pet.intensities) == ("PET", "ZScoreNormalization", True, None)
    with pytest.raises(BundleError, match="do not fit 1 channels"):
        read_plan(plans, "small", ORGANS)


def test_second_network_of_a_cascade_sees_the_labels_of_the_first(plans: dict[str, Any]) -> None:
    _set("configurations", "small", "previous_stage", "3d_lowres")(plans)
    plan = read_plan(plans, "small", ORGANS)
    assert (plan.previous_labels, plan.inputs, plan.outputs) == ((1, 2), 3, 3)
    assert plan.label_resampling is not None
    assert plan.label_resampling.order == 1
    assert read_previous_stage(plans, "small") == "3d_lowres"
    assert read_previous_stage(plans, "3d_fullres") is None
    assert read_plan(plans, "3d_fullres", ORGANS).label_resampling is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("resampling_fn_seg", "mine", "resampling_fn_seg: 'mine' is not taken"),
        ("resampling_fn_seg_kwargs", {"is_seg": False, "order": 1}, "is_seg: False is not taken"),
        ("resampling_fn_seg_kwargs", {"is_seg": True}, "order 0 or 1 and order_z 0, not order 3"),
        ("resampling_fn_seg_kwargs", {"is_seg": True, "order": 1, "order_z": 1}, "and order_z 1"),
        ("resampling_fn_seg_kwargs", {"is_seg": True, "order": 1, "seg_tiebreak": "lowest"}, "unknown key: seg_tie"),
        ("resampling_fn_seg", "no_resampling_hack", "unknown key: force_separate_z"),
    ],
)
def test_label_resampling_of_a_cascade_is_refused(plans: dict[str, Any], key: str, value: object, message: str) -> None:
    _set("configurations", "small", "previous_stage", "3d_lowres")(plans)
    _set(*FULL, key, value)(plans)
    with pytest.raises(BundleError, match=message):
        read_plan(plans, "small", ORGANS)


def test_torch_variant_that_saves_memory_is_refused(plans: dict[str, Any]) -> None:
    _set("configurations", "small", "previous_stage", "3d_lowres")(plans)
    _set(*FULL, "resampling_fn_seg", "resample_torch_fornnunet")(plans)
    _set(*FULL, "resampling_fn_seg_kwargs", {"is_seg": True, "memefficient_seg_resampling": True})(plans)
    with pytest.raises(BundleError, match="memefficient_seg_resampling: true"):
        read_plan(plans, "small", ORGANS)
    _set(*FULL, "resampling_fn_seg_kwargs", {"is_seg": True, "memefficient_seg_resampling": False})(plans)
    assert read_plan(plans, "small", ORGANS).previous_labels == (1, 2)
