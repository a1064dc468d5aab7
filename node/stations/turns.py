"""Who may work beside whom in the segmenter's process: one on the device, others loading or composing meanwhile.

Three rules. There are at most so many volumes in memory at a time. The device is one job's alone, first come, first
served. And where a process has died over a job, or beside it, that job has the whole process for itself: what kills it
once more cannot take the blame to others.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

Rest = Callable[[], contextlib.AbstractContextManager[None]]
"""What stands around a wait: a watchdog must not take it for a call that hangs."""

VOLUMES = 3
"""One on the device, one that loads or waits for it, one of which results are composed."""


class Turns:
    """The places of one process, for all its threads.

    Parameters
    ----------
    places
        How many jobs may be worked on at a time; each holds one volume.
    """

    def __init__(self, places: int = VOLUMES) -> None:
        self._places = places
        self._changed = threading.Condition()
        self._inside = 0
        self._shared = 0
        self._alone = False
        self._await_alone = 0
        self._next_ticket = 0
        self._on_device = 0

    @property
    def inside(self) -> int:
        """Jobs that have a place now."""
        return self._inside

    @property
    def shared(self) -> int:
        """How often somebody has come while others were there."""
        return self._shared

    @contextlib.contextmanager
    def place(self, alone: bool, rest: Rest) -> Iterator[None]:
        """Wait for a place and hold it; nobody else has one where it is to be `alone`."""
        with self._changed:
            if not self._may_enter(alone):
                self._await_alone += alone
                with rest():
                    self._changed.wait_for(lambda: self._may_enter(alone, waited=True))
                self._await_alone -= alone
            self._inside += 1
            self._shared += self._inside > 1
            self._alone = alone
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._alone = False
                self._changed.notify_all()

    def _may_enter(self, alone: bool, waited: bool = False) -> bool:
        if alone:
            return self._inside == 0 and (waited or not self._await_alone)
        return self._inside < self._places and not self._alone and not self._await_alone

    @contextlib.contextmanager
    def device(self, rest: Rest) -> Iterator[None]:
        """Wait for the device and hold it."""
        with self._changed:
            ticket = self._next_ticket
            self._next_ticket += 1
            if ticket != self._on_device:
                with rest():
                    self._changed.wait_for(lambda: ticket == self._on_device)
        try:
            yield
        finally:
            with self._changed:
                self._on_device += 1
                self._changed.notify_all()
