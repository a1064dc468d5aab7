"""Certificates: what is judged, what does not pass, what stays refused, and that a file says again what was written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.errors import BundleError
from engines.model.bundle import SHIPPED, load_bundle
from engines.model.certificate import (
    PATH_REVISION,
    REFERENCE_LIMITS,
    Certificate,
    EngineKey,
    LabelAgreement,
    Limits,
    Records,
    Speed,
    Turned,
    VolumeAgreement,
    add_record,
    agreement,
    certificates_path,
    certify,
    hilum_version,
    judge,
    parity_folder,
    read_records,
    refused,
    site_path,
)
from engines.volume import Grid, Volume

NAMES = {1: "liver", 2: "spleen"}
KEY = EngineKey("d" * 64, "openvino", "bfloat16", "openvino 2026.4.1", "cpu x86_64", PATH_REVISION)
Mask = NDArray[np.uint8]


@pytest.fixture
def volume() -> Volume:
    voxels = np.random.default_rng(0).standard_normal((20, 30, 30)).astype(np.float32)
    return Volume(Grid((20, 30, 30), np.eye(4)), voxels, "MR")


@pytest.fixture
def mask() -> Mask:
    """Liver 4,000 voxels, spleen 500."""
    labels = np.zeros((20, 30, 30), np.uint8)
    labels[2:12, 2:22, 2:22] = 1
    labels[13:18, 2:12, 2:12] = 2
    return labels


def one(label: LabelAgreement, equal: float = 1.0) -> VolumeAgreement:
    return VolumeAgreement("a" * 64, (20, 30, 30), equal, (label,))


def test_agreement_counts_each_label(volume: Volume, mask: Mask) -> None:
    found = mask.copy()
    found[2, 2:22, 2:22] = 0  # 400 voxels of the liver
    compared = agreement([volume], mask, found, NAMES)
    liver, spleen = compared.labels
    assert (liver.voxels, liver.found, liver.dice) == (4000, 3600, 2 * 3600 / 7600)
    assert liver.volume_percent == pytest.approx(10.0)
    assert (spleen.voxels, spleen.dice, spleen.volume_percent) == (500, 1.0, 0.0)
    assert compared.equal_voxels == pytest.approx(1 - 400 / mask.size)
    assert compared.shape == (20, 30, 30)


def test_a_label_that_neither_mask_has_is_left_out_and_a_lost_one_is_not(volume: Volume, mask: Mask) -> None:
    without = np.where(mask == 1, 0, mask).astype(np.uint8)
    assert [each.name for each in agreement([volume], without, without, NAMES).labels] == ["spleen"]
    (liver, _) = agreement([volume], mask, without, NAMES).labels
    assert (liver.dice, liver.volume_percent, liver.is_judged) == (0.0, 100.0, True)
    (invented, _) = agreement([volume], without, mask, NAMES).labels
    assert (invented.voxels, invented.found, invented.dice, invented.volume_percent) == (0, 4000, 0.0, 100.0)
    assert invented.is_judged


def test_masks_of_two_shapes_are_not_compared(volume: Volume, mask: Mask) -> None:
    with pytest.raises(ValueError, match="shapes"):
        agreement([volume], mask, mask[1:], NAMES)


def test_a_volume_is_named_by_grid_and_voxels(volume: Volume, mask: Mask) -> None:
    name = agreement([volume], mask, mask, NAMES).digest
    changed = volume.voxels.copy()
    changed[0, 0, 0] += 1
    others = (
        [Volume(volume.grid, changed, "MR")],
        [Volume(Grid(volume.grid.shape, np.diag([2.0, 1, 1, 1])), volume.voxels, "MR")],
        [volume, volume],
    )
    assert len({name, *(agreement(each, mask, mask, NAMES).digest for each in others)}) == 4


@pytest.mark.parametrize(
    ("label", "limits", "reason"),
    [
        (
            LabelAgreement(1, "liver", 4000, 4000, 0.9949),
            Limits(),
            "volume 1 (aaaaaaaa): liver: Dice 0.9949, below 0.995",
        ),
        (LabelAgreement(1, "liver", 4000, 4021, 0.999), Limits(), "liver: volume off by 0.53 %, more than 0.5 %"),
        (LabelAgreement(1, "liver", 4000, 3978, 0.999), Limits(), "liver: volume off by 0.55 %"),
        (LabelAgreement(1, "liver", 4000, 4000, 0.9989), REFERENCE_LIMITS, "Dice 0.9989, below 0.999"),
        (LabelAgreement(1, "liver", 999, 1000, 0.5), Limits(), "Dice 0.5000"),
        (LabelAgreement(1, "liver", 4000, 4000, float("nan")), Limits(), "Dice nan"),
    ],
)
def test_a_label_beyond_a_limit_fails(label: LabelAgreement, limits: Limits, reason: str) -> None:
    verdict = judge([one(label)], limits)
    assert verdict.outcome == "failed"
    assert reason in verdict.reason


def test_voxels_that_differ_fail_where_equal_ones_are_asked_for() -> None:
    good = LabelAgreement(1, "liver", 4000, 4000, 0.9995)
    verdict = judge([one(good), one(good, 0.99989)], REFERENCE_LIMITS)
    assert verdict.outcome == "failed"
    assert verdict.reason.startswith("volume 2 (aaaaaaaa): 99.9890 % of voxels equal, below 99.99 %")
    assert judge([one(good, 0.9999)], REFERENCE_LIMITS).outcome == "passed"
    assert judge([one(good, 0.5)], Limits()).outcome == "passed"


def test_small_labels_are_not_judged_and_alone_they_show_nothing() -> None:
    small, large = LabelAgreement(2, "spleen", 999, 500, 0.6), LabelAgreement(1, "liver", 4000, 4000, 1.0)
    assert judge([one(small)], Limits()).outcome == "nothing judged"
    assert judge([], Limits()).outcome == "nothing judged"
    both = judge([VolumeAgreement("a" * 64, (20, 30, 30), 1.0, (large, small))], Limits())
    assert both.outcome == "passed"
    assert "1 labels in 1 volumes: Dice at least 1.0000" in both.reason


def test_every_fault_is_counted_and_the_first_named() -> None:
    bad = LabelAgreement(1, "liver", 4000, 2000, 0.5)
    assert judge([one(bad), one(bad)], Limits()).reason.endswith("(and 3 more)")


@pytest.fixture
def certificate(volume: Volume, mask: Mask) -> Certificate:
    compared = agreement([volume], mask, mask, NAMES)
    return certify("two", KEY, "torch float32 2.13.0", Limits(), [compared], logits_error=0.004)


def test_a_file_says_again_what_was_written(tmp_path: Path, certificate: Certificate) -> None:
    path = tmp_path / "new" / "two.certificates.json"
    assert read_records(path) == Records()
    speed = Speed(KEY, 2, 0.25, certificate.made_at)
    add_record(path, certificate)
    add_record(path, speed)
    assert read_records(path) == Records(1, (certificate,), (speed,))
    assert read_records(path).certificate(KEY) == certificate
    assert read_records(path).speed(KEY, 2) == speed
    assert {each.name for each in path.parent.iterdir()} == {path.name, f".{path.name}.lock"}
    assert certificate.number == read_records(path).certificates[0].number
    assert certificate.verdict.outcome == "passed"


def test_the_folder_of_a_node_is_made_for_its_owner_alone(tmp_path: Path, certificate: Certificate) -> None:
    """Engines are built into it: whoever may write there lets the node run a program."""
    add_record(tmp_path / "engines" / "x.certificates.json", certificate)
    assert (tmp_path / "engines").stat().st_mode & 0o777 == 0o700


def test_what_is_known_is_of_this_very_engine(tmp_path: Path, certificate: Certificate) -> None:
    """Another digest, precision, library or device is another engine: nothing is known of it."""
    records = Records(certificates=(certificate,), speeds=(Speed(KEY, 2, 0.25, certificate.made_at),))
    for change in (
        {"revision": PATH_REVISION + 1},
        {"digest": "e" * 64},
        {"precision": "float32"},
        {"library": "openvino 2026.5.0"},
        {"device": "H200"},
    ):
        other = replace(KEY, **change)
        assert records.certificate(other) is None
        assert records.speed(other, 2) is None
    assert records.speed(KEY, 4) is None


def test_a_newer_record_takes_the_place_of_an_older(tmp_path: Path, certificate: Certificate) -> None:
    path = tmp_path / "records.json"
    other = replace(certificate, key=replace(KEY, precision="float32"))
    later = refused("two", KEY, "torch float32 2.13.0", Limits(), "the answer is not finite")
    for each in (certificate, other, later):
        add_record(path, each)
    assert read_records(path).certificates == (other, later)
    assert read_records(path).certificate(KEY) == later


def test_figures_are_judged_again_under_other_limits(certificate: Certificate) -> None:
    near = replace(certificate, volumes=(one(LabelAgreement(1, "liver", 4000, 4000, 0.996)),))
    assert near.under(Limits()).outcome == "passed"
    assert near.under(Limits(dice=0.997)).outcome == "failed"
    never = refused("two", KEY, "torch float32 2.13.0", Limits(), "the answer is not finite")
    assert never.under(Limits(dice=0.0, volume_percent=None)).outcome == "failed"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tree: tree.update(note="x"), "note: Unexpected"),
        (lambda tree: tree.update(format=2), "format"),
        (lambda tree: tree["certificates"][0].update(patient="x"), "certificates.0.patient: Unexpected"),
        (lambda tree: tree["certificates"][0]["limits"].update(dices=1), "certificates.0.limits.dices: Unexpected"),
        (lambda tree: tree["certificates"][0]["volumes"][0]["labels"][0].pop("dice"), "labels.0.dice: Field required"),
        (lambda tree: tree["certificates"][0]["key"].update(digest="short"), "key.digest"),
        (lambda tree: tree["certificates"][0]["verdict"].update(outcome="fine"), "verdict.outcome"),
    ],
)
def test_a_file_that_is_not_understood_is_refused(
    tmp_path: Path, certificate: Certificate, change: Callable[[dict], None], reason: str
) -> None:
    path = tmp_path / "records.json"
    add_record(path, certificate)
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(BundleError) as refusal:
        read_records(path)
    assert reason in str(refusal.value)
    assert "records.json" in str(refusal.value)


def test_a_broken_file_is_refused_and_left_alone(tmp_path: Path, certificate: Certificate) -> None:
    path = tmp_path / "records.json"
    path.write_text('{"format": 1, "certif')
    with pytest.raises(BundleError, match="not a file of certificates; remove it"):
        add_record(path, certificate)
    assert path.read_text() == '{"format": 1, "certif'


def test_not_a_number_is_no_figure(tmp_path: Path, certificate: Certificate) -> None:
    path = tmp_path / "records.json"
    add_record(path, certificate)
    path.write_text(path.read_text().replace('"dice": 1.0', '"dice": NaN'))
    with pytest.raises(BundleError, match="finite"):
        read_records(path)


def test_a_record_of_a_program_without_revisions_is_read_and_fits_nothing(
    tmp_path: Path, certificate: Certificate
) -> None:
    path = tmp_path / "records.json"
    add_record(path, certificate)
    tree = json.loads(path.read_text())
    del tree["certificates"][0]["key"]["revision"]
    for each in tree["certificates"][0]["volumes"]:
        del each["turned"]
    path.write_text(json.dumps(tree))
    assert read_records(path).certificates[0].key == replace(KEY, revision=0)
    assert read_records(path).certificate(KEY) is None


def test_volumes_that_were_all_turned_show_nothing_of_the_orientation() -> None:
    good = one(LabelAgreement(1, "liver", 4000, 4000, 1.0))
    turned = replace(good, turned=Turned("SAR", "SPL"))
    verdict = judge([turned, turned], REFERENCE_LIMITS)
    assert verdict.outcome == "failed"
    assert verdict.reason == "no image lies as the model's orientation SPL says: is --orientation right?"
    assert judge([good, turned], REFERENCE_LIMITS).reason.endswith("; 1 of 2 volumes turned for both to SPL")


def test_processes_that_share_a_file_lose_no_record(tmp_path: Path, certificate: Certificate) -> None:
    """Each adds records of its own, all at once; without the lock one would write over what another has read."""
    path, each_adds = tmp_path / "records.json", 15
    processes = [
        get_context("fork").Process(target=_add_speeds, args=(path, certificate, range(first, first + each_adds)))
        for first in (0, each_adds, 2 * each_adds)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert {each.threads for each in read_records(path).speeds} == set(range(3 * each_adds))


def _add_speeds(path: Path, certificate: Certificate, threads: range) -> None:
    for number in threads:
        add_record(path, Speed(KEY, number, 0.25, certificate.made_at))


def test_a_write_that_fails_leaves_no_draft(
    tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records.json"
    add_record(path, certificate)
    before = path.read_text()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match=r"records\.json: cannot be written: No space left"):
        add_record(path, replace(certificate, hilum="later"))
    assert path.read_text() == before
    assert {each.name for each in tmp_path.iterdir()} == {path.name, f".{path.name}.lock"}


def test_a_program_that_is_not_installed_names_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert hilum_version() == "unknown"


def test_places(tmp_path: Path) -> None:
    assert certificates_path(tmp_path / "liver-ct") == tmp_path / "liver-ct.certificates.json"
    assert parity_folder(tmp_path / "liver-ct") == tmp_path / "liver-ct.parity"
    assert site_path(tmp_path, "d" * 64) == tmp_path / ("d" * 64 + ".certificates.json")


_MAKE_ANEW = (
    "the certificates in engines/bundles do not fit this program: make them anew with `hilum-models verify "
    "engines/bundles/NAME --volumes FOLDER`, on the volumes that docs/develop.md tells (Certificates)"
)


@pytest.mark.parametrize("name", ["phantom", "hippocampus-mr"])
def test_the_shipped_bundles_are_certified_as_they_are_shipped(name: str) -> None:
    """Made again whenever a digest, the revision of our path or what a device is called changes."""
    bundle = load_bundle(SHIPPED / name)
    made = read_records(certificates_path(bundle.folder)).certificates
    found = {each.key.engine: each for each in made if each.key.digest == bundle.digest}
    assert set(found) == {"torch float32", "openvino bfloat16", "openvino float32"}, _MAKE_ANEW
    fits = {(each.key.device, each.key.revision) for each in found.values()}
    assert fits == {("cpu x86_64", PATH_REVISION)}, _MAKE_ANEW
    assert found["torch float32"].reference.startswith("nnunetv2 ")
    assert judge(found["torch float32"].volumes, REFERENCE_LIMITS).outcome == "passed"
    # What 16 bits make of a small network is for its certificate to say: the phantom's liver is beyond the limit.
    assert found["openvino float32"].under(Limits()).outcome == "passed"
    assert {
        label.name for each in made for volume in each.volumes for label in volume.labels if label.is_judged
    } == set(bundle.labels.values())
