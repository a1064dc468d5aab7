"""retry --accept: the way out where one series came under two identities (ASM-8)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import dcmread

from node.cli import main
from node.config import load_settings
from node.domain.instance import ReceivedInstance, Sender
from node.domain.routing import ModelFacts, Rule
from node.domain.series import Evidence
from node.domain.work import Station
from node.selftest.phantom import CT
from node.selftest.scanner import Acquisition, planes_around, write_series
from node.stations.assemble import Assembler
from node.store.journal import Journal

MODELS: Mapping[str, ModelFacts] = {"any": ModelFacts("any", "m" * 64, ("CT",))}
SENDER = Sender("ct1", "CT1", "HILUM", "10.0.0.1", "a1")


@pytest.fixture
def fast() -> Iterator[Path]:
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="hilum-", dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def node(fast: Path) -> Path:
    assert main(["init", "--folder", str(fast / "node")]) == 0
    return fast / "node" / "node.toml"


@pytest.fixture
def scan(fast: Path) -> list[Path]:
    return list(write_series(Acquisition(planes_around(pixel_mm=(8.0, 8.0), step_mm=12.0), CT), fast / "ct"))


def corrected(paths: list[Path], keyword: str, value: str) -> list[Path]:
    """The same images under another identity."""
    again = []
    for path in paths:
        ds = dcmread(path)
        setattr(ds, keyword, value)
        again.append(path.with_suffix(f".{keyword}.{value}"))
        ds.save_as(again[-1])
    return again


def receive(journal: Journal, paths: list[Path]) -> None:
    for path in paths:
        ds = dcmread(path, stop_before_pixels=True)
        journal.commit(
            ReceivedInstance(
                sop_instance_uid=str(ds.SOPInstanceUID),
                sop_class_uid=str(ds.SOPClassUID),
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                study_instance_uid=str(ds.StudyInstanceUID),
                series_instance_uid=str(ds.SeriesInstanceUID),
                patient_id=str(ds.PatientID).encode("utf-8").decode("latin-1"),  # as the walk of reception reads it
                path=path,
                length=path.stat().st_size,
                crc32=hash(path) & 0xFFFFFFFF,
                sender=SENDER,
                received_at=datetime.now(UTC),
            )
        )


def assemble(journal: Journal) -> str:
    for series in journal.open_series():
        journal.judge(series, Evidence.SILENCE)
    (row,) = journal.work(Station.ASSEMBLE)
    return Assembler(journal, (Rule("all", "any", (), ("pacs",)),), MODELS, "c" * 64).run(row.id, row.attempt)


@pytest.mark.parametrize(
    ("keyword", "which"), [("PatientID", "newest"), ("PatientID", "oldest"), ("StudyInstanceUID", "newest")]
)
def test_a_person_says_whose_it_is(
    node: Path, scan: list[Path], keyword: str, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job that follows is made of images of the accepted identity alone; who decided, and when, is kept."""
    again = corrected(scan, keyword, "1.2.3.4")
    with Journal.open(load_settings(node).journal_url) as journal:
        receive(journal, scan)
        assert assemble(journal) == "processed"
        receive(journal, again)
        assert assemble(journal) == "quarantined"
        assert main(["retry", "--series", "1", "--accept", which, "--config", str(node)]) == 0
        assert f"{len(scan)} images are kept, {len(scan)} set aside" in capsys.readouterr().out
        assert assemble(journal) == "processed"
        job = journal.list_jobs()[0]
        work = journal.begin_job(job.id, job.attempt)
        assert work is not None
        assert {member.path for member in work.members} == set(again if which == "newest" else scan)
        record = journal.show_series(1)
        assert record is not None
        assert {(i.state, i.reason) for i in record.instances} == {("kept", ""), ("held", "set_aside")}
        (event,) = [e for e in record.events if e.entity == "series" and e.event == "accept"]
        assert event.reason.startswith(f"{which}, by ")
        assert journal.counts().quarantined == {}


def test_the_refused_identity_is_in_doubt_again_when_it_comes_again(node: Path, scan: list[Path]) -> None:
    """What was accepted is the series' identity from now on."""
    with Journal.open(load_settings(node).journal_url) as journal:
        receive(journal, scan)
        receive(journal, corrected(scan, "PatientID", "NEW"))
        assert assemble(journal) == "quarantined"
        assert main(["retry", "--series", "1", "--accept", "newest", "--config", str(node)]) == 0
        assert assemble(journal) == "processed"
        receive(journal, corrected(scan[:1], "StudyDescription", "another"))
        assert assemble(journal) == "quarantined"


