"""An nnU-Net results folder made into a bundle, and every folder that must not become one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from engines.conversion.nnunet import Description, Selection, import_results_folders
from engines.conversion.own_words import modalities_of, orientation_of
from engines.errors import BundleError
from engines.model.bundle import Bundle
from engines.nifti import write_label_map
from engines.volume import Grid, LabelMap, Reorientation


def save(results: Path, checkpoint: dict[str, Any], fold: int = 0) -> None:
    (results / f"fold_{fold}").mkdir(exist_ok=True)
    torch.save(checkpoint, results / f"fold_{fold}" / "checkpoint_final.pth")


def test_each_tensor_is_stored_once(make_bundle: Callable[..., Bundle], checkpoint: dict[str, Any]) -> None:
    bundle = make_bundle()
    weights = bundle.members[0].weights("0")
    assert len(checkpoint["network_weights"]) > len(weights)
    assert not any("all_modules" in key or key.startswith("decoder.encoder") for key in weights)
    for key, array in weights.items():
        expected = checkpoint["network_weights"][key].numpy()
        assert np.array_equal(array, expected)


def test_bundle_says_where_it_comes_from(make_bundle: Callable[..., Bundle], results: Path) -> None:
    bundle = make_bundle(unreported=["spleen"], evaluation={"dice": 0.9})
    assert (bundle.folder / "small/source/plans.json").read_bytes() == (results / "plans.json").read_bytes()
    assert bundle.members[0].plan.dataset == "Dataset901_Unit"
    assert bundle.unreported == (2,)
    assert bundle.evaluation == {"dice": 0.9}
    assert bundle.members[0].mirroring_axes == ()
    assert make_bundle("flipped", mirroring=True).members[0].mirroring_axes == (0, 1, 2)


def test_folds_are_an_ensemble(make_bundle: Callable[..., Bundle], results: Path, checkpoint: dict[str, Any]) -> None:
    save(results, checkpoint, 2)
    assert make_bundle().members[0].folds == ("0", "2")
    assert make_bundle("one", folds=[2]).members[0].folds == ("2",)


def test_deep_supervision_heads_are_left_out(
    make_bundle: Callable[..., Bundle], results: Path, checkpoint: dict[str, Any]
) -> None:
    checkpoint["network_weights"]["decoder.seg_layers.7.weight"] = torch.zeros(3, 8, 1, 1, 1)
    save(results, checkpoint)
    assert "decoder.seg_layers.7.weight" not in make_bundle().members[0].weights("0")


class Gadget:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_pickle_gadget_is_refused_and_not_run(
    make_bundle: Callable[..., Bundle], results: Path, checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    """SEC-10: the name that it asks for stands in the message."""
    save(results, checkpoint | {"logging": Gadget(f"touch {tmp_path}/was-here")})
    with pytest.raises(BundleError, match=r"checkpoint_final.pth: refused: it asks to run \w+\.system"):
        make_bundle()
    assert not (tmp_path / "was-here").exists()


def test_garbage_and_cut_checkpoints_are_refused(make_bundle: Callable[..., Bundle], results: Path) -> None:
    path = results / "fold_0/checkpoint_final.pth"
    whole = path.read_bytes()
    for content in (b"", b"garbage", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=r"checkpoint_final\.pth"):
            make_bundle()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trainer_name", "nnUNetTrainerPrimus", "trainer nnUNetTrainerPrimus is not known"),
        ("trainer_name", "nnUNetTrainerBN", "trainer nnUNetTrainerBN is not known"),
        ("init_args", {}, "not a checkpoint of nnU-Net v2: KeyError"),
        ("init_args", {"configuration": "3d_lowres"}, "3d_lowres is not there"),
        ("network_weights", {"a": 1}, "not a checkpoint of nnU-Net v2"),
    ],
)
def test_another_checkpoint_is_refused(
    make_bundle: Callable[..., Bundle], results: Path, checkpoint: dict[str, Any], key: str, value: Any, message: str
) -> None:
    save(results, checkpoint | {key: value})
    with pytest.raises(BundleError, match=message):
        make_bundle()


def test_trainer_may_be_named(make_bundle: Callable[..., Bundle], results: Path, checkpoint: dict[str, Any]) -> None:
    save(results, checkpoint | {"trainer_name": "MyTrainer"})
    assert make_bundle(further_trainers=["MyTrainer"]).name == "unit"
    save(results, checkpoint | {"trainer_name": "BudgetTrainer"})
    assert make_bundle().name == "unit"


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("encoder.stages.0.0.convs.0.conv.weight", (4, 2, 3, 3, 3), r"has shape \(4, 2, 3, 3, 3\), the plan's network"),
        ("encoder.stages.5.0.convs.0.conv.weight", (1,), "is no tensor of the plan's network"),
        ("decoder.seg_layers.0.bias", None, "is missing"),
    ],
)
def test_weights_of_another_network_are_refused(
    make_bundle: Callable[..., Bundle],
    results: Path,
    checkpoint: dict[str, Any],
    key: str,
    shape: tuple[int, ...] | None,
    message: str,
) -> None:
    checkpoint["network_weights"].pop(key, None)
    if shape:
        checkpoint["network_weights"][key] = torch.zeros(shape)
    save(results, checkpoint)
    with pytest.raises(BundleError, match=message):
        make_bundle()


@pytest.mark.parametrize("value", [float("nan"), 1e9])
def test_weights_that_float16_cannot_hold_are_refused(
    make_bundle: Callable[..., Bundle], results: Path, checkpoint: dict[str, Any], value: float
) -> None:
    checkpoint["network_weights"]["decoder.seg_layers.0.bias"][1] = value
    save(results, checkpoint)
    with pytest.raises(BundleError, match=r"decoder\.seg_layers\.0\.bias"):
        make_bundle(storage="float16")


@pytest.mark.parametrize("name", ["plans.json", "dataset.json", "fold_0/checkpoint_final.pth"])
def test_half_copied_folder_is_refused(make_bundle: Callable[..., Bundle], results: Path, name: str) -> None:
    (results / name).unlink()
    with pytest.raises(BundleError, match=Path(name).name):
        make_bundle()


def test_folds_that_differ_are_refused(
    make_bundle: Callable[..., Bundle], results: Path, checkpoint: dict[str, Any]
) -> None:
    save(results, checkpoint | {"inference_allowed_mirroring_axes": (0,)}, 1)
    with pytest.raises(BundleError, match="folds 0 and 1 differ"):
        make_bundle()


KEEP_LARGEST = "remove_all_but_largest_component_from_segmentation"


def write_postprocessing(folder: Path, *labels_or_regions: Any) -> None:
    folder.mkdir(exist_ok=True)
    content = {
        "postprocessing_fns": [KEEP_LARGEST] * len(labels_or_regions),
        "postprocessing_kwargs": [{"labels_or_regions": each} for each in labels_or_regions],
    }
    (folder / "postprocessing.json").write_text(json.dumps(content))


@pytest.mark.parametrize("folder", [".", "crossval_results_folds_0_1_2_3_4"])
def test_postprocessing_is_taken(make_bundle: Callable[..., Bundle], results: Path, folder: str) -> None:
    """As nnU-Net writes it: all labels, one label, a list of regions; and the digest says so."""
    write_postprocessing(results / folder, [1, 2], 2, [[1], [1, 2]])
    bundle = make_bundle()
    assert bundle.postprocessing == ((1, 2), (2,), (1, 1, 2))
    without = make_bundle("without", without_postprocessing=True)
    assert without.postprocessing == ()
    assert without.digest != bundle.digest
    write_postprocessing(results / folder)
    assert make_bundle("none").digest == without.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"postprocessing_fns": ["fill_holes"], "postprocessing_kwargs": [{}]}, "fill_holes with {} is not known"),
        (
            {"postprocessing_fns": [KEEP_LARGEST], "postprocessing_kwargs": [{"labels_or_regions": 9}]},
            "9 are not labels",
        ),
        (
            {"postprocessing_fns": [KEEP_LARGEST], "postprocessing_kwargs": [{"labels_or_regions": 1, "min_size": 2}]},
            "min_size.* is not known",
        ),
        ({"postprocessing_fns": [KEEP_LARGEST]}, "lists of one length"),
    ],
)
def test_postprocessing_that_is_not_understood_is_refused(
    make_bundle: Callable[..., Bundle], results: Path, content: dict[str, Any], message: str
) -> None:
    (results / "postprocessing.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=message):
        make_bundle()
    assert make_bundle(without_postprocessing=True).name == "unit"


def test_pickled_postprocessing_is_refused_with_the_mend(make_bundle: Callable[..., Bundle], results: Path) -> None:
    (results / "postprocessing.pkl").write_bytes(b"")
    with pytest.raises(BundleError, match="a pickle, which is never read"):
        make_bundle()
    write_postprocessing(results, 1)
    write_postprocessing(results / "crossval_results_folds_0_1", 2)
    with pytest.raises(BundleError, match="differ"):
        make_bundle()


def test_reader_that_turns_images_decides_the_orientation(
    make_bundle: Callable[..., Bundle], results: Path, plans: dict[str, Any]
) -> None:
    (results / "plans.json").write_text(json.dumps(plans | {"image_reader_writer": "NibabelIOWithReorient"}))
    assert make_bundle(orientation=None).orientation == "SAR"
    assert make_bundle(orientation="SAR").orientation == "SAR"
    for other in ("SPL", "any"):
        with pytest.raises(BundleError, match="turns every image to SAR"):
            make_bundle(orientation=other)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_reader_that_leaves_images_as_they_lie_needs_the_orientation(
    make_bundle: Callable[..., Bundle], results: Path, plans: dict[str, Any], reader: str
) -> None:
    """Left out, left and right could be exchanged without a word; the message says how to find it."""
    (results / "plans.json").write_text(json.dumps(plans | {"image_reader_writer": reader}))
    with pytest.raises(BundleError, match=rf"--orientation.*{reader}.*aff2axcodes.*'any'"):
        make_bundle(orientation=None)
    assert make_bundle(orientation="any").orientation is None
    assert make_bundle(orientation="SPL").orientation == "SPL"
    with pytest.raises(BundleError, match="three patient axes"):
        make_bundle(orientation="RRR")


def test_failed_import_leaves_nothing(results: Path, card: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="name"):
        import_results_folders([results], tmp_path / "out", Description("Not Allowed", "1", ["MR"], card, "SPL"))
    assert not list(tmp_path.glob("*out*"))
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match="exists already"):
        import_results_folders([results], tmp_path / "out", Description("unit", "1", ["MR"], card, "SPL"))


def write_masks(folder: Path, *ways: str) -> None:
    folder.mkdir()
    for number, codes in enumerate(ways):
        plain = Grid((3, 4, 5), np.eye(4))
        grid = Reorientation.between(plain.axis_codes, codes).grid(plain)
        write_label_map(folder / f"case_{number}.nii.gz", LabelMap(grid, np.zeros(grid.shape, dtype=np.uint8), {}))


def test_what_is_left_out_the_folder_tells(results: Path, tmp_path: Path) -> None:
    """Name, modality and card from its files; how the images lay from the masks of the validation."""
    write_masks(results / "fold_0/validation", "SAR", "SAR")
    bundle = import_results_folders([results], tmp_path / "out", Description())
    assert (bundle.name, bundle.version, bundle.modalities, bundle.orientation) == ("unit", "1", ("MR",), "SAR")
    assert "liver, spleen" in bundle.card.read_text()
    assert "not stated" in bundle.card.read_text()


def test_a_broken_mask_is_named_and_pictures_tell_nothing(results: Path, tmp_path: Path) -> None:
    masks = results / "fold_0/validation"
    write_masks(masks, "SAR", "SAR")
    (masks / "case_1.nii.gz").write_bytes(b"cut short")
    with pytest.raises(BundleError, match=r"case_1\.nii\.gz: cannot be read as an image; .*--orientation"):
        orientation_of(results)
    with pytest.raises(BundleError, match=r"case_1\.nii\.gz"):
        import_results_folders([results], tmp_path / "out", Description())
    assert import_results_folders([results], tmp_path / "out", Description(orientation="SPL")).orientation == "SPL"
    (masks / "case_1.nii.gz").unlink()
    sitk.WriteImage(sitk.Image(4, 5, sitk.sitkUInt8), str(masks / "case_1.nii.gz"))
    assert orientation_of(results) is None


def test_a_reader_that_turns_images_needs_no_masks(results: Path, tmp_path: Path) -> None:
    """nnU-Net writes its masks back as the images lay: those of such a reader lie in any way."""
    plans = json.loads((results / "plans.json").read_text())
    (results / "plans.json").write_text(json.dumps(plans | {"image_reader_writer": "SimpleITKIOWithReorient"}))
    write_masks(results / "fold_0/validation", "SPL", "SPL")
    assert import_results_folders([results], tmp_path / "out", Description()).orientation == "SAR"


def test_mirroring_that_was_not_asked_for_is_told(results: Path, tmp_path: Path) -> None:
    said: list[str] = []
    description = Description(orientation="SPL")
    import_results_folders([results], tmp_path / "without", description, tell=said.append)
    assert len(said) == 1
    assert said[0].startswith("Without mirroring: ")
    assert "nnUNetv2_predict averages over flips by default, and --mirroring does so too" in said[0]
    import_results_folders([results], tmp_path / "with", description, Selection(mirroring=True), said.append)
    assert len(said) == 1


def test_masks_that_lie_in_several_ways_tell_nothing(results: Path, tmp_path: Path) -> None:
    write_masks(results / "fold_0/validation", "SPL", "SAR")
    with pytest.raises(BundleError, match="--orientation"):
        import_results_folders([results], tmp_path / "out", Description())


@pytest.mark.parametrize(("channels", "expected"), [(["CT"], ("CT",)), (["T1", "FLAIR"], ("MR",)), (["MRI"], ("MR",))])
def test_channels_tell_the_modality(channels: list[str], expected: tuple[str, ...]) -> None:
    assert modalities_of(channels) == expected


@pytest.mark.parametrize("channels", [["CT", "PET"], ["noNorm"], ["R", "G", "B"]])
def test_channels_that_do_not_tell_the_modality(channels: list[str]) -> None:
    with pytest.raises(BundleError, match="--modality"):
        modalities_of(channels)
