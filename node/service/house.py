"""The house: journal, spool, models, codes and rules of one node, opened from its Settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from engines.errors import BundleError
from engines.model.bundle import SHIPPED, Bundle, find_bundles
from node.config import Settings, software_version
from node.dicom.composition import ResultStyle
from node.domain.job import Destination
from node.domain.reasons import REASONS
from node.domain.routing import ModelFacts, ModelLimits, Rule
from node.domain.segments import SegmentDescription, load_segments
from node.errors import ConfigError
from node.monitor import metrics
from node.store.journal import Journal
from node.store.spool import Spool

PHANTOM = "phantom"
"""The model of the self-test: routed for its patient and AE title alone, in any configuration."""


@dataclass(frozen=True)
class House:
    """What the worker and the segmenter share. A context manager."""

    settings: Settings
    journal: Journal
    spool: Spool
    bundles: Mapping[str, Bundle]
    segments: Mapping[str, SegmentDescription]
    rules: tuple[Rule, ...]
    destinations: Mapping[str, Destination]
    config_digest: str

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Open all of it.

        Raises
        ------
        ConfigError
            Where a model does not load, is named but not there, or has a label without a row in the tables of segments.
        """
        bundles, segments = enabled_bundles(settings), segments_of(settings)
        check_codes(bundles, segments)
        rules = settings.rules()
        _check_models(rules, bundles)
        settings.node.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(
            settings=settings,
            journal=Journal.open(settings.journal_url),
            spool=Spool(settings.spool_folder, settings.spool.reserve_bytes),
            bundles=bundles,
            segments=segments,
            rules=rules,
            destinations=settings.destinations(),
            config_digest=config_digest(settings),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.spool.close()
        self.journal.close()

    @property
    def models(self) -> Mapping[str, ModelFacts]:
        """What routing must know of each model."""
        return {name: model_facts(bundle) for name, bundle in self.bundles.items()}

    @property
    def vocabulary(self) -> metrics.Vocabulary:
        """The label values of the metrics."""
        return metrics.Vocabulary(
            version=software_version(),
            model_set=",".join(f"{name}:{bundle.digest[:12]}" for name, bundle in sorted(self.bundles.items())),
            senders=[peer.name for peer in self.settings.peer],
            destinations=list(self.destinations),
            models=list(self.bundles),
            reasons=REASONS,
        )


def enabled_bundles(settings: Settings) -> dict[str, Bundle]:
    """The models that the configuration enables, by name, every file of them verified.

    Raises
    ------
    ConfigError
        Where one does not load, or `models.enabled` names one that is not there.
    """
    try:
        found = find_bundles([SHIPPED, *settings.models.folders])
    except BundleError as error:
        raise ConfigError(str(error)) from error
    for name in settings.models.enabled:
        if name not in found:
            known = ", ".join(found) or "none"
            raise ConfigError(f"models.enabled names {name!r}, which is not there; there are: {known}")
    return {name: bundle for name, bundle in found.items() if name in (settings.models.enabled or found)}


def segments_of(settings: Settings) -> dict[str, SegmentDescription]:
    """The rows of all tables of segments, by name; a later table replaces rows of an earlier one."""
    rows: dict[str, SegmentDescription] = {}
    for path in settings.segment_tables:
        try:
            rows |= load_segments(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from error
    return rows


def uncoded_labels(bundle: Bundle, coded: Collection[str]) -> list[str]:
    """The labels of a model that results could not name."""
    return [name for label, name in bundle.labels.items() if label not in bundle.unreported and name not in coded]


def check_codes(bundles: Mapping[str, Bundle], segments: Mapping[str, SegmentDescription]) -> None:
    """Every label of every enabled model must have its row, or the service does not open.

    Raises
    ------
    ConfigError
        Naming the model and the labels without a row.
    """
    for bundle in bundles.values():
        if missing := uncoded_labels(bundle, segments):
            raise ConfigError(
                f"segments.csv has no row for {', '.join(missing)} of the model {bundle.name}; add it to a table that "
                "models.segments names, or leave the model out of models.enabled"
            )


def _check_models(rules: Collection[Rule], bundles: Mapping[str, Bundle]) -> None:
    for rule in rules:
        if rule.model not in bundles:
            known = ", ".join(bundles) or "none"
            raise ConfigError(
                f"rule {rule.name!r} names the model {rule.model!r}, which is not enabled; known: {known}"
            )


def model_facts(bundle: Bundle) -> ModelFacts:
    """What routing must know of a model."""
    limits = bundle.limits
    return ModelFacts(
        name=bundle.name,
        digest=bundle.digest,
        modalities=bundle.modalities,
        limits=ModelLimits(
            min_slices=limits.min_slices,
            min_extent_mm=limits.min_extent_mm,
            max_extent_mm=limits.max_extent_mm,
            max_step_mm=limits.max_step_mm,
            min_age_years=limits.min_age_years,
        ),
        selftest_only=bundle.name == PHANTOM,
        channels=bundle.channels,
    )


def result_style(settings: Settings) -> ResultStyle:
    """What the site and this product write into every result."""
    node = settings.node
    return ResultStyle(
        research_use=node.research_use,
        uid_root=node.uid_root or None,
        manufacturer=node.manufacturer,
        model_name=node.model_name,
        serial=node.serial,
        software_version=software_version(),
        utc_offset=node.utc_offset,
        series_number_base=node.series_number_base,
        deployment=node.serial,
        preliminary=node.preliminary,
    )


def config_digest(settings: Settings) -> str:
    """SHA-256 over all that changes the content of results, the tables of segments too (RES-20)."""
    tables = "\n".join(path.read_text(encoding="utf-8") for path in settings.segment_tables)
    return settings.config_digest(tables)
