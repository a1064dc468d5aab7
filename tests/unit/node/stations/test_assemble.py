"""Assembling: what becomes of a series, in one transaction; what cannot be read does not stop the rest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import dcmread

from node.domain.instance import ReceivedInstance, Sender
from node.domain.job import JobState
from node.domain.routing import ModelFacts, ModelLimits, Rule
from node.domain.series import Completeness, Evidence, SeriesState
from node.domain.work import Station
from node.selftest.phantom import CT, MR
from node.selftest.scanner import Acquisition, enhanced, planes_around, write_series
from node.stations.assemble import Assembler
from node.store.journal import Journal

SENDER = Sender("ct1", "CT1", "HILUM", "10.0.0.1", "a1")
MODELS: Mapping[str, ModelFacts] = {"any": ModelFacts("any", "m" * 64, ("CT", "MR"), ModelLimits(min_slices=5))}
RULE = Rule("all", "any", (), ("pacs",))


@pytest.fixture
def fast() -> Iterator[Path]:
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="hilum-", dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def journal(fast: Path) -> Iterator[Journal]:
    with Journal.open(f"sqlite:///{fast / 'journal.db'}") as opened:
        yield opened


def acquisition(contrast: object = CT, **changes: object) -> Acquisition:
    planes = planes_around(pixel_mm=(8.0, 8.0), step_mm=12.0)
    return replace(Acquisition(planes, contrast), **changes)  # type: ignore[arg-type]


def receive(journal: Journal, paths: list[Path], **changes: object) -> str:
    """Commit these files as if they had been received; returns their series."""
    for path in paths:
        ds = dcmread(path, stop_before_pixels=True, force=True)
        instance = ReceivedInstance(
            sop_instance_uid=str(ds.SOPInstanceUID),
            sop_class_uid=str(ds.SOPClassUID),
            transfer_syntax_uid=str(ds.file_meta.TransferSyntaxUID),
            study_instance_uid=str(ds.StudyInstanceUID),
            series_instance_uid=str(ds.SeriesInstanceUID),
            patient_id=str(ds.PatientID),
            path=path,
            length=path.stat().st_size,
            crc32=hash(str(path)) & 0xFFFFFFFF,
            sender=SENDER,
            received_at=datetime.now(UTC),
        )
        journal.commit(replace(instance, **changes))  # type: ignore[arg-type]
    return str(ds.SeriesInstanceUID)


def assemble(journal: Journal, rules: tuple[Rule, ...] = (RULE,), evidence: Evidence | None = Evidence.SILENCE) -> str:
    """Judge the open series whole, where told so, and assemble it."""
    if evidence is not None:
        (series,) = journal.open_series()
        assert journal.judge(series, evidence)
    (row,) = journal.work(Station.ASSEMBLE)
    return Assembler(journal, rules, MODELS, "c" * 64).run(row.id, row.attempt)


def test_a_whole_series_becomes_a_job(journal: Journal, fast: Path) -> None:
    paths = list(write_series(acquisition(), fast / "ct"))
    uid = receive(journal, paths)
    assert assemble(journal) == "processed"
    record = journal.show_series(uid)
    assert record is not None
    assert (record.summary.state, record.summary.outcome) == (SeriesState.SETTLED, "processed")
    assert (record.summary.evidence, record.summary.completeness) == (Evidence.SILENCE, Completeness.COMPLETE)
    (part,), (job,) = record.parts, record.jobs
    assert (part.frames, part.rule, part.model, part.job_id) == (len(paths), "all", "any", job.id)
    assert len(part.sop_instance_uids) == len(paths)
    assert (job.state, job.destinations, job.volume_id) == (JobState.QUEUED, ("pacs",), part.volume_id)


def test_no_rule_sends_nothing_and_is_seen(journal: Journal, fast: Path) -> None:
    """ASM-56: one terminal reason, no job."""
    uid = receive(journal, list(write_series(acquisition(), fast / "ct")))
    rule = replace(RULE, senders=("another",))
    assert assemble(journal, (rule,)) == "ineligible"
    record = journal.show_series(uid)
    assert record is not None
    assert (record.summary.outcome, record.summary.reason, record.jobs) == ("ineligible", "no_rule", ())
    assert "another" in record.parts[0].detail


def test_two_rules_for_one_model_make_one_job(journal: Journal, fast: Path) -> None:
    """RES-22."""
    receive(journal, list(write_series(acquisition(), fast / "ct")))
    urgent = replace(RULE, name="urgent", destinations=("ward", "pacs"), priority=500)
    assemble(journal, (RULE, urgent))
    (job,) = journal.list_jobs()
    assert (job.destinations, job.priority) == (("pacs", "ward"), 500)


def test_mixed_echoes_are_two_jobs(journal: Journal, fast: Path) -> None:
    """ASM-15: one series, two stacks."""
    receive(journal, list(write_series(acquisition(MR, echo_times_ms=(10.0, 80.0)), fast / "mr")))
    assemble(journal)
    jobs = journal.list_jobs()
    assert len({job.volume_id for job in jobs}) == 2
    record = journal.show_series(jobs[0].series_id)
    assert record is not None
    assert all(part.keys for part in record.parts)


def test_an_unreadable_header_is_quarantined_and_the_rest_goes_on(journal: Journal, fast: Path) -> None:
    paths = list(write_series(acquisition(), fast / "ct"))
    uid = receive(journal, paths)
    paths[-1].write_bytes(paths[-1].read_bytes()[:200])
    assert assemble(journal) == "processed"
    record = journal.show_series(uid)
    assert record is not None
    assert record.parts[0].frames == len(paths) - 1
    assert [(i.state, i.reason) for i in record.instances][-1] == ("quarantined", "unreadable_header")
    assert [e.event for e in record.events if e.entity == "instance"] == ["quarantine"]


def test_nothing_readable_is_quarantined(journal: Journal, fast: Path) -> None:
    paths = list(write_series(acquisition(), fast / "ct"))[:2]
    receive(journal, paths)
    for path in paths:
        path.write_bytes(b"garbage")
    assert assemble(journal) == "quarantined"


def test_two_patients_in_one_series(journal: Journal, fast: Path) -> None:
    """ASM-8: whose is whose cannot be told; nothing of it is processed."""
    paths = list(write_series(acquisition(), fast / "ct"))
    uid = receive(journal, paths[:-1])
    receive(journal, paths[-1:], patient_id="ANOTHER")
    assert assemble(journal) == "quarantined"
    record = journal.show_series(uid)
    assert record is not None
    assert record.jobs == ()
    assert {i.state for i in record.instances} == {"quarantined"}


@pytest.mark.parametrize("keyword", ["PatientName", "PatientBirthDate"])
def test_two_names_in_one_series(journal: Journal, fast: Path, keyword: str) -> None:
    """ASM-8: name and birth date are seen when the headers are read."""
    paths = list(write_series(acquisition(), fast / "ct"))
    ds = dcmread(paths[3])
    setattr(ds, keyword, {"PatientName": "Other^Name", "PatientBirthDate": "19010101"}[keyword])
    ds.save_as(paths[3])
    uid = receive(journal, paths)
    assert assemble(journal) == "quarantined"
    record = journal.show_series(uid)
    assert record is not None
    assert (record.summary.reason, record.jobs) == ("identity_mismatch", ())


def test_a_gap_waits_then_is_refused_with_its_slices(journal: Journal, fast: Path) -> None:
    """ASM-3, ASM-4: silence ends no gapped wait, the longest wait does; the reason is told."""
    paths = list(write_series(acquisition(), fast / "ct"))
    uid = receive(journal, [*paths[:7], *paths[8:]])
    assert assemble(journal) == "gapped"
    (series,) = journal.open_series()
    assert series.activity.gapped
    assert assemble(journal, evidence=Evidence.FORCED) == "ineligible"
    record = journal.show_series(uid)
    assert record is not None
    assert (record.summary.completeness, record.summary.reason) == (Completeness.GAPPED, "missing_slices")


def test_the_missing_slice_ends_the_gapped_wait(journal: Journal, fast: Path) -> None:
    paths = list(write_series(acquisition(), fast / "ct"))
    receive(journal, [*paths[:7], *paths[8:]])
    assert assemble(journal) == "gapped"
    receive(journal, [paths[7]])
    assert not journal.open_series()[0].activity.gapped
    assert assemble(journal) == "processed"


@pytest.mark.parametrize(("gapped", "frames"), [("largest", 12), ("process", 19)])
def test_a_rule_may_take_a_gapped_scan(journal: Journal, fast: Path, gapped: str, frames: int) -> None:
    """ASM-4."""
    paths = list(write_series(acquisition(), fast / "ct"))
    receive(journal, [*paths[:7], *paths[8:]])
    assemble(journal)
    assert assemble(journal, (replace(RULE, gapped=gapped),), Evidence.FORCED) == "processed"  # type: ignore[arg-type]
    (job,) = journal.list_jobs()
    record = journal.show_series(job.series_id)
    assert record is not None
    assert record.parts[0].frames == frames


def test_one_enhanced_object_is_a_whole(journal: Journal, fast: Path) -> None:
    """ASM-9: it does not wait for silence."""
    path = fast / "enhanced.dcm"
    enhanced(acquisition()).save_as(path, enforce_file_format=True)
    uid = receive(journal, [path])
    assert assemble(journal, evidence=None) == "processed"
    record = journal.show_series(uid)
    assert record is not None
    assert record.summary.evidence == Evidence.MULTIFRAME


def test_a_slice_that_comes_while_headers_are_read(
    journal: Journal, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gate 1: nothing is settled, the series is due again, and the next revision's job holds the slice."""
    import node.stations.assemble as station

    paths = list(write_series(acquisition(), fast / "ct"))
    receive(journal, paths[:-1])
    read = station.read_header

    def and_receive(path: Path) -> object:
        if path == paths[2]:
            receive(journal, paths[-1:])
        return read(path)

    monkeypatch.setattr(station, "read_header", and_receive)
    assert assemble(journal) == "outrun"
    monkeypatch.setattr(station, "read_header", read)
    assert journal.list_jobs() == ()
    assert assemble(journal) == "processed"
    assert len(journal.show_series(1).parts[0].sop_instance_uids) == len(paths)  # type: ignore[union-attr]


def test_a_late_slice_after_the_purge(journal: Journal, fast: Path) -> None:
    """Half a series must not become a result: it has failed, until it is sent again whole."""
    from datetime import timedelta

    from node.domain.work import PurgeLimits

    paths = list(write_series(acquisition(), fast / "ct"))
    receive(journal, paths[:-1])
    assert assemble(journal, (replace(RULE, senders=("another",)),)) == "ineligible"
    later = datetime.now(UTC) + timedelta(days=1)
    assert len(journal.give_up_files(PurgeLimits(later, later, later, later))) == len(paths) - 1
    receive(journal, paths[-1:])
    assert assemble(journal) == "failed"
    assert journal.list_jobs() == ()
    receive(journal, paths[:-1])
    assert assemble(journal) == "processed"


def test_another_attempt_has_it(journal: Journal, fast: Path) -> None:
    receive(journal, list(write_series(acquisition(), fast / "ct")))
    (series,) = journal.open_series()
    journal.judge(series, Evidence.SILENCE)
    run: Callable[[int, int], str] = Assembler(journal, (RULE,), MODELS, "c").run
    assert run(series.id, 7) == "not_mine"
