"""The last layer's biases, shifted so that volumes on training cases are right on average: a threshold, no retraining.

A small network that is trained on overlap leaves a fraction of a voxel of each organ's rim to its surroundings. That
is a bias of volume which one number for each label removes: the logit of the label is raised by it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from engines.backends.base import Engine
from engines.conversion.nnunet import Description, Selection, import_results_folders
from engines.inference.segmenter import Segmenter
from engines.nifti import read_label_map, read_volume
from engines.volume import LabelMap, Volume

CHECKPOINT = "checkpoint_calibrated.pth"
_FIRST_SHIFT = 0.5
_MOST_SHIFT = 4.0

Case = tuple[Volume, LabelMap]


def calibrate(results: Path, cases: Sequence[Case], orientation: str, labels: Sequence[int], rounds: int = 3) -> Path:
    """Write `checkpoint_calibrated.pth` beside fold 0's final checkpoint; returns its path.

    Parameters
    ----------
    cases
        Images and their true labels, from the training part.
    labels
        Whose volumes are to be right.

    The shift of each label is found by the secant rule on its mean relative volume error.
    """
    final = torch.load(results / "fold_0" / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    heads = [key for key in final["network_weights"] if "seg_layers" in key and key.endswith(".bias")]
    head = max(heads, key=lambda key: int(key.split(".")[-2]))
    trained = final["network_weights"][head].clone()
    out = results / "fold_0" / CHECKPOINT

    def errors(shift: NDArray[np.float64]) -> NDArray[np.float64]:
        final["network_weights"][head] = trained + torch.from_numpy(shift).to(trained.dtype)
        torch.save(final, out)
        return _volume_errors(results, cases, orientation, labels)

    chosen = list(labels)
    shift = np.zeros(len(trained))
    before, error_before = shift.copy(), errors(shift)
    shift[chosen] = _FIRST_SHIFT
    for _ in range(rounds):
        error = errors(shift)
        slope = (error - error_before) / np.maximum(np.abs(shift - before)[chosen], 1e-6)
        slope *= np.sign((shift - before)[chosen])
        before, error_before = shift.copy(), error
        step = np.where(np.abs(slope) > 1e-4, -error / np.where(slope == 0, 1, slope), 0)
        shift[chosen] = np.clip(shift[chosen] + np.clip(step, -1, 1), -_MOST_SHIFT, _MOST_SHIFT)
        print(f"volume errors {np.round(100 * error, 2)} %, next shifts {np.round(shift[chosen], 2)}", flush=True)
    errors(shift)
    return out


def _volume_errors(
    results: Path, cases: Sequence[Case], orientation: str, labels: Sequence[int]
) -> NDArray[np.float64]:
    """Mean relative error of the volume of each label, over the cases that have it."""
    with tempfile.TemporaryDirectory() as folder:
        card = Path(folder) / "card.md"
        card.write_text("# calibration\n")
        description = Description("calibration", "0", ("CT", "MR"), card, orientation)
        bundle = import_results_folders(
            [results], Path(folder) / "bundle", description, Selection(checkpoint=CHECKPOINT)
        )
        found: dict[int, list[float]] = {label: [] for label in labels}
        with Segmenter.open(bundle, Engine("openvino")) as segmenter:
            for volume, truth in cases:
                given = segmenter.segment(volume).label_map.labels
                for label in labels:
                    true = np.count_nonzero(truth.labels == label)
                    if true:
                        found[label].append(np.count_nonzero(given == label) / true - 1)
    return np.array([np.mean(values) if values else 0.0 for values in found.values()])


def main() -> None:
    """Calibrate a results folder on the first whole cases of its raw data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="the folder named TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("raw", type=Path, help="nnU-Net's raw data set")
    parser.add_argument("--orientation", required=True)
    parser.add_argument("--label", type=int, action="append", required=True)
    parser.add_argument("--cases", type=int, default=10)
    arguments = parser.parse_args()
    cases: list[Case] = []
    for path in sorted((arguments.raw / "labelsTr").glob("*.nii.gz"))[: arguments.cases]:
        truth = read_label_map(path, {label: str(label) for label in range(1, 256)})
        image = arguments.raw / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz")
        cases.append((read_volume(image, "MR"), truth))
    print(calibrate(arguments.results, cases, arguments.orientation, arguments.label))


if __name__ == "__main__":
    main()
