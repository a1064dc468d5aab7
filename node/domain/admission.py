"""What an administrator adds to let a refused peer in."""

from __future__ import annotations

import re

_NOT_A_NAME = re.compile(r"[^a-z0-9]+")


def peer_lines(calling_ae_title: str, address: str) -> str:
    """The `[[peer]]` of node.toml for this peer; what the peer said of itself stands in it escaped (SEC-21)."""
    quoted = "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in calling_ae_title)
    name = _NOT_A_NAME.sub("-", calling_ae_title.lower()).strip("-")[:40] or "peer"
    return f'[[peer]]\nname = "{name}"\nae_title = "{quoted}"\naddresses = ["{address}"]'
