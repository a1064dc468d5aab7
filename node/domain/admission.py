"""What an administrator adds to let a refused peer in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from typing import Protocol

_NOT_A_NAME = re.compile(r"[^a-z0-9]+")
_LONGEST_NAME = 40


class Listed(Protocol):
    """A `[[peer]]` that the configuration has."""

    @property
    def name(self) -> str:
        """Its name, which no other peer may have."""

    @property
    def ae_title(self) -> str:
        """Its AE title, capitals and all."""

    @property
    def addresses(self) -> Collection[object]:
        """The networks that it may come from."""


def lines_to_add(calling_ae_title: str, address: str, peers: Collection[Listed] = ()) -> str:
    """What node.toml needs to let this peer in; what the peer said of itself stands in it escaped (SEC-21).

    A new `[[peer]]` under a name that is free. Where the AE title is that of a peer which came from elsewhere, the
    line of addresses to change there; it is a remark, so that nothing breaks where it is added instead.
    """
    known = [peer for peer in peers if peer.ae_title == calling_ae_title]
    if known:
        return "\n".join(_changed(peer, address) for peer in known)
    quoted = "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in calling_ae_title)
    name = _free_name(calling_ae_title, {peer.name for peer in peers})
    return f'[[peer]]\nname = "{name}"\nae_title = "{quoted}"\naddresses = ["{address}"]'


def _changed(peer: Listed, address: str) -> str:
    addresses = ", ".join(f'"{each}"' for each in (*peer.addresses, address))
    return f"# change in the [[peer]] {peer.name}, which has this AE title:\n# addresses = [{addresses}]"


def _free_name(calling_ae_title: str, taken: Collection[str]) -> str:
    stem = _NOT_A_NAME.sub("-", calling_ae_title.lower()).strip("-")[:_LONGEST_NAME] or "peer"
    numbered = (f"{stem[: _LONGEST_NAME - 4]}-{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([stem], numbered) if name not in taken)
