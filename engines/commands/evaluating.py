"""evaluate: score a bundle on labelled images."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.commands.opening import add_placement, opened
from engines.commands.terminal import say
from engines.commands.writing import check_folder_of, writing
from engines.model.bundle import load_bundle


def add_parser(commands: Any) -> None:
    """Its place on the command line."""
    command = commands.add_parser(
        "evaluate",
        help="score a bundle on labelled images",
        description="Segment every labelled image of a folder; report Dice and volume agreement (one less the relative "
        "error of the volume) for each case and label, and their means.",
    )
    command.set_defaults(run=run)
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    command.add_argument("--images", type=Path, required=True, help="folder of CASE.nii.gz or CASE_0000.nii.gz")
    command.add_argument("--labels", type=Path, required=True, help="folder of CASE.nii.gz; it decides the cases")
    command.add_argument("--out", type=Path, help="write the summary's figures here, for `import --evaluation`")
    add_placement(command)


def run(arguments: argparse.Namespace) -> int:
    """Segment every labelled image of a folder and score it."""
    from engines.inference.evaluation import evaluate, pair_cases, summary

    if arguments.out is not None:
        check_folder_of(arguments.out)
    bundle = load_bundle(arguments.bundle)
    cases = pair_cases(arguments.images, arguments.labels, len(bundle.channels))
    with opened(bundle, arguments) as segmenter:
        scores = list(evaluate(segmenter, cases, None if arguments.json else say))
        reason = segmenter.reason
    figures = summary(scores)
    if arguments.out is not None:
        with writing(arguments.out):
            arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if arguments.json:
        listed = [{**asdict(each), "volume_agreement": each.volume_agreement} for each in scores]
        print(json.dumps({"bundle": bundle.digest, "backend": reason, "summary": figures, "scores": listed}, indent=2))
        return 0
    print(f"{'case':28} {'label':24} {'Dice':>6} {'mL':>9} {'true mL':>9} {'agreement':>9}")
    for each in scores:
        volumes = f"{each.reported_ml:9.2f} {each.true_ml:9.2f} {each.volume_agreement:9.3f}"
        print(f"{each.case:28} {each.name:24} {each.dice:6.3f} {volumes}")
    for name, value in figures.items():
        print(f"{name:53} {value:6.4g}")
    return 0
