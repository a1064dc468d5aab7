"""Seconds from voxels to labels: our torch and OpenVINO paths beside nnunetv2's own predictor, in one run.

    PYTHONPATH=. python tests/benchmark/inference.py BUNDLE VOLUME.nii.gz [--threads 2] [--rounds 3] [--json FILE]

Every side has the same weights (those stored in the bundle), volume and threads. Rounds are interleaved, A B C A B C,
so that a busy machine slows all alike; medians are reported, and ratios of medians. Needs nnunetv2 (extra `train`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from machine import described, machine, table, write_section
from numpy.typing import NDArray

from engines.backends.base import Engine, Placement
from engines.conversion.reference import NnunetPredictor
from engines.inference.segmenter import Segmenter
from engines.model.bundle import Bundle, load_bundle
from engines.nifti import read_volume
from engines.volume import Volume

Timed = tuple[Mapping[str, float], NDArray[Any]]
"""Seconds of each stage, and the labels on the volume's own grid."""


def nnunet_side(bundle: Bundle) -> Callable[[Volume], Timed]:
    """nnunetv2's own predictor."""
    predictor = NnunetPredictor(bundle)

    def run(volume: Volume) -> Timed:
        result = predictor.segment([volume])
        return result.seconds, result.labels

    return run


def our_side(bundle: Bundle, backend: str, threads: int) -> Callable[[Volume], Timed]:
    """Our segmenter with one backend."""
    segmenter = Segmenter.open(bundle, Engine.parse(backend), Placement.told(threads=threads))

    def run(volume: Volume) -> Timed:
        result = segmenter.segment(volume)
        return result.seconds, result.label_map.labels

    return run


def measure(bundle: Bundle, volume: Volume, threads: int, rounds: int) -> dict[str, Any]:
    """Every side, interleaved; medians, ratios to nnunetv2, and how many voxels agree with it."""
    torch.set_num_threads(threads)
    sides: dict[str, Callable[[Volume], Timed]] = {
        "nnunetv2": nnunet_side(bundle),
        "torch": our_side(bundle, "torch", threads),
        "openvino": our_side(bundle, "openvino", threads),
    }
    taken: dict[str, list[Mapping[str, float]]] = {name: [] for name in sides}
    labels: dict[str, NDArray[Any]] = {}
    for number in range(rounds):
        for name, side in sides.items():
            seconds, labels[name] = side(volume)
            taken[name].append(seconds)
            print(f"round {number + 1}/{rounds} {name:9} {seconds['total']:8.2f} s", file=sys.stderr, flush=True)
    medians = {
        name: {stage: statistics.median(each[stage] for each in runs) for stage in runs[0]}
        for name, runs in taken.items()
    }
    base = medians["nnunetv2"]
    return {
        "seconds": medians,
        "times_faster": {
            name: {stage: base[stage] / max(own[stage], 1e-9) for stage in own} for name, own in medians.items()
        },
        "equal_voxels": {name: float((own == labels["nnunetv2"]).mean()) for name, own in labels.items()},
    }


def show(report: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    stages = ("preprocess", "network", "labels", "total")
    seconds, faster = report["seconds"], report["times_faster"]
    rows = [[name, *(f"{own[s]:.2f}" for s in stages), f"{faster[name]['total']:.2f}"] for name, own in seconds.items()]
    equal = ", ".join(
        f"{name} {100 * part:.3f} %" for name, part in report["equal_voxels"].items() if name != "nnunetv2"
    )
    return "\n\n".join(
        (
            described(report["machine"]),
            f"`{report['bundle']['name']}`, volume {report['volume']['shape']}, {report['threads']} threads, "
            f"{report['rounds']} rounds; voxels equal to nnunetv2's: {equal}.",
            table(["seconds, median", *stages, "times faster"], rows),
        )
    )


def main() -> None:
    """Measure, print the table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("volume", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="put the tables into this Markdown page, as docs/performance.md")
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    volume = read_volume(arguments.volume, bundle.modalities[0])
    report = {
        "machine": machine(arguments.bundle, ("torch", "openvino", "nnunetv2", "numpy", "scipy")),
        "threads": arguments.threads,
        "bundle": {"name": bundle.name, "digest": bundle.digest, "patch": bundle.members[0].plan.patch_size},
        "volume": {"shape": volume.grid.shape, "spacing_mm": volume.grid.spacing_mm},
        "rounds": arguments.rounds,
        **measure(bundle, volume, arguments.threads, arguments.rounds),
    }
    print(show(report))
    if arguments.page is not None:
        write_section(arguments.page, "inference", show(report))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
