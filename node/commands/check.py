"""check: everything that must hold before a scanner is pointed at this node, each with its mend."""

from __future__ import annotations

import argparse
import ipaddress
import os
import shutil
import socket
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from pydicom.uid import UID

from engines.model.bundle import Bundle
from node.commands.configuration import required_path
from node.commands.installed import installed_engines
from node.commands.terminal import ANSWER_IS_NO, DONE, age, document, harmless, say, sentence
from node.config import UNSET_SERIAL, Settings, load_settings
from node.dicom import scu
from node.dicom.pixels import decoders
from node.dicom.scp import Refusal
from node.domain.admission import lines_to_add
from node.domain.history import RefusedPeer, RoleRecord
from node.domain.job import Destination
from node.domain.variants import PDF_CLASS, SEG_CLASSES, SR_CLASSES
from node.errors import ConfigError, PermanentlyRefused, Transient
from node.service.cards import cautions_of
from node.service.certificates import certificate_faults
from node.service.house import enabled_bundles, segments_of, uncoded_labels
from node.service.process import executor_id, runs
from node.store.journal import Journal
from node.supervisor import ROLES

_ALIVE_S = 60.0
"""Roles show themselves every few seconds; one that runs and does not hangs, or begins."""


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Remark:
    """One line of the page."""

    level: Level
    subject: str
    text: str
    mend: str = ""


def check(options: argparse.Namespace) -> int:
    """Run all checks; status 1 where one of them failed."""
    path = required_path(options)
    settings = load_settings(path)
    running = frozenset(role for role in ROLES if runs(settings, role))
    remarks: list[Remark] = []
    for run in _checks(settings, running, options.offline):
        for remark in run:
            remarks.append(remark)
            if not options.json:
                say(_line(remark))
    failed = any(remark.level is Level.FAIL for remark in remarks)
    if options.json:
        say(document({"ok": not failed, "config": path.absolute(), "checks": remarks, "settings": settings.dump()}))
    else:
        ready = "ready" if running else "ready; the node does not run, `hilum serve` starts it"
        say("not ready: mend what failed" if failed else ready)
    return ANSWER_IS_NO if failed else DONE


def _checks(settings: Settings, running: frozenset[str], offline: bool) -> Iterator[Iterator[Remark]]:
    """The checks in the order of the page; each runs when it is asked for its remarks."""
    yield _configuration(settings)
    yield _disk(settings)
    yield _decoders()
    yield _models(settings)
    yield _listener(settings, running)
    if not offline:
        yield _destinations(settings)
    yield _journal(settings, running)


def _line(remark: Remark) -> str:
    line = f"{remark.level.upper():4}  {remark.subject}: {harmless(remark.text)}"
    return line + "".join(f"\n      {part}" for part in remark.mend.splitlines())


def _ok(subject: str, text: str) -> Remark:
    return Remark(Level.OK, subject, text)


def _warn(subject: str, text: str, mend: str = "") -> Remark:
    return Remark(Level.WARN, subject, text, mend)


def _fail(subject: str, text: str, mend: str = "") -> Remark:
    return Remark(Level.FAIL, subject, text, mend)


def _configuration(settings: Settings) -> Iterator[Remark]:
    node, subject = settings.node, "configuration"
    counts = f"peers {len(settings.peer)}, destinations {len(settings.destination)}, rules {len(settings.rule)}"
    yield _ok(subject, f"{node.ae_title}: {counts}")
    if node.research_use:
        yield _ok("research use", "every result is marked as made for research only (node.research_use = true)")
    else:
        yield _warn("research use", "results are NOT marked as made for research (node.research_use = false)")
    if node.serial == UNSET_SERIAL:
        text = "node.serial is not set: two nodes would give their results the same UIDs"
        yield _warn(subject, text, "set node.serial, another one for each installation")
    if not settings.peer:
        yield _warn(subject, "there is no [[peer]]: nobody may send", "add one for each scanner, see docs/connect.md")
    if not settings.rule:
        yield _warn(subject, "there is no [[rule]]: nothing is segmented", "add one, see docs/configure.md")
    for rule in settings.rule:
        if not rule.destinations:
            yield _warn(f"rule {rule.name}", "it has no destinations: its results stay in the spool")
    if looser := settings.segmenter.looser_limits:
        text = f"engines are certified by looser limits than the default: {looser}; every result says so"
        yield _warn("engines", text, "take segmenter.certificate_* out, unless the site has judged such masks itself")
    if settings.spool.keep_results_h < 72:
        yield _warn(subject, "spool.keep_results_h is below 72: a result may be gone before its loss is noticed")


