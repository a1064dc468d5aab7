"""An engine on trial: measured on the bundle's parity crops, and held against torch on volumes."""

from __future__ import annotations

import platform
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from engines.backends.base import REFERENCE, Backend, Engine, Placement
from engines.backends.openvino import OpenVinoBackend
from engines.errors import BackendUnavailable
from engines.inference import trial
from engines.inference.segmenter import Segmenter
from engines.inference.trial import Answered, device_name, engine_key, held_against_reference, measure, reference_name
from engines.model.certificate import ENGINE_LIMITS
from engines.volume import Grid, Volume

OPENVINO = Engine("openvino")


def test_speed_and_error_are_measured_and_nothing_stays_open(make_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    close = OpenVinoBackend.close
    monkeypatch.setattr(OpenVinoBackend, "close", lambda self: (closed.append(self), close(self))[1])
    found = measure(make_bundle(), OPENVINO, Placement())
    assert found.seconds_per_patch > 0
    assert 0 < found.logits_error < 1e-3
    assert len(closed) == 1


def test_what_was_only_asked_for_is_waited_for(make_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card: to ask takes no time, to wait does. The clock is ours; one patch takes 5 s, at first 7."""
    now, asked, first = 0.0, 0, True

    class OnACard:
        def answers(self, patches: Any) -> Any:
            nonlocal asked
            for patch in patches:
                asked += 1
                yield patch

        def finish(self) -> None:
            nonlocal now, asked, first
            now += asked * (7 if first and asked else 5)
            first, asked = first and not asked, 0

    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: now))
    (member,) = make_bundle().members
    seconds, _ = trial._measured(cast(Backend, OnACard()), member, Placement(lanes=2))
    assert seconds == 5


def test_the_first_try_does_not_count(make_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = iter([1.0, 8.0, 6.0, 9.0])
    monkeypatch.setattr(trial, "_seconds", lambda *_: next(tries))
    clock = iter([0.0, 0.1, 0.2, 0.4])
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert measure(make_bundle(), OPENVINO, Placement(lanes=2, threads=2)).seconds_per_patch == 3


def test_answers_that_are_scaled_show_in_the_error(make_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = OpenVinoBackend.answers
    monkeypatch.setattr(OpenVinoBackend, "answers", lambda self, patches: (2 * each for each in answers(self, patches)))
    assert measure(make_bundle(), OPENVINO, Placement()).logits_error > 1


def test_an_engine_that_cannot_run_says_so(make_bundle: Any) -> None:
    with pytest.raises(BackendUnavailable):
        measure(make_bundle(), OPENVINO, Placement(device="cuda"))


def test_openvino_is_held_against_torch(make_bundle: Any) -> None:
    """On noise, where each label has voxels enough."""
    bundle, grid = make_bundle(), Grid((20, 20, 20), np.eye(4))
    volume = Volume(grid, np.random.default_rng(0).standard_normal(grid.shape).astype(np.float32), "MR")
    with Segmenter.open(bundle, REFERENCE, Placement()) as reference:
        answered = [Answered((volume,), reference.segment(volume).label_map.labels)]
    key = engine_key(bundle, OPENVINO, "cpu")
    with Segmenter.open(bundle, OPENVINO, Placement()) as segmenter:
        made = held_against_reference(bundle, key, segmenter, answered, ENGINE_LIMITS, error=1e-5)
    assert made.verdict.outcome == "passed"
    assert (made.bundle, made.key, made.reference) == (bundle.name, key, reference_name())
    assert made.logits_error == 1e-5
    changed = [Answered((volume,), np.roll(answered[0].labels, 3, axis=0))]
    with Segmenter.open(bundle, OPENVINO, Placement()) as segmenter:
        made = held_against_reference(bundle, key, segmenter, changed, ENGINE_LIMITS, error=float("inf"))
    assert (made.verdict.outcome, made.logits_error) == ("failed", None)


def test_a_card_that_is_gone_has_the_name_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """One card is left of two: the second is refused with its reason, not by an error while its name is asked for."""

    def name_of(device: torch.device) -> str:
        if (device.index or 0) > 0:
            raise AssertionError("Invalid device id")
        return "A card"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", name_of)
    assert [device_name(each) for each in ("cuda", "cuda:0", "cuda:1", "cpu")] == [
        "A card",
        "A card",
        "cuda:1",
        f"cpu {platform.machine()}",
    ]
