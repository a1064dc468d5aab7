"""Torch and OpenVINO side by side: one interface, one answer, and nobody told that it runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from engines.backends.base import Backend, Placement, Precision
from engines.backends.openvino import OpenVinoBackend
from engines.backends.torch import TorchBackend
from engines.errors import BackendUnavailable, OutOfDeviceMemory
from engines.model.bundle import Bundle
from engines.model.plan import Plan

Weights = Callable[[Plan], dict[str, np.ndarray]]
BACKENDS: list[type[Backend]] = [TorchBackend, OpenVinoBackend]


def answered(backend: Backend, patches: torch.Tensor) -> torch.Tensor:
    """Every answer, kept."""
    return torch.stack([answer.cpu().clone() for answer in backend.answers(patches)])


def test_both_answer_alike(any_plan: Plan, random_weights: Weights) -> None:
    plan = any_plan
    weights = random_weights(plan)
    patches = torch.randn((2, 1, *plan.patch_size), generator=torch.Generator().manual_seed(0))
    answers = []
    for kind in BACKENDS:
        backend = kind.open(plan, weights, Placement(threads=1))
        answers.append(answered(backend, patches))
        assert (backend.precision, backend.name) == ("float32", kind.name)
        assert kind.name in backend.version
        backend.close()
    assert answers[0].shape == (2, plan.outputs, *plan.patch_size)
    assert torch.allclose(answers[0], answers[1], atol=1e-3 * float(answers[0].std()))


def test_both_give_the_same_features(any_plan: Plan, random_weights: Weights) -> None:
    plan = any_plan
    weights = random_weights(plan)
    patches = torch.randn((1, 1, *plan.patch_size), generator=torch.Generator().manual_seed(0))
    first, second = (answered(kind.open(plan, weights, Placement(answer="features")), patches) for kind in BACKENDS)
    assert first.shape == (1, plan.architecture.features[0], *plan.patch_size)
    assert torch.allclose(first, second, atol=1e-3 * float(first.std()))


def test_input_is_left_alone(plan: Plan, random_weights: Weights) -> None:
    """Activations work in place; the image is not theirs."""
    patches = torch.randn((1, 1, *plan.patch_size))
    before = patches.clone()
    backend = TorchBackend.open(plan, random_weights(plan), Placement())
    answered(backend, patches)
    assert torch.equal(patches, before)


def test_openvino_serves_the_processor_only(plan: Plan) -> None:
    found = OpenVinoBackend.is_available("cuda")
    assert (found.available, "processor only" in found.reason) == (False, True)
    with pytest.raises(BackendUnavailable, match="processor only"):
        OpenVinoBackend.open(plan, {}, Placement(device="cuda"))


def test_torch_says_why_there_is_no_card() -> None:
    assert TorchBackend.is_available("cpu").available
    assert not TorchBackend.is_available("mps").available
    if not torch.cuda.is_available():
        found = TorchBackend.is_available("cuda")
        assert not found.available
        assert "CUDA" in found.reason or "driver" in found.reason


def test_torch_has_one_precision_on_a_processor(plan: Plan) -> None:
    assert "not in float16" in TorchBackend.is_available("cpu", "float16").reason
    assert "not in bfloat16" in TorchBackend.is_available("cuda", "bfloat16").reason
    with pytest.raises(BackendUnavailable, match="torch: multiplies in float32 on a processor"):
        TorchBackend.open(plan, {}, Placement(precision="float16"))


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_batches_change_no_answer(plan: Plan, random_weights: Weights, batch: int) -> None:
    weights = random_weights(plan)
    patches = torch.randn((4, 1, *plan.patch_size), generator=torch.Generator().manual_seed(0))
    alone = answered(TorchBackend.open(plan, weights, Placement()), patches)
    together = answered(TorchBackend.open(plan, weights, Placement(batch=batch)), patches)
    assert torch.allclose(together, alone, atol=1e-5 * float(alone.std()))


def test_a_closed_backend_says_so(plan: Plan, random_weights: Weights) -> None:
    backend = TorchBackend.open(plan, random_weights(plan), Placement())
    backend.close()
    backend.close()
    with pytest.raises(BackendUnavailable, match="was closed"):
        answered(backend, torch.zeros((1, 1, *plan.patch_size)))


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("float16", 3e-2)])
def test_cuda_answers_as_the_processor_does(
    any_plan: Plan, random_weights: Weights, precision: Precision, tolerance: float
) -> None:
    """Five patches in batches of two: the graph is run again, the last batch is short."""
    plan = any_plan
    weights = random_weights(plan)
    patches = torch.randn((5, 1, *plan.patch_size), generator=torch.Generator().manual_seed(0))
    reference = answered(TorchBackend.open(plan, weights, Placement()), patches)
    backend = TorchBackend.open(plan, weights, Placement(device="cuda", batch=2, precision=precision))
    answers = list(backend.answers(patches.cuda()[:1]))
    assert (answers[0].is_cuda, backend.precision) == (True, precision)
    answer = answered(backend, patches).float()
    backend.close()
    assert torch.allclose(answer, reference, atol=tolerance * float(reference.std()))


@pytest.mark.gpu
def test_the_card_is_waited_for(plan: Plan, random_weights: Weights) -> None:
    """What was asked of a card may be given before it is there."""
    backend = TorchBackend.open(plan, random_weights(plan), Placement(device="cuda"))
    for _ in backend.answers(torch.zeros((50, 1, *plan.patch_size), device="cuda")):
        pass
    backend.finish()
    assert torch.cuda.current_stream().query()
    backend.close()


@pytest.mark.gpu
def test_a_card_that_is_too_small_is_ours(plan: Plan, random_weights: Weights) -> None:
    weights = random_weights(plan)
    with pytest.raises(OutOfDeviceMemory, match="in batches of"):
        TorchBackend.open(plan, weights, Placement(device="cuda", batch=2**26))


def test_missing_openvino_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = OpenVinoBackend.is_available("cpu")
    assert not found.available
    assert "hilum[openvino]" in found.reason


def test_device_out_of_memory_is_ours(plan: Plan, random_weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.backends import torch as module

    backend = TorchBackend.open(plan, random_weights(plan), Placement())

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "features", full)
    with pytest.raises(OutOfDeviceMemory, match="no room for patches"):
        answered(backend, torch.zeros((1, 1, *plan.patch_size)))


def test_openvino_never_imports_its_telemetry(make_bundle: Callable[..., Bundle]) -> None:
    """`import openvino` would report itself over the network through its converter."""
    bundle = make_bundle()
    code = f"""
import sys, pathlib
from engines.backends.base import Engine
from engines.inference.segmenter import Segmenter
from engines.model.bundle import load_bundle
segmenter = Segmenter.open(load_bundle(pathlib.Path({str(bundle.folder)!r})), Engine("openvino"))
assert segmenter.reason.startswith("openvino")
loaded = [name for name, module in sys.modules.items() if module is not None]
sys.exit(any("telemetry" in name or name.startswith(("openvino.tools.ovc", "onnx", "nnunetv2")) for name in loaded))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
