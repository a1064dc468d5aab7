"""Which scan goes to which model: operators, limits, exclusions, gap policies, the best of several, explanation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.domain.instance import FrameHeader, InstanceHeader, PatientIdentity, Sender
from node.domain.routing import (
    FACTS,
    SELFTEST_AE_TITLE,
    SELFTEST_PATIENT_PREFIX,
    Condition,
    Ineligible,
    ModelFacts,
    ModelLimits,
    Routed,
    Rule,
    explain,
    facts_of,
    holds,
    patient_extent_mm,
    route,
)
from node.domain.stack import Stack, Unstackable, split
from node.errors import ConfigError

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SENDER = Sender("scanner", "CT1", "HILUM", "10.0.0.7", "a1")
MODELS = {
    "liver": ModelFacts("liver", "d1", ("CT",), ModelLimits(min_slices=10, max_step_mm=6.0)),
    "brain": ModelFacts("brain", "d2", ("MR",)),
    "tumour": ModelFacts("tumour", "d4", ("MR",), channels=("T1", "FLAIR")),
    "phantom": ModelFacts("phantom", "d3", ("CT", "MR"), selftest_only=True),
}
LIVER = Rule("abdomen", "liver", (), ("pacs",))


def _series(
    count: int = 20,
    step: float = 3.0,
    orientation: tuple[float, ...] = AXIAL,
    frame: Mapping[str, object] | None = None,
    uid: str = "1",
    **header: object,
) -> list[InstanceHeader]:
    normal = {0: (0.0, 0.0, 1.0), 1: (-1.0, 0.0, 0.0)}[0 if orientation == AXIAL else 1]
    found = []
    for n in range(count):
        x, y, z = (step * n * part for part in normal)
        one = FrameHeader(1, (x, y, z), orientation, (0.8, 0.5), ("ORIGINAL", "PRIMARY", "AXIAL"))  # type: ignore[arg-type]
        one = replace(one, **(frame or {}))  # type: ignore[arg-type]
        base = InstanceHeader(
            f"1.{uid}.{n + 1}", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", "1.2", "1.3", "1.4",
            PatientIdentity("P1", "", "", ""), "CT", 500, 400, 1, "MONOCHROME2", 16, 12, 11, 0, (one,),
            image_type=one.image_type, instance_number=n + 1,
            tags={"Modality": "CT", "BodyPartExamined": "ABDOMEN", "SeriesDescription": "Abd venous 3.0",
                  "ImageType": "ORIGINAL\\PRIMARY\\AXIAL", "KVP": "120", "Rows": "500"},
        )  # fmt: skip
        found.append(replace(base, **header))  # type: ignore[arg-type]
    return found


def _mr(**changes: object) -> list[InstanceHeader]:
    return _series(modality="MR", sop_class_uid="1.2.840.10008.5.1.4.1.1.4", **changes)  # type: ignore[arg-type]


def _one(headers: Sequence[InstanceHeader]) -> Stack:
    (stack,) = split(headers)
    assert isinstance(stack, Stack)
    return stack


def _answer(
    headers: Sequence[InstanceHeader],
    rule: Rule = LIVER,
    sender: Sender = SENDER,
    models: Mapping[str, ModelFacts] = MODELS,
) -> Routed | Ineligible:
    (answer,) = route(split(headers), sender, [rule], models)
    return answer


def _reason(headers: Sequence[InstanceHeader], rule: Rule = LIVER, **changes: object) -> str:
    answer = _answer(headers, rule, **changes)  # type: ignore[arg-type]
    assert isinstance(answer, Ineligible), answer
    assert answer.detail
    return answer.reason


# Conditions


@pytest.mark.parametrize(
    ("op", "wanted", "value", "expected"),
    [
        ("eq", "ABDOMEN", "ABDOMEN", True),
        ("eq", "abdomen", "ABDOMEN", False),
        ("eq", "PRIMARY", "ORIGINAL\\PRIMARY", True),
        ("eq", 120, "120.0", True),
        ("eq", 120, "B30f", False),
        ("eq", 20, 20.0, True),
        ("in", ("HEAD", "BRAIN"), "BRAIN", True),
        ("in", ("HEAD", "BRAIN"), "CHEST", False),
        ("in", (80, 100), "100", True),
        ("regex", "(?i)venous|portal", "Abd Venous 3.0", True),
        ("regex", "^venous", "Abd venous", False),
        ("range", (0.5, 3.0), 3.0, True),
        ("range", (0.5, 3.0), "3.01", False),
        ("range", (1, 9), "3\\4", True),
        ("range", (1, 9), "soft", False),
        ("exists", True, "x", True),
        ("exists", True, None, False),
        ("exists", False, None, True),
        ("exists", False, "", True),
        ("eq", "x", None, False),
        ("regex", ".*", None, False),
    ],
)
def test_operators(op: str, wanted: object, value: str | float | None, expected: bool) -> None:
    """ASM-50."""
    assert holds(Condition("F", op, wanted), value) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("op", "value"),
    [
        ("regex", "(unclosed"),
        ("regex", "(?=lookahead)"),
        ("regex", "(a)\\1"),
        ("regex", 5),
        ("range", (3,)),
        ("range", (9.0, 1.0)),
        ("range", ("a", "b")),
        ("in", ()),
        ("in", "text"),
        ("eq", ("a", "b")),
        ("exists", "yes"),
        ("like", "x"),
    ],
)
def test_conditions_that_cannot_be_meant(op: str, value: object) -> None:
    """ASM-54: refused when the configuration is read, not when a patient waits."""
    with pytest.raises(ConfigError, match="condition on SeriesDescription"):
        Condition("SeriesDescription", op, value)  # type: ignore[arg-type]


def test_a_catastrophic_expression_is_fast() -> None:
    """ASM-54: nested quantifiers on a long text; Python's own engine needs longer than the universe has."""
    condition = Condition("SeriesDescription", "regex", "^(([a-z])+.)+[A-Z]([a-z])+$")
    began = time.perf_counter()
    assert not holds(condition, "a" * 60_000)
    assert time.perf_counter() - began < 1.0


