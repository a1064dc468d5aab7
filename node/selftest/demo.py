"""The demo and the self-test: a node of its own is sent a phantom patient; what it delivers is compared with the truth.

Both take the whole road through real parts: DICOM in over several associations, the roles as processes, results out
to an archive and back from there. They differ in the archive: the demo starts a small one, the self-test uses the
configured PACS.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from engines.model.bundle import SHIPPED, find_bundles
from node.config import Settings, load_settings
from node.dicom import scu
from node.dicom.headers import read_header
from node.dicom.pixels import read_volume
from node.domain.job import Destination
from node.domain.routing import SELFTEST_AE_TITLE
from node.domain.segments import SegmentDescription, load_segments
from node.domain.stack import Stack, split
from node.errors import HilumError, PeerUnavailable
from node.selftest.archive import Archive
from node.selftest.check import Verdict, compare_with_label_map, judge, read_seg, read_sr, table
from node.selftest.configuration import node_toml
from node.selftest.phantom import CT, MR, rotation
from node.selftest.picture import write_overlay
from node.selftest.retrieve import LABEL_MAP, ByAssociation, OverTheWeb, Reader, retrievable
from node.selftest.scanner import Acquisition, planes_around, write_series
from node.service.engines import open_model

MODEL = "phantom"
PARTS = 2
"""Associations over which each series is sent."""

_START_S = 180.0
_STOP_S = 60.0
_POLL_S = 1.0
_KINDS = ("SEG", "SR", "DOC")

Progress = Callable[[str], None]


class SelfTestFailed(HilumError):
    """The road broke before there was a result to judge; the message says where, and names the log."""


@dataclass(frozen=True)
class Outcome:
    """What a demo or self-test ends with.

    Attributes
    ----------
    files
        What each file or folder is, by its path.
    """

    verdict: Verdict
    files: Mapping[Path, str]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.verdict.violations

    def lines(self) -> Iterator[str]:
        """The whole outcome for a reader."""
        yield table(self.verdict.rows)
        for path, what in self.files.items():
            yield f"{what}: {path}"
        yield from (f"VIOLATION: {violation}" for violation in self.verdict.violations)
        yield "passed: every organ agrees with the truth" if self.passed else "FAILED"


def run_demo(folder: Path, progress: Progress, timeout_s: float = 900.0) -> Outcome:
    """Start a node and a small archive on loopback, send the phantom patient, and judge what arrives.

    Parameters
    ----------
    folder
        Where everything is written; what an earlier demo left there is not read again.

    Raises
    ------
    SelfTestFailed
        Where the node does not start, or results do not come in time.
    """
    folder = _new_folder(folder)
    with Archive(folder / "archive") as archive:
        destination = Destination("archive", archive.ae_title, archive.host, archive.port, "HILUM")
        reader = ByAssociation(destination)
        return _through_a_node(Settings(), destination, reader, folder, progress, timeout_s=timeout_s, seed=0)


def run_selftest(
    settings: Settings, destination: str, folder: Path, progress: Progress, timeout_s: float = 900.0
) -> Outcome:
    """The same through a configured PACS: a node with these settings delivers to it; results are read back from it.

    They are read by C-GET, or over the web where the destination has a `dicomweb_url`. The node is started beside the
    one that may be running, with data and a port of its own; models, device, AE title and the destination are those of
    the settings.

    Raises
    ------
    SelfTestFailed
        As `run_demo`, and where the PACS offers no way to read results back.
    """
    peer = settings.destinations().get(destination)
    if peer is None:
        raise SelfTestFailed(f"no [[destination]] has the name {destination!r}")
    peer, reader = _way_back(peer, progress)
    return _through_a_node(settings, peer, reader, _new_folder(folder), progress, timeout_s=timeout_s, seed=_seed())


def _seed() -> int:
    """Another study at each run, for a PACS keeps what it was sent before."""
    return int(time.time())


def _way_back(peer: Destination, progress: Progress) -> tuple[Destination, Reader]:
    """How results are read back, and the destination with a form of segmentation that comes back that way."""
    if peer.dicomweb_url:
        return peer, OverTheWeb(peer)
    classes = retrievable(peer)
    if not classes:
        raise SelfTestFailed(
            f"{peer.name} offers no C-FIND and C-GET to {peer.calling_ae_title}, and has no dicomweb_url: "
            "nothing can be read back"
        )
    if LABEL_MAP not in classes and peer.seg != "binary":
        progress(f"{peer.name} gives no label maps back by C-GET: this test sends it a BINARY segmentation")
        peer = replace(peer, seg="binary")
    return peer, ByAssociation(peer)


def acquisitions(seed: int) -> tuple[Acquisition, ...]:
    """The phantom patient's study: an oblique axial CT and an oblique sagittal MR."""
    ct = planes_around(turn=rotation(12.0, -9.0, 11.0), pixel_mm=(3.0, 3.0), step_mm=3.0)
    mr = planes_around(plane="sagittal", turn=rotation(-10.0, 8.0, 12.0), pixel_mm=(3.0, 3.0), step_mm=3.0)
    return (
        Acquisition(ct, CT, study="demo", seed=seed, series_number=1, description="Phantom CT, oblique"),
        Acquisition(mr, MR, study="demo", seed=seed, series_number=2, description="Phantom MR, oblique sagittal"),
    )


