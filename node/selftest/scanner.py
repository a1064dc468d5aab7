"""A scanner made of mathematics: CT and MR series of a phantom as DICOM objects, awkward ones included.

Everything is derived from the acquisition: the same one gives the same UIDs and the same bytes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
)

from node.domain.routing import SELFTEST_PATIENT_PREFIX
from node.selftest.phantom import STANDARD, Contrast, Patient, Planes, image_on, labels_on

_UID_NAMESPACE = uuid.UUID("4f1d6d3e-5f0e-4c8e-9c2f-0d5a0c8f7b11")

_PLANES = {
    "axial": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "sagittal": ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
    "coronal": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
}
"""Directions of a row and of a column, LPS, as ImageOrientationPatient has them."""


def planes_around(
    patient: Patient = STANDARD,
    *,
    plane: str = "axial",
    turn: NDArray[np.float64] | None = None,
    pixel_mm: tuple[float, float] = (2.0, 2.0),
    step_mm: float = 3.0,
    thickness_mm: float | None = None,
    margin_mm: float = 15.0,
    tilt_deg: float = 0.0,
) -> Planes:
    """Planes that hold a whole patient.

    Parameters
    ----------
    plane
        `axial`, `sagittal` or `coronal`.
    turn
        float64, (3, 3): rotates the directions of the planes (`phantom.rotation`); oblique where given.
    pixel_mm
        Between rows, then between columns, as PixelSpacing.
    step_mm, thickness_mm
        Distance of neighbours along the normal, and what a plane averages; equal where no thickness is given.
    tilt_deg
        Shears the stack: each plane is moved down its columns by `step * tan(tilt)` more than the one before.
    """
    directions = np.array(_PLANES[plane]) @ (np.eye(3) if turn is None else turn.T)
    row, column = directions
    normal = np.cross(row, column)
    reach = np.abs(np.stack([normal, column, row])) @ patient.body.reach_mm + margin_mm
    slices = int(np.ceil(2 * reach[0] / step_mm))
    shear = np.tan(np.radians(tilt_deg))
    # A sheared stack needs taller planes to hold the body at both ends.
    half_rows = reach[1] + abs(shear) * reach[0]
    rows, columns = int(np.ceil(2 * half_rows / pixel_mm[0])), int(np.ceil(2 * reach[2] / pixel_mm[1]))
    along = (np.arange(slices) - (slices - 1) / 2) * step_mm
    first = (
        np.asarray(patient.body.centre_mm)
        - column * pixel_mm[0] * (rows - 1) / 2
        - row * pixel_mm[1] * (columns - 1) / 2
    )
    origins = first + along[:, None] * (normal + shear * column)
    thickness = step_mm if thickness_mm is None else thickness_mm
    return Planes(origins, row * pixel_mm[1], column * pixel_mm[0], rows, columns, thickness)


def moved(planes: Planes, along_mm: NDArray[np.float64]) -> Planes:
    """Planes moved along their normal, each by its own distance: jitter and uneven steps."""
    return replace(planes, origins_mm=planes.origins_mm + np.asarray(along_mm)[:, None] * planes.normal)


def chosen(planes: Planes, indices: NDArray[np.int64] | list[int]) -> Planes:
    """Some of the planes, in the order given: missing, doubled and reversed slices."""
    return replace(planes, origins_mm=planes.origins_mm[np.asarray(indices)])


@dataclass(frozen=True, eq=False)
class Acquisition:
    """One series of a patient.

    Attributes
    ----------
    study, series
        Words that the UIDs are derived from; series of one study share patient and frame of reference.
    echo_times_ms
        MR: one stack for each, all in one series.
    rescale_per_slice
        Whether each slice has a rescale slope of its own.
    gantry_tilt_deg
        What GantryDetectorTilt says (CT); the geometry is in `planes`.
    """

    planes: Planes
    contrast: Contrast
    patient: Patient = STANDARD
    study: str = "standard"
    series: str = ""
    seed: int = 0
    """Another one makes another study, not other pixels: a self-test that passed once must not fail by its noise."""
    description: str = "Hilum self-test phantom"
    series_number: int = 1
    echo_times_ms: tuple[float, ...] = (10.0,)
    rescale_per_slice: bool = False
    gantry_tilt_deg: float = 0.0

    def uid(self, *parts: object) -> str:
        """A UID derived from study, series, modality, seed and the parts (PS3.5 B.2)."""
        words = (self.study, self.series or self.contrast.modality, self.seed, *parts)
        return _uid(*words)

    @property
    def patient_id(self) -> str:
        """The one kind of Patient ID for which the phantom model may be chosen."""
        return f"{SELFTEST_PATIENT_PREFIX}-{self.study.upper()}"[:64]

    @property
    def study_instance_uid(self) -> str:
        """The same for all series of a study."""
        return _uid("study", self.study, self.seed)

    @property
    def series_instance_uid(self) -> str:
        """Of this series."""
        return self.uid("series")

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The true label of each pixel of `planes`: uint8, (N, rows, columns)."""
        return labels_on(self.patient, self.planes)


