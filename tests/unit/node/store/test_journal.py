"""The journal: gates, compare-and-swap, group commit, duplicates, order of sending, history, migrations."""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, inspect, text

from node.domain.instance import CommitOutcome, InstanceState, ReceivedInstance, Sender
from node.domain.job import DeliveryState, JobState, NotAllowed, ObjectKind
from node.domain.series import ArrivingSeries, Completeness, Evidence, SeriesState
from node.domain.work import JobDraft, NewObject, PartDraft, PurgeLimits, SeriesWork, Settlement, Station, WorkRow
from node.errors import ConfigError, JournalUnavailable, OutOfResources
from node.store import schema
from node.store.group_commit import GroupCommit
from node.store.journal import Journal

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SENDER = Sender("ct1", "CT1", "HILUM", "10.0.0.1", "a1")
START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SERIES = "1.2.3"


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fast() -> Iterator[Path]:
    """A folder in memory: these tests ask what a commit does, not how long a flush takes."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="hilum-", dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def url(fast: Path) -> str:
    return f"sqlite:///{fast / 'journal.db'}"


@pytest.fixture
def journal(url: str, clock: Clock) -> Iterator[Journal]:
    with Journal.open(url, clock) as opened:
        yield opened


_paths = itertools.count()


def received(number: int, at: datetime = START, **changes: object) -> ReceivedInstance:
    instance = ReceivedInstance(
        sop_instance_uid=f"1.2.3.{number}",
        sop_class_uid=CT,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        study_instance_uid="1.2",
        series_instance_uid=SERIES,
        patient_id="P1",
        path=Path(f"/spool/incoming/{next(_paths):08}.dcm"),
        length=1000 + number,
        crc32=number,
        sender=SENDER,
        received_at=at,
    )
    return replace(instance, **changes)  # type: ignore[arg-type]


def fill(journal: Journal, count: int = 3) -> None:
    for number in range(count):
        journal.commit(received(number))


def judged(journal: Journal, evidence: Evidence = Evidence.SILENCE) -> SeriesWork:
    """The one open series, judged whole and begun."""
    (series,) = journal.open_series()
    assert journal.judge(series, evidence)
    (row,) = journal.work(Station.ASSEMBLE)
    work = journal.begin_series(row.id, row.attempt)
    assert work is not None
    return work


def settlement(volume_id: str = "v1", destinations: tuple[str, ...] = ("pacs",)) -> Settlement:
    job = JobDraft("rule", "phantom", "m" * 64, "c" * 64, destinations, 100, 64)
    uids = tuple(f"1.2.3.{n}" for n in range(3))
    part = PartDraft(3, volume_id, {}, uids, (), "processed", job=job)
    return Settlement(Evidence.SILENCE, Completeness.COMPLETE, 1.0, "processed", "", (part,))


def settled(journal: Journal, volume_id: str = "v1", destinations: tuple[str, ...] = ("pacs",)) -> int:
    """Settle the open series; returns the number of its newest job."""
    assert journal.settle(judged(journal), settlement(volume_id, destinations))
    return journal.list_jobs()[0].id


def objects(job_id: int) -> list[NewObject]:
    made = []
    for kind, variant in (
        (ObjectKind.SEG, "binary"),
        (ObjectKind.SR, "comprehensive3d-binary"),
        (ObjectKind.PDF, "pdf"),
    ):
        path = Path(f"/spool/results/{next(_paths):08}.dcm")
        made.append(NewObject(kind, variant, "1.2.840", f"2.25.{job_id}.{kind}", "1.2.840.10008.1.2.1", path, "0" * 64))
    return made


def composed(journal: Journal, job_id: int, destinations: tuple[str, ...] = ("pacs",)) -> None:
    attempt = state_of(journal, job_id)[1]
    assert journal.begin_job(job_id, attempt) is not None
    deliveries = [(name, kind) for name in destinations for kind in ObjectKind]
    assert journal.compose(job_id, attempt, objects(job_id), deliveries, {"flags": []})


def state_of(journal: Journal, job_id: int) -> tuple[JobState, int]:
    record = journal.show_job(job_id)
    assert record is not None
    return record.job.state, record.job.attempt


def begin_next(journal: Journal) -> WorkRow:
    """Begin the delivery that is due first."""
    row = next(row for row in journal.work(Station.DELIVER) if not row.running)
    assert journal.begin_delivery(row.id, row.attempt) is not None
    return row


def send_all(journal: Journal) -> None:
    while waiting := [row for row in journal.work(Station.DELIVER) if not row.running]:
        work = journal.begin_delivery(waiting[0].id, waiting[0].attempt)
        assert work is not None
        assert journal.may_send(waiting[0].id, waiting[0].attempt)
        journal.sent(waiting[0].id, waiting[0].attempt, work.objects[0].variant, work.objects[0].sop_instance_uid)


# Receiving ------------------------------------------------------------------------------------------------------------


def test_duplicates_by_digest(journal: Journal) -> None:
    """NET-12: equal bytes change nothing, other bytes are kept beside, as a new revision of a settled series."""
    fill(journal)
    assert journal.commit(received(1)) is CommitOutcome.DUPLICATE_SAME
    job_id = settled(journal)
    assert journal.commit(received(2)) is CommitOutcome.DUPLICATE_SAME
    assert state_of(journal, job_id)[0] is JobState.QUEUED
    assert journal.commit(received(2, crc32=99)) is CommitOutcome.DUPLICATE_DIFFERENT
    assert len(journal.known("1.2.3.2")) == 2
    record = journal.show_series(SERIES)
    assert record is not None
    assert [i.reason for i in record.instances] == ["", "", "", "duplicate_uid_other_bytes"]
    assert state_of(journal, job_id)[0] is JobState.CANCELLED
    work = judged(journal)
    assert (work.revision, len(work.members)) == (2, 3)
    assert [m.path for m in work.members][-1] == journal.known("1.2.3.2")[-1].path


def test_identity_conflict_is_quarantined(journal: Journal) -> None:
    """ASM-8: a slice of another patient is kept in quarantine and the series carries the conflict."""
    fill(journal)
    journal.commit(received(7, patient_id="P2"))
    work = judged(journal)
    assert work.conflict == "identity_mismatch"
    assert len(work.members) == 3
    record = journal.show_series(SERIES)
    assert record is not None
    assert record.instances[-1].state == InstanceState.QUARANTINED


def test_same_uid_in_two_series_is_quarantined(journal: Journal) -> None:
    fill(journal)
    journal.commit(received(1, series_instance_uid="9.9", crc32=5))
    record = journal.show_series("9.9")
    assert record is not None
    assert [(i.state, i.reason) for i in record.instances] == [("quarantined", "uid_in_two_series")]


def test_held_instances_open_nothing(journal: Journal) -> None:
    """NET-7, ASM-56: what is not ours to process is stored, has a terminal outcome, and reopens nothing."""
    held = received(5, series_instance_uid="5.5", state=InstanceState.HELD, reason="class_not_processed")
    journal.commit(held)
    (summary,) = journal.list_series()
    assert (summary.state, summary.outcome, summary.reason) == (SeriesState.SETTLED, "held", "class_not_processed")
    assert (summary.instances, summary.held) == (0, 1)
    assert journal.open_series() == ()
    journal.commit(received(6, series_instance_uid="5.5"))
    assert [s.revision for s in journal.open_series()] == [1]


def test_multi_frame_objects_are_examined_on_arrival(journal: Journal) -> None:
    """ASM-9: one enhanced object need not wait for silence."""
    journal.commit(received(1, sop_class_uid=ENHANCED_CT))
    (row,) = journal.work(Station.ASSEMBLE)
    work = journal.begin_series(row.id, row.attempt)
    assert work is not None
    assert work.evidence is None
    assert journal.leave_open(work, gapped=False)
    assert journal.work(Station.ASSEMBLE) == ()


def test_a_full_data_base_is_out_of_resources(journal: Journal, url: str) -> None:
    """NET-9: the sender hears that it may try again, and nothing is kept."""
    with create_engine(url).begin() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
    with journal._engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    journal._engine.pool._max_overflow = -1  # one connection keeps the limit
    with pytest.raises(OutOfResources):
        for number in range(5000):
            journal.commit(received(number))


# Group commit ---------------------------------------------------------------------------------------------------------


def test_followers_share_the_leaders_commit() -> None:
    """Rows that gather while a transaction runs become the next one."""
    batches: list[list[int]] = []
    entered, may_go_on = threading.Event(), threading.Event()

    def write(rows: object) -> list[int]:
        batches.append(list(rows))  # type: ignore[call-overload]
        entered.set()
        may_go_on.wait(5)
        return [row * 10 for row in batches[-1]]

    group: GroupCommit[int, int] = GroupCommit(write)
    answers: dict[int, int] = {}

    def commit(row: int) -> None:
        answers[row] = group.wait(group.submit(row))

    threads = [threading.Thread(target=commit, args=(row,)) for row in range(5)]
    threads[0].start()
    assert entered.wait(5)
    tickets = [group.submit(row) for row in (7, 8)]
    for thread in threads[1:]:
        thread.start()
    may_go_on.set()
    for thread in threads:
        thread.join()
    assert [group.wait(ticket) for ticket in tickets] == [70, 80]
    assert answers == {row: row * 10 for row in range(5)}
    assert batches[0] == [0]
    assert sorted(itertools.chain(*batches)) == [0, 1, 2, 3, 4, 7, 8]
    assert len(batches) < 7


def test_a_leader_that_dies_never_means_success() -> None:
    """The row of a follower was taken by a leader that ended without a word: refused, not acknowledged."""

    def write(rows: object) -> list[int]:
        raise SystemExit

    group: GroupCommit[int, int] = GroupCommit(write)
    follower = group.submit(1)
    with pytest.raises(SystemExit):
        group.wait(group.submit(2))
    with pytest.raises(OutOfResources):
        group.wait(follower)


def test_many_threads_on_one_journal(journal: Journal) -> None:
    """Eight associations at once: every row is there, once."""
    failures: list[BaseException] = []

    def association(first: int) -> None:
        try:
            for number in range(first, first + 20):
                assert journal.commit(received(number)) is CommitOutcome.NEW
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=association, args=(100 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert journal.open_series()[0].arrivals == 160


# Gates ----------------------------------------------------------------------------------------------------------------


def test_gate_1_a_slice_between_decision_and_freeze(url: str, journal: Journal, clock: Clock) -> None:
    """A slice that is committed through another connection after the work began: settle changes nothing."""
    fill(journal)
    work = judged(journal)
    with Journal.open(url, clock) as listener:
        listener.commit(received(9))
    assert not journal.settle(work, settlement())
    assert journal.list_jobs() == ()
    (series,) = journal.open_series()
    assert series.arrivals == 4
    assert journal.judge(series, Evidence.SILENCE)
    (row,) = journal.work(Station.ASSEMBLE)
    assert row.attempt == work.attempt + 1


def test_gate_1_a_slice_between_judgement_and_begin(journal: Journal) -> None:
    """The evidence is gone with the slice."""
    fill(journal)
    (series,) = journal.open_series()
    assert journal.judge(series, Evidence.SILENCE)
    journal.commit(received(9))
    assert journal.work(Station.ASSEMBLE) == ()
    assert not journal.judge(series, Evidence.SILENCE)


def test_gate_1_with_the_write_lock_held(url: str, journal: Journal, clock: Clock) -> None:
    """T6: settle waits for the listener's transaction, then sees its slice, whichever came first."""
    fill(journal)
    work = judged(journal)
    result: list[bool] = []
    with Journal.open(url, clock) as listener, listener._writing() as connection:
        listener._receive(connection, received(9))
        settle = threading.Thread(target=lambda: result.append(journal.settle(work, settlement())))
        settle.start()
        settle.join(0.3)
        assert settle.is_alive()
    settle.join(10)
    assert result == [False]


