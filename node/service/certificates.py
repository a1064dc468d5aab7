"""What is broken of a model's certificates on this node, told without opening the model. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engines.errors import RecordsError
from engines.model.attempt import all_left_behind
from engines.model.bundle import Bundle
from engines.model.certificate import Records, certificates_path, read_records, reference_refusal, site_path
from node.config import Settings


@dataclass(frozen=True)
class CertificateFault:
    """One thing that is broken."""

    text: str
    """With the mend."""
    serious: bool
    """The model cannot serve; otherwise it does, but slower than it could."""


def certificate_faults(settings: Settings, bundle: Bundle) -> Iterator[CertificateFault]:
    """Files that cannot be read, a reference that failed, and engines that ended the process."""
    own = site_path(settings.engines_folder, bundle.digest)
    readable: dict[Path, Records] = {}
    for path in (certificates_path(bundle.folder), own):
        try:
            readable[path] = read_records(path)
        except RecordsError as error:
            yield CertificateFault(f"{error}{'' if path != own else '; until then no engine is tried'}", path != own)
    if why := reference_refusal(bundle.digest, readable):
        yield CertificateFault(f"must not serve: {why}", serious=True)
    for left in all_left_behind(settings.engines_folder, bundle.digest):
        yield CertificateFault(left, serious=False)
