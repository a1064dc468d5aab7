"""The PACS is away, or takes no segmentations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from node.domain.job import DeliveryState, JobState
from node.selftest.archive import Behaviour

MakeNode = Callable[..., Any]
Scan = Callable[..., list[Path]]


def test_down_for_the_whole_time_and_then_back(make_node: MakeNode, scan: Scan) -> None:
    """NET-23: the delivery waits in the journal, and arrives once."""
    node = make_node()
    node.archive.stop()
    node.start()
    node.send_fast(scan())
    node.await_true(lambda: any(d.tries >= 2 for d in node.deliveries()), "nothing was tried")
    node.archive_again()
    node.await_end()
    node.check()
    assert (len(node.segs()), len(node.reports()), node.pdfs()) == (1, 1, 1)
    assert {job.state for job in node.jobs()} == {JobState.DONE}


def test_rejects_seg(make_node: MakeNode, scan: Scan) -> None:
    """A dead letter with its reason; the report that would refer to it does not go, the readable report does."""
    classes = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
    node = make_node(Behaviour(refused_sop_classes=classes))
    node.start()
    node.send_fast(scan())
    node.await_end()
    node.check()
    seg, report, pdf = node.deliveries()
    assert (seg.state, seg.reason.split(":")[0]) == (DeliveryState.FAILED, "refused")
    assert (report.state, report.reason) == (DeliveryState.FAILED, "segmentation_refused")
    assert pdf.state is DeliveryState.SENT
    assert (len(node.segs()), len(node.reports()), node.pdfs()) == (0, 0, 1)