@settings(deadline=None)
@given(text=st.text(max_size=200), low=st.floats(-1e6, 1e6), width=st.floats(0, 1e6))
def test_operators_never_raise(text: str, low: float, width: float) -> None:
    for condition in (
        Condition("F", "eq", 5),
        Condition("F", "in", ("a", 1)),
        Condition("F", "regex", "a+b"),
        Condition("F", "range", (low, low + width)),
        Condition("F", "exists", True),
    ):
        assert holds(condition, text) in (True, False)


@pytest.mark.parametrize(
    ("field", "op", "value", "expected"),
    [
        ("n_slices", "range", (10, 30), True),
        ("step_mm", "range", (2.9, 3.1), True),
        ("extent_lr_mm", "eq", 200, True),
        ("extent_ap_mm", "eq", 400, True),
        ("extent_si_mm", "eq", 60, True),
        ("tilt_deg", "range", (0, 0.1), True),
        ("plane", "eq", "axial", True),
        ("kernel_class", "eq", "soft", True),
        ("lossy", "eq", "no", True),
        ("sender", "in", ("scanner",), True),
        ("called_ae_title", "eq", "OTHER", False),
        ("sender_address", "regex", "^10\\.", True),
        ("BodyPartExamined", "exists", True, True),
        ("Nonsense", "exists", True, False),
    ],
)  # fmt: skip
def test_fields(field: str, op: str, value: object, expected: bool) -> None:
    """ASM-50, ASM-51: DICOM keywords and derived facts."""
    rule = replace(LIVER, conditions=(Condition(field, op, value),))  # type: ignore[arg-type]
    answer = _answer(_series(frame={"convolution_kernel": "B30f"}), rule)
    assert isinstance(answer, Routed) is expected


def test_facts_have_the_names_that_are_told() -> None:
    stack = _one(_series(frame={"convolution_kernel": "BONE", "b_value": 0.0}, patient_age_years=40.0))
    assert set(facts_of(stack, SENDER)) == set(FACTS)
    assert facts_of(stack, SENDER)["kernel_class"] == "sharp"


def test_extent_of_a_sagittal_scan_is_along_the_patient() -> None:
    """ASM-36, ASM-38."""
    stack = _one(_series(orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0)))
    assert patient_extent_mm(stack) == pytest.approx((60.0, 200.0, 400.0))


@pytest.mark.parametrize("body_part", ["", "FOOT"])
def test_a_wrong_body_part_does_not_decide_alone(body_part: str) -> None:
    """ASM-51: a rule may ask description or procedure instead."""
    headers = _series()
    tagged = [replace(h, tags={**h.tags, "BodyPartExamined": body_part}) for h in headers]
    rule = replace(LIVER, conditions=(Condition("SeriesDescription", "regex", "(?i)abd"),))
    assert isinstance(_answer(tagged, rule), Routed)


