"""What is wrong with a configuration file, in words: key, value, and the mend; never a secret."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Place = tuple[str | int, ...]
"""Keys and numbers in lists, from the top of the file."""

_RENAMED: Mapping[str, tuple[str, str]] = {
    "segmenter.backends": ("segmenter.engines", 'engines = ["openvino", "torch"]; a precision may stand behind each'),
}
"""Keys of earlier versions: what each is now, and how it is written."""
_SECRET_WORDS = re.compile(r"passw|secret|token|credential|private|api_?key", re.IGNORECASE)


def complaints(path: Path, model: type[BaseModel], error: ValidationError) -> list[str]:
    """What is wrong, a line each; what is only the consequence of another line is left out.

    Parameters
    ----------
    model
        What the whole file was read into.
    """
    items = {_place(model, item["loc"]): item for item in reversed(error.errors(include_url=False))}
    causes = [place for place in items if not any(_is_inside(other, place) for other in items)]
    return [_complaint(path, model, place, items[place]) for place in reversed(causes)]


def unknown_name(what: str, names: Collection[str], known: Collection[str]) -> str:
    """What to say of the first name that is not known, with the nearest that is; nothing where all are."""
    for name in names:
        if name not in known:
            return f"{what} names {name!r}, which is not configured{nearest(name, known)}"
    return ""


def not_toml(text: str, error: tomllib.TOMLDecodeError) -> str:
    """What to say of a text that is no TOML; a key that stands twice is named with its line, never with its value."""
    if not str(error).startswith("Cannot overwrite a value"):
        return f"not TOML: {error}"
    # tomllib notices it at the end of the value, which may be the end of the file.
    told = re.search(r"at line (\d+)", str(error))
    lines = text.rstrip().splitlines()
    number = int(told[1]) if told else len(lines)
    key, equals, _ = lines[number - 1].partition("=")
    return f"line {number}: {f'the key {key.strip()}' if equals else 'a key'} stands twice in its section"


def nearest(word: str, known: Collection[str], otherwise: str = "") -> str:
    """What to add to the refusal of a word: the nearest one that is known; else `otherwise`, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    if otherwise:
        return f"; {otherwise}"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def redacted(key: str, value: Any) -> Any:
    """The value without what stands under a key that speaks of a secret; the name of a file is none (SEC-13)."""
    if isinstance(value, dict):
        return {inner: redacted(inner, item) for inner, item in value.items()}
    if isinstance(value, list):
        return [redacted(key, item) for item in value]
    return "***" if _SECRET_WORDS.search(key) and not key.endswith("_file") else value


def _complaint(path: Path, model: type[BaseModel], place: Place, item: Any) -> str:
    """One refusal in words: file, key, value, and the mend."""
    key = "".join(f"[{step + 1}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")
    field = _field_at(model, place)
    meaning = f"; it is: {field.description}" if field is not None and field.description else ""
    if item["type"] == "extra_forbidden" and key in _RENAMED:
        name, form = _RENAMED[key]
        return f"{path}: {key}: is now `{name}`; write {form}"
    if item["type"] == "extra_forbidden":
        return f"{path}: {key}: no such key{nearest(str(place[-1]), _fields_at(model, place[:-1]))}"
    if item["type"] == "missing":
        return f"{path}: {key}: is missing{meaning}"
    said = str(item["msg"]).removeprefix("Value error, ")
    if not place:
        return f"{path}: {said}"
    value = "(not shown)" if _SECRET_WORDS.search(key) else f"{item['input']!r:.80}"
    return f"{path}: {key} = {value}: {said[:1].lower()}{said[1:]}{meaning}"


def _place(model: type[BaseModel], loc: Place) -> Place:
    """The place of an error without the names of types that pydantic puts behind a key that may hold several."""
    place: list[str | int] = []
    inside: type[BaseModel] | None = model
    for step in loc:
        if isinstance(step, int):
            place.append(step)
        elif inside is not None:
            place.append(step)
            field = inside.model_fields.get(step)
            inside = None if field is None else _model_within(field.annotation)
    return tuple(place)


def _is_inside(place: Place, other: Place) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def _field_at(model: type[BaseModel], place: Place) -> FieldInfo | None:
    names = [step for step in place if isinstance(step, str)]
    return _fields_at(model, tuple(names[:-1])).get(names[-1]) if names else None


def _fields_at(model: type[BaseModel], place: Place) -> Mapping[str, FieldInfo]:
    """The fields of the model at this place of the tree."""
    for step in place:
        if isinstance(step, str):
            field = model.model_fields.get(step)
            inner = None if field is None else _model_within(field.annotation)
            if inner is None:
                return {}
            model = inner
    return model.model_fields


def _model_within(annotation: Any) -> type[BaseModel] | None:
    """The model that a field's type is, or is a tuple of."""
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
