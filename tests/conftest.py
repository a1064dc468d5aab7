"""What every test may ask for: the shared data, where it is, and the real series unpacked from it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, once and visibly, the tests whose data or device is not here."""
    wanted = config.getoption("-m")
    if not os.environ.get("HILUM_TEST_DATA"):
        absent = pytest.mark.skip(reason="HILUM_TEST_DATA names no folder")
        for item in items:
            if "data" in item.keywords:
                item.add_marker(absent)
    for marker in ("gpu", "long"):
        if marker not in wanted:
            items[:] = [item for item in items if marker not in item.keywords]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of shared real images that HILUM_TEST_DATA names."""
    return Path(os.environ["HILUM_TEST_DATA"])


@pytest.fixture(scope="session")
def real_series(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real DICOM series, unpacked; HILUM_TEST_SERIES may name a folder where they lie already."""
    ready = os.environ.get("HILUM_TEST_SERIES")
    target = Path(ready) if ready else tmp_path_factory.mktemp("series")
    subprocess.run(["bash", str(test_data / "unpack.sh"), str(target)], check=True, capture_output=True)
    return target
