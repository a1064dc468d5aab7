"""SEG and report in a real viewer: OHIF in headless Chromium, through Orthanc's DICOMweb, without any network."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from node.dicom.compose import Composition, ResultStyle, compose
from node.dicom.headers import read_header, read_source
from node.dicom.pixels import read_volume
from node.domain.findings import Provenance, measure, segment_numbers
from node.domain.segments import load_segments
from node.domain.stack import FrameLabels, Stack, split
from node.selftest import phantom, scanner

VIEWER = "3.13.2"
ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("viewer.mjs")
ORTHANC_PORT = 8042
"""Inside a network namespace of its own, where every port is free."""


@pytest.fixture(scope="session")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built viewer (`dist`) and playwright-core, from npm."""
    folder = tmp_path_factory.mktemp("ohif")
    subprocess.run(["npm", "pack", "--silent", f"@ohif/app@{VIEWER}"], cwd=folder, check=True, capture_output=True)
    with tarfile.open(folder / f"ohif-app-{VIEWER}.tgz") as package:
        package.extractall(folder, filter="data")
    (folder / "package" / "dist").rename(folder / "dist")
    (folder / "package.json").write_text("{}")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "playwright-core"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def phantom_case(folder: Path, size: tuple[int, int]) -> tuple[Composition, list[Path]]:
    """The standard patient as an oblique CT of a given size, with its true labels as the model's answer."""
    turn = phantom.rotation(12, -8, 0)
    planes = scanner.planes_around(turn=turn, pixel_mm=(1.5, 1.5), step_mm=4.0)
    planes = dataclasses.replace(planes, rows=size[0], columns=size[1])
    acquisition = scanner.Acquisition(planes, phantom.CT)
    files = list(scanner.write_series(acquisition, folder))
    headers = [read_header(path) for path in files]
    paths = {header.sop_instance_uid: path for header, path in zip(headers, files, strict=True)}
    (stack,) = split(headers)
    assert isinstance(stack, Stack)
    positions = np.array([frame.frame.position_mm for frame in stack.frames])
    order = [int(np.linalg.norm(planes.origins_mm - place, axis=1).argmin()) for place in positions]
    labels = FrameLabels(acquisition.labels[order], {label: name for name, label in phantom.LABELS.items()})
    segments = load_segments((ROOT / "dicom_config" / "segments.csv").read_text(encoding="utf-8"))
    provenance = Provenance("phantom", "1.0.0", "a" * 64, "none", "exact", "CPU", "", "b" * 64, "0.1.0")
    findings = measure(stack, labels, segments, provenance, unreported=(phantom.LABELS[phantom.BODY],))
    sources = [read_source(paths[frame.sop_instance_uid]) for frame in stack.frames]
    volume = read_volume(stack, paths)[0]
    made_at = datetime(2026, 7, 1, 12, tzinfo=UTC)
    return Composition(stack, sources, volume, labels, findings, ResultStyle(), "ohif", 1, made_at), files


@contextmanager
def namespace() -> Iterator[list[str]]:
    """A command prefix that runs in a network namespace with loopback alone: Orthanc listens on every address."""
    keeper = subprocess.Popen(["unshare", "-n", "sh", "-c", "ip link set lo up && exec sleep 3600"])
    time.sleep(0.5)
    try:
        yield ["nsenter", "-t", str(keeper.pid), "-n"]
    finally:
        keeper.terminate()
        keeper.wait()


@contextmanager
def orthanc(prefix: list[str], folder: Path) -> Iterator[None]:
    """Orthanc with DICOMweb, which takes every SOP class."""
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": ORTHANC_PORT,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "UnknownSopClassAccepted": True,
        "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    with (folder / "orthanc.log").open("wb") as log:
        server = subprocess.Popen([*prefix, "/usr/sbin/Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            yield
        finally:
            server.terminate()
            server.wait(60)


def upload(prefix: list[str], files: list[Path]) -> None:
    """Each file by Orthanc's REST interface; waits until it answers."""
    address = f"http://127.0.0.1:{ORTHANC_PORT}/instances"
    for path in files:
        command = [*prefix, "curl", "-sf", "--retry", "60", "--retry-connrefused", "--retry-delay", "1"]
        subprocess.run([*command, "--data-binary", f"@{path}", address], check=True, capture_output=True)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("variant", "size"), [("binary", (160, 192)), ("labelmap", (155, 185))])
def test_ohif_shows_segments_and_report(variant: str, size: tuple[int, int], viewer: Path, tmp_path: Path) -> None:
    """RES-2, RES-3: each voxel on its image in the viewer, a tinted picture, and the PDF's page.

    BINARY on images whose pixels are a multiple of 8; on others this viewer garbles it, and LABELMAP is what is sent.
    """
    c, images = phantom_case(tmp_path / "ct", size)
    results = tmp_path / "results"
    results.mkdir()
    made = {each.variant: each for each in compose(c, results, frozenset({variant}), sr=False)}
    request = {
        "dist": str(viewer / "dist"),
        "orthanc": f"http://127.0.0.1:{ORTHANC_PORT}",
        "chromium": shutil.which("chromium"),
        "study": c.sources[0].StudyInstanceUID,
        "seg": c.uid("series", "seg"),
        "pdf": c.uid("series", "pdf"),
        "display_sets": 3,
        "out": str(results),
    }
    (results / "request.json").write_text(json.dumps(request), encoding="utf-8")
    with namespace() as prefix, orthanc(prefix, tmp_path):
        upload(prefix, [*images, made[variant].path, made["pdf"].path])
        subprocess.run(
            [*prefix, "node", str(SCRIPT), str(results / "request.json")], cwd=viewer, check=True, timeout=1200
        )
    assert differing_voxels(json.loads((results / "held.json").read_text(encoding="utf-8")), c) == 0
    seen = np.asarray(Image.open(results / "seg.png").convert("RGB")).astype(int)
    # The picture is a grey image; what has a colour in it is a segment's tint.
    tinted = np.count_nonzero(np.ptp(seen[150:850, 300:1000], axis=2) > 40)
    assert tinted > 500
    assert np.count_nonzero(np.asarray(Image.open(results / "report.png").convert("L")) > 240) > 100_000


def differing_voxels(held: dict[str, str], c: Composition) -> int:
    """Voxels of the viewer that are not those of the label map; images that it holds nothing of count as empty."""
    expected = segment_numbers(c.findings)[c.labels.labels]
    found = np.zeros_like(expected)
    for plane, frame in zip(found, c.stack.frames, strict=True):
        if frame.sop_instance_uid in held:
            values = np.frombuffer(base64.b64decode(held.pop(frame.sop_instance_uid)), np.uint8)
            plane[:] = values.reshape(plane.shape)
    assert held == {}
    return int(np.count_nonzero(found != expected))
