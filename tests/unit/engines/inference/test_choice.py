"""The choice of an engine: the fastest that a certificate allows, and the words for every other."""

from __future__ import annotations

import platform
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.backends.base import REFERENCE, Availability, Engine, Placement
from engines.inference import choice
from engines.inference.choice import Candidate, Policy, candidates, decide, default_engines, standing, waiting
from engines.inference.trial import device_name, engine_key
from engines.model.certificate import (
    ENGINE_LIMITS,
    PATH_REVISION,
    Certificate,
    EngineKey,
    LabelAgreement,
    Limits,
    Speed,
    VolumeAgreement,
    add_record,
    certificates_path,
    certify,
    site_path,
)

FAST, MIDDLE = Engine("openvino", "bfloat16"), Engine("openvino")
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
PLACEMENT = Placement(threads=2)


def key(engine: Engine, **changes: str) -> EngineKey:
    own = EngineKey(
        "d" * 64, engine.backend, engine.precision, f"{engine.backend} 1.0", device_name("cpu"), PATH_REVISION
    )
    return replace(own, **changes)


def made(engine: Engine, dice: float = 0.999, reference: str = "torch float32 1.0", **changes: str) -> Certificate:
    label = LabelAgreement(1, "liver", 4000, 4000, dice)
    volumes = [VolumeAgreement("a" * 64, (20, 30, 30), 0.9999, (label,))]
    return replace(certify("unit", key(engine, **changes), reference, ENGINE_LIMITS, volumes), made_at=NOW)


def candidate(engine: Engine, seconds: float | None, *, certified: bool | None = None, **changes: Any) -> Candidate:
    """True: passed; False: refused; None: nothing known."""
    certificate = None if certified is None else made(engine, 0.999 if certified else 0.9)
    found = Candidate(
        engine=engine,
        key=key(engine),
        usable=True,
        reason=f"{engine.backend} 1.0 on the processor",
        standing=standing(engine, certificate, ENGINE_LIMITS),
        certificate=certificate,
        seconds_per_patch=seconds,
    )
    return replace(found, **changes)


def test_the_fastest_that_is_certified_is_taken() -> None:
    found = (
        candidate(FAST, 0.1, certified=True),
        candidate(MIDDLE, 0.05, certified=True),
        candidate(REFERENCE, 0.2),
    )
    decision = decide(found)
    assert decision.taken is found[1]
    number = found[1].certificate.number  # type: ignore[union-attr]
    assert decision.reason == (
        f"openvino float32: taken, 0.05 s a patch, certified against torch float32 1.0 on 2026-11-30, certificate "
        f"{number}; openvino bfloat16: slower, 0.1 s a patch; torch float32: slower, 0.2 s a patch"
    )


@pytest.mark.parametrize(
    ("fast", "said"),
    [
        (candidate(FAST, 0.01), "not certified for this model with openvino 1.0 on cpu"),
        (candidate(FAST, 0.01, certified=False), "liver: Dice 0.9000, below 0.995"),
        (candidate(FAST, 0.01, certified=True, usable=False, reason="no bf16 units"), "no bf16 units"),
    ],
)
def test_a_faster_one_that_may_not_serve_is_passed_over_in_words(fast: Candidate, said: str) -> None:
    decision = decide((fast, candidate(REFERENCE, 0.2)))
    assert decision.taken is not None
    assert decision.taken.engine == REFERENCE
    assert "torch float32: taken, 0.2 s a patch, the reference, not verified against nnunetv2 here" in decision.reason
    assert "openvino bfloat16: " in decision.reason
    assert said in decision.reason


def test_the_reference_is_taken_where_it_is_faster() -> None:
    decision = decide((candidate(MIDDLE, 0.3, certified=True), candidate(REFERENCE, 0.2)))
    assert decision.taken is not None
    assert decision.taken.engine == REFERENCE


def test_where_nothing_was_measured_the_order_decides() -> None:
    decision = decide((candidate(FAST, None, certified=True), candidate(REFERENCE, None)))
    assert decision.taken is not None
    assert decision.taken.engine == FAST


def test_a_reference_that_nobody_asked_for_serves_only_where_nothing_else_may() -> None:
    fallback = candidate(REFERENCE, 0.01, fallback=True)
    taken = decide((candidate(MIDDLE, 0.3, certified=True), fallback)).taken
    assert taken is not None
    assert taken.engine == MIDDLE
    assert decide((candidate(MIDDLE, 0.3), fallback)).taken is fallback


def test_nothing_may_serve() -> None:
    decision = decide((candidate(FAST, 0.1), candidate(REFERENCE, 0.2, usable=False, reason="no card")))
    assert decision.taken is None
    assert decision.reason.endswith("torch float32: no card")


