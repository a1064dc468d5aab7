"""segment: label one NIfTI image."""

from __future__ import annotations

import argparse
import colorsys
from pathlib import Path
from typing import Any

from engines.commands.opening import add_placement, opened
from engines.commands.terminal import print_described, say_share
from engines.commands.writing import check_folder_of, writing
from engines.model.bundle import load_bundle


def add_parser(commands: Any) -> None:
    """Its place on the command line."""
    command = commands.add_parser(
        "segment",
        help="segment one NIfTI image",
        description="Segment one image, of one channel or several on one grid, and write its label map on that grid, "
        "with an ITK-SNAP label file beside.",
    )
    command.set_defaults(run=run)
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    command.add_argument(
        "image",
        type=Path,
        nargs="+",
        help="image file: .nii.gz, .nii, .nrrd or .mha; CT in HU; of a model of several channels, one for each",
    )
    command.add_argument("labels", type=Path, help="label file to write, such as labels.nii.gz")
    add_placement(command)


def run(arguments: argparse.Namespace) -> int:
    """Segment one image and write its label map."""
    from engines.measures import label_volumes_ml
    from engines.nifti import read_volume, write_itksnap_labels, write_label_map

    check_folder_of(arguments.labels)
    bundle = load_bundle(arguments.bundle)
    images = [read_volume(path, bundle.modalities[0]) for path in arguments.image]
    with opened(bundle, arguments) as segmenter:
        result = segmenter.segment(images, None if arguments.json else say_share)
    with writing(arguments.labels):
        write_label_map(arguments.labels, result.label_map)
    names = result.label_map.names
    described = arguments.labels.with_name(f"{arguments.labels.name.split('.')[0]}.label.txt")
    with writing(described):
        write_itksnap_labels(described, names, {label: _colour(label) for label in names})
    volumes = label_volumes_ml(result.label_map.labels, result.label_map.grid.voxel_ml)
    report = {
        "labels": str(arguments.labels),
        "volumes_ml": {name: round(volumes.get(label, 0.0), 3) for label, name in names.items()},
        "backend": result.backend,
        "precision": result.precision,
        "device": result.device,
        "backend_reason": result.backend_reason,
        "way": result.way,
        "versions": result.versions,
        "seconds": {stage: round(spent, 3) for stage, spent in result.seconds.items()},
    }
    print_described(report, arguments.json)
    return 0


def _colour(label: int) -> tuple[int, int, int]:
    """A colour far from those of the labels before: steps of the golden angle around the hue circle."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75, 0.95)
    return int(red * 255), int(green * 255), int(blue * 255)
