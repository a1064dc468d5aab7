"""The wheel: it holds the data that the code looks for, nothing of the tests, and finds it from anywhere."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
from importlib.resources import files
config = files("dicom_config")
assert config.joinpath("node.toml").read_text().lstrip().startswith("#")
assert config.joinpath("segments.csv").read_text().strip()
assert config.joinpath("CONFORMANCE.md").read_text().strip()
folders = files("engines").joinpath("bundles").iterdir()
bundles = sorted(folder.name for folder in folders if folder.joinpath("bundle.json").is_file())
assert bundles == ["hippocampus-mr", "phantom"], bundles
shipped = files("engines").joinpath("bundles")
assert all(shipped.joinpath(f"{bundle}.certificates.json").is_file() for bundle in bundles)
assert shipped.joinpath("phantom.parity", "standard.nii.gz").is_file()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as pip builds it for a user."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-qq",
        "--disable-pip-version-check",
        "--no-deps",
        "-w",
        folder,
        ROOT,
    ]
    subprocess.run(command, check=True, timeout=240)
    (built,) = folder.glob("hilum-*.whl")
    return built


def test_what_is_in_the_wheel(wheel: Path) -> None:
    """Three top-level packages; no test, no deployment, no file over the size that a repository takes."""
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
    tops = {Path(entry.filename).parts[0] for entry in entries}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"node", "engines", "dicom_config"}
    assert max(entry.file_size for entry in entries) < 8 << 20
    assert not any("__pycache__" in entry.filename for entry in entries)


def test_the_installed_package_finds_its_data(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment, without dependencies, from another folder."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python"]
    subprocess.run([*pip, "install", "-qq", "--disable-pip-version-check", "--no-deps", wheel], check=True, timeout=120)
    subprocess.run([venv / "bin" / "python", "-I", "-c", PROGRAM], check=True, cwd=tmp_path)
    assert (venv / "bin" / "hilum").is_file()
    assert (venv / "bin" / "hilum-models").is_file()
