"""verify: hold a bundle's masks against nnunetv2's, and each engine's against torch's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.commands.terminal import say
from engines.model import certificate
from engines.model.bundle import Bundle, load_bundle
from engines.model.certificate import Certificate


def add_parser(commands: Any) -> None:
    """Its place on the command line."""
    command = commands.add_parser(
        "verify",
        help="hold a bundle's masks against nnunetv2's, and each engine's against torch's",
        description="Segment the images of a folder with nnunetv2's own predictor (needs the extra `train`) and with "
        "torch in float32, then with every other engine that can run here, and write certificates beside the bundle. "
        "A node takes an engine only with a certificate that passed. Status 1 where one fails or shows nothing.",
    )
    command.set_defaults(run=run)
    _add_options(command)


def _add_options(command: argparse.ArgumentParser) -> None:
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


def run(arguments: argparse.Namespace) -> int:
    """Verify; status 1 where a certificate does not pass."""
    made = _verified(load_bundle(arguments.bundle), arguments)
    if arguments.json:
        print(json.dumps(certificate.plain(made), indent=2))
    return status_of(made)


def verified_as_usual(bundle: Bundle, volumes: Path, *, as_json: bool) -> list[Certificate]:
    """What `verify` does where it is told nothing but the volumes."""
    parser = argparse.ArgumentParser()
    _add_options(parser)
    told = [str(bundle.folder), "--volumes", str(volumes), *(["--json"] if as_json else [])]
    return _verified(bundle, parser.parse_args(told))


def status_of(made: Sequence[Certificate]) -> int:
    """0 where every certificate passed, else 1."""
    return 0 if all(each.verdict.outcome == "passed" for each in made) else 1


def _verified(bundle: Bundle, arguments: argparse.Namespace) -> list[Certificate]:
    """Verify, write each certificate as it is made, and show it."""
    from engines.backends.base import Engine, Placement
    from engines.conversion.verification import Verification, keep_volumes, verify
    from engines.inference.cases import find_cases

    cases = find_cases(arguments.volumes, len(bundle.channels))[: arguments.limit]
    demand = Verification(
        against=arguments.against,
        engines=tuple(Engine.parse(text) for text in arguments.engine),
        limits=certificate.Limits(arguments.dice, arguments.volume_percent),
        placement=Placement.told(arguments.device, arguments.threads),
    )
    made = []
    for each in verify(bundle, cases, demand, say):
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