def _uid(*parts: object) -> str:
    name = "/".join(str(part) for part in parts)
    return f"2.25.{uuid.uuid5(_UID_NAMESPACE, name).int}"


def datasets(acquisition: Acquisition) -> Iterator[Dataset]:
    """The single-frame CT or MR images of an acquisition, in the order of its planes, echo by echo."""
    modality = acquisition.contrast.modality
    pixels = image_on(acquisition.patient, acquisition.planes, acquisition.contrast)
    echoes = acquisition.echo_times_ms if modality == "MR" else (0.0,)
    number = 0
    for echo, echo_time in enumerate(echoes, start=1):
        faded = pixels * float(np.exp(-(echo_time - echoes[0]) / 80.0))
        for index, plane in enumerate(faded):
            number += 1
            ds = _image(acquisition, CTImageStorage if modality == "CT" else MRImageStorage, number)
            slope = 1.0 + 0.05 * (index % 7) if acquisition.rescale_per_slice else 1.0
            _set_plane(ds, acquisition.planes, index)
            _set_pixels(ds, plane, modality, slope)
            if modality == "MR":
                ds.EchoTime, ds.EchoNumbers = f"{echo_time:g}", echo
            yield ds


def write_series(acquisition: Acquisition, folder: Path) -> tuple[Path, ...]:
    """Write the single-frame images of an acquisition as DICOM files; returns them in the order of `datasets`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ds in datasets(acquisition):
        path = folder / f"{acquisition.contrast.modality}_{int(ds.InstanceNumber):04d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return tuple(paths)


def enhanced(acquisition: Acquisition) -> Dataset:
    """The acquisition as one Enhanced CT or MR object (PS3.3 A.38, A.36): the frames in the order of the planes."""
    modality = acquisition.contrast.modality
    ds = _image(acquisition, EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage, 1)
    planes = acquisition.planes
    pixels = image_on(acquisition.patient, planes, acquisition.contrast)
    _set_pixels(ds, pixels, modality, 1.0)
    for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType", "ScanningSequence", "SequenceVariant"):
        if keyword in ds:
            del ds[keyword]
    ds.NumberOfFrames = len(pixels)
    ds.Rows, ds.Columns = planes.rows, planes.columns
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.SharedFunctionalGroupsSequence = DicomSequence([_shared_groups(planes, modality)])
    organization = Dataset()
    organization.DimensionOrganizationUID = acquisition.uid("dimensions")
    ds.DimensionOrganizationSequence = DicomSequence([organization])
    index = Dataset()
    index.DimensionOrganizationUID = organization.DimensionOrganizationUID
    index.DimensionIndexPointer, index.FunctionalGroupPointer = 0x00209057, 0x00209111
    ds.DimensionIndexSequence = DicomSequence([index])
    ds.PerFrameFunctionalGroupsSequence = DicomSequence([_frame_groups(planes, n) for n in range(len(pixels))])
    return ds


def _shared_groups(planes: Planes, modality: str) -> Dataset:
    measures, orientation, transformation, frame_type = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = _spacing(planes)
    measures.SliceThickness = _ds(planes.thickness_mm)
    orientation.ImageOrientationPatient = _orientation(planes)
    transformation.RescaleSlope, transformation.RescaleIntercept = "1", "-1024" if modality == "CT" else "0"
    transformation.RescaleType = "HU" if modality == "CT" else "US"
    frame_type.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    frame_type.PixelPresentation, frame_type.VolumetricProperties = "MONOCHROME", "VOLUME"
    frame_type.VolumeBasedCalculationTechnique = "NONE"
    groups = Dataset()
    groups.PixelMeasuresSequence = DicomSequence([measures])
    groups.PlaneOrientationSequence = DicomSequence([orientation])
    groups.PixelValueTransformationSequence = DicomSequence([transformation])
    if modality == "CT":
        groups.CTImageFrameTypeSequence = DicomSequence([frame_type])
    else:
        frame_type.ComplexImageComponent, frame_type.AcquisitionContrast = "MAGNITUDE", "T1"
        groups.MRImageFrameTypeSequence = DicomSequence([frame_type])
    return groups


def _frame_groups(planes: Planes, index: int) -> Dataset:
    content, position, groups = Dataset(), Dataset(), Dataset()
    content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", index + 1, [index + 1]
    content.FrameAcquisitionNumber = 1
    position.ImagePositionPatient = _position(planes, index)
    groups.FrameContentSequence = DicomSequence([content])
    groups.PlanePositionSequence = DicomSequence([position])
    return groups


def _image(acquisition: Acquisition, sop_class_uid: str, number: int) -> Dataset:
    """What every image of an acquisition says, whatever its planes and pixels."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    ds.file_meta.MediaStorageSOPInstanceUID = UID(acquisition.uid(sop_class_uid, number))
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class_uid, ds.file_meta.MediaStorageSOPInstanceUID
    modality = acquisition.contrast.modality
    ds.Modality, ds.ImageType = modality, ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientName, ds.PatientID = "Phantom^Selftest", acquisition.patient_id
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "20000101", "O", "026Y"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = acquisition.study_instance_uid, acquisition.series_instance_uid
    ds.FrameOfReferenceUID = _uid("frame", acquisition.study, acquisition.seed)
    ds.StudyID, ds.AccessionNumber = "SELFTEST", f"ST{acquisition.seed:06d}"[:16]
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20260105"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "101500"
    ds.StudyDescription, ds.SeriesDescription = "Hilum self-test", acquisition.description
    ds.ReferringPhysicianName, ds.PositionReferenceIndicator, ds.PatientPosition = "", "", "HFS"
    ds.Manufacturer, ds.ManufacturerModelName, ds.DeviceSerialNumber = "Hilum phantom scanner", "Mathematics", "1"
    ds.SoftwareVersions, ds.BodyPartExamined = "1", "ABDOMEN"
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = acquisition.series_number, number, 1
    if modality == "CT":
        ds.KVP, ds.GantryDetectorTilt = "120", _ds(acquisition.gantry_tilt_deg)
        ds.ConvolutionKernel, ds.XRayTubeCurrent, ds.ExposureTime = "STANDARD", 200, 500
    else:
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "GR", "SP", "", "3D"
        ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength, ds.FlipAngle = "500", "10", 1, "20"
        ds.MagneticFieldStrength, ds.SequenceName = "3", "phantom"
    return ds


