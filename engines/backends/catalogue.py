"""Every backend by its name; each is imported when it is asked for, not before."""

from __future__ import annotations

from typing import get_args

from engines.backends.base import Backend, BackendName
from engines.errors import BackendUnavailable


def backend_class(name: str) -> type[Backend]:
    """The backend of that name.

    Raises
    ------
    BackendUnavailable
        Where there is none.
    """
    match name:
        case "torch":
            from engines.backends.torch import TorchBackend

            return TorchBackend
        case "openvino":
            from engines.backends.openvino import OpenVinoBackend

            return OpenVinoBackend
        case "tensorrt":
            from engines.backends.tensorrt import TensorRtBackend

            return TensorRtBackend
        case _:
            raise BackendUnavailable(f"{name}: there is no such backend; known: {', '.join(get_args(BackendName))}")
