"""Whether there is such a card: every backend that runs on cards says the same."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from engines.backends.cuda_device import card_fault
from engines.backends.tensorrt import TensorRtBackend
from engines.backends.torch import TorchBackend


@pytest.fixture
def one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """What driver and torch say where there is one card."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.usefixtures("one_card")
def test_cards_are_counted() -> None:
    assert card_fault("cuda") is None
    assert card_fault("cuda:0") is None
    assert card_fault("cuda:1") == "there are 1 cards, none has number 1"


@pytest.mark.parametrize(
    ("owner", "name", "value", "said"),
    [
        (torch.version, "cuda", None, "was built without CUDA; install torch's CUDA build"),
        (torch.cuda, "is_available", lambda: False, "torch finds no NVIDIA card"),
        (torch.cuda, "device_count", lambda: 0, "there are 0 cards"),
    ],
)
@pytest.mark.usefixtures("one_card")
def test_all_who_run_on_cards_say_the_same(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, value: Any, said: str
) -> None:
    monkeypatch.setattr(owner, name, value)
    fault = card_fault("cuda")
    assert fault is not None
    assert said in fault
    assert [kind.is_available("cuda").reason for kind in (TorchBackend, TensorRtBackend)] == [fault, fault]


def test_the_driver_is_looked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert card_fault("cuda") == "there is no NVIDIA driver (libcuda.so.1)"
