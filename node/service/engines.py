"""How this node opens a model: with which engines, on what, within which limits. Imports torch."""

from __future__ import annotations

import os
from pathlib import Path

from engines.backends.base import Engine, Placement
from engines.inference.building import Builder
from engines.inference.choice import Policy
from engines.inference.fastest import FastestSegmenter, Tell, open_fastest
from engines.model.bundle import Bundle
from engines.model.certificate import Limits
from node.config import Settings


def open_model(
    settings: Settings, bundle: Bundle, builder: Builder | None = None, tell: Tell | None = None
) -> FastestSegmenter:
    """A model, open with the fastest engine that may serve; raises as `open_fastest`.

    Parameters
    ----------
    builder
        Of a process that stays: builds engines in the background.
    tell
        Told what becomes of each engine.
    """
    return open_fastest(bundle, policy(settings), placement(settings), builder=builder, tell=tell)


def policy(settings: Settings) -> Policy:
    """What may serve. Certificates and speeds are kept where there is a data folder of the node to keep them in."""
    section = settings.segmenter
    return Policy(
        engines=tuple(Engine.parse(text) for text in section.engines),
        limits=Limits(section.certificate_dice, section.certificate_volume_percent),
        site=_kept_in(settings),
    )


def placement(settings: Settings) -> Placement:
    """On what networks run; `auto` is the processor."""
    section = settings.segmenter
    return Placement.told(section.device, section.threads, _kept_in(settings))


def _kept_in(settings: Settings) -> Path | None:
    """The folder of engines; None where this process may not write in it, or where it is not there, not make it."""
    folder = settings.engines_folder
    written = folder if folder.exists() else settings.node.data_dir
    return folder if written.is_dir() and os.access(written, os.W_OK | os.X_OK) else None
