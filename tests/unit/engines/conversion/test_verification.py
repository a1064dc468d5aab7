"""Verification: what is held against what, with which limits, and what it says of a volume that cannot serve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.backends.base import REFERENCE, Availability, Engine, Placement
from engines.conversion import verification
from engines.conversion.reference import Predicted
from engines.conversion.verification import Verification, keep_volumes, verify
from engines.errors import BackendUnavailable, EngineError, UnsuitableVolume
from engines.inference.cases import find_cases
from engines.inference.trial import Trial
from engines.model.bundle import Bundle
from engines.model.certificate import REFERENCE_LIMITS, Certificate, Limits, Turned, parity_folder
from engines.nifti import write_volume
from engines.volume import Grid, LabelMap, Volume

FAST, MIDDLE = Engine("openvino", "bfloat16"), Engine("openvino")
PLACEMENT = Placement(threads=1)


def bright(volume: Volume, lost: int = 0) -> Any:
    labels = (volume.voxels > 0.5).astype(np.uint8)
    labels[:lost] = 0
    return labels


class Everything:
    """nnunetv2 and every engine: each labels what is bright and loses so many slices as it is told."""

    def __init__(self) -> None:
        self.lost: dict[object, int] = {}
        self.asked: list[str] = []
        self.missing: set[Engine] = set()
        self.turned: dict[str, Turned] = {}

    def predictor(self, bundle: Bundle, _device: str) -> Any:
        def segment_files(files: Sequence[Path], volumes: Sequence[Volume]) -> Predicted:
            self.asked.append("nnunetv2")
            turned = self.turned.get(files[0].name)
            return Predicted(bright(volumes[0], self.lost.get("nnunetv2", 0)), {"total": 1.0}, turned)

        def logits(_member: str, patch: Any) -> Any:
            crop = bundle.members[0].parity()
            assert patch.shape == crop.image.shape
            full = np.zeros((3, *patch.shape[1:]), np.float32)
            full[(slice(None), *(slice(None, None, crop.step),) * 3)] = crop.logits + 0.5 * crop.logits.std()
            return full

        words = {"name": "nnunetv2 2.8.1", "compared_with": "nnunetv2 2.8.1 without mirroring"}
        return SimpleNamespace(**words, segment_files=segment_files, logits=logits)

    def open(self, _bundle: Bundle, engine: Engine, _placement: Placement) -> Any:
        def segment(volume: Volume, _progress: Any = None) -> Any:
            self.asked.append(str(engine))
            if not volume.voxels.any():
                raise UnsuitableVolume("the volume is empty: every voxel is 0")
            labels = LabelMap(volume.grid, bright(volume, self.lost.get(engine, 0)), {1: "liver", 2: "spleen"})
            return SimpleNamespace(label_map=labels, seconds={"total": 1.0})

        return SimpleNamespace(segment=segment, close=lambda: None)

    def backend(self, name: str) -> Any:
        def is_available(_device: str, precision: str = "float32") -> Availability:
            return Availability(Engine.parse(f"{name} {precision}") not in self.missing, "as told")

        return SimpleNamespace(is_available=is_available)


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> Everything:
    made = Everything()
    monkeypatch.setattr(verification, "NnunetPredictor", made.predictor)
    monkeypatch.setattr(verification, "backend_class", made.backend)
    monkeypatch.setattr(verification, "measure", lambda *_: Trial(0.1, 0.002))
    return made


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Two images of 3,000 bright voxels, in slices of 300."""
    folder = tmp_path / "volumes"
    folder.mkdir()
    for name in ("one", "two"):
        voxels = np.zeros((20, 30, 30), np.float32)
        voxels[:10, :10] = 1
        write_volume(folder / f"{name}.nii.gz", Volume(Grid(voxels.shape, np.eye(4)), voxels, "MR"))
    return folder


def verified(
    everything: Everything, bundle: Bundle, volumes: Path, **demand: Any
) -> tuple[list[Certificate], list[str]]:
    said: list[str] = []
    cases = find_cases(volumes, 1)
    made = verify(bundle, cases, Verification(PLACEMENT, **demand), said.append, everything.open)
    return list(made), said


def test_torch_against_nnunetv2_then_every_other_against_torch(
    everything: Everything, make_bundle: Any, volumes: Path
) -> None:
    bundle = make_bundle()
    made, said = verified(everything, bundle, volumes)
    assert [(f"{each.key.backend} {each.key.precision}", each.reference.split()[0]) for each in made] == [
        ("torch float32", "nnunetv2"),
        ("openvino bfloat16", "torch"),
        ("openvino float32", "torch"),
    ]
    assert [each.limits for each in made] == [REFERENCE_LIMITS, Limits(), Limits()]
    assert {each.verdict.outcome for each in made} == {"passed"}
    assert {each.key.digest for each in made} == {bundle.digest}
    assert [each.logits_error for each in made] == [pytest.approx(0.5, rel=1e-5), 0.002, 0.002]
    assert said[:2] == ["1/2 one: nnunetv2 2.8.1, 1.0 s", "2/2 two: nnunetv2 2.8.1, 1.0 s"]
    assert everything.asked == [name for name in ("nnunetv2", str(REFERENCE), str(FAST), str(MIDDLE)) for _ in "12"]


