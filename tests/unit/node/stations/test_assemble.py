"""Assembling: what becomes of a series, in one transaction; what cannot be read does not stop the rest."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import dcmread

from node.commands.explain import Explanation, _received, explained
from node.dicom.headers import read_header
from node.dicom.pixels import split_series
from node.domain.history import SeriesRecord
from node.domain.instance import ReceivedInstance, Sender
from node.domain.job import JobState
from node.domain.routing import ModelFacts, ModelLimits, Rule
from node.domain.series import Completeness, Evidence, SeriesState
from node.domain.work import Station
from node.monitor import metrics
from node.selftest.phantom import CT, MR
from node.selftest.scanner import Acquisition, enhanced, planes_around, write_series
from node.stations.assemble import Assembler
from node.stations.segment import stack_of
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


WARD = Sender("ward", "WARD", "HILUM", "10.0.0.2", "b1")


def test_slices_of_two_senders_go_only_where_both_may_send(journal: Journal, fast: Path) -> None:
    """RES-42: the first sender of a series does not decide for slices that came from another."""
    paths = list(write_series(acquisition(), fast / "ct"))
    uid = receive(journal, paths[:-1])
    receive(journal, paths[-1:], sender=WARD)
    rules = (replace(RULE, name="ct", senders=("ct1",)), replace(RULE, name="w", senders=("ward",), destinations=()))
    assert assemble(journal, rules) == "ineligible"
    record = journal.show_series(uid)
    assert record is not None
    assert (record.summary.reason, record.jobs) == ("senders_disagree", ())
    assert "ct1 and ward" in record.parts[0].detail


def test_a_rule_that_holds_for_both_senders_is_taken(journal: Journal, fast: Path) -> None:
    """RES-42: and no other rule, whoever sent first."""
    paths = list(write_series(acquisition(), fast / "ct"))
    receive(journal, paths[:-1])
    receive(journal, paths[-1:], sender=WARD)
    own = replace(RULE, name="ct", senders=("ct1",), destinations=("secret",))
    assert assemble(journal, (own, RULE)) == "processed"
    (job,) = journal.list_jobs()
    assert job.destinations == ("pacs",)


def test_a_late_slice_of_another_sender_is_judged_by_its_sender(journal: Journal, fast: Path) -> None:
    """RES-42: a revision is routed by those whose slices it holds, not by who opened the series."""
    paths = list(write_series(acquisition(), fast / "ct"))
    uid = receive(journal, paths[:-1])
    rule = replace(RULE, senders=("ct1",))
    assert assemble(journal, (rule,)) == "processed"
    receive(journal, paths[-1:], sender=WARD)
    assert assemble(journal, (rule,)) == "ineligible"
    record = journal.show_series(uid)
    assert record is not None
    assert record.summary.reason == "senders_disagree"
    assert [job.state for job in record.jobs] == [JobState.CANCELLED]


def test_a_series_that_another_sender_replaces_is_his(journal: Journal, fast: Path) -> None:
    """RES-42: every slice came again with other bytes; nothing of the first sender is in the revision."""
    paths = list(write_series(acquisition(), fast / "ct"))
    receive(journal, paths)
    receive(journal, [Path(shutil.copy(path, path.with_suffix(".again"))) for path in paths], sender=WARD)
    assert assemble(journal, (replace(RULE, senders=("ward",)),)) == "processed"


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


def cut(path: Path, how: str) -> None:
    """Break the object of a file: its whole header, or its pixels alone."""
    if how == "unreadable_header":
        path.write_bytes(path.read_bytes()[:200])
        return
    ds = dcmread(path)
    ds.PixelData = ds.PixelData[: len(ds.PixelData) // 2]
    ds.save_as(path)


def explained_record(record: SeriesRecord) -> list[Explanation]:
    """What `hilum explain` says of a received series."""
    found = _received(record)
    senders = dict.fromkeys(found.paths, SENDER)
    return [
        said
        for headers in found.series.values()
        for said in explained(split_series(headers, found.paths, found.unread), senders, (RULE,), MODELS)
    ]


BROKEN = pytest.mark.parametrize("how", ["unreadable_header", "pixel_length"])


@BROKEN
def test_a_broken_slice_at_the_end_is_a_gap(journal: Journal, fast: Path, how: str) -> None:
    """ASM-4, ASM-40: it was acknowledged and cannot be used, so the scan is refused, and the slice named."""
    paths = list(write_series(acquisition(), fast / "ct"))
    uid = receive(journal, paths)
    cut(paths[-1], how)
    assert assemble(journal) == "gapped"
    assert assemble(journal, evidence=Evidence.FORCED) == "quarantined"
    record = journal.show_series(uid)
    assert record is not None
    assert (record.summary.completeness, record.summary.reason, record.jobs) == (Completeness.GAPPED, how, ())
    (scan,) = (part for part in record.parts if part.reason == "missing_slices")
    assert scan.frames == len(paths) - 1
    assert all(said.reason for said in explained_record(record))
    broken = record.instances[-1]
    assert (
        f"object {broken.sop_instance_uid}" if how == "unreadable_header" else f"instance {len(paths)}"
    ) in scan.detail
    if how == "unreadable_header":
        assert (broken.state, broken.reason) == ("quarantined", "unreadable_header")
        assert [e.event for e in record.events if e.entity == "instance"] == ["quarantine"]


@BROKEN
@pytest.mark.parametrize("gapped", ["largest", "process"])
def test_a_rule_may_take_a_scan_with_a_broken_slice(journal: Journal, fast: Path, how: str, gapped: str) -> None:
    """ASM-4: its stack is called partial, in the segmenter's process too."""
    paths = list(write_series(acquisition(), fast / "ct"))
    receive(journal, paths)
    cut(paths[-1], how)
    assert assemble(journal, (replace(RULE, gapped=gapped),), Evidence.FORCED) == "processed"  # type: ignore[arg-type]
    (job,) = journal.list_jobs()
    work = journal.begin_job(job.id, 1)
    assert work is not None
    files = {member.sop_instance_uid: member.path for member in work.members}
    stack = stack_of([read_header(path) for path in files.values()], files, job.volume_id, work.unread)
    assert len(stack.frames) == len(paths) - 1
    assert "partial" in stack.flags


