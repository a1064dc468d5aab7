"""Decoding of frames, one at a time, and the start-up test that says which transfer syntaxes we may offer (NET-6)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from node.dicom import jpeg_extended
from node.dicom.golden_frames import COLUMNS, GOLDEN_FRAMES, ROWS, GoldenFrame, picture
from node.domain.instance import InstanceHeader
from node.errors import Unsuitable

_NATIVE = "native"
_PLUGINS: Mapping[str, str] = MappingProxyType(
    {
        ExplicitVRLittleEndian: _NATIVE,
        ImplicitVRLittleEndian: _NATIVE,
        "1.2.840.10008.1.2.5": "pydicom",
        **dict.fromkeys(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), "pyjpegls"),
        **dict.fromkeys(("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"), "pylibjpeg"),
        **dict.fromkeys((f"1.2.840.10008.1.2.4.{leaf}" for leaf in (201, 202, 203)), "pylibjpeg"),
        **dict.fromkeys(("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"), "gdcm"),
        "1.2.840.10008.1.2.4.50": "pillow",
        "1.2.840.10008.1.2.4.51": jpeg_extended.LABEL,
    }
)
"""One decoder for each transfer syntax, so that what was tested is what is used."""

Array = NDArray[np.generic]


def decoders() -> dict[str, str]:
    """Transfer syntax UID to decoder, for those whose golden frame came out right just now.

    A decoder that is missing or wrong leaves its transfer syntax out; nothing is raised.
    """
    golden = {frame.transfer_syntax_uid: frame for frame in GOLDEN_FRAMES}
    native = GoldenFrame(ExplicitVRLittleEndian, "")
    found = {}
    for syntax, plugin in _PLUGINS.items():
        frame = native if plugin == _NATIVE else golden[syntax]
        if _is_right(frame, syntax):
            found[str(syntax)] = plugin
    return found


def stored_frames(path: Path, header: InstanceHeader, indices: Sequence[int]) -> Iterator[Array]:
    """Decoded frames as stored, neither masked nor rescaled, in the order asked for; one is in memory at a time.

    Parameters
    ----------
    indices
        From 0, in any order.

    Yields
    ------
    Integers, (rows, columns).

    Raises
    ------
    Unsuitable
        `undecodable`: where a frame cannot be decoded or is not as large as the header says.
    """
    numbers = iter(indices)
    with _decoding(header):
        for array in _decode(path, header.transfer_syntax_uid, indices):
            if array.shape != (header.rows, header.columns):
                raise Unsuitable("undecodable", f"{_name(header)} frame {next(numbers) + 1} is {array.shape}")
            next(numbers)
            yield array


def frame_digest(path: Path, header: InstanceHeader, index: int) -> str:
    """SHA-256, hex, of one decoded frame: equal for equal pixels, whatever the encoding (ASM-23)."""
    array = next(stored_frames(path, header, [index]))
    digest = hashlib.sha256(f"{array.shape} {header.pixel_representation} ".encode("ascii"))
    digest.update(np.ascontiguousarray(array.astype("<i4")).data)
    return digest.hexdigest()


def _name(header: InstanceHeader) -> str:
    return f"instance {header.instance_number if header.instance_number is not None else 'without number'}"


@contextmanager
def _decoding(header: InstanceHeader) -> Iterator[None]:
    """Turn what the decoders raise into our own error; they raise almost anything on a broken frame.

    What the machine says (no memory, an OSError with its number) is no word about the frame, and flies on.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        syntax = header.transfer_syntax_uid
        raise Unsuitable("undecodable", f"{_name(header)} ({syntax}): {type(error).__name__}") from error


def _decode(source: Path | Dataset, syntax: str, indices: Sequence[int]) -> Iterator[Array]:
    """Frames by the one decoder of the transfer syntax."""
    plugin = _PLUGINS.get(syntax, "")
    if plugin == jpeg_extended.LABEL:
        jpeg_extended.register()
    # Raw: colour stays as it is; JPEG-LS and JPEG 2000 are corrected in sign and bits all the same (ASM-42).
    # Unused bits stay too: some writers mark padding in them.
    chosen = "" if plugin == _NATIVE else plugin
    for array in iter_pixels(source, indices=indices, raw=True, decoding_plugin=chosen, correct_unused_bits=False):
        yield cast(Array, array)


def _is_right(frame: GoldenFrame, syntax: str) -> bool:
    try:
        (array,) = _decode(_golden_object(frame, syntax), syntax, [0])
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError, ImportError):
        return False
    expected = picture(frame.bits).astype(np.int64)
    return array.shape == expected.shape and int(np.abs(array.astype(np.int64) - expected).max()) <= frame.tolerance


def _golden_object(frame: GoldenFrame, syntax: str) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 if frame.bits == 8 else 16, frame.bits, frame.bits - 1
    ds.PixelRepresentation = 0
    if frame.encoded:
        ds.PixelData = encapsulate([frame.codestream])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    else:
        ds.PixelData = picture().tobytes()
        ds["PixelData"].VR = "OW"
    return ds
