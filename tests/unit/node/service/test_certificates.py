"""What `hilum check` says of certificates: broken files, a reference that failed, engines that ended the process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from engines.model.attempt import attempt_path
from engines.model.bundle import SHIPPED, Bundle, load_bundle
from engines.model.certificate import (
    REFERENCE_LIMITS,
    EngineKey,
    add_record,
    certificates_path,
    parity_folder,
    refused,
    site_path,
)
from node.cli import main
from node.config import Settings, parse_settings
from node.service.certificates import certificate_faults


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "data" / "engines").mkdir(parents=True)
    return parse_settings("", tmp_path / "node.toml")


@pytest.fixture
def phantom(tmp_path: Path) -> Bundle:
    folder = tmp_path / "models" / "phantom"
    shutil.copytree(SHIPPED / "phantom", folder)
    shutil.copytree(parity_folder(SHIPPED / "phantom"), parity_folder(folder))
    shutil.copy(certificates_path(SHIPPED / "phantom"), certificates_path(folder))
    return load_bundle(folder)


def key_of(bundle: Bundle) -> EngineKey:
    return EngineKey(bundle.digest, "torch", "float32", "torch 2.0", "cpu")


def spoil_the_sites(settings: Settings, bundle: Bundle) -> str:
    path = site_path(settings.engines_folder, bundle.digest)
    path.write_text("{")
    return str(path)


def spoil_the_shipped(_settings: Settings, bundle: Bundle) -> str:
    path = certificates_path(bundle.folder)
    path.write_text('{"format": 2}')
    return str(path)


def fail_the_reference(_settings: Settings, bundle: Bundle) -> str:
    path = certificates_path(bundle.folder)
    add_record(path, refused(bundle.name, key_of(bundle), "nnunetv2 2.8.1", REFERENCE_LIMITS, "liver: Dice 0.5"))
    return f"import the model again, or delete {path}"


def die_over_openvino(settings: Settings, bundle: Bundle) -> str:
    key = replace(key_of(bundle), backend="openvino", precision="bfloat16")
    path = attempt_path(settings.engines_folder, key)
    path.write_text(json.dumps({"key": asdict(key), "doing": "certified", "begun_at": "2026-11-30T12:00:00Z"}))
    died = "ended the process when it was certified (torch 2.0, 2026-11-30 12:00 UTC)"
    return f"openvino bfloat16 {died}; to try it again, delete {path}"


@pytest.mark.parametrize(
    ("spoil", "serious"),
    [
        (spoil_the_sites, False),
        (spoil_the_shipped, True),
        (fail_the_reference, True),
        (die_over_openvino, False),
    ],
)
def test_what_is_broken_is_said_with_its_mend(
    settings: Settings,
    phantom: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Settings, Bundle], str],
    *,
    serious: bool,
) -> None:
    assert list(certificate_faults(settings, phantom)) == []
    words = spoil(settings, phantom)
    (fault,) = certificate_faults(settings, phantom)
    assert (words in fault.text, fault.serious) == (True, serious)
    (tmp_path / "node.toml").write_text("")
    monkeypatch.setattr("node.service.house.SHIPPED", tmp_path / "models")
    capsys.readouterr()
    main(["check", "--offline", "--json", "--config", str(tmp_path / "node.toml")])
    said = json.loads(capsys.readouterr().out)["checks"]
    (level,) = {each["level"] for each in said if words in each["text"]}
    assert level == ("fail" if serious else "warn")
