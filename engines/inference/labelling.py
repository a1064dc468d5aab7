"""From planes of logits on the networks' grids to labels on the image's, never holding all classes at either size.

nnU-Net interpolates every class to the image's grid and takes the largest; of an ensemble of configurations it
averages the probabilities there. Here each output plane is made from the two planes of logits that it lies between,
as soon as both are final, and all classes are looked at only where the labels around a voxel differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engines.errors import UnsuitableVolume
from engines.inference import kernels
from engines.inference.arithmetic import Arithmetic, Cell, Head, LogitPlane, Rule, Spread
from engines.inference.sliding_window import Plane
from engines.preprocessing.resampling import Taps

LabelArray = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Source:
    """The planes of one member, and how the output grid is mixed from them.

    Attributes
    ----------
    taps
        Along the three axes, in the plan's order.
    halved
        Whether interpolated logits are rounded to float16 before they are compared. nnU-Net's default resampling
        stores them so, which makes ties real; its torch variant does not.
    """

    planes: Iterator[Plane]
    taps: tuple[Taps, Taps, Taps]
    halved: bool
    head: Head | None = None
    folds: int = 1
    """Of which logits lie side by side in the planes."""


def label_volume(sources: Sequence[Source], rule: Rule, arithmetic: Arithmetic, highest: int) -> LabelArray:
    """The label of every voxel of the output grid.

    Parameters
    ----------
    sources
        One for each member that is averaged; their taps lead to one grid.
    highest
        The highest label that the model gives.

    Returns
    -------
    uint8, or uint16 above 254 labels, (D, H, W).

    Raises
    ------
    UnsuitableVolume
        Where a network's answer is not finite.
    """
    depth, height, width = (len(taps.low) for taps in sources[0].taps)
    out = np.empty((depth, height, width), dtype=np.uint8 if highest < 255 else np.uint16)
    readers = [_Reader(source, rule, arithmetic) for source in sources]
    for z in range(depth):
        for reader in readers:
            reader.advance(z)
        out[z] = _label_plane(readers, rule, arithmetic).cpu().numpy()
    return out


@dataclass(eq=False)
class _Reader:
    """Reads one member's planes as the output goes along its first axis."""

    source: Source
    rule: Rule
    arithmetic: Arithmetic
    low: LogitPlane | None = None
    high: LogitPlane | None = None
    at: int = -1
    """The index of the plane `high`."""
    cell: Cell | None = None
    spread: Spread | None = None
    """Of the planes that `cell` lies between."""
    between: tuple[int, bool] = (-1, False)
    """Which these are: the lower index, and whether they mix."""

    def advance(self, z: int) -> None:
        """Read on until both planes around output plane z are there."""
        depth = self.source.taps[0]
        low, weight = int(depth.low[z]), float(depth.weight[z])
        wanted = int(depth.high[z]) if weight > 0 else low
        while self.at < wanted:
            self.low, self.high, self.at = self.high, self._next(self.low), self.at + 1
        first = self.high if low == self.at else self.low
        if first is None or self.high is None:
            raise RuntimeError(f"plane {low} was passed over on the way to {self.at}")
        rows, columns = self.source.taps[1:]
        self.cell = Cell(first, self.high, weight, rows, columns, self.source.halved)
        if self.spread is None or self.between != (low, weight > 0):
            cells = self.arithmetic.shared_labels(self.cell)
            self.spread, self.between = Spread(cells, rows, columns), (low, weight > 0)

    def decided(self, at: torch.Tensor) -> torch.Tensor:
        """int16, (N,): the labels at places of the flat output plane, by this member alone."""
        if self.cell is None:
            raise RuntimeError("no plane was read yet")
        return self.arithmetic.decide(self.cell, at, self.rule)

    def logits(self, at: torch.Tensor) -> torch.Tensor:
        """float32, (C, N) at places of the flat output plane."""
        if self.cell is None:
            raise RuntimeError("no plane was read yet")
        return self.arithmetic.interpolate(self.cell, at)

    def _next(self, spare: LogitPlane | None) -> LogitPlane:
        head = self.source.head
        plane = next(self.source.planes)
        if self.source.folds > 1:
            plane = _mean_of_folds(plane, self.source.folds)
        finished, most = self.arithmetic.finish(plane, self.rule, head, spare)
        # Written so that a value which is not a number fails too.
        if not most <= kernels.HIGHEST_HALF:
            kind = "beyond float16, in which nnU-Net keeps it" if most > kernels.HIGHEST_HALF else "not finite"
            raise UnsuitableVolume(f"the network's answer is {kind}: the voxels are unlike those it was trained on")
        return finished


def _mean_of_folds(plane: Plane, folds: int) -> Plane:
    """The mean logits of folds, rounded at each step as nnU-Net's float16 is."""
    each = (plane.sums / plane.weights).view(folds, -1, *plane.weights.shape)
    total = each[0].clone()
    for logits in each[1:]:
        total += logits
    return Plane(total / folds, torch.ones_like(plane.weights))


def _label_plane(readers: Sequence[_Reader], rule: Rule, arithmetic: Arithmetic) -> torch.Tensor:
    """int16, (H, W): where all members are sure of one label, that; elsewhere all classes decide."""
    label, unsure = arithmetic.labels([reader.spread for reader in readers if reader.spread is not None])
    if len(unsure):
        alone = len(readers) == 1
        label.view(-1)[unsure] = readers[0].decided(unsure) if alone else _by_mean(readers, rule, unsure)
    return label


def _by_mean(readers: Sequence[_Reader], rule: Rule, at: torch.Tensor) -> torch.Tensor:
    """int16, (N,): by the mean of the members' probabilities."""
    total = rule.probabilities(readers[0].logits(at))
    for reader in readers[1:]:
        total += rule.probabilities(reader.logits(at))
    return rule.of_probabilities(total / len(readers))
