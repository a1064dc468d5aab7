"""The sections of the configuration file: every key, its type, its limits, its default, and what it means."""

from __future__ import annotations

import re
from datetime import datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

UNSET_SERIAL = "unset"
"""The serial of a node whose file gives it none."""

_AE_TITLE = re.compile(r"[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?")
_UID_ROOT = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")


def _ae_title(value: str) -> str:
    if not _AE_TITLE.fullmatch(value):
        raise ValueError(
            "an AE title has 1 to 16 printable ASCII characters, no backslash, no space at either end (PS3.5 6.2)"
        )
    return value


def _uid_root(value: str) -> str:
    if value and (not _UID_ROOT.fullmatch(value) or len(value) > 24):
        raise ValueError(
            "a UID root is digits and dots, at most 24 characters, for instance 1.2.826.0.1.3680043.10.999"
        )
    return value


def _timezone(value: str) -> str:
    try:
        if value:
            ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError("not a time zone of the IANA data base; write for instance Europe/Berlin") from error
    return value


def _network(value: str) -> str:
    try:
        ip_network(value)
    except ValueError as error:
        raise ValueError(f"{error}; write an address, or a network as 10.1.2.0/24") from error
    return value


def _path(value: object, info: ValidationInfo) -> object:
    """A path; one that is not absolute is counted from the folder of the file."""
    if not isinstance(value, str | Path) or not str(value):
        return value
    folder = info.context.get("folder") if info.context else None
    return Path(value) if folder is None else Path(folder) / value


