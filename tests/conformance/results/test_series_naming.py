"""Numbers, descriptions and times of the series that results form (RES-14, table 3.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest

from node.config import NodeSection, Settings
from node.dicom.composition import Composition, ResultStyle
from node.dicom.result_header import series_description, series_number, start_result
from node.domain.job import ObjectKind
from node.domain.stack import Stack
from node.selftest.scanner import Acquisition
from node.service.house import result_style


@pytest.fixture
def numbered(small: Acquisition, composition_of: Callable[..., Composition]) -> Callable[..., Composition]:
    """The same case with another series number, volume or model."""
    c = composition_of(small)

    def build(number: int | None, volume_id: str = "ab" * 32, **provenance: Any) -> Composition:
        first = c.stack.frames[0]
        header = dataclasses.replace(first.header, series_number=number)
        frames = (dataclasses.replace(first, header=header), *c.stack.frames[1:])
        stack: Stack = dataclasses.replace(c.stack, frames=frames, volume_id=volume_id)
        made = dataclasses.replace(c.findings.provenance, **provenance)
        return dataclasses.replace(c, stack=stack, findings=dataclasses.replace(c.findings, provenance=made))

    return build


def test_numbers_of_sources_and_kinds_never_collide(numbered: Callable[..., Composition]) -> None:
    """RES-14: base plus source number; GE's hundreds and derived tens of thousands too."""
    sources = [*range(1, 60), 201, 402, 9_999, 10_000, 10_001, 20_000, 30_001, 100_001]
    found = [series_number(numbered(source), kind) for source, kind in product(sources, ObjectKind)]
    assert len(set(found)) == len(found)
    assert series_number(numbered(4), ObjectKind.SEG) == 9004
    assert min(found) > 9000


@pytest.mark.parametrize("source", [None, 0, -3, 2**31 - 1])
def test_sources_without_a_usable_number(source: int | None, numbered: Callable[..., Composition]) -> None:
    """RES-14: derived from the volume, so that two such series of a study do not share one; within IS."""
    one, other = (series_number(numbered(source, volume_id=digit * 64), ObjectKind.SEG) for digit in "1e")
    assert one != other
    assert 9000 < one < 2**31


def test_description_fits_and_begins_with_its_use(numbered: Callable[..., Composition]) -> None:
    """RES-13, RES-14: at most 64 characters, whatever the model is called; number and version are kept."""
    text = series_description(numbered(12345, model_name="m" * 90, model_version="2.0.1"), ObjectKind.SR)
    assert len(text) == 64
    assert text.startswith("RUO AI SR mmm")
    assert text.endswith(" 2.0.1 12345")
    assert series_description(numbered(None), ObjectKind.SEG) == "RUO AI SEG phantom 1.0.0"


@pytest.mark.parametrize(
    ("source", "site", "stated", "time"),
    [
        ("+0200", None, "+0200", "143000"),
        ("+0200", "-0500", "+0200", "143000"),
        (None, "-0500", "-0500", "073000"),
    ],
)
def test_generated_times_are_in_the_zone_that_is_stated(
    source: str | None,
    site: str | None,
    stated: str,
    time: str,
    small: Acquisition,
    composition_of: Callable[..., Composition],
) -> None:
    """Fact 12: the source's zone, else the site's; copied times are left as they are."""

    def edit(ds: Any, _: int) -> None:
        if source:
            ds.TimezoneOffsetFromUTC = source

    made_at = datetime(2026, 7, 1, 12, 30, tzinfo=UTC)
    c = composition_of(small, edit=edit, style=ResultStyle(utc_offset=lambda _: site), made_at=made_at)
    header = start_result(c, ObjectKind.PDF, "pdf", "1.2.840.10008.5.1.4.1.1.104.1", "1.2.840.10008.1.2.1")
    assert (header.TimezoneOffsetFromUTC, header.ContentTime, header.StudyTime) == (stated, time, "101500")


def test_no_zone_is_stamped_where_none_is_known(small: Acquisition, composition_of: Callable[..., Composition]) -> None:
    """Fact 12: never that of the machine."""
    c = composition_of(small)
    assert "TimezoneOffsetFromUTC" not in start_result(c, ObjectKind.PDF, "pdf", "1.2", "1.2.840.10008.1.2.1")


def test_summer_time_is_that_of_each_result(small: Acquisition, composition_of: Callable[..., Composition]) -> None:
    """A process that runs through the change of the clocks states the offset of the day."""
    style = result_style(Settings(node=NodeSection(timezone="Europe/Berlin")))
    c = composition_of(small, style=style)
    stated = []
    for month in (1, 7):
        made = dataclasses.replace(c, made_at=datetime(2026, month, 1, 12, 30, tzinfo=UTC))
        header = start_result(made, ObjectKind.PDF, "pdf", "1.2", "1.2.840.10008.1.2.1")
        stated.append((header.TimezoneOffsetFromUTC, header.ContentTime))
    assert stated == [("+0100", "133000"), ("+0200", "143000")]
