"""An association's beginning and end mean nothing: however the same images come, the same volumes go out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from node.dicom.scu import Outbound
from node.domain.segments import load_segments
from node.selftest.check import read_sr
from node.selftest.phantom import CT
from node.selftest.scanner import Acquisition, planes_around, write_series

MakeNode = Callable[..., Any]
SEGMENTS = load_segments((Path(__file__).parents[2] / "dicom_config" / "segments.csv").read_text(encoding="utf-8"))
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


def alike(folder: Path, names: Iterator[str]) -> Iterator[list[Path]]:
    """The same scan again and again, each time of another patient."""
    planes = planes_around(pixel_mm=(8.0, 8.0), step_mm=12.0)
    for name in names:
        yield list(write_series(Acquisition(planes, replace(CT), study=name), folder / name))


def test_four_ways_to_send_give_equal_volumes(make_node: MakeNode, fast: Path) -> None:
    """NET-4: five associations for one series; two patients in one; one for each instance; one that stays open."""
    node = make_node()
    node.start()
    parallel, first, second, single, held = alike(fast / "scanner", iter(("five", "two-a", "two-b", "each", "open")))
    with Outbound(node.destination, (CT_IMAGE,)) as never_closed:
        for path in held:
            assert never_closed.store(path) == 0
        node.took(held)
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(lambda part: node.send_fast(parallel[part::5]), range(5)))
        node.send_fast([path for pair in zip(first, second, strict=True) for path in pair])
        for path in single:
            node.send_fast([path])
        node.await_end()
    node.check()
    volumes = [read_sr(path, SEGMENTS) for path in node.reports()]
    assert len(volumes) == 5
    assert volumes[0]
    assert all(each == volumes[0] for each in volumes)
