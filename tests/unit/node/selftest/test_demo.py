"""The parts of the demo that need no running node; the whole is in tests/e2e/test_demo.py."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from node.config import Settings, load_settings, parse_settings
from node.domain.job import Destination
from node.domain.routing import SELFTEST_AE_TITLE, SELFTEST_PATIENT_PREFIX
from node.domain.segments import load_segments
from node.errors import PeerUnavailable
from node.selftest import demo
from node.selftest.archive import Archive, Behaviour
from node.selftest.check import OrganResult, Verdict
from node.selftest.configuration import node_toml
from node.selftest.demo import MODEL, Outcome, SelfTestFailed, acquisitions, run_selftest
from node.selftest.picture import write_overlay
from node.selftest.retrieve import retrievable
from node.selftest.scanner import Acquisition, planes_around

ARCHIVE = Destination("pacs", "PACS", "127.0.0.1", 10400, "SITE", seg="labelmap")


def test_the_configuration_of_the_node_loads_and_keeps_who_it_is(tmp_path: Path) -> None:
    site = parse_settings(
        '[node]\nae_title = "SITE"\nserial = "77"\n[segmenter]\nthreads = 1\n', tmp_path / "site.toml"
    )
    path = tmp_path / "node.toml"
    path.write_text(node_toml(site, ARCHIVE, 12345, MODEL), encoding="utf-8")
    settings = load_settings(path)
    assert (settings.node.ae_title, settings.node.serial, settings.segmenter.threads) == ("SITE", "77", 1)
    assert settings.node.data_dir == tmp_path / "data"
    assert (settings.listener.host, settings.listener.port) == ("127.0.0.1", 12345)
    assert [peer.ae_title for peer in settings.peer] == [SELFTEST_AE_TITLE]
    assert [(rule.model, rule.destinations) for rule in settings.rule] == [(MODEL, ("pacs",))]
    destination = settings.destinations()["pacs"]
    assert replace(destination, retry=ARCHIVE.retry) == ARCHIVE


def test_the_study_is_oblique_and_of_the_self_test() -> None:
    ct, mr = acquisitions(7)
    assert (ct.contrast.modality, mr.contrast.modality) == ("CT", "MR")
    assert ct.study_instance_uid == mr.study_instance_uid != acquisitions(8)[0].study_instance_uid
    assert ct.patient_id.startswith(SELFTEST_PATIENT_PREFIX)
    for acquisition in (ct, mr):
        assert max(abs(acquisition.planes.normal)) < 0.99


def test_a_destination_that_is_not_configured(tmp_path: Path) -> None:
    with pytest.raises(SelfTestFailed, match="nowhere"):
        run_selftest(Settings(), "nowhere", tmp_path, lambda _: None)


def test_a_pacs_without_c_get_is_said(tmp_path: Path) -> None:
    """Nothing is sent where nothing could be read back."""
    with Archive(tmp_path, behaviour=Behaviour(offers_retrieval=False)) as archive:
        text = f"""
            [[destination]]
            name = "pacs"
            ae_title = "{archive.ae_title}"
            host = "{archive.host}"
            port = {archive.port}
        """
        settings = parse_settings(text, tmp_path / "node.toml")
        assert not retrievable(settings.destinations()["pacs"])
        with pytest.raises(SelfTestFailed, match="C-GET"):
            run_selftest(settings, "pacs", tmp_path / "run", lambda _: None)
        assert archive.received == ()


def test_an_outcome_names_rows_files_and_violations() -> None:
    row = OrganResult("CT", "liver", 294.2, 320.0, 0.9, 4.0)
    outcome = Outcome(Verdict((row,), ("CT liver: too large",)), {Path("x.png"): "overlay of the CT"})
    text = "\n".join(outcome.lines())
    assert not outcome.passed
    for part in ("294.2", "320.0", "0.900", "x.png", "VIOLATION: CT liver: too large", "FAILED"):
        assert part in text


def test_the_overlay_shows_every_organ(tmp_path: Path) -> None:
    acquisition = Acquisition(planes_around(pixel_mm=(4.0, 3.0), step_mm=6.0), acquisitions(0)[1].contrast)
    segments = load_segments(Path("dicom_config/segments.csv").read_text(encoding="utf-8"))
    write_overlay(tmp_path / "x.png", acquisition, acquisition.labels, segments)
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).reshape(-1, 3)
    colours = set(map(tuple, pixels.tolist()))
    for organ in acquisition.patient.organs:
        assert segments[organ.name].colour in colours


def test_a_peer_that_does_not_answer_is_named_with_the_log(tmp_path: Path) -> None:
    archive = Destination("archive", "ARCHIVE", "127.0.0.1", 104, "HILUM")
    with subprocess.Popen(["true"]) as process:
        node = demo._Node(process, tmp_path / "node.toml", tmp_path / "node.log")
    said = f"archive (ARCHIVE at 127.0.0.1:104): no answer; the log of the node: {node.log}"
    with pytest.raises(PeerUnavailable, match=re.escape(said)), demo._told_of(archive, node):
        raise PeerUnavailable("no answer")
