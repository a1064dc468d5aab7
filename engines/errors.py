"""What can go wrong with a model, a device or a volume.

EngineError
    BundleError         the folder is not a model that can be trusted: a file is missing, changed or not understood
        RecordsError        the same of a file of certificates, or it cannot be written
    BackendUnavailable  this machine cannot run the backend; the message says what is missing
    OutOfDeviceMemory   the device cannot hold the case; another device, or a smaller batch, may
    UnsuitableVolume    the voxels cannot be segmented: not finite, empty, or not what the model was made for
"""


class EngineError(Exception):
    """Base of everything that the engines raise on purpose."""


class BundleError(EngineError):
    """A model on disk cannot be loaded; the message names the file and the mend."""


class RecordsError(BundleError):
    """A file of certificates, or what lies beside it, cannot be read or written; the message names file and mend."""


class BackendUnavailable(EngineError):
    """A backend cannot run on this machine; the message says what is missing."""


class OutOfDeviceMemory(EngineError):
    """The device has too little memory for this case."""


class UnsuitableVolume(EngineError):
    """The voxels cannot be segmented by this model; the message says why."""


LIBRARY_FAULTS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    ReferenceError,
    RuntimeError,  # CUDA, allocators and OpenVINO have their own below it
    StopIteration,
    SyntaxError,
    SystemError,
    TypeError,
    ValueError,
)
"""What a library may raise. Caught only where another engine can do the work, or none need: where one is on trial."""

ENGINE_FAULTS: tuple[type[Exception], ...] = (EngineError, *LIBRARY_FAULTS)
"""All that may come of an engine on trial, which must touch no result."""
