"""The node's engines with real networks: the phantom certifies them on its own volume; a wrong one never serves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backends.base import Engine
from engines.backends.openvino import OpenVinoBackend
from engines.inference.building import Built
from engines.inference.choice import candidates
from engines.inference.fastest import Happening, What
from engines.model.bundle import SHIPPED, Bundle, load_bundle
from engines.model.certificate import Limits, certificates_path, parity_folder, read_records, site_path
from engines.nifti import read_volume
from node.config import Settings, parse_settings
from node.selftest.cohort import parity_volume
from node.selftest.phantom import ORGANS
from node.service.engines import open_model, placement, policy
from node.service.segmenter import _built as told_of_build
from node.service.segmenter import _happened as told_of_engine

MIDDLE = Engine("openvino")
Make = Callable[..., Settings]


@pytest.fixture
def settings(tmp_path: Path) -> Make:
    def make(text: str = "") -> Settings:
        (tmp_path / "data").mkdir(exist_ok=True)
        return parse_settings(f"[segmenter]\nthreads = 1\n{text}", tmp_path / "node.toml")

    return make


@pytest.fixture
def phantom(tmp_path: Path) -> Bundle:
    """A copy without the certificates that were made elsewhere, its parity volume beside it."""
    folder = tmp_path / "models" / "phantom"
    shutil.copytree(SHIPPED / "phantom", folder)
    shutil.copytree(parity_folder(SHIPPED / "phantom"), parity_folder(folder))
    return load_bundle(folder)


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Lets OpenVINO find too much of the last organ; the self-test is let through, or not."""
    answers = OpenVinoBackend.answers

    def spoil(how: str) -> None:
        def spoiled(self: OpenVinoBackend, patches: Any) -> Any:
            for answer in answers(self, patches):
                if how == "scaled":
                    yield answer * 1.2
                else:
                    changed = answer.clone()
                    changed[-1] += 6.0
                    yield changed

        monkeypatch.setattr(OpenVinoBackend, "answers", spoiled)
        if how == "unseen":
            monkeypatch.setattr("engines.inference.members.disagreement", lambda *_: None)

    yield spoil


def test_what_the_configuration_asks_for(settings: Make, tmp_path: Path) -> None:
    made = settings(
        'engines = ["openvino bfloat16", "torch"]\ncertificate_dice = 0.99\ncertificate_volume_percent = 2.0'
    )
    asked = policy(made)
    assert asked.engines == (Engine("openvino", "bfloat16"), Engine("torch"))
    assert asked.limits == Limits(0.99, 2.0)
    assert asked.site == tmp_path / "data" / "engines"
    assert (placement(made).device, placement(made).threads) == ("cpu", 1)
    assert placement(made).cache == tmp_path / "data" / "engines"
    assert policy(settings()).engines == ()


def test_without_a_data_folder_nothing_is_kept(tmp_path: Path) -> None:
    nowhere = parse_settings("", tmp_path / "node.toml")
    assert policy(nowhere).site is None
    assert placement(nowhere).cache is None


