"""segment: the node's road without network, from a folder of DICOM files to SEG, SR, PDF, NIfTI and a picture."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from pydicom import dcmread

from engines.errors import ENGINE_FAULTS, OutOfDeviceMemory
from engines.inference.fastest import FastestSegmenter
from engines.model.bundle import Bundle
from engines.nifti import write_itksnap_labels, write_label_map, write_volume
from node.commands.configuration import settings_or_default
from node.commands.folder import SENDER, DicomFolder, left_out, read_folder, series_name
from node.commands.terminal import ANSWER_IS_NO, DONE, NotThere, document, harmless, note, progress, say, table
from node.config import Settings
from node.dicom.compose import Composition, compose
from node.dicom.pictures import overlay_png
from node.dicom.pixels import split_series
from node.dicom.result_header import numbers_in_turn
from node.domain.findings import Finding, readable_ml
from node.domain.instance import InstanceHeader
from node.domain.routing import Ineligible, Routed, Rule, route
from node.domain.segments import SegmentDescription
from node.domain.stack import Stack, Unstackable
from node.domain.variants import SEG_CLASSES
from node.errors import CannotUnderstand, DeviceBusy, DoesNotFit, TooLong, Unsuitable
from node.service.engines import open_model, policy
from node.service.house import config_digest, enabled_bundles, model_facts, result_style, segments_of
from node.stations.segment import Recipe, Segmented, segment_stack, sources_of

_FILES = {
    "binary": "seg.dcm",
    "labelmap": "seg-labelmap.dcm",
    "comprehensive3d-binary": "sr.dcm",
    "comprehensive3d-labelmap": "sr-labelmap.dcm",
    "comprehensive3d-none": "sr.dcm",
    "pdf": "report.dcm",
}
"""Name by variant; the older classes of the report are made for archives that take nothing else, and left out here."""


@dataclass(frozen=True)
class VolumeLine:
    """One line of the table of volumes."""

    segment: str
    outcome: str
    volume_ml: float | None
    flags: Sequence[str]


@dataclass(frozen=True)
class ScanReport:
    """What became of one stack, or of frames that form none."""

    series_instance_uid: str
    series: str
    """Number and description."""
    frames: int
    outcome: str
    """`segmented`; `rejected` by what was seen in its voxels; `ineligible`; or `failed` for want of memory or time."""
    reason: str = ""
    detail: str = ""
    rule: str = ""
    model: str = ""
    backend: str = ""
    folder: Path | None = None
    files: Sequence[str] = ()
    volumes: Sequence[VolumeLine] = ()
    flags: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


def segment(options: argparse.Namespace) -> int:
    """Segment what a rule, or --model, chooses; status 1 where nothing was segmented, or one had no room or time."""
    settings = settings_or_default(options)
    bundles = enabled_bundles(settings)
    if options.model is not None and options.model not in bundles:
        raise NotThere(f"there is no model {options.model}; there are: {', '.join(bundles) or 'none'}")
    rules = settings.rules() if options.model is None else (_any_scan(options.model),)
    with tempfile.TemporaryDirectory(prefix="hilum-") as scratch, progress("reading headers", options.json) as shown:
        found = read_folder(options.folder, Path(scratch), shown)
        shown.close()
        with Workbench(settings, bundles, options.out, quiet=options.json) as bench:
            reports = [
                report for series in found.series.values() for report in bench.reports(series, found.paths, rules)
            ]
    if options.json:
        say(document({"scans": reports, "skipped_files": found.skipped, "notes": found.notes}))
    else:
        _tell(found, reports)
    outcomes = {report.outcome for report in reports}
    return DONE if "segmented" in outcomes and "failed" not in outcomes else ANSWER_IS_NO


def _any_scan(model: str) -> Rule:
    """A rule that leaves the choice to the model's own limits."""
    return Rule(name="--model", model=model, conditions=(), destinations=(), allow_selftest_model=True)


