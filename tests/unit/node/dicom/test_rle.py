"""RLE Lossless against pydicom's own decoder."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import RLELossless

from node.dicom.rle import encode_frame


def decoded(plane: np.ndarray) -> np.ndarray:
    """The frame as pydicom's Python decoder reads it."""
    array, _ = get_decoder(RLELossless).as_array(
        encapsulate([encode_frame(plane)]),
        decoding_plugin="pydicom",
        rows=plane.shape[0],
        columns=plane.shape[1],
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=8,
        bits_stored=8,
        photometric_interpretation="MONOCHROME2",
        pixel_representation=0,
        pixel_keyword="PixelData",
    )
    return array


@settings(deadline=None, max_examples=200)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=300), elements=st.integers(0, 3)))
def test_any_frame_comes_back(plane: np.ndarray) -> None:
    """R8: whatever the runs are."""
    assert np.array_equal(decoded(plane), plane)


@pytest.mark.parametrize("columns", [1, 2, 127, 128, 129, 256, 257, 511])
def test_runs_of_every_length_come_back(columns: int) -> None:
    """Runs of 128 and more, equal values and values that never repeat."""
    plain = np.full((3, columns), 7, np.uint8)
    busy = np.tile(np.arange(columns) % 251, (3, 1)).astype(np.uint8)
    for plane in (plain, busy, np.hstack([plain, busy, plain])):
        assert np.array_equal(decoded(plane), plane)


def test_runs_end_with_the_row() -> None:
    """PS3.5 G.3.1: each row is encoded by itself, so a frame of one value has a run for each row."""
    segment = encode_frame(np.zeros((4, 100), np.uint8))[64:]
    assert segment == bytes([257 - 100, 0]) * 4