def test_an_engine_is_held_against_torch_and_torch_against_nnunetv2(
    everything: Everything, make_bundle: Any, volumes: Path
) -> None:
    everything.lost = {"nnunetv2": 1, REFERENCE: 0, MIDDLE: 1}
    made, _ = verified(everything, make_bundle(), volumes, engines=(FAST, MIDDLE))
    assert [each.verdict.outcome for each in made] == ["failed", "passed", "failed"]
    assert made[0].verdict.reason.startswith("volume 1 (")
    assert made[0].volumes[0].labels[0].voxels == 2700


def test_against_torch_nothing_is_asked_of_nnunetv2(everything: Everything, make_bundle: Any, volumes: Path) -> None:
    made, _ = verified(everything, make_bundle(), volumes, against="torch", engines=(MIDDLE,))
    assert [each.key.backend for each in made] == ["openvino"]
    assert "nnunetv2" not in everything.asked


def test_limits_of_ones_own(everything: Everything, make_bundle: Any, volumes: Path) -> None:
    everything.lost = {MIDDLE: 1}
    limits = Limits(dice=0.9, volume_percent=11)
    made, _ = verified(everything, make_bundle(), volumes, engines=(MIDDLE,), limits=limits)
    assert (made[1].limits, made[1].verdict.outcome) == (limits, "passed")


def test_an_engine_that_cannot_run_is_left_out_unless_it_was_asked_for(
    everything: Everything, make_bundle: Any, volumes: Path
) -> None:
    everything.missing = {FAST}
    made, _ = verified(everything, make_bundle(), volumes, against="torch")
    assert [each.key.precision for each in made] == ["float32"]
    with pytest.raises(BackendUnavailable, match="openvino bfloat16: as told"):
        verified(everything, make_bundle(), volumes, engines=(FAST,))


def test_a_volume_that_cannot_be_segmented_is_named(everything: Everything, make_bundle: Any, volumes: Path) -> None:
    write_volume(volumes / "three.nii.gz", Volume(Grid((4, 4, 4), np.eye(4)), np.zeros((4, 4, 4), np.float32), "MR"))
    with pytest.raises(UnsuitableVolume, match=r"three\.nii\.gz: the volume is empty"):
        verified(everything, make_bundle(), volumes, against="torch")


def test_volumes_are_kept_beside_the_bundle(make_bundle: Any, volumes: Path) -> None:
    bundle = make_bundle()
    keep_volumes(bundle, find_cases(volumes, 1))
    assert [each.name for each in find_cases(parity_folder(bundle.folder), 1)] == ["one", "two"]


def test_a_volume_that_was_turned_for_both_is_said_to_be(
    everything: Everything, make_bundle: Any, volumes: Path
) -> None:
    everything.turned = {"two.nii.gz": Turned("SAR", "SPL")}
    made, _ = verified(everything, make_bundle(), volumes, engines=(MIDDLE,))
    assert [each.turned for each in made[0].volumes] == [None, Turned("SAR", "SPL")]
    assert [each.turned for each in made[1].volumes] == [None, None]
    assert made[0].verdict.outcome == "passed"
    assert made[0].verdict.reason.endswith("; 1 of 2 volumes turned for both to SPL")
    assert made[0].reference == "nnunetv2 2.8.1 without mirroring"


def test_an_orientation_in_which_no_volume_lies_is_not_verified(
    everything: Everything, make_bundle: Any, volumes: Path
) -> None:
    everything.turned = {f"{name}.nii.gz": Turned("SAR", "SPL") for name in ("one", "two")}
    made, _ = verified(everything, make_bundle(), volumes, engines=(REFERENCE,))
    assert made[0].verdict.outcome == "failed"
    assert made[0].verdict.reason == "no image lies as the model's orientation SPL says: is --orientation right?"


@pytest.mark.parametrize("engines", [(), (REFERENCE,)])
def test_nothing_to_hold_against_torch_is_said_before_anything_is_computed(
    everything: Everything, make_bundle: Any, volumes: Path, engines: tuple[Engine, ...]
) -> None:
    everything.missing = {FAST, MIDDLE}
    with pytest.raises(BackendUnavailable, match=r"nothing to hold against torch here: .*--engine"):
        verified(everything, make_bundle(), volumes, against="torch", engines=engines)
    assert everything.asked == []


def test_volumes_that_lie_in_the_parity_folder_stay_there(make_bundle: Any, volumes: Path) -> None:
    bundle = make_bundle()
    volumes.rename(parity_folder(bundle.folder))
    keep_volumes(bundle, find_cases(parity_folder(bundle.folder), 1))
    assert [each.name for each in find_cases(parity_folder(bundle.folder), 1)] == ["one", "two"]


def test_volumes_that_cannot_be_kept_are_named(make_bundle: Any, volumes: Path) -> None:
    bundle, cases = make_bundle(), find_cases(volumes, 1)
    (volumes / "two.nii.gz").unlink()
    with pytest.raises(EngineError, match=r"two\.nii\.gz: No such file .*--keep"):
        keep_volumes(bundle, cases)
    other = make_bundle("other")
    parity_folder(other.folder).write_text("in the way")
    with pytest.raises(EngineError, match=r"other\.parity: File exists"):
        keep_volumes(other, cases)
