"""Seconds of each stage from the last slice to the stored results, through a node as `hilum serve` runs it.

    PYTHONPATH=. python tests/benchmark/stages.py [--rounds 3] [--series FOLDER] [--json FILE]

A CT phantom of 512 x 512 pixels, and where a folder is named the CT series of most slices in it, go by C-STORE to a
node with an archive on loopback; each round is a new study. Both are segmented by the shipped `phantom` network: what
it finds in a real patient means nothing, the time that it takes is that of a network of its size. Times are the node's
own: its histograms, read from its ports before and after each series, and the history of the job in its journal. One
round of each series goes ahead unmeasured, so that the model is open.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from machine import described, machine, table, write_section
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import generate_uid

from node.dicom import scu
from node.domain.job import ENDED_JOBS, Destination, JobState
from node.errors import PeerUnavailable
from node.selftest.archive import Archive
from node.selftest.phantom import CT
from node.selftest.scanner import Acquisition, planes_around, write_series
from node.store.journal import Journal

STAGES = {
    "settle": "from the last slice until the series is taken as whole",
    "assemble": "read headers, split, judge geometry, choose the model",
    "load": "read and decode the pixels",
    "segment": "preprocess, network, labels",
    "measure": "volumes and flags",
    "compose": "SEG, SR and PDF written, flushed and read back",
    "readback": "the part of `compose` that reads back and compares",
    "deliver": "three objects sent, each over an association of its own",
    "between": "waits for the next station",
    "turnaround": "from the last slice to the last object stored",
}
CALLING, RELEASED_QUIET_S = "BENCHMARK", 2.0
CONFIG = """
[node]
data_dir = "data"
serial = "benchmark"
[listener]
host = "127.0.0.1"
port = {dicom}
[[peer]]
name = "scanner"
ae_title = "{calling}"
addresses = ["127.0.0.1"]
[[destination]]
name = "archive"
ae_title = "{archive.ae_title}"
host = "{archive.host}"
port = {archive.port}
[[rule]]
name = "everything"
model = "phantom"
destinations = ["archive"]
allow_selftest_model = true
[completion]
quiet_s = 8.0
released_quiet_s = {quiet}
[spool]
reserve_bytes = 1000000
[monitor]
listener_port = {listener}
worker_port = {worker}
segmenter_port = {segmenter}
"""


@dataclass(frozen=True)
class Node:
    """A running node, seen from outside."""

    folder: Path
    dicom: Destination
    monitor_ports: tuple[int, ...]

    def sums(self) -> dict[str, float]:
        """The sums of its histograms over all labels but the stage."""
        found: dict[str, float] = defaultdict(float)
        for port in self.monitor_ports:
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            for name, labels, value in re.findall(r"^hilum_(\w+)_seconds_sum(\S*) (\S+)$", text, re.MULTILINE):
                stage = re.search(r'stage="(\w+)"', labels)
                found[stage[1] if stage else name] += float(value)
        return found

    def send(self, paths: Sequence[Path]) -> str:
        """Store a series over one association; returns its UID."""
        headers = [dcmread(path, stop_before_pixels=True) for path in paths]
        files = [
            (path, str(ds.SOPClassUID), str(ds.SOPInstanceUID), str(ds.file_meta.TransferSyntaxUID))
            for path, ds in zip(paths, headers, strict=True)
        ]
        for sent in scu.send(self.dicom, files, lambda _: None):
            if not sent.is_stored:
                raise RuntimeError(f"not stored: {sent.outcome} {sent.detail}")
        return str(headers[0].SeriesInstanceUID)

    def result_of(self, series: str, timeout_s: float = 900.0) -> Mapping[str, Any]:
        """What the journal keeps of the one job of a series, once all of it is delivered."""
        deadline = time.monotonic() + timeout_s
        with Journal.open(f"sqlite:///{self.folder}/data/journal.db") as journal:
            while time.monotonic() < deadline:
                record = journal.show_series(series)
                jobs = record.jobs if record is not None else ()
                if jobs and all(job.state in ENDED_JOBS for job in jobs):
                    if [job.state for job in jobs] != [JobState.DONE]:
                        raise RuntimeError(f"{series}: its jobs ended as {[str(job.state) for job in jobs]}")
                    job = journal.show_job(jobs[0].id)
                    assert job is not None
                    return job.result
                time.sleep(0.2)
        raise RuntimeError(f"{series}: no result in {timeout_s:.0f} s; see {self.folder}/node.log")


@contextmanager
def serving(folder: Path, archive: Archive) -> Iterator[Node]:
    """`hilum serve` in a folder, answering."""
    dicom, *monitor = _free_ports(4)
    config = CONFIG.format(
        dicom=dicom,
        calling=CALLING,
        archive=archive,
        quiet=RELEASED_QUIET_S,
        listener=monitor[0],
        worker=monitor[1],
        segmenter=monitor[2],
    )
    (folder / "node.toml").write_text(config, encoding="utf-8")
    command = [sys.executable, "-m", "node.cli", "serve", "--config", str(folder / "node.toml")]
    with (folder / "node.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env={**os.environ})
    node = Node(folder, Destination("node", "HILUM", "127.0.0.1", dicom, CALLING), tuple(monitor))
    try:
        _wait_for(node, process)
        yield node
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(node: Node, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            scu.echo(node.dicom)
            node.sums()
        except (PeerUnavailable, OSError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the node does not start; see {node.folder}/node.log") from error
            time.sleep(0.5)
        else:
            return


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


# --- what is sent -----------------------------------------------------------------------------------------------------


def phantom(folder: Path) -> list[Path]:
    """An axial CT of the standard patient, 512 x 512 pixels, slices of 3 mm."""
    small = planes_around(step_mm=3.0)
    pixel = tuple(size * spacing / 512 for size, spacing in zip(small.shape[1:], (2.0, 2.0), strict=True))
    planes = planes_around(step_mm=3.0, pixel_mm=(pixel[0], pixel[1]))
    return write_series(Acquisition(planes, CT, study="benchmark", description="Phantom CT"), folder)


def largest_ct(folder: Path) -> list[Path]:
    """The files of the CT series of most slices in a folder."""
    series: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        try:
            ds = dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            continue
        if ds.get("Modality") == "CT" and "ImagePositionPatient" in ds and ds.get("SeriesInstanceUID"):
            series[str(ds.SeriesInstanceUID)].append(path)
    if not series:
        raise SystemExit(f"{folder}: no CT series")
    return max(series.values(), key=len)


def renamed(paths: Sequence[Path], folder: Path) -> list[Path]:
    """The same images as a new study of their own."""
    folder.mkdir(parents=True)
    study, series = generate_uid(), generate_uid()
    written = []
    for number, path in enumerate(paths):
        ds = dcmread(path)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        written.append(folder / f"{number:04}.dcm")
        ds.save_as(written[-1])
    return written


# --- measuring --------------------------------------------------------------------------------------------------------


def one_round(node: Node, paths: Sequence[Path]) -> dict[str, float]:
    """Seconds of each stage for one series."""
    before = node.sums()
    began = time.monotonic()
    series = node.send(paths)
    sent = time.monotonic()
    result = node.result_of(series)
    time.sleep(0.5)  # the worker counts after it has written
    after = node.sums()
    spent = {name: value - before[name] for name, value in after.items()}
    own = result["seconds"]
    seconds = {
        "send": sent - began,
        "settle": spent["completion_wait"],
        "assemble": spent["assemble"],
        "load": own["load"],
        "segment": own["segment"],
        "measure": own["measure"],
        "compose": own["compose"],
        "readback": own["readback"],
        "deliver": spent["deliver"],
        "turnaround": spent["turnaround"],
    }
    known = ("settle", "assemble", "load", "segment", "measure", "compose", "deliver")
    return {**seconds, "between": seconds["turnaround"] - sum(seconds[name] for name in known)}


def measure(node: Node, cases: Mapping[str, Sequence[Path]], rounds: int) -> dict[str, Any]:
    """Every series in interleaved rounds; medians of each stage."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, paths in cases.items():
            seconds = one_round(node, renamed(paths, node.folder / f"{name}-{number}"))
            word = f"round {number}" if number else "ahead"
            print(f"{word} {name}: {seconds['turnaround']:.1f} s", file=sys.stderr, flush=True)
            if number:
                taken[name].append(seconds)
    return {
        name: {
            "slices": len(cases[name]),
            "median": {stage: statistics.median(each[stage] for each in runs) for stage in runs[0]},
            "rounds": runs,
        }
        for name, runs in taken.items()
    }


