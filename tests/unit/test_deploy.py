"""What is deployed: policy of the containers (SEC-11), sandbox of the unit, alerts, their pages, and the objectives."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from node.config import load_settings
from node.monitor import metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text())
GPU: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.gpu.yml").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"][0]["rules"]


@pytest.mark.parametrize("service", sorted(COMPOSE["services"]))
def test_container_policy(service: str) -> None:
    """SEC-11, for each container: not root, nothing writable but its own, no capability, bounded."""
    spec = COMPOSE["services"][service]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", spec["user"])
    assert spec["read_only"] is True
    assert spec["cap_drop"] == ["ALL"]
    assert "cap_add" not in spec
    assert spec["security_opt"] == ["no-new-privileges:true"], "no seccomp=unconfined, no apparmor=unconfined"
    assert not spec.get("privileged", False)
    assert {"network_mode", "pid", "ipc", "devices"}.isdisjoint(spec)
    assert spec["pids_limit"] > 0
    assert spec["mem_limit"]
    assert spec["ulimits"]["nofile"] > 0
    assert spec["ulimits"]["core"] == 0, "a core file would hold images"
    assert all("noexec" in mount and "nosuid" in mount for mount in spec["tmpfs"])
    assert not any("docker.sock" in volume for volume in spec["volumes"])


def test_files_from_the_host_are_read_only() -> None:
    """SEC-11: only data folders are writable."""
    mounts = [volume for spec in COMPOSE["services"].values() for volume in spec["volumes"]]
    from_host = [mount for mount in mounts if mount.startswith(".")]
    assert all(mount.endswith(":ro") for mount in from_host if "./data/" not in mount)


def test_only_what_a_person_or_a_scanner_needs_is_published() -> None:
    """SEC-12: pages on loopback only, the monitor ports not at all; two networks have no way out (SEC-11)."""
    ports = {name: spec.get("ports", []) for name, spec in COMPOSE["services"].items()}
    assert ports.pop("hilum") == ["11112:11112"]
    assert all(port.startswith("127.0.0.1:") for published in ports.values() for port in published)
    assert COMPOSE["networks"]["dicom"]["internal"] is True
    assert COMPOSE["networks"]["monitoring"]["internal"] is True


def test_no_password_stands_in_a_file_of_the_repository() -> None:
    """SEC-12, SEC-13: secrets are files that the administrator makes."""
    assert all(secret["file"].startswith("./secrets/") for secret in COMPOSE["secrets"].values())
    for service in COMPOSE["services"].values():
        for name in service.get("environment", {}):
            assert not re.search("PASSW|SECRET|TOKEN", name) or name.endswith("__FILE")
    orthanc = json.loads((DEPLOY / "orthanc" / "orthanc.json").read_text())
    assert orthanc["AuthenticationEnabled"] is True
    assert "RegisteredUsers" not in orthanc


def test_only_hilum_sees_the_gpu() -> None:
    """SEC-11."""
    assert set(GPU["services"]) == {"hilum"}


def test_the_configuration_of_the_compose_file_is_valid() -> None:
    """The node of compose.yml would start with it, and its peer lives in its network."""
    settings = load_settings(DEPLOY / "node.toml")
    subnet = COMPOSE["networks"]["dicom"]["ipam"]["config"][0]["subnet"]
    assert settings.peer[0].addresses == (subnet,)
    ports = (settings.monitor.listener_port, settings.monitor.worker_port, settings.monitor.segmenter_port)
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    targets = [target for group in scrape["static_configs"] for target in group["targets"]]
    assert targets == [f"hilum:{port}" for port in ports]


def test_the_image_runs_as_the_user_that_compose_names() -> None:
    """SEC-11: in each target the last word on the user is not root, and nothing runs in the final stage."""
    text = (ROOT / "Dockerfile").read_text()
    stages = {
        match["name"]: (match["base"], match["body"])
        for match in re.finditer(r"^FROM (?P<base>\S+) AS (?P<name>\S+)\n(?P<body>(?:(?!^FROM ).*\n)*)", text, re.M)
    }
    assert {"cpu", "gpu"} <= set(stages)
    for target in ("cpu", "gpu"):
        assert stages[target][0] == "runtime"
        assert "USER" not in stages[target][1]
        assert "RUN" not in stages[target][1]
    (user,) = re.findall(r"^USER (.+)$", stages["runtime"][1], re.M)
    assert user == COMPOSE["services"]["hilum"]["user"]
    assert "10001" in (DEPLOY / "install.sh").read_text()


def test_everything_that_the_image_copies_is_let_in() -> None:
    """`.dockerignore` names what pip needs to build; what is missing there fails only in the build."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"node", "engines", "dicom_config", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_the_shell_scripts_parse() -> None:
    for script in (DEPLOY / "install.sh", ROOT / "tests" / "run.sh", ROOT / ".ci" / "run"):
        subprocess.run(["bash", "-n", script], check=True)
        assert script.stat().st_mode & 0o111