@BROKEN
def test_a_broken_slice_is_not_forgotten_at_the_next_revision(journal: Journal, fast: Path, how: str) -> None:
    """ASM-4, ASM-5."""
    paths = list(write_series(acquisition(), fast / "ct"))
    receive(journal, [*paths[:4], *paths[5:]])
    cut(paths[-1], how)
    assert assemble(journal, evidence=Evidence.FORCED) == "quarantined"
    uid = receive(journal, [paths[4]])
    assert assemble(journal) == "gapped"
    assert assemble(journal, evidence=Evidence.FORCED) == "quarantined"
    record = journal.show_series(uid)
    assert record is not None
    assert record.jobs == ()


@BROKEN
def test_the_sound_slice_mends_the_scan(journal: Journal, fast: Path, how: str) -> None:
    """NET-12: it comes again under its UID with other bytes, and takes the place of the broken one."""
    paths = list(write_series(acquisition(), fast / "ct"))
    sound = fast / "sound.dcm"
    sound.write_bytes(paths[-1].read_bytes())
    receive(journal, paths)
    cut(paths[-1], how)
    assert assemble(journal, evidence=Evidence.FORCED) == "quarantined"
    receive(journal, [sound])
    assert assemble(journal) == "processed"
    (job,) = journal.list_jobs()
    work = journal.begin_job(job.id, 1)
    assert work is not None
    assert (len(work.members), work.unread) == (len(paths), ())


def test_what_could_not_be_read_is_taken_back_when_it_can_be(journal: Journal, fast: Path) -> None:
    paths = list(write_series(acquisition(), fast / "ct"))
    whole = paths[-1].read_bytes()
    uid = receive(journal, paths)
    cut(paths[-1], "unreadable_header")
    assert assemble(journal, evidence=Evidence.FORCED) == "quarantined"
    paths[-1].write_bytes(whole)
    journal.retry_series(1)
    assert assemble(journal, evidence=None) == "processed"
    record = journal.show_series(uid)
    assert record is not None
    assert (record.instances[-1].state, record.parts[-1].frames) == ("kept", len(paths))


