"""One case on its way through a segmenter: what was given, what was taken, how long each stage took, how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.inference.estimate import Frame
from engines.inference.members import OpenMember
from engines.inference.memory import Way
from engines.inference.sliding_window import ended
from engines.model.bundle import Bundle
from engines.preprocessing.preprocess import NetworkInput, preprocess
from engines.volume import Grid, Reorientation, Volume

_T = TypeVar("_T")


@dataclass
class Clock:
    """Seconds of each stage; a stage inside another is not counted twice."""

    started: float = field(default_factory=time.monotonic)
    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside, less the stages in it."""
        begin, before = time.monotonic(), sum(self.spent.values())
        yield
        inside = sum(self.spent.values()) - before
        self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - begin - inside

    def timed(self, name: str, items: Iterator[_T]) -> Iterator[_T]:
        """The items, and what it takes to make each."""
        with ended(items):
            while True:
                with self.stage(name):
                    item = next(items, None)
                if item is None:
                    return
                yield item

    def seconds(self) -> Mapping[str, float]:
        """Every stage, and the total."""
        return MappingProxyType({**self.spent, "total": time.monotonic() - self.started})


@dataclass
class Passage:
    """One case on its way: what was given, what was taken, how far it is."""

    images: Sequence[Volume]
    bundle: Bundle
    clock: Clock
    progress: Callable[[float], None] | None
    costs: Mapping[str, float]
    """Of each member, what its networks see in all: patches times their voxels."""
    ways: list[Way] = field(default_factory=list)
    done: dict[str, float] = field(default_factory=dict)
    """Of each member's windows, the share that is done."""

    @property
    def turn(self) -> Reorientation:
        """From the images' frame to the networks'."""
        codes = self.images[0].grid.axis_codes
        return Reorientation.between(codes, self.bundle.orientation or codes)

    @property
    def frame(self) -> Frame:
        """The grid as the networks see it."""
        return frame_of(self.images[0].grid, self.bundle)

    def network_input(
        self, opened: OpenMember, earlier: Mapping[str, NDArray[np.integer]], device: str
    ) -> NetworkInput:
        """What a member's networks see."""
        turn, stage = self.turn, opened.member.previous_stage
        turned = [turn.apply(volume.voxels) for volume in self.images]
        channels = turned[0][None] if len(turned) == 1 else np.stack(turned)
        previous = None if stage is None else earlier[stage]
        return preprocess(channels, self.frame.spacing_mm, opened.member.plan, previous, device)

    def told(self, name: str) -> Callable[[float], None] | None:
        """Progress of one member, as a share of all."""
        whole = self.progress
        if whole is None:
            return None

        def tell(share: float) -> None:
            self.done[name] = share
            whole(sum(self.costs[each] * part for each, part in self.done.items()) / sum(self.costs.values()))

        return tell


def frame_of(grid: Grid, bundle: Bundle) -> Frame:
    """A grid, turned into the frame that a bundle's networks were trained in."""
    codes = grid.axis_codes
    turned = Reorientation.between(codes, bundle.orientation or codes).grid(grid)
    return Frame(turned.shape, turned.spacing_mm)
