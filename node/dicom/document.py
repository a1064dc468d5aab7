"""The findings for a person to read: an Encapsulated PDF with a table of volumes and outlines on the images."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from reportlab.lib.colors import Color, HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader, simpleSplit
from reportlab.pdfgen.canvas import Canvas

from engines.measures import count_by_slice
from node.dicom.composition import Composition
from node.dicom.pictures import Crop, frame_image, organ_crop, overlay_png, window
from node.dicom.result_header import agreed_date, agreed_value, code_item, referenced_series, start_result
from node.dicom.sr import RESEARCH_LINE
from node.domain.findings import Finding, Outcome, readable_ml
from node.domain.job import ObjectKind
from node.domain.planes import StackGeometry
from node.domain.segments import Code
from node.domain.variants import PDF_CLASS

__all__ = ["build_document", "overlay_png", "render_pdf"]

_TITLE = "Organ volumes"
_CONCEPT = Code("126000", "DCM", "Imaging Measurement Report")
_WIDTH, _HEIGHT = A4
_LEFT, _RIGHT, _BOTTOM = 18 * mm, _WIDTH - 18 * mm, 17 * mm
_INK, _SOFT, _RULE = HexColor("#16202a"), HexColor("#5b6875"), HexColor("#d5dbe1")
_BAND, _PALE, _AMBER, _AMBER_INK = (HexColor(code) for code in ("#0f2f4a", "#c9dbea", "#fff3d6", "#7a4b00"))
_COLUMNS = (_LEFT, _LEFT + 7 * mm, _LEFT + 82 * mm, _LEFT + 90 * mm)
"""Left edges of swatch, organ, (right edge of) volume, and result."""
_GAP = 5 * mm
_FEW = 4
"""Up to so many pictures are shown two in a row, more of them three."""
_PICTURE_PX = 560
_RESULT_WORDS = {
    Outcome.MEASURED: "measured",
    Outcome.PARTIAL: "partial",
    Outcome.NOT_FOUND: "not found",
    Outcome.NOT_EVALUATED: "not evaluated",
}
_SCALES_MM = (5, 10, 20, 50, 100)


def build_document(c: Composition) -> Dataset:
    """The report as an Encapsulated PDF (PS3.3 A.45.1)."""
    result = start_result(c, ObjectKind.PDF, "pdf", PDF_CLASS, str(ExplicitVRLittleEndian))
    pdf = render_pdf(c)
    result.Modality = "DOC"
    result.ConversionType = "WSD"
    result.AcquisitionDateTime = None
    result.BurnedInAnnotation = "NO"
    result.DocumentTitle = _TITLE
    result.ConceptNameCodeSequence = [code_item(_CONCEPT)]
    result.VerificationFlag = "UNVERIFIED"
    result.MIMETypeOfEncapsulatedDocument = "application/pdf"
    result.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    result.EncapsulatedDocumentLength = len(pdf)
    result.SourceInstanceSequence = [
        instance for series in referenced_series(c) for instance in series.ReferencedInstanceSequence
    ]
    return result


def render_pdf(c: Composition) -> bytes:
    """The report's pages: the table, then the pictures; nothing in pages or properties names the patient (RES-15)."""
    file = BytesIO()
    sheet = _Sheet(Canvas(file, pagesize=A4, invariant=1), c)
    sheet.table()
    sheet.notes()
    if c.volume is not None:
        sheet.pictures()
    sheet.finish()
    return file.getvalue()