def test_one_multi_frame_object_beside_a_broken_one_is_no_whole(journal: Journal, fast: Path) -> None:
    """ASM-9."""
    path, broken = fast / "enhanced.dcm", fast / "broken.dcm"
    ds = enhanced(acquisition())
    ds.save_as(path, enforce_file_format=True)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ds.SOPInstanceUID}.9"
    ds.save_as(broken, enforce_file_format=True)
    receive(journal, [path, broken])
    broken.write_bytes(b"garbage")
    assert assemble(journal, evidence=None) == "waits"


@pytest.mark.parametrize("keyword", ["AccessionNumber", "StudyDate", "ReferringPhysicianName"])
def test_one_slice_with_another_study_is_quarantined(journal: Journal, fast: Path, keyword: str) -> None:
    """RES-31: results copy these from all slices; the slice and the attribute are named, their values are not."""
    paths = list(write_series(acquisition(), fast / "ct"))
    ds = dcmread(paths[3])
    setattr(ds, keyword, "20010101")
    ds.save_as(paths[3])
    uid = receive(journal, paths)
    assert assemble(journal) == "quarantined"
    record = journal.show_series(uid)
    assert record is not None
    assert (record.summary.reason, record.jobs) == ("conflicting_headers", ())
    assert record.parts[0].detail == f"slices differ from the others in {keyword}: instance 4"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_what_the_machine_says_is_no_word_about_the_series(
    journal: Journal, fast: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """It is tried again when the lease has lapsed; the third time it has failed, for a person to see."""
    import node.stations.assemble as station

    def broken(_path: Path) -> object:
        raise error

    read = station.read_header
    uid = receive(journal, list(write_series(acquisition(), fast / "ct")))
    monkeypatch.setattr(station, "read_header", broken)
    assert assemble(journal) == "put_off"
    for expected in ("put_off", "failed"):
        (row,) = journal.work(Station.ASSEMBLE)
        assert row.running
        assert journal.take_over(row, "lease_lapsed")
        assert assemble(journal, evidence=None) == expected
    record = journal.show_series(uid)
    assert record is not None
    assert (record.summary.outcome, record.summary.reason) == ("failed", "exhausted")
    monkeypatch.setattr(station, "read_header", read)
    journal.retry_series(1)
    assert assemble(journal, evidence=None) == "processed"


def test_late_instances_are_counted(journal: Journal, fast: Path) -> None:
    """ASM-5: those that came after their series had been settled; a repetition, or a judgement anew, is none."""
    paths = list(write_series(acquisition(), fast / "ct"))
    late = metrics.LATE_INSTANCES.labels(sender=SENDER.alias)
    before = late._value.get()
    receive(journal, paths[:-2])
    assemble(journal)
    assert late._value.get() == before
    receive(journal, [paths[0], *paths[-2:]])
    assemble(journal)
    assert late._value.get() == before + 2
    journal.retry_series(1)
    assemble(journal, evidence=None)
    assert late._value.get() == before + 2


def test_doubt_about_a_part_stays_with_the_part(journal: Journal, fast: Path) -> None:
    """Frames that nothing tells apart are judged anew, all together, when more comes: no instance is put aside."""
    paths = list(write_series(acquisition(), fast / "ct"))
    again = []
    for number, path in enumerate(paths[:6]):
        ds = dcmread(path)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ds.SOPInstanceUID}.9"
        ds.PixelData = bytes(len(ds.PixelData))
        again.append(fast / f"again-{number}.dcm")
        ds.save_as(again[-1])
    uid = receive(journal, [*paths, *again])
    assert assemble(journal) == "quarantined"
    record = journal.show_series(uid)
    assert record is not None
    assert (record.summary.reason, {i.state for i in record.instances}) == ("ambiguous", {"kept"})
    for path in again:  # the sender mends the second echo's header, and sends it again
        ds = dcmread(path)
        ds.ImageType = ["DERIVED", "SECONDARY", "LOCALIZER"]
        ds.save_as(path.with_suffix(".mended"))
    receive(journal, [path.with_suffix(".mended") for path in again])
    assert assemble(journal) == "processed"
    (job,) = journal.list_jobs()
    work = journal.begin_job(job.id, 1)
    assert work is not None
    assert len(work.members) == len(paths) + len(again)


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
    uid = receive(journal, paths[-1:])
    assert assemble(journal) == "failed"
    assert journal.list_jobs() == ()
    record = journal.show_series(uid)
    assert record is not None
    assert f"{len(paths) - 1} of {len(paths)} instances" in record.parts[-1].detail
    receive(journal, paths[:4])
    assert assemble(journal) == "failed"
    receive(journal, paths[4:-1])
    assert assemble(journal) == "processed"


