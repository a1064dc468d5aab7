"""export: write a bundle's networks as ONNX files."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.commands.numbers import positive
from engines.model.bundle import load_bundle


def add_parser(commands: Any) -> None:
    """Its place on the command line."""
    command = commands.add_parser(
        "export",
        help="write a bundle's networks as ONNX files",
        description="Write one ONNX file for each member and fold: a patch in (image), logits out; the patch is fixed, "
        "every tensor's type is in the graph. Needs the extra `onnx`; where onnxruntime is installed too, a file is "
        "kept only if it answers the bundle's parity crop as torch does.",
    )
    command.set_defaults(run=run)
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    command.add_argument("--out", type=Path, required=True, help="folder of the files; must not exist")
    precisions = ("float32", "float16")
    command.add_argument("--precision", choices=precisions, default="float32", help="of every tensor (%(default)s)")
    command.add_argument(
        "--norms", choices=precisions, default="float32", help="of instance norms in a float16 file (%(default)s)"
    )
    command.add_argument("--batch", type=positive, help="images at once; left out: whoever runs the file says so")
    command.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> int:
    """Write the files, and how far each lies from torch."""
    from engines.backends.onnx_graph import GraphForm
    from engines.conversion.export import export

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
