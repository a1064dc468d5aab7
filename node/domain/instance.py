"""What one SOP Instance is to us: the bytes that were kept, and the few attributes that we decide by."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

MANUFACTURER = "Hilum"
"""(0008,0070) of everything that this product writes, and of its item in ContributingEquipmentSequence (NET-36)."""
MODEL_NAME = "Hilum"
"""(0008,1090) beside `MANUFACTURER`; both together say that an object is a result of this product."""


class InstanceState(StrEnum):
    """Where a kept instance stands."""

    KEPT = "kept"
    """May become part of a stack."""
    HELD = "held"
    """Stored, never processed: not an image class of ours, or our own result come back."""
    QUARANTINED = "quarantined"
    """Identity or content is in doubt; a person must look."""


@dataclass(frozen=True)
class Sender:
    """Who handed over an instance, as the association said it (NET-41)."""

    alias: str
    """Name of the peer in the configuration; the only form that metrics may show."""
    calling_ae_title: str
    called_ae_title: str
    address: str
    association_id: str


@dataclass(frozen=True)
class ReceivedInstance:
    """One SOP Instance kept on disk, exactly as received.

    `length` and `crc32` are of the data set bytes that were received, without preamble and file meta; the data set is
    the last `length` bytes of the file.
    """

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str
    series_instance_uid: str
    patient_id: str
    path: Path
    length: int
    crc32: int
    sender: Sender
    received_at: datetime
    state: InstanceState = InstanceState.KEPT
    reason: str = ""
    move_originator: str = ""


@dataclass(frozen=True)
class KnownInstance:
    """Bytes that the journal holds for a SOP Instance UID already (NET-12); measured as in `ReceivedInstance`."""

    path: Path
    length: int
    crc32: int


class CommitOutcome(StrEnum):
    """What the journal made of a received instance (NET-12)."""

    NEW = "new"
    DUPLICATE_SAME = "duplicate_same"
    """The same bytes are here already: nothing changes, the new file is not needed."""
    DUPLICATE_DIFFERENT = "duplicate_different"
    """Other bytes under a known UID: both are kept, the series has a new revision."""


class InstanceJournal(Protocol):
    """What the receiving station asks of the journal."""

    def commit(self, instance: ReceivedInstance) -> CommitOutcome:
        """Return once the row is durable; many callers share one commit.

        A refusal or any other exception means that there is no row. DUPLICATE_SAME says that length and checksum are
        known; the station then compares the bytes with those of `known`.
        """

    def restore(self, instance: ReceivedInstance) -> None:
        """Keep these bytes in place of the same ones, whose file is damaged or lost."""

    def known(self, sop_instance_uid: str) -> tuple[KnownInstance, ...]:
        """Return the instances of this UID whose bytes are still kept, the newest first."""


@dataclass(frozen=True)
class PatientIdentity:
    """What must agree between all slices of a series (ASM-8); compared, never logged."""

    patient_id: str
    issuer: str
    name: str
    birth_date: str


@dataclass(frozen=True)
class FrameHeader:
    """What differs from frame to frame; for a single-frame object, the object's own attributes.

    Lengths in mm, times in ms as DICOM gives them. None: not in the data set.
    """

    number: int
    """From 1, as ReferencedFrameNumber counts."""
    position_mm: tuple[float, float, float] | None
    """ImagePositionPatient: LPS, centre of the first voxel."""
    orientation: tuple[float, float, float, float, float, float] | None
    """ImageOrientationPatient: row cosines, then column cosines."""
    pixel_spacing_mm: tuple[float, float] | None
    """Between rows, then between columns."""
    image_type: tuple[str, ...] = ()
    rescale_slope: float = 1.0
    rescale_intercept: float = 0.0
    rescale_type: str = ""
    echo_time: float | None = None
    echo_number: str = ""
    inversion_time: float | None = None
    flip_angle: float | None = None
    repetition_time: float | None = None
    temporal_position: str = ""
    trigger_time: float | None = None
    acquisition_time: str = ""
    acquisition_number: str = ""
    b_value: float | None = None
    gradient: tuple[float, ...] | None = None
    stack_id: str = ""
    in_stack_position: int | None = None
    dimension_index: tuple[int, ...] = ()
    convolution_kernel: str = ""
    kvp: float | None = None
    exposure: float | None = None
    contrast: str = ""
    complex_component: str = ""
    coil: str = ""
    sequence_name: str = ""
    cardiac_phase: float | None = None
    """Nominal percentage of the cardiac cycle, (0020,9241)."""
    energy: str = ""
    """What sets apart images of one multi-energy acquisition: virtual energy in keV, or the decomposed material."""


@dataclass(frozen=True)
class InstanceHeader:
    """The attributes that decisions are made by, typed and checked; patient attributes only to be compared."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str
    series_instance_uid: str
    frame_of_reference_uid: str
    identity: PatientIdentity
    modality: str
    rows: int
    columns: int
    samples_per_pixel: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    pixel_representation: int
    frames: tuple[FrameHeader, ...]
    image_type: tuple[str, ...] = ()
    instance_number: int | None = None
    series_number: int | None = None
    series_description: str = ""
    study_description: str = ""
    protocol_name: str = ""
    body_part_examined: str = ""
    manufacturer: str = ""
    patient_age_years: float | None = None
    pixel_padding_value: int | None = None
    pixel_padding_limit: int | None = None
    slice_thickness_mm: float | None = None
    spacing_between_slices_mm: float | None = None
    gantry_tilt_deg: float | None = None
    lossy: bool = False
    multi_energy: bool = False
    concatenation_uid: str = ""
    concatenation_total: int | None = None
    images_in_acquisition: int | None = None
    is_mosaic: bool = False
    own_result: bool = False
    """Written by this product (NET-36): equipment, implementation or contributing equipment says so."""
    defects: tuple[str, ...] = ()
    """What is wrong with pixel data or attributes, each a word of a closed set with its detail after a colon."""
    copied: dict[str, str] = field(default_factory=dict, hash=False)
    """Digests, by DICOM keyword, of what results copy from every slice: compared, never shown (RES-31)."""
    tags: dict[str, str] = field(default_factory=dict, hash=False)
    """Values by DICOM keyword that configured rules may ask for, as text; never patient identity."""


@dataclass(frozen=True)
class SourceFrame:
    """One plane of a series and where it came from."""

    header: InstanceHeader
    frame: FrameHeader

    @property
    def sop_instance_uid(self) -> str:
        """SOP Instance UID of the object that holds the frame."""
        return self.header.sop_instance_uid
