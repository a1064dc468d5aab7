"""The readable report: its data set, its text, its pictures, and that it names nobody (RES-15)."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pikepdf
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from scipy import ndimage

from engines.volume import Grid, LabelMap, Volume
from node.dicom.compose import compose
from node.dicom.composition import Composition, ResultStyle
from node.dicom.document import overlay_png, render_pdf
from node.dicom.pictures import frame_image, organ_crop
from node.domain.findings import Outcome, readable_ml
from node.domain.segments import SegmentDescription
from node.selftest import phantom
from node.selftest.phantom import LABELS
from node.selftest.scanner import Acquisition, planes_around


def text_of(pdf: bytes, folder: Path) -> str:
    """The text layer, by poppler."""
    path = folder / "report.pdf"
    path.write_bytes(pdf)
    return subprocess.run(["pdftotext", "-layout", str(path), "-"], capture_output=True, text=True, check=True).stdout


def pages_of(pdf: bytes, folder: Path) -> list[np.ndarray]:
    """The pages as poppler draws them, 60 dots an inch."""
    path = folder / "report.pdf"
    path.write_bytes(pdf)
    subprocess.run(["pdftoppm", "-r", "60", "-png", str(path), str(folder / "page")], check=True)
    return [np.asarray(Image.open(page).convert("RGB")) for page in sorted(folder.glob("page*.png"))]


def test_data_set_is_an_encapsulated_pdf(
    small: Acquisition,
    tmp_path: Path,
    composition_of: Callable[..., Composition],
    dciodvfy: Callable[[Path], list[str]],
) -> None:
    """PS3.3 A.45.1: valid, unburned, from these instances; DCMTK takes the PDF out again, whole."""
    c = composition_of(small)
    made = compose(c, tmp_path, frozenset({"binary"}), sr=False)
    path = made[-1].path
    assert dciodvfy(path) == []
    report = dcmread(path)
    assert (report.BurnedInAnnotation, report.Modality, report.SeriesNumber) == ("NO", "DOC", 29001)
    assert (report.ContentQualification, report.VerificationFlag) == ("RESEARCH", "UNVERIFIED")
    subprocess.run(["/usr/bin/dcm2pdf", str(path), str(tmp_path / "out.pdf")], check=True, capture_output=True)
    assert (tmp_path / "out.pdf").read_bytes() == report.EncapsulatedDocument[: report.EncapsulatedDocumentLength]
    assert (tmp_path / "out.pdf").read_bytes() == render_pdf(c)


def test_pages_say_what_a_reader_needs(
    small: Acquisition, tmp_path: Path, composition_of: Callable[..., Composition]
) -> None:
    """Issue part 6: volumes, model, flags, the research line on every page, accession and study date."""
    absent = composition_of(small, relabel=lambda labels: np.where(labels == LABELS["spleen"], 0, labels))
    c = dataclasses.replace(
        absent, findings=dataclasses.replace(absent.findings, flags=("The images went through lossy compression.",))
    )
    pdf = render_pdf(c)
    text = text_of(pdf, tmp_path)
    for expected in ("ST000000", "2026-01-05", "phantom 1.0.0", "lossy compression", "Left kidney", "not found"):
        assert expected in text
    running = " ".join(text.split())
    for expected in ("openvino float32 (openvino 2026.4.1", "certificate 0123456789ab"):
        assert expected in running
    for finding in c.findings.present:
        assert readable_ml(finding.volume_ml) in text
    pages = len(pikepdf.open(BytesIO(pdf)).pages)
    assert text.count("For research use only. Not for clinical use.") == 2 * pages
    assert "BINARY" in text
    assert "For research use" not in text_of(render_pdf(dataclasses.replace(c, style=ResultStyle(False))), tmp_path)


def test_a_lower_bound_is_one_wherever_it_stands(
    small: Acquisition, tmp_path: Path, composition_of: Callable[..., Composition]
) -> None:
    """RES-12: in the table and below the picture."""
    c = composition_of(small)
    one = dataclasses.replace(c.findings.present[0], volume_ml=117.3, outcome=Outcome.PARTIAL)
    rest = [each for each in c.findings.findings if each.label != one.label]
    c = dataclasses.replace(c, findings=dataclasses.replace(c.findings, findings=(one, *rest)))
    text = text_of(render_pdf(c), tmp_path)
    assert f"{one.segment.label}, >= 117 mL" in text
    assert text.count(">= 117") == 2


def test_no_identity_in_pages_or_properties(
    small: Acquisition, tmp_path: Path, composition_of: Callable[..., Composition]
) -> None:
    """RES-15: canaries in every attribute that may name somebody."""
    canaries = ("CANARYNAME", "CANARYID", "19991231", "1999-12-31", "CANARYTEXT")

    def edit(ds: Dataset, _: int) -> None:
        ds.PatientName, ds.PatientID, ds.PatientBirthDate = "CANARYNAME^A", "CANARYID", "19991231"
        ds.StudyDescription = ds.SeriesDescription = ds.PatientComments = "CANARYTEXT"
        ds.OtherPatientNames = ds.ReferringPhysicianName = "CANARYNAME^B"

    pdf = render_pdf(composition_of(small, edit=edit))
    text = text_of(pdf, tmp_path)
    document = pikepdf.open(BytesIO(pdf))
    properties = " ".join(str(value) for value in document.docinfo.values())
    streams = b"".join(
        bytes(each.read_bytes())
        for each in document.objects
        if isinstance(each, pikepdf.Stream) and each.get("/Subtype") != "/Image"
    )
    for canary in canaries:
        assert canary not in text
        assert canary not in properties
        assert canary.encode() not in streams


def test_every_organ_that_was_found_is_outlined_in_its_colour(
    small: Acquisition, tmp_path: Path, composition_of: Callable[..., Composition]
) -> None:
    """The page shows pixels of each colour beside the swatches of the table."""
    c = composition_of(small)
    pixels = np.concatenate([page.reshape(-1, 3) for page in pages_of(render_pdf(c), tmp_path)]).astype(int)
    for finding in c.findings.present:
        near = np.abs(pixels - finding.segment.colour).max(axis=1) < 40
        assert np.count_nonzero(near) > 60, finding.segment.name


def test_pixels_are_drawn_square() -> None:
    """A disc on pixels of 1 x 3 mm is drawn as a disc."""
    j, i = np.mgrid[:180, :60]
    mask = (j - 90) ** 2 + (3 * (i - 30)) ** 2 < 40**2
    crop = organ_crop(mask * 100.0, mask, (1.0, 3.0), grey=(0.0, 200.0), colour=(255, 0, 0), size_px=400)
    bright = crop.pixels.sum(axis=2) > 200
    height, width = np.ptp(np.flatnonzero(bright.any(axis=1))), np.ptp(np.flatnonzero(bright.any(axis=0)))
    assert height == pytest.approx(width, rel=0.05)
    assert height * crop.mm_per_pixel == pytest.approx(80, rel=0.08)


def test_pictures_of_a_resampled_stack_show_the_frames(composition_of: Callable[..., Composition]) -> None:
    """ASM-34: the volume of a tilted stack is on another grid; pictures are read where the frames lie."""
    planes = planes_around(pixel_mm=(4.0, 4.0), step_mm=8.0, tilt_deg=15.0)
    acquisition = Acquisition(planes, dataclasses.replace(phantom.CT, noise=0.0), gantry_tilt_deg=15.0)
    c = composition_of(acquisition)
    index = int(np.count_nonzero(c.labels.labels == LABELS["liver"], axis=(1, 2)).argmax())
    image = frame_image(c.volume, c.stack.geometry, c.stack.frames, index)
    assert np.median(image[c.labels.labels[index] == LABELS["liver"]]) == pytest.approx(
        phantom.CT.values["liver"], abs=10
    )
    assert np.median(image[c.labels.labels[index] == 0]) < -800


def test_overlay_has_three_planes_and_a_legend(small: Acquisition, composition_of: Callable[..., Composition]) -> None:
    """The picture of `hilum segment`: a PNG with the colour of each organ that is reported."""
    c = composition_of(small)
    table: dict[str, SegmentDescription] = {one.segment.name: one.segment for one in c.findings.findings}
    label_map = LabelMap(c.volume.grid, c.labels.labels, c.labels.names)
    png = overlay_png(c.volume, label_map, table, {one.label: "12.3 mL" for one in c.findings.present}, unreported=(1,))
    pixels = np.asarray(Image.open(BytesIO(png)).convert("RGB")).reshape(-1, 3).astype(int)
    for finding in c.findings.present:
        assert np.count_nonzero(np.abs(pixels - finding.segment.colour).max(axis=1) < 8) > 100, finding.segment.name


@pytest.mark.parametrize("labels", [2, 60])
def test_the_legend_of_the_overlay_is_never_cut(labels: int) -> None:
    """Names as long as they are, and more labels than a column holds: all of it lies inside the picture."""
    grid = Grid((8, 70, 9), np.diag([2.0, 2.0, 2.0, 1.0])[[2, 1, 0, 3]])
    drawn = np.zeros(grid.shape, dtype=np.uint8)
    drawn[:, 1 : labels + 1] = np.arange(1, labels + 1)[None, :, None]
    names = {label: f"a_structure_with_a_name_that_is_long_{label}" for label in range(1, labels + 1)}
    volume = Volume(grid, np.linspace(-100, 100, drawn.size, dtype=np.float32).reshape(grid.shape), "CT")
    png = overlay_png(volume, LabelMap(grid, drawn, names), {}, dict.fromkeys(names, ">= 1234 mL"))
    pixels = np.asarray(Image.open(BytesIO(png)).convert("RGB"))
    assert np.ptp(pixels[:, -14:], axis=(0, 1)).max() == 0
    assert np.ptp(pixels[-14:], axis=(0, 1)).max() == 0
    # A swatch is the only thing in the legend that has a colour: so many rows and columns of them there are.
    swatches = ndimage.label(np.ptp(pixels[:, 1316:].astype(int), axis=2) > 60)[1]
    assert swatches == labels
