"""Settings: one TOML file, read into frozen, strictly typed models, and turned into the domain's types.

What other rooms are handed (the listener's peers and limits, the style of results) `node.service` makes from the
sections, so that reading a configuration loads no pynetdicom, and of pydicom the dictionary of keywords alone.

Every refusal is a ConfigError that names the file, the key, the value and the mend. The file holds no secret: where one
will be needed (a private key, a database password) it is named by the path of the file that holds it.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from node.config.complaints import complaints, not_toml, redacted, unknown_name
from node.config.fields import field_fault
from node.config.sections import (
    UNSET_SERIAL,
    CompletionSection,
    DestinationSection,
    ListenerSection,
    ModelsSection,
    MonitorSection,
    NodeSection,
    PeerSection,
    RuleSection,
    Section,
    SegmenterSection,
    SpoolSection,
)
from node.domain.job import Destination, RetryPolicy
from node.domain.routing import Condition, Rule
from node.domain.series import SettlePolicy
from node.errors import ConfigError

__all__ = [
    "SHIPPED_CONFIG",
    "UNSET_SERIAL",
    "ListenerSection",
    "NodeSection",
    "PeerSection",
    "Settings",
    "load_settings",
    "parse_settings",
    "software_version",
]

SHIPPED_CONFIG = Path(__file__).resolve().parent.parent.parent / "dicom_config"
"""The folder of data that is installed beside the package: the example file and the table of segments."""


_EVERY_INTERFACE = frozenset({"0.0.0.0", "::"})  # noqa: S104


class Settings(Section):
    """The whole file. Section names are those of the TOML: `[node]`, `[[peer]]`, ..."""

    node: NodeSection = NodeSection()
    listener: ListenerSection = ListenerSection()
    peer: tuple[PeerSection, ...] = ()
    destination: tuple[DestinationSection, ...] = ()
    rule: tuple[RuleSection, ...] = ()
    models: ModelsSection = ModelsSection()
    segmenter: SegmenterSection = SegmenterSection()
    completion: CompletionSection = CompletionSection()
    spool: SpoolSection = SpoolSection()
    monitor: MonitorSection = MonitorSection()

    @model_validator(mode="after")
    def _names_agree(self) -> Settings:
        for kind, names in (
            ("peer", [peer.name for peer in self.peer]),
            ("destination", [destination.name for destination in self.destination]),
            ("rule", [rule.name for rule in self.rule]),
        ):
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"[[{kind}]] name = {sorted(twice)[0]!r} stands twice; give each its own")
        if fault := next(filter(None, self._unknown_names()), ""):
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Settings:
        monitor, listener = self.monitor, self.listener
        ports = {f"monitor.{role}_port": port for role, port in monitor.ports.items() if port}
        hosts = {monitor.host, listener.host}
        if listener.port and (len(hosts) == 1 or hosts & _EVERY_INTERFACE):
            ports["listener.port"] = listener.port
        for key, port in ports.items():
            if same := [other for other in ports if ports[other] == port and other != key]:
                raise ValueError(f"{key} and {same[0]} are both {port}; give each its own")
        return self

    def _unknown_names(self) -> Iterator[str]:
        """What to say of each name that one section uses and no other gives."""
        destinations, peers = [d.name for d in self.destination], [peer.name for peer in self.peer]
        for rule in self.rule:
            yield unknown_name(f"rule {rule.name!r}: destinations", rule.destinations, destinations)
            yield unknown_name(f"rule {rule.name!r}: senders", rule.senders, peers)
            yield unknown_name(f"rule {rule.name!r}: called_ae_titles", rule.called_ae_titles, self.called_ae_titles)
        for peer in self.peer:
            yield unknown_name(f"peer {peer.name!r}: called_ae_titles", peer.called_ae_titles, self.called_ae_titles)

    @property
    def called_ae_titles(self) -> tuple[str, ...]:
        """Every AE title that the node answers to, its own first."""
        return (self.node.ae_title, *self.listener.virtual_ae_titles)

    @property
    def spool_folder(self) -> Path:
        """Where received objects and results lie."""
        return self.node.data_dir / "spool"

    @property
    def engines_folder(self) -> Path:
        """Where what backends build lies, and the certificates and speeds that were measured on this node."""
        return self.node.data_dir / "engines"

    @property
    def journal_url(self) -> str:
        """SQLAlchemy URL of the journal."""
        return f"sqlite:///{self.node.data_dir / 'journal.db'}"

    @property
    def engine_path(self) -> Path:
        """The durable queues' own data base; it may be deleted while the node is stopped."""
        return self.node.data_dir / "engine.db"

    @property
    def segment_tables(self) -> tuple[Path, ...]:
        """Tables of segments, the shipped one first; a later row replaces an earlier one of the same name."""
        return (SHIPPED_CONFIG / "segments.csv", *self.models.segments)

    def settle_policy(self, sender: str = "") -> SettlePolicy:
        """When a series of this peer (its name) is taken as whole."""
        own = next((peer.quiet_s for peer in self.peer if peer.name == sender), None)
        quiet_s = self.completion.quiet_s if own is None else own
        return SettlePolicy(quiet_s, min(quiet_s, self.completion.released_quiet_s), self.completion.force_s)

    def destinations(self) -> Mapping[str, Destination]:
        """The destinations by name."""
        return {
            d.name: Destination(
                name=d.name,
                ae_title=d.ae_title,
                host=d.host,
                port=d.port,
                calling_ae_title=d.calling_ae_title or self.node.ae_title,
                seg=d.seg,
                empty_frames=d.empty_frames,
                sr=d.sr,
                pdf=d.pdf,
                retry=RetryPolicy(d.first_retry_s, max(d.first_retry_s, d.longest_retry_s), d.retries),
                network_timeout_s=d.timeout_s,
                dicomweb_url=d.dicomweb_url,
            )
            for d in self.destination
        }

    def rules(self) -> tuple[Rule, ...]:
        """The rules, in the order of the file."""
        return tuple(_rule(section) for section in self.rule)

    def config_digest(self, segment_table: str = "") -> str:
        """SHA-256, hex, over what changes the content of results; part of every job and every result UID (RES-20).

        Ports, peers and waits are left out: they do not change what is found, and a second arrival of the same series
        must meet the job that it had. Threads, engines and the limits of their certificates are left out too, although
        another engine changes voxels, within those limits: a job that is repeated keeps its objects, and what computed
        them stands in each. An update of a library would otherwise make new series of old scans.

        Parameters
        ----------
        segment_table
            The text of all tables of segments.
        """
        style = self.node.model_dump(mode="json", exclude={"name", "ae_title", "data_dir"})
        text = json.dumps([software_version(), style, segment_table], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def dump(self) -> dict[str, Any]:
        """Everything, as plain values for a program; a value whose key speaks of a secret is blacked out (SEC-13)."""
        return {key: redacted(key, value) for key, value in self.model_dump(mode="json").items()}


def software_version() -> str:
    """The version of this Hilum, as results and metrics name it."""
    try:
        return metadata.version("hilum")
    except metadata.PackageNotFoundError:
        return "0.1.0"


def load_settings(path: Path) -> Settings:
    """Read a configuration file.

    Raises
    ------
    ConfigError
        Where the file cannot be read, is not TOML, or says something that cannot be used; the message names file, key,
        value and mend.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; `hilum init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse_settings(text, path)


def parse_settings(text: str, path: Path) -> Settings:
    """Read the text of a configuration file; `path` names it in messages, and relative paths start from its folder."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {not_toml(text, error)}") from error
    try:
        settings = Settings.model_validate(_tuples({"node": {}, **tree}), context={"folder": path.absolute().parent})
        settings.rules()
    except ValidationError as error:
        raise ConfigError("\n".join(complaints(path, Settings, error))) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return settings


def _rule(section: RuleSection) -> Rule:
    for condition in section.when:
        if fault := field_fault(condition.field):
            raise ConfigError(f"rule {section.name!r}: condition on {condition.field}: {fault}")
    try:
        conditions = tuple(Condition(c.field, c.op, c.value) for c in section.when)
    except ConfigError as error:
        raise ConfigError(f"rule {section.name!r}: {error}") from error
    return Rule(
        name=section.name,
        model=section.model,
        conditions=conditions,
        destinations=section.destinations,
        senders=section.senders,
        called_ae_titles=section.called_ae_titles,
        priority=section.priority,
        gapped=section.gapped,
        allow_selftest_model=section.allow_selftest_model,
        only_best=section.only_best,
    )


def _tuples(value: object) -> object:
    """The same tree with tuples for lists, as the frozen models hold them."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
