"""The documentation and the code say the same: events, metrics, commands, keys, pages, links."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.cli import _parser as models_parser
from node.cli import parser
from node.config import Settings
from node.domain.counts import JournalCounts, QueueCount
from node.monitor import metrics
from node.monitor.metrics import Family, JournalCollector, Vocabulary

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
LEVELS = {"debug", "info", "warning", "error", "critical", "exception", "log"}
COUNTS = JournalCounts({"assemble": QueueCount(1, 1.0)}, 1, {}, {}, 1, {}, {"incoming": 1})


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# Events ---------------------------------------------------------------------------------------------------------------


def _events_of(call: ast.Call) -> Iterator[str]:
    """The event of a call that logs: of the logger itself, or of a function that hands it on."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
    if not ((owner == "_log" and name in LEVELS) or name in {"_say", "log_bug"}):
        return
    for argument in call.args[:2]:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield argument.value


def _events_in_the_code() -> set[str]:
    # Made of parts, or told by a logger of its own.
    found = {"library_warning", "crashed", "purge_failed", "probe_failed"}
    for path in (*ROOT.glob("node/**/*.py"), *ROOT.glob("engines/**/*.py")):
        for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(item, ast.Call):
                found |= set(_events_of(item))
    return found


def test_every_event_of_the_log_is_explained_and_no_other() -> None:
    """Who reads a line at night finds its event in docs/monitoring.md."""
    section = (DOCS / "monitoring.md").read_text(encoding="utf-8").partition("### Events")[2]
    explained = re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE)
    assert len(explained) == len(set(explained))
    assert set(explained) == _events_in_the_code()


# Metrics --------------------------------------------------------------------------------------------------------------


def _labels_by_metric() -> dict[str, set[str]]:
    """Every metric as a scrape names it, with its labels."""
    found: dict[str, set[str]] = {"hilum_build_info": {"version", "model_set"}}
    for declared in {declared for of_role in metrics.BY_ROLE.values() for declared in of_role}:
        metric = declared.metric if isinstance(declared, Family) else declared
        suffix = "_total" if metric._type == "counter" else ""
        found[metric._name + suffix] = set(metric._labelnames)
    for family in JournalCollector(lambda: COUNTS, Vocabulary("", "", reasons=["x"])).collect():
        found[family.name] = {label for sample in family.samples for label in sample.labels}
    return found


def test_every_metric_is_explained_with_its_labels_and_no_other() -> None:
    """docs/monitoring.md lists what the roles serve, and nothing else (OBS-2)."""
    text = (DOCS / "monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(hilum_[a-z_]+)` \| ([a-z_, ]*)\|", text, re.MULTILINE)
    explained = {name: set(re.findall("[a-z_]+", labels)) for name, labels in rows}
    explained |= {name: set(labels.split(",")) for name, labels in re.findall(r"`(hilum_[a-z_]+)\{([a-z_,]+)\}`", text)}
    assert explained == _labels_by_metric()


@pytest.mark.parametrize("words", ["CAUSES", "STATUS_CLASSES", "RECEIVED_KINDS", "SEND_RESULTS", "STAGES", "KINDS"])
def test_every_word_of_a_label_is_explained(words: str) -> None:
    text = (DOCS / "monitoring.md").read_text(encoding="utf-8")
    assert not [word for word in getattr(metrics, words) if f"`{word}`" not in text]


def test_every_cause_of_a_failure_is_explained_to_the_operator() -> None:
    """The reason of a failed job or delivery begins with it."""
    text = (DOCS / "operate.md").read_text(encoding="utf-8").partition("**Of jobs and deliveries**")[2]
    causes = {*metrics.CAUSES, "engine_error", "superseded", "segmentation_refused"} - {metrics.OTHER}
    assert not [cause for cause in causes if f"`{cause}`" not in text]


def test_a_metric_of_the_documentation_exists() -> None:
    """Runbooks and the board's description name only what is served."""
    served = _labels_by_metric()
    for page in PAGES:
        for name in re.findall(r"\bhilum_[a-z_]+[a-z]\b", page.read_text(encoding="utf-8")):
            assert re.sub("_(bucket|sum|count)$", "", name) in served, f"{_name(page)}: {name}"


# Commands and keys ----------------------------------------------------------------------------------------------------


def _commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_command_of_the_documentation_can_be_given(page: Path) -> None:
    """Each `hilum COMMAND --option` that a page tells somebody to type is there."""
    commands = _commands()
    for line in re.findall(r"(?:`|^|/|\*\*`)hilum ([a-z][^`\n#]*)", page.read_text(encoding="utf-8"), re.MULTILINE):
        word, _, rest = line.partition(" ")
        if not re.fullmatch("[a-z]+", word):
            continue
        assert word in commands, line
        for option in re.findall(r"(?<![\w-])--[a-z-]+", rest):
            assert option in commands[word]._option_string_actions, f"{_name(page)}: hilum {line}"


def test_every_option_of_the_import_is_explained() -> None:
    """docs/commands.md lists what `hilum-models import` can be told."""
    (commands,) = [a for a in models_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    options = set(commands.choices["import"]._option_string_actions) - {"-h", "--help", "--json"}
    section = (DOCS / "commands.md").read_text(encoding="utf-8").partition("hilum-models import")[2]
    assert options <= set(re.findall(r"--[a-z-]+", section))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_key_of_the_documentation_exists(page: Path) -> None:
    """`section.key` in a page is a key of node.toml."""
    for section, key in re.findall(r"`([a-z]+)\.([a-z_]+)`", page.read_text(encoding="utf-8")):
        field = Settings.model_fields.get(section)
        if field is None or key in {"py", "sh", "md", "toml", "json"}:
            continue
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        known = {name for kind in kinds for name in getattr(kind, "model_fields", ())}
        assert key in known, f"{_name(page)}: {section}.{key}"


# Pages and links ------------------------------------------------------------------------------------------------------


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        leads_to = (page.parent / path).resolve() if path else page
        assert leads_to.exists(), f"{_name(page)}: {target}"
        assert not anchor or anchor in _anchors(leads_to), f"{_name(page)}: {target}"


def test_the_index_leads_to_every_page_and_every_picture_is_shown() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index
    everything = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert not [picture.name for picture in (DOCS / "images").iterdir() if picture.name not in everything]
