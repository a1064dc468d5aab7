"""models: what can be segmented here, on what, and why."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from engines.backends.cards import CARD_PATHS, CardPath
from engines.errors import BackendUnavailable, OutOfDeviceMemory
from engines.inference.choice import Candidate, candidates, decide
from engines.inference.segmenter import Segmenter
from engines.inference.trial import measure
from engines.model.bundle import Bundle
from node.commands.configuration import settings_or_default
from node.commands.terminal import ANSWER_IS_NO, DONE, NotThere, document, say, table
from node.config import Settings
from node.service.engines import placement, policy
from node.service.house import enabled_bundles, segments_of, uncoded_labels


@dataclass(frozen=True)
class EngineChoice:
    """What is to be said of one engine on this machine, for one model."""

    engine: str
    device: str
    usable: bool
    """It can run here."""
    standing: str
    """`certified`, `refused`, `not certified`, or `reference`."""
    taken: bool
    seconds_per_patch: float | None
    """As it was measured here."""
    certificate: str
    """Its number, where there is one."""
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
    engines: Sequence[EngineChoice]
    """In the configured order."""
    cards: Sequence[CardPath]
    """On which cards each way of using one has run: the same for every model."""


def models(options: argparse.Namespace) -> int:
    """List the models, or show one with its card; with --test, try each engine on it."""
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
        say(f"{_described(pages[0])}\n\n{_on_cards()}")
        say(f"\n{bundles[options.name].card.read_text(encoding='utf-8')}")
    else:
        say("\n\n".join((*(_described(page) for page in pages), _on_cards())) if pages else "no models")
    return DONE if all(any(choice.taken for choice in page.engines) for page in pages) else ANSWER_IS_NO


def _engines(settings: Settings, bundle: Bundle, *, test: bool) -> tuple[EngineChoice, ...]:
    """Each engine with its certificate; with `test`, opened, and its answer compared with the stored one."""
    found = candidates(bundle, policy(settings), placement(settings))
    if test:
        found = tuple(_tested(settings, bundle, each) for each in found)
    taken = decide(found).taken
    return tuple(
        EngineChoice(
            engine=str(each.engine),
            device=each.key.device,
            usable=each.usable,
            standing=each.standing,
            taken=each is taken,
            seconds_per_patch=each.seconds_per_patch,
            certificate="" if each.certificate is None else each.certificate.number,
            reason=f"{each.words}; {each.reason}" if each.usable else each.reason,
        )
        for each in found
    )


def _tested(settings: Settings, bundle: Bundle, candidate: Candidate) -> Candidate:
    """The same after it was tried on this model; one that cannot run is not tried."""
    if not candidate.usable:
        return candidate
    where = placement(settings)
    try:
        with Segmenter.open(bundle, candidate.engine, where):
            seconds = measure(bundle, candidate.engine, where).seconds_per_patch
    except (BackendUnavailable, OutOfDeviceMemory) as error:
        return replace(candidate, usable=False, reason=str(error))
    return replace(candidate, reason=f"{candidate.reason}, self-test passed", seconds_per_patch=seconds)


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
        engines=_engines(settings, bundle, test=test),
        cards=CARD_PATHS,
    )


def _described(page: ModelPage) -> str:
    names = (f"{name} (no code)" if name in page.uncoded else name for name in page.labels.values())
    rows = (
        (c.engine, c.device, _said(c), "" if c.seconds_per_patch is None else f"{c.seconds_per_patch:.3g}", c.reason)
        for c in page.engines
    )
    return "\n".join(
        [
            f"{page.name} {page.version}   {', '.join(page.modalities)}   digest {page.digest[:12]}",
            f"  labels    {', '.join(names)}",
            f"  for       {page.intended_use}",
            f"  measured  {', '.join(f'{name} {value:g}' for name, value in page.evaluation.items()) or 'not stated'}",
            table(("engine", "device", "", "s a patch", "reason"), rows, "  "),
        ]
    )


def _on_cards() -> str:
    return "\n".join(("on NVIDIA cards", *(f"  {path}" for path in CARD_PATHS)))


def _said(choice: EngineChoice) -> str:
    """In a word or two: taken, or why it is not."""
    if choice.taken:
        return "taken"
    if not choice.usable:
        return "cannot run"
    return "usable" if choice.standing in {"certified", "reference"} else choice.standing
