"""The short way into the journal: the same rows as the long way, two statements for a batch, and nothing by halves."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, select

from node.domain.instance import CommitOutcome, InstanceState, ReceivedInstance, Sender
from node.store import schema as t
from node.store.arrivals import Arrivals, NotPlain
from node.store.journal import Journal

CT, ENHANCED_CT, SEG = (f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("2", "2.1", "66.4"))
START = datetime(2026, 11, 24, tzinfo=UTC)
NEW, SAME, OTHER = CommitOutcome.NEW, CommitOutcome.DUPLICATE_SAME, CommitOutcome.DUPLICATE_DIFFERENT


def image(number: int, **changes: object) -> ReceivedInstance:
    instance = ReceivedInstance(
        sop_instance_uid=f"1.2.3.{number}",
        sop_class_uid=CT,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        study_instance_uid="1.2",
        series_instance_uid="1.2.3",
        patient_id="P1",
        path=Path(f"/spool/incoming/{number:024}.dcm"),
        length=1000,
        crc32=2**32 - number,
        sender=Sender("ct", "CT1", "HILUM", "127.0.0.1", "a1"),
        received_at=START + timedelta(seconds=number),
        move_originator="MOVER",
    )
    return replace(instance, **changes)  # type: ignore[arg-type]


@pytest.fixture
def fast() -> Iterator[Path]:
    """A folder in memory: what a commit does is asked here, not how long a flush takes."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="hilum-", dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def journal(fast: Path) -> Iterator[Journal]:
    with Journal.open(f"sqlite:///{fast}/journal.db", lambda: START) as opened:
        yield opened


def tables(journal: Journal) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """All that the journal holds of instances and series."""
    with journal._engine.connect() as connection:
        instances, series = (connection.execute(select(table)).all() for table in (t.instance, t.series))
    return [tuple(row) for row in instances], [tuple(row) for row in series]


def long_way(self: Arrivals, connection: object, batch: object) -> None:
    raise NotPlain("not today")


BATCHES = {
    "new series": ([image(1), image(2)], [NEW, NEW]),
    "plain": ([image(1), image(3), image(2)], [NEW, NEW, NEW]),
    "known": ([image(1), image(0, path=Path("/again")), image(2)], [NEW, SAME, NEW]),
    "known with other bytes": ([image(1), image(0, path=Path("/again"), crc32=9)], [NEW, OTHER]),
    "twice in the batch": ([image(1), image(1, path=Path("/again"))], [NEW, SAME]),
    "another patient": ([image(1), image(2, patient_id="P2")], [NEW, NEW]),
    "another study": ([image(1, study_instance_uid="1.9")], [NEW]),
    "in two series": ([image(0, series_instance_uid="1.2.4", crc32=9, path=Path("/b"))], [OTHER]),
    "two series": ([image(1), image(2, series_instance_uid="1.2.4")], [NEW, NEW]),
    "multi-frame": ([image(1, sop_class_uid=ENHANCED_CT)], [NEW]),
    "held": (
        [image(1), image(2, sop_class_uid=SEG, state=InstanceState.HELD, reason="class_not_processed")],
        [NEW, NEW],
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_both_ways_lead_to_the_same_journal(
    journal: Journal, fast: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """NET-12, ASM-8, NET-7: what one of a batch is does not depend on the way that its neighbours could have taken."""
    batch, outcomes = BATCHES[name]
    first = [] if name == "new series" else [image(0)]
    for instance in first:
        journal.commit(instance)
    assert journal._commit_batch(batch) == outcomes
    monkeypatch.setattr(Arrivals, "keep", long_way)
    with Journal.open(f"sqlite:///{fast}/other.db", lambda: START) as other:
        for instance in first:
            other.commit(instance)
        assert other._commit_batch(batch) == outcomes
        assert tables(journal) == tables(other)


def test_a_settled_series_is_not_plain(journal: Journal) -> None:
    """A late image opens a new revision."""
    journal.commit(image(0))
    with journal._engine.begin() as connection:
        connection.execute(t.series.update().values(state="settled", evidence="silence"))
    assert journal.commit(image(1)) is NEW
    assert [series.revision for series in journal.list_series()] == [2]


def test_a_batch_takes_two_statements(journal: Journal) -> None:
    """One for the series and one for the images, besides the beginning of the transaction: the lone sender waits."""
    journal.commit(image(0))
    statements: list[str] = []
    event.listen(journal._engine, "before_cursor_execute", lambda *given: statements.append(given[2].split()[0]))
    journal.commit(image(1))
    assert statements == ["BEGIN", "UPDATE", "INSERT"]
    journal._commit_batch([image(2), image(3), image(4)])
    assert statements[3:] == ["BEGIN", "UPDATE", "INSERT"]
