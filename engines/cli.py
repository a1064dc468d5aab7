"""hilum-models: import a trained nnU-Net model; show, evaluate, verify, export a bundle, segment one image with it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from engines.commands import evaluating, exporting, importing, segmenting, showing, verifying
from engines.errors import EngineError

# Torch takes seconds to import: each command loads what needs it inside its own function.


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
    for command in (importing, showing, segmenting, evaluating, verifying, exporting):
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
