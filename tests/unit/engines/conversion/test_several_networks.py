"""Ensembles of configurations, cascades and data sets' folders; and those that must not become a bundle."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import BundleError
from engines.model.bundle import Bundle

REGIONS = {"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3]}, "regions_class_order": [1, 2]}


@pytest.fixture
def cascade(plans: dict[str, Any]) -> dict[str, Any]:
    """plans.json with a low resolution before the full one, as nnU-Net's planner writes them."""
    changed = copy.deepcopy(plans)
    changed["configurations"]["3d_lowres"] = {
        "inherits_from": "3d_fullres",
        "spacing": [2.0, 2.0, 2.0],
        "next_stage": "3d_cascade_fullres",
    }
    changed["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    return changed


def test_several_folders_are_averaged(
    make_bundle: Callable[..., Bundle], more_results: Callable[..., Path], results: Path
) -> None:
    bundle = make_bundle(folders=[results, more_results("3d_fullres")])
    assert [member.name for member in bundle.averaged] == ["small", "3d_fullres"]
    assert [member.folder.name for member in bundle.members] == ["small", "3d_fullres"]
    assert make_bundle("alone").digest != bundle.digest


def test_members_of_one_configuration_have_names_of_their_own(
    make_bundle: Callable[..., Bundle], more_results: Callable[..., Path]
) -> None:
    folders = [more_results("3d_fullres", f"nnUNetTrainer__{plans}") for plans in ("A", "B", "C")]
    bundle = make_bundle(folders=folders)
    assert [member.name for member in bundle.members] == ["3d_fullres", "3d_fullres-2", "3d_fullres-3"]
    assert all((member.folder / "source/plans.json").is_file() for member in bundle.members)


def test_second_network_of_a_cascade_brings_the_first(
    make_bundle: Callable[..., Bundle], more_results: Callable[..., Path], cascade: dict[str, Any]
) -> None:
    more_results("3d_lowres", plans=cascade)
    bundle = make_bundle(folders=[more_results("3d_cascade_fullres", plans=cascade)])
    first, second = bundle.members
    assert (first.name, first.previous_stage, first.plan.previous_labels) == ("3d_lowres", None, ())
    assert (second.name, second.previous_stage, second.plan.previous_labels) == (
        "3d_cascade_fullres",
        "3d_lowres",
        (1, 2),
    )
    assert bundle.averaged == (second,)
    labels = second.parity().image[1:]
    assert set(np.unique(labels)) == {0, 1}
    assert (labels.sum(axis=0) <= 1).all()


def test_cascade_without_its_first_network_is_refused_with_the_mend(
    make_bundle: Callable[..., Bundle], more_results: Callable[..., Path], cascade: dict[str, Any], tmp_path: Path
) -> None:
    second = more_results("3d_cascade_fullres", plans=cascade)
    message = (
        r"needs its first, 3d_lowres; there is no nnUNetTrainer__nnUNetPlans__3d_lowres beside it.*--previous-stage"
    )
    with pytest.raises(BundleError, match=message):
        make_bundle(folders=[second])
    first = more_results("3d_lowres", plans=cascade, parent=tmp_path / "elsewhere")
    assert len(make_bundle(folders=[second], previous_stage=first).members) == 2
    assert len(make_bundle(folders=[second], previous_stage=tmp_path / "elsewhere").members) == 2
    with pytest.raises(BundleError, match=r"is 3d_fullres, but .* follows 3d_lowres"):
        make_bundle(folders=[second], previous_stage=more_results("3d_fullres", plans=cascade))


def test_first_network_may_be_averaged_too(
    make_bundle: Callable[..., Bundle], more_results: Callable[..., Path], cascade: dict[str, Any]
) -> None:
    """nnU-Net's ensembles hold it beside the cascade; as a first stage alone it would not count."""
    first = more_results("3d_lowres", plans=cascade)
    bundle = make_bundle(folders=[first, more_results("3d_cascade_fullres", plans=cascade)])
    assert [member.name for member in bundle.members] == ["3d_lowres", "3d_lowres-2", "3d_cascade_fullres"]
    assert [member.name for member in bundle.averaged] == ["3d_lowres", "3d_cascade_fullres"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": {"background": 0, "liver": 1, "heart": 2}},
            "labels differ: 1 liver, 2 spleen and 1 liver",
        ),
        ({"channel_names": {"0": "T2"}}, "channels differ"),
        (REGIONS, "labels differ"),
    ],
)
def test_folders_of_other_labels_or_channels_are_refused(
    make_bundle: Callable[..., Bundle],
    more_results: Callable[..., Path],
    results: Path,
    dataset: dict[str, Any],
    changes: dict[str, Any],
    message: str,
) -> None:
    other = more_results("3d_fullres", dataset=dataset | changes)
    with pytest.raises(BundleError, match=f"{results} and {other}: {message}"):
        make_bundle(folders=[results, other])


def test_folders_of_other_axes_are_refused(
    make_bundle: Callable[..., Bundle], more_results: Callable[..., Path], results: Path, plans: dict[str, Any]
) -> None:
    turned = plans | {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}
    with pytest.raises(BundleError, match="transpose_forward differ"):
        make_bundle(folders=[results, more_results("3d_fullres", plans=turned)])