# Sender, model, limits


def test_sender_and_called_ae_title() -> None:
    """ASM-50, NET-40."""
    assert _reason(_series(), replace(LIVER, senders=("other",))) == "no_rule"
    assert _reason(_series(), replace(LIVER, called_ae_titles=("STAT",))) == "no_rule"
    assert isinstance(_answer(_series(), replace(LIVER, senders=("scanner",), called_ae_titles=("HILUM",))), Routed)


def test_routed_says_all_that_a_job_needs() -> None:
    """ASM-50, ASM-55."""
    answer = _answer(_series(), replace(LIVER, priority=300))
    assert isinstance(answer, Routed)
    assert (answer.rule, answer.model, answer.destinations, answer.priority) == ("abdomen", "liver", ("pacs",), 300)


def test_model_must_be_there_and_for_the_modality() -> None:
    assert _reason(_series(), replace(LIVER, model="gone")) == "no_model"
    assert _reason(_mr()) == "modality"


@pytest.mark.parametrize(
    ("limits", "changes", "reason"),
    [
        (ModelLimits(min_slices=20), {"count": 20}, ""),
        (ModelLimits(min_slices=21), {"count": 20}, "too_few_slices"),
        (ModelLimits(max_step_mm=3.0), {"step": 3.0}, ""),
        (ModelLimits(max_step_mm=2.9), {"step": 3.0}, "step_too_large"),
        (ModelLimits(min_extent_mm=(200.0, 400.0, 60.0)), {}, ""),
        (ModelLimits(min_extent_mm=(201.0, 0.0, 0.0)), {}, "too_small"),
        (ModelLimits(min_extent_mm=(0.0, 0.0, 61.0)), {}, "too_small"),
        (ModelLimits(max_extent_mm=(200.0, 400.0, 60.0)), {}, ""),
        (ModelLimits(max_extent_mm=(200.0, 399.0, 60.0)), {}, "too_large"),
        (ModelLimits(min_age_years=18.0), {"patient_age_years": 18.0}, ""),
        (ModelLimits(min_age_years=18.0), {"patient_age_years": 17.9}, "too_young"),
        (ModelLimits(min_age_years=18.0), {"patient_age_years": None}, ""),
    ],
)
def test_limits_at_their_boundaries(limits: ModelLimits, changes: dict[str, object], reason: str) -> None:
    """ASM-38, ASM-52: a scan that fails costs no device time."""
    models = {"liver": ModelFacts("liver", "d", ("CT",), limits)}
    answer = _answer(_series(**changes), models=models)  # type: ignore[arg-type]
    assert (answer.reason if isinstance(answer, Ineligible) else "") == reason


# The self-test's model


@pytest.mark.parametrize(
    ("patient", "calling", "called", "expected"),
    [
        (f"{SELFTEST_PATIENT_PREFIX}-1", SELFTEST_AE_TITLE, "HILUM", True),
        (f"{SELFTEST_PATIENT_PREFIX}-1", "CT1", SELFTEST_AE_TITLE, True),
        (f"{SELFTEST_PATIENT_PREFIX}-1", "CT1", "HILUM", False),
        ("P1", SELFTEST_AE_TITLE, "HILUM", False),
        ("", "", "", False),
    ],
)
def test_phantom_model_is_for_the_selftest_alone(patient: str, calling: str, called: str, expected: bool) -> None:
    """In any configuration; a rule for tests may say otherwise."""
    headers = _series(identity=PatientIdentity(patient, "", "", ""))
    sender = replace(SENDER, calling_ae_title=calling, called_ae_title=called)
    rule = Rule("any", "phantom", (), ())
    answer = _answer(headers, rule, sender)
    assert isinstance(answer, Routed) is expected
    if not expected:
        assert isinstance(answer, Ineligible)
        assert answer.reason == "selftest_only"
    assert isinstance(_answer(headers, replace(rule, allow_selftest_model=True), sender), Routed)


def test_a_model_of_several_images_is_not_for_one_series() -> None:
    answer = _answer(_mr(), Rule("any", "tumour", (), ()), SENDER)
    assert isinstance(answer, Ineligible)
    assert answer.reason == "several_channels"
    assert "T1, FLAIR" in answer.detail