def _disk(settings: Settings) -> Iterator[Remark]:
    folder = settings.node.data_dir
    if not folder.is_dir():
        yield _fail("disk", f"{folder} does not exist", f"mkdir -m 700 {folder}, as the user that runs the node")
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        yield _fail("disk", f"{folder} cannot be written", f"give it to the user that runs the node ({os.getuid()})")
        return
    if mode := stat.S_IMODE(folder.stat().st_mode) & 0o077:
        text = f"{folder} is open to others (mode {mode:03o} beside its owner's): it holds patients' images and headers"
        yield _warn("disk", text, f"chmod 700 {folder}")
    free, reserve = shutil.disk_usage(folder).free, settings.spool.reserve_bytes
    text = f"{folder}: {_gib(free)} free, {_gib(reserve)} of it kept in reserve"
    if free <= reserve:
        yield _fail("disk", f"{text}: every object would be refused", "make room, or lower spool.reserve_bytes")
    else:
        yield _ok("disk", text) if free > 2 * reserve else _warn("disk", f"{text}: little room", "make room")


def _decoders() -> Iterator[Remark]:
    found = decoders()
    for uid, name in found.items():
        yield _ok("decoder", f"{UID(uid).name}: {name}")
    if not found:
        yield _fail("decoder", "no transfer syntax can be decoded", "install Hilum again, its decoders are missing")


def _models(settings: Settings) -> Iterator[Remark]:
    try:
        bundles, segments = enabled_bundles(settings), segments_of(settings)
    except ConfigError as error:
        yield _fail("models", sentence(error), "mend it, or take it out of [models]")
        return
    for bundle in bundles.values():
        yield _model(settings, bundle, set(segments))
        for fault in certificate_faults(settings, bundle):
            yield (_fail if fault.serious else _warn)(f"model {bundle.name} {bundle.version}", fault.text)
    for caution in cautions_of(settings):
        yield _warn("engines", caution.text, caution.mend)
    for rule in settings.rule:
        if rule.model not in bundles:
            known = ", ".join(sorted(bundles)) or "none"
            yield _fail(f"rule {rule.name}", f"its model {rule.model!r} is not there", f"models that are: {known}")


def _model(settings: Settings, bundle: Bundle, coded: set[str]) -> Remark:
    subject = f"model {bundle.name} {bundle.version}"
    if uncoded := uncoded_labels(bundle, coded):
        mend = "add a row for each to a table that models.segments names"
        return _fail(subject, f"no code for {', '.join(uncoded)}", mend)
    if len(bundle.channels) > 1:
        return _warn(
            subject,
            f"sees {len(bundle.channels)} images at once ({', '.join(bundle.channels)}); a series brings one",
            "leave it out of models.enabled, and use it with `hilum-models segment`",
        )
    chosen = next((choice for choice in installed_engines(settings) if choice.usable), None)
    if chosen is None:
        return _fail(subject, "no engine can run it here", "see `hilum models`; install one, or change [segmenter]")
    text = f"digest {bundle.digest[:12]}, {len(bundle.labels)} labels, each with a code; {chosen.reason}"
    return _ok(subject, text)


def _listener(settings: Settings, running: frozenset[str]) -> Iterator[Remark]:
    host, port = settings.listener.host, settings.listener.port
    remote = [p.name for p in settings.peer if not all(ipaddress.ip_network(a).is_loopback for a in p.addresses)]
    if remote and host in {"127.0.0.1", "localhost", "::1"}:
        text = f"listens on {host} only: {', '.join(remote)} cannot reach it"
        yield _fail("listener", text, 'set listener.host = "0.0.0.0"')
    answers = bool(port) and _answers(host, port)
    if "listener" in running:
        text = f"the node {'listens' if answers else 'does not yet listen'} on {host}:{port}"
        yield (
            _ok("listener", text)
            if answers or not port
            else _fail("listener", text, "the log of the listener says why")
        )
    elif answers:
        mend = "stop it, or change listener.port"
        yield _fail("listener", f"another program than this node listens on {host}:{port}", mend)
    else:
        yield _ok("listener", f"{host}:{port} is free; `hilum serve` will listen there")


def _answers(host: str, port: int) -> bool:
    """Whether a TCP connection can be made to the port of this machine."""
    try:
        with socket.create_connection(("127.0.0.1" if host == "0.0.0.0" else host, port), timeout=2):  # noqa: S104
            return True
    except OSError:
        return False


def _destinations(settings: Settings) -> Iterator[Remark]:
    used = {name for rule in settings.rule for name in rule.destinations}
    for destination in settings.destinations().values():
        remark = _destination(destination)
        unused = remark.level is Level.FAIL and destination.name not in used
        yield replace(remark, level=Level.WARN) if unused else remark


