"""Engines that must be built first: in the background, one at a time; taken when certified and faster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Semaphore, get_native_id
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from engines.backends.base import REFERENCE, Availability, Engine, Placement
from engines.backends.tensorrt import TensorRtBackend
from engines.backends.torch import TorchBackend
from engines.errors import BackendUnavailable
from engines.inference import building, fastest
from engines.inference.building import Build, Builder, Built, is_built
from engines.inference.choice import Policy
from engines.inference.fastest import FastestSegmenter, open_fastest
from engines.inference.segmenter import Segmentation
from engines.inference.trial import Trial
from engines.model.bundle import Bundle
from engines.volume import Grid, LabelMap, Volume

COMPILED = Engine("tensorrt", "float16")
SPEEDS = {COMPILED: 0.1, REFERENCE: 0.9}
WAIT_S = 20.0


class Compiling:
    """A backend whose networks are files in the cache folder, which take as long as somebody says to come."""

    go: ClassVar[Event]
    fault: ClassVar[Exception | None]
    built: ClassVar[list[tuple[str, str]]]
    niceness: ClassVar[set[int]]
    begun: ClassVar[Semaphore]
    """One up for each network that is begun."""

    @classmethod
    def is_available(cls, _device: str, _precision: str = "float32") -> Availability:
        return Availability(True, "on this card")

    @classmethod
    def _path(cls, plan: Any, weights: Any, placement: Placement) -> Path:
        assert placement.cache is not None
        return placement.cache / f"{len(weights)}-{placement.precision}-{placement.answer}-{plan.patch_size}"

    @classmethod
    def is_built(cls, plan: Any, weights: Any, placement: Placement) -> bool:
        return placement.cache is not None and cls._path(plan, weights, placement).is_file()

    @classmethod
    def build(cls, plan: Any, weights: Any, placement: Placement) -> None:
        cls.begun.release()
        assert cls.go.wait(WAIT_S)
        if cls.fault is not None:
            raise cls.fault
        cls.niceness.add(os.getpriority(os.PRIO_PROCESS, get_native_id()))
        cls.built.append((placement.precision, placement.answer))
        cls._path(plan, weights, placement).write_bytes(b"engine")


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Compiling]]:
    Compiling.go, Compiling.fault, Compiling.built, Compiling.niceness = Event(), None, [], set()
    Compiling.begun = Semaphore(0)
    backends: dict[str, Any] = {"tensorrt": Compiling, "torch": TorchBackend}
    monkeypatch.setattr("engines.inference.choice.backend_class", backends.__getitem__)
    monkeypatch.setattr(building, "backend_class", backends.__getitem__)
    yield Compiling
    Compiling.go.set()  # no thread outlives its test for long


class Told:
    """Hears of builds, and remembers them until they are asked for."""

    def __init__(self) -> None:
        self.builds: list[Build] = []
        self.heard: list[Built] = []
        self.builder = Builder(self.heard.append)
        begin = self.builder.begin

        def remembered(*told: Any) -> Build:
            self.builds.append(begin(*told))
            return self.builds[-1]

        self.builder.begin = remembered  # type: ignore[method-assign]

    def ended(self) -> None:
        for build in self.builds:
            build.join(WAIT_S)
            assert build.ended


def opener(_bundle: Any, engine: Engine, _placement: Placement) -> Any:
    """Labels what is bright."""

    def segment(volume: Volume, _progress: Any = None) -> Segmentation:
        values: dict[str, Any] = dict.fromkeys(Segmentation.__dataclass_fields__, "")
        labels = (volume.voxels > 0.5).astype(np.uint8)
        values |= {"backend": engine.backend, "precision": engine.precision, "seconds": {}}
        return Segmentation(**{**values, "label_map": LabelMap(volume.grid, labels, {1: "liver", 2: "spleen"})})

    return SimpleNamespace(segment=segment, close=lambda: None)


@pytest.fixture
def start(
    compiling: type[Compiling], make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., FastestSegmenter]:
    def measure(bundle: Bundle, engine: Engine, placement: Placement) -> Trial:
        assert is_built(bundle, engine, placement), "measured before it was built"
        return Trial(SPEEDS[engine], 0.001)

    monkeypatch.setattr(fastest, "measure", measure)
    bundle = make_bundle()
    (tmp_path / "engines").mkdir()

    def opened(builder: Builder | None, cache: Path | None = tmp_path / "engines") -> FastestSegmenter:
        policy = Policy(engines=(COMPILED, REFERENCE), site=tmp_path / "engines")
        return open_fastest(bundle, policy, Placement(cache=cache), opener, builder)

    return opened


def serve(segmenter: FastestSegmenter) -> tuple[str, int]:
    """What served, and how many certificates were made afterwards."""
    image = np.zeros((20, 30, 30), np.float32)
    image[:10, :10] = 1
    volume = Volume(Grid(image.shape, np.eye(4)), image, "MR")
    result = segmenter.segment(volume)
    return f"{result.backend} {result.precision}", len(segmenter.learn(volume, result))


def test_torch_serves_until_the_engine_is_built_and_certified(
    start: Callable[..., FastestSegmenter], compiling: type[Compiling]
) -> None:
    told = Told()
    with start(told.builder) as segmenter:
        assert segmenter.reason.startswith("torch float32: taken")
        assert "tensorrt float16: is being built" in segmenter.reason
        assert not segmenter.waits
        assert serve(segmenter) == ("torch float32", 0)
        assert compiling.built == []

        compiling.go.set()
        told.ended()
        assert segmenter.waits
        assert serve(segmenter) == ("torch float32", 1)  # served by torch; measured and certified behind it
        assert serve(segmenter) == ("tensorrt float16", 0)
        assert segmenter.reason.startswith("tensorrt float16: taken, 0.1 s a patch, certified")
    (built,) = told.heard
    assert (built.model, built.engine, built.fault) == ("unit", COMPILED, "")
    assert compiling.built == [("float16", "logits")]


def test_what_is_built_and_certified_serves_at_once(
    start: Callable[..., FastestSegmenter], compiling: type[Compiling]
) -> None:
    compiling.go.set()
    told = Told()
    with start(told.builder) as segmenter:
        told.ended()
        serve(segmenter)
    again = Told()
    with start(again.builder) as segmenter:
        assert serve(segmenter) == ("tensorrt float16", 0)
    assert again.builds == []


def test_a_certified_engine_whose_file_is_gone_serves_once_it_is_built_again(
    start: Callable[..., FastestSegmenter], compiling: type[Compiling], tmp_path: Path
) -> None:
    compiling.go.set()
    told = Told()
    with start(told.builder) as segmenter:
        told.ended()
        serve(segmenter)
    for path in (tmp_path / "engines").glob("*-float16-*"):
        path.unlink()
    compiling.go.clear()
    with start(told.builder) as segmenter:
        assert serve(segmenter) == ("torch float32", 0)
        compiling.go.set()
        told.ended()
        assert serve(segmenter) == ("torch float32", 0)
        assert serve(segmenter) == ("tensorrt float16", 0)


def test_a_build_that_ends_the_process_is_not_begun_again(
    start: Callable[..., FastestSegmenter], compiling: type[Compiling], tmp_path: Path
) -> None:
    """While it builds, a file says so; whoever finds it without its process lets torch serve."""
    told = Told()
    with start(told.builder):
        assert compiling.begun.acquire(timeout=WAIT_S)
        (path,) = (tmp_path / "engines").glob("*.trying")
        left = path.read_bytes()
        compiling.go.set()
        told.ended()
        assert not path.exists()
    for built in (tmp_path / "engines").glob("*-float16-*"):
        built.unlink()
    path.write_bytes(left)
    again = Told()
    with start(again.builder) as segmenter:
        assert "tensorrt float16: ended the process when it was built" in segmenter.reason
        assert serve(segmenter) == ("torch float32", 0)
    assert again.builds == []


@pytest.mark.parametrize(
    "fault",
    [
        BackendUnavailable("the graph is refused"),
        OSError(28, "No space left on device"),
        RuntimeError("out of workspace"),
        ValueError("a tensor of no size"),
    ],
)
def test_what_cannot_be_built_is_said_and_torch_goes_on(
    start: Callable[..., FastestSegmenter], compiling: type[Compiling], fault: Exception
) -> None:
    compiling.fault = fault
    compiling.go.set()
    told = Told()
    with start(told.builder) as segmenter:
        told.ended()
        assert serve(segmenter) == ("torch float32", 0)
        assert f"tensorrt float16: cannot be built: {fault}" in segmenter.reason
        assert not segmenter.waits
    assert told.heard[0].fault == f"cannot be built: {fault}"


def test_what_is_slower_is_not_even_tried(
    start: Callable[..., FastestSegmenter], compiling: type[Compiling], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SPEEDS, COMPILED, 1.5)
    compiling.go.set()
    told = Told()
    with start(told.builder) as segmenter:
        told.ended()
        assert serve(segmenter) == ("torch float32", 0)
        assert serve(segmenter) == ("torch float32", 0)
        assert not segmenter.waits


def test_where_nobody_builds_or_nothing_is_kept_it_is_left_out(
    start: Callable[..., FastestSegmenter], compiling: type[Compiling]
) -> None:
    told = Told()
    for segmenter in (start(None), start(told.builder, None)):
        assert "tensorrt float16: not built yet" in segmenter.reason
        assert serve(segmenter) == ("torch float32", 0)
        segmenter.close()
    assert told.builds == []


def test_one_is_built_at_a_time_and_with_a_low_priority(
    make_bundle: Callable[..., Bundle], compiling: type[Compiling], tmp_path: Path
) -> None:
    told, bundle = Told(), make_bundle()
    before = os.getpriority(os.PRIO_PROCESS, 0)
    for engine in (COMPILED, Engine("tensorrt")):
        told.builder.begin(bundle, engine, Placement(cache=tmp_path))
    assert all(build.daemon for build in told.builds)
    assert compiling.begun.acquire(timeout=WAIT_S)
    assert not compiling.begun.acquire(timeout=0.2)  # the second waits for the first
    compiling.go.set()
    told.ended()
    assert [each.engine.precision for each in told.heard] == [each[0] for each in compiling.built]
    assert compiling.niceness == {max(10, before)}
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_only_tensorrt_builds(make_bundle: Callable[..., Bundle]) -> None:
    assert isinstance(TensorRtBackend, building.Compiler)
    for engine in (REFERENCE, Engine("openvino"), Engine("openvino", "bfloat16")):
        assert is_built(make_bundle(), engine, Placement())
