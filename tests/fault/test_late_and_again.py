"""Slices that come late, series that come again, results that come back: the newest result holds every slice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom import dcmread

from node.domain.job import JobState
from node.selftest.archive import Behaviour

MakeNode = Callable[..., Any]
Scan = Callable[..., list[Path]]
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


def holds_all(node: Any, report: Path) -> bool:
    (acknowledged,) = node.acknowledged.values()
    return bool(acknowledged <= node.sources(report))


def test_the_same_series_three_times(make_node: MakeNode, scan: Scan) -> None:
    """NET-12: one SEG and one SR, whether the repetition comes before or after the result."""
    node = make_node()
    node.start()
    paths = scan()
    node.send_fast(paths)
    node.send_fast(paths)
    node.await_end()
    node.send_fast(paths)
    node.await_end()
    node.check()
    assert (len(node.segs()), len(node.reports()), node.pdfs()) == (1, 1, 1)
    assert len(node.jobs()) == 1


def test_our_own_result_comes_back(make_node: MakeNode, scan: Scan) -> None:
    """NET-36: a PACS that forwards everything; it is stored, held, and starts nothing."""
    node = make_node()
    node.start()
    node.send_fast(scan())
    node.await_end()
    (seg,) = node.archive.objects(SEG)
    node.send_fast([seg.path])
    node.await_end()
    node.check()
    assert len(node.jobs()) == 1
    with node.journal() as journal:
        came = {(series.outcome, series.reason) for series in journal.list_series()}
        assert came == {("processed", ""), ("held", "own_result")}


def test_a_late_slice_before_and_while_the_result_is_made(make_node: MakeNode, scan: Scan) -> None:
    """The job that lacks it is cancelled, QUEUED or RUNNING; one result leaves, and it holds all."""
    node = make_node()
    node.start("listener", "worker")
    paths = scan()
    node.send_fast(paths[:-2])
    node.await_true(lambda: node.jobs(), "no job was made")
    node.send_fast([paths[-2]])
    assert node.jobs()[-1].state is JobState.CANCELLED
    node.start("segmenter")
    node.await_true(lambda: any(job.state is JobState.RUNNING for job in node.jobs()), "nothing runs")
    node.send_fast([paths[-1]])
    node.await_end()
    node.check()
    assert [job.state for job in node.jobs()] == [JobState.DONE, JobState.CANCELLED, JobState.CANCELLED]
    assert len(node.segs()) == 1
    (report,) = node.reports()
    assert holds_all(node, report)


def test_a_late_slice_after_a_refused_send_and_after_the_result(make_node: MakeNode, scan: Scan) -> None:
    """T5: what was refused is not tried again once it is overtaken; what was sent is followed by one that names it."""
    node = make_node(Behaviour(statuses={SEG: 0xA700}))
    node.start()
    paths = scan()
    node.send_fast(paths[:-2])
    node.await_true(lambda: any(d.tries for d in node.deliveries()), "nothing was refused")
    node.send_fast([paths[-2]])
    node.archive.behaviour = Behaviour()
    node.await_end()
    node.check()
    assert len(node.segs()) == 1
    (first,) = node.reports()
    assert holds_all(node, first)
    node.send_fast([paths[-1]])
    node.await_end()
    node.check()
    assert len(node.segs()) == 2
    second = next(path for path in node.reports() if path != first)
    assert holds_all(node, second)
    (study,) = dcmread(second).PredecessorDocumentsSequence
    (named,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert named.ReferencedSOPInstanceUID == dcmread(first).SOPInstanceUID


def test_a_missing_slice(make_node: MakeNode, scan: Scan) -> None:
    """ASM-3: it is waited for; after the longest wait the series ends with the reason."""
    node = make_node(force_s=12.0)
    node.start("listener", "worker")
    paths = scan()
    node.send_fast([*paths[:8], *paths[9:]])
    node.await_end()
    node.check()
    assert node.jobs() == []
    with node.journal() as journal:
        (series,) = journal.list_series()
    assert (series.outcome, series.reason, series.evidence) == ("ineligible", "missing_slices", "forced")