def _destination(destination: Destination) -> Remark:
    """Whether it answers, and takes what it would be sent (NET-38)."""
    subject = f"destination {destination.name}"
    where = f"{destination.ae_title} at {destination.host}:{destination.port}"
    wanted = {**SEG_CLASSES, **SR_CLASSES, "pdf": PDF_CLASS}
    try:
        scu.echo(destination)
        accepted = scu.probe(destination, list(wanted.values()))
    except Transient as error:
        return _fail(
            subject, f"{where}: {sentence(error)}", "does it run, is the address right, can this machine reach it?"
        )
    except PermanentlyRefused as error:
        return _fail(
            subject, f"{where}: {sentence(error)}", f"there, allow {destination.calling_ae_title} to call and to store"
        )
    takes = {name for name, uid in wanted.items() if uid in accepted}
    text = f"{where} answers, takes {', '.join(name for name in wanted if name in takes) or 'nothing of ours'}"
    if missing := _missing(destination, takes):
        return _fail(subject, text, f"there, allow to store {', '.join(missing)}")
    return _ok(subject, text)


def _missing(destination: Destination, takes: set[str]) -> list[str]:
    """What it would be sent and does not take, in words."""
    segs = {"labelmap"} if destination.seg == "labelmap" else set(SEG_CLASSES)
    missing = [] if takes & segs else ["segmentations"]
    if destination.sr and not takes & set(SR_CLASSES):
        missing.append("structured reports (or, here, set sr = false)")
    if destination.pdf and "pdf" not in takes:
        missing.append("Encapsulated PDF (or, here, set pdf = false)")
    return missing


def _journal(settings: Settings, running: frozenset[str]) -> Iterator[Remark]:
    """Which roles run, and who was refused; a node that never ran has no journal, and looking makes none."""
    now = datetime.now(UTC)
    if not (settings.node.data_dir / "journal.db").is_file():
        yield from _roles(settings, running, (), now) if running else ()
        return
    with Journal.open(settings.journal_url) as journal:
        roles, refused = journal.roles(), journal.refused_peers()
    yield from _roles(settings, running, roles, now)
    for peer in refused:
        yield _turned_away(settings, peer, now)


def _roles(
    settings: Settings, running: Collection[str], records: Collection[RoleRecord], now: datetime
) -> Iterator[Remark]:
    """By their locks, which end with them; a node of which no role runs was stopped, one that misses some is broken."""
    seen_at = {record.executor_id: record.seen_at for record in records}
    for role in ROLES:
        name = executor_id(settings, role)
        last = f"last seen {age(seen_at[name], now)} ago" if name in seen_at else "never seen"
        hangs = name in seen_at and (now - seen_at[name]).total_seconds() > _ALIVE_S
        if role not in running:
            mend = "it starts, or has ended; the log of `hilum serve` says why: role_ended, role_failed"
            yield (
                _fail("node", f"{name} does not run, {last}", mend)
                if running
                else _warn("node", f"{name} does not run, {last}")
            )
        elif hangs:
            yield _warn(
                "node", f"{name} runs, but was {last}: it starts, or hangs", "where it stays so, restart the node"
            )
        else:
            yield _ok("node", f"{name} runs")


def _turned_away(settings: Settings, peer: RefusedPeer, now: datetime) -> Remark:
    """Who was refused, why, and what would let it in."""
    who = f"{peer.calling_ae_title} at {peer.address} called {peer.called_ae_title}"
    text = f"{who if peer.calling_ae_title else peer.address}: {peer.reason}; {_times(peer.times)}, "
    text += f"last {age(peer.last_at, now)} ago"
    if peer.reason == Refusal.PEER:
        if known := _listed(settings, peer):
            return _ok("refused", f"{text}; [[peer]] {known} lets it in, once the node was started with it")
        lines = lines_to_add(peer.calling_ae_title, peer.address, settings.peer)
        return _warn("refused", text, f"if it may send, for node.toml:\n{lines}")
    answers_to = ", ".join(settings.called_ae_titles)
    mends: dict[str, str] = {
        Refusal.CALLED: f"it may call {answers_to}; see listener.virtual_ae_titles and peer.called_ae_titles",
        Refusal.LIMIT: "fewer associations at once there, or a higher max_associations of the peer here",
        Refusal.DRAINING: "the node was being stopped: the sender tries again",
        Refusal.PROTOCOL: "it did not speak DICOM as we know it: a port scan, a health check, TLS, or a wrong port",
    }
    return _warn("refused", text, mends.get(peer.reason, ""))


def _listed(settings: Settings, refused: RefusedPeer) -> str:
    """The name of the peer that the configuration has for it by now; empty where there is none."""
    try:
        address = ipaddress.ip_address(refused.address)
    except ValueError:
        return ""
    for peer in settings.peer:
        networks = [ipaddress.ip_network(network) for network in peer.addresses]
        if peer.ae_title == refused.calling_ae_title and any(address in network for network in networks):
            return peer.name
    return ""


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"
