"""`hilum segment` and `hilum explain` on folders of real series: what comes out, and what is said of the rest."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread

from node.cli import main

pytestmark = pytest.mark.data


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HILUM_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)


def segmented(folder: Path, out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    status = main(["segment", str(folder), "--out", str(out), "--json", *words])
    return status, json.loads(capsys.readouterr().out)


def explained(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["explain", str(folder), "--json", *words]) == 0
    page: dict[str, Any] = json.loads(capsys.readouterr().out)
    return page


@dataclass(frozen=True)
class Brain:
    """The whole brain study, segmented twice into one folder without any configuration: for programs, for people."""

    page: dict[str, Any]
    shown: str
    remarks: str
    folders: list[Path]

    @property
    def first(self) -> Path:
        return self.folders[0]


@pytest.fixture(scope="module")
def brain(real_series: Path, tmp_path_factory: pytest.TempPathFactory) -> Brain:
    out = tmp_path_factory.mktemp("brain")
    words = ["segment", str(real_series / "mr-ge-mr750-brain-study"), "--out", str(out)]
    document, shown, remarks = StringIO(), StringIO(), StringIO()
    with redirect_stdout(document), redirect_stderr(StringIO()):
        assert main([*words, "--json"]) == 0
    with redirect_stdout(shown), redirect_stderr(remarks):
        assert main(words) == 0
    return Brain(json.loads(document.getvalue()), shown.getvalue(), remarks.getvalue(), sorted(out.iterdir()))


def test_the_hippocampus_crop_is_segmented_and_its_sibling_is_not(
    real_series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The built-in rule takes HippoCrop; the model's limits leave T1post, a whole head, out (ASM-38, ASM-52)."""
    page = explained(real_series / "mr-ge-mr750-brain-study", capsys)
    outcomes = {stack["series"].split(" ")[-1]: stack for stack in page["stacks"]}
    assert outcomes["HippoCrop"]["models"] == ["hippocampus-mr"]
    assert outcomes["T1post"]["models"] == []
    assert outcomes["T1post"]["reason"]


def test_every_form_of_the_result_is_there_and_agrees(brain: Brain) -> None:
    folder = brain.first
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "seg.dcm", "seg-labelmap.dcm", "sr.dcm", "sr-labelmap.dcm", "report.dcm", "report.pdf",
        "image.nii.gz", "labels.nii.gz", "labels.txt", "overlay.png",
    }  # fmt: skip
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labels.nii.gz")))
    seg = dcmread(folder / "seg.dcm")
    assert seg.Modality == "SEG"
    assert (seg.Rows, seg.Columns) == (51, 35)
    frames = seg.pixel_array.reshape(-1, 51, 35)
    assert int(frames.sum()) == int(np.count_nonzero(labels))
    assert dcmread(folder / "seg-labelmap.dcm").SegmentationType == "LABELMAP"
    assert dcmread(folder / "sr.dcm").Modality == "SR"
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF-")
    assert (folder / "overlay.png").read_bytes().startswith(b"\x89PNG")


def test_nifti_lies_where_the_images_lie(brain: Brain, real_series: Path) -> None:
    """SimpleITK's own reading of the DICOM series is the reference."""
    folder = brain.first
    series = real_series / "mr-ge-mr750-brain-study" / "13-HippoCrop"
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    reference, ours = reader.Execute(), sitk.ReadImage(str(folder / "image.nii.gz"))
    assert sitk.ReadImage(str(folder / "labels.nii.gz")).GetSize() == ours.GetSize()
    resampled = sitk.Resample(ours, reference, sitk.Transform(), sitk.sitkNearestNeighbor)
    assert np.allclose(sitk.GetArrayFromImage(resampled), sitk.GetArrayFromImage(reference), atol=1e-3)


def test_the_label_file_names_every_label(brain: Brain) -> None:
    folder = brain.first
    lines = [
        line for line in (folder / "labels.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labels.nii.gz")))
    assert set(np.unique(labels)) <= {int(line.split()[0]) for line in lines}


def test_the_document_for_programs_tells_of_every_scan(brain: Brain) -> None:
    scans = {scan["outcome"]: scan for scan in brain.page["scans"]}
    done = scans["segmented"]
    assert (done["model"], done["frames"], Path(done["folder"])) == ("hippocampus-mr", 32, brain.first)
    assert all(line["volume_ml"] > 0 and line["outcome"] == "measured" for line in done["volumes"])
    assert scans["ineligible"]["frames"] == 22
    assert scans["ineligible"]["reason"]


