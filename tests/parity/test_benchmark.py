"""The benchmark of the whole path runs from end to end, on networks and volumes that are far too small to time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]


def test_every_side_runs_and_agrees_with_nnunet(tmp_path: Path) -> None:
    report, page = tmp_path / "report.json", tmp_path / "page.md"
    page.write_text("# Figures\n\n<!-- engine-tiny-5 -->\n<!-- /engine-tiny-5 -->\n\nThe end.\n")
    command = [sys.executable, str(ROOT / "tests/benchmark/engine.py"), "--tiny", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [*command, "--work", str(tmp_path), "--json", str(report), "--page", str(page)], env=environment, check=True
    )
    found = json.loads(report.read_text())
    sides = found["sides"]
    assert list(sides)[:3] == ["nnunetv2", "torch float32", "openvino float32"]
    for name, own in sides.items():
        assert own["labels"] >= 2, "a torso without organs proves nothing"
        assert own["equal_voxels"] >= (0.99 if name.endswith("bfloat16") else 0.9995), name
        assert own["seconds"]["total"] > 0 < own["peak_bytes"]
    assert found["cost"]["windows"] > 1
    text = page.read_text()
    assert "| `network`, s |" in text
    assert text.endswith("<!-- /engine-tiny-5 -->\n\nThe end.\n")
