"""models: what can be segmented here, on what, and why."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

from engines.errors import BackendUnavailable
from engines.model.bundle import Bundle
from node.commands.configuration import settings_or_default
from node.commands.terminal import ANSWER_IS_NO, DONE, NotThere, document, say, table
from node.config import Settings
from node.service.house import enabled_bundles, segments_of, uncoded_labels


@dataclass(frozen=True)
class BackendChoice:
    """What is to be said of one backend on this machine."""

    backend: str
    device: str
    usable: bool
    reason: str


@dataclass(frozen=True)
class ModelPage:
    """All that is shown of one model."""

    name: str
    version: str
    digest: str
    folder: str
    modalities: Sequence[str]
    labels: Mapping[int, str]
    uncoded: Sequence[str]
    """Labels without a row in the tables of segments."""
    limits: object
    intended_use: str
    licence: str
    training_data: str
    evaluation: Mapping[str, float]
    backends: Sequence[BackendChoice]
    """In the configured order; the first that is usable is taken."""


def models(options: argparse.Namespace) -> int:
    """List the models, or show one with its card; with --test, try each backend on it."""
    settings = settings_or_default(options)
    bundles = enabled_bundles(settings)
    if options.name is not None and options.name not in bundles:
        raise NotThere(f"there is no model {options.name}; there are: {', '.join(bundles) or 'none'}")
    if options.name is not None:
        bundles = {options.name: bundles[options.name]}
    coded = set(segments_of(settings))
    pages = [_page(settings, bundle, coded, test=options.test) for bundle in bundles.values()]
    if options.json:
        say(document(pages))
    elif options.name is not None:
        say(_described(pages[0]))
        say(f"\n{bundles[options.name].card.read_text(encoding='utf-8')}")
    else:
        say("\n\n".join(_described(page) for page in pages) or "no models")
    return DONE if all(any(choice.usable for choice in page.backends) for page in pages) else ANSWER_IS_NO


def backend_choices(settings: Settings) -> tuple[BackendChoice, ...]:
    """What each configured backend says of this machine, in order. Imports torch."""
    from engines.backends.base import Engine
    from engines.inference.segmenter import availability

    section = settings.segmenter
    found = ((name, availability(Engine.parse(name), section.device)) for name in section.backends)
    return tuple(BackendChoice(name, section.device, answer.available, answer.reason) for name, answer in found)


def installed_backends(settings: Settings) -> tuple[BackendChoice, ...]:
    """The same without importing a library that takes seconds: on the processor, a backend needs its package alone.

    Whether a card can be used only its driver knows, which torch must be asked for.
    """
    section = settings.segmenter
    if section.device not in {"auto", "cpu"}:
        return backend_choices(settings)
    return tuple(_installed(name, section.device) for name in section.backends)


def _installed(name: str, device: str) -> BackendChoice:
    if find_spec(name) is None:
        return BackendChoice(name, device, False, f"the package {name} is not installed")
    return BackendChoice(name, device, True, f"{name} {version(name)} is installed, `hilum models --test` tries it")


def _tested(settings: Settings, bundle: Bundle) -> tuple[BackendChoice, ...]:
    """What each configured backend does with this model: opened, and its answer compared with the stored one."""
    from engines.inference.segmenter import open_first

    section, choices = settings.segmenter, []
    for name in section.backends:
        try:
            with open_first(bundle, [name], section.device, section.threads or None) as segmenter:
                choices.append(BackendChoice(name, section.device, True, segmenter.reason))
        except BackendUnavailable as error:
            choices.append(BackendChoice(name, section.device, False, str(error)))
    return tuple(choices)


def _page(settings: Settings, bundle: Bundle, coded: Collection[str], *, test: bool) -> ModelPage:
    return ModelPage(
        name=bundle.name,
        version=bundle.version,
        digest=bundle.digest,
        folder=str(bundle.folder),
        modalities=bundle.modalities,
        labels=bundle.labels,
        uncoded=uncoded_labels(bundle, coded),
        limits=bundle.limits,
        intended_use=bundle.intended_use,
        licence=bundle.licence,
        training_data=bundle.training_data,
        evaluation=bundle.evaluation,
        backends=_tested(settings, bundle) if test else backend_choices(settings),
    )


def _described(page: ModelPage) -> str:
    chosen = next((choice.backend for choice in page.backends if choice.usable), None)
    names = (f"{name} (no code)" if name in page.uncoded else name for name in page.labels.values())
    rows = (
        (c.backend, c.device, "taken" if c.backend == chosen else "usable" if c.usable else "no", c.reason)
        for c in page.backends
    )
    return "\n".join(
        [
            f"{page.name} {page.version}   {', '.join(page.modalities)}   digest {page.digest[:12]}",
            f"  labels    {', '.join(names)}",
            f"  for       {page.intended_use}",
            f"  measured  {', '.join(f'{name} {value:g}' for name, value in page.evaluation.items()) or 'not stated'}",
            table(("backend", "device", "", "reason"), rows, "  "),
        ]
    )
