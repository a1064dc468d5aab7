"""How an engine comes to its certificate on a node, and that a wrong one never serves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.backends.base import REFERENCE, Availability, Engine, Placement
from engines.errors import BackendUnavailable, BundleError, OutOfDeviceMemory, RecordsError, UnsuitableVolume
from engines.inference import fastest
from engines.inference.choice import Policy
from engines.inference.fastest import FastestSegmenter, Happening, open_fastest
from engines.inference.segmenter import Segmentation
from engines.inference.trial import Trial
from engines.model.attempt import attempt_path
from engines.model.certificate import (
    REFERENCE_LIMITS,
    EngineKey,
    Limits,
    Verdict,
    add_record,
    certificates_path,
    parity_folder,
    read_records,
    refused,
    site_path,
)
from engines.nifti import write_volume
from engines.volume import Grid, LabelMap, Volume

FAST, MIDDLE = Engine("openvino", "bfloat16"), Engine("openvino")
SPEEDS = {FAST: 0.1, MIDDLE: 0.2, REFERENCE: 0.9}


class AnyBackend:
    """Runs everything."""

    @classmethod
    def is_available(cls, _device: str, _precision: str = "float32") -> Availability:
        return Availability(True, "on the processor")


def segmentation(volume: Volume, labels: Any, engine: Engine) -> Segmentation:
    values: dict[str, Any] = dict.fromkeys(Segmentation.__dataclass_fields__, "")
    values |= {"backend": engine.backend, "precision": engine.precision, "seconds": {}}
    return Segmentation(**{**values, "label_map": LabelMap(volume.grid, labels, {1: "liver", 2: "spleen"})})


class Works:
    """Opens engines that label what is bright; some of them wrongly, or not at all, as they are told."""

    def __init__(self) -> None:
        self.wrong: dict[Engine, int] = {}
        """Slices that an engine loses."""
        self.broken: dict[Engine, Exception] = {}
        self.fails: dict[Engine, Exception] = {}
        self.unmeasured: dict[Engine, Exception] = {}
        self.opened: list[Engine] = []
        self.open = 0
        self.measured: list[Engine] = []

    def __call__(self, _bundle: Any, engine: Engine, _placement: Placement) -> Any:
        if engine in self.broken:
            raise self.broken[engine]
        self.opened.append(engine)
        self.open += 1

        def segment(volume: Volume | Sequence[Volume], _progress: Any = None) -> Segmentation:
            if engine in self.fails:
                raise self.fails[engine]
            first = volume if isinstance(volume, Volume) else volume[0]
            labels = (first.voxels > 0.5).astype(np.uint8)
            labels[: self.wrong.get(engine, 0)] = 0
            return segmentation(first, labels, engine)

        def close() -> None:
            self.open -= 1

        def estimate(_grid: Grid) -> Any:
            return SimpleNamespace(seconds=10.0)

        return SimpleNamespace(segment=segment, estimate=estimate, close=close)

    def measure(self, _bundle: Any, engine: Engine, _placement: Placement) -> Trial:
        self.measured.append(engine)
        if engine in self.unmeasured:
            raise self.unmeasured[engine]
        return Trial(SPEEDS[engine], 0.001)


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> Works:
    made = Works()
    monkeypatch.setattr("engines.inference.choice.backend_class", lambda _name: AnyBackend)
    monkeypatch.setattr("engines.inference.trial.library_version", lambda backend, *_: f"{backend} 1.0")
    monkeypatch.setattr(fastest, "measure", made.measure)
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> Any:
    folder = tmp_path / "bundles" / "unit"
    return SimpleNamespace(
        name="unit",
        digest="d" * 64,
        folder=folder,
        labels={1: "liver", 2: "spleen"},
        channels=("MRI",),
        modalities=("MR",),
    )


Open = Callable[..., FastestSegmenter]


@pytest.fixture
def told() -> list[Happening]:
    return []


@pytest.fixture
def start(works: Works, bundle: Any, tmp_path: Path, told: list[Happening]) -> Open:
    def opened(site: Path | None = tmp_path / "site", **policy: Any) -> FastestSegmenter:
        return open_fastest(bundle, Policy(site=site, **policy), Placement(threads=2), works, tell=told.append)

    return opened


def died_over(site: Path, key: EngineKey) -> None:
    """What a process leaves that dies when it measures an engine."""
    when = '"doing": "measured", "begun_at": "2026-11-30T12:00:00Z"'
    attempt_path(site, key).write_text(f'{{"key": {json.dumps(asdict(key))}, {when}}}')


def bright(voxels: int = 3000) -> Volume:
    """A volume of which so many voxels are bright, in slices of 300."""
    image = np.zeros((20, 30, 30), np.float32)
    image[: voxels // 300, :10, :] = 1
    return Volume(Grid(image.shape, np.eye(4)), image, "MR")


def serve(segmenter: FastestSegmenter, volume: Volume) -> tuple[str, Any]:
    result = segmenter.segment(volume)
    return f"{result.backend} {result.precision}", segmenter.learn(volume, result)


def test_the_case_is_served_by_torch_and_the_next_by_what_was_certified_on_it(start: Open, works: Works) -> None:
    with start() as segmenter:
        assert "openvino bfloat16: not certified for this model" in segmenter.reason
        by, (certificate,) = serve(segmenter, bright())
        assert by == "torch float32"
        assert certificate.verdict.outcome == "passed"
        assert certificate.logits_error == 0.001
        assert certificate.reference.startswith("torch float32")
        by, made = serve(segmenter, bright())
        assert (by, made) == ("openvino bfloat16", ())
        assert segmenter.reason.startswith("openvino bfloat16: taken, 0.1 s a patch, certified against torch")
        assert certificate.number in segmenter.segment(bright()).backend_reason
        assert works.open == 1
    assert works.open == 0


def test_the_record_is_kept_and_nothing_is_measured_twice(start: Open, works: Works, tmp_path: Path) -> None:
    with start() as segmenter:
        serve(segmenter, bright())
    records = read_records(site_path(tmp_path / "site", "d" * 64))
    assert [each.key.precision for each in records.certificates] == ["bfloat16"]
    assert {each.seconds_per_patch for each in records.speeds} == set(SPEEDS.values())
    assert records.certificates[0].volumes[0].labels[0].voxels == 3000
    works.measured.clear()
    works.opened.clear()
    with start() as segmenter:
        assert serve(segmenter, bright())[0] == "openvino bfloat16"
    assert works.measured == []
    assert works.opened == [FAST]


def test_a_wrong_engine_is_refused_and_stays_refused(start: Open, works: Works) -> None:
    """The next in speed is tried on the same volume."""
    works.wrong[FAST] = 1
    with start() as segmenter:
        by, (refusal, certificate) = serve(segmenter, bright())
        assert by == "torch float32"
        assert (refusal.key.precision, refusal.verdict.outcome) == ("bfloat16", "failed")
        assert (certificate.key.precision, certificate.verdict.outcome) == ("float32", "passed")
        assert serve(segmenter, bright()) == ("openvino float32", ())
    del works.wrong[FAST]
    with start() as segmenter:
        assert serve(segmenter, bright()) == ("openvino float32", ())
        assert "openvino bfloat16: refused against torch" in segmenter.reason
        assert "liver: Dice 0.9474, below 0.995" in segmenter.reason


def test_where_every_other_is_wrong_torch_serves(start: Open, works: Works) -> None:
    works.wrong = {FAST: 1, MIDDLE: 20}
    with start() as segmenter:
        assert len(serve(segmenter, bright())[1]) == 2
        assert serve(segmenter, bright()) == ("torch float32", ())
    with start() as segmenter:
        assert serve(segmenter, bright()) == ("torch float32", ())


def test_an_answer_that_is_not_finite_refuses_the_engine(start: Open, works: Works) -> None:
    works.fails[FAST] = UnsuitableVolume("the network's answer is not finite")
    with start(engines=(FAST,)) as segmenter:
        _, (certificate,) = serve(segmenter, bright())
        assert certificate.verdict.reason == "the network's answer is not finite"
        assert serve(segmenter, bright()) == ("torch float32", ())


def test_a_sites_limits_decide(start: Open, works: Works) -> None:
    works.wrong[FAST] = 1
    with start(engines=(FAST,), limits=Limits(dice=0.9, volume_percent=None)) as segmenter:
        serve(segmenter, bright())
        assert serve(segmenter, bright())[0] == "openvino bfloat16"


def test_a_volume_that_shows_nothing_certifies_nothing(start: Open, works: Works, tmp_path: Path) -> None:
    with start() as segmenter:
        for _ in range(5):
            assert serve(segmenter, bright(900)) == ("torch float32", ())
        works.opened.clear()
        assert serve(segmenter, bright(900)) == ("torch float32", ())
        assert serve(segmenter, bright()) == ("torch float32", ())  # until the next start
        assert works.opened == []
    assert read_records(site_path(tmp_path / "site", "d" * 64)).certificates == ()
    with start() as segmenter:
        assert len(serve(segmenter, bright())[1]) == 1


def test_volumes_beside_the_bundle_certify_when_it_is_opened(start: Open, works: Works, bundle: Any) -> None:
    parity_folder(bundle.folder).mkdir(parents=True)
    write_volume(parity_folder(bundle.folder) / "one.nii.gz", bright())
    write_volume(parity_folder(bundle.folder) / "two_0000.nii.gz", bright(6000))
    with start() as segmenter:
        assert segmenter.reason.startswith("openvino bfloat16: taken")
        (certificate,) = (each.certificate for each in segmenter.candidates if each.certificate)
        assert [each.labels[0].voxels for each in certificate.volumes] == [3000, 6000]
        assert serve(segmenter, bright()) == ("openvino bfloat16", ())
    works.opened.clear()
    with start():
        assert works.opened == [FAST]


def test_a_broken_volume_beside_the_bundle_is_named(start: Open, bundle: Any) -> None:
    parity_folder(bundle.folder).mkdir(parents=True)
    (parity_folder(bundle.folder) / "one.nii.gz").write_bytes(b"no image")
    with pytest.raises(BundleError, match=r"one\.nii\.gz"):
        start()


def test_without_a_site_nothing_is_measured_tried_or_written(
    start: Open, works: Works, tmp_path: Path, bundle: Any
) -> None:
    """The first that came with a certificate is taken; torch where none did."""
    with start(site=None) as segmenter:
        assert not segmenter.waits
        assert serve(segmenter, bright()) == ("torch float32", ())
    assert works.measured == []
    assert not (tmp_path / "site").exists()
    assert not certificates_path(bundle.folder).exists()
    with start() as segmenter:
        (certificate,) = serve(segmenter, bright())[1]
    add_record(certificates_path(bundle.folder), certificate)
    works.measured.clear()
    with start(site=None) as segmenter:
        assert serve(segmenter, bright()) == ("openvino bfloat16", ())
        assert segmenter.reason.endswith("torch float32: not measured here")
    assert works.measured == []


def test_an_engine_that_fails_its_self_test_is_passed_over(start: Open, works: Works) -> None:
    with start() as segmenter:
        serve(segmenter, bright())
    works.broken[FAST] = BackendUnavailable("openvino bfloat16: self-test failed: logits off by 9")
    with start() as segmenter:
        assert "self-test failed: logits off by 9" in segmenter.reason
        by, made = serve(segmenter, bright())
        assert (by, [each.key.precision for each in made]) == ("torch float32", ["float32"])


def test_no_room_on_the_device_is_no_verdict(start: Open, works: Works) -> None:
    works.fails[FAST] = OutOfDeviceMemory("full")
    with start(engines=(FAST,)) as segmenter:
        assert serve(segmenter, bright()) == ("torch float32", ())
    del works.fails[FAST]
    with start(engines=(FAST,)) as segmenter:
        assert len(serve(segmenter, bright())[1]) == 1


def test_a_faster_one_is_held_against_torch_whatever_serves(start: Open, works: Works) -> None:
    with start(engines=(MIDDLE, REFERENCE)) as segmenter:
        serve(segmenter, bright())
    works.wrong[MIDDLE] = 1  # it serves, but it is no reference
    with start() as segmenter:
        by, (certificate,) = serve(segmenter, bright())
        assert by == "openvino float32"
        assert certificate.volumes[0].equal_voxels == 1.0
        assert serve(segmenter, bright())[0] == "openvino bfloat16"


def test_one_engine_alone_is_not_measured(start: Open, works: Works) -> None:
    with start(engines=(REFERENCE,)) as segmenter:
        assert segmenter.reason == "torch float32: taken, the reference, not verified against nnunetv2 here"
    assert works.measured == []


def test_nothing_serves(start: Open, works: Works) -> None:
    works.broken = dict.fromkeys(SPEEDS, BackendUnavailable("no such card"))
    with pytest.raises(BackendUnavailable, match=r"no engine serves unit: .*torch float32: no such card"):
        start()


FAULTS = [
    RuntimeError("CUDA error: an illegal memory access"),
    ValueError("x"),
    OSError(5, "x"),
    SystemError("x"),
    MemoryError(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
@pytest.mark.parametrize("where", ["measured", "opened", "asked"])
def test_whatever_an_engine_on_trial_raises_leaves_it_out_and_no_more(
    start: Open, works: Works, told: list[Happening], fault: Exception, where: str
) -> None:
    """Until the next start; the next in speed is tried in its place."""
    {"measured": works.unmeasured, "opened": works.broken, "asked": works.fails}[where][FAST] = fault
    with start() as segmenter:
        by, made = serve(segmenter, bright())
        assert (by, [each.key.precision for each in made]) == ("torch float32", ["float32"])
        assert serve(segmenter, bright()) == ("openvino float32", ())
        assert type(fault).__name__ in segmenter.reason
    assert [(each.what, each.engine) for each in told] == [("not tried", FAST), ("certified", MIDDLE)]
    for each in (works.unmeasured, works.broken, works.fails):
        each.clear()
    with start() as segmenter:
        assert [each.key.precision for each in serve(segmenter, bright())[1]] == ["bfloat16"]


@pytest.fixture
def certified(start: Open) -> Open:
    """The fastest engine has its certificate."""
    with start() as segmenter:
        serve(segmenter, bright())
    return start


@pytest.mark.parametrize(
    "fault", [UnsuitableVolume("the network's answer is not finite"), BackendUnavailable("inference failed")], ids=repr
)
def test_where_the_engine_fails_in_a_case_the_reference_does_it(
    certified: Open, works: Works, told: list[Happening], fault: Exception
) -> None:
    with certified() as segmenter:
        told.clear()
        works.fails[FAST] = fault
        result = segmenter.segment(bright())
        assert (result.backend, result.label_map.labels.sum()) == ("torch", 3000)
        assert result.backend_reason.startswith("torch float32: taken")
        assert f"openvino bfloat16: failed in a case: {fault}" in result.backend_reason
        assert [(each.what, each.engine, each.reason) for each in told] == [("failed", FAST, str(fault))]
        assert segmenter.segment(bright()).backend == "torch"
        assert works.open == 1
    assert works.open == 0


def test_what_the_reference_refuses_too_is_the_scans_fault(
    certified: Open, works: Works, told: list[Happening]
) -> None:
    """The engine goes on serving."""
    with certified() as segmenter:
        told.clear()
        works.fails = dict.fromkeys(SPEEDS, UnsuitableVolume("every voxel is 0"))
        with pytest.raises(UnsuitableVolume, match="every voxel"):
            segmenter.segment(bright())
        assert segmenter.reason.startswith("torch float32: taken")  # what is open, not what will be
        works.fails.clear()
        result = segmenter.segment(bright())
        assert (result.backend, result.precision) == ("openvino", "bfloat16")
    assert told == []


def test_no_room_for_the_reference_is_no_verdict_and_tried_again(certified: Open, works: Works) -> None:
    with certified() as segmenter:
        works.fails[FAST] = UnsuitableVolume("not finite")
        works.broken[REFERENCE] = OutOfDeviceMemory("full")
        with pytest.raises(OutOfDeviceMemory):
            segmenter.segment(bright())
        works.broken.clear()
        assert segmenter.segment(bright()).backend == "torch"


def test_no_room_to_open_passes_an_engine_over_and_the_reason_is_of_the_one_that_serves(
    certified: Open, works: Works
) -> None:
    works.broken[FAST] = OutOfDeviceMemory("no room on the card")
    with certified() as segmenter:
        assert segmenter.reason.startswith("torch float32: taken")
        assert "openvino bfloat16: no room on the card" in segmenter.reason


def test_no_room_for_the_reference_is_for_later(start: Open, works: Works) -> None:
    works.broken[REFERENCE] = OutOfDeviceMemory("no room on the card")
    with pytest.raises(OutOfDeviceMemory):
        start()


@pytest.mark.parametrize("fault", [OutOfDeviceMemory("full"), RuntimeError("x")])
def test_a_reference_that_cannot_be_measured_serves_all_the_same(start: Open, works: Works, fault: Exception) -> None:
    works.unmeasured[REFERENCE] = fault
    with start() as segmenter:
        assert serve(segmenter, bright())[0] == "torch float32"


def test_no_room_for_the_volumes_beside_the_bundle_leaves_it_to_the_next_scan(
    start: Open, works: Works, bundle: Any, told: list[Happening]
) -> None:
    parity_folder(bundle.folder).mkdir(parents=True)
    write_volume(parity_folder(bundle.folder) / "one.nii.gz", bright())
    works.fails[REFERENCE] = OutOfDeviceMemory("full")
    with start() as segmenter:
        assert [each.what for each in told] == ["not tried"]
        works.fails.clear()
        assert len(serve(segmenter, bright())[1]) == 1


def test_certificates_made_at_the_start_are_told(start: Open, works: Works, bundle: Any, told: list[Happening]) -> None:
    parity_folder(bundle.folder).mkdir(parents=True)
    write_volume(parity_folder(bundle.folder) / "one.nii.gz", bright())
    works.wrong[FAST] = 1
    with start():
        assert [(each.what, each.engine) for each in told] == [("refused", FAST), ("certified", MIDDLE)]


def _corrupt(path: Path) -> None:
    path.write_text('{"format": 1, "certif')


def _of_tomorrow(path: Path) -> None:
    path.write_text('{"format": 2}')


def _a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("spoil", [_corrupt, _of_tomorrow, _a_folder])
def test_where_the_sites_file_cannot_be_read_torch_serves_and_nothing_is_tried(
    start: Open, works: Works, tmp_path: Path, told: list[Happening], spoil: Callable[[Path], None]
) -> None:
    own = site_path(tmp_path / "site", "d" * 64)
    own.parent.mkdir()
    spoil(own)
    with start() as segmenter:
        for _ in range(2):
            assert serve(segmenter, bright()) == ("torch float32", ())
    assert works.measured == []
    assert [(each.what, each.engine) for each in told] == [("not kept", None)]
    assert str(own) in told[0].reason


def test_where_the_sites_file_cannot_be_written_torch_serves_and_nothing_more_is_tried(
    start: Open, works: Works, told: list[Happening], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be kept cannot be looked up either: no result names a certificate that is nowhere."""
    with start() as segmenter:

        def full(*_: Any) -> None:
            raise RecordsError("cannot be written: No space left on device")

        monkeypatch.setattr(fastest, "add_record", full)
        for _ in range(2):
            assert serve(segmenter, bright()) == ("torch float32", ())
        assert works.opened.count(FAST) == 1
    assert [each.what for each in told] == ["not kept"]


