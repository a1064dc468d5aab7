"""The segmenter: frames turned there and back, backends chosen by list and self-test, unsuitable volumes refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.backends.base import REFERENCE, Engine, Placement
from engines.backends.openvino import OpenVinoBackend
from engines.backends.torch import TorchBackend
from engines.errors import BackendUnavailable, OutOfDeviceMemory, UnsuitableVolume
from engines.inference.segmenter import Segmenter, availability
from engines.inference.trial import measure
from engines.model.bundle import Bundle
from engines.volume import Grid, Reorientation, Volume


def affine_of(codes: str) -> np.ndarray:
    """The affine whose array axes grow towards the codes, 1 mm."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, code in enumerate(codes):
        row = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}[code]
        affine[row, axis] = 1.0 if code in "LPS" else -1.0
    return affine


@pytest.fixture
def volume() -> Volume:
    voxels = np.random.default_rng(0).standard_normal((9, 12, 11)).astype(np.float32)
    return Volume(Grid((9, 12, 11), affine_of("SPL")), voxels, "MR")


def segment(bundle: Bundle, volume: Volume, engine: str = "torch") -> Any:
    with Segmenter.open(bundle, Engine.parse(engine), Placement()) as segmenter:
        return segmenter.segment(volume)


def test_label_map_lies_on_the_volumes_own_grid(make_bundle: Callable[..., Bundle], volume: Volume) -> None:
    result = segment(make_bundle(orientation="SPL"), volume)
    assert result.label_map.grid is volume.grid
    assert result.label_map.labels.dtype == np.uint8
    assert result.label_map.names == {1: "liver", 2: "spleen"}
    assert set(result.seconds) == {"preprocess", "network", "labels", "total"}
    assert (result.backend, result.precision, result.device) == ("torch", "float32", "CPU")
    assert result.backend_reason == "torch float32: self-test passed"
    assert result.way == "sums of 3 logits in float16, a ring of 8 planes on cpu"
    assert result.versions == f"torch {torch.__version__}"


@pytest.mark.parametrize("codes", ["IAR", "LSP", "ASR", "PLS"])
def test_any_orientation_gives_the_same_anatomy(make_bundle: Callable[..., Bundle], volume: Volume, codes: str) -> None:
    """The model sees its own frame whatever the volume's is; the labels come back to each voxel."""
    bundle = make_bundle(orientation="SPL")
    turn = Reorientation.between("SPL", codes)
    turned = Volume(turn.grid(volume.grid), turn.apply(volume.voxels), "MR")
    assert turned.grid.axis_codes == codes
    here, there = segment(bundle, volume).label_map, segment(bundle, turned).label_map
    assert len(np.unique(here.labels)) > 1
    assert np.array_equal(turn.undo(there.labels), here.labels)


def test_orientation_matters(make_bundle: Callable[..., Bundle], volume: Volume) -> None:
    one, other = make_bundle(orientation="SPL"), make_bundle("other", orientation="IPL")
    assert not np.array_equal(segment(one, volume).label_map.labels, segment(other, volume).label_map.labels)


@pytest.mark.parametrize("shape", [(1, 12, 11), (2, 3, 4), (1, 1, 2)])
def test_small_volumes(make_bundle: Callable[..., Bundle], shape: tuple[int, int, int]) -> None:
    voxels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    result = segment(make_bundle(), Volume(Grid(shape, np.eye(4)), voxels, "MR"))
    assert result.label_map.labels.shape == shape


def test_two_thousand_slices(make_bundle: Callable[..., Bundle]) -> None:
    voxels = np.random.default_rng(0).standard_normal((2000, 8, 7)).astype(np.float32)
    result = segment(make_bundle(), Volume(Grid((2000, 8, 7), np.eye(4)), voxels, "MR"))
    assert result.label_map.labels.shape == (2000, 8, 7)
    assert result.way == "sums of 3 logits in float16, a ring of 8 planes on cpu"
    assert all(len(np.unique(part)) > 1 for part in np.split(result.label_map.labels, 20))


def test_a_case_that_broke_leaves_the_next_one_whole(make_bundle: Callable[..., Bundle], volume: Volume) -> None:
    """Its networks are asked again while somebody still holds the error."""
    with Segmenter.open(make_bundle(), Engine("openvino"), Placement(lanes=2)) as segmenter:
        expected = segmenter.segment(volume).label_map.labels

        def stop(_: float) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as held:
            segmenter.segment(volume, stop)
        assert np.array_equal(segmenter.segment(volume).label_map.labels, expected)
        assert held.value is not None


