"""Where the sums go: on the card where they fit, on the processor where they do not, nowhere where nothing fits."""

from __future__ import annotations

import pytest
import torch

from engines.errors import OutOfDeviceMemory
from engines.inference import memory
from engines.inference.memory import Need, Way, fitting_batch, ways_of
from engines.inference.sliding_window import Windowing

SHAPE = (1, 1000, 200, 200)
LOGITS = Windowing((96, 96, 96), 118)
FEATURES = Windowing((96, 96, 96), 32, "features", side_by_side=True)


def way_of(windowing: Windowing, shape: tuple[int, ...], folds: int, device: str) -> Way:
    (way,) = ways_of([Need(windowing, shape, folds)], 0, device)
    return way


def test_on_the_processor_nothing_is_asked() -> None:
    way = way_of(LOGITS, SHAPE, 1, "cpu")
    assert str(way) == "sums of 118 logits in float32, a ring of 96 planes on cpu"


def test_features_of_folds_lie_side_by_side() -> None:
    assert way_of(FEATURES, SHAPE, 2, "cpu").channels == 64
    assert str(way_of(FEATURES, SHAPE, 1, "cpu")).startswith("sums of 32 features")


def test_a_network_of_slices_opens_a_few() -> None:
    assert way_of(Windowing((64, 64), 3), (1, 5, 64, 64), 1, "cpu").planes == 5
    assert way_of(Windowing((64, 64), 3), (1, 500, 64, 64), 1, "cpu").planes == 16


@pytest.mark.parametrize(("free_gib", "device"), [(40.0, "cuda:1"), (1.0, "cpu")])
def test_sums_go_where_there_is_room(monkeypatch: pytest.MonkeyPatch, free_gib: float, device: str) -> None:
    monkeypatch.setattr(memory, "free_device_bytes", lambda _: int(free_gib * 2**30))
    assert way_of(LOGITS, SHAPE, 1, "cuda:1").device == device


def test_features_have_room_where_logits_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_device_bytes", lambda _: int(1.5 * 2**30))
    assert way_of(LOGITS, SHAPE, 1, "cuda").device == "cpu"
    assert way_of(FEATURES, SHAPE, 1, "cuda").device == "cuda"


def test_no_room_for_a_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_device_bytes", lambda _: 1000)
    with pytest.raises(OutOfDeviceMemory, match="no room for a patch"):
        way_of(LOGITS, SHAPE, 1, "cuda")


def test_members_that_are_computed_together_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would have room alone."""
    need = Need(LOGITS, SHAPE, 1)
    held = memory.case_device_bytes(need.on("cuda"), SHAPE)
    monkeypatch.setattr(memory, "free_device_bytes", lambda _: int(1.5 * held))
    assert [way.device for way in ways_of([need], 0, "cuda")] == ["cuda"]
    both = ways_of([need, need], 0, "cuda")
    assert [(way.device, way.pinned) for way in both] == [("cpu", True)] * 2
    assert "on cpu, for the card has no room" in str(both[0])
    assert ways_of([need], held, "cuda")[0].device == "cpu"  # what preprocessing brings there counts


@pytest.mark.parametrize(("free", "expected"), [(1000, 16), (319, 8), (100, 4), (10, 1)])
def test_a_batch_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch, free: int, expected: int) -> None:
    monkeypatch.setattr(memory, "free_device_bytes", lambda _: free)
    assert fitting_batch(16, 10, "cuda") == expected


@pytest.mark.gpu
def test_a_card_says_what_is_free() -> None:
    assert 0 < memory.free_device_bytes("cuda") <= torch.cuda.get_device_properties(0).total_memory
