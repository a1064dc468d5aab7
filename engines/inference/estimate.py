"""What a case will take, told before it starts: memory and time, from shape, spacing and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from engines.backends.base import Placement
from engines.inference.memory import Need, case_device_bytes
from engines.inference.sliding_window import Windowing, window_count
from engines.model.bundle import Bundle, Member
from engines.model.plan import Plan
from engines.preprocessing.preprocess import grid_step

_FLOAT = 4
_TOP_MAPS = 5
"""Feature maps of full resolution that a U-Net holds at once where it is widest: a skip, two joined, and a
convolution's input and output; what coarser levels hold beside them is less than one more."""
_REPEATS = 2
"""Copies of the label map on its way back: turned, and made contiguous."""


@dataclass(frozen=True)
class Estimate:
    """What a case takes beyond the volume itself and the networks that are open already."""

    memory_bytes: int
    """Of the host, at the highest."""
    device_bytes: int
    """Of the card; 0 on the processor."""
    seconds: float | None
    """Of the networks; None where nobody has measured one of their patches here."""
    patches: int
    """Through all networks, flips counted."""


@dataclass(frozen=True)
class Frame:
    """The grid of a case as the networks see it: axes turned, not yet in the plan's order."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


def estimate(
    bundle: Bundle,
    frame: Frame,
    windowings: Mapping[str, Windowing],
    placement: Placement,
    seconds_per_patch: Mapping[str, float] | None = None,
) -> Estimate:
    """What a case will take. No box of zeros around the image is known yet: it may take less, never more windows.

    Parameters
    ----------
    windowings
        Of each member, by its name.
    seconds_per_patch
        Of each member, measured here.
    """
    shapes = {member.name: network_shape(member.plan, frame) for member in bundle.members}
    patches = {member.name: patches_of(member, shapes[member.name]) for member in bundle.members}
    on_card = placement.device != "cpu"
    together = sum(_held(windowings[each.name], shapes[each.name], len(each.folds)) for each in bundle.averaged)
    alone = [
        _held(windowings[each.name], shapes[each.name], len(each.folds))
        for each in bundle.members
        if each not in bundle.averaged
    ]
    sums = max([together, *alone])
    labels = _REPEATS * prod(frame.shape) * (1 if max(bundle.labels) < 255 else 2)
    turning = max(_preprocessing_bytes(member.plan, frame, shapes[member.name]) for member in bundle.members)
    working = max(activation_bytes(each.plan, placement, windowings[each.name].channels) for each in bundle.members)
    known = seconds_per_patch is not None and all(name in seconds_per_patch for name in patches)
    return Estimate(
        memory_bytes=turning + labels if on_card else max(turning, sums + labels + working),
        device_bytes=sums + working if on_card else 0,
        seconds=sum(count * (seconds_per_patch or {})[name] for name, count in patches.items()) if known else None,
        patches=sum(patches.values()),
    )


def activation_bytes(plan: Plan, placement: Placement, channels: int) -> int:
    """What a network holds while it computes, all patches that are computed beside each other.

    Parameters
    ----------
    channels
        Maps in its answer. On a processor one more patch lies ready while an answer is added to the sums.
    """
    width = 2 if placement.precision in ("float16", "bfloat16") else _FLOAT
    beside = placement.lanes if placement.device == "cpu" else placement.batch
    answers = beside + 1 if placement.device == "cpu" else beside
    voxels = prod(plan.patch_size)
    maps = beside * _TOP_MAPS * plan.architecture.features[0] * width
    return (maps + answers * (plan.inputs + channels) * _FLOAT) * voxels


def network_shape(plan: Plan, frame: Frame) -> tuple[int, ...]:
    """(C, D, H, W) of the network's input; less where a border of zeros is cut off."""
    in_order = [frame.shape[axis] for axis in plan.transpose_forward]
    return (plan.inputs, *grid_step(in_order, frame.spacing_mm, plan).shape_to)


def patches_of(member: Member, shape: Sequence[int]) -> int:
    """Through all its networks, flips counted, of an input of (C, D, H, W)."""
    return window_count(shape[1:], member.plan.patch_size) * len(member.folds) * int(2 ** len(member.mirroring_axes))


def _held(windowing: Windowing, shape: Sequence[int], folds: int) -> int:
    """The network's input, the ring of sums, and planes on the way to labels."""
    padded = (shape[0], *(max(n, p) for n, p in zip(shape[1:], windowing.patch_3d, strict=True)))
    return case_device_bytes(Need(windowing, padded, folds).on("cpu"), padded)


def _preprocessing_bytes(plan: Plan, frame: Frame, shape: Sequence[int]) -> int:
    """One channel's crop, the crop with its planes resampled, and the result."""
    first, second, third = (frame.shape[axis] for axis in plan.transpose_forward)
    return _FLOAT * (first * second * third + first * shape[2] * shape[3] + prod(shape))
