"""Conditions of rules: one question about a scan each, typed, without evaluation of code (ASM-50, ASM-54)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import re2

from node.errors import ConfigError

Value = str | bool | int | float | tuple[str | int | float, ...]

_LONGEST_SUBJECT = 1024


@dataclass(frozen=True)
class Condition:
    """One question about a scan.

    Attributes
    ----------
    field
        A DICOM keyword, or one of `routing.FACTS`.
    op
        `eq`, `in`: equal to the value, or to one of them; texts exactly, numbers as numbers; of a multi-valued element,
        the whole or any value. `regex`: found anywhere. `range`: (low, high), both included. `exists`: true or false.

    Raises
    ------
    ConfigError
        Where the value does not fit the operator, or the expression is none.
    """

    field: str
    op: Literal["eq", "in", "regex", "range", "exists"]
    value: Value

    def __post_init__(self) -> None:
        fault = _fault(self.op, self.value)
        if fault:
            raise ConfigError(f"condition on {self.field}: {fault}")


def _fault(op: str, value: Value) -> str:
    """What is wrong with the value of a condition, or nothing."""
    numbers = isinstance(value, tuple) and all(isinstance(v, int | float) for v in value)
    match op:
        case "exists":
            return "" if isinstance(value, bool) else "`exists` wants true or false"
        case "in":
            return "" if isinstance(value, tuple) and value else "`in` wants a list of values"
        case "range":
            fits = isinstance(value, tuple) and numbers and len(value) == 2 and float(value[0]) <= float(value[1])
            return "" if fits else "`range` wants two numbers, the lower one first"
        case "regex":
            return _regex_fault(value) if isinstance(value, str) else "`regex` wants a text"
        case "eq":
            return "`eq` wants one value" if isinstance(value, tuple) else ""
        case _:
            return f"there is no operator {op}"


def _compiled(pattern: str) -> re2._Regexp:
    """By RE2, whose time grows with the length of the text alone, whatever the expression (ASM-54)."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def _regex_fault(pattern: str) -> str:
    try:
        _compiled(pattern)
    except re2.error as error:
        said = error.args[0] if error.args else ""
        return (
            f"not an expression that RE2 knows: {said.decode('utf-8', 'replace') if isinstance(said, bytes) else said}"
        )
    return ""


def holds(condition: Condition, value: str | float | None) -> bool:
    """Whether a value fulfils a condition; nothing but `exists = false` holds for what is absent."""
    present = value is not None and value != ""
    if condition.op == "exists":
        return present is condition.value
    return present and value is not None and _OPERATORS[condition.op](value, condition.value)


def _equals(value: str | float, wanted: Value) -> bool:
    if isinstance(wanted, int | float) and not isinstance(wanted, bool):
        return any(math.isclose(number, wanted, rel_tol=1e-6) for number in _numbers(value))
    text = str(wanted)
    return str(value) == text or text in str(value).split("\\")


def _is_one_of(value: str | float, wanted: Value) -> bool:
    return isinstance(wanted, tuple) and any(_equals(value, each) for each in wanted)


def _matches(value: str | float, wanted: Value) -> bool:
    return _compiled(str(wanted)).search(str(value)[:_LONGEST_SUBJECT]) is not None


def _lies_in(value: str | float, wanted: Value) -> bool:
    if not isinstance(wanted, tuple):
        return False
    low, high = (float(bound) for bound in wanted)
    numbers = _numbers(value)
    return bool(numbers) and all(low <= number <= high for number in numbers)


def _numbers(value: str | float) -> list[float]:
    """The numbers of a value, or none where one of them is no number."""
    if isinstance(value, int | float):
        return [float(value)]
    try:
        return [float(part) for part in value.split("\\")]
    except ValueError:
        return []


_OPERATORS: Mapping[str, Callable[[str | float, Value], bool]] = {
    "eq": _equals,
    "in": _is_one_of,
    "regex": _matches,
    "range": _lies_in,
}