# Default exclusions


@pytest.mark.parametrize("patient", ["PHANTOM", "daily-QA", "QC_20260105", "ACR phantom 3"])
def test_phantoms_and_quality_control(patient: str) -> None:
    """ASM-52."""
    assert _reason(_series(identity=PatientIdentity(patient, "", "", ""))) == "phantom"


@pytest.mark.parametrize("patient", ["QCUMBER12", "ACROPOLIS", "12345"])
def test_patients_whose_ids_only_look_alike(patient: str) -> None:
    assert isinstance(_answer(_series(identity=PatientIdentity(patient, "", "", ""))), Routed)


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (("ORIGINAL", "PRIMARY", "P", "ND"), "not_magnitude"),
        (("ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"), "not_magnitude"),
        (("ORIGINAL", "PRIMARY", "R_IR", "R", "IR"), "not_magnitude"),
        (("DERIVED", "PRIMARY", "DIFFUSION", "ADC"), "parametric_map"),
        (("DERIVED", "PRIMARY", "DIFFUSION", "FA"), "parametric_map"),
    ],
)
def test_no_anatomy_in_phase_images_and_maps(tokens: tuple[str, ...], reason: str) -> None:
    """ASM-21, ASM-52."""
    rule = Rule("any", "brain", (), ())
    assert _reason(_mr(frame={"image_type": tokens}), rule) == reason


def test_lowest_b_value() -> None:
    """ASM-17: anatomy models take the lowest b-value of the series."""
    headers = _mr(frame={"b_value": 0.0}, uid="1") + _mr(frame={"b_value": 800.0}, uid="2")
    answers = route(split(headers), SENDER, [Rule("any", "brain", (), ())], MODELS)
    assert [type(answer) for answer in answers] == [Routed, Ineligible]
    assert [a.reason for a in answers if isinstance(a, Ineligible)] == ["higher_b_value"]
    alone = route(split(_mr(frame={"b_value": 800.0})), SENDER, [Rule("any", "brain", (), ())], MODELS)
    assert isinstance(alone[0], Routed)


# Gaps


@pytest.mark.parametrize(
    ("policy", "frames"), [("refuse", None), ("largest", 14), ("process", 19)], ids=["refuse", "largest", "process"]
)
@pytest.mark.parametrize("lost", [[5], [2, 3, 4, 5]], ids=["one", "more"])
def test_gap_policies(policy: str, frames: int | None, lost: list[int]) -> None:
    """ASM-4."""
    headers = [h for h in _series() if (h.instance_number or 0) - 1 not in lost]
    models = {"liver": ModelFacts("liver", "d", ("CT",))}
    answer = _answer(headers, replace(LIVER, gapped=policy), models=models)  # type: ignore[arg-type]
    if frames is None:
        assert isinstance(answer, Ineligible)
        assert answer.reason == "missing_slices"
        return
    assert isinstance(answer, Routed)
    assert len(answer.stack.frames) == (14 if policy == "largest" else 20 - len(lost))
    assert "partial" in answer.stack.flags


def test_a_block_must_still_keep_the_limits() -> None:
    """ASM-4, ASM-38: what is left of a gapped scan is judged like any other."""
    headers = [h for h in _series(count=16) if h.instance_number != 8]
    assert _reason(headers, replace(LIVER, gapped="largest")) == "too_few_slices"
    assert _reason(headers, replace(LIVER, gapped="process", model="liver"), models={
        "liver": ModelFacts("liver", "d", ("CT",), ModelLimits(max_step_mm=5.0))
    }) == "step_too_large"  # fmt: skip


# The best of several


def test_best_of_five_reconstructions() -> None:
    """ASM-53, within one series: thin before thick, soft before sharp, whole before cut, lossless before lossy."""
    kinds: list[tuple[float, int, str]] = [
        (1.0, 60, "B70f"), (1.0, 60, "B30f"), (5.0, 12, "B30f"), (1.0, 40, "B31f"), (3.0, 20, "B30f")
    ]  # fmt: skip
    headers: list[InstanceHeader] = []
    for n, (step, count, kernel) in enumerate(kinds):
        frame = {"convolution_kernel": kernel, "acquisition_number": str(n)}
        headers += _series(count=count, step=step, frame=frame, uid=str(n + 1), frame_of_reference_uid=f"1.4.{n}")
    rule = replace(LIVER, only_best=True)
    models = {"liver": ModelFacts("liver", "d", ("CT",))}
    answers = route(split(headers), SENDER, [rule], models)
    (winner,) = (a for a in answers if isinstance(a, Routed))
    assert winner.stack.frames[0].frame.convolution_kernel == "B30f"
    assert len(winner.stack.frames) == 60
    assert [a.reason for a in answers if isinstance(a, Ineligible)] == ["not_best"] * 4
    assert len([a for a in route(split(headers), SENDER, [LIVER], models) if isinstance(a, Routed)]) == 5
    lines = "\n".join(explain(split(headers), SENDER, [rule], models))
    assert lines.count("not chosen: not_best") == 4


