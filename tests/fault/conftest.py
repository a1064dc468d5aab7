"""A node under attack: real processes on loopback, a small network of fixed weights, an archive that counts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import Dataset, dcmread

from engines.backends.base import Placement
from engines.backends.torch import TorchBackend
from engines.model.bundle import Contents, MemberContents, ParityCrop, write_bundle
from engines.model.network import tensors
from engines.model.plan import Architecture, Channel, Intensities, Plan, Resampling
from node.dicom import scu
from node.domain.history import PartRecord
from node.domain.job import DeliveryState, Destination, JobState, ObjectKind
from node.domain.series import SeriesState
from node.errors import PeerUnavailable
from node.selftest.archive import Archive, Behaviour
from node.selftest.phantom import CT
from node.selftest.scanner import Acquisition, planes_around, write_series
from node.store.journal import Journal

SEG, LABELMAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
SR = "1.2.840.10008.5.1.4.1.1.88.34"
PDF = "1.2.840.10008.5.1.4.1.1.104.1"
MODEL = "fault-test"


def _network(folder: Path) -> None:
    """A U-Net of two stages with fixed random weights: what it says is nonsense, but always the same."""
    architecture = Architecture(
        network="PlainConvUNet",
        features=(2, 4),
        kernels=((3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (2, 2, 2)),
        blocks=(1, 1),
        decoder_blocks=(1,),
        bias=True,
        norm_eps=1e-5,
        norm_affine=True,
        negative_slope=0.01,
    )
    resampling = Resampling("resample_data_or_seg_to_shape", 1, 0, None)
    plan = Plan(
        dataset="Dataset900_FaultTest",
        configuration="3d_fullres",
        reader="SimpleITKIO",
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        patch_size=(8, 16, 16),
        spacing_mm=(12.0, 8.0, 8.0),
        channels=(Channel("CT", "CTNormalization", False, Intensities(0.0, 100.0, -200.0, 200.0)),),
        resampling=resampling,
        logit_resampling=resampling,
        architecture=architecture,
        outputs=3,
    )
    random = np.random.default_rng(4)
    weights = {
        key: random.normal(0, 0.6, shape).astype(np.float32) for key, shape in tensors(architecture, 1, 3).items()
    }
    contents = Contents(
        name=MODEL,
        version="1",
        modalities=("CT", "MR"),
        labels={1: "liver", 2: "spleen"},
        members=[MemberContents("3d_fullres", plan, {"0": weights}, _answer(plan, weights), source={})],
        card="# A network of fixed random weights, for tests of faults.\n",
        storage="float32",
    )
    write_bundle(folder / MODEL, contents)


def _answer(plan: Plan, weights: dict[str, np.ndarray]) -> ParityCrop:
    """The bundle's own self-test: what the network says of noise."""
    noise = np.round(np.random.default_rng(0).standard_normal((1, *plan.patch_size)) * 64).astype(np.float32) / 64
    network = TorchBackend.open(plan, weights, Placement(threads=1))
    return ParityCrop(noise, next(network.answers([torch.from_numpy(noise)])).numpy().copy(), 1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    _network(folder)
    return folder


@pytest.fixture
def fast() -> Iterator[Path]:
    """A folder in memory: a flush of a shared disk would take longer than what is tested."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="hilum-", dir=shm if shm.is_dir() else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def slices(folder: Path, series: str = "a", seed: int = 0) -> list[Path]:
    """A small CT series of the phantom, a file for each slice in order."""
    planes = planes_around(pixel_mm=(8.0, 8.0), step_mm=12.0)
    acquisition = Acquisition(planes, replace(CT), study=f"fault-{seed}", series=series, seed=seed)
    return list(write_series(acquisition, folder / f"{series}-{seed}"))


def wait_until(what: Callable[[], object], timeout_s: float, why: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@dataclass
class Node:
    """A configured node whose roles are processes of the test."""

    folder: Path
    port: int
    archive: Archive
    config: Path
    quiet_s: float
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    acknowledged: dict[str, set[str]] = field(default_factory=dict)
    """SOP Instance UIDs answered 0000, by series."""

    @property
    def data(self) -> Path:
        """Spool, journal and the engine's data base."""
        return self.folder / "data"

    def start(self, *roles: str, program: Sequence[str] = ("-m", "node.cli")) -> None:
        """Start roles; `program` is what Python runs of them."""
        for role in roles or ("listener", "worker", "segmenter"):
            log = (self.folder / f"{role}.log").open("ab")
            command = [sys.executable, *program, "role", role, "--config", str(self.config)]
            environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
            self.processes[role] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        if "listener" in (roles or ("listener",)):
            self.await_echo()

    def await_echo(self) -> None:
        def answers() -> bool:
            process = self.processes["listener"]
            assert process.poll() is None, (self.folder / "listener.log").read_text()[-3000:]
            try:
                scu.echo(self.destination)
            except PeerUnavailable:
                return False
            return True

        wait_until(answers, 150, "the listener does not answer")

    @property
    def destination(self) -> Destination:
        return Destination("node", "HILUM", "127.0.0.1", self.port, "CT1", network_timeout_s=10.0)

    def kill(self, *roles: str) -> None:
        """kill -9."""
        for role in roles or tuple(self.processes):
            self.processes[role].send_signal(signal.SIGKILL)
        for role in roles or tuple(self.processes):
            self.processes.pop(role).wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
        for process in self.processes.values():
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def send(self, paths: Sequence[Path]) -> None:
        """Send as a scanner does: each slice again until it is answered 0000."""
        for path in paths:
            self.send_one(path)

    def send_one(self, path: Path, timeout_s: float = 300.0) -> None:
        ds = dcmread(path, stop_before_pixels=True)
        file = (path, str(ds.SOPClassUID), str(ds.SOPInstanceUID), str(ds.file_meta.TransferSyntaxUID))
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            answers: list[scu.Sent] = []
            try:
                scu.send(self.destination, [file], answers.append)
            except PeerUnavailable:
                time.sleep(0.2)
                continue
            if answers and answers[0].is_stored:
                self.acknowledged.setdefault(str(ds.SeriesInstanceUID), set()).add(str(ds.SOPInstanceUID))
                return
            time.sleep(0.2)
        raise AssertionError(f"{path.name} was not taken within {timeout_s} s")

    def send_fast(self, paths: Sequence[Path]) -> None:
        """One association for all; every one must be taken."""
        headers = self._headers(paths)
        files = [
            (p, str(h.SOPClassUID), str(h.SOPInstanceUID), str(h.file_meta.TransferSyntaxUID))
            for p, h in zip(paths, headers, strict=True)
        ]
        answers = scu.send(self.destination, files, lambda _: None)
        assert all(answer.is_stored for answer in answers)
        self.took(paths)

    def took(self, paths: Sequence[Path]) -> None:
        """Note what was answered 0000."""
        for header in self._headers(paths):
            self.acknowledged.setdefault(str(header.SeriesInstanceUID), set()).add(str(header.SOPInstanceUID))

    @staticmethod
    def _headers(paths: Sequence[Path]) -> list[Dataset]:
        return [dcmread(path, stop_before_pixels=True) for path in paths]

    def journal(self) -> Journal:
        return Journal.open(f"sqlite:///{self.data / 'journal.db'}")

    def settled(self) -> bool:
        """Whether everything that was acknowledged has come to its end."""
        with self.journal() as journal:
            series = journal.list_series(limit=1000)
            jobs = journal.list_jobs(limit=1000)
            ended = all(
                job.state in (JobState.DONE, JobState.REJECTED, JobState.CANCELLED, JobState.FAILED) for job in jobs
            )
            return (
                len(series) == len(self.acknowledged) and ended and all(s.state == SeriesState.SETTLED for s in series)
            )

    def await_end(self, timeout_s: float = 240.0) -> None:
        self.await_true(self.settled, "not everything came to an end", timeout_s)

    def segs(self) -> list[str]:
        """SOP Instance UIDs of the SEGs that the archive holds."""
        return [kept.sop_instance_uid for form in (SEG, LABELMAP) for kept in self.archive.objects(form)]

    def reports(self) -> list[Path]:
        """The reports that the archive holds, in the order in which they came."""
        return [kept.path for kept in self.archive.objects(SR)]

    def sources(self, report: Path) -> set[str]:
        """The instances that a result says it was made from."""
        ds = dcmread(report)
        studies = ds.CurrentRequestedProcedureEvidenceSequence
        items = [item for study in studies for item in study.ReferencedSeriesSequence]
        return {str(ref.ReferencedSOPInstanceUID) for item in items for ref in item.ReferencedSOPSequence}

    def pdfs(self) -> int:
        return len(self.archive.objects(PDF))

    def jobs(self) -> list[Any]:
        with self.journal() as journal:
            return list(journal.list_jobs(limit=1000))

    def deliveries(self) -> list[Any]:
        with self.journal() as journal:
            return [delivery for job in journal.list_jobs() for delivery in journal.show_job(job.id).deliveries]

    def await_true(self, what: Callable[[], object], why: str, timeout_s: float = 240.0) -> None:
        try:
            wait_until(what, timeout_s, why)
        except AssertionError:
            print(self.story())
            raise

    def archive_again(self, behaviour: Behaviour | None = None) -> None:
        """The PACS comes back, at the same place, with what it had."""
        self.archive = Archive(self.folder / "archive", port=self.archive.port, behaviour=behaviour)

    def check(self) -> None:
        check_invariant(self)

    def story(self) -> str:
        """What the journal says, for a test that failed."""
        lines = []
        with self.journal() as journal:
            for summary in journal.list_series(limit=100):
                lines.append(str(summary))
            for job in journal.list_jobs(limit=100):
                record = journal.show_job(job.id)
                assert record is not None
                lines.append(f"{job}\n{record.detail}")
                lines.extend(f"   {event}" for event in record.events)
        for role in ("listener", "worker", "segmenter"):
            log = self.folder / f"{role}.log"
            lines.append(f"--- {role}\n" + (log.read_text()[-4000:] if log.exists() else ""))
        return "\n".join(lines)


def check_invariant(node: Node) -> None:
    """What was answered 0000 ends in exactly one terminal state with a reason; the newest result sent for a series
    contains every acknowledged slice; nothing older is sent after it."""
    with node.journal() as journal:
        for series_uid, acknowledged in node.acknowledged.items():
            record = journal.show_series(series_uid)
            assert record is not None, "an acknowledged series is not in the journal"
            kept = {i.sop_instance_uid for i in record.instances}
            assert acknowledged <= kept, f"{len(acknowledged - kept)} acknowledged slices are lost"
            assert record.summary.state == SeriesState.SETTLED
            assert record.summary.outcome
            newest = [p for p in record.parts if p.revision == record.summary.revision]
            placed = {uid for p in newest for uid in p.sop_instance_uids} | {d[0] for p in newest for d in p.dropped}
            placed |= {i.sop_instance_uid for i in record.instances if i.state != "kept"}
            assert acknowledged <= placed, f"{len(acknowledged - placed)} acknowledged slices have no terminal reason"
            assert all(p.job_id is not None or p.reason for p in newest)
            for part in newest:
                _check_report(node, journal, part)
            _check_sent(node, journal, series_uid)


def _check_report(node: Node, journal: Journal, part: PartRecord) -> None:
    """The report of a scan, where it was sent, names each slice of it."""
    job = None if part.job_id is None else journal.show_job(part.job_id)
    if job is None or job.job.state is not JobState.DONE:
        return
    sent = {d.sent_sop_instance_uid for d in job.deliveries if d.kind is ObjectKind.SR and d.sent_sop_instance_uid}
    for kept in node.archive.objects(SR):
        if kept.sop_instance_uid in sent:
            missing = set(part.sop_instance_uids) - node.sources(kept.path)
            assert not missing, f"the newest report lacks {len(missing)} slices"


def _check_sent(node: Node, journal: Journal, series_uid: str) -> None:
    """The order in which the archive took the results of one series."""
    record = journal.show_series(series_uid)
    assert record is not None
    revision_of = {
        delivery.sent_sop_instance_uid: job.revision
        for job in record.jobs
        for delivery in journal.show_job(job.id).deliveries
        if delivery.sent_sop_instance_uid
    }
    taken = [kept.sop_instance_uid for kept in node.archive.received if kept.status == 0]
    order = [revision_of[uid] for uid in taken if uid in revision_of]
    assert order == sorted(order), f"an older result was sent after a newer one: {order}"
    done = [job for job in record.jobs if job.state is JobState.DONE and job.revision == record.summary.revision]
    for job in done:
        states = {d.state for d in journal.show_job(job.id).deliveries}
        if states == {DeliveryState.SENT}:
            assert max(order) == record.summary.revision or record.summary.revision > 1


@pytest.fixture
def scan(fast: Path) -> Callable[..., list[Path]]:
    """Makes a small CT series; returns a file for each slice in order."""
    return lambda series="a", seed=0: slices(fast / "scanner", series, seed)


@pytest.fixture
def make_node(fast: Path, models: Path, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(behaviour: Behaviour | None = None, quiet_s: float = 2.0, **toml: object) -> Node:
        archive = Archive(fast / "archive", behaviour=behaviour)
        port = free_port()
        config = fast / "node.toml"
        config.write_text(_toml(port, archive, models, quiet_s, **toml))
        node = Node(fast, port, archive, config, quiet_s)
        made.append(node)
        return node

    yield make
    for node in made:
        node.stop()
        node.archive.stop()
        if os.environ.get("HILUM_KEEP_LOGS"):
            shutil.copytree(fast, Path(os.environ["HILUM_KEEP_LOGS"]) / tmp_path.name, dirs_exist_ok=True)


def _toml(
    port: int,
    archive: Archive,
    models: Path,
    quiet_s: float,
    force_s: float = 90.0,
    retry_s: float = 0.5,
    reserve_bytes: int = 1_000_000,
) -> str:
    return f"""
[node]
data_dir = "data"
serial = "fault-test"
[listener]
host = "127.0.0.1"
port = {port}
stop_grace_s = 5.0
[[peer]]
name = "ct1"
ae_title = "CT1"
addresses = ["127.0.0.1"]
[[destination]]
name = "pacs"
ae_title = {json.dumps(archive.ae_title)}
host = "127.0.0.1"
port = {archive.port}
first_retry_s = {retry_s}
longest_retry_s = {retry_s * 2}
timeout_s = 5.0
[[rule]]
name = "all"
model = "{MODEL}"
destinations = ["pacs"]
allow_selftest_model = true
[models]
folders = [{json.dumps(str(models))}]
enabled = ["{MODEL}"]
[segmenter]
engines = ["torch"]
threads = 1
[completion]
quiet_s = {quiet_s}
released_quiet_s = {quiet_s}
force_s = {force_s}
[spool]
reserve_bytes = {reserve_bytes}
[monitor]
listener_port = 0
worker_port = 0
segmenter_port = 0
"""