def test_an_engine_that_ended_the_process_is_not_tried_again(
    start: Open, works: Works, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in a file while it is tried; torch serves until that is deleted, or the library is another one."""
    seen: list[Path] = []
    measure = works.measure

    def watched(*told: Any) -> Trial:
        seen.extend((tmp_path / "site").glob("*.trying"))
        return measure(*told)

    monkeypatch.setattr(fastest, "measure", watched)
    with start() as segmenter:
        serve(segmenter, bright())
    left = attempt_path(tmp_path / "site", next(each.key for each in segmenter.candidates if each.engine == FAST))
    assert left in seen
    assert not list((tmp_path / "site").glob("*.trying"))
    key = next(each.key for each in segmenter.candidates if each.engine == FAST)
    died_over(tmp_path / "site", key)
    with start() as segmenter:
        assert "openvino bfloat16: ended the process when it was measured" in segmenter.reason
        assert serve(segmenter, bright())[0] == "torch float32"
        assert serve(segmenter, bright())[0] == "openvino float32"
    monkeypatch.setattr("engines.inference.trial.library_version", lambda backend, *_: f"{backend} 1.1")
    with start() as segmenter:
        assert [each.key.precision for each in serve(segmenter, bright())[1]] == ["bfloat16"]
    assert not left.exists()


def test_a_reference_that_failed_against_nnunetv2_serves_nothing(start: Open, works: Works, bundle: Any) -> None:
    """Neither do engines that were held against it; the mend is said. Whatever version of torch found it."""
    with start() as segmenter:
        key = next(each.key for each in segmenter.candidates if each.engine == REFERENCE)
        serve(segmenter, bright())
    failed = refused("unit", replace(key, library="torch 0.9"), "nnunetv2 2.8.1", REFERENCE_LIMITS, "liver: Dice 0.5")
    add_record(certificates_path(bundle.folder), failed)
    works.opened.clear()
    with pytest.raises(BundleError, match=r"nnunetv2 2\.8\.1 .*Dice 0\.5.*import the model again, or delete .*json"):
        start()
    assert works.opened == []
    better = replace(failed, key=key, verdict=Verdict("passed", "equal"), made_at=failed.made_at + timedelta(days=1))
    add_record(certificates_path(bundle.folder), better)
    with start() as segmenter:
        assert serve(segmenter, bright())[0] == "openvino bfloat16"


def test_how_long_a_trial_may_take(start: Open, works: Works) -> None:
    """10 s with torch: both engines may be tried, which are 9 and 4.5 times as fast."""
    with start() as segmenter:
        assert segmenter.trial_seconds(bright().grid) == pytest.approx(10.0 / 9 + 20.0 / 9)
        serve(segmenter, bright())
        assert segmenter.trial_seconds(bright().grid) == pytest.approx(90.0)  # nothing waits; torch would be asked
