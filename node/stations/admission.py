"""Whether a case may go on: its room in memory, which is promised before it is taken, and the time that it may need.

A process that takes too much memory is killed, and all its jobs with it. What is free now is not all free: others were
promised some of it that they have not taken yet.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from engines.inference.estimate import Estimate
from node.errors import DeviceBusy, DoesNotFit, TooLong
from node.stations.memory import Memory, memory_now, resident_bytes

HEADROOM = 1.2
"""Of an estimate, so much is asked for: it knows nothing of allocators, nor of what libraries keep for themselves."""
LEAST_BUDGET_S = 3600.0
"""A call that nothing is known of hangs after so long."""
LONGEST_S = 86_400.0
"""A case that is told to take longer is not begun: on a node its result would come too late for anybody, and whatever
comes behind it would wait as long. It is mostly a large ensemble on a processor."""
_TIMES = 3.0
"""A case hangs where it takes so many times what was told: a machine may be busy with other things."""


class Promises:
    """What the cases of this process were promised, and may not have taken yet. For all its threads."""

    def __init__(self, resident: Callable[[], int] = resident_bytes) -> None:
        self._resident = resident
        self._lock = threading.Lock()
        self._loading = 0
        self._computing = 0
        self._base = 0

    @property
    def outstanding(self) -> int:
        """Bytes that are free now, and not for others: of what computes only what this process has not grown by since.

        What loads counts whole until it is there.
        """
        grown = max(0, self._resident() - self._base) if self._computing else 0
        return self._loading + max(0, self._computing - grown)

    def loads(self, wanted: int, free: int) -> int:
        """Promise memory for images where it is there; returns what was lacking, 0 where it was promised."""
        with self._lock:
            lacking = max(0, wanted - free + self.outstanding)
            self._loading += 0 if lacking else wanted
            return lacking

    def loaded(self, wanted: int) -> None:
        """The images are there, or will not come: from now on what is free says it."""
        with self._lock:
            self._loading -= wanted
            self._base += wanted  # that much of what the process has grown by is no result of computing

    def computes(self, wanted: int, free: int) -> int:
        """The same for what has the device: one case at a time."""
        with self._lock:
            lacking = max(0, wanted - free + self.outstanding)
            if not lacking:
                self._computing, self._base = wanted, self._resident()
            return lacking

    def computed(self) -> None:
        """It is done, or broke off."""
        with self._lock:
            self._computing = 0


def _any_time(_seconds: float) -> None:
    pass


@dataclass(frozen=True)
class Admission:
    """What one case must ask before it goes on.

    Attributes
    ----------
    alone
        Whether nobody else of this process is at work: only then nothing can be hoped for from others.
    allow
        Told how many seconds from now on the case may take before it counts as one that hangs.
    """

    promises: Promises = field(default_factory=Promises)
    memory: Callable[[], Memory] = memory_now
    alone: Callable[[], bool] = lambda: True
    allow: Callable[[float], None] = _any_time

    @contextlib.contextmanager
    def loading(self, size: int) -> Iterator[None]:
        """Room for images of so many bytes, asked for before the first is read.

        Raises
        ------
        DeviceBusy
            Where there is not enough memory now.
        DoesNotFit
            Where there is not although nobody else is at work, and there never will be.
        """
        wanted = int(size * HEADROOM)
        self._ask(f"the images of this case take {_gb(size)} of memory", wanted, self.promises.loads)
        try:
            yield
        finally:
            self.promises.loaded(wanted)

    @contextlib.contextmanager
    def computing(self, told: Estimate) -> Iterator[None]:
        """Room and time for a case that has the device.

        Raises
        ------
        DeviceBusy, DoesNotFit
            As `loading`.
        TooLong
            Where it would take longer than a day.
        """
        if told.seconds is not None:
            if told.seconds > LONGEST_S:
                raise TooLong(
                    f"this case would take about {told.seconds / 3600:.0f} hours here, {told.patches} patches through "
                    f"the networks; more than {LONGEST_S / 3600:.0f} are not begun: a faster engine, or a model with "
                    "fewer folds or without mirroring, takes less"
                )
            self.allow(budget_s(told.seconds))
        words = f"this case takes about {_gb(told.memory_bytes)} of memory beyond its images"
        self._ask(words, int(told.memory_bytes * HEADROOM), self.promises.computes)
        try:
            yield
        finally:
            self.promises.computed()

    def _ask(self, words: str, wanted: int, promise: Callable[[int, int], int]) -> None:
        memory = self.memory()
        lacking = promise(wanted, memory.available)
        if not lacking:
            return
        words = f"{words}, {_gb(wanted)} with some in reserve"
        if not self.alone():
            free = _gb(max(0, wanted - lacking))
            raise DeviceBusy(f"{words}; beside other cases {free} are free now: it is tried again alone")
        if wanted > memory.limit:
            raise DoesNotFit(f"{words}; this machine, or its control group, allows {_gb(memory.limit)} in all")
        raise DeviceBusy(f"{words}; {_gb(memory.available)} are free now, and no other case is at work here")


def budget_s(told_s: float) -> float:
    """How long what was told to take so many seconds may take, before it counts as hanging."""
    return max(LEAST_BUDGET_S, _TIMES * told_s)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