AeTitle = Annotated[str, AfterValidator(_ae_title)]
FilePath = Annotated[Path, BeforeValidator(_path)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
Network = Annotated[str, AfterValidator(_network)]
Port = Annotated[int, Field(ge=1, le=65535)]
PortOrNone = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
EngineName = Literal[
    "openvino",
    "openvino float32",
    "openvino bfloat16",
    "torch",
    "torch float32",
    "torch float16",
    "tensorrt",
    "tensorrt float32",
    "tensorrt float16",
]
Hours = Annotated[float, Field(ge=0, le=87600)]


class Section(BaseModel):
    """What all sections are: frozen, strictly typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NodeSection(Section):
    """[node]: who this node is."""

    name: Name = Field(
        default="hilum", description="Name of this node in logs, metrics and results: small letters, digits, - and _."
    )
    ae_title: AeTitle = Field(default="HILUM", description="AE title that the node answers to and calls with.")
    data_dir: FilePath = Field(
        default=Path("data"),
        validate_default=True,
        description="Folder of spool, journal and caches; relative to this file.",
    )
    serial: str = Field(
        default=UNSET_SERIAL,
        min_length=1,
        max_length=64,
        description="DeviceSerialNumber of results, and part of every result's UID: another one for each installation.",
    )
    manufacturer: str = Field(
        default="Hilum", min_length=1, max_length=64, description="Manufacturer written into results."
    )
    model_name: str = Field(
        default="Hilum", min_length=1, max_length=64, description="ManufacturerModelName written into results."
    )
    uid_root: Annotated[str, AfterValidator(_uid_root)] = Field(
        default="", description="UID root of your organisation for results; empty: 2.25 UIDs, which need none."
    )
    timezone: Annotated[str, AfterValidator(_timezone)] = Field(
        default="",
        description="IANA name of the site's local time, such as Europe/Berlin; for images that do not say theirs.",
    )
    research_use: bool = Field(
        default=True, description="Mark every result as made for research only (RES-13). `hilum check` shows it."
    )
    preliminary: bool = Field(default=True, description="Mark reports as PRELIMINARY (RES-11).")
    series_number_base: int = Field(
        default=9000, ge=1000, le=900000, description="SeriesNumber of a result: this plus the source's SeriesNumber."
    )

    def utc_offset(self, at: datetime) -> str | None:
        """The site's offset from UTC at this time, as (0008,0201) writes it: `+0100`; None where no zone is set."""
        return f"{at.astimezone(ZoneInfo(self.timezone)):%z}" if self.timezone else None


class ListenerSection(Section):
    """[listener]: where images are received, and how much of anybody is borne (NET-14 to NET-16, SEC-4)."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on; 0.0.0.0 for every interface of the machine.",
    )
    port: PortOrNone = Field(default=11112, description="TCP port; 0: any free one (tests).")
    virtual_ae_titles: tuple[AeTitle, ...] = Field(
        default=(),
        description="Further AE titles that the node answers to; rules may ask which one was called (NET-40).",
    )
    max_associations: int = Field(default=200, ge=1, le=1000, description="Open associations in all.")
    max_associations_per_peer: int = Field(default=16, ge=1, le=1000, description="Open associations of one peer.")
    max_associations_per_address: int = Field(
        default=100, ge=1, le=1000, description="Open connections from one address, counted at accept."
    )
    handshake_s: Seconds = Field(default=10.0, description="Longest wait for the first byte, or for the TLS handshake.")
    artim_s: Seconds = Field(default=30.0, description="Longest association request or release (PS3.8 9.1.4).")
    progress_s: Seconds = Field(default=60.0, description="Longest pause in the middle of a message.")
    idle_s: float = Field(
        default=300.0, ge=0, description="Longest pause between messages; 0: no limit. A peer may have its own."
    )
    stop_grace_s: float = Field(
        default=25.0, ge=0, le=300, description="When told to stop: how long running objects may take to end."
    )
    max_pdu_bytes: int = Field(default=131072, ge=4096, le=1048576, description="Largest P-DATA PDU, as advertised.")
    max_associate_rq_bytes: int = Field(default=262144, ge=4096, le=1048576, description="Largest association request.")
    max_command_bytes: int = Field(default=65536, ge=1024, le=1048576, description="Largest command set.")
    max_object_bytes: int = Field(default=4 * 1024**3, ge=1024, description="Largest object.")
    max_header_bytes: int = Field(
        default=64 * 1024**2, ge=1024, description="Largest header: all before the pixel data."
    )
    max_elements: int = Field(default=100_000, ge=100, description="Most elements of one object.")
    max_depth: int = Field(default=64, ge=1, le=128, description="Deepest nesting of sequences.")


class PeerSection(Section):
    """[[peer]]: one who may send. The list is closed: who is not on it is refused (NET-13)."""

    name: Name = Field(description="Name in logs, metrics and rules.")
    ae_title: AeTitle = Field(description="Calling AE title; capitals matter.")
    addresses: tuple[Network, ...] = Field(
        min_length=1, description="Addresses or networks (CIDR) that it may come from."
    )
    called_ae_titles: tuple[AeTitle, ...] = Field(
        default=(), description="AE titles of this node that it may call; empty: each of them."
    )
    max_associations: int | None = Field(
        default=None, ge=1, le=1000, description="Its own limit; default: listener.max_associations_per_peer."
    )
    idle_s: float | None = Field(
        default=None, ge=0, description="Its own limit of idleness; 0: none. Default: listener.idle_s."
    )
    quiet_s: float | None = Field(default=None, gt=0, le=86400, description="Its own completion.quiet_s.")
    expected_active: bool = Field(
        default=False, description="Its silence of four hours is worth a ticket (alert HilumSenderSilent)."
    )


class DestinationSection(Section):
    """[[destination]]: where results are sent, and what it takes. Nothing goes anywhere by default (RES-42)."""

    name: Name = Field(description="Name in logs, metrics and rules.")
    ae_title: AeTitle = Field(description="Its AE title.")
    host: str = Field(min_length=1, description="Host name or address.")
    port: Port = Field(description="TCP port.")
    calling_ae_title: AeTitle | None = Field(default=None, description="AE title to call with; default: node.ae_title.")
    seg: Literal["auto", "binary", "labelmap"] = Field(
        default="auto",
        description="Form of segmentations; auto: LABELMAP where BINARY is often misread and it is taken (RES-2).",
    )
    empty_frames: bool = Field(
        default=False, description="Keep frames without a voxel, for viewers that want one for each image (RES-4)."
    )
    sr: bool = Field(default=True, description="Send the structured report.")
    pdf: bool = Field(default=True, description="Send the readable report (Encapsulated PDF).")
    retries: int = Field(
        default=300, ge=1, le=100_000, description="Tries before a delivery fails; then `hilum retry` starts again."
    )
    first_retry_s: Seconds = Field(
        default=30.0, description="Wait before the second try; it doubles from try to try, with jitter."
    )
    longest_retry_s: Seconds = Field(default=900.0, description="Longest wait between two tries.")
    timeout_s: Seconds = Field(default=30.0, description="Longest wait for an answer.")
    dicomweb_url: str = Field(
        default="",
        pattern=r"^(https?://\S+)?$",
        description="Base of its DICOMweb services, if any: `hilum selftest` reads results back there.",
    )


class ConditionSection(Section):
    """One line of `when`: a field, an operator, a value."""

    field: str = Field(
        min_length=1,
        description="A DICOM keyword of the series, or a derived fact; of the patient, only the sex and the age.",
    )
    op: Literal["eq", "in", "regex", "range", "exists"] = Field(description="How it is compared.")
    value: str | bool | int | float | tuple[str | int | float, ...] = Field(description="What it is compared with.")


class RuleSection(Section):
    """[[rule]]: which scans which model segments, and who gets the result. Every condition must hold."""

    name: Name = Field(description="Name in logs and in `hilum explain`.")
    model: str = Field(min_length=1, description="Name of the model, as `hilum models` lists it.")
    when: tuple[ConditionSection, ...] = Field(
        default=(), description="Conditions, each { field, op, value }; all must hold."
    )
    senders: tuple[str, ...] = Field(default=(), description="Names of peers; empty: any.")
    called_ae_titles: tuple[AeTitle, ...] = Field(
        default=(), description="AE titles of this node that were called; empty: any."
    )
    destinations: tuple[str, ...] = Field(
        default=(), description="Names of destinations; empty: the result stays in the spool."
    )
    priority: int = Field(default=100, ge=0, le=1000, description="Larger is sooner.")
    gapped: Literal["refuse", "largest", "process"] = Field(
        default="refuse",
        description="Where slices are missing: refuse, the largest block without a gap, or all that is there (ASM-4).",
    )
    only_best: bool = Field(default=False, description="Of several scans of one series, take the best alone (ASM-53).")
    allow_selftest_model: bool = Field(
        default=False,
        description="Let this rule choose the phantom model for other patients than the self-test's. For tests only.",
    )


class ModelsSection(Section):
    """[models]: which models this node has, beside those that come with it."""

    folders: tuple[FilePath, ...] = Field(
        default=(), description="Folders of bundles; the shipped ones are always found."
    )
    enabled: tuple[str, ...] = Field(
        default=(), description="Names of the models that may be used; empty: every model that is found."
    )
    segments: tuple[FilePath, ...] = Field(
        default=(), description="Further tables of segments (CSV), for models of your own."
    )


class SegmenterSection(Section):
    """[segmenter]: on what, and how, networks run."""

    engines: tuple[EngineName, ...] = Field(
        default=(),
        description="Engines to consider; the fastest with a certificate for the model is taken. Without a precision,"
        " float32. Empty: openvino bfloat16, openvino and torch on a processor, torch float16 and torch on a card.",
    )
    certificate_dice: float = Field(
        default=0.995,
        ge=0.9,
        le=1,
        description="Least Dice that an engine's masks must have with torch's in float32: at least 0.9.",
    )
    certificate_volume_percent: float = Field(
        default=0.5,
        ge=0,
        le=10,
        description="Largest difference of a volume from torch's in float32, in per cent: at most 10.",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$",
        description="auto (the processor), cpu, cuda or cuda:N; no card is taken unless it is named.",
    )
    threads: int = Field(default=0, ge=0, le=1024, description="CPU threads; 0: as many as the process may use.")

    @property
    def looser_limits(self) -> str:
        """The limits of certificates that are looser than the default, in words; empty where none is."""
        usual = type(self)()
        looser = []
        if self.certificate_dice < usual.certificate_dice:
            looser.append(f"Dice at least {self.certificate_dice:g} (default {usual.certificate_dice:g})")
        if self.certificate_volume_percent > usual.certificate_volume_percent:
            own, default = self.certificate_volume_percent, usual.certificate_volume_percent
            looser.append(f"volumes within {own:g} % (default {default:g} %)")
        return ", ".join(looser)


class CompletionSection(Section):
    """[completion]: when a series is taken as whole (REQUIREMENTS 2.1, ASM-2, ASM-3)."""

    quiet_s: Seconds = Field(default=60.0, description="No byte for so long ends a series.")
    released_quiet_s: Seconds = Field(
        default=15.0, description="The same, once every association that carried the series has ended."
    )
    force_s: float = Field(default=5400.0, gt=0, le=604800, description="Longest wait for missing slices.")


class SpoolSection(Section):
    """[spool]: how much disk is kept free, and how long bytes are kept (NET-10, NET-24, SEC-15)."""

    reserve_bytes: int = Field(
        default=2 * 1024**3, ge=0, description="Hard mark: with less free than this, objects are answered with 0xA700."
    )
    keep_inputs_h: Hours = Field(default=24.0, description="Images, after every result made of them has ended.")
    keep_results_h: Hours = Field(
        default=72.0, description="Results, after they were sent; `hilum retry` can send them again."
    )
    keep_unused_h: Hours = Field(
        default=24.0,
        description="Images that no rule chose, of a job that was rejected or cancelled, or whose result has no"
        " destination; and objects that are held.",
    )
    keep_quarantined_h: Hours = Field(
        default=720.0,
        description="What a person should look at: objects whose identity or content is in doubt, images of what failed"
        " or did not reach every destination.",
    )


class MonitorSection(Section):
    """[monitor]: where each role answers /metrics, /healthz and /readyz, and how much it logs (SEC-12)."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address of all three; there is no login, keep it on loopback or a closed network.",
    )
    listener_port: PortOrNone = Field(default=9321, description="Port of the listener; 0: none.")
    worker_port: PortOrNone = Field(default=9322, description="Port of the worker; 0: none.")
    segmenter_port: PortOrNone = Field(default=9323, description="Port of the segmenter; 0: none.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe line that is logged."
    )

    @property
    def ports(self) -> dict[str, int]:
        """The port of each role; 0: none."""
        return {"listener": self.listener_port, "worker": self.worker_port, "segmenter": self.segmenter_port}
