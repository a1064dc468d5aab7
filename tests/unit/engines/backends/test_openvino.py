"""OpenVINO alone: several patches in flight, bfloat16, and the kernel that upsamples and convolves at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from engines.backends.base import Placement
from engines.backends.openvino import OpenVinoBackend, _import_openvino, composed_kernel
from engines.errors import BackendUnavailable, OutOfDeviceMemory
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


def test_answers_are_given_anew_while_an_abandoned_iterator_lives_on(
    plan: Plan, weights: dict[str, np.ndarray]
) -> None:
    """As a traceback keeps it, with requests in flight."""
    patches = noise(plan, 5)
    backend = OpenVinoBackend.open(plan, weights, Placement(threads=2, lanes=2))
    expected = [answer.clone() for answer in backend.answers(patches)]
    for taken in (1, 4):
        abandoned = backend.answers(patches)
        for _ in range(taken):
            next(abandoned)
        for answer, each in zip(backend.answers(patches), expected, strict=True):
            assert torch.equal(answer, each)
        with pytest.raises(BackendUnavailable, match="given up when others were asked for"):
            next(abandoned)
        assert len(list(backend.answers(patches))) == 5


def test_a_closed_backend_gives_no_answer(plan: Plan, weights: dict[str, np.ndarray]) -> None:
    backend = OpenVinoBackend.open(plan, weights, Placement())
    abandoned = backend.answers(noise(plan, 3))
    next(abandoned)
    backend.close()
    for answers in (abandoned, backend.answers(noise(plan, 1))):
        with pytest.raises(BackendUnavailable):
            next(answers)


@dataclass
class Busy:
    """A request that computes already, as the library says it."""

    request: Any

    def start_async(self) -> None:
        raise RuntimeError("Infer Request is busy")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.request, name)


def test_a_request_that_is_busy_is_ours(plan: Plan, weights: dict[str, np.ndarray]) -> None:
    backend = OpenVinoBackend.open(plan, weights, Placement())
    backend._requests = [Busy(each) for each in backend._requests]
    with pytest.raises(BackendUnavailable, match="openvino: inference cannot start: Infer Request is busy"):
        next(backend.answers(noise(plan, 1)))


@dataclass
class Failing:
    """A request that fails while it is computed."""

    request: Any
    fault: Exception

    def wait(self) -> None:
        self.request.wait()
        raise self.fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self.request, name)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (RuntimeError("Exception from src/inference:\nno such primitive"), BackendUnavailable),
        (RuntimeError("Failed to allocate required number of vector registers"), BackendUnavailable),
        (RuntimeError("Exception from src/inference:\nstd::bad_alloc"), OutOfDeviceMemory),
        (RuntimeError("Check 'ptr' failed:\nFailed to allocate 64143360 bytes of memory\n\n"), OutOfDeviceMemory),
        (RuntimeError("Could not allocate memory"), OutOfDeviceMemory),
        (RuntimeError("can't alloc"), OutOfDeviceMemory),
        (MemoryError("std::bad_alloc"), OutOfDeviceMemory),
    ],
)
def test_what_fails_while_it_computes_is_ours(
    plan: Plan, weights: dict[str, np.ndarray], fault: Exception, expected: type[Exception]
) -> None:
    backend = OpenVinoBackend.open(plan, weights, Placement())
    backend._requests = [Failing(each, fault) for each in backend._requests]
    with pytest.raises(expected, match=f"inference failed: .*{str(fault).split()[-1]}"):
        list(backend.answers(noise(plan, 3)))


def test_a_network_without_room_is_told_apart() -> None:
    """The library's own words, in a process that may have no more than a few MiB beyond what it holds."""
    code = """
import resource
from dataclasses import replace
from pathlib import Path
from engines.backends.base import Placement
from engines.backends.openvino import OpenVinoBackend
from engines.errors import OutOfDeviceMemory
from engines.model.bundle import SHIPPED, load_bundle
(member,) = load_bundle(SHIPPED / "phantom").members
weights = member.weights(member.folds[0])
OpenVinoBackend.open(member.plan, weights, Placement()).close()
limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 2**23
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    OpenVinoBackend.open(replace(member.plan, patch_size=(96, 96, 96)), weights, Placement())
except OutOfDeviceMemory as error:
    assert "openvino: cannot compile the network: no room in memory: " in str(error), error
else:
    raise SystemExit("it had room")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


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
