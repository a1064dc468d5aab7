"""explain: how a folder, or a received series, is told apart into stacks, and what every rule says of each."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from node.commands.configuration import configured_path, settings_or_default
from node.commands.folder import SENDER, DicomFolder, left_out, read_folder, series_name
from node.commands.records import open_journal, series_record
from node.commands.terminal import DONE, NotThere, document, harmless, note, progress, say
from node.config import Settings
from node.dicom.headers import read_header
from node.dicom.pixels import split_series
from node.domain import routing
from node.domain.exclusions import is_image
from node.domain.history import SeriesRecord
from node.domain.instance import InstanceState, Sender
from node.domain.routing import Ineligible, ModelFacts, Rule
from node.domain.senders import route_for_all
from node.domain.stack import Stack, Unstackable
from node.errors import CannotUnderstand
from node.service.house import enabled_bundles, model_facts
from node.store.due import UNREADABLE


@dataclass(frozen=True)
class Explanation:
    """What is said of one stack, or of frames that form none."""

    series_instance_uid: str
    series: str
    """Number and description."""
    frames: int
    stack: str
    """Its size and place in words, or why it is no scan."""
    rules: Sequence[str]
    """What each rule says."""
    models: Sequence[str]
    """The models that were chosen; none: see the reason."""
    destinations: Sequence[str]
    reason: str
    detail: str


def explain(options: argparse.Namespace) -> int:
    """Explain a folder, or a received series."""
    settings = settings_or_default(options)
    facts = {name: model_facts(bundle) for name, bundle in enabled_bundles(settings).items()}
    with tempfile.TemporaryDirectory(prefix="hilum-") as scratch:
        found, sent_by = _source(options, settings, Path(scratch))
        senders = {uid: _judged_as(options, settings, sender) for uid, sender in sent_by.items()}
        said = [
            explanation
            for headers in found.series.values()
            for explanation in explained(
                split_series(headers, found.paths, found.unread), senders, settings.rules(), facts
            )
        ]
    if options.json:
        say(document({"stacks": said, "skipped_files": found.skipped, "notes": found.notes}))
    else:
        _tell(found, said)
    return DONE


def explained(
    parts: Sequence[Stack | Unstackable],
    senders: Mapping[str, Sender],
    rules: Sequence[Rule],
    models: Mapping[str, ModelFacts],
) -> Iterator[Explanation]:
    """What is said of each part of one series, by who sent each of its images."""
    answers = route_for_all(parts, senders, rules, models)
    for part, (stack, *said) in zip(parts, _lines(parts, senders, rules, models), strict=True):
        own = [answer for answer in answers if _frames(part) & _frames(answer.stack)]
        refused = next((answer for answer in own if isinstance(answer, Ineligible)), None)
        chosen = [answer for answer in own if not isinstance(answer, Ineligible)]
        yield Explanation(
            series_instance_uid=part.frames[0].header.series_instance_uid,
            series=series_name(part.frames[0].header),
            frames=len(part.frames),
            stack=stack,
            rules=[line.strip() for line in said],
            models=[answer.model for answer in chosen],
            destinations=list(dict.fromkeys(name for answer in chosen for name in answer.destinations)),
            reason="" if refused is None else refused.reason,
            detail="" if refused is None else refused.detail,
        )


def _lines(
    parts: Sequence[Stack | Unstackable],
    senders: Mapping[str, Sender],
    rules: Sequence[Rule],
    models: Mapping[str, ModelFacts],
) -> list[list[str]]:
    """The lines of each part; where several peers sent the series, the rules in words for each of them (RES-42)."""
    several = {replace(sender, association_id=""): None for sender in senders.values()}
    by_sender = {sender: _by_part(routing.explain(parts, sender, rules, models)) for sender in several}
    if len(by_sender) == 1:
        return next(iter(by_sender.values()))
    return [
        [
            own[0][0],
            *(
                f"from {sender.alias}: {line.strip()}"
                for sender, lines in zip(by_sender, own, strict=True)
                for line in lines[1:]
            ),
        ]
        for own in zip(*by_sender.values(), strict=True)
    ]


def _by_part(lines: Sequence[str]) -> list[list[str]]:
    """The lines of each part: the first one names it, those that follow are indented."""
    parts: list[list[str]] = []
    for line in lines:
        if line.startswith(" "):
            parts[-1].append(line)
        else:
            parts.append([line])
    return parts


def _frames(part: Stack | Unstackable) -> set[tuple[str, int]]:
    return {(frame.sop_instance_uid, frame.frame.number) for frame in part.frames}


def _source(options: argparse.Namespace, settings: Settings, scratch: Path) -> tuple[DicomFolder, Mapping[str, Sender]]:
    """The folder, or what the journal has of the series, and who sent each image."""
    folder = Path(options.source)
    if folder.exists():
        with progress("reading headers", quiet=options.json) as shown:
            found = read_folder(folder, scratch, shown)
            return found, dict.fromkeys(found.paths, SENDER)
    if configured_path(options) is None or not re.fullmatch(r"[0-9.]+", options.source):
        raise NotThere(f"{harmless(options.source)}: there is no such folder")
    with open_journal(settings) as journal:
        record = series_record(journal, options.source)
    found = _received(record)
    current = [each for each in record.instances if Path(each.path) in set(found.paths.values())]
    return found, {each.sop_instance_uid: each.sender for each in current}


def _received(record: SeriesRecord) -> DicomFolder:
    """The kept objects of a series, as a folder would give them."""
    headers, paths, skipped, unread = [], {}, Counter[str](), []
    for instance in record.instances:
        if instance.reason == UNREADABLE and not instance.replaced and is_image(instance.sop_class_uid):
            unread.append(instance.sop_instance_uid)
        if instance.purged or instance.replaced or instance.state != InstanceState.KEPT:
            skipped["purged" if instance.purged else "replaced" if instance.replaced else instance.state] += 1
            continue
        try:
            header = read_header(Path(instance.path))
        except CannotUnderstand:
            skipped["cannot be understood"] += 1
            if is_image(instance.sop_class_uid):
                unread.append(instance.sop_instance_uid)
            continue
        headers.append(header)
        paths[header.sop_instance_uid] = Path(instance.path)
    series = {record.summary.series_instance_uid: tuple(headers)} if headers else {}
    number = record.summary.id
    nothing = f"of series {number} no image can be judged now; `hilum series {number}` shows each with its reason"
    return DicomFolder(series, paths, dict(skipped), unread=tuple(unread), nothing=nothing)


def _judged_as(options: argparse.Namespace, settings: Settings, sender: Sender) -> Sender:
    """The sender, as --sender and --called would have it.

    Raises
    ------
    NotThere
        Where there is no such peer.
    """
    if options.sender:
        peer = next((peer for peer in settings.peer if peer.name == options.sender), None)
        if peer is None:
            known = ", ".join(peer.name for peer in settings.peer) or "none"
            raise NotThere(f"there is no [[peer]] named {options.sender!r}; there are: {known}")
        sender = replace(sender, alias=peer.name, calling_ae_title=peer.ae_title)
    return replace(sender, called_ae_title=options.called) if options.called else sender


def _tell(found: DicomFolder, said: Sequence[Explanation]) -> None:
    for text in found.notes:
        note(text)
    for n, explanation in enumerate(said):
        if n == 0 or explanation.series_instance_uid != said[n - 1].series_instance_uid:
            say(f"series {harmless(explanation.series)} ({harmless(explanation.series_instance_uid)})")
        say(f"  {harmless(explanation.stack)}")
        for line in explanation.rules:
            say(f"    {harmless(line)}")
    if found.skipped:
        say(left_out(found.skipped))
    if not said:
        say(found.nothing)