def test_gate_2_the_heartbeat_tells_what_is_open(journal: Journal, clock: Clock) -> None:
    """What settle_decision needs: the listener's start and sign of life, carriers, bytes in flight."""
    fill(journal)
    journal.heartbeat("l1", START, 2, [ArrivingSeries(SERIES, 2, START + timedelta(seconds=3))])
    (series,) = journal.open_series()
    assert series.activity.open_associations == 2
    assert series.activity.last_byte_at == START + timedelta(seconds=3)
    assert series.activity.listener_started_at == START
    clock.forward(5)
    journal.heartbeat("l1", START, 0, [])
    (series,) = journal.open_series()
    assert series.activity.open_associations == 0
    assert series.activity.listener_seen_at == clock.now


def test_gate_2_what_an_older_listener_said_is_forgotten(journal: Journal, clock: Clock) -> None:
    """ASM-2: what was in flight to a listener that is gone ended with it, and is no reason to wait."""
    fill(journal)
    journal.heartbeat("old", START, 2, [ArrivingSeries(SERIES, 2, START)])
    clock.forward(5)
    journal.heartbeat("new", clock.now, 0, [])
    (series,) = journal.open_series()
    assert (series.activity.open_associations, series.activity.last_byte_at) == (0, None)
    assert journal.listening() == (clock.now, clock.now)
    journal.heartbeat("new", clock.now, 1, [ArrivingSeries(SERIES, 1, clock.now)])
    journal.heartbeat("new", clock.now, 0, [])
    assert journal.open_series()[0].activity.open_associations == 0