def unit() -> dict[str, list[str]]:
    """The `[Service]` section; an option may stand several times."""
    options: dict[str, list[str]] = {}
    section = ""
    for raw in (DEPLOY / "hilum.service").read_text().splitlines():
        line = raw.strip()
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            name, _, value = line.partition("=")
            options.setdefault(name, []).append(value)
    return options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("ProtectKernelModules", "yes"),
        ("ProtectKernelTunables", "yes"),
        ("ProtectControlGroups", "yes"),
        ("RestrictNamespaces", "yes"),
        ("RestrictSUIDSGID", "yes"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
        ("LimitCORE", "0"),
        ("UMask", "0077"),
    ],
)
def test_the_unit_is_a_sandbox(option: str, value: str) -> None:
    """SEC-11, for a node without containers."""
    assert unit()[option] == [value]


def test_the_unit_gives_a_running_store_its_time_to_end() -> None:
    """NET-37: the listener may take 30 s to stop; systemd must wait longer, and so must compose."""
    options = unit()
    assert int(options["TimeoutStopSec"][0]) > 30
    assert int(COMPOSE["services"]["hilum"]["stop_grace_period"].rstrip("s")) > 30
    assert options["User"] != ["root"]
    assert options["SystemCallFilter"] == ["@system-service", "~@privileged"]
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "hilum.service")
    assert parser["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_each_alert_has_its_page_its_severity_and_its_tests(rule: dict[str, Any]) -> None:
    """OBS-6: what rings tells what to do, and was seen to ring and to stay silent."""
    page = ROOT / rule["annotations"]["runbook_url"]
    text = page.read_text()
    assert page.name == f"{rule['alert']}.md"
    assert all(heading in text for heading in ("## What it means", "## Look", "## Do"))
    assert rule["labels"]["severity"] in {"page", "ticket"}
    tests = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text())["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"] if check["alertname"] == rule["alert"]]
    assert any("exp_alerts" in check for check in checks), "never seen to fire"
    assert any("exp_alerts" not in check for check in checks), "never seen to stay silent"


def test_no_page_without_an_alert() -> None:
    pages = {page.stem for page in (ROOT / "docs" / "runbook").glob("*.md")}
    assert pages == {rule["alert"] for rule in RULES}


def test_the_objectives_are_the_thresholds_of_the_alerts() -> None:
    """OBS-9: docs/operate.md promises what the alerts watch."""
    text = (ROOT / "docs" / "operate.md").read_text()
    expressions = {rule["alert"]: rule["expr"] for rule in RULES}
    share, minutes = re.search(r"\*\*([\d.]+) %\*\* of the results .*? within \*\*(\d+) minutes\*\*", text).groups()  # type: ignore[union-attr]
    assert f'le="{float(minutes) * 60}"' in expressions["HilumTurnaroundSLOBurn"]
    assert f"< {float(share) / 100:g}" in expressions["HilumTurnaroundSLOBurn"]
    share, seconds = re.search(r"\*\*([\d.]+) %\*\* of the objects .*? within \*\*(\d+) seconds\*\*", text).groups()  # type: ignore[union-attr]
    assert f'le="{float(seconds)}"' in expressions["HilumStoreSlow"]
    assert f"< {float(share) / 100:g}" in expressions["HilumStoreSlow"]


def test_each_metric_is_explained() -> None:
    """docs/monitoring.md names every metric that a role serves."""
    text = (ROOT / "docs" / "monitoring.md").read_text()
    for role in metrics.Role:
        for declared in metrics.BY_ROLE[role]:
            metric = declared.metric if isinstance(declared, metrics.Family) else declared
            assert f"`{metric._name}" in text, metric._name
