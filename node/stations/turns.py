"""Who may work beside whom in the segmenter's process: one on the device, others loading or composing meanwhile.

Three rules. There are at most so many volumes in memory at a time. The device is one job's alone. And where a process
has died over a job, or beside it, or memory was short beside others, that job has the whole process for itself: what
kills it once more cannot take the blame to others, and what is large does not starve. Places and device are given
first come, first served.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
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
        self._on_device = False
        self._for_place: deque[object] = deque()
        self._for_device: deque[object] = deque()

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
            self._wait(self._for_place, lambda: self._may_enter(alone), rest)
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

    def _may_enter(self, alone: bool) -> bool:
        return self._inside == 0 if alone else self._inside < self._places and not self._alone

    @contextlib.contextmanager
    def device(self, rest: Rest) -> Iterator[None]:
        """Wait for the device and hold it."""
        with self._changed:
            self._wait(self._for_device, lambda: not self._on_device, rest)
            self._on_device = True
        try:
            yield
        finally:
            with self._changed:
                self._on_device = False
                self._changed.notify_all()

    def _wait(self, line: deque[object], free: Callable[[], bool], rest: Rest) -> None:
        """Stand in line until one is the first and it is free; whatever happens meanwhile, nobody waits behind a ghost.

        Called with the lock.
        """
        me = object()
        line.append(me)
        try:
            if not (line[0] is me and free()):
                with rest():
                    self._changed.wait_for(lambda: line[0] is me and free())
        finally:
            line.remove(me)
            self._changed.notify_all()
