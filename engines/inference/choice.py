"""Which engine shall serve a model here: the fastest that a certificate allows; torch in float32 where none does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engines.backends.base import REFERENCE, Availability, Engine, Placement
from engines.backends.catalogue import backend_class
from engines.errors import RecordsError
from engines.inference.trial import engine_key
from engines.model.attempt import left_behind
from engines.model.bundle import Bundle
from engines.model.certificate import (
    ENGINE_LIMITS,
    Certificate,
    EngineKey,
    Limits,
    Records,
    certificates_path,
    newest_of_reference,
    read_records,
    reference_refusal,
    site_path,
)

Standing = Literal["reference", "certified", "refused", "not certified"]


def default_engines(device: str) -> tuple[Engine, ...]:
    """What is considered where nothing is configured."""
    if device == "cpu":
        return (Engine("openvino", "bfloat16"), Engine("openvino"), REFERENCE)
    return (Engine("torch", "float16"), REFERENCE)


@dataclass(frozen=True)
class Policy:
    """What may serve."""

    engines: tuple[Engine, ...] = ()
    """To consider; empty: the defaults of the device."""
    limits: Limits = ENGINE_LIMITS
    site: Path | None = None
    """Folder of the certificates and speeds that are measured here; None: none are kept."""

    def considered(self, device: str) -> tuple[Engine, ...]:
        """The engines, and behind them the reference where it is not among them."""
        engines = self.engines or default_engines(device)
        return engines if REFERENCE in engines else (*engines, REFERENCE)


@dataclass(frozen=True)
class Candidate:
    """One engine for one bundle on this machine."""

    engine: Engine
    key: EngineKey
    usable: bool
    reason: str
    """Why it can run here, or cannot."""
    standing: Standing
    certificate: Certificate | None = None
    """The newest one, passed or not; of the reference, the one against nnunetv2."""
    seconds_per_patch: float | None = None
    fallback: bool = False
    """Not asked for: taken only where nothing else may serve."""

    @property
    def may_serve(self) -> bool:
        """Whether a result may be made with it."""
        return self.usable and self.standing in {"reference", "certified"}

    @property
    def words(self) -> str:
        """Its standing in words, with the certificate."""
        made = self.certificate
        if made is None:
            return {
                "reference": "the reference, not verified against nnunetv2 here",
                "not certified": f"not certified for this model with {self.key.library} on {self.key.device}",
            }.get(self.standing, self.standing)
        when = f"{made.made_at:%Y-%m-%d}"
        if self.standing == "reference":
            said = "verified" if made.verdict.outcome == "passed" else f"NOT verified ({made.verdict.reason})"
            return f"the reference, {said} against {made.reference} on {when}, certificate {made.number}"
        said = {"certified": "certified", "refused": "refused"}.get(self.standing, "nothing shown")
        why = "" if self.standing == "certified" else f": {made.verdict.reason}"
        return f"{said} against {made.reference} on {when}, certificate {made.number}{why}"


@dataclass(frozen=True)
class Decision:
    """Which one serves, and why."""

    taken: Candidate | None
    reason: str


def available(policy: Policy, placement: Placement) -> tuple[tuple[Engine, Availability], ...]:
    """What this machine says of each engine, whatever the model."""
    return tuple(
        (engine, backend_class(engine.backend).is_available(placement.device, engine.precision))
        for engine in policy.considered(placement.device)
    )


def candidates(bundle: Bundle, policy: Policy, placement: Placement) -> tuple[Candidate, ...]:
    """What is known of each engine, in the order of the policy; nothing is opened or measured."""
    shipped = read_records(certificates_path(bundle.folder))
    own, _ = own_records(bundle, policy)
    engines = policy.considered(placement.device)
    return tuple(_candidate(bundle, engine, policy, placement, (own, shipped)) for engine in engines)


def own_records(bundle: Bundle, policy: Policy) -> tuple[Records, str]:
    """What was found here, and why that cannot be read, if it cannot: then nothing was found, and nothing is kept."""
    if policy.site is None:
        return Records(), ""
    try:
        return read_records(site_path(policy.site, bundle.digest)), ""
    except RecordsError as error:
        return Records(), str(error)


def refusal(bundle: Bundle, policy: Policy) -> str:
    """Why no engine of this bundle may serve, with the mend: its reference is not what nnunetv2 is; empty: it may."""
    shipped = certificates_path(bundle.folder)
    files = {shipped: read_records(shipped)}
    if policy.site is not None:
        files[site_path(policy.site, bundle.digest)] = own_records(bundle, policy)[0]
    return reference_refusal(bundle.digest, files)


def decide(found: Sequence[Candidate]) -> Decision:
    """The fastest of those that may serve; where nothing was measured, the first. Without a reference, none."""
    refused = any(each.engine == REFERENCE and each.standing == "refused" for each in found)
    able = [] if refused else [each for each in found if each.may_serve]
    asked_for = [each for each in able if not each.fallback] or able
    taken = min(asked_for, key=_haste, default=None)
    return Decision(taken, reason_for(found, None if taken is None else taken.engine))


def reason_for(found: Sequence[Candidate], taken: Engine | None) -> str:
    """What is to be said of the engine that serves, and of each other one."""
    serves = [f"{c.engine}: taken{_pace(c)}, {c.words}" for c in found if c.engine == taken]
    return "; ".join((*serves, *(f"{c.engine}: {_passed_over(c)}" for c in found if c.engine != taken)))


def waiting(found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those that a certificate would let serve in the place of the one that serves, fastest first.

    Nothing waits where nothing was measured: what is not known to be faster is not worth a trial.
    """
    taken = decide(found).taken
    if taken is None:
        return ()
    ready = [each for each in found if each.usable and each.standing == "not certified" and each.seconds_per_patch]
    if not taken.fallback:
        ready = [each for each in ready if _haste(each) < _haste(taken)]
    return tuple(sorted(ready, key=_haste))