def show(found: Mapping[str, Any]) -> str:
    """The medians as Markdown."""
    cases = found["cases"]
    rows = [
        [f"`{stage}`: {what}", *(f"{case['median'][stage]:.2f}" for case in cases.values())]
        for stage, what in STAGES.items()
    ]
    heads = [f"{name}, {case['slices']} slices" for name, case in cases.items()]
    return "\n\n".join(
        (
            described(found["machine"]),
            f"{found['rounds']} rounds; `released_quiet_s` = {RELEASED_QUIET_S}; backend {found['backend']}.",
            table(["seconds, median", *heads], rows),
        )
    )


def main() -> None:
    """Measure, print the table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--series", type=Path, help="folder with a real CT series")
    parser.add_argument("--folder", type=Path, help="on the disk to measure on; default: the temporary one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="put the tables into this Markdown page, as docs/performance.md")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the node must end with us
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="hilum-stages-") as name:
        folder = Path(name)
        cases = {"phantom CT": phantom(folder / "phantom")}
        if options.series is not None:
            cases["real CT"] = largest_ct(options.series)
        found: dict[str, Any] = {
            "machine": machine(folder, ("torch", "openvino", "highdicom", "pynetdicom")),
            "at": datetime.now().astimezone().isoformat(timespec="seconds"),
            "rounds": options.rounds,
        }
        with Archive(folder / "archive") as archive, serving(folder, archive) as node:
            found["cases"] = measure(node, cases, options.rounds)
            with Journal.open(f"sqlite:///{folder}/data/journal.db") as journal:
                newest = journal.show_job(journal.list_jobs(limit=1)[0].id)
            found["backend"] = str(newest.result["backend"]) if newest is not None else ""
    print(show(found))
    if options.page is not None:
        write_section(options.page, "stages", show(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
