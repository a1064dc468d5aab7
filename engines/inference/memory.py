"""Where the sums of a case are held, planned from what is free before the case starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engines.errors import OutOfDeviceMemory
from engines.inference.sliding_window import Windowing

_HEADROOM = 0.9
"""Of a card's free memory, at most so much is planned with: its allocator needs room between blocks."""


@dataclass(frozen=True)
class Way:
    """Where and of what the sums are; written into every result."""

    device: str
    """`cpu`, or a CUDA device: there every step from the network's input to labels stays on the card."""
    planes: int
    channels: int
    kind: str
    """`logits` or `features`."""
    dtype: torch.dtype

    def __str__(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        return f"sums of {self.channels} {self.kind} in {precision}, a ring of {self.planes} planes on {self.device}"


def way_of(windowing: Windowing, shape: Sequence[int], networks: int, device: str) -> Way:
    """The way of one member's case: on the card where its free memory allows, else on the processor.

    Parameters
    ----------
    shape
        (C, D, H, W) of the network's input.
    networks
        Folds.

    Raises
    ------
    OutOfDeviceMemory
        Where not even the input of the network has room on the card: the network itself could not run.
    """
    own = networks if windowing.side_by_side else 1
    depth = min(windowing.open_planes, max(shape[1], windowing.patch_3d[0]))
    on_card = Way(device, depth, own * windowing.channels, windowing.kind, windowing.sums)
    if device == "cpu":
        return on_card
    free = free_device_bytes(device)
    patch = windowing.patch_3d
    if 4 * shape[0] * patch[0] * patch[1] * patch[2] > free * _HEADROOM:
        raise OutOfDeviceMemory(f"{device}: {free / 2**30:.1f} GiB are free, no room for a patch of {patch}")
    needed = case_device_bytes(on_card, shape)
    return (
        on_card
        if needed <= free * _HEADROOM
        else Way("cpu", depth, own * windowing.channels, windowing.kind, windowing.sums)
    )


def case_device_bytes(way: Way, shape: Sequence[int]) -> int:
    """What image, sums and the planes on the way to labels take where the sums are."""
    plane = shape[2] * shape[3]
    image = 4 * shape[0] * shape[1] * plane
    sums = (way.channels + 1) * way.planes * plane * way.dtype.itemsize
    on_the_way = 8 * way.channels * plane * 4
    return image + sums + on_the_way


def free_device_bytes(device: str) -> int:
    """Free memory of a card, what torch has set aside and does not use included."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused)
