"""`hilum demo` as a process: it passes on a good road, and its exit status tells a bad one."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from node.commands import trial
from node.commands.terminal import ANSWER_IS_NO
from node.selftest import demo
from node.selftest.phantom import ORGANS, STANDARD, Patient
from node.selftest.scanner import Acquisition, write_series


@pytest.mark.timeout(1200)
def test_the_demo_passes(tmp_path: Path) -> None:
    """Volumes within 3 %, Dice above 0.95, sides, centroids, and the SEG equal to the label map."""
    started = time.monotonic()
    command = [sys.executable, "-m", "node.cli", "demo", "--out", str(tmp_path), "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1100)
    took = time.monotonic() - started
    assert run.returncode == 0, run.stdout + run.stderr
    said = json.loads(run.stdout)
    assert said["passed"] and said["violations"] == []
    assert [(row["series"], row["organ"]) for row in said["organs"]] == [(s, o) for s in ("CT", "MR") for o in ORGANS]
    assert all(row["dice"] >= 0.95 for row in said["organs"])
    (folder,) = tmp_path.iterdir()
    assert sorted(dcmread(path).Modality for path in (folder / "results").iterdir()) == sorted(2 * ["SEG", "SR", "DOC"])
    for modality in ("CT", "MR"):
        picture = np.asarray(Image.open(folder / f"overlay-{modality}.png").convert("RGB"))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert "images sent over 4 associations" in run.stderr
    print(f"the demo took {took:.0f} s")


def _mirrored(patient: Patient) -> Patient:
    """The patient as in a mirror: left and right exchanged."""
    organs = []
    for organ in patient.organs:
        x, y, z = organ.centre_mm
        turned = organ.rotation.copy()
        turned[0] *= -1
        organs.append(replace(organ, centre_mm=(-x, y, z), rotation=turned))
    return replace(patient, organs=tuple(organs))


@pytest.mark.timeout(1200)
def test_a_mirrored_patient_fails_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is sent is the mirror image of what is expected: the exit status says so, and the words say where."""

    def write_mirrored(acquisition: Acquisition, folder: Path) -> tuple[Path, ...]:
        return write_series(replace(acquisition, patient=_mirrored(STANDARD)), folder)

    monkeypatch.setattr(demo, "write_series", write_mirrored)
    options = argparse.Namespace(out=tmp_path, json=False)
    assert trial.demo(options) == ANSWER_IS_NO
    said = capsys.readouterr().out
    assert "VIOLATION" in said
    assert "FAILED" in said
