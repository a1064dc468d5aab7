"""The configuration of the node that demo and self-test start for themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from node.config import Settings
from node.domain.job import Destination
from node.domain.routing import SELFTEST_AE_TITLE


def node_toml(settings: Settings, archive: Destination, port: int, model: str) -> str:
    """A node.toml for one run: on loopback, with data of its own beside the file, the archive its only destination.

    Who the node is, its models and its device stay as in `settings`; waits are short.
    """
    kept = settings.model_dump(mode="json", exclude_none=True, include={"node", "models", "segmenter"})
    tree: dict[str, Any] = {
        "node": kept["node"] | {"data_dir": "data"},
        "models": kept["models"] | {"enabled": [model]},
        "segmenter": kept["segmenter"],
        "listener": {"host": "127.0.0.1", "port": port},
        "completion": {"quiet_s": 8.0, "released_quiet_s": 2.0},
        "spool": {"reserve_bytes": 100_000_000},
        "monitor": {"listener_port": 0, "worker_port": 0, "segmenter_port": 0},
        "peer": [{"name": "selftest", "ae_title": SELFTEST_AE_TITLE, "addresses": ["127.0.0.1"]}],
        "destination": [
            {
                "name": archive.name,
                "ae_title": archive.ae_title,
                "host": archive.host,
                "port": archive.port,
                "calling_ae_title": archive.calling_ae_title,
                "seg": archive.seg,
                "first_retry_s": 2.0,
            }
        ],
        "rule": [{"name": "selftest", "model": model, "senders": ["selftest"], "destinations": [archive.name]}],
    }
    return "\n".join(_lines(tree)) + "\n"


def _lines(tree: Mapping[str, Any]) -> Iterator[str]:
    for name, section in tree.items():
        for table in section if isinstance(section, list) else [section]:
            yield f"[[{name}]]" if isinstance(section, list) else f"[{name}]"
            yield from (f"{key} = {_value(value)}" for key, value in table.items())
            yield ""


def _value(value: object) -> str:
    """A TOML value; JSON writes strings, numbers, booleans and flat lists alike."""
    return json.dumps(value, ensure_ascii=False)
