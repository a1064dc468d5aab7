"""Networks that nnunetv2 really trained, one in 3D and one in 2D, held against its own predictor on held-out people.

Random weights have near ties everywhere; what is promised of masks is promised of trained networks. The limits are
those of a certificate.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.backends.base import Engine, Placement
from engines.conversion.nnunet import ANY_ORIENTATION, Description, Selection, import_results_folders
from engines.conversion.reference import NnunetPredictor
from engines.inference.segmenter import Segmenter, availability
from engines.measures import dice
from engines.model.bundle import Bundle
from engines.nifti import read_volume
from engines.volume import Volume

pytestmark = [pytest.mark.data, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
LEAST_VOXELS = 1000
EQUAL = 0.9999
DICE = {"torch float32": 0.999}
OTHER_DICE, OTHER_VOLUME = 0.995, 0.005


@dataclass(frozen=True, eq=False)
class Trained:
    """A bundle of a network that was trained just now, and what nnunetv2 says of people it has not seen."""

    bundle: Bundle
    volumes: tuple[Volume, ...]
    expected: tuple[NDArray[Any], ...]


@pytest.fixture(scope="session", params=["3d", "2d"])
def trained(request: pytest.FixtureRequest, test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained with nnunetv2, imported, and segmented by nnunetv2's own predictor as it is, float16 sums included."""
    work = tmp_path_factory.mktemp(f"trained-{request.param}")
    command = [sys.executable, str(Path(__file__).parent / "trained.py"), request.param, str(test_data), str(work)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    card = work / "card.md"
    card.write_text("# Trained for a minute\n")
    modality = {"3d": "MR", "2d": "CT"}[request.param]
    bundle = import_results_folders(
        [Path(done.stdout.splitlines()[-1])],
        work / "bundle",
        Description("trained", "1", [modality], card, ANY_ORIENTATION),
        Selection(storage="float32"),
    )
    held_out = sorted(work.glob("raw/*/imagesTs/*.nii.gz"))
    volumes = tuple(read_volume(path, modality) for path in held_out)
    predictor = NnunetPredictor(bundle)
    return Trained(bundle, volumes, tuple(predictor.segment([volume]).labels for volume in volumes))


@pytest.fixture(scope="session", params=["torch float32", "openvino float32", "openvino bfloat16"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Every engine that runs on this processor."""
    found = Engine.parse(request.param)
    if not (said := availability(found)).available:
        pytest.skip(said.reason)
    return found


@pytest.fixture
def segmenter(trained: Trained, engine: Engine) -> Iterator[Segmenter]:
    with Segmenter.open(trained.bundle, engine, Placement(threads=1)) as opened:
        yield opened


def test_a_trained_network_gives_nnunets_masks(trained: Trained, engine: Engine, segmenter: Segmenter) -> None:
    judged, equal, voxels = 0, 0, 0
    for volume, expected in zip(trained.volumes, trained.expected, strict=True):
        labels = segmenter.segment(volume).label_map.labels
        equal, voxels = equal + int((labels == expected).sum()), voxels + labels.size
        for label in trained.bundle.labels:
            there, found = expected == label, labels == label
            size = int(there.sum())
            if size < LEAST_VOXELS:
                continue
            judged += 1
            assert dice(found, there) >= DICE.get(str(engine), OTHER_DICE), (label, size)
            assert abs(int(found.sum()) - size) <= OTHER_VOLUME * size, (label, size)
    assert judged >= len(trained.volumes) - 1, "what was trained finds too little to show anything"
    if str(engine) == "torch float32":
        assert equal / voxels >= EQUAL


def test_what_was_trained_finds_what_it_was_shown(trained: Trained) -> None:
    """A network that says nothing would agree with anything."""
    found = [set(np.unique(labels)) - {0} for labels in trained.expected]
    assert all(found)
    assert len(set.union(*found)) >= len(trained.bundle.labels) // 2
