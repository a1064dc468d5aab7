"""The small archive: keeps byte for byte, answers queries, gives back, and misbehaves when told to."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage, RLELossless
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from node.dicom import scu
from node.domain.job import Destination
from node.errors import PeerUnavailable
from node.selftest.archive import Archive, Behaviour
from node.selftest.phantom import CT, MR
from node.selftest.retrieve import RESULT_CLASSES, ByAssociation, retrievable
from node.selftest.scanner import Acquisition, chosen, planes_around, write_series

FEW = chosen(planes_around(pixel_mm=(8.0, 8.0), step_mm=8.0), [10, 11, 12])


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, ...]:
    ct = write_series(Acquisition(FEW, CT, study="archive"), tmp_path / "images")
    return ct + write_series(Acquisition(FEW, MR, study="archive"), tmp_path / "images")


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path / "kept") as running:
        yield running


def _storescu(archive: Archive, *paths: Path) -> subprocess.CompletedProcess[str]:
    command = ["/usr/bin/storescu", "-v", "-aec", archive.ae_title, archive.host, str(archive.port), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def _peer(archive: Archive) -> Destination:
    return Destination("archive", archive.ae_title, archive.host, archive.port, "TESTER", network_timeout_s=5.0)


def test_echo_and_loopback(archive: Archive) -> None:
    assert archive.host == "127.0.0.1"
    command = ["/usr/bin/echoscu", "-aec", archive.ae_title, archive.host, str(archive.port)]
    assert subprocess.run(command, check=False, timeout=30).returncode == 0


def test_keeps_what_it_is_sent(archive: Archive, images: tuple[Path, ...]) -> None:
    assert _storescu(archive, *images).returncode == 0
    assert _storescu(archive, images[0]).returncode == 0
    assert len(archive.received) == len(images) + 1
    assert len(archive.objects()) == len(images)
    assert len(archive.objects(CTImageStorage)) == 3
    sent = {dcmread(path).SOPInstanceUID: dcmread(path) for path in images}
    for kept in archive.objects():
        assert dcmread(kept.path).PixelData == sent[kept.sop_instance_uid].PixelData
        assert kept.calling_ae_title == "STORESCU"


def test_objects_of_an_earlier_run_are_found_again(tmp_path: Path, images: tuple[Path, ...]) -> None:
    with Archive(tmp_path / "kept") as first:
        _storescu(first, *images)
    with Archive(tmp_path / "kept") as second:
        study = str(dcmread(images[0]).StudyInstanceUID)
        assert len(_find(second, "SERIES", StudyInstanceUID=study)) == 2


def test_refused_classes_statuses_and_delay(tmp_path: Path, images: tuple[Path, ...]) -> None:
    behaviour = Behaviour(frozenset({CTImageStorage}), {MRImageStorage: 0xA700}, answer_after_s=0.3)
    with Archive(tmp_path / "kept", behaviour=behaviour) as archive:
        assert _storescu(archive, images[0]).returncode != 0
        assert archive.received == ()
        started = time.monotonic()
        assert _storescu(archive, images[-1]).returncode != 0
        assert time.monotonic() - started >= 0.3
        assert [kept.status for kept in archive.received] == [0xA700]
        assert archive.objects() == ()


def _find(archive: Archive, level: str, **keys: str) -> list[Dataset]:
    entity = AE(ae_title="TESTER")
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    association = entity.associate(archive.host, archive.port, ae_title=archive.ae_title)
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    answers = association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind)
    found = [answer for status, answer in answers if status.Status == 0xFF00]
    association.release()
    return found


def test_find_at_each_level(archive: Archive, images: tuple[Path, ...]) -> None:
    _storescu(archive, *images)
    assert len(_find(archive, "STUDY", PatientID="HILUM-SELFTEST*", StudyInstanceUID="")) == 1
    series = _find(archive, "SERIES", SeriesInstanceUID="", Modality="")
    assert sorted(answer.Modality for answer in series) == ["CT", "MR"]
    assert len(_find(archive, "IMAGE", SeriesInstanceUID=series[0].SeriesInstanceUID, SOPInstanceUID="")) == 3
    assert _find(archive, "STUDY", PatientID="SOMEBODY", StudyInstanceUID="") == []


def test_results_come_back_by_c_get(archive: Archive, tmp_path: Path, images: tuple[Path, ...]) -> None:
    """The reading back of demo and self-test: only results are asked for, each comes as it was kept."""
    document = _as_result(images[0], tmp_path / "doc.dcm", "1.2.840.10008.5.1.4.1.1.104.1", "1.2.3.5", "DOC")
    label_map = _as_result(images[1], tmp_path / "seg.dcm", "1.2.840.10008.5.1.4.1.1.66.7", "1.2.3.6", "SEG")
    assert scu.send(_peer(archive), [document, label_map], lambda _: None)[-1].is_stored
    _storescu(archive, *images)
    peer = _peer(archive)
    assert retrievable(peer) == frozenset(RESULT_CLASSES)
    study = str(dcmread(images[0]).StudyInstanceUID)
    reader = ByAssociation(peer)
    found = reader.find_results(study)
    assert found == {"1.2.3.5": "DOC", "1.2.3.6": "SEG"}
    fetched = [dcmread(path) for path in reader.get_series(study, list(found), tmp_path / "fetched")]
    assert [ds.SOPInstanceUID for ds in fetched] == ["1.2.3.5.1", "1.2.3.6.1"]
    assert fetched[1].file_meta.TransferSyntaxUID == RLELossless
    assert fetched[1].PixelData == dcmread(label_map.path).PixelData


def _as_result(source: Path, path: Path, sop_class: str, series: str, modality: str) -> scu.FileToSend:
    ds = dcmread(source)
    ds.compress(RLELossless)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{series}.1"
    ds.SeriesInstanceUID, ds.Modality = series, modality
    ds.save_as(path)
    return scu.FileToSend(path, sop_class, f"{series}.1", str(RLELossless))


def test_an_archive_that_is_not_there(archive: Archive) -> None:
    archive.stop()
    with pytest.raises(PeerUnavailable):
        ByAssociation(_peer(archive)).find_results("1.2.3")
