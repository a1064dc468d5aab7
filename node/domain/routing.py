"""Which model segments which scan, and who gets the result: declarative rules, each answer with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import re2

from node.domain.conditions import Condition, holds
from node.domain.instance import InstanceHeader, Sender
from node.domain.partition import image_meaning
from node.domain.stack import Stack, Unstackable, across_gaps, largest_block

__all__ = [
    "FACTS",
    "SELFTEST_AE_TITLE",
    "SELFTEST_PATIENT_PREFIX",
    "Condition",
    "Ineligible",
    "ModelFacts",
    "ModelLimits",
    "Refusal",
    "Routed",
    "Rule",
    "describe",
    "explain",
    "facts_of",
    "holds",
    "patient_extent_mm",
    "route",
]

SELFTEST_PATIENT_PREFIX = "HILUM-SELFTEST"
SELFTEST_AE_TITLE = "HILUM-SELFTEST"
"""A self-test-only model is chosen for this kind of Patient ID from this AE title, in any configuration."""

_PLANES = ("sagittal", "coronal", "axial")
_SOFT_KERNELS = re2.compile(
    r"(?i)^(STANDARD|SOFT|STD|STND|[ABIDQ][rfvu]?[1-4][0-9][a-z]?|FC0[1-9]|FC1[0-9]|[ABC]|UB|UA|UC)\b"
)


@dataclass(frozen=True)
class Rule:
    """Which scans which model segments; every condition must hold.

    Attributes
    ----------
    senders, called_ae_titles
        Names of peers, and AE titles of this node; empty: any.
    priority
        Larger is sooner.
    gapped
        Where slices are missing: refuse, take the largest block without a gap, or take all that is there (ASM-4).
    allow_selftest_model
        Let this rule choose a self-test-only model for any patient; for tests.
    only_best
        Of several scans of one series, take the best alone (ASM-53); the others are told why not.
    """

    name: str
    model: str
    conditions: tuple[Condition, ...]
    destinations: tuple[str, ...]
    senders: tuple[str, ...] = ()
    called_ae_titles: tuple[str, ...] = ()
    priority: int = 100
    gapped: Literal["refuse", "largest", "process"] = "refuse"
    allow_selftest_model: bool = False
    only_best: bool = False


@dataclass(frozen=True)
class ModelLimits:
    """What a scan must have for a model to be tried (ASM-38); None sets no limit.

    Extents are those of the box around the scan along left-right, anterior-posterior and superior-inferior.
    """

    min_slices: int | None = None
    min_extent_mm: tuple[float, float, float] | None = None
    max_extent_mm: tuple[float, float, float] | None = None
    max_step_mm: float | None = None
    min_age_years: float | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What routing must know of a model."""

    name: str
    digest: str
    modalities: tuple[str, ...]
    limits: ModelLimits = ModelLimits()
    selftest_only: bool = False
    channels: tuple[str, ...] = ()
    """The images that the model sees at once; more than one a series cannot bring."""


@dataclass(frozen=True)
class Routed:
    """A scan for which a rule chose a model."""

    stack: Stack
    rule: str
    model: str
    destinations: tuple[str, ...]
    priority: int


@dataclass(frozen=True)
class Ineligible:
    """A scan, or frames that form none, for which no rule chose a model, and why."""

    stack: Stack | Unstackable
    reason: str
    detail: str


@dataclass(frozen=True)
class Refusal:
    """Why a scan is not for a model."""

    reason: str
    detail: str


# Facts


def facts_of(stack: Stack, sender: Sender) -> dict[str, str | float]:
    """What conditions may ask for beside DICOM keywords (ASM-50): name to text or number."""
    geometry, header, frame = stack.geometry, stack.frames[0].header, stack.frames[0].frame
    extent = patient_extent_mm(stack)
    steps = np.diff(geometry.distances_mm)
    facts: dict[str, str | float | None] = {
        "n_slices": float(len(stack.frames)),
        "step_mm": geometry.step_mm,
        "max_step_mm": float(steps.max()),
        "extent_lr_mm": extent[0],
        "extent_ap_mm": extent[1],
        "extent_si_mm": extent[2],
        "tilt_deg": geometry.tilt_deg,
        "lattice": str(geometry.lattice),
        "plane": _plane(stack),
        "kernel_class": _kernel_class(frame.convolution_kernel),
        "lossy": "yes" if header.lossy else "no",
        "b_value": frame.b_value,
        "patient_age_years": header.patient_age_years,
        "sender": sender.alias,
        "sender_address": sender.address,
        "calling_ae_title": sender.calling_ae_title,
        "called_ae_title": sender.called_ae_title,
    }
    return {name: value for name, value in facts.items() if value is not None}


