"""How this node opens a model: with which engines, on what, within which limits. Imports torch."""

from __future__ import annotations

import os

from engines.backends.base import Engine, Placement
from engines.inference.choice import Policy
from engines.inference.fastest import FastestSegmenter, open_fastest
from engines.inference.segmenter import device_of, usable_threads
from engines.model.bundle import Bundle
from engines.model.certificate import Limits
from node.config import Settings


def open_model(settings: Settings, bundle: Bundle) -> FastestSegmenter:
    """A model, open with the fastest engine that may serve; raises as `open_fastest`."""
    return open_fastest(bundle, policy(settings), placement(settings))


def policy(settings: Settings) -> Policy:
    """What may serve. Certificates and speeds are kept where there is a data folder of the node to keep them in."""
    section, data = settings.segmenter, settings.node.data_dir
    return Policy(
        engines=tuple(Engine.parse(text) for text in section.engines),
        limits=Limits(section.certificate_dice, section.certificate_volume_percent),
        site=settings.engines_folder if data.is_dir() and os.access(data, os.W_OK) else None,
    )


def placement(settings: Settings) -> Placement:
    """On what networks run; `auto` is the processor."""
    section = settings.segmenter
    return Placement(
        device=device_of(section.device),
        threads=section.threads or usable_threads(),
        cache=settings.cache_folder,
    )
