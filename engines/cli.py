"""hilum-models: import a trained nnU-Net model; show, evaluate, verify, export a bundle, segment one image with it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from engines.errors import EngineError
from engines.model import certificate
from engines.model.bundle import Bundle, Limits, Member, Storage, load_bundle
from engines.model.certificate import Certificate

# Torch takes seconds to import: only the commands that compute load what needs it, each inside its own function.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 1 where a model, device or image stands in the way."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return command(arguments)
    except EngineError as error:
        print(f"hilum-models: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hilum-models", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_import(commands)
    _add_show(commands)
    _add_segment(commands)
    _add_evaluate(commands)
    _add_verify(commands)
    _add_export(commands)
    return parser


def _add_import(commands: Any) -> None:
    command = commands.add_parser(
        "import",
        help="make a bundle from nnU-Net results folders",
        description="Make a bundle from results folders of nnU-Net v2 (plans.json, dataset.json, fold_x/checkpoint). "
        "No pickle is executed; what is not understood is refused by name. Says which labels have no code yet.",
    )
    command.set_defaults(run=_import)
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
    command.add_argument("--mirroring", action="store_true", help="average over flips: 2 to 8 times slower")
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


def _add_show(commands: Any) -> None:
    command = commands.add_parser(
        "show",
        help="verify a bundle and describe it",
        description="Check every file of a bundle against its SHA-256, then describe the model and say which backends "
        "can run it on this machine.",
    )
    command.set_defaults(run=_show)
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    command.add_argument("--json", action="store_true", help="for programs")


def _add_segment(commands: Any) -> None:
    command = commands.add_parser(
        "segment",
        help="segment one NIfTI image",
        description="Segment one image, of one channel or several on one grid, and write its label map on that grid, "
        "with an ITK-SNAP label file beside.",
    )
    command.set_defaults(run=_segment)
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    command.add_argument(
        "image",
        type=Path,
        nargs="+",
        help="image file: .nii.gz, .nii, .nrrd or .mha; CT in HU; of a model of several channels, one for each",
    )
    command.add_argument("labels", type=Path, help="label file to write, such as labels.nii.gz")
    _add_placement(command)


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate",
        help="score a bundle on labelled images",
        description="Segment every labelled image of a folder; report Dice and volume agreement (one less the relative "
        "error of the volume) for each case and label, and their means.",
    )
    command.set_defaults(run=_evaluate)
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    command.add_argument("--images", type=Path, required=True, help="folder of CASE.nii.gz or CASE_0000.nii.gz")
    command.add_argument("--labels", type=Path, required=True, help="folder of CASE.nii.gz; it decides the cases")
    command.add_argument("--out", type=Path, help="write the summary's figures here, for `import --evaluation`")
    _add_placement(command)


def _add_verify(commands: Any) -> None:
    command = commands.add_parser(
        "verify",
        help="hold a bundle's masks against nnunetv2's, and each engine's against torch's",
        description="Segment the images of a folder with nnunetv2's own predictor (needs the extra `train`) and with "
        "torch in float32, then with every other engine that can run here, and write certificates beside the bundle. "
        "A node takes an engine only with a certificate that passed. Status 1 where one fails or shows nothing.",
    )
    command.set_defaults(run=_verify)
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    command.add_argument(
        "--volumes", type=Path, required=True, help="folder of CASE.nii.gz, or CASE_0000.nii.gz, ... for each channel"
    )
    _add_verification(command)
    command.add_argument("--out", type=Path, help="file of certificates; left out: BUNDLE.certificates.json beside it")
    command.add_argument("--json", action="store_true", help="the certificates, for programs")


def _add_verification(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--against",
        choices=("nnunetv2", "torch"),
        default="nnunetv2",
        help="torch: leave nnunetv2 out, hold the other engines against torch in float32 alone (%(default)s)",
    )
    command.add_argument(
        "--engine", action="append", default=[], help="such as 'openvino bfloat16'; may be given again"
    )
    command.add_argument("--limit", type=int, help="take so many volumes, the first by name")
    command.add_argument("--dice", type=float, default=0.995, help="least Dice of other engines (%(default)s)")
    command.add_argument("--volume-percent", type=float, default=0.5, help="largest difference (%(default)s)")
    command.add_argument("--keep", action="store_true", help="keep the volumes beside the bundle, for certifying there")
    command.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (%(default)s: the processor)")
    command.add_argument("--threads", type=int, help="processor threads; left out: all that this process may use")


def _add_export(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="write a bundle's networks as ONNX files",
        description="Write one ONNX file for each member and fold: a patch in (image), logits out; the patch is fixed, "
        "every tensor's type is in the graph. Needs the extra `onnx`; where onnxruntime is installed too, a file is "
        "kept only if it answers the bundle's parity crop as torch does.",
    )
    command.set_defaults(run=_export)
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    command.add_argument("--out", type=Path, required=True, help="folder of the files; must not exist")
    precisions = ("float32", "float16")
    command.add_argument("--precision", choices=precisions, default="float32", help="of every tensor (%(default)s)")
    command.add_argument(
        "--norms", choices=precisions, default="float32", help="of instance norms in a float16 file (%(default)s)"
    )
    command.add_argument("--batch", type=int, help="images at once; left out: whoever runs the file says so")
    command.add_argument("--json", action="store_true", help="for programs")


def _add_placement(command: argparse.ArgumentParser) -> None:
    command.add_argument("--engine", help="such as 'openvino bfloat16'; left out: the fastest that is certified")
    command.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (%(default)s: the processor)")
    command.add_argument("--threads", type=int, help="processor threads; left out: all that this process may use")
    command.add_argument("--json", action="store_true", help="for programs")


def _label_name(text: str) -> tuple[int, str]:
    number, _, name = text.partition("=")
    if not number.strip().isdecimal() or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not NUMBER=NAME, as in 3=spleen")
    return int(number), name.strip()


def _import(arguments: argparse.Namespace) -> int:
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
    bundle = import_results_folders(arguments.results, out, description, selection)
    described = _described(bundle)
    if not arguments.json:
        _print_bundle(described, as_json=False)
        if described["uncoded"]:
            _say(_UNCODED.format(names=", ".join(described["uncoded"])))
    made = [] if arguments.volumes is None else _verified_as_usual(bundle, arguments)
    if arguments.json:
        _print_bundle({**described, "certificates": certificate.plain(made)}, as_json=True)
    return _status(made)


def _verified_as_usual(bundle: Bundle, arguments: argparse.Namespace) -> list[Certificate]:
    """What `verify` does where it is told nothing but the volumes."""
    usual = ["verify", str(bundle.folder), "--volumes", str(arguments.volumes), *(["--json"] if arguments.json else [])]
    return _verified(bundle, _parser().parse_args(usual))


_UNCODED = (
    "No code yet for: {names}. A node needs a row for each: write a table with the columns of segments.csv and name "
    "it in models.segments, rename a label to one that has a row (--label-name), or keep it out of results "
    "(--unreported)."
)


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


def _show(arguments: argparse.Namespace) -> int:
    from engines.backends.base import Placement
    from engines.inference.choice import Policy, candidates

    bundle = load_bundle(arguments.bundle)
    found = candidates(bundle, Policy(), Placement())
    verdict = {True: "can run", False: "cannot run"}
    engines = {str(each.engine): f"{verdict[each.usable]} ({each.reason}); {each.words}" for each in found}
    _print_bundle({**_described(bundle), "engines": engines}, arguments.json)
    return 0


def _described(bundle: Bundle) -> dict[str, Any]:
    from engines.conversion.codes import coded_names, uncoded_labels

    coded = coded_names()
    return {
        "name": bundle.name,
        "version": bundle.version,
        "digest": bundle.digest,
        "modalities": list(bundle.modalities),
        "labels": {str(label): name for label, name in bundle.labels.items()},
        "unreported": list(bundle.unreported),
        "channels": list(bundle.channels),
        "coded": [name for name in bundle.labels.values() if name in coded],
        "uncoded": uncoded_labels(bundle, coded),
        "orientation": bundle.orientation,
        "members": [_described_member(member) for member in bundle.members],
        "keep_largest": [[bundle.labels[label] for label in step] for step in bundle.postprocessing],
        "limits": asdict(bundle.limits),
        "intended_use": bundle.intended_use,
        "licence": bundle.licence,
        "training_data": bundle.training_data,
        "evaluation": dict(bundle.evaluation),
        "folder": str(bundle.folder),
    }


def _described_member(member: Member) -> dict[str, Any]:
    plan = member.plan
    return {
        "configuration": member.name,
        "network": plan.architecture.network,
        "patch_size": list(plan.patch_size),
        "spacing_mm": list(plan.spacing_mm),
        "folds": list(member.folds),
        "mirroring_axes": list(member.mirroring_axes),
        "previous_stage": member.previous_stage,
    }


def _print_bundle(described: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(described, indent=2, ensure_ascii=False))
        return
    for key, value in described.items():
        print(f"{key.replace('_', ' '):16} {_plain(value)}")


def _plain(value: Any) -> str:
    """A value as a person reads it."""
    match value:
        case None | "":
            return "-"
        case dict():
            return ", ".join(f"{key} {_plain(each)}" for key, each in value.items() if each is not None) or "-"
        case list():
            said = [_plain(each) for each in value]
            return ("; " if any(" " in each for each in said) else " ").join(said) or "-"
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)


def _segment(arguments: argparse.Namespace) -> int:
    from engines.measures import label_volumes_ml
    from engines.nifti import read_volume, write_itksnap_labels, write_label_map

    bundle = load_bundle(arguments.bundle)
    images = [read_volume(path, bundle.modalities[0]) for path in arguments.image]
    with _opened(bundle, arguments) as segmenter:
        result = segmenter.segment(images, None if arguments.json else _say_share)
    write_label_map(arguments.labels, result.label_map)
    names = result.label_map.names
    described = arguments.labels.with_name(f"{arguments.labels.name.split('.')[0]}.label.txt")
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
    _print_bundle(report, arguments.json)
    return 0


def _opened(bundle: Bundle, arguments: argparse.Namespace) -> Any:
    """A segmenter with the engine that was named, or the fastest that is certified."""
    from engines.backends.base import REFERENCE, Engine, Placement
    from engines.backends.cards import cautions
    from engines.inference.choice import Policy
    from engines.inference.fastest import open_fastest
    from engines.inference.segmenter import Segmenter, device_of, usable_threads
    from engines.inference.trial import device_name

    placement = Placement(device_of(arguments.device), arguments.threads or usable_threads())
    engine = None if arguments.engine is None else Engine.parse(arguments.engine)
    if placement.device != "cpu":
        for caution in cautions({(engine or REFERENCE).backend}, device_name(placement.device)):
            _say(str(caution))
    return open_fastest(bundle, Policy(), placement) if engine is None else Segmenter.open(bundle, engine, placement)


def _export(arguments: argparse.Namespace) -> int:
    from engines.backends.onnx_graph import GraphForm
    from engines.conversion.export import export

    if arguments.batch is not None and arguments.batch < 1:
        raise EngineError(f"--batch {arguments.batch}: at least one image")
    form = GraphForm(arguments.precision, arguments.norms, arguments.batch)
    made = export(load_bundle(arguments.bundle), arguments.out, form)
    if arguments.json:
        print(json.dumps([{**asdict(each), "path": str(each.path)} for each in made], indent=2, ensure_ascii=False))
        return 0
    for each in made:
        compared = "not compared with torch: onnxruntime is not installed"
        if each.error is not None:
            compared = f"logits off by at most {each.error:.2g} standard deviations from torch's"
        print(f"{each.path}: {compared}")
    return 0


def _colour(label: int) -> tuple[int, int, int]:
    """A colour far from those of the labels before: steps of the golden angle around the hue circle."""
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75, 0.95)
    return int(red * 255), int(green * 255), int(blue * 255)


def _evaluate(arguments: argparse.Namespace) -> int:
    from engines.inference.evaluation import evaluate, pair_cases, summary

    bundle = load_bundle(arguments.bundle)
    cases = pair_cases(arguments.images, arguments.labels, len(bundle.channels))
    with _opened(bundle, arguments) as segmenter:
        scores = list(evaluate(segmenter, cases, None if arguments.json else _say))
        reason = segmenter.reason
    figures = summary(scores)
    if arguments.out is not None:
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


def _verify(arguments: argparse.Namespace) -> int:
    made = _verified(load_bundle(arguments.bundle), arguments)
    if arguments.json:
        print(json.dumps(certificate.plain(made), indent=2))
    return _status(made)


def _status(made: Sequence[Certificate]) -> int:
    return 0 if all(each.verdict.outcome == "passed" for each in made) else 1


def _verified(bundle: Bundle, arguments: argparse.Namespace) -> list[Certificate]:
    """Verify, write each certificate as it is made, and show it."""
    from engines.backends.base import Engine, Placement
    from engines.conversion.verification import Verification, keep_volumes, verify
    from engines.inference.cases import find_cases
    from engines.inference.segmenter import device_of, usable_threads

    cases = find_cases(arguments.volumes, len(bundle.channels))[: arguments.limit]
    demand = Verification(
        against=arguments.against,
        engines=tuple(Engine.parse(text) for text in arguments.engine),
        limits=certificate.Limits(arguments.dice, arguments.volume_percent),
        placement=Placement(device_of(arguments.device), arguments.threads or usable_threads()),
    )
    made = []
    for each in verify(bundle, cases, demand, _say):
        certificate.add_record(arguments.out or certificate.certificates_path(bundle.folder), each)
        made.append(each)
        if not arguments.json:
            _show_certificate(each, [case.name for case in cases])
    if arguments.keep:
        keep_volumes(bundle, cases)
    return made


def _show_certificate(made: Certificate, names: Sequence[str]) -> None:
    key = made.key
    print(f"{key.backend} {key.precision} ({key.library}, {key.device}) against {made.reference}")
    print(f"  {'volume':24} {'label':24} {'Dice':>7} {'volume off':>10} {'voxels':>9} {'equal':>9}")
    for name, volume in zip(names, made.volumes, strict=False):
        equal = f"{100 * volume.equal_voxels:8.4f} %"
        for each in volume.labels:
            figures = f"{each.dice:7.4f} {each.volume_percent:8.2f} % {each.voxels:9d} {equal}"
            remark = "; ".join(each.faults(made.limits)) if each.is_judged else "not judged: too small"
            print(f"  {name:24} {each.name:24} {figures}  {remark}".rstrip())
    if made.logits_error is not None:
        print(f"  logits of the parity crops: off by at most {made.logits_error:.2g} standard deviations")
    print(f"  {made.verdict.outcome}: {made.verdict.reason} (certificate {made.number})\n", flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _say_share(share: float) -> None:
    """Progress on one line of a terminal; silent where nobody looks."""
    if sys.stderr.isatty():
        print(f"\rnetwork {100 * share:3.0f} %", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
