"""The conformance statement, made from the tables that run (NET-42): `python -m node.dicom.conformance [--check]`.

Order and contents follow PS3.2 Annex N. What a table of the code can say is taken from it: SOP classes, transfer
syntaxes, statuses, limits, identifiers, copied attributes. A syntax without a proven decoder is not in it (NET-6).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID

from node.dicom.association import SUCCESS, UNRECOGNISED_OPERATION, NotStorage
from node.dicom.header_walk import WalkLimits
from node.dicom.pixels import decoders
from node.dicom.result_header import COPIED, COPIED_IF_AGREED
from node.dicom.scp import Peer
from node.dicom.scu import EXPLICIT, IMPLICIT
from node.dicom.seg import TRANSFER_SYNTAXES
from node.dicom.storage_classes import COMPRESSED, HELD, PROCESSED, UNCOMPRESSED, VERIFICATION
from node.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dicom.upper_layer import (
    APPLICATION_CONTEXT,
    AT_LIMIT,
    CONGESTED,
    NO_REASON,
    UNKNOWN_APPLICATION_CONTEXT,
    UNKNOWN_CALLED,
    UNKNOWN_CALLING,
    UNKNOWN_PROTOCOL,
    Limits,
    Rejection,
)
from node.domain.instance import MANUFACTURER, MODEL_NAME
from node.domain.variants import PDF_CLASS, SEG_CLASSES, SR_CLASSES
from node.errors import CannotUnderstand, DataSetMismatch, InvalidInstanceUid, OutOfResources

STATEMENT = Path(__file__).resolve().parents[2] / "dicom_config" / "CONFORMANCE.md"
"""Where the statement lies in the repository."""


@dataclass(frozen=True)
class StatusRow:
    """A status, and what it means here."""

    status: int
    name: str
    meaning: str

    @property
    def code(self) -> str:
        """Four hexadecimal digits."""
        return f"{self.status:04X}"


STORE_ANSWERS = (
    StatusRow(
        SUCCESS,
        "Success",
        "The bytes are in a file that survives a loss of power, and its row is committed; or the same object was here "
        "already. Objects that are not processed, and objects with defects that do not prevent storing, are answered "
        "so too. No warning status is ever answered.",
    ),
    StatusRow(
        OutOfResources.status,
        "Refused: Out of Resources",
        "Disk, journal or memory cannot take the object now. It may be sent again later, unchanged.",
    ),
    StatusRow(
        DataSetMismatch.status,
        "Error: Data Set does not match SOP Class",
        "SOP Class or SOP Instance UID of the data set differ from the command or from the presentation context.",
    ),
    StatusRow(
        CannotUnderstand.status,
        "Error: Cannot understand",
        "The data set is empty, cannot be parsed, is truncated, breaks a limit of N.7, or lacks Study, Series or SOP "
        "Instance UID.",
    ),
    StatusRow(
        InvalidInstanceUid.status,
        "Invalid SOP Instance",
        "A UID holds other characters than digits and dots, or more than 64.",
    ),
    StatusRow(
        NotStorage.status,
        "SOP Class not supported",
        "C-STORE in a presentation context of a SOP class that is not for storage.",
    ),
    StatusRow(UNRECOGNISED_OPERATION, "Unrecognized Operation", "A request other than C-ECHO, C-STORE and C-CANCEL."),
)
"""Every status that the listener answers (PS3.4 table B.2-1, PS3.7 annex C)."""

STORE_REACTIONS = (
    StatusRow(0x0000, "Success", "Stored."),
    StatusRow(0xB000, "Warning: Coercion of Data Elements", "Stored; counted."),
    StatusRow(0xB006, "Warning: Elements Discarded", "Stored; counted."),
    StatusRow(0xB007, "Warning: Data Set does not match SOP Class", "Stored; counted."),
    StatusRow(0xA700, "Refused: Out of Resources (A7xx)", "Sent again later: waits double, with jitter."),
    StatusRow(0xA900, "Error: Data Set does not match SOP Class (A9xx)", "Not sent again; a person is asked."),
    StatusRow(0xC000, "Error: Cannot understand (Cxxx)", "Not sent again; a person is asked."),
    StatusRow(0x0122, "SOP Class not supported, and all other 01xx", "Not sent again; a person is asked."),
    StatusRow(0xFE00, "Any other status", "Sent again a few times; then a person is asked."),
)
"""What the node does with the answer of a storage SCP (PS3.4 B.2.3)."""

REJECTIONS: tuple[tuple[Rejection, str], ...] = (
    (UNKNOWN_CALLING, "Calling AE title and address are not those of a configured peer"),
    (UNKNOWN_CALLED, "The called AE title is not ours, or this peer may not call it"),
    (UNKNOWN_APPLICATION_CONTEXT, "Another application context than DICOM's"),
    (UNKNOWN_PROTOCOL, "Another protocol version than 1"),
    (NO_REASON, "No usable presentation context was proposed"),
    (AT_LIMIT, "A limit of associations is reached; may be tried again"),
    (CONGESTED, "The node is stopping; may be tried again"),
)
"""Every A-ASSOCIATE-RJ that the listener sends (PS3.8 table 9-21)."""

CREATED: tuple[tuple[str, str, str], ...] = (
    (SEG_CLASSES["binary"], TRANSFER_SYNTAXES["binary"], "segmentation, one bit for each voxel of each segment"),
    (SEG_CLASSES["labelmap"], TRANSFER_SYNTAXES["labelmap"], "segmentation, one label for each voxel"),
    (SR_CLASSES["comprehensive3d"], EXPLICIT, "volume report, TID 1500; preferred"),
    (SR_CLASSES["comprehensive"], EXPLICIT, "the same, where the destination does not take the former"),
    (SR_CLASSES["enhanced"], EXPLICIT, "the same, where the destination takes neither of the former"),
    (PDF_CLASS, EXPLICIT, "the report to be read: table of volumes, pictures of the organs"),
)
"""What the node makes: SOP class, transfer syntax, what it is."""


def render(decodable: Collection[str], limits: Limits, walk: WalkLimits) -> str:
    """Return the statement as Markdown.

    Parameters
    ----------
    decodable
        Transfer syntaxes whose decoder passed its self-test.
    limits, walk
        Of the listener.
    """
    sections = (_overview(decodable), _services(), _network(limits, walk), _statuses(), _objects(), _SECURITY)
    return "\n".join(sections)


def syntaxes(decodable: Collection[str]) -> dict[str, str]:
    """Return name by UID of what the listener accepts, in its order of preference."""
    return {**UNCOMPRESSED, **{uid: name for uid, name in COMPRESSED.items() if uid in decodable}}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _overview(decodable: Collection[str]) -> str:
    rows = [(name, uid, "A", "SCP", "process") for uid, name in PROCESSED.items()]
    rows += [(name, uid, "A", "SCP", "archive") for uid, name in HELD.items()]
    rows += [(HELD[uid], uid, UID(syntax).name, "SCU", "create") for uid, syntax, _ in CREATED]
    sets = [
        (name, uid, "always" if uid in UNCOMPRESSED else "its decoder passed its self-test at start")
        for uid, name in syntaxes(decodable).items()
    ]
    return f"""# DICOM conformance statement of Hilum

