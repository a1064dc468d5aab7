"""kill -9 of each role, alone and together: nothing that was acknowledged is lost, and nothing wrong is sent."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from node.domain.job import JobState
from node.domain.series import LISTENER_GONE_S

MakeNode = Callable[..., Any]
Scan = Callable[..., list[Path]]


def test_each_alone_under_load_and_all_at_once(make_node: MakeNode, scan: Scan) -> None:
    """Four series come in while each role is killed once, then all of them."""
    node = make_node()
    node.start()
    series = [scan("a", seed) for seed in range(4)]
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(lambda: [node.send(paths) for paths in series])
        for role in ("listener", "segmenter", "worker"):
            time.sleep(1.5)
            node.kill(role)
            node.start(role)
        time.sleep(1.0)
        node.kill()
        node.start()
        sent.result()
    node.await_end()
    node.check()
    assert len(node.segs()) >= 4
    assert {job.state for job in node.jobs()} <= {JobState.DONE, JobState.CANCELLED}


_CLAIMS_AND_DIES = """
import os, sys
from pathlib import Path
from node.domain.work import Station
from node.workflows import DbosEngine, Executor
def die(row_id, attempt):
    os.kill(os.getpid(), 9)
engine = DbosEngine(Executor(Path(sys.argv[1]), sys.argv[2], frozenset({Station.SEGMENT})), {Station.SEGMENT: die})
engine.launch()
import time; time.sleep(300)
"""


def test_between_the_engines_claim_and_the_journals_begin(make_node: MakeNode, scan: Scan) -> None:
    """T9: the engine has given the job to a process that dies before the journal hears of it."""
    node = make_node()
    node.start("listener", "worker")
    node.send_fast(scan())
    node.await_true(lambda: node.jobs(), "no job was made")
    command = [sys.executable, "-c", _CLAIMS_AND_DIES, str(node.folder / "data" / "engine.db"), "hilum-segmenter-0"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run(command, env=environment, timeout=240, check=False).returncode == -9
    (job,) = node.jobs()
    assert (job.state, job.starts) == (JobState.QUEUED, 0)
    node.start("segmenter")
    node.await_end()
    node.check()
    assert (len(node.segs()), len(node.reports())) == (1, 1)


def test_the_listener_is_dead_for_longer_than_the_quiet_time(make_node: MakeNode, scan: Scan) -> None:
    """T7: in the middle of a series; silence counts only while somebody listens, so it stays one series.

    A listener that is silent for a minute counts as taken down; on a machine so busy that a start takes that long, the
    series may be cut, and only the invariant holds.
    """
    node = make_node(quiet_s=5.0)
    node.start()
    paths = scan()
    node.send_fast(paths[:9])
    node.kill("listener")
    killed = time.monotonic()
    time.sleep(8.0)
    node.start("listener")
    away_s = time.monotonic() - killed
    node.send_fast(paths[9:])
    node.await_end()
    node.check()
    if away_s < LISTENER_GONE_S - 5.0:
        assert [job.revision for job in node.jobs()] == [1]
        assert (len(node.segs()), len(node.reports())) == (1, 1)


def test_the_engines_data_base_is_deleted_while_the_node_is_stopped(make_node: MakeNode, scan: Scan) -> None:
    """The journal is the truth: what the engine had is enqueued again."""
    node = make_node()
    node.start("listener", "worker")
    node.send_fast(scan())
    node.await_true(lambda: node.jobs(), "no job was made")
    node.kill()
    for path in (node.folder / "data").glob("engine.db*"):
        path.unlink()
    node.start()
    node.await_end()
    node.check()
    assert (len(node.segs()), len(node.reports()), node.pdfs()) == (1, 1, 1)


def test_killed_at_random(make_node: MakeNode, scan: Scan) -> None:
    """Half a minute of kill -9 at moments that a seed chooses, while five series come in; each series has one result.

    No role is killed three times: one row may meet every death, and three deaths end it.
    """
    chance = random.Random(20)
    victims = [("listener",), ("listener",), ("worker",), ("segmenter",), ("listener", "worker", "segmenter")]
    chance.shuffle(victims)
    node = make_node(quiet_s=5.0)
    node.start()
    series = [scan("random", seed) for seed in range(5)]
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(lambda: [node.send(paths) for paths in series])
        for roles in victims:
            time.sleep(chance.uniform(2.0, 6.0))
            node.kill(*roles)
            time.sleep(chance.uniform(0.0, 1.0))
            node.start(*roles)
        sent.result()
    node.await_end()
    node.check()
    for uid in node.acknowledged:
        with node.journal() as journal:
            jobs = [job for job in journal.show_series(uid).jobs if job.state is not JobState.CANCELLED]
            sent_uids = [d.sent_sop_instance_uid for job in jobs for d in journal.show_job(job.id).deliveries]
        assert {job.state for job in jobs} == {JobState.DONE}
        assert (len(jobs), len(set(sent_uids))) == (1, 3), "a series has more than one SEG, SR and PDF"
    assert (len(node.segs()), len(node.reports()), node.pdfs()) == (5, 5, 5)
