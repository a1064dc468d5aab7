"""`hilum send` and the destinations of `hilum check` against peers that listen: our archive, and DCMTK's storescp."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.cli import main
from node.selftest.archive import Archive, Behaviour

pytestmark = pytest.mark.data

MR = "1.2.840.10008.5.1.4.1.1.4"
SEGMENTATION = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HILUM_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def crop(real_series: Path) -> Path:
    return real_series / "mr-ge-mr750-brain-study" / "13-HippoCrop"


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """DCMTK's receiver on a free port, and the folder that it writes into."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    folder = tmp_path / "received"
    folder.mkdir()
    process = subprocess.Popen(["/usr/bin/storescp", "-od", str(folder), "-aet", "STORE", str(port)])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port, folder
    finally:
        process.kill()
        process.wait()


def configured(folder: Path, archive: Archive, extra: str = "") -> Path:
    """A node whose one rule sends to this archive."""
    assert main(["init", "--folder", str(folder)]) == 0
    file = folder / "node.toml"
    text = file.read_text(encoding="utf-8").replace("destinations = []", 'destinations = ["pacs"]')
    destination = (
        f'[[destination]]\nname = "pacs"\nae_title = "ARCHIVE"\nhost = "127.0.0.1"\nport = {archive.port}\n{extra}'
    )
    file.write_text(f"{text}\n{destination}", encoding="utf-8")
    return file


def test_a_folder_arrives_at_dcmtk(crop: Path, storescp: tuple[int, Path], capsys: pytest.CaptureFixture[str]) -> None:
    port, folder = storescp
    assert main(["send", str(crop), "--host", "127.0.0.1", "--port", str(port), "--ae-title", "STORE"]) == 0
    assert "32 of 32 objects stored by STORE" in capsys.readouterr().out
    assert len(list(folder.iterdir())) == 32


def test_a_folder_arrives_at_a_configured_destination(
    crop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Archive(tmp_path / "archive") as archive:
        file = configured(tmp_path / "node", archive)
        capsys.readouterr()
        (crop_file, *_) = sorted(crop.iterdir())
        assert main(["send", str(crop_file), "--to", "pacs", "--config", str(file), "--json"]) == 0
        page = json.loads(capsys.readouterr().out)
        assert (page["to"], page["stored"], page["other_files"]) == ("ARCHIVE", 1, 0)
        assert page["sent"][0]["outcome"] == "stored"
        assert [kept.calling_ae_title for kept in archive.received] == ["HILUM"]
        assert main(["send", str(crop_file), "--to", "nobody", "--config", str(file)]) == 3
        assert "there are: pacs" in capsys.readouterr().err


def test_what_is_refused_is_named_and_is_status_1(
    crop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Archive(tmp_path / "archive", behaviour=Behaviour(statuses={MR: 0xC000})) as archive:
        assert (
            main(["send", str(crop), "--host", "127.0.0.1", "--port", str(archive.port), "--ae-title", "ARCHIVE"]) == 1
        )
    shown = capsys.readouterr()
    assert "0 of 32 objects stored" in shown.out
    assert "C000" in shown.err


def test_check_says_what_a_destination_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NET-38: C-ECHO, and an association that only proposes."""
    with Archive(tmp_path / "archive") as archive:
        file = configured(tmp_path / "node", archive)
        capsys.readouterr()
        assert main(["check", "--json", "--config", str(file)]) == 0
        page = json.loads(capsys.readouterr().out)
        assert not archive.received, "check sends nothing"
    (remark,) = (item for item in page["checks"] if item["subject"] == "destination pacs")
    assert remark["level"] == "ok"
    assert "binary" in remark["text"]


def test_check_fails_where_segmentations_would_be_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Archive(tmp_path / "archive", behaviour=Behaviour(refused_sop_classes=SEGMENTATION)) as archive:
        file = configured(tmp_path / "node", archive)
        capsys.readouterr()
        assert main(["check", "--json", "--config", str(file)]) == 1
        page = json.loads(capsys.readouterr().out)
    (remark,) = (item for item in page["checks"] if item["subject"] == "destination pacs")
    assert remark["level"] == "fail"
    assert "segmentations" in remark["mend"]
