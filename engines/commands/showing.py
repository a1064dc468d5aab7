"""show: verify a bundle and describe it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.commands.terminal import print_described
from engines.model.bundle import Bundle, Member, load_bundle


def add_parser(commands: Any) -> None:
    """Its place on the command line."""
    command = commands.add_parser(
        "show",
        help="verify a bundle and describe it",
        description="Check every file of a bundle against its SHA-256, then describe the model and say which backends "
        "can run it on this machine.",
    )
    command.set_defaults(run=run)
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    command.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> int:
    """Check every file of a bundle, describe it, and say which engines can run it here."""
    from engines.backends.base import Placement
    from engines.inference.choice import Policy, candidates

    bundle = load_bundle(arguments.bundle)
    found = candidates(bundle, Policy(), Placement())
    verdict = {True: "can run", False: "cannot run"}
    engines = {str(each.engine): f"{verdict[each.usable]} ({each.reason}); {each.words}" for each in found}
    print_described({**described(bundle), "engines": engines}, arguments.json)
    return 0


def described(bundle: Bundle) -> dict[str, Any]:
    """All that is said of a bundle, for people and programs."""
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
        "coded": {name: coded[name] for name in bundle.labels.values() if name in coded},
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
