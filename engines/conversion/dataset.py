"""nnU-Net's dataset.json, typed: the images that a network needs, and the labels or regions that it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engines.errors import BundleError


@dataclass(frozen=True)
class Region:
    """One output of a network of regions: a union of labels, which may overlap with other regions."""

    name: str
    labels: frozenset[int]
    """Of the training set; the region is all of them together."""
    painted: int
    """The label that the result holds where this region was found and no later one."""


@dataclass(frozen=True)
class Labels:
    """What dataset.json says of channels and labels."""

    names: Mapping[int, str] = field(default_factory=dict)
    """Of every label that the network gives, background left out."""
    channels: tuple[str, ...] = ()
    ignore_label: int | None = None
    regions: tuple[Region, ...] = ()
    """In nnU-Net's order, in which they are painted, later over earlier; empty: the network gives labels."""

    @property
    def outputs(self) -> int:
        """Channels of the network's answer: the regions, or background and the labels."""
        return len(self.regions) or len(self.names) + 1

    @property
    def region_order(self) -> tuple[int, ...]:
        """The label that each region paints."""
        return tuple(region.painted for region in self.regions)

    @property
    def foreground(self) -> tuple[int, ...]:
        """The labels of the training set: the second network of a cascade sees a channel for each."""
        united = frozenset[int]().union(*(region.labels for region in self.regions)) or frozenset(self.names)
        return tuple(sorted(united - {0}))

    def renamed(self, names: Mapping[int, str]) -> Labels:
        """The same labels under other names.

        Raises
        ------
        BundleError
            Where a number is no label, or two labels would have one name.
        """
        unknown = sorted(set(names) - set(self.names))
        if unknown:
            known = ", ".join(f"{number} {name}" for number, name in self.names.items())
            raise BundleError(f"label name (--label-name): {unknown[0]} is no label of the model; known: {known}")
        renamed = {**self.names, **names}
        for number, name in renamed.items():
            if list(renamed.values()).count(name) > 1:
                raise BundleError(f"label name (--label-name): {number}={name}: another label has that name")
        return replace(self, names=renamed)


def read_labels(dataset: Mapping[str, Any]) -> Labels:
    """Channels and labels of an nnU-Net dataset.json.

    Raises
    ------
    BundleError
        Where background is not 0, labels collide or leave a gap, or regions and their order do not fit each other.
    """
    listed = dataset.get("labels")
    channels = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(listed, Mapping) or not isinstance(channels, Mapping):
        raise BundleError("dataset.json: `labels` and `channel_names` must be there, as nnU-Net v2 writes them")
    values = {str(name): _label_values(str(name), value) for name, value in listed.items()}
    ignore = _ignore_label(values.pop("ignore", None), values)
    if set(values.pop("background", ())) != {0}:
        raise BundleError("dataset.json: labels: `background` must be there and be 0")
    names_of_channels = _channel_names(channels)
    # As nnU-Net decides it: a list of one label is that label.
    if not any(len(each) > 1 for each in values.values()):
        return Labels(_plain_names(values), names_of_channels, ignore)
    regions = _regions(values, dataset.get("regions_class_order"))
    return Labels(_painted_names(regions), names_of_channels, ignore, regions)


def _label_values(name: str, value: object) -> tuple[int, ...]:
    """The labels of a region, or the one label."""
    several: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    if not several or not all(_is_whole(each) for each in several):
        raise BundleError(f"dataset.json: labels: {name}: {value!r} is neither a whole number nor a list of them")
    return tuple(int(each) for each in several)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool) and str(value).isdecimal()


def _ignore_label(value: tuple[int, ...] | None, others: Mapping[str, tuple[int, ...]]) -> int | None:
    if value is None:
        return None
    last = max((label for labels in others.values() for label in labels), default=0)
    if value != (last + 1,):
        raise BundleError(
            f"dataset.json: labels: ignore: {list(value)} must be one label that follows the last, {last}"
        )
    return last + 1


def _channel_names(channels: Mapping[str, Any]) -> tuple[str, ...]:
    if sorted(channels, key=str) != sorted(str(index) for index in range(len(channels))) or not channels:
        raise BundleError(f"dataset.json: channel_names: {', '.join(channels) or 'none'}: must be numbered from 0")
    return tuple(str(channels[str(index)]) for index in range(len(channels)))


def _plain_names(values: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    numbers = [labels[0] for labels in values.values()]
    if not numbers:
        raise BundleError("dataset.json: labels: there is none but background")
    if sorted(numbers) != list(range(1, len(numbers) + 1)):
        told = ", ".join(f"{name} {labels[0]}" for name, labels in values.items())
        raise BundleError(f"dataset.json: labels: {told}: numbers must run from 1 without gap or repetition")
    return {labels[0]: name for name, labels in values.items()}


def _regions(values: Mapping[str, tuple[int, ...]], order: object) -> tuple[Region, ...]:
    """The regions of a network in the order of its outputs; what is background alone, nnU-Net leaves out."""
    named = {name: frozenset(labels) for name, labels in values.items() if set(labels) != {0}}
    where = "dataset.json: regions_class_order"
    if not isinstance(order, list | tuple) or not all(_is_whole(each) and int(each) > 0 for each in order):
        raise BundleError(f"{where}: {order!r} is not a list of labels, but labels hold regions")
    painted = [int(each) for each in order]
    if len(painted) != len(named):
        raise BundleError(f"{where}: {painted} has {len(painted)} entries, but there are {len(named)} regions")
    if len(set(painted)) != len(painted):
        raise BundleError(f"{where}: {painted}: two regions paint one label, and nothing tells them apart")
    return tuple(Region(name, labels, label) for (name, labels), label in zip(named.items(), painted, strict=True))


def _painted_names(regions: Sequence[Region]) -> dict[int, str]:
    """What each painted label means: its region, less what later regions paint over it."""
    names = {}
    for index, region in enumerate(regions):
        later = [other.name for other in regions[index + 1 :] if other.labels & region.labels]
        whole = len(region.labels) == 1 or not later
        names[region.painted] = region.name if whole else f"{region.name} without {_listed(later)}"
    return names


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
