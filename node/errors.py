"""An error's class is its fate: what the node does next follows from the type alone.

HilumError
    ConfigError            the service does not start
    Refused                the C-STORE is answered with `status`
        OutOfResources         0xA700
        DataSetMismatch        0xA900
        CannotUnderstand       0xC000
        InvalidInstanceUid     0x0117
    Unsuitable             the job is REJECTED and never tried again
    Transient              tried again with backoff
        PeerUnavailable        SpoolFull        DeviceBusy        JournalUnavailable
    DoesNotFit, TooLong    the job is FAILED: this machine has not the memory, or the speed, for the case
    PermanentlyRefused     the delivery is FAILED: the peer said that it will never take the object

Anything else is a bug: the job is FAILED with its traceback in the journal.
"""

from __future__ import annotations

import errno

MACHINE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""An OSError with one of these speaks of the machine, not of the object that was read or written: it may work later."""


class HilumError(Exception):
    """Base of everything that the node raises on purpose."""


class ConfigError(HilumError):
    """The configuration cannot be used; the message names file, key, value and the mend."""


class Refused(HilumError):
    """A received object is not taken.

    Attributes
    ----------
    status
        The C-STORE status to answer (PS3.4 table B.2-1, PS3.7 annex C).
    comment
        At most 64 characters for (0000,0902) ErrorComment, never a value from the data set.
    element
        The tag for (0000,0901) OffendingElement, group in the upper 16 bits; None where no single one is to blame.
    """

    status = 0xC000

    def __init__(self, comment: str, element: int | None = None) -> None:
        super().__init__(comment)
        self.comment = comment[:64]
        self.element = element


class OutOfResources(Refused):
    """Disk, memory or journal cannot take the object now; the sender may try again (0xA700)."""

    status = 0xA700


class DataSetMismatch(Refused):
    """The data set is not what the command or the presentation context announced (0xA900)."""

    status = 0xA900


class CannotUnderstand(Refused):
    """The data set cannot be parsed, is truncated, or breaks a limit (0xC000)."""

    status = 0xC000


class InvalidInstanceUid(Refused):
    """A UID holds something other than digits and dots, or is longer than 64 characters (0x0117)."""

    status = 0x0117


class Unsuitable(HilumError):
    """The scan cannot serve the model: a decision, not a fault.

    Attributes
    ----------
    reason
        A word of a closed set, for metrics and filters: `missing_slices`, `irregular_spacing`, ...
    detail
        The sentence for a person: which slices, which values.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Transient(HilumError):
    """It may work later."""


class PeerUnavailable(Transient):
    """A peer does not answer, refuses the association for now, or has no room."""


class SpoolFull(Transient):
    """The spool has no room for a result."""


class DeviceBusy(Transient):
    """The device has no room for the case now."""


class DoesNotFit(HilumError):
    """The machine has not the memory for the case, which was alone in its process, and never will have."""


class TooLong(HilumError):
    """The case would take this machine longer than anybody waits for a result."""


class JournalUnavailable(Transient):
    """The data base does not answer, or cannot be written now; what was being done is taken over once it can."""


class PermanentlyRefused(HilumError):
    """A destination will never take this object: a context refused, or a failure status of class A9, C or 01."""
