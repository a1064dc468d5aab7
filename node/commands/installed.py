"""What the engines need of this machine, told without importing a library that takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

from node.config import Settings


@dataclass(frozen=True)
class InstalledEngine:
    """Whether what an engine needs is installed."""

    engine: str
    usable: bool
    reason: str


def installed_engines(settings: Settings) -> tuple[InstalledEngine, ...]:
    """What is there, without importing a library that takes seconds: on a processor, an engine needs its package.

    Whether a card can be used only its driver knows, which torch must be asked for.
    """
    section = settings.segmenter
    if section.device in {"auto", "cpu"}:
        return tuple(_installed(text) for text in (*(section.engines or ("openvino",)), "torch"))
    from engines.inference.choice import available
    from node.service.engines import placement, policy

    found = available(policy(settings), placement(settings))
    return tuple(InstalledEngine(str(engine), each.available, each.reason) for engine, each in found)


def _installed(engine: str) -> InstalledEngine:
    package = engine.partition(" ")[0]
    if package == "tensorrt":
        return InstalledEngine(engine, False, 'tensorrt serves NVIDIA cards only: set segmenter.device = "cuda"')
    if find_spec(package) is None:
        return InstalledEngine(engine, False, f"the package {package} is not installed")
    said = f"{package} {version(package)} is installed, `hilum models --test` tries it"
    return InstalledEngine(engine, True, said)
