"""JPEG Extended with 12 bits, by GDCM: a decoding plugin for pydicom, whose own one leaves this case out."""

from __future__ import annotations

from importlib.util import find_spec
from typing import cast

from pydicom.pixels.decoders.base import DecodeRunner, JPEGExtended12BitDecoder
from pydicom.uid import JPEGExtended12Bit

LABEL = "gdcm12"

DECODER_DEPENDENCIES = {JPEGExtended12Bit: ("python-gdcm",)}
"""Read by pydicom, like the two functions below."""


def is_available(uid: str) -> bool:
    """Whether this plugin decodes the transfer syntax."""
    return uid == JPEGExtended12Bit and find_spec("gdcm") is not None


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """The pixels of one monochrome frame (ITU-T T.81 process 4), as GDCM gives them.

    Raises
    ------
    ValueError
        Where the frame is not monochrome, or GDCM gives another number of bytes than the header says.
    """
    # Here, not above: without the package only this transfer syntax is lost.
    import gdcm

    if runner.samples_per_pixel != 1:
        raise ValueError("only monochrome frames")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(src)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(JPEGExtended12Bit))))
    bits, sign = runner.bits_stored, runner.pixel_representation
    # With 16 bits allocated GDCM asks its other decoders first, and libjpeg complains of each frame on standard error.
    allocated = bits if (bits, sign) == (12, 0) else runner.bits_allocated
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, bits, bits - 1, sign))
    # GDCM hands char* over as str.
    pixels = cast(bytes, image.GetBuffer().encode("utf-8", "surrogateescape"))
    if len(pixels) != runner.frame_length(unit="bytes"):
        raise ValueError("the decoded frame has another length than the header says")
    return pixels


def register() -> None:
    """Make pydicom know the plugin; once is enough, more does no harm."""
    if LABEL not in JPEGExtended12BitDecoder.available_plugins:
        JPEGExtended12BitDecoder.add_plugin(LABEL, (__name__, decode_frame.__name__))
