"""nnunetv2's predictor rebuilt from a bundle answers as it does when it is opened by hand from the results folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.backends.base import REFERENCE, Placement
from engines.conversion.reference import NnunetPredictor
from engines.conversion.verification import Verification, verify
from engines.errors import BundleError, UnsuitableVolume
from engines.inference.cases import Case, find_cases
from engines.model.bundle import Bundle, Member
from engines.model.certificate import Turned
from engines.nifti import write_volume
from engines.volume import Grid, Reorientation, Volume

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


def file_of(folder: Path, volume: Volume, codes: str, name: str = "case.nii.gz") -> Case:
    """The same patient in a file that lies so."""
    turn = Reorientation.between(volume.grid.axis_codes, codes)
    folder.mkdir(exist_ok=True)
    write_volume(folder / name, Volume(turn.grid(volume.grid), np.ascontiguousarray(turn.apply(volume.voxels)), "MR"))
    return Case(name, (folder / name,))


@pytest.mark.parametrize(
    ("reader", "codes", "turned"),
    [
        ("SimpleITKIO", "SAR", None),
        ("SimpleITKIO", "LIP", Turned("LIP", "SAR")),
        ("NibabelIO", "SAR", None),
        ("NibabelIO", "IAL", Turned("IAL", "SAR")),
        ("SimpleITKIOWithReorient", "LIP", None),
        ("NibabelIOWithReorient", "LIP", None),
        ("Tiff3DIO", "LIP", Turned("LIP", "SAR")),
    ],
)
def test_files_are_read_by_its_own_reader(
    nnunet_model: Any, recipe: Any, hippocampus: Volume, tmp_path: Path, reader: str, codes: str, turned: Turned | None
) -> None:
    """Labels come back as the file lies, and what had to be turned for the model is said to have been."""
    spacing, voxels = hippocampus.grid.spacing_mm, hippocampus.voxels
    model = nnunet_model(
        recipe(spacing=(1.3, 1.1, 1.2), strides=DEEP, orientation="SAR", reader=reader), voxels, spacing
    )
    case = file_of(tmp_path / "images", hippocampus, codes)
    found = NnunetPredictor(model.bundle).segment_files(case.files, case.read("MR"))
    expected = Reorientation.between("SAR", codes).apply(model.predicted(voxels, spacing))
    assert found.labels.shape == expected.shape
    assert int((found.labels != expected).sum()) <= 2
    assert found.turned == turned


def test_what_it_sees_is_not_what_the_bundle_says(
    nnunet_model: Any, recipe: Any, hippocampus: Volume, tmp_path: Path
) -> None:
    """A model that was trained on SAR and imported as SAL: left and right exchanged, and no image lies so."""
    spacing, voxels = hippocampus.grid.spacing_mm, hippocampus.voxels
    chosen = {"spacing": (1.3, 1.1, 1.2), "strides": DEEP}
    file_of(tmp_path / "images", hippocampus, "SAR")
    cases = find_cases(tmp_path / "images", 1)
    demand = Verification(Placement(threads=1), engines=(REFERENCE,))
    wrong = nnunet_model(recipe(orientation="SAL", **chosen), voxels, spacing)
    (made,) = verify(wrong.bundle, cases, demand, lambda _line: None)
    assert made.verdict.outcome == "failed"
    assert made.verdict.reason == "no image lies as the model's orientation SAL says: is --orientation right?"
    assert made.volumes[0].turned == Turned("SAR", "SAL")
    right = replace(wrong.bundle, orientation="SAR")
    (made,) = verify(right, cases, demand, lambda _line: None)
    assert made.verdict.outcome == "passed"
    assert made.volumes[0].turned is None
    assert made.reference.endswith(" without mirroring")


def test_an_ensemble_of_two_readers_sees_one_image(
    nnunet_model: Any, recipe: Any, hippocampus: Volume, tmp_path: Path
) -> None:
    """Where one turns images and the other does not, the one that does not reads for both."""
    spacing, voxels = hippocampus.grid.spacing_mm, hippocampus.voxels
    readers = {"turns": "SimpleITKIOWithReorient", "takes": "SimpleITKIO"}
    chosen = {"spacing": (1.3, 1.1, 1.2), "strides": DEEP, "orientation": "SAR"}
    models = [nnunet_model(recipe(name=n, reader=r, **chosen), voxels, spacing) for n, r in readers.items()]
    case = file_of(tmp_path / "images", hippocampus, "LIP")
    predictor = NnunetPredictor(models[0].imported(*(model.results for model in models)))
    found = predictor.segment_files(case.files, case.read("MR"))
    assert found.turned == Turned("LIP", "SAR")
    assert np.array_equal(found.labels, predictor.segment(case.read("MR")).labels)


def test_a_file_that_its_reader_cannot_read_is_named(
    nnunet_model: Any, recipe: Any, hippocampus: Volume, tmp_path: Path
) -> None:
    chosen = recipe(strides=DEEP, orientation="SAR", reader="NibabelIO")
    model = nnunet_model(chosen, hippocampus.voxels, hippocampus.grid.spacing_mm)
    case = file_of(tmp_path / "images", hippocampus, "SAR", "case.nrrd")
    with pytest.raises(UnsuitableVolume, match=r"case\.nrrd: nnunetv2's NibabelIO cannot read it .*\.nii\.gz"):
        NnunetPredictor(model.bundle).segment_files(case.files, case.read("MR"))


def test_a_tensor_that_its_network_lacks_is_refused(
    nnunet_model: Any, recipe: Any, hippocampus: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(strides=DEEP, orientation="SAR")
    model = nnunet_model(chosen, hippocampus.voxels, hippocampus.grid.spacing_mm)
    weights = Member.weights

    def with_one_more(self: Member, fold: str) -> Any:
        return {**weights(self, fold), "decoder.gate.weight": np.zeros(3, np.float32)}

    monkeypatch.setattr(Member, "weights", with_one_more)
    with pytest.raises(BundleError, match=r"small, fold 0: .*no tensor decoder\.gate\.weight"):
        NnunetPredictor(model.bundle)
