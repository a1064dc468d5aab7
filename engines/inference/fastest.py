"""A model, open with the fastest engine that may serve, and how an engine comes to its certificate on a node.

An engine without a certificate for this bundle, library and device is held against torch in float32: on the volumes
that lie beside the bundle when it is opened, else on the next volume that was segmented here, once that is served.
An engine that must be built first is left out until it is: that happens in the background, while another one serves.
One that fails in a case is left out from then on, and the reference does that case again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from engines.backends.base import REFERENCE, Engine, Placement
from engines.backends.faults import first_line
from engines.errors import (
    ENGINE_FAULTS,
    LIBRARY_FAULTS,
    BackendUnavailable,
    BundleError,
    EngineError,
    RecordsError,
    UnsuitableVolume,
)
from engines.inference.building import Build, Builder, is_built
from engines.inference.cases import find_cases, only_or_all
from engines.inference.choice import (
    Candidate,
    Policy,
    candidates,
    decide,
    own_records,
    reason_for,
    refusal,
    standing,
    waiting,
)
from engines.inference.estimate import Estimate
from engines.inference.segmenter import Segmentation, Segmenter
from engines.inference.trial import Answered, OpenSegmenter, held_against_reference, measure
from engines.model.attempt import Doing, attempt
from engines.model.bundle import Bundle
from engines.model.certificate import Certificate, Speed, add_record, parity_folder, site_path
from engines.volume import Grid, Volume

_FRUITLESS = 5
"""So many volumes that show nothing are tried; then an engine waits for the next start."""


What = Literal["certified", "refused", "not tried", "failed", "not kept"]


@dataclass(frozen=True)
class Happening:
    """What became of an engine, for whoever keeps a log."""

    what: What
    """`failed`: in a case; `not kept`: certificates and speeds cannot be read or written, so nothing is tried."""
    model: str
    engine: Engine | None
    """None: it concerns all of them."""
    reason: str


Tell = Callable[[Happening], None]


class OpenEngine(Protocol):
    """How a bundle is opened with one engine: `Segmenter.open`."""

    def __call__(self, bundle: Bundle, engine: Engine, placement: Placement) -> OpenSegmenter:
        """Open it and run its self-test; raises BackendUnavailable where it cannot serve."""
        ...


def open_fastest(
    bundle: Bundle,
    policy: Policy,
    placement: Placement,
    open_engine: OpenEngine | None = None,
    builder: Builder | None = None,
    *,
    tell: Tell | None = None,
) -> FastestSegmenter:
    """Open a bundle with the fastest engine that may serve.

    Parameters
    ----------
    builder
        Builds what must be built, in the background; None: only what is built already is considered.
    tell
        Told what becomes of each engine.

    Raises
    ------
    BackendUnavailable
        Where none can, with the reason of each.
    OutOfDeviceMemory
        Where not even the reference has room now.
    BundleError
        Where weights, or the certificates beside the bundle, are broken; where its reference failed against nnunetv2.
    UnsuitableVolume
        Where a volume that lies beside the bundle cannot be read.
    """
    chosen = FastestSegmenter(bundle, policy, placement, open_engine or Segmenter.open, builder, tell=tell)
    chosen.start()
    return chosen


class FastestSegmenter:
    """A bundle, open with the fastest engine that may serve; it changes engines when a faster one is certified.

    One volume at a time; not to be called from two threads at once. A context manager.
    """

    def __init__(
        self,
        bundle: Bundle,
        policy: Policy,
        placement: Placement,
        open_engine: OpenEngine,
        builder: Builder | None = None,
        *,
        tell: Tell | None = None,
    ) -> None:
        self.bundle = bundle
        self._policy, self._placement, self._open_engine = policy, placement, open_engine
        self._limits, self._builder, self._tell = policy.limits, builder, tell or _tell_nobody
        self._found = candidates(bundle, policy, placement)
        self._serving: tuple[Engine, OpenSegmenter] | None = None
        self._closed = False
        self._builds: tuple[tuple[Candidate, Build], ...] = ()
        self._tries = _FRUITLESS

    @property
    def reason(self) -> str:
        """Which engine serves, by what certificate, and what is to be said of each other."""
        if self._serving is None:
            return decide(self._found).reason
        return reason_for(self._found, self._serving[0])

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """What is known of each engine by now."""
        return self._found

    @property
    def waits(self) -> bool:
        """Whether `learn` would try something, or take in what was built."""
        return any(build.ended for _, build in self._builds) or (self._tries > 0 and bool(self._waiting()))

    def start(self) -> None:
        """Begin to build, measure what never was here, certify on the volumes beside the bundle, open the fastest.

        Where nothing is kept nothing is measured, as each start would do it again: the first that may serve is taken.
        """
        if why := refusal(self.bundle, self._policy):
            raise BundleError(f"{self.bundle.name} must not serve: {why}")
        if fault := own_records(self.bundle, self._policy)[1]:
            self._keep_nothing(fault)
        self._found = tuple(self._built_first(each) for each in self._found)
        if self._policy.site is not None and sum(each.usable for each in self._found) + len(self._builds) > 1:
            for each in self._found:
                self._measure(each)
        self._certify_beside()
        self._open_decided()

    def segment(
        self, volume: Volume | Sequence[Volume], progress: Callable[[float], None] | None = None
    ) -> Segmentation:
        """Label every voxel, as `Segmenter.segment`; the reason names engine and certificate.

        Where an engine other than the reference fails, or refuses the volume, the reference segments it again: only
        what that refuses too is the volume's fault.
        """
        engine, opened = self._served()
        try:
            result = opened.segment(volume, progress)
        except (UnsuitableVolume, BackendUnavailable) as error:
            if engine == REFERENCE:
                raise
            result = self._by_reference(engine, error, volume, progress)
        return replace(result, backend_reason=self.reason)

    def estimate(self, grid: Grid) -> Estimate:
        """What a case on this grid will take with the engine that serves, beyond its volume."""
        return self._served()[1].estimate(grid)

    def trial_seconds(self, grid: Grid) -> float:
        """What `learn` may take at the longest on this grid, from what was measured; 0 where nothing was."""
        engine, opened = self._served()
        told = opened.estimate(grid).seconds
        own = self._candidate(engine).seconds_per_patch
        tried = (*self._waiting(), *(() if engine == REFERENCE else (self._candidate(REFERENCE),)))
        if told is None or not own:
            return 0.0
        return told * sum(each.seconds_per_patch or own for each in tried) / own

    def learn(self, volume: Volume | Sequence[Volume], result: Segmentation) -> tuple[Certificate, ...]:
        """Hold engines that wait for a certificate against the reference, on a volume that has been served.

        What was built meanwhile is measured first. Fastest first; the first that passes serves from now on. Nothing of
        the volume is kept but a digest.

        Parameters
        ----------
        result
            What `segment` answered.

        Returns
        -------
        The certificates that were made, the last one perhaps passed.

        Raises
        ------
        EngineError
            Where the reference could not answer; its libraries' own errors fly too. What served goes on serving.
        """
        self._take_in()
        if not self.waits:
            return ()
        volumes = (volume,) if isinstance(volume, Volume) else tuple(volume)
        self._tries -= 1
        by_reference = (result.backend, result.precision) == (REFERENCE.backend, REFERENCE.precision)
        made = self._certify(
            [Answered(volumes, result.label_map.labels)] if by_reference else self._answered([volumes])
        )
        self._tries += bool(made)
        self._open_decided()
        return made

    def close(self) -> None:
        """Give back what the device holds, for good."""
        self._close_serving()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _built_first(self, candidate: Candidate) -> Candidate:
        """The same; left out where it must be built first, which begins now."""
        if not candidate.usable or is_built(self.bundle, candidate.engine, self._placement):
            return candidate
        if self._builder is None or self._placement.cache is None or self._policy.site is None:
            return replace(candidate, usable=False, reason="not built yet: only a running node builds beside its work")
        self._builds += ((candidate, self._builder.begin(self.bundle, candidate.engine, self._placement)),)
        return replace(candidate, usable=False, reason="is being built")

    def _take_in(self) -> None:
        """What was built by now is measured; one that has its certificate already serves where it is the fastest."""
        ended = tuple(each for each in self._builds if each[1].ended)
        if not ended:
            return
        self._builds = tuple(each for each in self._builds if each not in ended)
        for candidate, build in ended:
            self._now(candidate, usable=not build.fault, reason=build.fault or candidate.reason)
            self._measure(self._candidate(candidate.engine))
        self._tries = _FRUITLESS
        self._open_decided()

    def _answered(self, images: Sequence[tuple[Volume, ...]]) -> list[Answered]:
        """What the reference says of volumes."""
        with closing(self._open_engine(self.bundle, REFERENCE, self._placement)) as reference:
            return [Answered(each, reference.segment(only_or_all(each)).label_map.labels) for each in images]

    def _certify(self, answered: Sequence[Answered]) -> tuple[Certificate, ...]:
        """Try what waits, fastest first, until one passes; volumes that show nothing leave no certificate."""
        made: list[Certificate] = []
        for candidate in self._waiting():
            certificate = self._tried(candidate, answered)
            if certificate is None:
                continue
            if certificate.verdict.outcome == "nothing judged" or not self._record(certificate):
                break
            self._now(
                candidate, certificate=certificate, standing=standing(candidate.engine, certificate, self._limits)
            )
            made.append(certificate)
            passed = certificate.verdict.outcome == "passed"
            self._report("certified" if passed else "refused", candidate.engine, certificate.verdict.reason)
            if passed:
                break
        return tuple(made)

    def _tried(self, candidate: Candidate, answered: Sequence[Answered]) -> Certificate | None:
        """The certificate of one engine; None where it cannot run after all, which is left out from then on."""
        with self._trial(candidate, "certified"):
            error = measure(self.bundle, candidate.engine, self._placement).logits_error
            with closing(self._open_engine(self.bundle, candidate.engine, self._placement)) as opened:
                return held_against_reference(self.bundle, candidate.key, opened, answered, self._limits, error=error)
        return None

    @contextmanager
    def _trial(self, candidate: Candidate, doing: Doing) -> Iterator[None]:
        """Try an engine that need not serve: whatever it raises leaves it out until the next start, and no more.

        A file says so meanwhile, lest one that ends the process do it at each start. The reference needs none: nothing
        else could serve in its place.
        """
        try:
            if candidate.engine == REFERENCE or self._policy.site is None:
                yield
                return
            with attempt(self._policy.site, candidate.key, doing):
                yield
        except RecordsError as error:
            self._keep_nothing(str(error))
        except ENGINE_FAULTS as error:
            self._left_out(candidate, error)

    def _left_out(self, candidate: Candidate, error: Exception) -> None:
        """The reference is left in all the same: whether it can serve shows when it must."""
        reason = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {first_line(error)}"
        if candidate.engine != REFERENCE:
            self._now(candidate, usable=False, reason=reason)
        self._report("not tried", candidate.engine, reason)

    def _measure(self, candidate: Candidate) -> None:
        """Learn an engine's speed, where it can run and its speed is not known yet."""
        if not candidate.usable or candidate.seconds_per_patch is not None or self._policy.site is None:
            return
        seconds: float | None = None
        with self._trial(candidate, "measured"):
            seconds = measure(self.bundle, candidate.engine, self._placement).seconds_per_patch
        if seconds is None:
            return
        self._record(Speed(candidate.key, self._placement.threads, seconds, datetime.now(UTC).replace(microsecond=0)))
        self._now(candidate, seconds_per_patch=seconds)

    def _open_decided(self) -> None:
        """Let the engine serve that the choice falls on; one that fails its self-test is passed over from now on."""
        while True:
            decided = decide(self._found)
            if decided.taken is None:
                raise BackendUnavailable(f"no engine serves {self.bundle.name}: {decided.reason}")
            if self._serving is not None and self._serving[0] == decided.taken.engine:
                return
            if (opened := self._opened(decided.taken)) is not None:
                self._close_serving()
                self._serving = (decided.taken.engine, opened)
                return

    def _opened(self, candidate: Candidate) -> OpenSegmenter | None:
        """None where it cannot be opened, and is left out; that the reference has no room now does not leave it out."""
        try:
            return self._open_engine(self.bundle, candidate.engine, self._placement)
        except BackendUnavailable as error:
            self._left_out(candidate, error)
            self._now(candidate, usable=False, reason=str(error))
        except ENGINE_FAULTS as error:
            if candidate.engine == REFERENCE:
                raise
            self._left_out(candidate, error)
        return None

    def _served(self) -> tuple[Engine, OpenSegmenter]:
        """The engine that the choice falls on, open."""
        if self._closed:
            raise BackendUnavailable(f"{self.bundle.name} was closed")
        self._open_decided()
        assert self._serving is not None
        return self._serving

    def _by_reference(
        self,
        engine: Engine,
        fault: EngineError,
        volume: Volume | Sequence[Volume],
        progress: Callable[[float], None] | None,
    ) -> Segmentation:
        """What the reference says of a volume at which the engine that serves failed.

        The engine serves no more, unless all it said was that the volume is unsuitable and the reference says so too.
        """
        self._close_serving()
        if isinstance(fault, BackendUnavailable):
            self._failed(engine, fault)
        self._serving = (REFERENCE, self._open_engine(self.bundle, REFERENCE, self._placement))
        result = self._serving[1].segment(volume, progress)
        if isinstance(fault, UnsuitableVolume):
            self._failed(engine, fault)
        return result

    def _failed(self, engine: Engine, fault: EngineError) -> None:
        self._now(self._candidate(engine), usable=False, reason=f"failed in a case: {fault}")
        self._report("failed", engine, str(fault))

    def _close_serving(self) -> None:
        """Whatever a library says of it: it serves no more."""
        closed, self._serving = self._serving, None
        if closed is not None:
            with suppress(*LIBRARY_FAULTS):
                closed[1].close()

    def _certify_beside(self) -> None:
        """Certify on the volumes beside the bundle; where the reference has no room for them, on the next scan."""
        folder = parity_folder(self.bundle.folder)
        if not self._waiting() or not folder.is_dir():
            return
        try:
            cases = find_cases(folder, len(self.bundle.channels))
            self._certify(self._answered([case.read(self.bundle.modalities[0]) for case in cases]))
        except UnsuitableVolume as error:
            raise BundleError(f"{error}: it stands beside {self.bundle.folder}; mend or remove it") from error
        except ENGINE_FAULTS as error:
            self._report("not tried", None, f"{REFERENCE} gave no answer: {error}")

    def _waiting(self) -> tuple[Candidate, ...]:
        """What may be tried: nothing where nothing is kept, as each start would try it again."""
        return () if self._policy.site is None else waiting(self._found)

    def _record(self, new: Certificate | Speed) -> bool:
        """Whether it is kept; where it is not, nothing more is tried."""
        if self._policy.site is None:
            return False
        try:
            add_record(site_path(self._policy.site, self.bundle.digest), new)
        except RecordsError as error:
            self._keep_nothing(str(error))
            return False
        return True

    def _keep_nothing(self, fault: str) -> None:
        self._policy = replace(self._policy, site=None)
        self._report("not kept", None, fault)

    def _report(self, what: What, engine: Engine | None, why: str) -> None:
        self._tell(Happening(what, self.bundle.name, engine, why))

    def _candidate(self, engine: Engine) -> Candidate:
        return next(each for each in self._found if each.engine == engine)

    def _now(self, candidate: Candidate, **changes: Any) -> None:
        """What is known of an engine has changed."""
        self._found = tuple(
            replace(each, **changes) if each.engine == candidate.engine else each for each in self._found
        )


def _tell_nobody(_: Happening) -> None:
    pass