class _Sheet:
    """Draws the pages from the top down; `y` is where the next thing goes."""

    def __init__(self, canvas: Canvas, c: Composition) -> None:
        self._canvas, self._c = canvas, c
        self._page = 0
        canvas.setTitle(_TITLE)
        canvas.setAuthor(c.style.manufacturer)
        canvas.setSubject(f"{c.findings.provenance.model_name} {c.findings.provenance.model_version}")
        self._begin()

    def table(self) -> None:
        """One row for each segment, with its remarks."""
        self._table_head()
        for finding in self._c.findings.findings:
            remarks = [line for flag in finding.flags for line in simpleSplit(flag, "Helvetica", 8, 78 * mm)]
            height = max(6.4 * mm, (len(remarks) + 1) * 3.7 * mm + 2 * mm)
            if self._y - height < _BOTTOM + 12 * mm:
                self._turn()
                self._table_head()
            self._row(finding, remarks)
            self._y -= height
            self._line(self._y)

    def notes(self) -> None:
        """Flags of the scan, and how the result was made."""
        c, made, made_at = self._c, self._c.findings.provenance, f"{self._c.made_at:%Y-%m-%d %H:%M %Z}"
        geometry = c.stack.geometry
        self._y -= 4 * mm
        self._heading("About the scan")
        row, column = geometry.pixel_spacing_mm
        lines = [
            f"{c.stack.frames[0].header.modality}, {len(c.stack.frames)} slices {geometry.step_mm:.2f} mm apart, "
            f"{geometry.rows} x {geometry.columns} pixels of {row:.2f} x {column:.2f} mm.",
            *c.findings.flags,
        ]
        if geometry.rows * geometry.columns % 8:
            lines.append(
                "Some viewers draw BINARY segmentations of this image size wrongly; the outlines below are right."
            )
        self._paragraphs(lines)
        self._heading("How this was made")
        self._paragraphs(
            [
                f"Model {made.model_name} {made.model_version} ({made.model_digest[:12]}), {c.style.model_name} "
                f"{made.software_version}, {made.engine}.",
                *([f"Engine {made.choice}."] if made.choice else []),
                "Volumes are sums of segmented voxels; an organ cut by the edge of the scan is larger than stated.",
                f"Fully automatic, not verified by a person. Made {made_at}, revision {c.revision}.",
            ]
        )

    def pictures(self) -> None:
        """For each segment that was found, the slice where it is largest."""
        present = self._c.findings.present
        areas = count_by_slice(self._c.labels.labels, 255)
        across = 2 if len(present) <= _FEW else 3
        side = (_RIGHT - _LEFT - (across - 1) * _GAP) / across
        row = side + 8 * mm
        self._y -= 2 * mm
        if present and self._y - row - 9 * mm < _BOTTOM:
            self._turn()
        self._heading("Outlines, each on the slice where the organ is largest")
        for place, finding in enumerate(present):
            column = place % across
            if column == 0 and self._y - row < _BOTTOM:
                self._turn()
            index = int(areas[:, finding.label].argmax())
            self._picture(finding, index, _LEFT + column * (side + _GAP), side)
            if column == across - 1:
                self._y -= row

    def finish(self) -> None:
        """The last page's foot, and the end of the file."""
        self._foot()
        self._canvas.save()

    def _begin(self) -> None:
        """A new page with its band, the case and the research line."""
        self._page += 1
        canvas, c = self._canvas, self._c
        canvas.setFillColor(_BAND)
        canvas.rect(0, _HEIGHT - 21 * mm, _WIDTH, 21 * mm, stroke=0, fill=1)
        self._text(_LEFT, _HEIGHT - 13.5 * mm, _TITLE, 17, HexColor("#ffffff"), bold=True)
        made = c.findings.provenance
        model = f"{made.model_name} {made.model_version}"
        self._text(_RIGHT, _HEIGHT - 10.5 * mm, model, 9, _PALE, align="right")
        self._text(_RIGHT, _HEIGHT - 15.5 * mm, c.style.manufacturer, 9, _PALE, align="right")
        self._y = _HEIGHT - 28 * mm
        number = c.stack.frames[0].header.series_number
        facts = (
            ("Accession", agreed_value(c.sources, "AccessionNumber") or "none"),
            ("Study date", agreed_date(c.sources, "StudyDate") or "unknown"),
            ("Modality", c.stack.frames[0].header.modality),
            ("Source series", "unnumbered" if number is None else str(number)),
        )
        for place, (name, value) in enumerate(facts):
            left = _LEFT + place * (_RIGHT - _LEFT) / len(facts)
            self._text(left, self._y, name.upper(), 6.5, _SOFT)
            self._text(left, self._y - 4.6 * mm, value, 10.5, _INK, bold=True)
        self._y -= 9.5 * mm
        if c.style.research_use:
            canvas.setFillColor(_AMBER)
            canvas.roundRect(_LEFT, self._y - 6.5 * mm, _RIGHT - _LEFT, 7 * mm, 1.5 * mm, stroke=0, fill=1)
            self._text(_LEFT + 3 * mm, self._y - 4.2 * mm, RESEARCH_LINE, 9, _AMBER_INK, bold=True)
            self._y -= 7 * mm
        self._y -= 7 * mm

    def _turn(self) -> None:
        """The next page."""
        self._foot()
        self._canvas.showPage()
        self._begin()

    def _foot(self) -> None:
        """Page number, and the line again."""
        self._line(12.5 * mm)
        status = "Preliminary, unverified" if self._c.style.preliminary else "Unverified"
        line = f"{status}. {RESEARCH_LINE}" if self._c.style.research_use else f"{status}."
        self._text(_LEFT, 8.5 * mm, line, 7.5, _SOFT)
        self._text(_RIGHT, 8.5 * mm, f"Page {self._page}", 7.5, _SOFT, align="right")

    def _table_head(self) -> None:
        """The names of the columns."""
        _, organ, volume, result = _COLUMNS
        for x, name, align in ((organ, "Organ", "left"), (volume, "Volume (mL)", "right"), (result, "Result", "left")):
            self._text(x, self._y, name.upper(), 7, _SOFT, align=align)
        self._y -= 2.2 * mm
        self._line(self._y)

    def _row(self, finding: Finding, remarks: list[str]) -> None:
        """One segment."""
        swatch, organ, volume, result = _COLUMNS
        base = self._y - 4.5 * mm
        self._canvas.setFillColor(_colour(finding.segment.colour))
        self._canvas.roundRect(swatch, base - 0.6 * mm, 3.6 * mm, 3.6 * mm, 0.7 * mm, stroke=0, fill=1)
        self._text(organ, base, finding.segment.label, 10, _INK)
        shown = "-" if finding.volume_ml is None else readable_ml(finding.volume_ml, finding.outcome)
        self._text(volume, base, shown, 10.5, _INK, align="right", bold=True)
        plain = finding.outcome is Outcome.MEASURED and not remarks
        self._text(result, base, _RESULT_WORDS[finding.outcome], 9, _SOFT if plain else _AMBER_INK)
        for line, remark in enumerate(remarks, 1):
            self._text(result, base - line * 3.7 * mm, remark, 8, _SOFT)

    def _picture(self, finding: Finding, index: int, left: float, side: float) -> None:
        """One organ with caption, scale bar and directions, its top at `y`."""
        c, geometry, volume = self._c, self._c.stack.geometry, self._c.volume
        if volume is None:
            return
        mask = c.labels.labels[index] == finding.label
        image = frame_image(volume, geometry, c.stack.frames, index)
        grey = window(image, volume.modality, finding.segment.type.value)
        spacing = geometry.pixel_spacing_mm
        colour = finding.segment.colour
        crop = organ_crop(image, mask, spacing, grey=grey, colour=colour, size_px=_PICTURE_PX)
        top = self._y
        ml = finding.volume_ml
        shown = "not measured" if ml is None else f"{readable_ml(ml, finding.outcome)} mL"
        self._canvas.setFillColor(_colour(finding.segment.colour))
        self._canvas.roundRect(left, top - 3.4 * mm, 3 * mm, 3 * mm, 0.6 * mm, stroke=0, fill=1)
        self._text(left + 4.5 * mm, top - 3.2 * mm, f"{finding.segment.label}, {shown}", 9, _INK, bold=True)
        self._image(crop, left, top - 5 * mm - side, side)
        self._halo(left + 2 * mm, top - 8.5 * mm, f"slice {index + 1} of {len(c.stack.frames)}", "left")

    def _image(self, crop: Crop, left: float, bottom: float, side: float) -> None:
        """A drawing in a black square, with what says how large it is and how it lies."""
        canvas = self._canvas
        canvas.setFillColor(HexColor("#000000"))
        canvas.rect(left, bottom, side, side, stroke=0, fill=1)
        height, width = crop.pixels.shape[:2]
        point = side / max(height, width)
        jpeg = BytesIO()
        Image.fromarray(crop.pixels).save(jpeg, "JPEG", quality=90, subsampling=0)
        inner_left, inner_bottom = left + (side - width * point) / 2, bottom + (side - height * point) / 2
        canvas.drawImage(ImageReader(jpeg), inner_left, inner_bottom, width * point, height * point)
        self._scale_bar(left, bottom, side, point / crop.mm_per_pixel)
        right, down = directions(self._c.stack.geometry)
        middle = left + side / 2, bottom + side / 2
        self._halo(left + 2.5 * mm, middle[1], right[1])
        self._halo(left + side - 2.5 * mm, middle[1], right[0])
        self._halo(middle[0], bottom + side - 4 * mm, down[1])
        self._halo(middle[0], bottom + 2 * mm, down[0])

    def _scale_bar(self, left: float, bottom: float, side: float, points_per_mm: float) -> None:
        """A bar of a round length, at most a third of the picture."""
        fitting = [length for length in _SCALES_MM if length * points_per_mm <= side / 3]
        length = fitting[-1] if fitting else _SCALES_MM[0]
        x, y = left + 4 * mm, bottom + 3.5 * mm
        for width, colour in ((2.6, "#000000"), (1.3, "#ffffff")):
            self._canvas.setStrokeColor(HexColor(colour))
            self._canvas.setLineWidth(width)
            self._canvas.line(x, y, x + length * points_per_mm, y)
        self._halo(x + length * points_per_mm / 2, y + 1.3 * mm, f"{length} mm")

    def _halo(self, x: float, y: float, text: str, align: str = "centre") -> None:
        """White on anything."""
        for shift in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)):
            self._text(x + shift[0], y + shift[1], text, 7.5, HexColor("#000000"), align=align, bold=True)
        self._text(x, y, text, 7.5, HexColor("#ffffff"), align=align, bold=True)

    def _heading(self, text: str) -> None:
        """A heading, on the next page where nothing else would fit below it."""
        if self._y < _BOTTOM + 22 * mm:
            self._turn()
        self._text(_LEFT, self._y - 3 * mm, text, 11, _BAND, bold=True)
        self._y -= 8 * mm

    def _paragraphs(self, lines: list[str]) -> None:
        """Sentences, wrapped."""
        for line in (part for text in lines for part in simpleSplit(text, "Helvetica", 9, _RIGHT - _LEFT)):
            if self._y < _BOTTOM:
                self._turn()
            self._text(_LEFT, self._y, line, 9, _INK)
            self._y -= 4.6 * mm
        self._y -= 2.5 * mm

    def _line(self, y: float) -> None:
        """A thin rule across the page."""
        self._canvas.setStrokeColor(_RULE)
        self._canvas.setLineWidth(0.5)
        self._canvas.line(_LEFT, y, _RIGHT, y)

    def _text(
        self, x: float, y: float, text: str, size: float, colour: Color, *, align: str = "left", bold: bool = False
    ) -> None:
        """One line of text."""
        self._canvas.setFont("Helvetica-Bold" if bold else "Helvetica", size)
        self._canvas.setFillColor(colour)
        draw = {"left": "drawString", "right": "drawRightString", "centre": "drawCentredString"}[align]
        getattr(self._canvas, draw)(x, y, text)


def directions(geometry: StackGeometry) -> tuple[tuple[str, str], tuple[str, str]]:
    """What lies right and left, below and above, in a picture of the frames, as letters of R L A P H F."""
    return _letters(geometry.row_direction), _letters(geometry.column_direction)


def _letters(direction: tuple[float, float, float]) -> tuple[str, str]:
    """Where a direction points to, and where it comes from."""
    axis = int(np.argmax(np.abs(direction)))
    towards, away = (("L", "R"), ("P", "A"), ("H", "F"))[axis]
    return (towards, away) if direction[axis] > 0 else (away, towards)


def _colour(rgb: tuple[int, int, int]) -> Color:
    """An sRGB colour as reportlab has it."""
    return Color(rgb[0] / 255, rgb[1] / 255, rgb[2] / 255)