FACTS = (
    *("n_slices", "step_mm", "max_step_mm", "extent_lr_mm", "extent_ap_mm", "extent_si_mm", "tilt_deg", "lattice"),
    *("plane", "kernel_class", "lossy", "b_value", "patient_age_years"),
    *("sender", "sender_address", "calling_ae_title", "called_ae_title"),
)
"""Names of the derived facts."""


def patient_extent_mm(stack: Stack) -> tuple[float, float, float]:
    """Sides of the box around the scan along left-right, anterior-posterior and superior-inferior."""
    geometry = stack.geometry
    axes = np.array([geometry.normal, geometry.column_direction, geometry.row_direction])
    x, y, z = np.abs(axes).T @ np.array(geometry.extent_mm)
    return float(x), float(y), float(z)


def _plane(stack: Stack) -> str:
    normal = np.abs(stack.geometry.normal)
    nearest = int(normal.argmax())
    return _PLANES[nearest] if normal[nearest] > 0.9 else "oblique"


def _kernel_class(kernel: str) -> str:
    """`soft` or `sharp` by the maker's name of the kernel; nothing where there is none."""
    if not kernel:
        return ""
    return "soft" if _SOFT_KERNELS.search(kernel) else "sharp"


# Deciding


def route(
    parts: Sequence[Stack | Unstackable], sender: Sender, rules: Sequence[Rule], models: Mapping[str, ModelFacts]
) -> tuple[Routed | Ineligible, ...]:
    """What becomes of each part of one series; every part has at least one answer (ASM-56).

    Every rule that holds chooses its model, so a scan may be routed more than once.
    """
    answers = _candidates(parts, sender, rules, models)
    beaten = _beaten(answers, rules)
    final: list[Routed | Ineligible] = []
    for part, found in answers:
        left = [answer for answer in found if (answer.rule, answer.stack.volume_id) not in beaten]
        if left:
            final.extend(left)
        elif found:
            why = beaten[found[0].rule, found[0].stack.volume_id]
            final.append(Ineligible(part, why.reason, why.detail))
        else:
            final.append(_ineligible(part, parts, [_judge(part, parts, sender, rule, models)[1] for rule in rules]))
    return tuple(final)


def explain(
    parts: Sequence[Stack | Unstackable], sender: Sender, rules: Sequence[Rule], models: Mapping[str, ModelFacts]
) -> tuple[str, ...]:
    """The same decisions in words, part by part and rule by rule; never a patient attribute."""
    lines: list[str] = []
    beaten = _beaten(_candidates(parts, sender, rules, models), rules)
    for part in parts:
        lines.append(describe(part))
        own = _own_refusal(part, parts)
        if own is not None and not (isinstance(part, Unstackable) and part.reason == "missing_slices"):
            lines.append(f"  no model: {own.reason}: {own.detail}")
            continue
        for rule in rules:
            stack, refusal = _judge(part, parts, sender, rule, models)
            if stack is not None:
                refusal = beaten.get((rule.name, stack.volume_id), refusal)
            lines.append(_rule_line(rule, refusal))
        if not rules:
            lines.append("  no model: no_rule: no rule is configured")
    return tuple(lines)


def describe(part: Stack | Unstackable) -> str:
    """One line that names a part: its size and place, or why it is no scan."""
    keys = ", ".join(f"{name} {value}" for name, value in part.keys.items())
    told = f" [{keys}]" if keys else ""
    if isinstance(part, Unstackable):
        return f"{len(part.frames)} frames{told}: no scan: {part.reason}: {part.detail}"
    geometry = part.geometry
    rows, columns = geometry.pixel_spacing_mm
    dropped = f", {len(part.dropped)} dropped" if part.dropped else ""
    flags = f", {', '.join(part.flags)}" if part.flags else ""
    return (
        f"{len(part.frames)} slices{told}: {_plane(part)}, {geometry.rows} x {geometry.columns} pixels of {rows:.3g} x"
        f" {columns:.3g} mm, step {geometry.step_mm:.3f} mm, tilt {geometry.tilt_deg:.2f} degrees, {geometry.lattice}"
        f"{flags}{dropped}"
    )


def _rule_line(rule: Rule, refusal: Refusal | None) -> str:
    if refusal is None:
        to = ", ".join(rule.destinations) or "nowhere: the result stays here"
        return f"  rule {rule.name}: chosen: {rule.model}, to {to}"
    return f"  rule {rule.name}: not chosen: {refusal.reason}: {refusal.detail}"


