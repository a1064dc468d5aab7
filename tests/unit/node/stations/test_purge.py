"""Purging: the files of rows that were given up go, and results that no row knows; nothing else."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from node.domain.instance import InstanceState, ReceivedInstance, Sender
from node.stations.purge import KeepPolicy, Purger
from node.store.journal import Journal
from node.store.spool import Spool


@pytest.fixture
def fast() -> Iterator[Path]:
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="hilum-", dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


def received(path: Path, number: int, state: InstanceState, at: datetime) -> ReceivedInstance:
    return ReceivedInstance(
        sop_instance_uid=f"1.2.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.11",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        study_instance_uid="1.2",
        series_instance_uid=f"9.{number}",
        patient_id="P",
        path=path,
        length=3,
        crc32=number,
        sender=Sender("ct1", "CT1", "HILUM", "10.0.0.1", "a1"),
        received_at=at,
        state=state,
        reason="class_not_processed",
    )


def test_each_class_by_its_age_and_orphans(fast: Path) -> None:
    spool = Spool(fast / "spool", 0)
    now = datetime.now(UTC)
    files = [fast / "spool" / "incoming" / f"{n}.dcm" for n in range(4)]
    fresh, old = (fast / "spool" / "results" / name for name in ("fresh.dcm", "old.dcm"))
    for path in (*files, fresh, old):
        path.write_bytes(b"abc")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    days = timedelta(days=1)
    with Journal.open(f"sqlite:///{fast / 'journal.db'}") as journal:
        journal.commit(received(files[0], 0, InstanceState.HELD, now - 2 * days))
        journal.commit(received(files[1], 1, InstanceState.HELD, now))
        journal.commit(received(files[2], 2, InstanceState.QUARANTINED, now - 2 * days))
        journal.commit(received(files[3], 3, InstanceState.KEPT, now - 40 * days))
        purger = Purger(journal, spool, KeepPolicy())
        assert purger.run() == 2
        assert purger.run() == 0
        assert [path.exists() for path in files] == [False, True, True, True]
        assert (fresh.exists(), old.exists()) == (True, False)
        assert len(journal.spooled_paths()) == 3
    spool.close()