def test_a_broken_slice_is_not_forgotten_after_the_purge(journal: Journal, fast: Path) -> None:
    """ASM-4: nobody has read it meanwhile, and it need not come again for the others to be judged."""
    from datetime import timedelta

    from node.domain.work import PurgeLimits

    paths = list(write_series(acquisition(), fast / "ct"))
    uid = receive(journal, paths[:-1])
    cut(paths[0], "unreadable_header")
    assert assemble(journal, evidence=Evidence.FORCED) == "quarantined"
    later = datetime.now(UTC) + timedelta(milliseconds=1)
    assert len(journal.give_up_files(PurgeLimits(later, later, later, later))) == len(paths) - 1
    receive(journal, paths[-1:])
    assert assemble(journal, evidence=Evidence.FORCED) == "failed"
    record = journal.show_series(uid)
    assert record is not None
    assert (record.instances[0].state, record.instances[0].reason) == ("quarantined", "unreadable_header")
    receive(journal, paths[1:-1])
    assert assemble(journal, evidence=Evidence.FORCED) == "quarantined"


@pytest.mark.parametrize("first", ["old", "new"])
def test_a_whole_series_comes_again_with_one_more_slice_after_the_purge(
    journal: Journal, fast: Path, first: str
) -> None:
    """NET-12: bytes that were purged are kept again, whether the new slice comes first or last."""
    from datetime import timedelta

    from node.domain.work import PurgeLimits

    paths = list(write_series(acquisition(), fast / "ct"))
    receive(journal, paths[:-1])
    assert assemble(journal, (replace(RULE, senders=("another",)),)) == "ineligible"
    later = datetime.now(UTC) + timedelta(milliseconds=1)
    assert len(journal.give_up_files(PurgeLimits(later, later, later, later))) == len(paths) - 1
    receive(journal, paths if first == "old" else [paths[-1], *paths[:-1]])
    assert assemble(journal) == "processed"
    assert journal.list_jobs()[0].state == JobState.QUEUED


def test_an_object_that_comes_again_after_the_purge_waits_for_the_others(journal: Journal, fast: Path) -> None:
    """ASM-9: the question whether one multi-frame object is a whole fails no series whose rest is still coming."""
    from datetime import timedelta

    from node.domain.work import PurgeLimits

    paths = [fast / f"{n}.dcm" for n in range(3)]
    for n, path in enumerate(paths):
        ds = enhanced(acquisition())
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ds.SOPInstanceUID}.{n}"
        ds.save_as(path, enforce_file_format=True)
    receive(journal, paths[:2])
    assemble(journal, (replace(RULE, senders=("another",)),))
    later = datetime.now(UTC) + timedelta(milliseconds=1)
    assert len(journal.give_up_files(PurgeLimits(later, later, later, later))) == 2
    receive(journal, [paths[2], paths[0]])
    assert assemble(journal, evidence=None) == "waits"
    assert journal.open_series() != ()


def test_another_attempt_has_it(journal: Journal, fast: Path) -> None:
    receive(journal, list(write_series(acquisition(), fast / "ct")))
    (series,) = journal.open_series()
    journal.judge(series, Evidence.SILENCE)
    run: Callable[[int, int], str] = Assembler(journal, (RULE,), MODELS, "c").run
    assert run(series.id, 7) == "not_mine"
