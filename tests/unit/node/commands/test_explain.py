"""explain: where several peers sent one series, what the rules say to each of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from node.commands.explain import explained
from node.dicom.headers import read_header
from node.dicom.pixels import split_series
from node.domain.instance import Sender
from node.domain.routing import ModelFacts, Rule
from node.selftest.phantom import CT
from node.selftest.scanner import Acquisition, planes_around, write_series


def test_two_senders_of_one_series(tmp_path: Path) -> None:
    """RES-42: as the node would decide; each rule is told for each sender."""
    paths = list(write_series(Acquisition(planes_around(pixel_mm=(8.0, 8.0), step_mm=12.0), CT), tmp_path))
    headers = [read_header(path) for path in paths]
    parts = split_series(headers, {header.sop_instance_uid: path for header, path in zip(headers, paths, strict=True)})
    scanner, ward = Sender("ct1", "CT1", "HILUM", "10.0.0.1", "a1"), Sender("ward", "WARD", "HILUM", "10.0.0.2", "b1")
    senders = {header.sop_instance_uid: scanner for header in headers}
    rule = Rule("own", "any", (), ("pacs",), senders=("ct1",))
    models = {"any": ModelFacts("any", "m", ("CT",))}
    (alone,) = explained(parts, senders, (rule,), models)
    assert (alone.models, alone.reason, len(alone.rules)) == (["any"], "", 1)
    again = {**senders, headers[0].sop_instance_uid: replace(scanner, association_id="a2")}
    (still,) = explained(parts, again, (rule,), models)
    assert still == alone
    (mixed,) = explained(parts, {**senders, headers[3].sop_instance_uid: ward}, (rule,), models)
    assert (mixed.models, mixed.destinations, mixed.reason) == ([], [], "senders_disagree")
    assert [line.split(":")[0] for line in mixed.rules] == ["from ct1", "from ward"]
