"""import: make a bundle from nnU-Net results folders."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, get_args

from engines.commands.showing import described
from engines.commands.terminal import print_described, say
from engines.commands.verifying import status_of, verified_as_usual
from engines.errors import EngineError
from engines.model import certificate
from engines.model.bundle import Bundle, Limits, Storage


def add_parser(commands: Any) -> None:
    """Its place on the command line."""
    command = commands.add_parser(
        "import",
        help="make a bundle from nnU-Net results folders",
        description="Make a bundle from results folders of nnU-Net v2 (plans.json, dataset.json, fold_x/checkpoint). "
        "No pickle is executed; what is not understood is refused by name. Says which labels have no code yet.",
    )
    command.set_defaults(run=run)
    command.add_argument(
        "results",
        type=Path,
        nargs="+",
        help="the folder named TRAINER__PLANS__CONFIGURATION, or a data set's folder that holds it; of several the "
        "probabilities are averaged",
    )
    command.add_argument("--out", type=Path, help="folder of the bundle, which must not exist; left out: the name")
    command.add_argument("--name", default="", help="lower case, digits, hyphens; left out: that of the data set")
    command.add_argument("--version", default="1", help="version of the model (%(default)s)")
    command.add_argument(
        "--modality",
        action="append",
        default=[],
        help="CT or MR; may be given again; left out: what the names of the channels tell",
    )
    command.add_argument("--card", type=Path, help="the model card, a Markdown file; left out: what the folder says")
    command.add_argument(
        "--orientation",
        help="axis codes of the training arrays (slice, row, column), each the patient direction that it grows "
        "towards, such as SPL for axial DICOM or SAR for RAS NIfTI: nibabel's aff2axcodes backwards; 'any' for a "
        "network trained on images that lie in all ways; left out: as the plan's reader turns images, or as all "
        "masks in fold_x/validation lie",
    )
    command.add_argument("--configuration", help="which one of a data set's folder, such as 3d_fullres")
    command.add_argument(
        "--previous-stage",
        type=Path,
        metavar="FOLDER",
        help="results folder of a cascade's first network; left out: the one beside the second's",
    )
    command.add_argument("--fold", action="append", help="a fold to take; may be given again; left out: all there are")
    command.add_argument("--checkpoint", default="checkpoint_final.pth", help="file in each fold (%(default)s)")
    command.add_argument("--storage", choices=get_args(Storage), default="float32", help="of weights (%(default)s)")
    command.add_argument(
        "--mirroring",
        action="store_true",
        help="average over flips, as nnUNetv2_predict does by default: 2 to 8 times slower",
    )
    command.add_argument("--trainer", action="append", default=[], help="another trainer that keeps the plan's network")
    command.add_argument(
        "--postprocessing", type=Path, metavar="FILE", help="another postprocessing.json, such as an ensemble's"
    )
    command.add_argument("--without-postprocessing", action="store_true", help="leave nnU-Net's postprocessing out")
    command.add_argument(
        "--label-name",
        action="append",
        default=[],
        type=_label_name,
        metavar="NUMBER=NAME",
        help="another name for a label, such as one that segments.csv has; may be given again",
    )
    command.add_argument("--unreported", action="append", default=[], help="a label that results shall not mention")
    command.add_argument("--intended-use", default="", help="one sentence for users and results")
    command.add_argument("--licence", default="", help="of the weights, as an SPDX expression")
    command.add_argument("--training-data", default="", help="what the model was trained on")
    command.add_argument("--evaluation", type=Path, help="JSON file of measured figures: the summary of `evaluate`")
    command.add_argument("--min-slices", type=int, help="refuse scans of fewer slices")
    command.add_argument("--min-extent-mm", type=float, nargs=3, metavar=("LR", "AP", "SI"), help="smallest scan")
    command.add_argument("--max-extent-mm", type=float, nargs=3, metavar=("LR", "AP", "SI"), help="largest scan")
    command.add_argument("--max-step-mm", type=float, help="refuse scans whose slices lie further apart")
    command.add_argument("--min-age-years", type=float, help="youngest patient")
    command.add_argument("--volumes", type=Path, help="verify the new bundle on the images of this folder, as `verify`")
    command.add_argument("--json", action="store_true", help="describe the new bundle as JSON")


def _label_name(text: str) -> tuple[int, str]:
    number, _, name = text.partition("=")
    if not number.strip().isdecimal() or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not NUMBER=NAME, as in 3=spleen")
    return int(number), name.strip()


def run(arguments: argparse.Namespace) -> int:
    """Import, describe, and verify where there are volumes; status 1 where a certificate does not pass."""
    bundle = _imported(arguments)
    page = described(bundle)
    if not arguments.json:
        print_described(page, as_json=False)
        if page["uncoded"]:
            say(_UNCODED.format(names=", ".join(page["uncoded"])))
    volumes = arguments.volumes
    made = [] if volumes is None else verified_as_usual(bundle, volumes, as_json=arguments.json)
    if arguments.json:
        print_described({**page, "certificates": certificate.plain(made)}, as_json=True)
    return status_of(made)


_UNCODED = (
    "No code yet for: {names}. A node needs a row for each: write a table with the columns of segments.csv and name "
    "it in models.segments, rename a label to one that has a row (--label-name), or keep it out of results "
    "(--unreported)."
)


def _imported(arguments: argparse.Namespace) -> Bundle:
    from engines.conversion.nnunet import Description, Selection, import_results_folders, own_name

    description = Description(
        name=arguments.name,
        version=arguments.version,
        modalities=arguments.modality,
        card=arguments.card,
        orientation=arguments.orientation,
        label_names=dict(arguments.label_name),
        unreported=arguments.unreported,
        limits=_limits(arguments),
        intended_use=arguments.intended_use,
        licence=arguments.licence,
        training_data=arguments.training_data,
        evaluation=_figures(arguments.evaluation),
    )
    selection = Selection(
        configuration=arguments.configuration,
        previous_stage=arguments.previous_stage,
        folds=arguments.fold,
        checkpoint=arguments.checkpoint,
        storage=arguments.storage,
        mirroring=arguments.mirroring,
        further_trainers=arguments.trainer,
        postprocessing=arguments.postprocessing,
        without_postprocessing=arguments.without_postprocessing,
    )
    out = arguments.out or Path(own_name(arguments.results[0], description, selection))
    return import_results_folders(arguments.results, out, description, selection, say)


def _limits(arguments: argparse.Namespace) -> Limits:
    least, most = arguments.min_extent_mm, arguments.max_extent_mm
    return Limits(
        min_slices=arguments.min_slices,
        min_extent_mm=tuple(least) if least else None,
        max_extent_mm=tuple(most) if most else None,
        max_step_mm=arguments.max_step_mm,
        min_age_years=arguments.min_age_years,
    )


def _figures(path: Path | None) -> dict[str, float]:
    if path is None:
        return {}
    try:
        figures = json.loads(path.read_bytes())
        return {str(name): float(value) for name, value in figures.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise EngineError(f"{path}: not a JSON object of numbers: {error}") from error
