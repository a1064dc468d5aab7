"""What the commands say, and how."""

from __future__ import annotations

import json
import sys
from typing import Any


def say(line: str) -> None:
    """A remark, on standard error."""
    print(line, file=sys.stderr, flush=True)


def say_share(share: float) -> None:
    """Progress on one line of a terminal; silent where nobody looks."""
    if sys.stderr.isatty():
        print(f"\rnetwork {100 * share:3.0f} %", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)


def print_described(described: dict[str, Any], as_json: bool) -> None:
    """A result, on standard output: as JSON, or a line for each part."""
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
