"""The UIDs that this product writes: its own implementation, and result UIDs derived from what a result is made of."""

from __future__ import annotations

import uuid

IMPLEMENTATION_CLASS_UID = "2.25.295605788510781906581823774606214149189"
"""Identifies this product in file meta, associations and (0008,0014) of every result (NET-36, NET-39)."""
IMPLEMENTATION_VERSION_NAME = "HILUM_0_1"
"""At most 16 characters (PS3.7 D.3.3.2)."""

_NAMESPACE = uuid.UUID("d67d0b5a-46e2-5d31-9d4f-0b8cf5a1c0dd")
_LONGEST = 64
_FEWEST_DIGITS = 20


def result_uid(root: str | None, *parts: str) -> str:
    """A UID that is the same for the same parts, and for no others (RES-20; PS3.5 B.2).

    Without a root it is `2.25.` and a name-based UUID (version 5) as one whole number, at most 44 characters; with an
    organisation's root, that root and as many digits of the same number as fit.

    Raises
    ------
    ValueError
        Where the root is so long that fewer than 20 digits fit.
    """
    name = "".join(f"{len(part)}:{part}," for part in parts)
    number = uuid.uuid5(_NAMESPACE, name).int
    if root is None:
        return f"2.25.{number}"
    room = _LONGEST - len(root) - 1
    if room < _FEWEST_DIGITS:
        raise ValueError(f"a UID root of {len(root)} characters leaves {room} digits, {_FEWEST_DIGITS} are needed")
    return f"{root}.{number % 10**room}"
