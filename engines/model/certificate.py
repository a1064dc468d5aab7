"""Certificates: how near one engine's masks lie to the reference's, on which volumes, and whether that is near enough.

An engine is a backend and a precision. Records of a bundle lie in one JSON file beside its folder, so that the digest
that names results stays as it is; a node keeps those that it made itself in a file of the same form.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from math import floor
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError

from engines.errors import RecordsError
from engines.volume import Volume

JUDGED_VOXELS = 1000
"""A label of fewer voxels, in both masks, is reported but not judged: one voxel would be too much of it."""

PATH_REVISION = 1
"""Of our own road from voxels to labels. Raise it by hand in every change after which a mask may differ by more than
rounding (preprocessing, windows, sums, labels, postprocessing, a backend's graph): certificates and speeds of the
road before then fit no longer, nodes certify anew, and the shipped ones are made again (docs/develop.md)."""

Outcome = Literal["passed", "failed", "nothing judged"]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record:
    """What every record shares: unknown keys, infinities and NaN are refused."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Limits(_Record):
    """How near is near enough, in each volume and for each label that is judged; None asks nothing."""

    dice: float = 0.995
    volume_percent: float | None = 0.5
    equal_voxels: float | None = None
    """Share of all voxels of a volume that have the reference's label."""


ENGINE_LIMITS = Limits()
"""For every engine that is held against torch in float32, where nothing else is configured."""
REFERENCE_LIMITS = Limits(dice=0.999, volume_percent=None, equal_voxels=0.9999)
"""For torch in float32, held against nnunetv2's own predictor."""


@dataclass(frozen=True)
class LabelAgreement(_Record):
    """One label of one volume."""

    label: int
    name: str
    voxels: int
    """In the reference's mask."""
    found: int
    """In the engine's mask."""
    dice: float

    @property
    def is_judged(self) -> bool:
        """Whether it has enough voxels in one of the masks: an organ that one of them lost counts."""
        return max(self.voxels, self.found) >= JUDGED_VOXELS

    @property
    def volume_percent(self) -> float:
        """Difference of the volumes in per cent of the reference's; of the engine's where the reference has none."""
        return 100.0 * abs(self.found - self.voxels) / max(self.voxels or self.found, 1)

    def faults(self, limits: Limits) -> list[str]:
        """What of it is beyond the limits, in words; a figure that is not a number is."""
        if not self.is_judged:
            return []
        faults, most = [], limits.volume_percent
        if not self.dice >= limits.dice:
            faults.append(f"Dice {self.dice:.4f}, below {limits.dice:g}")
        if most is not None and not self.volume_percent <= most:
            faults.append(f"volume off by {self.volume_percent:.2f} %, more than {most:g} %")
        return faults


@dataclass(frozen=True)
class Turned(_Record):
    """A volume that does not lie as the model's orientation says: nnunetv2 by itself would have seen another image."""

    lies: str
    """Axis codes of the file."""
    shown: str
    """Those of the array that both were shown: the model's orientation."""

    def __str__(self) -> str:
        return f"lies {self.lies}, was turned to {self.shown} for both"


@dataclass(frozen=True)
class VolumeAgreement(_Record):
    """Two masks of one volume. The volume is named by its digest: a certificate says nothing of a patient."""

    digest: _Sha256
    shape: tuple[int, int, int]
    equal_voxels: float
    labels: tuple[LabelAgreement, ...]
    """Those with a voxel in either mask."""
    turned: Turned | None = None
    """None: each saw the volume by its own reader, as the file lies."""


@dataclass(frozen=True)
class Verdict(_Record):
    """Passed or not, and why."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class EngineKey(_Record):
    """What a record is about: this engine, of this version of its library, with this bundle on this device."""

    digest: _Sha256
    """Of the bundle."""
    backend: str
    precision: str
    library: str
    """Name and version, as `openvino 2026.4.1`."""
    device: str
    """`cpu x86_64`, or the name of the card."""
    revision: int = 0
    """`PATH_REVISION` of the program that made the record; 0: of one that knew no revisions."""

    @property
    def engine(self) -> str:
        """Backend and precision."""
        return f"{self.backend} {self.precision}"


@dataclass(frozen=True)
class Certificate(_Record):
    """One engine held against a reference."""

    bundle: str
    key: EngineKey
    reference: str
    """What it was held against, as `nnunetv2 2.8.1 without mirroring` or `torch float32 2.13.0`."""
    limits: Limits
    volumes: tuple[VolumeAgreement, ...]
    verdict: Verdict
    made_at: AwareDatetime
    hilum: str
    """The version that made it."""
    logits_error: float | None = None
    """Largest error of a logit on the bundle's parity crops, in standard deviations of the reference's logits."""

    @property
    def number(self) -> str:
        """Twelve digits that results name the certificate by."""
        return hashlib.sha256(json.dumps(asdict(self), default=str, sort_keys=True).encode()).hexdigest()[:12]

    def under(self, limits: Limits) -> Verdict:
        """The verdict of the same figures under other limits; an engine that gave no masks stays refused."""
        return judge(self.volumes, limits) if self.volumes else self.verdict


@dataclass(frozen=True)
class Speed(_Record):
    """How fast an engine answered, on a machine with so many threads."""

    key: EngineKey
    threads: int
    seconds_per_patch: float
    measured_at: AwareDatetime


@dataclass(frozen=True)
class Records(_Record):
    """One file."""

    format: Literal[1] = 1
    certificates: tuple[Certificate, ...] = ()
    speeds: tuple[Speed, ...] = ()

    def certificate(self, key: EngineKey) -> Certificate | None:
        """The newest of this engine, passed or not."""
        return next((each for each in reversed(self.certificates) if each.key == key), None)

    def speed(self, key: EngineKey, threads: int) -> Speed | None:
        """What was measured with so many threads."""
        return next((each for each in self.speeds if (each.key, each.threads) == (key, threads)), None)

    def having(self, new: Certificate | Speed) -> Records:
        """The same with a record more, in the place of an older one of the same."""
        if isinstance(new, Certificate):
            return replace(self, certificates=(*(c for c in self.certificates if c.key != new.key), new))
        others = (s for s in self.speeds if (s.key, s.threads) != (new.key, new.threads))
        return replace(self, speeds=(*others, new))


def certificates_path(bundle_folder: Path) -> Path:
    """The records that travel with a bundle, beside its folder."""
    folder = bundle_folder.resolve()
    return folder.with_name(f"{folder.name}.certificates.json")


def parity_folder(bundle_folder: Path) -> Path:
    """Volumes that a bundle's keeper chose to keep beside it, for machines where a new engine is to be certified."""
    folder = bundle_folder.resolve()
    return folder.with_name(f"{folder.name}.parity")


def site_path(site: Path, digest: str) -> Path:
    """The records that a node made itself, of one bundle."""
    return site / f"{digest}.certificates.json"


def read_records(path: Path) -> Records:
    """A file of records; none where there is no file.

    Raises
    ------
    RecordsError
        Where the file cannot be read or is not one of records, naming the first fault.
    """
    try:
        return _RECORDS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return Records()
    except OSError as error:
        raise RecordsError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordsError(
            f"{path}: {where}: {first['msg']}: not a file of certificates; remove it and certify again"
        ) from error


def newest_of_reference(digest: str, records: Iterable[Records]) -> Certificate | None:
    """That of a bundle's torch in float32, whatever its version and the device: it judges the import."""
    every = (made for each in records for made in each.certificates)
    same = (made for made in every if (made.key.digest, made.key.engine) == (digest, "torch float32"))
    return max(same, key=lambda made: made.made_at, default=None)


def reference_refusal(digest: str, files: Mapping[Path, Records]) -> str:
    """Why no engine of a bundle may serve: its reference gave other masks than nnunetv2; empty where it may."""
    made = newest_of_reference(digest, files.values())
    if made is None or made.verdict.outcome != "failed":
        return ""
    path = next(path for path, each in files.items() if made in each.certificates)
    why = f"torch float32 gave other masks than {made.reference} on {made.made_at:%Y-%m-%d} ({made.verdict.reason})"
    return f"{why}: import the model again, or delete {path}"


def add_record(path: Path, new: Certificate | Speed) -> None:
    """Put a record into a file, all of it or nothing; an older one of the same engine leaves.

    Processes that share the file wait for each other, by a lock on `.NAME.lock` beside it, which stays.

    Raises
    ------
    RecordsError
        Where what lies there is not a file of records, or cannot be written.
    """
    try:
        # Of a node: there lie engines too, which are programs.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock")):
            _replace(path, _RECORDS.dump_json(read_records(path).having(new), indent=2) + b"\n")
    except OSError as error:
        raise RecordsError(f"{path}: cannot be written: {error.strerror}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among all who lock this file, threads included; the lock leaves with whoever holds it, even when killed."""
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole, or leave the one that is there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


_RECORDS = TypeAdapter(Records)
_CERTIFICATE = TypeAdapter(Certificate)


def plain(certificates: Sequence[Certificate]) -> list[Any]:
    """Certificates as their file holds them, for JSON, each with its number."""
    return [{"number": each.number, **_CERTIFICATE.dump_python(each, mode="json")} for each in certificates]


def certify(
    bundle: str,
    key: EngineKey,
    reference: str,
    limits: Limits,
    volumes: Sequence[VolumeAgreement],
    *,
    logits_error: float | None = None,
) -> Certificate:
    """A certificate of what was compared, made now."""
    now = datetime.now(UTC).replace(microsecond=0)
    verdict = judge(volumes, limits)
    return Certificate(bundle, key, reference, limits, tuple(volumes), verdict, now, hilum_version(), logits_error)


def refused(bundle: str, key: EngineKey, reference: str, limits: Limits, reason: str) -> Certificate:
    """The certificate of an engine that gave no masks to compare, such as one whose answer is not finite."""
    now = datetime.now(UTC).replace(microsecond=0)
    return Certificate(bundle, key, reference, limits, (), Verdict("failed", reason), now, hilum_version())


def judge(volumes: Sequence[VolumeAgreement], limits: Limits) -> Verdict:
    """Whether every judged label of every volume lies within the limits.

    Where no label had voxels enough, nothing was shown, and that does not pass. Nor does it where every volume had to
    be turned: then the model's orientation, and with it left and right, is nobody's but the importer's word.
    """
    turned = [each.turned for each in volumes if each.turned]
    if turned and len(turned) == len(volumes):
        return Verdict(
            "failed", f"no image lies as the model's orientation {turned[0].shown} says: is --orientation right?"
        )
    faults = [fault for number, each in enumerate(volumes, start=1) for fault in _faults(number, each, limits)]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        return Verdict("failed", faults[0] + more)
    judged = [label for each in volumes for label in each.labels if label.is_judged]
    if not judged:
        return Verdict("nothing judged", f"no label has {JUDGED_VOXELS} voxels in any of {len(volumes)} volumes")
    worst, furthest = min(each.dice for each in judged), max(each.volume_percent for each in judged)
    equal = min(each.equal_voxels for each in volumes)
    return Verdict(
        "passed",
        f"{len(judged)} labels in {len(volumes)} volumes: Dice at least {worst:.4f}, volumes within {furthest:.2f} %, "
        f"at least {floor(1e6 * equal) / 1e4:.4f} % of voxels equal"
        + (f"; {len(turned)} of {len(volumes)} volumes turned for both to {turned[0].shown}" if turned else ""),
    )


def _faults(number: int, volume: VolumeAgreement, limits: Limits) -> list[str]:
    """What of one volume is beyond the limits, in words."""
    where, faults = f"volume {number} ({volume.digest[:8]})", []
    if limits.equal_voxels is not None and not volume.equal_voxels >= limits.equal_voxels:
        faults.append(
            f"{where}: {100 * volume.equal_voxels:.4f} % of voxels equal, below {100 * limits.equal_voxels:g} %"
        )
    return faults + [f"{where}: {each.name}: {fault}" for each in volume.labels for fault in each.faults(limits)]


def agreement(
    volumes: Sequence[Volume],
    reference: NDArray[np.integer],
    found: NDArray[np.integer],
    names: Mapping[int, str],
    turned: Turned | None = None,
) -> VolumeAgreement:
    """Two label maps of one volume compared.

    Parameters
    ----------
    volumes
        The channels of the image that both were made of; only a digest of them is kept.
    reference, found
        Integer, (D, H, W), of one shape.
    names
        Of every label, background left out.
    turned
        How the volume was turned for both, where it was.

    Raises
    ------
    ValueError
        Where the two shapes differ.
    """
    if reference.shape != found.shape:
        raise ValueError(f"masks of shapes {reference.shape} and {found.shape}")
    highest = max(int(reference.max()), int(found.max()), *names)
    same = reference == found
    theirs, ours, both = (
        np.bincount(each.reshape(-1), minlength=highest + 1) for each in (reference, found, reference[same])
    )
    labels = tuple(
        LabelAgreement(label, name, int(theirs[label]), int(ours[label]), 2 * int(both[label]) / int(total))
        for label, name in sorted(names.items())
        if (total := theirs[label] + ours[label])
    )
    d, h, w = volumes[0].grid.shape
    return VolumeAgreement(volume_digest(volumes), (d, h, w), float(same.mean()), labels, turned)


def volume_digest(volumes: Sequence[Volume]) -> str:
    """SHA-256, hex, of a volume's grid and voxels, all channels."""
    digest = hashlib.sha256()
    for volume in volumes:
        digest.update(f"{volume.grid.shape} {volume.modality}".encode())
        digest.update(volume.grid.affine.tobytes())
        digest.update(np.ascontiguousarray(volume.voxels).data)
    return digest.hexdigest()


def hilum_version() -> str:
    """The version of this program; `unknown` where it runs without being installed."""
    try:
        return metadata.version("hilum")
    except metadata.PackageNotFoundError:
        return "unknown"