def _judge(
    part: Stack | Unstackable,
    parts: Sequence[Stack | Unstackable],
    sender: Sender,
    rule: Rule,
    models: Mapping[str, ModelFacts],
) -> tuple[Stack | None, Refusal | None]:
    """One part against one rule: the stack that the rule takes, or why it takes none."""
    stack = _taken_with_gaps(part, rule)
    own = _own_refusal(stack, parts)
    if own is not None or isinstance(stack, Unstackable):
        return None, own
    refusal = (
        _sender_refusal(sender, rule)
        or _condition_refusal(stack, sender, rule.conditions)
        or _model_refusal(stack, sender, rule, models.get(rule.model))
    )
    return (stack, None) if refusal is None else (None, refusal)


def _taken_with_gaps(part: Stack | Unstackable, rule: Rule) -> Stack | Unstackable:
    if not isinstance(part, Unstackable) or part.reason != "missing_slices" or rule.gapped == "refuse":
        return part
    return largest_block(part) if rule.gapped == "largest" else across_gaps(part)


def _own_refusal(part: Stack | Unstackable, parts: Sequence[Stack | Unstackable]) -> Refusal | None:
    """What keeps a part from every model, whatever the rules say (ASM-17, ASM-21, ASM-52)."""
    if isinstance(part, Unstackable):
        return Refusal(part.reason, part.detail)
    first = part.frames[0]
    meaning = image_meaning(first)
    if meaning.get("component", "MAGNITUDE") not in ("MAGNITUDE",):
        return Refusal("not_magnitude", f"a {meaning['component'].lower()} image")
    if meaning.get("map", "TRACE") != "TRACE":
        return Refusal("parametric_map", f"a map ({meaning['map']}), not an image")
    if _is_test_object(first.header):
        return Refusal("phantom", "the Patient ID is that of a phantom or of quality control")
    b_value, lowest = first.frame.b_value or 0.0, _lowest_b_value(parts)
    if b_value > lowest + 1.0:
        return Refusal("higher_b_value", f"b-value {b_value:g}; the series has one of {lowest:g}")
    return None


_TEST_OBJECT = re2.compile(r"(?i)(^|[^a-z0-9])(phantom|qc|qa|acr)([^a-z0-9]|$)")


def _is_test_object(header: InstanceHeader) -> bool:
    patient_id = header.identity.patient_id
    if patient_id.startswith(SELFTEST_PATIENT_PREFIX):
        return False
    return _TEST_OBJECT.search(patient_id[:64]) is not None


def _lowest_b_value(parts: Sequence[Stack | Unstackable]) -> float:
    values = [part.frames[0].frame.b_value or 0.0 for part in parts if isinstance(part, Stack)]
    return min(values, default=0.0)


def _sender_refusal(sender: Sender, rule: Rule) -> Refusal | None:
    if rule.senders and sender.alias not in rule.senders:
        return Refusal("no_rule", f"sent by {sender.alias}, not by {' or '.join(rule.senders)}")
    if rule.called_ae_titles and sender.called_ae_title not in rule.called_ae_titles:
        called = sender.called_ae_title or "nobody"
        return Refusal("no_rule", f"{called} was called, not {' or '.join(rule.called_ae_titles)}")
    return None


def _condition_refusal(stack: Stack, sender: Sender, conditions: Sequence[Condition]) -> Refusal | None:
    """The first condition that does not hold."""
    facts = facts_of(stack, sender)
    tags = stack.frames[0].header.tags
    for condition in conditions:
        value = facts.get(condition.field, tags.get(condition.field))
        if not holds(condition, value):
            found = "absent" if value is None or value == "" else f"'{value}'"
            return Refusal("no_rule", f"{condition.field} is {found}; the rule wants {condition.op} {condition.value}")
    return None


def _model_refusal(stack: Stack, sender: Sender, rule: Rule, model: ModelFacts | None) -> Refusal | None:
    if model is None:
        return Refusal("no_model", f"there is no model {rule.model}")
    header = stack.frames[0].header
    if header.modality not in model.modalities:
        return Refusal("modality", f"{header.modality}; {model.name} is for {' and '.join(model.modalities)}")
    if len(model.channels) > 1:
        detail = f"{model.name} sees {len(model.channels)} images at once ({', '.join(model.channels)})"
        return Refusal("several_channels", f"{detail}; `hilum-models segment` brings them together from NIfTI files")
    if model.selftest_only and not rule.allow_selftest_model and not _is_selftest(header, sender):
        return Refusal("selftest_only", f"{model.name} is for the self-test's patient and AE title alone")
    return next(_beyond_limits(stack, model.limits), None)