def test_progress_only_grows(make_bundle: Callable[..., Bundle], volume: Volume) -> None:
    told: list[float] = []
    with Segmenter.open(make_bundle(), Engine("torch"), Placement()) as segmenter:
        segmenter.segment(volume, told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("voxels", "modality", "message"),
    [
        (np.zeros((4, 4, 4)), "MR", "empty: every voxel is 0"),
        (np.full((4, 4, 4), -1024.0), "MR", "every voxel is -1024"),
        (np.where(np.arange(64).reshape(4, 4, 4) == 7, np.nan, 1.0), "MR", "voxels that are not finite"),
        (np.where(np.arange(64).reshape(4, 4, 4) == 7, np.inf, 1.0), "MR", "voxels that are not finite"),
        (np.where(np.arange(64).reshape(4, 4, 4) == 7, -np.inf, 1.0), "MR", "voxels that are not finite"),
        (np.arange(64).reshape(4, 4, 4), "CT", "made for MR, not CT"),
    ],
)
def test_unsuitable_volumes(make_bundle: Callable[..., Bundle], voxels: Any, modality: str, message: str) -> None:
    with pytest.raises(UnsuitableVolume, match=message):
        segment(make_bundle(), Volume(Grid((4, 4, 4), np.eye(4)), voxels, modality))


def test_openvino_agrees(make_bundle: Callable[..., Bundle], volume: Volume) -> None:
    bundle = make_bundle()
    result = segment(bundle, volume, "openvino")
    assert result.backend == "openvino"
    assert "self-test passed" in result.backend_reason
    assert "openvino" in result.versions
    assert "torch" in result.versions
    # torch sums in float16, as nnU-Net does.
    assert (result.label_map.labels == segment(bundle, volume).label_map.labels).mean() >= 0.99


@pytest.mark.parametrize("factor", [1.05, float("nan")])
def test_an_engine_that_fails_the_self_test_is_not_opened(
    make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    answers = OpenVinoBackend.answers
    monkeypatch.setattr(
        OpenVinoBackend, "answers", lambda self, patches: (each * factor for each in answers(self, patches))
    )
    with pytest.raises(BackendUnavailable, match="openvino float32: self-test failed: logits off by"):
        Segmenter.open(make_bundle(), Engine("openvino"), Placement())


def failing(fault: Exception) -> Any:
    def answers(_self: Any, _patches: Any) -> Any:
        raise fault
        yield

    return answers


FAULTS = [
    (RuntimeError("device lost\nat line 7"), BackendUnavailable, "RuntimeError: device lost$"),
    (OSError(5, "Input/output error"), BackendUnavailable, "OSError"),
    (MemoryError(), OutOfDeviceMemory, "no room in memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfDeviceMemory, "no room in memory"),
]


@pytest.mark.parametrize(("fault", "error", "words"), FAULTS, ids=repr)
def test_what_a_library_raises_is_an_engines_fault(
    make_bundle: Callable[..., Bundle],
    volume: Volume,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    error: type[Exception],
    words: str,
) -> None:
    """In a case, when it is opened, and when it is measured: another engine can do the work."""
    bundle = make_bundle()
    with Segmenter.open(bundle, Engine("openvino"), Placement()) as segmenter:
        monkeypatch.setattr(OpenVinoBackend, "answers", failing(fault))
        with pytest.raises(error, match=words):
            segmenter.segment(volume)
        with pytest.raises(error, match=words):
            Segmenter.open(bundle, Engine("openvino"), Placement())
        with pytest.raises(error, match=words):
            measure(bundle, Engine("openvino"), Placement())


def test_a_fault_of_the_reference_flies_as_it_is(
    make_bundle: Callable[..., Bundle], volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stands behind it; where it asked for memory in vain, it is no fault."""
    with Segmenter.open(make_bundle(), REFERENCE, Placement()) as segmenter:
        monkeypatch.setattr(TorchBackend, "answers", failing(RuntimeError("ours")))
        with pytest.raises(RuntimeError, match="ours"):
            segmenter.segment(volume)
        monkeypatch.setattr(TorchBackend, "answers", failing(MemoryError()))
        with pytest.raises(OutOfDeviceMemory):
            segmenter.segment(volume)


def test_an_engine_that_cannot_run_here(make_bundle: Callable[..., Bundle]) -> None:
    with pytest.raises(BackendUnavailable, match="openvino float32: serves the processor only"):
        Segmenter.open(make_bundle(), Engine("openvino"), Placement(device="cuda"))


def test_availability_has_a_reason() -> None:
    assert availability(Engine("torch")).available
    assert availability(Engine("openvino")).reason


def test_mirroring_changes_the_answer(make_bundle: Callable[..., Bundle], volume: Volume) -> None:
    plain, flipped = make_bundle(), make_bundle("flipped", mirroring=True)
    assert not np.array_equal(segment(plain, volume).label_map.labels, segment(flipped, volume).label_map.labels)


def test_folds_are_averaged(
    make_bundle: Callable[..., Bundle], results: Path, checkpoint: dict[str, Any], volume: Volume
) -> None:
    """A fold beside its own negative leaves nothing but what the second favours."""
    (results / "fold_1").mkdir()
    weights = dict(checkpoint["network_weights"])
    for key in ("decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"):
        weights[key] = -weights[key]
    weights["decoder.seg_layers.0.bias"][2] += 1
    torch.save(checkpoint | {"network_weights": weights}, results / "fold_1" / "checkpoint_final.pth")
    assert np.unique(segment(make_bundle(), volume).label_map.labels).tolist() == [2]