def _new_folder(folder: Path) -> Path:
    """A folder for this run inside the one that was asked for, named by the local time."""
    run = folder.absolute() / time.strftime("%Y-%m-%d-%H%M%S")
    run.mkdir(parents=True)
    return run


def _through_a_node(
    settings: Settings,
    archive: Destination,
    reader: Reader,
    folder: Path,
    progress: Progress,
    *,
    timeout_s: float,
    seed: int,
) -> Outcome:
    scanner = Destination("node", settings.node.ae_title, "127.0.0.1", _free_port(), SELFTEST_AE_TITLE)
    config = folder / "node.toml"
    config.write_text(node_toml(settings, archive, scanner.port, MODEL), encoding="utf-8")
    of_the_node = load_settings(config)
    study = acquisitions(seed)
    progress("writing the images of the phantom patient")
    images = {a.contrast.modality: write_series(a, folder / "images" / a.contrast.modality) for a in study}
    progress(f"starting the node; its log: {config.with_name('node.log')}")
    with _node(config, scanner) as node:
        started = time.monotonic()
        progress("the node is up; sending")
        with _told_of(scanner, node):
            _send(scanner, list(images.values()))
        count = sum(len(paths) for paths in images.values())
        progress(f"{count} images sent over {PARTS * len(images)} associations")
        with _told_of(archive, node):
            series = _wait_for_results(reader, study, node, progress, deadline=started + timeout_s)
        progress(f"all results are in the archive, {time.monotonic() - started:.0f} s after the first image")
        with _told_of(archive, node):
            results = reader.get_series(study[0].study_instance_uid, series, folder / "results")
    progress("results fetched; comparing them with the truth and with the label map")
    return _judged(of_the_node, study, images, results, folder)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@dataclass(frozen=True, eq=False)
class _Node:
    """A running node, its configuration, and what it says."""

    process: subprocess.Popen[bytes]
    config: Path
    log: Path

    def must_run(self) -> None:
        """Raise SelfTestFailed where it has ended."""
        if self.process.poll() is not None:
            raise SelfTestFailed(f"the node ended with status {self.process.returncode}; see {self.log}")


