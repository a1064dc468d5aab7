"""The way back from sums to labels, plane by plane: by compiled loops on the processor, by torch on a card.

Linear weights are convex: where all corner voxels of a cell of the network's grid bear one label, that label is the
answer anywhere in the cell. Only voxels in mixed cells, a few in a hundred, need all classes interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engines.inference import kernels
from engines.inference.sliding_window import Plane
from engines.preprocessing.resampling import Taps

_LEAST_BAND = 32
"""Rows, or hundreds of voxels, below which another thread costs more than it brings."""


@dataclass(frozen=True)
class Rule:
    """What makes a label of logits: the largest class, or regions painted in order."""

    region_order: tuple[int, ...] = ()
    """The label that each region paints; empty: outputs are classes, and the lowest of equal ones wins."""

    def of_logits(self, values: torch.Tensor) -> torch.Tensor:
        """int16, the shape of one class, of logits (C, ...)."""
        return self._painted(values > float(kernels.LIKELY)) if self.region_order else largest_class(values)

    def probabilities(self, values: torch.Tensor) -> torch.Tensor:
        """float32, of logits (C, ...): sigmoid of regions, softmax of classes."""
        return torch.sigmoid(values.float()) if self.region_order else torch.softmax(values.float(), 0)

    def of_probabilities(self, values: torch.Tensor) -> torch.Tensor:
        """int16, the shape of one class, of probabilities (C, ...)."""
        return self._painted(values > 0.5) if self.region_order else largest_class(values)

    def _painted(self, there: torch.Tensor) -> torch.Tensor:
        label = torch.zeros(there.shape[1:], dtype=torch.int16, device=there.device)
        for region, paints in zip(there, self.region_order, strict=True):
            label.masked_fill_(region, paints)
        return label


def largest_class(values: torch.Tensor) -> torch.Tensor:
    """int16, of the shape of one class: the class of the largest value, the lowest of equal ones.

    torch's argmax over the first axis strides through memory, and on a card does not say which of equal ones it takes.
    """
    best = values[0].clone()
    label = torch.zeros(best.shape, dtype=torch.int16, device=values.device)
    for index in range(1, len(values)):
        label.masked_fill_(values[index] > best, index)
        torch.maximum(best, values[index], out=best)
    return label


@dataclass(frozen=True, eq=False)
class Head:
    """The last layer of a network whose features were summed instead of its logits.

    Attributes
    ----------
    matrix
        float32, (C, K): of several folds side by side, each divided by their number.
    bias
        float32, (C,).
    """

    matrix: torch.Tensor
    bias: torch.Tensor

    def on(self, device: str) -> Head:
        """The same where the sums are."""
        return Head(self.matrix.to(device), self.bias.to(device))


@dataclass(frozen=True, eq=False)
class LogitPlane:
    """One plane of logits on the network's grid.

    Attributes
    ----------
    logits
        float32, (C, H, W), values that float16 can hold, as nnU-Net stores them.
    label
        int16, (H, W).
    """

    logits: torch.Tensor
    label: torch.Tensor


@dataclass(frozen=True, eq=False)
class Spread:
    """The labels that cells share, and the cell that each voxel of an output plane lies in.

    Attributes
    ----------
    cells
        int16, (H, W), -1 where corners differ.
    """

    cells: torch.Tensor
    rows: Taps
    columns: Taps


@dataclass(frozen=True, eq=False)
class Cell:
    """Where an output plane lies between two planes of logits, and how its voxels are mixed from theirs.

    Attributes
    ----------
    weight
        0 to 1, of `high`; at 0 both planes may be one.
    halved
        Whether interpolated logits are rounded to float16, as nnU-Net's default resampling stores them.
    """

    low: LogitPlane
    high: LogitPlane
    weight: float
    rows: Taps
    columns: Taps
    halved: bool


class Arithmetic(Protocol):
    """What the way back is made of, where the sums lie."""

    def finish(self, plane: Plane, rule: Rule, head: Head | None, spare: LogitPlane | None) -> tuple[LogitPlane, float]:
        """Logits and labels of a plane of sums, and the largest absolute logit, NaN where any is.

        The sums may be overwritten, and so may `spare`, a plane of the same network that nobody needs any more.
        """
        ...

    def shared_labels(self, cell: Cell) -> torch.Tensor:
        """int16, (H, W): the label that all corners share of the cell above each voxel, or -1."""
        ...

    def labels(self, members: Sequence[Spread]) -> tuple[torch.Tensor, torch.Tensor]:
        """int16, (H', W'): the label of which all members are sure, or -1; and int64, (N,): the flat places of -1."""
        ...

    def interpolate(self, cell: Cell, at: torch.Tensor) -> torch.Tensor:
        """float32, (C, N): all classes at N voxels, by their places int64 in the flat output plane."""
        ...

    def decide(self, cell: Cell, at: torch.Tensor, rule: Rule) -> torch.Tensor:
        """int16, (N,): the labels of the same voxels by one network alone."""
        ...


class HostArithmetic:
    """On the processor, by `kernels`, in bands that a few threads share."""

    def __init__(self, threads: int) -> None:
        kernels.warm_up()
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="labels")

    def finish(self, plane: Plane, rule: Rule, head: Head | None, spare: LogitPlane | None) -> tuple[LogitPlane, float]:
        """Divide, round and compare in one pass over memory, in place."""
        sums, weights = plane.sums.float(), plane.weights.float()
        bias = np.zeros(len(sums), dtype=np.float32) if head is None else head.bias.numpy()
        if head is not None:  # linear: the head may come before the division
            sums = _multiplied(head.matrix, sums, spare)
        label = torch.empty_like(weights, dtype=torch.int16) if spare is None else spare.label
        arrays = sums.numpy(), weights.numpy(), bias
        if rule.region_order:
            order = np.array(rule.region_order, dtype=np.int16)
            most = self._banded(kernels.finish_regions, len(label), *arrays, order, label.numpy())
        else:
            most = self._banded(kernels.finish_classes, len(label), *arrays, label.numpy())
        return LogitPlane(sums, label), float(np.max(most))  # numpy's max keeps NaN

    def shared_labels(self, cell: Cell) -> torch.Tensor:
        """Compare eight labels."""
        low, high = cell.low.label, (cell.high if cell.weight > 0 else cell.low).label
        cells = torch.empty_like(low)
        arrays = low.numpy(), high.numpy(), cell.rows.mixes, cell.columns.mixes, cells.numpy()
        self._banded(kernels.shared_labels, len(low), *arrays)
        return cells

    def labels(self, members: Sequence[Spread]) -> tuple[torch.Tensor, torch.Tensor]:
        """Look up, and compare with what the first said."""
        size = len(members[0].rows.low), len(members[0].columns.low)
        out = torch.empty(size, dtype=torch.int16)
        for number, each in enumerate(members):
            kernel = kernels.agree if number else kernels.spread
            self._banded(kernel, size[0], each.cells.numpy(), each.rows.low, each.columns.low, out.numpy())
        return out, torch.from_numpy(np.concatenate(self._banded(kernels.unsure, size[0], out.numpy())))

    def interpolate(self, cell: Cell, at: torch.Tensor) -> torch.Tensor:
        """Voxel after voxel."""
        out = torch.empty((len(cell.low.logits), len(at)))
        self._banded(kernels.interpolate, len(at), _between(cell), at.numpy(), out.numpy(), unit=100)
        return out

    def decide(self, cell: Cell, at: torch.Tensor, rule: Rule) -> torch.Tensor:
        """The same without keeping a logit."""
        out = torch.empty(len(at), dtype=torch.int16)
        given = _between(cell), at.numpy()
        if rule.region_order:
            order = np.array(rule.region_order, dtype=np.int16)
            self._banded(kernels.decide_regions, len(at), *given, order, out.numpy(), unit=100)
        else:
            self._banded(kernels.decide_classes, len(at), *given, out.numpy(), unit=100)
        return out

    def _banded(self, kernel: Callable[..., Any], size: int, *arguments: Any, unit: int = 1) -> list[Any]:
        """The kernel's results for bands that together cover `size`."""
        count = max(1, min(self.threads, size // (_LEAST_BAND * unit)))
        cuts = [size * band // count for band in range(count + 1)]
        others = [self.pool.submit(kernel, *arguments, *cut) for cut in list(pairwise(cuts))[1:]]
        return [kernel(*arguments, *cuts[:2]), *(other.result() for other in others)]


class DeviceArithmetic:
    """By torch, on whatever device the sums lie."""

    def finish(self, plane: Plane, rule: Rule, head: Head | None, spare: LogitPlane | None) -> tuple[LogitPlane, float]:
        """Divide, and round as nnU-Net stores logits."""
        logits = plane.sums.float() / plane.weights.float()
        if head is not None:
            flat = torch.addmm(head.bias[:, None], head.matrix, logits.flatten(1))
            logits = flat.reshape(-1, *plane.weights.shape)
        logits = logits.half().float()
        return LogitPlane(logits, rule.of_logits(logits)), float(logits.abs().max())

    def shared_labels(self, cell: Cell) -> torch.Tensor:
        """Compare the least and the greatest label of each cell."""
        low, high = cell.low.label, (cell.high if cell.weight > 0 else cell.low).label
        least, most = torch.minimum(low, high), torch.maximum(low, high)
        for axis, wanted in ((0, cell.rows.mixes), (1, cell.columns.mixes)):
            if wanted:
                least = torch.minimum(least, _next(least, axis))
                most = torch.maximum(most, _next(most, axis))
        return torch.where(least == most, least, torch.tensor(-1, dtype=torch.int16, device=least.device))

    def labels(self, members: Sequence[Spread]) -> tuple[torch.Tensor, torch.Tensor]:
        """Look up, and compare."""
        found = [
            each.cells.index_select(0, _on(each.rows.low, each.cells.device)).index_select(
                1, _on(each.columns.low, each.cells.device)
            )
            for each in members
        ]
        label = found[0]
        for other in found[1:]:
            label = torch.where(label == other, label, torch.tensor(-1, dtype=torch.int16, device=label.device))
        return label, (label.view(-1) < 0).nonzero().squeeze(1)

    def interpolate(self, cell: Cell, at: torch.Tensor) -> torch.Tensor:
        """Corner after corner."""
        device, width, rows, columns = at.device, cell.low.logits.shape[2], cell.rows, cell.columns
        ys, xs = torch.div(at, len(columns.low), rounding_mode="floor"), at % len(columns.low)
        total = torch.zeros((len(cell.low.logits), len(at)), device=device)
        for (plane, wz), (row, wy), (column, wx) in product(
            ((cell.low, 1.0 - cell.weight), (cell.high, cell.weight)), _corners(rows, ys), _corners(columns, xs)
        ):
            values = plane.logits.flatten(1).index_select(1, row * width + column)
            total.addcmul_(values, (wz * wy * wx).float())
        return total.half().float() if cell.halved else total

    def decide(self, cell: Cell, at: torch.Tensor, rule: Rule) -> torch.Tensor:
        """Of all classes."""
        return rule.of_logits(self.interpolate(cell, at))


def _multiplied(matrix: torch.Tensor, sums: torch.Tensor, spare: LogitPlane | None) -> torch.Tensor:
    """float32, (C, H, W): a matrix (C, K) times every voxel of sums (K, H, W)."""
    out = torch.empty((len(matrix), *sums.shape[1:])) if spare is None else spare.logits
    torch.mm(matrix, sums.flatten(1), out=out.flatten(1))
    return out


def _between(cell: Cell) -> kernels.Between:
    """A cell as the kernels take it."""
    rows, columns = cell.rows, cell.columns
    return kernels.Between(
        low=cell.low.logits.numpy(),
        high=cell.high.logits.numpy(),
        weight=cell.weight,
        rows=rows.low,
        columns=columns.low,
        weight_rows=rows.weight,
        weight_columns=columns.weight,
        halved=cell.halved,
    )


def _corners(taps: Taps, at: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The index below and above, each with its weight."""
    weight = _on(taps.weight, at.device)[at]
    return [(_on(taps.low, at.device)[at], 1.0 - weight), (_on(taps.high, at.device)[at], weight)]


def _on(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device)


def _next(label: torch.Tensor, axis: int) -> torch.Tensor:
    """Each voxel's neighbour above along an axis; the last voxel is its own."""
    n = label.shape[axis]
    return label.index_select(axis, torch.arange(1, n + 1, device=label.device).clamp_(max=n - 1))