def test_what_comes_later_for_the_accepted_patient_is_in_no_doubt(node: Path, scan: list[Path]) -> None:
    """ASM-8: reception compares the bytes of a PatientID, whatever character set they are in."""
    with Journal.open(load_settings(node).journal_url) as journal:
        scan = corrected(scan, "SpecificCharacterSet", "ISO_IR 192")
        receive(journal, scan)
        renamed = corrected(scan, "PatientID", "Zoë")
        receive(journal, renamed)
        assert assemble(journal) == "quarantined"
        assert main(["retry", "--series", "1", "--accept", "newest", "--config", str(node)]) == 0
        assert assemble(journal) == "processed"
        receive(journal, corrected(renamed[:1], "StudyDescription", "another"))
        record = journal.show_series(1)
        assert record is not None
        assert {each.reason for each in record.instances} == {"", "set_aside", "duplicate_uid_other_bytes"}


@pytest.mark.parametrize("seen_by", ["reception", "assembly"])
def test_what_each_answer_would_keep_is_shown(
    node: Path, scan: list[Path], seen_by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """ASM-8: one foreign slice: which it is, in what it differs, and nothing of either patient."""
    keyword, name = {"reception": ("PatientID", "patient_id"), "assembly": ("PatientName", "name")}[seen_by]
    numbers = [int(dcmread(path).InstanceNumber) for path in scan]
    with Journal.open(load_settings(node).journal_url) as journal:
        receive(journal, scan[:3] + scan[4:])
        receive(journal, corrected([scan[3]], keyword, "CANARY"))
        assert assemble(journal) == "quarantined"
        record = journal.show_series(1)
        assert record is not None
        assert (record.summary.evidence, record.summary.completeness) == ("silence", "complete")
        assert f"slices disagree in {name}: " in record.parts[-1].detail
        assert main(["series", "1", "--config", str(node)]) == 0
    shown = capsys.readouterr().out
    rest = f"instances 1-3, 5-{max(numbers)}"
    assert numbers == list(range(1, len(scan) + 1))
    assert f"against instance {numbers[3]}" in shown
    assert f"hilum retry --series 1 --accept oldest: keeps {rest}, sets aside instance 4\n" in shown
    assert f"hilum retry --series 1 --accept newest: keeps instance 4, sets aside {rest}\n" in shown
    assert "CANARY" not in shown
    assert str(dcmread(scan[0]).PatientName) not in shown


def test_a_person_s_word_is_its_own_evidence(node: Path, scan: list[Path]) -> None:
    """Nobody waited for anything: `forced` is of the longest wait alone."""
    with Journal.open(load_settings(node).journal_url) as journal:
        receive(journal, scan)
        assert assemble(journal) == "processed"
        assert main(["retry", "--series", "1", "--config", str(node)]) == 0
        assert assemble(journal) == "processed"
        (series,) = journal.list_series()
        assert (series.evidence, series.completeness) == ("operator", "complete")


def test_slices_without_an_accepted_version_are_told(
    node: Path, scan: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal.open(load_settings(node).journal_url) as journal:
        receive(journal, scan)
        receive(journal, corrected(scan[:-2], "PatientID", "NEW"))
        assert assemble(journal) == "quarantined"
        assert main(["retry", "--series", "1", "--accept", "newest", "--config", str(node)]) == 0
        assert "2 of these came under the other identity alone" in capsys.readouterr().out


def test_what_is_in_doubt_for_another_reason_stays_so(node: Path, scan: list[Path], fast: Path) -> None:
    """An image whose UID stands in two series is nobody's to accept here."""
    with Journal.open(load_settings(node).journal_url) as journal:
        receive(journal, scan)
        other = corrected(scan[:1], "SeriesInstanceUID", "1.2.3")
        receive(journal, other)
        receive(journal, corrected(other, "SOPInstanceUID", "1.2.3.5"))
        receive(journal, corrected(other, "PatientID", "NEW"))
        for series in journal.open_series():
            journal.judge(series, Evidence.SILENCE)
        for row in journal.work(Station.ASSEMBLE):
            Assembler(journal, (Rule("all", "any", (), ("pacs",)),), MODELS, "c" * 64).run(row.id, row.attempt)
        assert main(["retry", "--series", "2", "--accept", "oldest", "--config", str(node)]) == 0
        record = journal.show_series(2)
        assert record is not None
        assert [(each.state, each.reason) for each in record.instances] == [
            ("quarantined", "uid_in_two_series"),
            ("kept", ""),
            ("held", "set_aside"),
        ]


def test_what_is_not_in_doubt_is_left_alone(node: Path, scan: list[Path]) -> None:
    with Journal.open(load_settings(node).journal_url) as journal:
        receive(journal, scan)
        assert assemble(journal) == "processed"
        for words in (["--series", "1"], ["--series", "99"]):
            assert main(["retry", *words, "--accept", "newest", "--config", str(node)]) == 3
        assert main(["retry", "1", "--accept", "newest", "--config", str(node)]) == 2