def _set_plane(ds: Dataset, planes: Planes, index: int) -> None:
    ds.ImagePositionPatient = _position(planes, index)
    ds.ImageOrientationPatient = _orientation(planes)
    ds.PixelSpacing = _spacing(planes)
    ds.SliceThickness = _ds(planes.thickness_mm)
    ds.SliceLocation = _ds(float(planes.origins_mm[index] @ planes.normal))


def _set_pixels(ds: Dataset, values: NDArray[np.float32], modality: str, slope: float) -> None:
    """Stored values for HU or MR units: 12 bits unsigned in CT, 16 bits unsigned in MR, modality LUT to match."""
    intercept = -1024.0 if modality == "CT" else 0.0
    top = 4095 if modality == "CT" else 65535
    stored = np.clip(np.rint((values - intercept) / slope), 0, top).astype("<u2")
    ds.Rows, ds.Columns = values.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored = 16, 12 if modality == "CT" else 16
    ds.HighBit, ds.PixelRepresentation = int(ds.BitsStored) - 1, 0
    if modality == "CT":
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = _ds(intercept), _ds(slope), "HU"
        ds.WindowCenter, ds.WindowWidth = "500", "1700"
    else:
        ds.WindowCenter, ds.WindowWidth = "450", "900"
        if slope != 1.0:
            ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", _ds(slope), "US"
    ds.PixelData = stored.tobytes()


def _ds(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2)."""
    for digits in range(12, 4, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    return f"{value:.5g}"


def _position(planes: Planes, index: int) -> list[str]:
    return [_ds(value) for value in planes.origins_mm[index]]


def _orientation(planes: Planes) -> list[str]:
    row, column = (step / np.linalg.norm(step) for step in (planes.row, planes.column))
    return [_ds(value) for value in (*row, *column)]


def _spacing(planes: Planes) -> list[str]:
    return [_ds(float(np.linalg.norm(step))) for step in (planes.column, planes.row)]