@pytest.mark.parametrize("how_far", ["queued", "running", "composed"])
def test_gate_3_a_late_slice_cancels_what_is_unsent(journal: Journal, how_far: str) -> None:
    """ASM-5: one transaction opens the next revision and cancels the job and its deliveries."""
    fill(journal)
    job_id = settled(journal)
    attempt = state_of(journal, job_id)[1]
    if how_far == "running":
        assert journal.begin_job(job_id, attempt) is not None
    if how_far == "composed":
        composed(journal, job_id)
    journal.commit(received(9))
    assert state_of(journal, job_id)[0] is JobState.CANCELLED
    states = [d.state for d in journal.show_job(job_id).deliveries]
    assert states == [DeliveryState.CANCELLED] * (3 * (how_far == "composed"))
    assert not journal.compose(job_id, attempt, objects(job_id), [("pacs", ObjectKind.SEG)], {})
    assert journal.open_series()[0].revision == 2
    with pytest.raises(NotAllowed):
        journal.retry(job_id)


def test_gate_3_while_sending_then_refused(journal: Journal) -> None:
    """T5: a send that began is let go; refused, it is not tried again, as its revision is no longer the newest."""
    fill(journal)
    job_id = settled(journal)
    composed(journal, job_id)
    row = begin_next(journal)
    journal.commit(received(9))
    states = [d.state for d in journal.show_job(job_id).deliveries]
    assert states == [DeliveryState.SENDING, DeliveryState.CANCELLED, DeliveryState.CANCELLED]
    assert journal.postpone_delivery(row.id, row.attempt, "unavailable", START)
    assert journal.show_job(job_id).deliveries[0].state is DeliveryState.CANCELLED
    assert state_of(journal, job_id)[0] is JobState.CANCELLED


def test_gate_3_asked_right_before_each_send(journal: Journal) -> None:
    """Between begin and the send, a slice came: may_send says no and cancels."""
    fill(journal)
    job_id = settled(journal)
    composed(journal, job_id)
    row = begin_next(journal)
    assert journal.may_send(row.id, row.attempt)
    journal.commit(received(9))
    assert not journal.may_send(row.id, row.attempt)
    assert not journal.sent(row.id, row.attempt, "binary", "2.25.1")


def test_gate_3_after_a_refused_send(journal: Journal) -> None:
    fill(journal)
    job_id = settled(journal)
    composed(journal, job_id)
    row = begin_next(journal)
    assert journal.postpone_delivery(row.id, row.attempt, "unavailable", START)
    journal.commit(received(9))
    assert state_of(journal, job_id)[0] is JobState.CANCELLED
    assert journal.work(Station.DELIVER) == ()


def test_nothing_of_a_new_revision_moves_while_an_old_one_is_being_sent(journal: Journal) -> None:
    """The invariant: nothing older is sent after the newest, and a report names the one that it replaces."""
    fill(journal)
    first = settled(journal)
    composed(journal, first)
    row = begin_next(journal)
    journal.commit(received(9))
    second = settled(journal, "v2")
    assert second != first
    assert journal.work(Station.SEGMENT) == ()
    journal.sent(row.id, row.attempt, "binary", "2.25.1.seg")
    assert [r.id for r in journal.work(Station.SEGMENT)] == [second]