def _is_selftest(header: InstanceHeader, sender: Sender) -> bool:
    titles = (sender.calling_ae_title, sender.called_ae_title)
    return SELFTEST_AE_TITLE in titles and header.identity.patient_id.startswith(SELFTEST_PATIENT_PREFIX)


def _beyond_limits(stack: Stack, limits: ModelLimits) -> Iterator[Refusal]:
    """Each limit of the model that the scan does not keep (ASM-38)."""
    count, widest = len(stack.frames), float(np.diff(stack.geometry.distances_mm).max())
    if limits.min_slices is not None and count < limits.min_slices:
        yield Refusal("too_few_slices", f"{count} slices; the model wants {limits.min_slices}")
    if limits.max_step_mm is not None and widest > limits.max_step_mm * (1 + 1e-3):
        yield Refusal("step_too_large", f"slices up to {widest:.2f} mm apart; the model takes {limits.max_step_mm:g}")
    axes = ("left-right", "anterior-posterior", "superior-inferior")
    extents = patient_extent_mm(stack)
    for axis, extent, least in zip(axes, extents, limits.min_extent_mm or (), strict=False):
        if extent < least * (1 - 1e-3):
            yield Refusal("too_small", f"{extent:.0f} mm {axis}; the model wants {least:g}")
    for axis, extent, most in zip(axes, extents, limits.max_extent_mm or (), strict=False):
        if extent > most * (1 + 1e-3):
            yield Refusal("too_large", f"{extent:.0f} mm {axis}; the model takes {most:g}")
    age = stack.frames[0].header.patient_age_years
    if limits.min_age_years is not None and age is not None and age < limits.min_age_years:
        yield Refusal("too_young", f"{age:.1f} years old; the model is for {limits.min_age_years:g} and older")


def _ineligible(
    part: Stack | Unstackable, parts: Sequence[Stack | Unstackable], found: Sequence[Refusal | None]
) -> Ineligible:
    """The nearest miss: the reason of a rule whose conditions held, else the part's own, else that no rule did."""
    own = _own_refusal(part, parts)
    refusals = [refusal for refusal in found if refusal is not None]
    far = ("no_rule", own.reason if own is not None else "")
    near = [refusal for refusal in refusals if refusal.reason not in far]
    if own is not None and not near:
        return Ineligible(part, own.reason, own.detail)
    if near:
        return Ineligible(part, near[0].reason, near[0].detail)
    detail = "; ".join(refusal.detail for refusal in refusals) or "no rule is configured"
    return Ineligible(part, "no_rule", detail)


# The best of several

_Answers = Sequence[tuple[Stack | Unstackable, Sequence[Routed]]]


def _candidates(
    parts: Sequence[Stack | Unstackable], sender: Sender, rules: Sequence[Rule], models: Mapping[str, ModelFacts]
) -> _Answers:
    """Each part with what the rules chose for it, each rule asked alone."""
    answers = []
    for part in parts:
        stacks = [(rule, _judge(part, parts, sender, rule, models)[0]) for rule in rules]
        chosen = [
            Routed(stack, rule.name, rule.model, rule.destinations, rule.priority)
            for rule, stack in stacks
            if stack is not None
        ]
        answers.append((part, chosen))
    return answers


def _beaten(answers: _Answers, rules: Sequence[Rule]) -> dict[tuple[str, str], Refusal]:
    """Rule name and volume id of the scans that lose against a better one of their series (ASM-53)."""
    beaten = {}
    for rule in (rule for rule in rules if rule.only_best):
        rivals = [answer for _, found in answers for answer in found if answer.rule == rule.name]
        best = min((answer.stack for answer in rivals), key=_rank, default=None)
        for loser in rivals:
            if best is not None and loser.stack.volume_id != best.volume_id:
                detail = f"of {len(rivals)} scans the best is that of {describe(best)}"
                beaten[rule.name, loser.stack.volume_id] = Refusal("not_best", detail)
    return beaten


def _rank(stack: Stack) -> tuple[bool, float, bool, float, float, str]:
    """Smaller is better: not lossy, thin steps, soft kernel, much coverage, early echo; then by identity."""
    header, frame, geometry = stack.frames[0].header, stack.frames[0].frame, stack.geometry
    sharp = _kernel_class(frame.convolution_kernel) == "sharp"
    return (
        header.lossy,
        round(geometry.step_mm, 2),
        sharp,
        -geometry.extent_mm[0],
        frame.echo_time or 0.0,
        stack.volume_id,
    )
