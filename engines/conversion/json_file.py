"""nnU-Net's JSON files, each an object, in which no key stands twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.errors import BundleError


def read_json(path: Path) -> dict[str, Any]:
    """One file.

    Raises
    ------
    BundleError
        Where it is missing, no JSON object, or holds a key twice, of which Python's reader would drop one.
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}: not a results folder of nnU-Net v2, or half copied") from error
    except ValueError as error:
        raise BundleError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path}: holds no JSON object")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"{key!r} stands twice")
        content[key] = value
    return content