Made from the tables that run, by `python -m node.dicom.conformance`; order and contents follow PS3.2 Annex N.

## N.1 Overview

```
 modality, PACS ------ C-STORE, C-ECHO ------> [ listener ]  HILUM  [ sender ] ------ C-STORE ------> PACS
                       CT and MR images                                            SEG, SR, PDF
```

Hilum stores CT and MR images that are sent to it, segments organs in those series that its rules choose, and sends
segmentations and volume reports to the destinations that those rules name.

### N.1.1 Content and transfer

DIMSE only: no DICOMweb, no media. Set A is listed in N.1.2. `process`: images of the class may be segmented; `archive`:
they are kept unchanged, for as long as the configuration says, and never processed; `create`: Hilum makes them.

{_table(("SOP class", "UID", "transfer syntaxes", "role", "use"), rows)}

### N.1.2 Transfer syntaxes

Set A, in the order in which the listener prefers them:

{_table(("transfer syntax", "UID", "condition"), sets)}

Deflated and Big Endian transfer syntaxes are not accepted. The listener accepts one transfer syntax for each
presentation context, by its own order of preference.
"""


def _services() -> str:
    verification = [(UID(VERIFICATION).name, VERIFICATION, "SCU and SCP", ", ".join(UNCOMPRESSED.values()))]
    return f"""## N.5 Services

### N.5.2 Verification

{_table(("SOP class", "UID", "role", "transfer syntaxes"), verification)}

### N.5.2.5 Storage

**SCP.** Level 2 (full): all attributes are kept, and the data set is kept byte for byte. No attribute is coerced (table
N.5-11: none). Digital signatures are kept, as the bytes are, and not verified. An object that is sent twice is stored
once; an object with a known SOP Instance UID and other content is kept beside the first one, and flagged. Objects are
not offered for retrieval, and are purged when the configuration says so: the node is no archive. Success is answered
when the object is durable.

**SCU.** Sends the objects of N.9 as they were made, and the same bytes again where a try failed: the segmentation
first, then the report that refers to it, then the document. For each SOP class, the transfer syntax that the object was
made with, {UID(EXPLICIT).name} and {UID(IMPLICIT).name} are proposed, each in a presentation context of its own. A
destination that refuses the preferred class of report is offered the next one. There is no substitute for a
segmentation that a destination does not take.

### N.5.2.6 Storage commitment

Not supported, neither as SCU nor as SCP: a modality must not delete its images because Hilum has taken them.
"""


def _network(limits: Limits, walk: WalkLimits) -> str:
    rejections = [(f"{r.result}, {r.source}, {r.reason}", text) for r, text in REJECTIONS]
    return f"""## N.7 Communication details

As shipped; what is marked `*` can be configured.