class Workbench:
    """Segments scans one after the other; each model is opened once. A context manager."""

    def __init__(self, settings: Settings, bundles: Mapping[str, Bundle], out: Path, *, quiet: bool) -> None:
        self._settings, self._bundles, self._out, self._quiet = settings, bundles, out, quiet
        self._segments = segments_of(settings)
        self._facts = {name: model_facts(bundle) for name, bundle in bundles.items()}
        self._style = result_style(settings)
        self._open: dict[str, FastestSegmenter] = {}
        self._numbers: dict[str, set[int]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def reports(
        self, headers: Sequence[InstanceHeader], paths: Mapping[str, Path], rules: Sequence[Rule]
    ) -> Iterator[ScanReport]:
        """What becomes of each part of one series, segmented in passing."""
        for item in route(split_series(headers, paths), SENDER, rules, self._facts):
            if isinstance(item, Ineligible):
                yield _report(item.stack, "ineligible", item.reason, item.detail)
                continue
            try:
                yield self._segmented(item, paths)
            except Unsuitable as error:
                yield _report(item.stack, "rejected", error.reason, error.detail)
            except CannotUnderstand as error:
                yield _report(item.stack, "rejected", "undecodable", error.comment)
            except (DeviceBusy, DoesNotFit, OutOfDeviceMemory) as error:
                yield _report(item.stack, "failed", "memory", str(error))
            except MemoryError as error:
                yield _report(item.stack, "failed", "memory", f"out of memory: {error}")
            except TooLong as error:
                yield _report(item.stack, "failed", "time", str(error))

    def _segmented(self, item: Routed, paths: Mapping[str, Path]) -> ScanReport:
        with progress(f"{series_name(item.stack.frames[0].header)}: {item.model}", self._quiet) as shown:
            done = segment_stack(item.stack, paths, nullcontext(self._segmenter(item.model)), self._recipe(), shown)
        folder = _new_folder(self._out, item)
        files = self._write(done, item, paths, folder)
        self._learn(item.model, done)
        return ScanReport(
            series_instance_uid=item.stack.frames[0].header.series_instance_uid,
            series=series_name(item.stack.frames[0].header),
            frames=len(item.stack.frames),
            outcome="segmented",
            rule=item.rule,
            model=item.model,
            backend=f"{done.segmentation.backend} {done.segmentation.precision}",
            folder=folder,
            files=files,
            volumes=[_line(finding) for finding in done.findings.findings],
            flags=done.findings.flags,
            seconds=done.seconds,
        )

    def _learn(self, model: str, done: Segmented) -> None:
        """Certify a faster engine on what was segmented, where the certificate is kept for the next time."""
        segmenter = self._segmenter(model)
        if policy(self._settings).site is None or not segmenter.waits:
            return
        note(f"{model}: holding a faster engine against torch on this scan, once; its result is written already")
        try:
            made = segmenter.learn(done.volume, done.segmentation)
        except ENGINE_FAULTS as error:
            note(f"{model}: not done: {error}")
            return
        for each in made:
            note(f"{model}: {each.key.engine} {each.verdict.outcome}: {each.verdict.reason}")

    def _write(self, done: Segmented, item: Routed, paths: Mapping[str, Path], folder: Path) -> list[str]:
        composition = Composition(
            stack=item.stack,
            sources=sources_of(item.stack, paths),
            volume=done.volume,
            labels=done.labels,
            findings=done.findings,
            style=self._style,
            job_key=item.model,
            revision=1,
            made_at=datetime.now(UTC),
            series_turn=self._free_turn(item.stack),
        )
        with tempfile.TemporaryDirectory(dir=folder) as all_forms:
            for composed in compose(composition, Path(all_forms), segs=frozenset(SEG_CLASSES)):
                if name := _FILES.get(composed.variant):
                    composed.path.rename(folder / name)
        _write_pdf(folder)
        _write_for_research(done, self._segments, folder)
        return sorted(path.name for path in folder.iterdir())

    def _free_turn(self, stack: Stack) -> int:
        """The first turn of SeriesNumbers that no result of the same study has, of those that were made here."""
        taken = self._numbers.setdefault(stack.frames[0].header.study_instance_uid, set())
        turn = next(n for n in count() if taken.isdisjoint(numbers_in_turn(stack, self._style, n)))
        taken.update(numbers_in_turn(stack, self._style, turn))
        return turn

    def _segmenter(self, model: str) -> FastestSegmenter:
        if model not in self._open:
            opened = open_model(self._settings, self._bundles[model])
            self._open[model] = self._stack.enter_context(opened)
        return self._open[model]

    def _recipe(self) -> Recipe:
        digest, limits = config_digest(self._settings), self._settings.segmenter.looser_limits
        return Recipe(self._segments, digest, self._style.software_version, limits)


def _write_pdf(folder: Path) -> None:
    """The document inside the Encapsulated PDF, without its padding (PS3.3 C.24.2)."""
    ds = dcmread(folder / "report.dcm")
    document_bytes = bytes(ds.EncapsulatedDocument)
    (folder / "report.pdf").write_bytes(document_bytes[: ds.get("EncapsulatedDocumentLength", len(document_bytes))])


def _write_for_research(done: Segmented, segments: Mapping[str, SegmentDescription], folder: Path) -> None:
    """NIfTI with the label file of ITK-SNAP, and a picture."""
    label_map = done.segmentation.label_map
    write_volume(folder / "image.nii.gz", done.volume)
    write_label_map(folder / "labels.nii.gz", label_map)
    colours = {label: segments[name].colour for label, name in label_map.names.items() if name in segments}
    write_itksnap_labels(folder / "labels.txt", label_map.names, colours)
    volumes = {
        found.label: f"{readable_ml(found.volume_ml, found.outcome)} mL"
        for found in done.findings.findings
        if found.volume_ml is not None
    }
    picture = overlay_png(done.volume, label_map, segments, volumes)
    (folder / "overlay.png").write_bytes(picture)


def _new_folder(out: Path, item: Routed) -> Path:
    """A folder for this scan; nothing that lies there already is touched."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{series_name(item.stack.frames[0].header)}_{item.model}").strip("_.")[:80]
    for n in range(1, 10_000):
        folder = out / (name if n == 1 else f"{name}-{n}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(17, "too many results of this name", str(out / name))


def _report(part: Stack | Unstackable, outcome: str, reason: str, detail: str) -> ScanReport:
    uid = part.frames[0].header.series_instance_uid if part.frames else ""
    return ScanReport(uid, series_name(part.frames[0].header), len(part.frames), outcome, reason, detail)


def _line(finding: Finding) -> VolumeLine:
    return VolumeLine(finding.segment.label, str(finding.outcome), finding.volume_ml, finding.flags)


def _tell(found: DicomFolder, reports: Sequence[ScanReport]) -> None:
    for text in found.notes:
        note(text)
    for report in reports:
        if report.outcome != "segmented":
            continue
        say(f"{harmless(report.series)}: {report.model} on {report.backend}, {report.seconds.get('total', 0.0):.1f} s")
        rows = ((v.segment, _ml(v), v.outcome, "; ".join(v.flags)) for v in report.volumes)
        say(table(("organ", "mL", "outcome", "remarks"), rows, "  "))
        say(f"  {report.folder}: {', '.join(report.files)}\n")
    if reports:
        say("what became of each stack")
        each = ((r.series, r.frames, _became(r), r.model or r.reason, r.detail) for r in reports)
        say(table(("series", "frames", "outcome", "model or reason", "detail"), each, "  "))
    if found.skipped:
        say(left_out(found.skipped))
    if not reports:
        say("there is no DICOM image in the folder")


def _became(report: ScanReport) -> str:
    """The outcome in words: that nothing chose a stack is not that it was tried in vain."""
    return {"ineligible": "no model for it", "rejected": "cannot serve", "failed": "no room or time"}.get(
        report.outcome, report.outcome
    )


def _ml(line: VolumeLine) -> str:
    return "" if line.volume_ml is None else readable_ml(line.volume_ml, line.outcome)