@contextmanager
def _node(config: Path, scanner: Destination) -> Iterator[_Node]:
    """`hilum serve` as a process group of its own, answering C-ECHO; stopped at the end."""
    command = [sys.executable, "-m", "node.cli", "serve", "--config", str(config)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    log = config.with_name("node.log")
    with log.open("wb") as output, _sigterm_as_exit():
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=environment)
        try:
            node = _Node(process, config, log)
            _wait_until_it_answers(node, scanner)
            yield node
        finally:
            _stop(process)


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that the node which was started is stopped too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait_until_it_answers(node: _Node, scanner: Destination) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        node.must_run()
        try:
            scu.echo(scanner)
        except PeerUnavailable:
            time.sleep(0.3)
        else:
            return
    raise SelfTestFailed(f"the node did not answer C-ECHO within {_START_S:.0f} s; see {node.log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the supervisor to stop its roles; after a while, end the whole group."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _told_of(peer: Destination, node: _Node) -> Iterator[None]:
    """Name the peer that does not answer, and where to look."""
    try:
        yield
    except PeerUnavailable as error:
        where = f"{peer.name} ({peer.ae_title} at {peer.host}:{peer.port})"
        raise PeerUnavailable(f"{where}: {error}; the log of the node: {node.log}") from error


def _send(scanner: Destination, series: Sequence[Sequence[Path]]) -> None:
    """Send each series over several associations at once, the slices dealt in turn."""
    parts = [paths[part::PARTS] for paths in series for part in range(PARTS)]
    with ThreadPoolExecutor(len(parts)) as pool:
        for sent in [pool.submit(_send_part, scanner, part) for part in parts]:
            sent.result()


def _send_part(scanner: Destination, paths: Sequence[Path]) -> None:
    files = []
    for path in paths:
        ds = dcmread(path, stop_before_pixels=True)
        files.append((path, str(ds.SOPClassUID), str(ds.SOPInstanceUID), str(ds.file_meta.TransferSyntaxUID)))
    for sent in scu.send(scanner, files, lambda _: None):
        if not sent.is_stored:
            raise SelfTestFailed(f"the node did not take an image: {sent.outcome}, {sent.detail or sent.status}")


def _wait_for_results(
    reader: Reader,
    study: Sequence[Acquisition],
    node: _Node,
    progress: Progress,
    deadline: float,
) -> list[str]:
    """The Series Instance UIDs of a SEG, an SR and a PDF for each series of the study, once all are in the archive."""
    shown: Counter[str] = Counter()
    while time.monotonic() < deadline:
        found = reader.find_results(study[0].study_instance_uid)
        counts = Counter(found.values())
        if counts != shown:
            progress("in the archive: " + ", ".join(f"{counts[kind]} of {len(study)} {kind}" for kind in _KINDS))
            shown = counts
        if all(counts[kind] >= len(study) for kind in _KINDS):
            return list(found)
        node.must_run()
        time.sleep(_POLL_S)
    raise SelfTestFailed(
        f"of the results only {dict(shown) or 'none'} came in time; `hilum jobs --config {node.config}` says why, "
        f"and so does {node.log}"
    )


def _judged(
    settings: Settings,
    study: Sequence[Acquisition],
    images: Mapping[str, Sequence[Path]],
    results: Sequence[Path],
    folder: Path,
) -> Outcome:
    segments = load_segments(settings.segment_tables[0].read_text(encoding="utf-8"))
    again = _label_maps_again(settings, images)
    by_series = _by_source_series(results, images)
    verdicts: list[Verdict] = []
    files = {folder / "results": "SEG, SR and PDF as fetched from the archive"}
    for acquisition in study:
        modality = acquisition.contrast.modality
        objects = by_series.get(acquisition.series_instance_uid, {})
        verdict, overlay = _judge_series(acquisition, objects, again[modality], segments, folder)
        verdicts.append(verdict)
        files[overlay] = f"overlay of the {modality}"
    rows = tuple(row for verdict in verdicts for row in verdict.rows)
    violations = tuple(violation for verdict in verdicts for violation in verdict.violations)
    return Outcome(Verdict(rows, violations), files)


def _judge_series(
    acquisition: Acquisition,
    objects: Mapping[str, Path],
    label_map: NDArray[np.uint8],
    segments: Mapping[str, SegmentDescription],
    folder: Path,
) -> tuple[Verdict, Path]:
    """Judge the results of one series and draw its SEG over it."""
    modality = acquisition.contrast.modality
    missing = tuple(f"{modality}: no {kind} names this series" for kind in _KINDS if kind not in objects)
    overlay = folder / f"overlay-{modality}.png"
    labels, reported, faults = np.zeros(acquisition.planes.shape, dtype=np.uint8), {}, list(missing)
    try:
        if "SEG" in objects:
            labels = read_seg(objects["SEG"], acquisition.planes, segments)
        if "SR" in objects:
            reported = read_sr(objects["SR"], segments)
    except ValueError as fault:
        faults.append(f"{modality}: {fault}")
    verdict = judge(acquisition, labels, reported)
    faults += compare_with_label_map(modality, labels, label_map)
    if "DOC" in objects and not bytes(dcmread(objects["DOC"]).EncapsulatedDocument).startswith(b"%PDF-"):
        faults.append(f"{modality}: the encapsulated document is no PDF")
    write_overlay(overlay, acquisition, labels, segments)
    return Verdict(verdict.rows, (*verdict.violations, *faults)), overlay


def _by_source_series(results: Sequence[Path], images: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, Path]]:
    """The results by the series that they were made from, then by modality; a PDF names images and no series."""
    series_of = {}
    for paths in images.values():
        for path in paths:
            image = dcmread(path, stop_before_pixels=True)
            series_of[str(image.SOPInstanceUID)] = str(image.SeriesInstanceUID)
    found: dict[str, dict[str, Path]] = {}
    for path in results:
        ds = dcmread(path, stop_before_pixels=True)
        for source in {series_of[uid] for uid in _references(ds) if uid in series_of}:
            found.setdefault(source, {})[str(ds.Modality)] = path
    return found


def _references(ds: Dataset) -> set[str]:
    """Every SOP Instance UID that an object refers to, at any depth."""
    return {str(element.value) for element in ds.iterall() if element.keyword == "ReferencedSOPInstanceUID"}


def _label_maps_again(settings: Settings, images: Mapping[str, Sequence[Path]]) -> dict[str, NDArray[np.uint8]]:
    """The label map of each series, made once more in this process: uint8, in the order of the files.

    Parameters
    ----------
    settings
        Of the node that made the results: by what it measured, the choice falls on the same engine.
    """
    bundle = find_bundles([SHIPPED, *settings.models.folders])[MODEL]
    maps = {}
    with open_model(settings, bundle) as segmenter:
        for modality, paths in images.items():
            headers = [read_header(path) for path in paths]
            (stack,) = split(headers)
            if not isinstance(stack, Stack):
                raise SelfTestFailed(f"the {modality} forms no stack: {stack.reason}: {stack.detail}")
            order = {header.sop_instance_uid: index for index, header in enumerate(headers)}
            by_uid = {header.sop_instance_uid: path for header, path in zip(headers, paths, strict=True)}
            voxels, way_back = read_volume(stack, by_uid)
            labels = way_back.labels(segmenter.segment(voxels).label_map).labels
            maps[modality] = np.empty_like(labels)
            for frame, plane in zip(stack.frames, labels, strict=True):
                maps[modality][order[frame.sop_instance_uid]] = plane
    return maps