def test_a_folder_of_engines_that_cannot_be_written_keeps_nothing(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever may be written around it; one that is not there yet is made."""
    made = settings()
    assert policy(made).site == tmp_path / "data" / "engines"
    (tmp_path / "data" / "engines").mkdir()
    closed: set[Path] = {tmp_path / "data" / "engines"}
    monkeypatch.setattr("node.service.engines.os.access", lambda path, _mode: path not in closed)
    assert policy(made).site is None
    closed.clear()
    closed.add(tmp_path / "data")
    assert policy(made).site == tmp_path / "data" / "engines"
    (tmp_path / "data" / "engines").rmdir()
    assert policy(made).site is None
    (tmp_path / "data" / "engines").write_text("")
    assert policy(made).site is None


HAPPENINGS: list[tuple[What, str, str]] = [
    ("certified", "engine_certified", "INFO"),
    ("refused", "engine_refused", "WARNING"),
    ("not tried", "engine_not_tried", "WARNING"),
    ("failed", "engine_failed", "ERROR"),
    ("not kept", "certificates_not_kept", "WARNING"),
]


@pytest.mark.parametrize(("what", "event", "level"), HAPPENINGS)
def test_what_becomes_of_an_engine_is_logged(
    what: What, event: str, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        told_of_engine(Happening(what, "liver-ct", Engine("openvino", "bfloat16"), "Dice 0.9"))
        told_of_engine(Happening(what, "liver-ct", None, "of all"))
    first, second = caplog.records
    assert (first.message, first.levelname, second.message) == (event, level, event)
    assert (vars(first)["precision"], vars(first)["reason"]) == ("bfloat16", "Dice 0.9")
    assert "backend" not in vars(second)


def test_the_phantom_certifies_an_engine_when_it_is_opened(settings: Make, phantom: Bundle, tmp_path: Path) -> None:
    made = settings('engines = ["openvino"]')
    with open_model(made, phantom) as segmenter:
        assert segmenter.reason.startswith("openvino float32: taken, ")
        result = segmenter.segment(read_volume(parity_folder(phantom.folder) / "standard.nii.gz", "CT"))
        assert (result.backend, result.backend_reason) == ("openvino", segmenter.reason)
    (certificate,) = read_records(site_path(tmp_path / "data" / "engines", phantom.digest)).certificates
    assert certificate.verdict.outcome == "passed"
    assert certificate.number in segmenter.reason
    judged = {label.name for volume in certificate.volumes for label in volume.labels if label.is_judged}
    assert judged == {"body", *ORGANS}
    assert not certificates_path(phantom.folder).exists()


def test_a_wrong_engine_is_refused_and_torch_serves(
    settings: Make, phantom: Bundle, wrong: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it stays refused, whatever it answers next time."""
    made = settings('engines = ["openvino"]')
    with monkeypatch.context() as patch:
        wrong("unseen")
        with open_model(made, phantom) as segmenter:
            assert segmenter.reason.startswith("torch float32: taken")
            assert "openvino float32: refused against torch float32" in segmenter.reason
        patch.undo()
    monkeypatch.undo()
    with open_model(made, phantom) as segmenter:
        assert segmenter.segment(parity_volume()).backend == "torch"
    (candidate, _) = candidates(phantom, policy(made), placement(made))
    assert candidate.standing == "refused"


def test_an_engine_whose_answers_are_scaled_fails_its_self_test(
    settings: Make, phantom: Bundle, wrong: Callable[[str], None]
) -> None:
    """The largest logit stays the largest, so its masks are right; it is no engine of this model all the same."""
    wrong("scaled")
    with open_model(settings('engines = ["openvino"]'), phantom) as segmenter:
        assert segmenter.reason.startswith("torch float32: taken")
        assert "self-test failed" in segmenter.reason
        assert segmenter.segment(parity_volume()).backend == "torch"


def test_the_shipped_volume_is_the_standard_patient() -> None:
    shipped = read_volume(parity_folder(SHIPPED / "phantom") / "standard.nii.gz", "CT")
    made = parity_volume()
    assert shipped.grid.same_as(made.grid)
    assert np.array_equal(shipped.voxels, made.voxels)
    assert (parity_folder(SHIPPED / "phantom") / "standard.nii.gz").stat().st_size < 300_000


@pytest.mark.parametrize(("fault", "event"), [("", "engine_built"), ("cannot be built: refused", "engine_not_built")])
def test_how_a_build_ended_is_logged(fault: str, event: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        told_of_build(Built("liver-ct", Engine("tensorrt", "float16"), 12.34, fault))
    (record,) = caplog.records
    facts = vars(record)
    assert (record.message, facts["model"], facts["backend"], facts["precision"]) == (
        event,
        "liver-ct",
        "tensorrt",
        "float16",
    )
    assert facts.get("reason", "") == fault
