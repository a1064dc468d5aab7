"""What is to be known of the ways onto NVIDIA cards that the configuration asks for."""

from __future__ import annotations

from engines.backends.cards import Caution, cautions
from node.config import Settings


def cautions_of(settings: Settings) -> tuple[Caution, ...]:
    """Those that never ran on such a card: TensorRT where an engine names it, torch where the device is a card."""
    section = settings.segmenter
    named = {engine.partition(" ")[0] for engine in section.engines} & {"tensorrt"}
    if section.device in {"auto", "cpu"}:
        return cautions(named)
    from engines.inference.trial import device_name  # imports torch, which takes seconds

    return cautions({*named, "torch"}, device_name(section.device))
