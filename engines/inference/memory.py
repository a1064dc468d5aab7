"""Where the sums of a case are held, planned from what is free before the case starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from engines.errors import OutOfDeviceMemory
from engines.inference.sliding_window import Windowing

_FLOAT = 4
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
    pinned: bool = False
    """Whether a card writes to the host's memory directly."""

    def __str__(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        where = f"{self.device}, for the card has no room" if self.pinned else self.device
        return f"sums of {self.channels} {self.kind} in {precision}, a ring of {self.planes} planes on {where}"


@dataclass(frozen=True)
class Need:
    """What one member wants to hold."""

    windowing: Windowing
    shape: Sequence[int]
    """(C, D, H, W) of the network's input."""
    folds: int

    def on(self, device: str, *, pinned: bool = False) -> Way:
        """Its way, if it goes there."""
        windowing = self.windowing
        own = self.folds if windowing.side_by_side else 1
        depth = min(windowing.open_planes, max(self.shape[1], windowing.patch_3d[0]))
        return Way(device, depth, own * windowing.channels, windowing.kind, windowing.sums, pinned)


def ways_of(needs: Sequence[Need], upload_bytes: int, device: str) -> tuple[Way, ...]:
    """The ways of members that are computed together: all on the card where its free memory allows, else none.

    Told before anything of the case is on the card. Where the sums have no room there, they lie in pinned memory of the
    host, and so does the networks' input: only patches and answers travel.

    Parameters
    ----------
    upload_bytes
        What preprocessing brings there for a time.

    Raises
    ------
    OutOfDeviceMemory
        Where not even a patch has room on the card: the network itself could not run.
    """
    if device == "cpu":
        return tuple(need.on(device) for need in needs)
    free = free_device_bytes(device) * _HEADROOM
    patch = max(_FLOAT * need.shape[0] * prod(need.windowing.patch_3d) for need in needs)
    if patch > free:
        raise OutOfDeviceMemory(f"{device}: {free / 2**30:.1f} GiB are free, no room for a patch of {patch} bytes")
    on_card = tuple(need.on(device) for need in needs)
    held = sum(case_device_bytes(way, need.shape) for way, need in zip(on_card, needs, strict=True))
    return on_card if held + upload_bytes <= free else tuple(need.on("cpu", pinned=True) for need in needs)


def fitting_batch(wanted: int, patch_bytes: int, device: str) -> int:
    """The largest of `wanted`, half of it and so on whose patches take at most half of a card's free memory.

    Parameters
    ----------
    patch_bytes
        What a network holds while it computes one.
    """
    free = free_device_bytes(device) / 2
    while wanted > 1 and wanted * patch_bytes > free:
        wanted //= 2
    return wanted


def case_device_bytes(way: Way, shape: Sequence[int]) -> int:
    """What image, sums and the planes on the way to labels take where the sums are."""
    plane = shape[2] * shape[3]
    image = _FLOAT * shape[0] * shape[1] * plane
    sums = (way.channels + 1) * way.planes * plane * way.dtype.itemsize
    on_the_way = 8 * way.channels * plane * _FLOAT
    return image + sums + on_the_way


def free_device_bytes(device: str) -> int:
    """Free memory of a card, what torch has set aside and does not use included."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused)
