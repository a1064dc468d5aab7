"""Group commit by leader and followers: whoever holds the lock commits all who wait, and nobody waits for a window."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from node.errors import HilumError, OutOfResources

T = TypeVar("T")
R = TypeVar("R")


class Ticket(Generic[T, R]):
    """One row that waits for its commit."""

    __slots__ = ("error", "outcome", "row")

    def __init__(self, row: T) -> None:
        self.row = row
        self.outcome: R | None = None
        self.error: HilumError | None = None


class GroupCommit(Generic[T, R]):
    """Commits rows of many threads in few transactions.

    `write` commits a whole batch in one transaction and returns one outcome for each row, or raises a HilumError: then
    none of the batch is committed, and each who waits for it hears that error. A lone thread commits at once; while a
    transaction runs, the rows of all other threads gather and become the next one.
    """

    def __init__(self, write: Callable[[Sequence[T]], Sequence[R]]) -> None:
        self._write = write
        self._gather = threading.Lock()
        self._lead = threading.Lock()
        self._waiting: list[Ticket[T, R]] = []

    def submit(self, row: T) -> Ticket[T, R]:
        """Hand over a row; it is committed by whoever leads next, at the latest by `wait`."""
        ticket: Ticket[T, R] = Ticket(row)
        with self._gather:
            self._waiting.append(ticket)
        return ticket

    def wait(self, ticket: Ticket[T, R]) -> R:
        """The outcome of this very row, once it is committed.

        Raises
        ------
        HilumError
            What `write` raised for the batch that held the row.
        OutOfResources
            Where another thread took the row and died over it. Never success: only an outcome of one's own is one.
        """
        with self._lead:
            if ticket.outcome is None and ticket.error is None:
                self._commit_all_who_wait()
        if ticket.error is not None:
            raise ticket.error
        if ticket.outcome is None:
            raise OutOfResources("not stored, try again")
        return ticket.outcome

    def _commit_all_who_wait(self) -> None:
        with self._gather:
            batch, self._waiting = self._waiting, []
        if not batch:
            return
        try:
            outcomes = self._write([ticket.row for ticket in batch])
        except HilumError as error:
            for ticket in batch:
                ticket.error = error
            return
        for ticket, outcome in zip(batch, outcomes, strict=True):
            ticket.outcome = outcome