def test_folders_of_other_readers_need_one_orientation(
    make_bundle: Callable[..., Bundle], more_results: Callable[..., Path], results: Path, plans: dict[str, Any]
) -> None:
    other = more_results("3d_fullres", plans=plans | {"image_reader_writer": "NibabelIOWithReorient"})
    assert make_bundle(folders=[results, other], orientation="SAR").orientation == "SAR"
    with pytest.raises(BundleError, match="turns every image to SAR"):
        make_bundle(folders=[results, other], orientation="any")


def test_regions_become_labels(
    make_bundle: Callable[..., Bundle], more_results: Callable[..., Path], dataset: dict[str, Any]
) -> None:
    folder = more_results("3d_fullres", dataset=dataset | REGIONS)
    bundle = make_bundle(folders=[folder], label_names={1: "oedema"}, unreported=["oedema"])
    assert dict(bundle.labels) == {1: "oedema", 2: "core"}
    assert bundle.unreported == (1,)
    assert bundle.members[0].plan.region_order == (1, 2)
    assert bundle.members[0].parity().logits.shape[0] == 2


def test_postprocessing_of_regions_names_their_labels(
    make_bundle: Callable[..., Bundle], more_results: Callable[..., Path], dataset: dict[str, Any]
) -> None:
    """Label 3 is never painted: no voxel of a result has it."""
    folder = more_results("3d_fullres", dataset=dataset | REGIONS)
    name = "remove_all_but_largest_component_from_segmentation"
    told = [{"labels_or_regions": [[1, 2, 3], [2, 3]]}, {"labels_or_regions": [2, 3]}, {"labels_or_regions": [3]}]
    content = {"postprocessing_fns": [name] * 3, "postprocessing_kwargs": told}
    (folder / "postprocessing.json").write_text(json.dumps(content))
    assert make_bundle(folders=[folder]).postprocessing == ((1, 2, 2), (2,))


def test_postprocessing_of_one_configuration_is_not_that_of_the_ensemble(
    make_bundle: Callable[..., Bundle], more_results: Callable[..., Path], results: Path, tmp_path: Path
) -> None:
    name = "remove_all_but_largest_component_from_segmentation"
    content = {"postprocessing_fns": [name], "postprocessing_kwargs": [{"labels_or_regions": 1}]}
    (results / "postprocessing.json").write_text(json.dumps(content))
    folders = [results, more_results("3d_fullres")]
    with pytest.raises(BundleError, match=r"found for one configuration alone; .*--postprocessing"):
        make_bundle(folders=folders)
    assert make_bundle(folders=folders, without_postprocessing=True).postprocessing == ()
    content["postprocessing_kwargs"] = [{"labels_or_regions": 2}]
    (tmp_path / "ensemble.json").write_text(json.dumps(content))
    assert make_bundle(folders=folders, postprocessing=tmp_path / "ensemble.json").postprocessing == ((2,),)


def test_data_sets_folder_is_taken(
    make_bundle: Callable[..., Bundle], more_results: Callable[..., Path], tmp_path: Path
) -> None:
    """The shape of a TotalSegmentator task folder."""
    parent = tmp_path / "Dataset901_Unit"
    more_results("3d_fullres", "nnUNetTrainerNoMirroring__nnUNetPlans", parent=parent)
    assert make_bundle(folders=[parent]).members[0].name == "3d_fullres"
    more_results("small", "nnUNetTrainer__nnUNetPlans", parent=parent)
    with pytest.raises(BundleError, match=r"holds nnUNetTrainer.*3d_fullres, .*small; name one.*--configuration"):
        make_bundle(folders=[parent])
    assert make_bundle(folders=[parent], configuration="small").members[0].name == "small"
    with pytest.raises(BundleError, match="--configuration"):
        make_bundle(folders=[parent], configuration="2d")
    with pytest.raises(BundleError, match="--configuration"):
        make_bundle(folders=[parent / "nnUNetTrainer__nnUNetPlans__small"], configuration="2d")


def test_half_copied_fold_is_refused_with_the_mend(make_bundle: Callable[..., Bundle], results: Path) -> None:
    (results / "fold_1").mkdir()
    with pytest.raises(BundleError, match=r"fold_1: no checkpoint_final\.pth in it.*--fold"):
        make_bundle()
    assert make_bundle(folds=["0"]).members[0].folds == ("0",)
    with pytest.raises(BundleError, match=r"fold_3/checkpoint_final\.pth: No such file"):
        make_bundle(folds=["0", "3"])


def test_fold_all_is_taken_only_where_it_is_alone(make_bundle: Callable[..., Bundle], results: Path) -> None:
    """As nnU-Net does."""
    shutil.copytree(results / "fold_0", results / "fold_all")
    assert make_bundle().members[0].folds == ("0",)
    assert make_bundle(folds=["all"]).members[0].folds == ("all",)
    shutil.rmtree(results / "fold_0")
    assert make_bundle().members[0].folds == ("all",)


def test_label_that_stands_twice_is_refused(make_bundle: Callable[..., Bundle], results: Path) -> None:
    text = (results / "dataset.json").read_text()
    (results / "dataset.json").write_text(text.replace('"liver": 1,', '"liver": 1, "liver": 2,'))
    with pytest.raises(BundleError, match=r"dataset\.json: not JSON: 'liver' stands twice"):
        make_bundle()
