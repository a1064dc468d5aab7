"""RLE Lossless for label maps: the PackBits of PS3.5 annex G, a whole frame at once."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

_LONGEST = 128
"""Bytes that one run can stand for (PS3.5 G.3.1)."""


def encode_frame(plane: NDArray[np.uint8]) -> bytes:
    """One 8-bit frame as an RLE header and one segment of even length (PS3.5 G.4 and G.5).

    No run crosses the end of a row (G.3.1). A value that repeats is a replicate run, the single values between such
    runs are literal runs.

    Parameters
    ----------
    plane
        uint8, (rows, columns).
    """
    starts, lengths = _runs(plane)
    values = plane.reshape(-1)[starts]
    rows = starts // plane.shape[1]
    literal = lengths == 1
    group = _literal_groups(literal, rows)
    opens = np.concatenate(([True], group[1:] != group[:-1])) if len(group) else np.zeros(0, bool)
    members = np.bincount(group, minlength=int(group[-1]) + 1 if len(group) else 0)[group]
    # A replicate run takes a count and a value; a literal run a count, then each value.
    sizes = np.where(literal & ~opens, 1, 2)
    ends = np.cumsum(sizes)
    encoded = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    encoded[ends - 1] = values
    counts = np.where(literal, members - 1, 257 - lengths)
    encoded[(ends - 2)[opens]] = counts[opens].astype(np.uint8)
    segment = encoded.tobytes()
    return struct.pack("<16L", 1, 64, *(0,) * 14) + segment + b"\0" * (len(segment) % 2)


def _runs(plane: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and length of every run of one value within a row, cut to what one run can stand for."""
    first = np.ones(plane.shape, dtype=bool)
    first[:, 1:] = plane[:, 1:] != plane[:, :-1]
    starts = np.flatnonzero(first)
    lengths = np.diff(np.append(starts, plane.size))
    pieces = -(-lengths // _LONGEST)
    nth = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.repeat(starts, pieces) + nth * _LONGEST
    lengths = np.minimum(np.repeat(lengths, pieces) - nth * _LONGEST, _LONGEST)
    return starts, lengths


def _literal_groups(literal: NDArray[np.bool_], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each run, equal for neighbouring single values of a row, at most 128 of them."""
    joined = literal[1:] & literal[:-1] & (rows[1:] == rows[:-1])
    breaks = np.concatenate(([True], ~joined)) if len(literal) else np.zeros(0, bool)
    chain = np.cumsum(breaks) - 1
    firsts = np.flatnonzero(breaks)
    place = np.arange(len(literal)) - firsts[chain] if len(literal) else chain
    return np.asarray(np.cumsum(breaks | (place % _LONGEST == 0)) - 1)
