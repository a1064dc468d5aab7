"""verify: hold a bundle's masks against nnunetv2's, and each engine's against torch's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.commands.numbers import positive
from engines.commands.terminal import say
from engines.model import certificate
from engines.model.bundle import Bundle, load_bundle
from engines.model.certificate import ENGINE_LIMITS, Certificate

if TYPE_CHECKING:  # torch takes seconds to import
    from engines.conversion.verification import Verification
    from engines.inference.cases import Case


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
        help="torch: leave nnunetv2 out, hold the other engines against torch in float32 alone; left out: nnunetv2",
    )
    command.add_argument(
        "--engine", action="append", default=[], help="such as 'openvino bfloat16'; may be given again"
    )
    command.add_argument("--limit", type=positive, help="take so many volumes, the first by name")
    most = ENGINE_LIMITS.volume_percent
    command.add_argument("--dice", type=float, default=ENGINE_LIMITS.dice, help="least Dice of others (%(default)s)")
    command.add_argument("--volume-percent", type=float, default=most, help="largest difference (%(default)s)")
    command.add_argument("--keep", action="store_true", help="keep the volumes beside the bundle, for certifying there")
    command.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (%(default)s: the processor)")
    command.add_argument("--threads", type=positive, help="processor threads; left out: all that this process may use")


def run(arguments: argparse.Namespace) -> int:
    """Verify; status 1 where a certificate does not pass."""
    from engines.conversion.verification import keep_volumes

    bundle = load_bundle(arguments.bundle)
    cases = _cases(bundle, arguments.volumes)[: arguments.limit]
    made = _verified(bundle, cases, _demand(arguments), out=arguments.out, as_json=arguments.json)
    if arguments.keep:
        keep_volumes(bundle, cases)
    if arguments.json:
        print(json.dumps(certificate.plain(made), indent=2))
    return status_of(made)


def verified_as_usual(bundle: Bundle, volumes: Path, *, as_json: bool) -> list[Certificate]:
    """What `verify` does where it is told nothing but the volumes."""
    from engines.backends.base import Placement
    from engines.conversion.verification import Verification

    return _verified(bundle, _cases(bundle, volumes), Verification(Placement.told()), out=None, as_json=as_json)


def status_of(made: Sequence[Certificate]) -> int:
    """0 where every certificate passed, else 1."""
    return 0 if all(each.verdict.outcome == "passed" for each in made) else 1


def _cases(bundle: Bundle, volumes: Path) -> Sequence[Case]:
    from engines.inference.cases import find_cases

    return find_cases(volumes, len(bundle.channels))


def _demand(arguments: argparse.Namespace) -> Verification:
    """What the command line says; what it leaves out is `Verification`'s to say."""
    from engines.backends.base import Engine, Placement
    from engines.conversion.verification import Verification

    against = {} if arguments.against is None else {"against": arguments.against}
    return Verification(
        placement=Placement.told(arguments.device, arguments.threads),
        engines=tuple(Engine.parse(text) for text in arguments.engine),
        limits=certificate.Limits(arguments.dice, arguments.volume_percent),
        **against,
    )


def _verified(
    bundle: Bundle, cases: Sequence[Case], demand: Verification, *, out: Path | None, as_json: bool
) -> list[Certificate]:
    """Verify, write each certificate as it is made, and show it."""
    from engines.conversion.verification import verify

    made = []
    for each in verify(bundle, cases, demand, say):
        certificate.add_record(out or certificate.certificates_path(bundle.folder), each)
        made.append(each)
        if not as_json:
            _show_certificate(each, [case.name for case in cases])
    return made


def _show_certificate(made: Certificate, names: Sequence[str]) -> None:
    key = made.key
    print(f"{key.backend} {key.precision} ({key.library}, {key.device}) against {made.reference}")
    print(f"  {'volume':24} {'label':24} {'Dice':>7} {'volume off':>10} {'voxels':>9} {'equal':>9}")
    for name, volume in zip(names, made.volumes, strict=False):
        if volume.turned is not None:
            print(f"  {name:24} {volume.turned}")
        equal = f"{100 * volume.equal_voxels:8.4f} %"
        for each in volume.labels:
            figures = f"{each.dice:7.4f} {each.volume_percent:8.2f} % {each.voxels:9d} {equal}"
            remark = "; ".join(each.faults(made.limits)) if each.is_judged else "not judged: too small"
            print(f"  {name:24} {each.name:24} {figures}  {remark}".rstrip())
    if made.logits_error is not None:
        print(f"  logits of the parity crops: off by at most {made.logits_error:.2g} standard deviations")
    print(f"  {made.verdict.outcome}: {made.verdict.reason} (certificate {made.number})\n", flush=True)