{_table(("item", "value"), _facts(limits, walk, Peer("", "", ())))}

Associations are rejected as follows (PS3.8 table 9-21):

{_table(("result, source, reason", "when"), rejections)}
"""


def _facts(limits: Limits, walk: WalkLimits, peer: Peer) -> list[tuple[str, str]]:
    by_frames = f"{walk.elements}, and {walk.elements_per_frame} more for each of up to {walk.frames} frames"
    return [
        ("Application Context Name", APPLICATION_CONTEXT),
        ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
        ("Implementation Version Name", IMPLEMENTATION_VERSION_NAME),
        ("AE title, port `*`", "HILUM, 11112"),
        ("Largest P-DATA PDU received, and advertised `*`", f"{limits.pdu_bytes} bytes"),
        ("Largest association request `*`", f"{limits.request_bytes} bytes"),
        ("Largest command set `*`", f"{limits.command_bytes} bytes"),
        ("Largest data set `*`", f"{limits.object_bytes} bytes"),
        ("Largest header (all before the pixel data) of classes that are processed `*`", f"{walk.header_bytes} bytes"),
        ("Most elements of a data set `*`", by_frames),
        ("Deepest nesting of sequences `*`", str(walk.depth)),
        ("Simultaneous associations as acceptor `*`", str(limits.associations)),
        ("Simultaneous associations from one address `*`", str(limits.per_address)),
        ("Simultaneous associations from one peer `*`", str(peer.max_associations)),
        ("Asynchronous operations", "not supported; one outstanding operation"),
        ("SOP Class Extended Negotiation, User Identity", "not supported; ignored"),
        ("First byte of a request, and TLS handshake, within `*`", f"{limits.handshake_s:g} s"),
        ("Whole association request (ARTIM) within `*`", f"{limits.artim_s:g} s"),
        ("Whole PDU, once begun, within `*`", f"{limits.progress_s:g} s"),
        ("Longest pause between messages (0: none) `*`", f"{peer.idle_s:g} s"),
    ]


def _statuses() -> str:
    answers = [(row.code, row.name, row.meaning) for row in STORE_ANSWERS]
    reactions = [(row.code, row.name, row.meaning) for row in STORE_REACTIONS]
    return f"""### N.7.3.2.5 Status codes of storage

**SCP**: what the listener answers.

{_table(("status", "name", "meaning"), answers)}

A failure carries Error Comment (0000,0902) without any value of the data set, and Offending Element (0000,0901) where a
single one is to blame. What breaks the protocol is answered with A-ABORT.

**SCU**: what the node does with an answer.

{_table(("status", "name", "reaction"), reactions)}

No answer, an abort, a rejected association: sent again later. No presentation context for an object: not sent again; a
person is asked.
"""


def _objects() -> str:
    created = [(HELD[uid], uid, UID(syntax).name, text) for uid, syntax, text in CREATED]
    codes = [
        ("segments: category, type, modifier", "`segments.csv`, or a table of the site `*`"),
        ("report template", "TID 1500, one measurement group (TID 1411) for each segment"),
        ("measurement", "(118565006, SCT, Volume) in (cm3, UCUM, Cubic centimeter)"),
        ("method", "(126030, DCM, Sum of segmented voxel method for volume)"),
        ("algorithm", "(123110, DCM, Artificial Intelligence), with name, version and parameters of the model"),
    ]
    return f"""## N.9 Objects that are created

{_table(("SOP class", "UID", "transfer syntax", "what it is"), created)}

Manufacturer is `{MANUFACTURER}`, Manufacturer's Model Name `{MODEL_NAME}` `*`. UIDs are derived from what a result is
made of (UUID version 5 below 2.25, or below a configured root `*`): the same input, model and configuration give the
same UIDs. Modality is SEG, SR or DOC; each kind of object has a series of its own, in the study of the source images.

Copied byte for byte from the source images, which must agree on them; what the source lacks is left out, or empty where
its type is 2:

{", ".join(COPIED)}.

Copied where the source images agree: {", ".join(COPIED_IF_AGREED)}.

Content Qualification is RESEARCH, and every report bears the research-use line, unless configured otherwise `*`.

{_table(("codes", "values"), codes)}
"""


_SECURITY = """## N.11 Security

Peers are a closed list: calling AE title, address and, where configured, the called AE title must agree. No secure
transport connection profile is supported: run the node in a network of its own, or behind a TLS proxy. User identity is
not used. Logs, metrics and error comments hold no attribute of a patient.

### N.11.2.2 Audit messages

None are sent.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the statement, or with `--check` say whether the file is the one that would be written."""
    parser = argparse.ArgumentParser(prog="python -m node.dicom.conformance", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the file differs")
    options = parser.parse_args(arguments)
    text = render(decoders(), Limits(), WalkLimits())
    if not options.check:
        STATEMENT.write_text(text, encoding="utf-8")
        return 0
    if STATEMENT.exists() and STATEMENT.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{STATEMENT.name} is not what the tables say: run python -m node.dicom.conformance\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
