"""Whether there is such an NVIDIA card: asked once, in one way, by every backend that runs on cards."""

from __future__ import annotations

import ctypes

import torch

DRIVER = "libcuda.so.1"
"""The driver's own library."""


def card_fault(device: str) -> str | None:
    """Why a CUDA device, named as torch does, cannot be used; None where it can.

    The driver is looked for first, as no other library may be imported where there is none; then torch is asked, which
    owns the memory on the card.
    """
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return f"there is no NVIDIA driver ({DRIVER})"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA; install torch's CUDA build"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA card that its driver serves"
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        return f"there are {torch.cuda.device_count()} cards, none has number {index}"
    return None
