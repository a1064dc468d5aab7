"""A segmenter that is stopped past its lease and woken, or that a series kills again and again: real processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.domain.job import JobState
from node.store.spool import RESULTS

pytestmark = pytest.mark.timeout(600)

MakeNode = Callable[..., Any]
Scan = Callable[..., list[Path]]

_SHORT_LEASES = """
import sys
from functools import partial
from node.service import worker
worker.SweepPolicy = partial(worker.SweepPolicy, ttl_s=6.0)
from node.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""A worker that takes over after 6 s, not 30: the test is as long as the lease."""


def jobs_of(node: Any, paths: list[Path]) -> list[Any]:
    (uid,) = {str(header.SeriesInstanceUID) for header in node._headers(paths)}
    with node.journal() as journal:
        record = journal.show_series(uid)
    return [] if record is None else list(record.jobs)


def runs(node: Any, paths: list[Path]) -> bool:
    return any(job.state is JobState.RUNNING for job in jobs_of(node, paths))


def await_run(node: Any, paths: list[Path]) -> None:
    """Wait, in short steps, until a job of the series runs."""
    deadline = time.monotonic() + 240.0
    while not runs(node, paths):
        assert time.monotonic() < deadline, node.story()
        time.sleep(0.01)


def test_stopped_past_its_lease_and_woken(make_node: MakeNode, scan: Scan) -> None:
    """SIGSTOP, then SIGCONT: what was taken over, or overtaken by a late slice, in between is not committed again."""
    node = make_node()
    node.start("listener", "segmenter")
    node.start("worker", program=("-c", _SHORT_LEASES))
    segmenter = node.processes["segmenter"]
    taken = scan("taken")
    node.send_fast(taken)
    await_run(node, taken)
    segmenter.send_signal(signal.SIGSTOP)
    node.await_true(lambda: jobs_of(node, taken)[0].attempt > 1, "the job was not taken over")
    assert jobs_of(node, taken)[0].state is JobState.QUEUED
    segmenter.send_signal(signal.SIGCONT)
    node.await_end()

    late = scan("late", 1)
    node.send_fast(late[:-1])
    await_run(node, late)
    segmenter.send_signal(signal.SIGSTOP)
    node.send_fast(late[-1:])
    assert jobs_of(node, late)[0].state is JobState.CANCELLED
    segmenter.send_signal(signal.SIGCONT)
    node.await_end()

    node.check()
    assert segmenter.poll() is None
    assert [job.state for job in jobs_of(node, taken)] == [JobState.DONE]
    assert [job.state for job in jobs_of(node, late)] == [JobState.CANCELLED, JobState.DONE]
    assert (len(node.segs()), len(node.reports()), node.pdfs()) == (2, 2, 2)
    sent = [kept.sop_instance_uid for kept in node.archive.received]
    assert len(sent) == len(set(sent)), "a result was sent twice"
    with node.journal() as journal:
        kept = {Path(o.path).name for job in node.jobs() for o in journal.show_job(job.id).objects}
    assert {path.name for path in (node.data / "spool" / RESULTS).iterdir()} == kept, "the loser's files remain"


def test_a_series_that_kills_its_segmenter(make_node: MakeNode, scan: Scan) -> None:
    """Three deaths over one job end it, visibly; the others are segmented; `hilum retry` gives it three more."""
    node = make_node()
    node.start("listener", "worker")
    poison, others = scan("poison"), [scan("other", seed) for seed in (1, 2)]
    node.send_fast(poison)
    node.await_true(lambda: jobs_of(node, poison), "no job was made")
    for paths in others:
        node.send_fast(paths)
    node.start("segmenter")
    deaths = 0
    while (job := jobs_of(node, poison)[0]).state in (JobState.QUEUED, JobState.RUNNING):
        if job.state is JobState.RUNNING and job.starts > deaths:
            node.kill("segmenter")
            deaths += 1
            node.start("segmenter")
        assert deaths <= 3, "it is tried for ever"
        time.sleep(0.01)
    node.await_end()
    node.check()
    (job,) = jobs_of(node, poison)
    assert (job.state, job.reason, deaths) == (JobState.FAILED, "crashed", 3)
    assert [job.state for paths in others for job in jobs_of(node, paths)] == [JobState.DONE, JobState.DONE]
    assert len(node.segs()) == 2
    with node.journal() as journal:
        journal.retry(job.id)
    node.await_end()
    node.check()
    assert jobs_of(node, poison)[0].state is JobState.DONE
    assert (len(node.segs()), len(node.reports())) == (3, 3)
