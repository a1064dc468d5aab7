"""series, jobs, retry, cancel: what the journal knows, and the two things that an operator may ask of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from node.commands.configuration import settings_of
from node.commands.identity import accept, choices
from node.commands.terminal import DONE, NotThere, age, document, harmless, plain, say, table
from node.config import Settings
from node.domain.findings import readable_ml
from node.domain.history import Event, JobRecord, PartRecord, SeriesRecord, SeriesSummary
from node.domain.job import Job, JobState, NotAllowed
from node.domain.series import SeriesState
from node.errors import ConfigError
from node.monitor.logs import hashed
from node.store.journal import Journal


def open_journal(settings: Settings) -> Journal:
    """The journal of the configured node.

    Raises
    ------
    NotThere
        Where the node has never run: looking must not create a journal.
    """
    path = settings.node.data_dir / "journal.db"
    if not path.is_file():
        raise NotThere(f"{path}: there is no journal yet; `hilum serve` makes it when it runs for the first time")
    return Journal.open(settings.journal_url)


def series(options: argparse.Namespace) -> int:
    """List series, or show one."""
    settings = settings_of(options)
    with open_journal(settings) as journal:
        if options.series is not None:
            record = series_record(journal, options.series)
            in_log = _name_in_log(settings, record.summary.series_instance_uid)
            as_json = options.json
            say(document(plain(record) | {"in_log": in_log}) if as_json else _series_page(record, in_log, journal))
            return DONE
        state = SeriesState(options.state) if options.state else None
        rows = journal.list_series(state=state, limit=options.limit)
    say(document(rows) if options.json else _series_list(rows))
    return DONE


def jobs(options: argparse.Namespace) -> int:
    """List jobs, or show one."""
    with open_journal(settings_of(options)) as journal:
        if options.job is not None:
            record = journal.show_job(options.job)
            if record is None:
                raise NotThere(f"there is no job {options.job}; `hilum jobs` lists them")
            say(document(record) if options.json else _job_page(record))
            return DONE
        state = JobState(options.state) if options.state else None
        rows = journal.list_jobs(state=state, model=options.model, limit=options.limit)
        unsent = journal.not_sent(rows)
    with_unsent = [plain(row) | {"not_sent_to": unsent.get(row.id, ())} for row in rows]
    say(document(with_unsent) if options.json else _job_list(rows, unsent))
    return DONE


def series_record(journal: Journal, key: str) -> SeriesRecord:
    """The series of this number or Series Instance UID; raises NotThere."""
    record = journal.show_series(int(key) if key.isdigit() else key)
    if record is None:
        raise NotThere(f"there is no series {harmless(key)}; `hilum series` lists them")
    return record


def _series_list(rows: Sequence[SeriesSummary]) -> str:
    if not rows:
        return "no series"
    now = datetime.now(UTC)
    heads = ("series", "received", "from", "objects", "state", "revision", "outcome", "reason", "evidence")
    return table(
        heads,
        (
            (
                r.id,
                age(r.last_received_at, now),
                r.sender.alias,
                r.instances or r.held,
                r.state,
                r.revision,
                r.outcome,
                r.reason,
                r.evidence,
            )
            for r in rows
        ),
    )


def _job_list(rows: Sequence[Job], unsent: Mapping[int, Sequence[str]]) -> str:
    if not rows:
        return "no jobs"
    now = datetime.now(UTC)
    heads = ("job", "made", "series", "revision", "model", "state", "attempt", "destinations", "not sent to", "reason")
    return table(
        heads,
        (
            (
                r.id,
                age(r.created_at, now),
                r.series_id,
                r.revision,
                r.model,
                r.state,
                r.attempt,
                ", ".join(r.destinations),
                ", ".join(unsent.get(r.id, ())),
                r.reason,
            )
            for r in rows
        ),
    )


def _name_in_log(settings: Settings, series_instance_uid: str) -> str:
    """What lines of the log call a series (SEC-20); empty where this node has not logged yet."""
    key = settings.node.data_dir / "log.key"
    return hashed(series_instance_uid, key.read_bytes()) if key.is_file() else ""


def _series_page(record: SeriesRecord, in_log: str, journal: Journal) -> str:
    s = record.summary
    facts = {
        "Series Instance UID": s.series_instance_uid,
        "in the log": in_log,
        "from": f"{s.sender.alias}: {s.sender.calling_ae_title} at {s.sender.address}",
        "called": s.sender.called_ae_title,
        "state": f"{s.state}, revision {s.revision}" + (f", {s.completeness}" if s.completeness else ""),
        "received": f"{_came(s)}, the last one {age(s.last_received_at)} ago",
        "evidence": f"{s.evidence}, after {s.wait_s:.0f} s" if s.evidence else _no_evidence(s),
        "outcome": _joined(s.outcome, s.reason),
    }
    out = [f"series {s.id}", _facts(facts)]
    if record.parts:
        out += ["", "stacks", *(_part_line(part) for part in record.parts)]
    if record.jobs:
        out += ["", "jobs", _indented(_job_list(record.jobs, journal.not_sent(record.jobs)))]
    odd = [i for i in record.instances if i.reason or i.duplicates or i.replaced]
    if odd:
        heads = ("SOP Instance UID", "state", "reason", "came again", "replaced")
        rows = ((i.sop_instance_uid, i.state, i.reason, i.duplicates, "yes" if i.replaced else "") for i in odd)
        out += ["", "instances with something to say", table(heads, rows, "  ")]
    if s.state is SeriesState.SETTLED and (answers := choices(record)):
        out += ["", "whose images they are, a person must say (docs/operate.md)", *(f"  {line}" for line in answers)]
    return "\n".join([*out, "", "history", _history(record.events)])


def _came(s: SeriesSummary) -> str:
    kinds = ((s.instances, "images"), (s.held, "objects that are held"))
    return " and ".join(f"{number} {what}" for number, what in kinds if number) or "nothing"


def _no_evidence(s: SeriesSummary) -> str:
    if s.state is SeriesState.OPEN:
        return "none yet"
    return "not needed: what is held waits for nothing more" if s.outcome == "held" else "none"


def _job_page(record: JobRecord) -> str:
    job = record.job
    facts = {
        "series": f"{job.series_id} ({record.series.series_instance_uid}), revision {job.revision}",
        "model": f"{job.model} ({job.model_digest[:12]})",
        "state": f"{job.state}, attempt {job.attempt}" + (f", begun {job.starts} times" if job.starts > 1 else ""),
        "reason": _joined(job.reason, record.detail),
        "made": f"{age(job.created_at)} ago",
    }
    out = [f"job {job.id}", _facts(facts)]
    if record.result:
        out += ["", "result", _result(record.result)]
    if record.objects:
        rows = ((o.kind, o.variant, o.sop_instance_uid, o.path) for o in record.objects)
        out += ["", "objects", table(("kind", "form", "SOP Instance UID", "file"), rows, "  ")]
    if record.deliveries:
        heads = ("delivery", "kind", "to", "state", "put off", "reason")
        out += [
            "",
            "deliveries",
            table(heads, ((d.id, d.kind, d.destination, d.state, d.tries, d.reason) for d in record.deliveries), "  "),
        ]
    return "\n".join([*out, "", "history", _history(record.events)])


def _result(result: Mapping[str, Any]) -> str:
    """The table of volumes, and below it how they were made."""
    found = result.get("findings", ())
    rows = ((f["segment"], _ml(f["volume_ml"], f["outcome"]), f["outcome"], "; ".join(f["flags"])) for f in found)
    how = {key: _plainly(value) for key, value in result.items() if key != "findings"}
    volumes = [table(("organ", "mL", "outcome", "remarks"), rows, "  ")] if found else []
    return "\n".join([*volumes, _facts(how)])


def _ml(volume_ml: float | None, outcome: str) -> str:
    return "" if volume_ml is None else readable_ml(volume_ml, outcome)


def _plainly(value: object) -> str:
    """A value of JSON in words: `load 3.38, compose 56.35`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plainly(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plainly(item) for item in value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _part_line(part: PartRecord) -> str:
    told_apart = ", ".join(f"{key} {value}" for key, value in part.keys.items())
    chosen = f"rule {part.rule}, model {part.model}, job {part.job_id}" if part.job_id is not None else ""
    words = [f"{part.frames} frames", told_apart, part.outcome, chosen or _joined(part.reason, part.detail)]
    return f"  {part.revision}.{part.number}: " + harmless("; ".join(word for word in words if word))


def _history(events: Sequence[Event]) -> str:
    if not events:
        return "  nothing yet"
    heads = ("at (UTC)", "what", "event", "from", "to", "attempt", "reason")
    rows = (
        (
            f"{e.at:%Y-%m-%d %H:%M:%S}",
            f"{e.entity} {e.entity_id}",
            e.event,
            e.from_state,
            e.to_state,
            e.attempt,
            e.reason.rstrip(": "),
        )
        for e in events
    )
    return table(heads, rows, "  ")


def _facts(facts: Mapping[str, str]) -> str:
    width = max(len(key) for key in facts)
    return "\n".join(f"  {key.ljust(width)}  {harmless(value)}" for key, value in facts.items() if value)


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


def _joined(reason: str, detail: str) -> str:
    return ": ".join(part for part in (reason, detail) if part)


def retry(options: argparse.Namespace) -> int:
    """Start a job again, send a delivery again, or judge a series anew, where in doubt as whose it is said to be."""
    if options.accept and options.series is None:
        raise ConfigError("--accept says whose a series is: name it by --series")
    with open_journal(settings_of(options)) as journal:
        series = partial(accept, journal, which=options.accept) if options.accept else journal.retry_series
        return _ask(options, {"job": journal.retry, "delivery": journal.retry_delivery, "series": series})


def cancel(options: argparse.Namespace) -> int:
    """Cancel a job or a delivery."""
    with open_journal(settings_of(options)) as journal:
        return _ask(options, {"job": journal.cancel, "delivery": journal.cancel_delivery})


def _ask(options: argparse.Namespace, asked: Mapping[str, Callable[[int], str]]) -> int:
    """Do what was asked to the one thing that the command line names."""
    named = [(what, number) for what in asked if (number := getattr(options, what)) is not None]
    if len(named) != 1:
        raise ConfigError(f"name one thing: {', or '.join(what if what == 'job' else '--' + what for what in asked)}")
    what, number = named[0]
    try:
        done = asked[what](number)
    except NotAllowed as error:
        raise NotThere(str(error)) from None
    say(document({what: number, "done": done}) if options.json else f"{what} {number}: {done}")
    return DONE