# Answers


def test_two_rules_may_choose_one_scan() -> None:
    rules = [LIVER, replace(LIVER, name="second", destinations=("archive",))]
    answers = route(split(_series()), SENDER, rules, MODELS)
    assert [a.rule for a in answers if isinstance(a, Routed)] == ["abdomen", "second"]


def test_the_nearest_miss_is_told() -> None:
    """ASM-56: the reason of a rule that matched goes before rules that did not."""
    far = replace(LIVER, name="far", conditions=(Condition("BodyPartExamined", "eq", "HEAD"),))
    (answer,) = route(split(_series(count=5)), SENDER, [far, LIVER], MODELS)
    assert isinstance(answer, Ineligible)
    assert answer.reason == "too_few_slices"
    (answer,) = route(split(_series()), SENDER, [far], MODELS)
    assert isinstance(answer, Ineligible)
    assert answer.reason == "no_rule"
    assert "BodyPartExamined is 'ABDOMEN'" in answer.detail
    (answer,) = route(split(_series()), SENDER, [], MODELS)
    assert isinstance(answer, Ineligible)
    assert answer.detail == "no rule is configured"


@settings(deadline=None)
@given(
    kinds=st.lists(
        st.sampled_from([{}, {"modality": "PT"}, {"own_result": True}, {"samples_per_pixel": 3}, {"rows": 64}]),
        max_size=4,
    ),
    lost=st.sets(st.integers(1, 20), max_size=4),
    policy=st.sampled_from(["refuse", "largest", "process"]),
)
def test_every_part_has_an_answer(kinds: list[dict[str, object]], lost: set[int], policy: str) -> None:
    """ASM-56: nothing that was received ends without a reason."""
    headers = []
    for n, kind in enumerate(kinds):
        headers += [h for h in _series(uid=str(n + 1), **kind) if h.instance_number not in lost]  # type: ignore[arg-type]
    parts = split(headers)
    answers = route(parts, SENDER, [replace(LIVER, gapped=policy)], MODELS)  # type: ignore[arg-type]
    assert len(answers) == len(parts)
    for part, answer in zip(parts, answers, strict=True):
        assert isinstance(answer, Routed) or (answer.stack is part and answer.reason and answer.detail)
        if isinstance(part, Unstackable) and part.reason != "missing_slices":
            assert isinstance(answer, Ineligible)
            assert answer.reason == part.reason


def test_explain_rule_by_rule() -> None:
    """ASM-50: each part, each rule, with what was found and what was wanted; never a patient attribute."""
    headers = _series(identity=PatientIdentity("SECRET-ID", "", "SECRET^NAME", "19700101"))
    headers += _series(count=3, uid="2", frame={"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")},
                       identity=PatientIdentity("SECRET-ID", "", "SECRET^NAME", "19700101"))  # fmt: skip
    rules = [
        LIVER,
        replace(LIVER, name="head", conditions=(Condition("BodyPartExamined", "eq", "HEAD"),)),
        replace(LIVER, name="brains", model="brain", destinations=()),
    ]
    lines = explain(split(headers), SENDER, rules, MODELS)
    assert lines == (
        "20 slices: axial, 500 x 400 pixels of 0.8 x 0.5 mm, step 3.000 mm, tilt 0.00 degrees, regular",
        "  rule abdomen: chosen: liver, to pacs",
        "  rule head: not chosen: no_rule: BodyPartExamined is 'ABDOMEN'; the rule wants eq HEAD",
        "  rule brains: not chosen: modality: CT; brain is for MR",
        "3 frames: no scan: localizer: a localizer or scout",
        "  no model: localizer: a localizer or scout",
    )
    assert "SECRET" not in "".join(lines)
