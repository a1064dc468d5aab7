"""What follows from a device and a number of threads."""

from __future__ import annotations

import pytest

from engines.backends.base import Placement


@pytest.mark.parametrize(("threads", "lanes"), [(1, 1), (2, 2), (3, 1), (4, 2), (7, 1), (16, 2)])
def test_lanes_share_every_thread(threads: int, lanes: int) -> None:
    placement = Placement.told(threads=threads)
    assert (placement.threads, placement.lanes) == (threads, lanes)