def test_a_report_names_the_one_it_replaces(journal: Journal) -> None:
    """RES-34."""
    fill(journal)
    first = settled(journal)
    composed(journal, first)
    send_all(journal)
    assert state_of(journal, first)[0] is JobState.DONE
    journal.commit(received(9))
    second = settled(journal, "v2")
    work = journal.begin_job(second, 1)
    assert work is not None
    assert {name: report.sop_instance_uid for name, report in work.replaced_reports.items()} == {
        "pacs": f"2.25.{first}.sr"
    }


def _numbers(turn: int) -> tuple[int, ...]:
    return tuple(9001 + 10_000 * kind + 30_000 * turn for kind in range(3))


def test_series_numbers_of_a_study_never_collide(journal: Journal) -> None:
    """RES-14: two models on one series, and a result that replaces one that was sent."""
    fill(journal)
    first = settled(journal)
    journal.begin_job(first, 1)
    assert journal.claim_series_numbers(first, 1, _numbers) == 0
    assert journal.claim_series_numbers(first, 1, _numbers) == 0, "asked again, the answer is the same"
    journal.commit(received(9))
    second = settled(journal, "v2")
    journal.begin_job(second, 1)
    assert journal.claim_series_numbers(second, 1, _numbers) == 0, "nothing of the first was sent, nothing ever will be"
    composed(journal, second)
    row = begin_next(journal)
    journal.sent(row.id, row.attempt, "binary", f"2.25.{second}.seg")
    journal.commit(received(10))
    third = settled(journal, "v3")
    assert journal.claim_series_numbers(third, 1, _numbers) == 1


def test_an_attempt_that_was_overtaken_claims_no_series_numbers(journal: Journal) -> None:
    """RES-14: what the journal notes is what the attempt that counts has written."""
    fill(journal)
    job_id = settled(journal)
    journal.begin_job(job_id, 1)
    (row,) = journal.work(Station.SEGMENT)
    assert journal.take_over(row, "lease_lapsed")
    journal.begin_job(job_id, 2)
    journal.claim_series_numbers(job_id, 2, _numbers)
    journal.claim_series_numbers(job_id, 1, lambda turn: (1, 2, 3))
    record = journal.show_job(job_id)
    assert record is not None
    assert record.result["series_numbers"] == list(_numbers(0))


def test_the_same_scan_in_a_new_revision_is_not_made_again(journal: Journal) -> None:
    """RES-22: a late localizer changes the series, not the scan that was delivered."""
    fill(journal)
    first = settled(journal)
    composed(journal, first)
    send_all(journal)
    journal.commit(received(9))
    assert settled(journal) == first
    record = journal.show_job(first)
    assert record is not None
    assert (record.job.state, record.job.revision) == (JobState.DONE, 2)
    assert journal.retry(first)


def test_a_result_does_not_stand_again_while_a_newer_one_is_being_sent(journal: Journal) -> None:
    """RES-34: what is on its way right now would be the last word at its destination."""
    fill(journal)
    first = settled(journal)
    composed(journal, first)
    send_all(journal)
    journal.commit(received(9))
    composed(journal, settled(journal, "v2"))
    begin_next(journal)
    journal.commit(received(10))
    third = settled(journal)
    revisions = {job.id: job.revision for job in journal.list_jobs()}
    assert (revisions[first], revisions[third]) == (1, 3)


def test_other_bytes_after_the_result_make_a_new_one(journal: Journal) -> None:
    """NET-12, RES-34: the scan has the same instances, yet the result was made of other pixels."""
    fill(journal)
    first = settled(journal)
    composed(journal, first)
    send_all(journal)
    assert journal.commit(received(2, crc32=99)) is CommitOutcome.DUPLICATE_DIFFERENT
    second = settled(journal)
    assert second != first
    assert state_of(journal, second)[0] is JobState.QUEUED


def test_a_new_destination_is_sent_a_result(journal: Journal) -> None:
    fill(journal)
    first = settled(journal)
    composed(journal, first)
    send_all(journal)
    journal.commit(received(9))
    assert settled(journal, destinations=("pacs", "ward")) != first


def test_what_was_whole_and_is_gapped_now_is_made_again(journal: Journal) -> None:
    """ASM-4: a broken slice came late, and the rule takes what there is: that result is called partial."""
    fill(journal)
    first = settled(journal)
    composed(journal, first)
    send_all(journal)
    journal.commit(received(9))
    gapped = replace(settlement(), completeness=Completeness.GAPPED)
    assert journal.settle(judged(journal), gapped)
    second = journal.list_jobs()[0].id
    assert second != first
    composed(journal, second)
    send_all(journal)
    journal.commit(received(10))
    assert journal.settle(judged(journal), gapped)
    assert journal.list_jobs()[0].id == second


def test_two_scans_of_a_series_do_not_overtake_each_other(journal: Journal) -> None:
    """RES-22: each echo has its own newest result; a late localizer makes neither again."""
    fill(journal, 6)
    (part,) = settlement().parts
    late = tuple(f"1.2.3.{n}" for n in range(3, 6))
    both = replace(settlement(), parts=(part, replace(part, volume_id="v2", sop_instance_uids=late)))
    assert journal.settle(judged(journal), both)
    jobs = {job.id for job in journal.list_jobs()}
    for job_id in jobs:
        composed(journal, job_id)
    send_all(journal)
    journal.commit(received(9))
    assert journal.settle(judged(journal), both)
    assert {job.id for job in journal.list_jobs()} == jobs