def _haste(candidate: Candidate) -> float:
    """Seconds; one that was not measured is behind those that were."""
    return float("inf") if candidate.seconds_per_patch is None else candidate.seconds_per_patch


def _pace(candidate: Candidate) -> str:
    return "" if candidate.seconds_per_patch is None else f", {candidate.seconds_per_patch:.3g} s a patch"


def _passed_over(candidate: Candidate) -> str:
    if not candidate.usable:
        return candidate.reason
    if not candidate.may_serve:
        return candidate.words
    return "not measured here" if candidate.seconds_per_patch is None else f"slower{_pace(candidate)}"


def _candidate(
    bundle: Bundle, engine: Engine, policy: Policy, placement: Placement, records: tuple[Records, Records]
) -> Candidate:
    """What was found here is believed before what came with the bundle; an engine that killed a process waits."""
    own, shipped = records
    key = engine_key(bundle, engine, placement.device)
    can = backend_class(engine.backend).is_available(placement.device, engine.precision)
    certificate = own.certificate(key) or shipped.certificate(key)
    if engine == REFERENCE:
        certificate = newest_of_reference(bundle.digest, records)
    hindered = left_behind(policy.site, key) if policy.site is not None and engine != REFERENCE else ""
    speed = own.speed(key, placement.threads)
    return Candidate(
        engine=engine,
        key=key,
        usable=can.available and not hindered,
        reason=hindered or can.reason,
        standing=standing(engine, certificate, policy.limits),
        certificate=certificate,
        seconds_per_patch=None if speed is None else speed.seconds_per_patch,
        fallback=bool(policy.engines) and engine not in policy.engines,
    )


def standing(engine: Engine, certificate: Certificate | None, limits: Limits) -> Standing:
    """What an engine's newest certificate makes of it under these limits."""
    if engine == REFERENCE:
        failed = certificate is not None and certificate.verdict.outcome == "failed"
        return "refused" if failed else "reference"
    if certificate is None:
        return "not certified"
    outcome = certificate.under(limits).outcome
    return "certified" if outcome == "passed" else "refused" if outcome == "failed" else "not certified"
