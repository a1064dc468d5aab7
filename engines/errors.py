"""What can go wrong with a model, a device or a volume.

EngineError
    BundleError         the folder is not a model that can be trusted: a file is missing, changed or not understood
    BackendUnavailable  this machine cannot run the backend; the message says what is missing
    OutOfDeviceMemory   the device cannot hold the case; another device, or a smaller batch, may
    UnsuitableVolume    the voxels cannot be segmented: not finite, empty, or not what the model was made for
"""


class EngineError(Exception):
    """Base of everything that the engines raise on purpose."""


class BundleError(EngineError):
    """A model on disk cannot be loaded; the message names the file and the mend."""


class BackendUnavailable(EngineError):
    """A backend cannot run on this machine; the message says what is missing."""


class OutOfDeviceMemory(EngineError):
    """The device has too little memory for this case."""


class UnsuitableVolume(EngineError):
    """The voxels cannot be segmented by this model; the message says why."""