def test_a_second_run_leaves_the_first_alone_and_makes_the_same_objects(brain: Brain) -> None:
    """RES-20: same input, model and configuration, same UIDs."""
    first, second = brain.folders
    assert second.name == f"{first.name}-2"
    for name in ("seg.dcm", "seg-labelmap.dcm", "sr.dcm", "report.dcm"):
        assert dcmread(first / name).SOPInstanceUID == dcmread(second / name).SOPInstanceUID


def test_the_table_for_people_has_every_organ_and_the_folder(brain: Brain) -> None:
    for word in ("organ", "mL", "measured", "seg.dcm", "what became of each stack", "no model for it", "T1post"):
        assert word in brain.shown
    assert "built-in rules" in brain.remarks
    assert "PGBM" not in brain.shown + brain.remarks, "no patient's identity in the output (SEC-20)"


def test_empty_uids_are_filled_in_and_it_is_said(
    real_series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folder mode only: Study, Series, SOP Instance and SOP Class UID are empty in these data sets."""
    series = tmp_path / "ct"
    shutil.copytree(real_series / "ct-siemens-mct-j2k", series)
    page = explained(series, capsys)
    (stack,) = page["stacks"]
    assert stack["frames"] == 20
    assert len(page["notes"]) == 4
    assert any("file meta information" in text for text in page["notes"])
    assert any("made up" in text for text in page["notes"])
    status, result = segmented(series, tmp_path / "out", capsys, "--model", "phantom")
    if status == 0:
        seg = dcmread(next((tmp_path / "out").iterdir()) / "sr.dcm")
        assert seg.StudyInstanceUID
    assert result["notes"] == page["notes"]
    assert dcmread(next(series.iterdir()), stop_before_pixels=True).SOPInstanceUID == "", "the files are as they were"


def test_files_that_are_no_images_are_skipped_and_counted(
    real_series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(real_series / "ct-philips-ingenuity-study", mixed)
    (mixed / "README").write_text("read me", encoding="utf-8")
    (mixed / "empty.dcm").touch()
    whole = next(path for path in sorted(mixed.rglob("*")) if path.is_file() and path.name.startswith("I"))
    (mixed / "cut.dcm").write_bytes(whole.read_bytes()[:400])
    page = explained(mixed, capsys)
    assert page["skipped_files"]["DICOMDIR"] == 3
    assert page["skipped_files"]["not DICOM"] >= 2
    assert sum(page["skipped_files"].values()) == 6
    assert sum(stack["frames"] for stack in page["stacks"]) == 35


def test_an_empty_folder_and_a_folder_of_garbage_are_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    status, page = segmented(tmp_path / "empty", tmp_path / "out", capsys)
    assert (status, page["scans"], page["skipped_files"]) == (1, [], {})
    garbage = tmp_path / "garbage"
    garbage.mkdir()
    for n in range(20):
        content = np.random.default_rng(n).integers(0, 256, 2000, dtype=np.uint8).tobytes()
        (garbage / f"{n}.dcm").write_bytes(content if n % 2 else bytes(128) + b"DICM" + content)
    status, page = segmented(garbage, tmp_path / "out", capsys)
    assert (status, page["scans"]) == (1, [])
    assert sum(page["skipped_files"].values()) == 20
    assert main(["segment", str(garbage), "--out", str(tmp_path / "out")]) == 1
    assert "there is no DICOM image" in capsys.readouterr().out


def test_a_scan_that_no_rule_chose_has_its_reason(
    real_series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, page = segmented(real_series / "mr-ge-3plane-localizer", tmp_path / "out", capsys)
    assert status == 1
    assert page["scans"]
    assert all(scan["reason"] and scan["detail"] for scan in page["scans"])
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_is_named_with_those_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", str(tmp_path), "--out", str(tmp_path / "out"), "--model", "liver"]) == 3
    assert "hippocampus-mr" in capsys.readouterr().err


def test_send_to_nobody_is_status_4(real_series: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crop = real_series / "mr-ge-mr750-brain-study" / "13-HippoCrop"
    assert main(["send", str(crop), "--host", "127.0.0.1", "--port", "9"]) == 4
    assert "nobody answers" in capsys.readouterr().err
