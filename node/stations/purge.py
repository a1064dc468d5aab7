"""Purging: bytes that nobody needs any more leave the spool. `node.store.due` decides which; the rows stay."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from node.domain.work import PurgeLimits
from node.store.journal import Journal
from node.store.records import utc_now
from node.store.spool import RESULTS, Spool

_log = logging.getLogger(__name__)

_ORPHAN_S = 3600.0
"""A result without a row is garbage only when no segmenter can still be about to commit it."""


@dataclass(frozen=True)
class KeepPolicy:
    """How long bytes are kept after they have ended; hours (NET-24, SEC-15)."""

    inputs_h: float = 24.0
    results_h: float = 72.0
    unused_h: float = 24.0
    quarantined_h: float = 720.0


@dataclass(frozen=True)
class Purger:
    """The purging station. Run twice it does the same as once."""

    journal: Journal
    spool: Spool
    keep: KeepPolicy
    committing: frozenset[str] = frozenset()
    """Destinations that commit what they store: there, sent is not yet delivered."""
    clock: Callable[[], datetime] = utc_now

    def run(self) -> int:
        """Remove what may go; returns how many files went.

        In small portions, so that neither journal nor file system is busy for long; the next round takes the rest.
        """
        now = self.clock()
        limits = PurgeLimits(
            inputs=now - timedelta(hours=self.keep.inputs_h),
            results=now - timedelta(hours=self.keep.results_h),
            unused=now - timedelta(hours=self.keep.unused_h),
            quarantined=now - timedelta(hours=self.keep.quarantined_h),
            committing=self.committing,
        )
        gone = self.journal.give_up_files(limits)
        for path in gone:
            self.spool.delete(path)
        known = {path.rpartition("/")[2] for path in self.journal.spooled_paths()}
        orphans = self.spool.sweep_orphans(known, RESULTS, older_than_s=_ORPHAN_S)
        if gone or orphans:
            _log.info("purged", extra={"count": len(gone) + orphans})
        return len(gone) + orphans
