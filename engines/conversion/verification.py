"""A bundle verified on volumes: torch in float32 against nnunetv2's own predictor, every other engine against torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from engines.backends.base import REFERENCE, Engine, Placement
from engines.backends.catalogue import backend_class
from engines.conversion.reference import NnunetPredictor
from engines.errors import BackendUnavailable, EngineError, UnsuitableVolume
from engines.inference.cases import Case, only_or_all
from engines.inference.choice import default_engines
from engines.inference.fastest import OpenEngine
from engines.inference.segmenter import Segmenter
from engines.inference.trial import (
    Answered,
    OpenSegmenter,
    engine_key,
    held_against_reference,
    measure,
)
from engines.model.bundle import Bundle
from engines.model.certificate import (
    ENGINE_LIMITS,
    REFERENCE_LIMITS,
    Certificate,
    Limits,
    Turned,
    agreement,
    certify,
    parity_folder,
)
from engines.volume import Volume

Against = Literal["nnunetv2", "torch"]
Tell = Callable[[str], None]
Labels = NDArray[Any]


_NOTHING = (
    "nothing to hold against torch here: no other engine can run on {device}; install one (pip install "
    "'hilum[openvino]'), name one (--engine), or hold torch itself against nnunetv2 (--against nnunetv2)"
)


@dataclass(frozen=True)
class Verification:
    """What is to be shown."""

    placement: Placement
    against: Against = "nnunetv2"
    """nnunetv2: torch in float32 first against that; torch: the other engines only."""
    engines: tuple[Engine, ...] = ()
    """To hold against torch in float32; empty: the device's defaults that can run here."""
    limits: Limits = ENGINE_LIMITS
    """For those; what torch in float32 must hold against nnunetv2 is fixed."""


def verify(
    bundle: Bundle,
    cases: Sequence[Case],
    demand: Verification,
    tell: Tell,
    open_engine: OpenEngine | None = None,
) -> Iterator[Certificate]:
    """A certificate for each engine, as it is made; its volumes are in the order of the cases.

    Parameters
    ----------
    tell
        Told a line for each volume and engine.

    Raises
    ------
    BackendUnavailable
        Where nnunetv2 is not installed, an engine that was asked for cannot run here, or there is none to hold against
        torch and nothing else to show.
    BundleError
        Where the bundle keeps nothing that nnunetv2 could be fed with.
    UnsuitableVolume
        Where an image cannot be read or segmented; the message names it.
    """
    opens: OpenEngine = open_engine or Segmenter.open
    others = _others(demand)
    if demand.against == "torch" and not others:
        raise BackendUnavailable(_NOTHING.format(device=demand.placement.device))
    theirs = _nnunet_labels(bundle, cases, demand, tell) if demand.against == "nnunetv2" else None
    with closing(opens(bundle, REFERENCE, demand.placement)) as reference:
        ours = _labels(reference, bundle, cases, tell)
    if theirs is not None:
        yield _reference_certificate(bundle, cases, theirs, ours, demand.placement)
    for engine in others:
        key = engine_key(bundle, engine, demand.placement.device)
        error = measure(bundle, engine, demand.placement).logits_error
        with closing(opens(bundle, engine, demand.placement)) as segmenter:
            answered = _told(bundle, cases, ours, engine, tell)
            yield held_against_reference(bundle, key, segmenter, answered, demand.limits, error=error)


def keep_volumes(bundle: Bundle, cases: Sequence[Case]) -> Path:
    """Copy images into the folder beside the bundle on which a node certifies engines; returns it.

    Raises
    ------
    EngineError
        Where one cannot be copied; the message names it.
    """
    folder = parity_folder(bundle.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (path for case in cases for path in case.files):
            if path.resolve() != (folder / path.name).resolve():  # the folder may be the one that was verified on
                shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise EngineError(
            f"{error.filename2 or error.filename or folder}: {error.strerror or error}: the volumes are not kept "
            f"(--keep); give {folder} room and rights, and verify again"
        ) from error
    return folder


@dataclass(frozen=True, eq=False)
class _Theirs:
    """nnunetv2's answers."""

    name: str
    labels: tuple[Labels, ...]
    turned: tuple[Turned | None, ...]
    logits_error: float
    """Between its logits and those stored in the bundle, on the parity crops."""


def _nnunet_labels(bundle: Bundle, cases: Sequence[Case], demand: Verification, tell: Tell) -> _Theirs:
    predictor = NnunetPredictor(bundle, demand.placement.device)
    labels, turned = [], []
    for number, (case, volumes) in enumerate(_read(bundle, cases), start=1):
        answer = predictor.segment_files(case.files, volumes)
        tell(f"{number}/{len(cases)} {case.name}: {predictor.name}, {answer.seconds['total']:.1f} s")
        labels.append(answer.labels)
        turned.append(answer.turned)
    crops = [(member.name, member.parity()) for member in bundle.members]
    error = max(crop.error(predictor.logits(name, crop.image)) for name, crop in crops)
    return _Theirs(predictor.compared_with, tuple(labels), tuple(turned), error)


def _labels(segmenter: OpenSegmenter, bundle: Bundle, cases: Sequence[Case], tell: Tell) -> tuple[Labels, ...]:
    labels = []
    for number, (case, volumes) in enumerate(_read(bundle, cases), start=1):
        try:
            answer = segmenter.segment(only_or_all(volumes))
        except UnsuitableVolume as error:
            raise UnsuitableVolume(f"{case.files[0]}: {error}") from error
        tell(f"{number}/{len(cases)} {case.name}: {REFERENCE}, {answer.seconds.get('total', 0.0):.1f} s")
        labels.append(answer.label_map.labels)
    return tuple(labels)


def _reference_certificate(
    bundle: Bundle, cases: Sequence[Case], theirs: _Theirs, ours: Sequence[Labels], placement: Placement
) -> Certificate:
    compared = [
        agreement(volumes, reference, found, bundle.labels, turned)
        for (_, volumes), reference, found, turned in zip(
            _read(bundle, cases), theirs.labels, ours, theirs.turned, strict=True
        )
    ]
    key = engine_key(bundle, REFERENCE, placement.device)
    return certify(bundle.name, key, theirs.name, REFERENCE_LIMITS, compared, logits_error=theirs.logits_error)


def _others(demand: Verification) -> tuple[Engine, ...]:
    """The engines to hold against torch in float32: what was asked for must run, of the defaults what can."""
    device = demand.placement.device
    chosen = []
    for engine in demand.engines or default_engines(device):
        found = backend_class(engine.backend).is_available(device, engine.precision)
        if demand.engines and not found.available:
            raise BackendUnavailable(f"{engine}: {found.reason}")
        if found.available and engine != REFERENCE:
            chosen.append(engine)
    return tuple(chosen)


def _told(
    bundle: Bundle, cases: Sequence[Case], labels: Sequence[Labels], engine: Engine, tell: Tell
) -> Iterable[Answered]:
    for number, ((case, volumes), found) in enumerate(zip(_read(bundle, cases), labels, strict=True), start=1):
        tell(f"{number}/{len(cases)} {case.name}: {engine}")
        yield Answered(volumes, found)


def _read(bundle: Bundle, cases: Sequence[Case]) -> Iterator[tuple[Case, tuple[Volume, ...]]]:
    """Images one by one: a folder of them would not fit into memory."""
    for case in cases:
        yield case, case.read(bundle.modalities[0])
