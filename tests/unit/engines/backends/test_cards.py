"""What is said of the ways onto a card, and that nobody is led there unasked."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from engines.backends import cards
from engines.backends.base import BackendName, Placement
from engines.backends.cards import CARD_PATHS, CardPath, cautions
from engines.inference.choice import default_engines


def test_no_way_that_never_ran_is_a_default() -> None:
    assert Placement.told().device == "cpu"
    assert "tensorrt" not in {engine.backend for device in ("cpu", "cuda") for engine in default_engines(device)}


def test_every_way_is_of_a_backend() -> None:
    assert {path.backend for path in CARD_PATHS} <= set(get_args(BackendName))


@pytest.mark.parametrize(("backend", "ways"), [("torch", 1), ("tensorrt", 2), ("openvino", 0)])
def test_who_takes_a_way_that_never_ran_hears_how_to_verify_it(backend: str, ways: int) -> None:
    said = [str(each) for each in cautions({backend}, "any card")]
    assert len(said) == ways
    assert all("has never run on such a card: verify it on yours with `hilum-models verify" in each for each in said)
    assert all(("--engine 'tensorrt float16'" in each) == (backend == "tensorrt") for each in said)


def test_a_card_that_it_ran_on_needs_no_caution(monkeypatch: pytest.MonkeyPatch) -> None:
    path = CardPath("torch", "torch on CUDA", ("NVIDIA L4", "NVIDIA A10"), "nothing")
    monkeypatch.setattr(cards, "CARD_PATHS", (path,))
    assert str(path) == "torch on CUDA has run on NVIDIA L4, NVIDIA A10; without a card: nothing"
    assert cautions({"torch"}, "NVIDIA L4") == ()
    assert len(cautions({"torch"}, "NVIDIA T4")) == len(cautions({"torch"})) == 1


def test_it_waits_for_no_library() -> None:
    code = "import sys, engines.backends.cards; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
