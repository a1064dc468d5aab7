"""Numbers on the command line: what is no number that can be meant is refused before any work begins."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number above 0, as a type of argparse.

    Raises
    ------
    ArgumentTypeError
        Where it is none.
    """
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