def test_a_result_that_a_newer_one_replaced_answers_nothing(journal: Journal) -> None:
    """RES-34: of one scan three revisions, the third like the first: the second was sent last, so it is made again."""
    fill(journal)
    for volume_id in ("v1", "v2"):
        composed(journal, settled(journal, volume_id))
        send_all(journal)
        journal.commit(received(9 if volume_id == "v1" else 10))
    jobs = {job.id for job in journal.list_jobs()}
    assert settled(journal, "v1") not in jobs


# Compare-and-swap -----------------------------------------------------------------------------------------------------


def test_an_old_attempt_changes_nothing(journal: Journal, clock: Clock) -> None:
    """The attempt is the fencing token: a process that was taken over commits nothing."""
    fill(journal)
    job_id = settled(journal)
    assert journal.begin_job(job_id, 1) is not None
    (row,) = journal.work(Station.SEGMENT)
    assert row.running
    before = row.lease_at
    clock.forward(2)
    journal.renew([(Station.SEGMENT, job_id, 1)])
    assert before is not None
    assert journal.work(Station.SEGMENT)[0].lease_at == clock.now
    assert journal.take_over(row, "lease_lapsed")
    assert not journal.take_over(row, "lease_lapsed")
    journal.renew([(Station.SEGMENT, job_id, 1)])
    assert journal.work(Station.SEGMENT)[0].lease_at is None
    assert not journal.compose(job_id, 1, objects(job_id), [], {})
    assert not journal.reject_job(job_id, 1, "x", "y")
    assert not journal.fail(Station.SEGMENT, job_id, 1, "bug")
    assert journal.begin_job(job_id, 1) is None
    assert journal.begin_job(job_id, 2) is not None


def test_three_deaths_are_enough(journal: Journal) -> None:
    """T8: the count stands in the journal, is committed before the work, and `retry` gives a fresh budget."""
    fill(journal)
    job_id = settled(journal)
    for attempt in (1, 2, 3):
        assert journal.begin_job(job_id, attempt) is not None
        assert journal.take_over(journal.work(Station.SEGMENT)[0], "lease_lapsed")
    assert journal.begin_job(job_id, 4) is None
    record = journal.show_job(job_id)
    assert record is not None
    assert (record.job.state, record.job.reason, record.detail) == (
        JobState.FAILED,
        "crashed",
        "its process died 3 times",
    )
    journal.retry(job_id)
    state, attempt = state_of(journal, job_id)
    assert state is JobState.QUEUED
    assert journal.begin_job(job_id, attempt) is not None


def test_an_orderly_stop_is_no_death(journal: Journal) -> None:
    """SIGTERM in the middle of a job gives it back at once and counts no start."""
    fill(journal)
    job_id = settled(journal)
    for attempt in range(1, 6):
        assert journal.begin_job(job_id, attempt) is not None
        assert journal.give_back((Station.SEGMENT, job_id, attempt), "stopped")
    assert journal.begin_job(job_id, 6) is not None


