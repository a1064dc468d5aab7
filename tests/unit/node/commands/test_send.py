"""send: what goes out names the same object in its command and in its data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread

from node.cli import main
from node.selftest.archive import Archive
from node.selftest.phantom import CT
from node.selftest.scanner import Acquisition, planes_around, write_series


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HILUM_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)


def test_an_object_goes_out_under_the_uids_of_its_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PS3.4 B.2.2.1.2: tools that take names out change the data set and leave the file meta as it was."""
    planes = planes_around(pixel_mm=(8.0, 8.0), step_mm=60.0)
    paths = list(write_series(Acquisition(planes, CT), tmp_path / "ct"))
    inside = []
    for number, path in enumerate(paths):
        ds = dcmread(path)
        inside.append(str(ds.SOPInstanceUID))
        if number:
            ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
            ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
            ds.save_as(path, enforce_file_format=False)
    data_sets = [dcmread(path).PixelData for path in paths]
    with Archive(tmp_path / "archive") as archive:
        asked = ["--host", "127.0.0.1", "--port", str(archive.port), "--ae-title", "ARCHIVE"]
        assert main(["send", str(tmp_path / "ct"), *asked]) == 0
        kept = {dcmread(each.path).SOPInstanceUID: dcmread(each.path) for each in archive.received}
    assert f"{len(paths)} of {len(paths)} objects stored" in capsys.readouterr().out
    assert sorted(kept) == sorted(inside)
    assert [kept[uid].PixelData for uid in inside] == data_sets
    assert {kept[uid].file_meta.MediaStorageSOPInstanceUID for uid in inside} == set(inside)
    assert dcmread(paths[1]).file_meta.MediaStorageSOPInstanceUID == "1.2.3.1", "the file itself is left alone"
