"""Work on a card as one launch: that it is the same work, and that other threads may use the card meanwhile."""

from __future__ import annotations

import ctypes
from threading import Thread

import pytest
import torch

from engines.backends.cuda_graph import captured

pytestmark = pytest.mark.gpu


def test_the_graph_reads_and_writes_the_same_memory() -> None:
    numbers = torch.arange(4.0, device="cuda")
    doubled = captured(lambda: numbers * 2, numbers.device)
    assert doubled().tolist() == [0, 2, 4, 6]
    numbers.fill_(3)
    assert doubled().tolist() == [6, 6, 6, 6]


def test_another_thread_may_ask_the_card_for_memory_meanwhile() -> None:
    """As a builder of engines does, past torch's allocator."""
    numbers, said = torch.ones(4, device="cuda"), []

    def ask() -> None:
        torch.cuda.set_device(numbers.device)
        driver, place = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint64()
        said.append(driver.cuMemAlloc_v2(ctypes.byref(place), ctypes.c_size_t(2**20)))
        driver.cuMemFree_v2(place)

    def compute() -> torch.Tensor:
        beside = Thread(target=ask)
        beside.start()
        beside.join()
        return numbers * 2

    assert captured(compute, numbers.device)().tolist() == [2, 2, 2, 2]
    assert said == [0, 0, 0]