def test_a_job_given_back_is_so_in_one_transaction(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given back again after the data base was locked in between, no death is struck out that another try died."""
    fill(journal)
    job_id = settled(journal)
    for attempt in (1, 2):
        assert journal.begin_job(job_id, attempt) is not None
        if attempt == 1:
            (row,) = journal.work(Station.SEGMENT)
            journal.take_over(row, "lease_lapsed")

    def locked(*_: object, **__: object) -> None:
        raise JournalUnavailable("database is locked")

    with monkeypatch.context() as patched, pytest.raises(JournalUnavailable):
        patched.setattr(journal, "_advance_job", locked)
        journal.give_back((Station.SEGMENT, job_id, 2), "journal_unavailable")
    assert journal.give_back((Station.SEGMENT, job_id, 2), "journal_unavailable")
    record = journal.show_job(job_id)
    assert record is not None
    assert record.job.starts == 1


def test_a_job_put_off_did_not_die(journal: Journal, clock: Clock) -> None:
    fill(journal)
    job_id = settled(journal)
    for attempt in range(1, 6):
        assert journal.begin_job(job_id, attempt) is not None
        assert journal.postpone_job(job_id, attempt, "device_busy", "", clock.now + timedelta(seconds=30))
        assert journal.work(Station.SEGMENT) == ()
        clock.forward(31)
    assert journal.tries_of(job_id) == 5


# Delivery -------------------------------------------------------------------------------------------------------------


def test_seg_before_sr_before_pdf_for_each_destination(journal: Journal) -> None:
    """NET-24."""
    fill(journal)
    job_id = settled(journal, destinations=("a", "b"))
    composed(journal, job_id, ("a", "b"))
    order = []
    while waiting := [row for row in journal.work(Station.DELIVER) if not row.running]:
        for row in waiting:
            work = journal.begin_delivery(row.id, row.attempt)
            assert work is not None
            order.append((row.destination, str(work.delivery.kind), work.sent_seg_variant))
            journal.sent(row.id, row.attempt, work.objects[0].variant, work.objects[0].sop_instance_uid)
    each = [("seg", None), ("sr", "binary"), ("pdf", "binary")]
    assert [o[1:] for o in order if o[0] == "a"] == each
    assert [o[1:] for o in order if o[0] == "b"] == each
    assert state_of(journal, job_id)[0] is JobState.DONE


def test_a_report_without_its_segmentation_is_not_sent(journal: Journal) -> None:
    """RES-7: the PACS refuses the SEG; the report fails too, the PDF goes, and retry begins with the SEG."""
    fill(journal)
    job_id = settled(journal)
    composed(journal, job_id)
    row = begin_next(journal)
    assert journal.fail(Station.DELIVER, row.id, row.attempt, "refused")
    states = [(d.state, d.reason) for d in journal.show_job(job_id).deliveries]
    assert states[:2] == [(DeliveryState.FAILED, "refused"), (DeliveryState.FAILED, "segmentation_refused")]
    assert states[2][0] is DeliveryState.PENDING
    send_all(journal)
    assert state_of(journal, job_id)[0] is JobState.DONE
    failed = journal.list_jobs(state=JobState.FAILED)
    assert [job.id for job in failed] == [job_id]  # a person must look
    assert journal.not_sent(failed) == {job_id: ("pacs",)}
    journal.retry(job_id)
    assert [d.state for d in journal.show_job(job_id).deliveries][:2] == [DeliveryState.PENDING] * 2
    send_all(journal)
    assert {d.state for d in journal.show_job(job_id).deliveries} == {DeliveryState.SENT}
    assert journal.list_jobs(state=JobState.FAILED) == ()


def test_a_job_without_destination_is_done_when_composed(journal: Journal) -> None:
    fill(journal)
    job_id = settled(journal, destinations=())
    composed(journal, job_id, ())
    assert state_of(journal, job_id)[0] is JobState.DONE


def test_all_refused_is_failed(journal: Journal) -> None:
    fill(journal)
    job_id = settled(journal)
    composed(journal, job_id)
    for _ in range(2):
        row = begin_next(journal)
        journal.fail(Station.DELIVER, row.id, row.attempt, "refused")
    assert state_of(journal, job_id)[0] is JobState.FAILED
    assert journal.counts().failed_deliveries == {"pacs": 3}


def test_operator_cancels(journal: Journal) -> None:
    fill(journal)
    job_id = settled(journal)
    composed(journal, job_id)
    journal.cancel(job_id)
    assert state_of(journal, job_id)[0] is JobState.CANCELLED
    with pytest.raises(NotAllowed):
        journal.cancel(job_id)
    with pytest.raises(NotAllowed):
        journal.retry(4711)
    journal.retry(job_id)
    send_all(journal)
    assert state_of(journal, job_id)[0] is JobState.DONE


def test_a_lost_worker_gives_the_delivery_back(journal: Journal) -> None:
    fill(journal)
    job_id = settled(journal)
    composed(journal, job_id)
    row = begin_next(journal)
    (running,) = journal.work(Station.DELIVER)
    assert journal.take_over(running, "lease_lapsed")
    assert not journal.sent(row.id, row.attempt, "binary", "2.25.1")
    (again,) = journal.work(Station.DELIVER)
    assert (again.running, again.attempt) == (False, row.attempt + 1)


# What is told ---------------------------------------------------------------------------------------------------------


def test_history_holds_every_change(journal: Journal) -> None:
    fill(journal)
    job_id = settled(journal)
    composed(journal, job_id)
    send_all(journal)
    record = journal.show_job(job_id)
    assert record is not None
    assert [e.event for e in record.events if e.entity == "job"] == ["made", "begin", "compose", "finish"]
    assert [e.event for e in record.events if e.entity == "delivery"] == ["made"] * 3 + ["begin", "sent"] * 3
    series = journal.show_series(record.job.series_id)
    assert series is not None
    assert [e.event for e in series.events] == ["opened", "settle"]
    assert series.parts[0].job_id == job_id
    assert series.parts[0].sop_instance_uids == ("1.2.3.0", "1.2.3.1", "1.2.3.2")


def test_counts(journal: Journal, clock: Clock) -> None:
    fill(journal)
    clock.forward(60)
    counts = journal.counts()
    assert (counts.queues["assemble"].depth, counts.queues["assemble"].oldest_age_s) == (1, 60.0)
    composed(journal, settled(journal))
    clock.forward(5)
    counts = journal.counts()
    assert {name: q.depth for name, q in counts.queues.items()} == {"assemble": 0, "segment": 0, "deliver": 3}
    assert counts.queues["deliver"].oldest_age_s == 5.0
    assert counts.outbox == {"pacs": 3}
    assert counts.spool_bytes["incoming"] == 3003


def test_refused_peers_are_bounded(journal: Journal, clock: Clock) -> None:
    """SEC-21: their texts are an attacker's, so is their number."""
    for number in range(250):
        clock.forward(1)
        journal.refused_peer(f"AE{number}", "HILUM", "10.9.9.9", "refused_peer")
    journal.refused_peer("AE249", "HILUM", "10.9.9.9", "refused_peer")
    peers = journal.refused_peers(1000)
    assert len(peers) == 200
    assert (peers[0].calling_ae_title, peers[0].times) == ("AE249", 2)


def test_roles(journal: Journal, clock: Clock) -> None:
    journal.role_seen("hilum-worker-0", "worker", 12, START)
    clock.forward(3)
    journal.role_seen("hilum-worker-0", "worker", 13, clock.now)
    assert [(r.executor_id, r.pid, r.seen_at) for r in journal.roles()] == [("hilum-worker-0", 13, clock.now)]


# Purge ----------------------------------------------------------------------------------------------------------------


def limits(at: datetime, committing: frozenset[str] = frozenset()) -> PurgeLimits:
    return PurgeLimits(at, at, at, at, committing)


def test_purge_waits_for_delivery(journal: Journal, clock: Clock) -> None:
    """Inputs go only when every result that names them was delivered; nothing else goes."""
    fill(journal)
    job_id = settled(journal)
    later = START + timedelta(days=1)
    assert journal.give_up_files(limits(later)) == ()
    composed(journal, job_id)
    assert journal.give_up_files(limits(later)) == ()
    send_all(journal)
    assert journal.give_up_files(limits(START - timedelta(days=1))) == ()
    assert journal.give_up_files(limits(later, frozenset({"pacs"}))) == ()
    gone = journal.give_up_files(limits(later))
    assert len(gone) == 6
    assert journal.spooled_paths() == frozenset()
    assert journal.known("1.2.3.1") == ()


LATER = START + timedelta(days=1)
ONLY = {name: replace(limits(START), **{name: LATER}) for name in ("inputs", "unused", "quarantined")}
"""Limits of which one is over."""


def end_job(journal: Journal, how: str) -> None:
    job_id = settled(journal, destinations=() if how == "nowhere" else ("pacs", "ward"))
    if how == "cancelled":
        journal.cancel(job_id)
    elif how in ("failed", "rejected"):
        assert journal.begin_job(job_id, 1) is not None
        end = journal.reject_job if how == "rejected" else lambda *said: journal.fail(Station.SEGMENT, *said)
        assert end(job_id, 1, "because", "")
    else:
        composed(journal, job_id, () if how == "nowhere" else ("pacs", "ward"))
        for row in list(journal.work(Station.DELIVER)) if how == "not everywhere" else []:
            if row.destination == "ward":
                journal.fail(Station.DELIVER, row.id, row.attempt, "refused")
        send_all(journal)


@pytest.mark.parametrize(
    ("how", "limit"),
    [
        ("failed", "quarantined"),
        ("not everywhere", "quarantined"),
        ("rejected", "unused"),
        ("cancelled", "unused"),
        ("nowhere", "unused"),
    ],
)
def test_purge_by_the_end_of_the_job(journal: Journal, how: str, limit: str) -> None:
    """SEC-15: every class has its age; before it, nothing goes; after it, the images do."""
    fill(journal)
    end_job(journal, how)
    others = replace(limits(LATER), **{limit: START})
    assert journal.give_up_files(others) == ()
    gone = journal.give_up_files(replace(ONLY[limit], inputs=LATER))
    assert len([path for path in gone if "incoming" in str(path)]) == 3


def test_purge_of_a_series_that_failed(journal: Journal) -> None:
    """SEC-15: a person has had time to look."""
    fill(journal)
    (series,) = journal.open_series()
    journal.judge(series, Evidence.SILENCE)
    (row,) = journal.work(Station.ASSEMBLE)
    journal.fail(Station.ASSEMBLE, row.id, row.attempt, "bug", "traceback")
    assert journal.give_up_files(replace(limits(LATER), quarantined=START)) == ()
    assert len(journal.give_up_files(ONLY["quarantined"])) == 3


def test_purge_keeps_what_an_open_series_or_an_unsent_delivery_needs(journal: Journal) -> None:
    fill(journal)
    assert journal.give_up_files(limits(LATER)) == ()
    job_id = settled(journal)
    composed(journal, job_id)
    row = begin_next(journal)
    assert journal.postpone_delivery(row.id, row.attempt, "unavailable", LATER)
    assert journal.give_up_files(limits(LATER)) == ()


def test_purge_takes_what_nobody_chose(journal: Journal) -> None:
    fill(journal)
    part = PartDraft(3, "v", {}, (), (), "ineligible", "no_rule")
    work = judged(journal)
    assert journal.settle(
        work, Settlement(Evidence.SILENCE, Completeness.COMPLETE, 1.0, "ineligible", "no_rule", (part,))
    )
    assert len(journal.give_up_files(limits(START + timedelta(days=1)))) == 3


def test_a_purged_series_may_be_sent_again_when_it_is_needed(journal: Journal) -> None:
    """NET-12: purged bytes that come again are kept, and start no new result; a new slice then finds them."""
    fill(journal)
    job_id = settled(journal)
    composed(journal, job_id)
    send_all(journal)
    journal.give_up_files(limits(LATER))
    again = received(1, LATER)
    assert journal.commit(again) is CommitOutcome.NEW
    assert journal.commit(received(1, LATER)) is CommitOutcome.DUPLICATE_SAME
    assert (journal.open_series(), state_of(journal, job_id)[0]) == ((), JobState.DONE)
    assert [known.path for known in journal.known("1.2.3.1")] == [again.path]
    assert journal.give_up_files(limits(LATER)) == ()
    journal.commit(received(9, LATER))
    assert journal.commit(received(2, LATER)) is CommitOutcome.NEW
    assert [m.purged for m in judged(journal).members] == [True, False, False, False]


def test_purged_bytes_that_came_again_grow_old_anew(journal: Journal) -> None:
    fill(journal)
    composed(journal, settled(journal))
    send_all(journal)
    journal.give_up_files(limits(LATER))
    again = received(1, LATER)
    journal.commit(again)
    assert journal.give_up_files(limits(LATER + timedelta(seconds=1))) == (again.path,)


def test_damaged_bytes_that_come_again_are_judged_anew(journal: Journal) -> None:
    """What the disk lost may have kept the series from being a scan."""
    fill(journal)
    first = settled(journal)
    again = received(1, LATER)
    journal.restore(again)
    assert [known.path for known in journal.known("1.2.3.1")] == [again.path]
    assert state_of(journal, first)[0] is JobState.CANCELLED
    assert judged(journal).members[1].path == again.path


def test_damaged_bytes_that_were_purged_meanwhile_open_nothing(journal: Journal) -> None:
    """They are kept again, as any purged bytes that come again."""
    fill(journal)
    composed(journal, settled(journal))
    send_all(journal)
    journal.give_up_files(limits(LATER))
    again = received(1, LATER)
    journal.restore(again)
    assert journal.open_series() == ()
    assert [known.path for known in journal.known("1.2.3.1")] == [again.path]


def test_a_held_object_that_was_purged_and_comes_again_opens_nothing(journal: Journal) -> None:
    held = {"series_instance_uid": "5.5", "state": InstanceState.HELD, "reason": "class_not_processed"}
    journal.commit(received(5, **held))
    assert len(journal.give_up_files(limits(LATER))) == 1
    again = received(5, LATER, **held)
    assert journal.commit(again) is CommitOutcome.NEW
    assert journal.open_series() == ()
    assert [known.path for known in journal.known("1.2.3.5")] == [again.path]


# Schema ---------------------------------------------------------------------------------------------------------------


def _tables(url: str) -> dict[str, object]:
    inspector = inspect(create_engine(url))
    return {
        name: (
            sorted((c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(name)),
            sorted(str(i["column_names"]) for i in inspector.get_indexes(name)),
        )
        for name in inspector.get_table_names()
    }


def test_a_journal_of_version_1_is_led_up(tmp_path: Path) -> None:
    """The tables of the first version, frozen as SQL, become those of a new journal."""
    old = f"sqlite:///{tmp_path / 'old.db'}"
    with create_engine(old).begin() as connection:
        script = (Path(__file__).parent / "journal_v1.sql").read_text()
        for statement in script.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
        connection.exec_driver_sql("INSERT INTO schema_version VALUES (1, 0)")
    new = f"sqlite:///{tmp_path / 'new.db'}"
    for url in (old, new):
        Journal.open(url).close()
    assert _tables(old) == _tables(new)


def test_migrations_run_in_order_and_once(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'j.db'}")
    steps = {
        2: lambda c: c.exec_driver_sql("ALTER TABLE role ADD COLUMN two INTEGER"),
        3: lambda c: c.exec_driver_sql("ALTER TABLE role ADD COLUMN three INTEGER"),
    }
    with engine.begin() as connection:
        assert schema.migrate(connection, START, 1, {}) == 0
    with engine.begin() as connection:
        assert schema.migrate(connection, START, 3, steps) == 1
    with engine.begin() as connection:
        assert schema.migrate(connection, START, 3, steps) == 3
    assert {"two", "three"} <= {c["name"] for c in inspect(engine).get_columns("role")}


def test_a_newer_journal_is_refused(url: str) -> None:
    Journal.open(url).close()
    with create_engine(url).begin() as connection:
        connection.exec_driver_sql("INSERT INTO schema_version VALUES (99, 0)")
    with pytest.raises(ConfigError, match="newer"):
        Journal.open(url)


def test_durable_settings(journal: Journal) -> None:
    """NET-2: a commit is on the disk."""
    with journal._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2


def test_a_data_base_that_is_locked_is_transient(journal: Journal, url: str) -> None:
    raw = journal._engine.raw_connection()
    raw.cursor().execute("PRAGMA busy_timeout=100")
    raw.close()
    with create_engine(url).connect() as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(JournalUnavailable):
            journal.refused_peer("A", "B", "C", "x")


# The invariant under any order ----------------------------------------------------------------------------------------

_STEPS = st.lists(st.sampled_from(["slice", "settle", "begin", "compose", "send", "refuse", "take"]), max_size=25)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_STEPS)
def test_every_slice_is_in_the_newest_result(fast: Path, steps: list[str]) -> None:
    """ASM-1, in any order of events: nothing older is sent after the newest, and its members are all slices."""
    url = f"sqlite:///{fast / f'{next(_paths)}.db'}"
    clock, count, log = Clock(), 0, []
    with Journal.open(url, clock) as journal:
        for step in [*steps, "settle", *["begin", "compose"] * 2, *["send"] * 8]:
            clock.forward(1)
            if step == "slice":
                journal.commit(received(count, clock.now))
                count += 1
            elif step == "settle":
                for series in journal.open_series():
                    journal.judge(series, Evidence.SILENCE)
                for row in journal.work(Station.ASSEMBLE):
                    if (work := journal.begin_series(row.id, row.attempt)) is not None:
                        journal.settle(work, settlement(f"v{count}"))
            elif step in ("begin", "take", "compose"):
                for row in journal.work(Station.SEGMENT):
                    if step == "begin" and not row.running:
                        journal.begin_job(row.id, row.attempt)
                    elif step == "take" and row.running:
                        journal.take_over(row, "test")
                    elif step == "compose" and row.running:
                        wanted = [("pacs", kind) for kind in ObjectKind]
                        journal.compose(row.id, row.attempt, objects(row.id), wanted, {})
            else:
                for row in journal.work(Station.DELIVER):
                    if journal.begin_delivery(row.id, row.attempt) is None or not journal.may_send(row.id, row.attempt):
                        continue
                    with journal._reading() as connection:
                        revision, members = connection.exec_driver_sql(
                            f"SELECT j.revision, count(*) FROM delivery d JOIN job j ON j.id = d.job_id JOIN member m "
                            f"ON m.snapshot_id = j.snapshot_id WHERE d.id = {row.id}"
                        ).one()
                    if step == "send":
                        log.append((revision, members, count))
                        journal.sent(row.id, row.attempt, "binary", "2.25.1")
                    else:
                        journal.postpone_delivery(row.id, row.attempt, "unavailable", clock.now)
        if count:
            assert log[-1][1] == count
            assert [entry[0] for entry in log] == sorted(entry[0] for entry in log)
            assert all(members == there for _, members, there in log)
