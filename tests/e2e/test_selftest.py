"""`hilum selftest` through Orthanc: the results are read back from it by C-GET, or over the web."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.dicom import scu
from node.domain.job import Destination
from node.errors import PeerUnavailable
from node.selftest.phantom import ORGANS


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(params=["c_get", "dicomweb"])
def orthanc(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Destination]:
    """A fresh Orthanc that takes everything, and gives it back in one of two ways."""
    folder = tmp_path / "orthanc"
    folder.mkdir()
    port, web_port, web = _free_port(), _free_port(), request.param == "dicomweb"
    settings = {
        "Name": "selftest",
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "HttpServerEnabled": web,
        "HttpPort": web_port,
        "RemoteAccessAllowed": False,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": not web,
        "DicomAlwaysAllowGet": not web,
        "UnknownSopClassAccepted": True,
        "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"] if web else [],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    url = f"http://127.0.0.1:{web_port}/dicom-web" if web else ""
    # Over the web a label map comes back; by C-GET Orthanc grants no role for one.
    destination = Destination(
        "pacs", "ORTHANC", "127.0.0.1", port, "HILUM", seg="labelmap" if web else "auto", dicomweb_url=url
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["/usr/sbin/Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            _wait(destination)
            yield destination
        finally:
            process.terminate()
            process.wait(30)


def _wait(destination: Destination) -> None:
    for _ in range(200):
        try:
            scu.echo(destination)
        except PeerUnavailable:
            time.sleep(0.3)
        else:
            return
    pytest.fail("Orthanc did not start")


@pytest.mark.timeout(1200)
def test_the_selftest_passes_through_orthanc(orthanc: Destination, tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        f"""
        [[destination]]
        name = "pacs"
        ae_title = "{orthanc.ae_title}"
        host = "{orthanc.host}"
        port = {orthanc.port}
        seg = "{orthanc.seg}"
        dicomweb_url = "{orthanc.dicomweb_url}"
        """
    )
    command = [sys.executable, "-m", "node.cli", "selftest", "--destination", "pacs", "--config", str(config)]
    command += ["--out", str(tmp_path / "out"), "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1100)
    assert run.returncode == 0, run.stdout + run.stderr
    said = json.loads(run.stdout)
    assert said["violations"] == []
    assert len(said["organs"]) == 2 * len(ORGANS)
