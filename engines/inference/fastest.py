"""A model, open with the fastest engine that may serve, and how an engine comes to its certificate on a node.

An engine without a certificate for this bundle, library and device is held against torch in float32: on the volumes
that lie beside the bundle when it is opened, else on the next volume that was segmented here, once that is served.
An engine that must be built first is left out until it is: that happens in the background, while another one serves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol, Self

from engines.backends.base import REFERENCE, Engine, Placement
from engines.errors import BackendUnavailable, BundleError, OutOfDeviceMemory, UnsuitableVolume
from engines.inference.building import Build, Builder, is_built
from engines.inference.cases import find_cases, only_or_all
from engines.inference.choice import Candidate, Policy, candidates, decide, standing, waiting
from engines.inference.estimate import Estimate
from engines.inference.segmenter import Segmentation, Segmenter
from engines.inference.trial import Answered, OpenSegmenter, held_against_reference, measure
from engines.model.bundle import Bundle
from engines.model.certificate import Certificate, Speed, add_record, parity_folder, site_path
from engines.volume import Grid, Volume

_FRUITLESS = 5
"""So many volumes that show nothing are tried; then an engine waits for the next start."""


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
) -> FastestSegmenter:
    """Open a bundle with the fastest engine that may serve.

    Parameters
    ----------
    builder
        Builds what must be built, in the background; None: only what is built already is considered.

    Raises
    ------
    BackendUnavailable
        Where none can, with the reason of each.
    BundleError
        Where weights or a file of certificates are broken.
    UnsuitableVolume
        Where a volume that lies beside the bundle cannot be read.
    """
    chosen = FastestSegmenter(bundle, policy, placement, open_engine or Segmenter.open, builder)
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
    ) -> None:
        self.bundle = bundle
        self._policy, self._placement, self._open_engine = policy, placement, open_engine
        self._limits, self._builder = policy.limits, builder
        self._found = candidates(bundle, policy, placement)
        self._serving: tuple[Engine, OpenSegmenter] | None = None
        self._builds: tuple[tuple[Candidate, Build], ...] = ()
        self._tries = _FRUITLESS

    @property
    def reason(self) -> str:
        """Which engine serves, by what certificate, and what is to be said of each other."""
        return decide(self._found).reason

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """What is known of each engine by now."""
        return self._found

    @property
    def waits(self) -> bool:
        """Whether `learn` would try something, or take in what was built."""
        return any(build.ended for _, build in self._builds) or (self._tries > 0 and bool(waiting(self._found)))

    def start(self) -> None:
        """Begin to build, measure what never was here, certify on the volumes beside the bundle, open the fastest.

        Where nothing is kept nothing is measured, as each start would do it again: the first that may serve is taken.
        """
        self._found = tuple(self._built_first(each) for each in self._found)
        if self._policy.site is not None and sum(each.usable for each in self._found) + len(self._builds) > 1:
            self._found = tuple(self._measured(each) for each in self._found)
        folder = parity_folder(self.bundle.folder)
        if waiting(self._found) and folder.is_dir():
            try:
                cases = find_cases(folder, len(self.bundle.channels))
                self._certify(self._answered([case.read(self.bundle.modalities[0]) for case in cases]))
            except UnsuitableVolume as error:
                raise BundleError(f"{error}: it stands beside {self.bundle.folder}; mend or remove it") from error
        self._open_decided()

    def segment(
        self, volume: Volume | Sequence[Volume], progress: Callable[[float], None] | None = None
    ) -> Segmentation:
        """Label every voxel, as `Segmenter.segment`; the reason names engine and certificate."""
        if self._serving is None:
            raise BackendUnavailable(f"{self.bundle.name} was closed")
        result = self._serving[1].segment(volume, progress)
        return replace(result, backend_reason=self.reason)

    def estimate(self, grid: Grid) -> Estimate:
        """What a case on this grid will take with the engine that serves, beyond its volume."""
        if self._serving is None:
            raise BackendUnavailable(f"{self.bundle.name} was closed")
        return self._serving[1].estimate(grid)

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
        BackendUnavailable, BundleError, OutOfDeviceMemory, UnsuitableVolume
            Where it could not be tried, or the certificate cannot be kept. What served goes on serving.
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
        """Give back what the device holds."""
        if self._serving is not None:
            self._serving[1].close()
        self._serving = None

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
        if self._builder is None or self._placement.cache is None:
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
            left_out = replace(candidate, usable=False, reason=build.fault)
            known = left_out if build.fault else self._measured(candidate)
            self._found = tuple(known if each.engine == known.engine else each for each in self._found)
        self._tries = _FRUITLESS
        self._open_decided()

    def _answered(self, images: Sequence[tuple[Volume, ...]]) -> list[Answered]:
        """What the reference says of volumes."""
        with closing(self._open_engine(self.bundle, REFERENCE, self._placement)) as reference:
            return [Answered(each, reference.segment(only_or_all(each)).label_map.labels) for each in images]

    def _certify(self, answered: Sequence[Answered]) -> tuple[Certificate, ...]:
        """Try what waits, fastest first, until one passes; volumes that show nothing leave no certificate."""
        made: list[Certificate] = []
        for candidate in waiting(self._found):
            certificate = self._tried(candidate, answered)
            if certificate is None:
                continue
            if certificate.verdict.outcome == "nothing judged":
                break
            self._record(certificate)
            self._now(
                candidate, certificate=certificate, standing=standing(candidate.engine, certificate, self._limits)
            )
            made.append(certificate)
            if certificate.verdict.outcome == "passed":
                break
        return tuple(made)

    def _tried(self, candidate: Candidate, answered: Sequence[Answered]) -> Certificate | None:
        """The certificate of one engine; None where it cannot run after all."""
        try:
            trial = measure(self.bundle, candidate.engine, self._placement)
            with closing(self._open_engine(self.bundle, candidate.engine, self._placement)) as opened:
                return held_against_reference(
                    self.bundle, candidate.key, opened, answered, self._limits, error=trial.logits_error
                )
        except (BackendUnavailable, OutOfDeviceMemory) as error:
            self._now(candidate, usable=False, reason=str(error))
            return None

    def _measured(self, candidate: Candidate) -> Candidate:
        """The same with its speed, where it can run and its speed is not known yet."""
        if not candidate.usable or candidate.seconds_per_patch is not None:
            return candidate
        try:
            seconds = measure(self.bundle, candidate.engine, self._placement).seconds_per_patch
        except (BackendUnavailable, OutOfDeviceMemory) as error:
            return replace(candidate, usable=False, reason=str(error))
        self._record(Speed(candidate.key, self._placement.threads, seconds, datetime.now(UTC).replace(microsecond=0)))
        return replace(candidate, seconds_per_patch=seconds)

    def _open_decided(self) -> None:
        """Let the engine serve that the choice falls on; one that fails its self-test is passed over from now on."""
        while True:
            taken = decide(self._found).taken
            if taken is None:
                raise BackendUnavailable(f"no engine serves {self.bundle.name}: {self.reason}")
            if self._serving is not None and self._serving[0] == taken.engine:
                return
            try:
                opened = self._open_engine(self.bundle, taken.engine, self._placement)
            except BackendUnavailable as error:
                self._now(taken, usable=False, reason=str(error))
                continue
            self.close()
            self._serving = (taken.engine, opened)
            return

    def _record(self, new: Certificate | Speed) -> None:
        if self._policy.site is not None:
            add_record(site_path(self._policy.site, self.bundle.digest), new)

    def _now(self, candidate: Candidate, **changes: Any) -> None:
        """What is known of an engine has changed."""
        self._found = tuple(
            replace(each, **changes) if each.engine == candidate.engine else each for each in self._found
        )
