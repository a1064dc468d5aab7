"""A bundle loads whole, every byte verified, or not at all (SEC-10)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import BundleError
from engines.model.bundle import SHIPPED, Bundle, Limits, find_bundles, load_bundle


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle(orientation="SPL", limits=Limits(min_slices=10, max_step_mm=5.0), unreported=["spleen"])


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], None]) -> Path:
    path = bundle.folder / "bundle.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return bundle.folder


def test_what_was_written_is_read(bundle: Bundle) -> None:
    again = load_bundle(bundle.folder)
    assert again == bundle
    assert again.labels == {1: "liver", 2: "spleen"}
    assert again.unreported == (2,)
    assert again.limits == Limits(min_slices=10, max_step_mm=5.0)
    assert again.orientation == "SPL"
    assert again.card.read_text() == "# Unit\n"
    assert again.members[0].weights("0")["decoder.seg_layers.0.weight"].dtype == np.float32


@pytest.mark.parametrize("name", ["small/fold_0.safetensors", "small/parity.npz", "card.md", "small/source/plans.json"])
def test_flipped_byte_is_refused(bundle: Bundle, name: str) -> None:
    path = bundle.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: changed"):
        load_bundle(bundle.folder)


def test_what_is_copied_over_an_open_bundle_serves_nobody(bundle: Bundle, make_bundle: Callable[..., Bundle]) -> None:
    """An engine that is opened later reads its files again: version 2 must not serve under version 1's digest."""
    other = make_bundle("other", orientation="SPL", storage="float16")
    (member,) = bundle.members
    assert other.digest != bundle.digest
    shutil.copytree(other.folder, bundle.folder, dirs_exist_ok=True)
    with pytest.raises(BundleError, match=r"fold_0.safetensors: changed since .* restart"):
        member.weights("0")
    (member.folder / "parity.npz").write_bytes((member.folder / "parity.npz").read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"parity.npz: changed since"):
        member.parity()


@pytest.mark.parametrize("name", ["small/fold_0.safetensors", "small/parity.npz", "bundle.json"])
def test_missing_file_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(bundle.folder)


def _put(manifest: dict[str, Any], *path: Any) -> None:
    *keys, last, value = path
    at: Any = manifest
    for key in keys:
        at = at[key]
    at[last] = value


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("colour", "red"), "colour: Extra inputs"),
        (("members", 0, "plan", "colour", "red"), "plan.colour"),
        (("members", 0, "plan", "architecture", "colour", "red"), "plan.architecture.colour"),
        (("limits", "min_slice", 3), "limits.min_slice"),
        (("format", 1), "format 1, of an earlier Hilum: import the results folder again"),
        (("format", 3), "format 3; this Hilum reads format 2"),
        (("name", "../up"), "name"),
        (("orientation", "SPP"), "orientation"),
        (("labels", "3", "kidney"), "labels"),
        (("labels", "2", "liver"), "two have one name"),
        (("unreported", [7]), "unreported"),
        (("members", 0, "mirroring_axes", [3]), "mirroring_axes"),
        (("members", 0, "folds", ["0", "../1"]), "folds"),
        (("members", 0, "folds", ["0", "1"]), "fold_1.safetensors is not listed"),
        (("files", "../../etc/passwd", "0" * 64), "files"),
        (("files", "/etc/passwd", "0" * 64), "files"),
        (("members", 0, "plan", "outputs", 4), "labels"),
        (("members", 0, "plan", "patch_size", [8, 8, 16]), "parity.npz"),
        (("members", 0, "plan", "architecture", "features", [4, 16]), "decoder|encoder"),
    ],
)
def test_unknown_or_unfitting_manifest_is_refused(bundle: Bundle, path: tuple[Any, ...], message: str) -> None:
    folder = edit(bundle, lambda manifest: _put(manifest, *path))
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_pickle_inside_the_parity_crop_is_refused(bundle: Bundle) -> None:
    import hashlib

    path = bundle.folder / "small/parity.npz"
    np.savez(path, image=np.array([{"a": 1}], dtype=object), logits=np.zeros(1), step=1)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    folder = edit(bundle, lambda manifest: _put(manifest, "files", "small/parity.npz", digest))
    with pytest.raises(BundleError, match="not a parity crop"):
        load_bundle(folder)


def test_digest_names_what_results_depend_on(bundle: Bundle, make_bundle: Callable[..., Bundle], card: Path) -> None:
    card.write_text("# Another card\n")
    same = make_bundle("same", orientation="SPL", version="2.0", licence="CC-BY-4.0")
    assert same.digest == bundle.digest
    assert make_bundle("turned", orientation="SAR").digest != bundle.digest
    assert make_bundle("mirrored", orientation="SPL", mirroring=True).digest != bundle.digest
    assert make_bundle("wide", orientation="SPL", storage="float16").digest != bundle.digest


def test_find_bundles(bundle: Bundle, tmp_path: Path) -> None:
    home = tmp_path / "models"
    home.mkdir()
    (home / "notes").mkdir()
    assert find_bundles([home]) == {}
    shutil.copytree(bundle.folder, home / "one")
    assert list(find_bundles([home])) == ["unit"]
    shutil.copytree(bundle.folder, home / "two")
    with pytest.raises(BundleError, match="both named unit"):
        find_bundles([home])
    with pytest.raises(BundleError, match="no such folder"):
        find_bundles([tmp_path / "gone"])


def test_shipped_bundles_lie_in_the_package() -> None:
    assert SHIPPED.name == "bundles"
    assert SHIPPED.parent.name == "engines"


def test_bundle_is_read_without_torch(bundle: Bundle) -> None:
    """The receiving process and `hilum check` start in a blink."""
    code = (
        "import sys, pathlib; import engines.volume, engines.measures, engines.nifti, engines.model.bundle as b;"
        f"b.load_bundle(pathlib.Path({str(bundle.folder)!r}));"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
