"""OpenVINO alone: several patches in flight, bfloat16, and the kernel that upsamples and convolves at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from engines.backends.base import Placement
from engines.backends.openvino import OpenVinoBackend, _import_openvino, composed_kernel
from engines.errors import BackendUnavailable
from engines.model.plan import Plan

has_bfloat16 = OpenVinoBackend.is_available("cpu", "bfloat16").available


@pytest.fixture
def weights(plan: Plan, random_weights: Callable[[Plan], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return random_weights(plan)


def noise(plan: Plan, count: int) -> torch.Tensor:
    return torch.randn((count, 1, *plan.patch_size), generator=torch.Generator().manual_seed(1))


def test_lanes_keep_the_order(plan: Plan, weights: dict[str, np.ndarray]) -> None:
    patches = noise(plan, 7)
    alone = OpenVinoBackend.open(plan, weights, Placement())
    beside = OpenVinoBackend.open(plan, weights, Placement(threads=2, lanes=2))
    expected = [answer.clone() for patch in patches for answer in alone.answers([patch])]
    for answer, each in zip(beside.answers(patches), expected, strict=True):
        assert torch.allclose(answer, each, atol=1e-5 * float(each.std()))


def test_few_patches_are_taken_ahead(plan: Plan, weights: dict[str, np.ndarray]) -> None:
    taken = 0

    def patches() -> Iterator[torch.Tensor]:
        nonlocal taken
        for patch in noise(plan, 9):
            taken += 1
            yield patch

    backend = OpenVinoBackend.open(plan, weights, Placement(threads=2, lanes=2))
    for given, _ in enumerate(backend.answers(patches()), start=1):
        assert taken <= given + 2
    assert taken == 9


def test_a_patch_may_be_overwritten_once_the_next_is_taken(plan: Plan, weights: dict[str, np.ndarray]) -> None:
    patches = noise(plan, 4)
    backend = OpenVinoBackend.open(plan, weights, Placement())
    expected = [answer.clone() for answer in backend.answers(patches)]

    def in_one_buffer() -> Iterator[torch.Tensor]:
        buffer = torch.empty_like(patches[0])
        for patch in patches:
            yield buffer.copy_(patch)

    for answer, each in zip(backend.answers(in_one_buffer()), expected, strict=True):
        assert torch.equal(answer, each)


def test_who_stops_half_way_leaves_a_backend_that_serves(plan: Plan, weights: dict[str, np.ndarray]) -> None:
    patches = noise(plan, 5)
    backend = OpenVinoBackend.open(plan, weights, Placement(threads=2, lanes=2))
    answers = backend.answers(patches)
    first = next(answers).clone()
    answers.close()  # type: ignore[attr-defined]  # a generator
    assert torch.equal(next(backend.answers(patches)), first)


def test_a_fault_of_the_source_leaves_a_backend_that_serves(plan: Plan, weights: dict[str, np.ndarray]) -> None:
    backend = OpenVinoBackend.open(plan, weights, Placement())

    def broken() -> Iterator[torch.Tensor]:
        yield noise(plan, 1)[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        list(backend.answers(broken()))
    assert len(list(backend.answers(noise(plan, 3)))) == 3


@dataclass
class Failing:
    """A request that fails while it is computed."""

    request: Any

    def wait(self) -> None:
        self.request.wait()
        raise RuntimeError("Exception from src/inference:\nno more memory")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.request, name)


def test_what_fails_while_it_computes_is_ours(plan: Plan, weights: dict[str, np.ndarray]) -> None:
    backend = OpenVinoBackend.open(plan, weights, Placement())
    backend._requests = [Failing(each) for each in backend._requests]
    with pytest.raises(BackendUnavailable, match="inference failed: no more memory"):
        list(backend.answers(noise(plan, 3)))


def test_a_network_that_cannot_be_compiled_is_ours(plan: Plan, weights: dict[str, np.ndarray]) -> None:
    with pytest.raises(BackendUnavailable, match="openvino: cannot compile the network"):
        OpenVinoBackend.open(plan, weights, Placement(threads=-7))


@pytest.mark.skipif(not has_bfloat16, reason="this processor has no bfloat16 units")
def test_bfloat16_is_coarser_and_said(plan: Plan, weights: dict[str, np.ndarray]) -> None:
    (patch,) = noise(plan, 1)
    backend = OpenVinoBackend.open(plan, weights, Placement(precision="bfloat16"))
    exact = next(OpenVinoBackend.open(plan, weights, Placement()).answers([patch]))
    answer = next(backend.answers([patch]))
    assert (backend.precision, answer.dtype) == ("bfloat16", torch.float32)
    error = float((answer - exact).std() / exact.std())
    assert 1e-4 < error < 0.05


def test_processors_without_bfloat16_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldProcessor:
        def get_property(self, *_: str) -> list[str]:
            return ["FP32", "INT8", "BIN"]

    monkeypatch.setattr(_import_openvino(), "Core", OldProcessor)
    found = OpenVinoBackend.is_available("cpu", "bfloat16")
    assert (found.available, "no bfloat16 units" in found.reason) == (False, True)
    assert OpenVinoBackend.is_available("cpu").available


def test_float16_is_not_offered(plan: Plan) -> None:
    assert "not in float16" in OpenVinoBackend.is_available("cpu", "float16").reason
    with pytest.raises(BackendUnavailable, match="not in float16"):
        OpenVinoBackend.open(plan, {}, Placement(precision="float16"))


@pytest.mark.parametrize(
    ("stride", "kernel"),
    [((2, 2, 2), (3, 3, 3)), ((1, 2, 2), (3, 3, 3)), ((1, 2, 2), (1, 3, 3)), ((4, 2, 1), (5, 3, 1))],
)
def test_one_kernel_upsamples_and_convolves(stride: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    source = torch.Generator().manual_seed(2)
    up = torch.randn((3, 4, *stride), generator=source)
    convolution = torch.randn((5, 4, *kernel), generator=source)
    image = torch.randn((1, 3, 5, 6, 7), generator=source)
    padding = tuple(size // 2 for size in kernel)
    expected = functional.conv3d(functional.conv_transpose3d(image, up, stride=stride), convolution, padding=padding)
    composed = torch.from_numpy(composed_kernel(up.numpy(), convolution.numpy()))
    answer = functional.conv_transpose3d(image, composed, stride=stride, padding=padding)
    assert torch.allclose(answer, expected, atol=1e-4)