def test_only_what_would_be_faster_waits_for_a_certificate() -> None:
    fast, middle, reference = candidate(FAST, 0.1), candidate(MIDDLE, 0.05), candidate(REFERENCE, 0.2)
    assert waiting((fast, middle, reference)) == (middle, fast)
    assert waiting((fast, replace(middle, seconds_per_patch=0.3), reference)) == (fast,)
    assert waiting((fast, candidate(MIDDLE, 0.05, certified=True), reference)) == ()
    assert waiting((candidate(FAST, 0.1, certified=False), reference)) == ()
    assert waiting((replace(fast, usable=False), reference)) == ()
    assert waiting((replace(fast, seconds_per_patch=None), replace(reference, fallback=True))) == ()
    slow = replace(fast, seconds_per_patch=0.9)
    assert waiting((slow, replace(reference, fallback=True))) == (slow,)


def test_a_reference_that_was_held_against_nnunetv2_says_so() -> None:
    verified = candidate(REFERENCE, 0.2, certificate=made(REFERENCE, reference="nnunetv2 2.8.1"))
    assert verified.words.startswith("the reference, verified against nnunetv2 2.8.1 on 2026-11-30, certificate ")
    failed = candidate(REFERENCE, 0.2, certificate=made(REFERENCE, 0.9, reference="nnunetv2 2.8.1"))
    assert "NOT verified" in failed.words
    assert failed.may_serve


class AnyBackend:
    """Runs everything."""

    @classmethod
    def is_available(cls, _device: str, _precision: str = "float32") -> Availability:
        return Availability(True, "on the processor")


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(choice, "backend_class", lambda _name: AnyBackend)
    monkeypatch.setattr("engines.inference.trial.library_version", lambda backend, *_: f"{backend} 1.0")
    return SimpleNamespace(name="unit", digest="d" * 64, folder=tmp_path / "bundles" / "unit")


def test_certificates_beside_the_bundle_are_found(bundle: Any) -> None:
    assert [each.standing for each in candidates(bundle, Policy(), PLACEMENT)] == [
        "not certified",
        "not certified",
        "reference",
    ]
    add_record(certificates_path(bundle.folder), made(MIDDLE))
    add_record(certificates_path(bundle.folder), made(REFERENCE, reference="nnunetv2 2.8.1"))
    fast, middle, reference = candidates(bundle, Policy(), PLACEMENT)
    assert (fast.standing, middle.standing, reference.standing) == ("not certified", "certified", "reference")
    assert reference.certificate is not None
    assert reference.certificate.reference == "nnunetv2 2.8.1"


@pytest.mark.parametrize("change", [{"digest": "e" * 64}, {"library": "openvino 0.9"}, {"device": "H200"}])
def test_a_certificate_of_something_else_is_none(bundle: Any, change: dict[str, str]) -> None:
    add_record(certificates_path(bundle.folder), made(MIDDLE, **change))
    assert candidates(bundle, Policy(), PLACEMENT)[1].standing == "not certified"


def test_what_was_found_here_is_believed_first(bundle: Any, tmp_path: Path) -> None:
    policy = Policy(site=tmp_path / "site")
    assert policy.site is not None
    add_record(certificates_path(bundle.folder), made(MIDDLE))
    add_record(site_path(policy.site, bundle.digest), made(MIDDLE, 0.9))
    add_record(site_path(policy.site, bundle.digest), Speed(key(MIDDLE), 2, 0.25, NOW))
    _, middle, _ = candidates(bundle, policy, PLACEMENT)
    assert (middle.standing, middle.seconds_per_patch) == ("refused", 0.25)
    assert candidates(bundle, policy, replace(PLACEMENT, threads=4))[1].seconds_per_patch is None
    assert candidates(bundle, Policy(), PLACEMENT)[1].standing == "certified"


def test_a_sites_own_limits_decide(bundle: Any) -> None:
    add_record(certificates_path(bundle.folder), made(MIDDLE, 0.996))
    assert candidates(bundle, Policy(), PLACEMENT)[1].standing == "certified"
    assert candidates(bundle, Policy(limits=Limits(dice=0.998)), PLACEMENT)[1].standing == "refused"


def test_the_reference_stands_behind_every_list(bundle: Any) -> None:
    middle, reference = candidates(bundle, Policy(engines=(MIDDLE,)), PLACEMENT)
    assert (middle.fallback, reference.engine, reference.fallback) == (False, REFERENCE, True)
    assert not any(each.fallback for each in candidates(bundle, Policy(engines=(REFERENCE,)), PLACEMENT))
    assert not any(each.fallback for each in candidates(bundle, Policy(), PLACEMENT))


def test_defaults() -> None:
    assert default_engines("cpu") == (FAST, MIDDLE, REFERENCE)
    assert default_engines("cuda:1") == (Engine("torch", "float16"), REFERENCE)


def test_what_an_engine_is_filed_under() -> None:
    found: Any = SimpleNamespace(digest="d" * 64)
    filed = engine_key(found, REFERENCE, "cpu")
    assert (filed.backend, filed.precision, filed.device) == ("torch", "float32", f"cpu {platform.machine()}")
    assert filed.revision == PATH_REVISION
    assert filed.library.startswith("torch 2.")
    assert "+" not in filed.library  # what it was built for is the device's matter
