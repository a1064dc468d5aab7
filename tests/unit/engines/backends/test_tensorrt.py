"""TensorRT: engines are built here without any card; whether they run is asked where there is one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorrt_rtx
import torch

from engines.backends import tensorrt as module
from engines.backends.base import Placement, Precision
from engines.backends.onnx_graph import GraphForm
from engines.backends.tensorrt import TensorRtBackend
from engines.backends.tensorrt_engine import (
    Card,
    Library,
    build,
    engine_path,
    import_libraries,
    keep,
    network_digest,
    remove_superseded,
    timing_path,
)
from engines.backends.torch import TorchBackend
from engines.errors import BackendUnavailable
from engines.inference.trial import library_version
from engines.model.bundle import SHIPPED, load_bundle
from engines.model.plan import Plan

Weights = Callable[[Plan], dict[str, np.ndarray]]
RTX = Library("tensorrt_rtx", tensorrt_rtx)
ADA = Card("NVIDIA RTX 6000 Ada Generation", "89", "13000")
FORMS = {
    "float32": GraphForm("float32", batch=2),
    "float16": GraphForm("float16", batch=2),
    "float16 throughout": GraphForm("float16", "float16", batch=2),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["phantom", "hippocampus-mr"])
def test_an_engine_is_built_of_every_shipped_bundle(name: str, form: str) -> None:
    (member,) = load_bundle(SHIPPED / name).members
    weights = member.weights(member.folds[0])
    engine = build(RTX, member.plan, weights, FORMS[form])
    width = 4 if form == "float32" else 2
    assert len(engine) > width * sum(tensor.size for tensor in weights.values())


def test_an_engine_is_built_of_every_kind_of_network(any_plan: Plan, random_weights: Weights) -> None:
    form = GraphForm("float16", batch=2, answer="features")
    assert build(RTX, any_plan, random_weights(any_plan), form, card=ADA)


def test_what_the_builder_refuses_is_ours(plan: Plan, random_weights: Weights) -> None:
    """A map of one voxel, halved and doubled again, does not fit the one that it is joined to."""
    wrong = replace(plan, patch_size=(1, 8, 8))
    with pytest.raises(BackendUnavailable, match=r"tensorrt_rtx .*: (the graph is refused|no engine can be built): .+"):
        build(RTX, wrong, random_weights(wrong), GraphForm(batch=1))


def test_cards_that_the_library_does_not_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "import_libraries", lambda: ([RTX], ["tensorrt cannot be imported"]))
    library, reason = module._library_for(Card("NVIDIA H100 PCIe", "90", "13000"))
    assert library is None
    assert "tensorrt cannot be imported" in reason
    assert "nothing for compute capability 90" in reason
    assert module._library_for(ADA)[0] is RTX


def test_certificates_are_of_the_library_that_serves_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are installed; only the second serves this card."""
    first = Library("tensorrt", SimpleNamespace(__version__="11.0", ComputeCapability=SimpleNamespace(SM90=0)))
    monkeypatch.setattr(module, "card_fault", lambda _: None)
    monkeypatch.setattr(module, "import_libraries", lambda: ([first, RTX], []))
    monkeypatch.setattr(module, "_card", lambda _: ADA)
    assert TensorRtBackend.package("cuda") == "tensorrt_rtx"
    assert library_version("tensorrt", "cuda") == RTX.version
    monkeypatch.setattr(module, "_card", lambda _: replace(ADA, capability="90"))
    assert TensorRtBackend.package("cuda") == "tensorrt"


def test_a_processor_is_refused_with_the_reason(plan: Plan) -> None:
    assert "cards only, not cpu" in TensorRtBackend.is_available("cpu").reason
    assert "not in bfloat16" in TensorRtBackend.is_available("cuda", "bfloat16").reason
    with pytest.raises(BackendUnavailable, match="tensorrt: serves NVIDIA cards only"):
        TensorRtBackend.open(plan, {}, Placement())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_driver_no_tensorrt_is_imported() -> None:
    code = """
import sys
from engines.backends.tensorrt import TensorRtBackend
found = TensorRtBackend.is_available("cuda")
assert not found.available, found
assert "driver" in found.reason or "torch finds no" in found.reason, found
sys.exit(any(name.startswith("tensorrt") for name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_libraries_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="0"))  # a front without its library
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    found, said = import_libraries()
    assert not found
    assert said[0] == "tensorrt is installed without its library"
    assert "hilum[tensorrt-rtx]" in said[1]


def test_an_engine_is_filed_under_all_it_depends_on(plan: Plan, random_weights: Weights, tmp_path: Path) -> None:
    weights, form, card = random_weights(plan), GraphForm("float16", batch=2), ADA
    other = {**weights, "encoder.stages.0.0.convs.0.conv.bias": np.zeros(4, dtype=np.float32)}
    digests = {
        network_digest(plan, weights),
        network_digest(plan, other),
        network_digest(replace(plan, patch_size=(16, 8, 8)), weights),
    }
    places = {
        engine_path(tmp_path, RTX, card, form, "0" * 64),
        engine_path(tmp_path, RTX, card, replace(form, precision="float32"), "0" * 64),
        engine_path(tmp_path, RTX, card, replace(form, norms="float16"), "0" * 64),
        engine_path(tmp_path, RTX, card, replace(form, batch=1), "0" * 64),
        engine_path(tmp_path, RTX, card, replace(form, answer="features"), "0" * 64),
        engine_path(tmp_path, RTX, replace(card, capability="86"), form, "0" * 64),
        engine_path(tmp_path, RTX, replace(card, driver="12080"), form, "0" * 64),
        engine_path(tmp_path, RTX, replace(card, name="NVIDIA L4"), form, "0" * 64),  # also of 8.9
        engine_path(tmp_path, Library("tensorrt", RTX.module), card, form, "0" * 64),
        *(engine_path(tmp_path, RTX, card, form, digest) for digest in digests),
    }
    assert len(places) == 9 + 3
    assert timing_path(tmp_path, RTX, card) != timing_path(tmp_path, RTX, replace(card, name="NVIDIA L4"))
    assert all(len(place.name) < 255 for place in places)


def test_engines_are_kept_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "one.engine"
    keep(path, b"first")
    keep(path, b"second")
    assert path.read_bytes() == b"second"
    assert [each.name for each in path.parent.iterdir()] == ["one.engine"]
    assert path.parent.stat().st_mode & 0o077 == 0


def test_engines_of_other_versions_leave_when_a_new_one_is_kept(tmp_path: Path) -> None:
    """Those of the same network, library and card; whatever else lies there stays."""
    form, card = GraphForm("float16", batch=2), ADA
    older = Library("tensorrt_rtx", SimpleNamespace(__version__="0.9.0.1"))
    new = engine_path(tmp_path, RTX, card, form, "a" * 64)
    gone = {
        engine_path(tmp_path, older, card, form, "a" * 64),
        engine_path(tmp_path, older, card, replace(form, batch=1, answer="features"), "a" * 64),
        engine_path(tmp_path, RTX, replace(card, driver="12080"), form, "a" * 64),
    }
    stays = {
        new,
        engine_path(tmp_path, RTX, card, replace(form, precision="float32"), "a" * 64),
        engine_path(tmp_path, older, card, form, "b" * 64),
        engine_path(tmp_path, older, replace(card, capability="86"), form, "a" * 64),
        engine_path(tmp_path, older, replace(card, name="NVIDIA L4"), form, "a" * 64),
        engine_path(tmp_path, Library("tensorrt", older.module), card, form, "a" * 64),
        tmp_path / f"{'a' * 64}.certificates.json",
        tmp_path / f"{next(iter(gone)).name}.bak",
        tmp_path / "notes.engine",
    }
    for path in gone | stays:
        path.write_bytes(b"engine")
    remove_superseded(new)
    assert set(tmp_path.iterdir()) == stays
    remove_superseded(tmp_path / "notes.engine")
    assert set(tmp_path.iterdir()) == stays


def test_what_is_built_is_found_again(
    plan: Plan, random_weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card of compute capability 8.9, which is not there: nothing is run."""
    monkeypatch.setattr(module, "_library", lambda _: RTX)
    monkeypatch.setattr(module, "_card", lambda _: ADA)
    weights, placement = random_weights(plan), Placement("cuda", precision="float16", cache=tmp_path)
    assert not TensorRtBackend.is_built(plan, weights, placement)
    older, form = Library("tensorrt_rtx", SimpleNamespace(__version__="0.9.0.1")), GraphForm("float16", batch=1)
    old = engine_path(tmp_path, older, ADA, form, network_digest(plan, weights))
    old.write_bytes(b"of another version")
    TensorRtBackend.build(plan, weights, placement)
    assert not old.exists()
    assert TensorRtBackend.is_built(plan, weights, placement)
    assert len(list(tmp_path.glob("*.engine"))) == 1
    for other in (replace(placement, precision="float32"), replace(placement, batch=2), replace(placement, cache=None)):
        assert not TensorRtBackend.is_built(plan, weights, other)
    with pytest.raises(BackendUnavailable, match="no folder to keep an engine in"):
        TensorRtBackend.build(plan, weights, replace(placement, cache=None))


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("float16", 3e-2)])
def test_an_engine_answers_as_torch(
    any_plan: Plan, random_weights: Weights, tmp_path: Path, precision: Precision, tolerance: float
) -> None:
    """Five patches in batches of two, from a new engine and from the kept one."""
    found = TensorRtBackend.is_available("cuda", precision)
    if not found.available:
        pytest.skip(found.reason)
    plan, weights = any_plan, random_weights(any_plan)
    patches = torch.randn((5, 1, *plan.patch_size), generator=torch.Generator().manual_seed(0))
    exact = torch.stack([each.clone() for each in TorchBackend.open(plan, weights, Placement()).answers(patches)])
    placement = Placement(device="cuda", batch=2, precision=precision, cache=tmp_path)
    for _ in range(2):
        backend = TensorRtBackend.open(plan, weights, placement)
        answer = torch.stack([each.float().cpu() for each in backend.answers(patches)])
        backend.close()
        assert torch.allclose(answer, exact, atol=tolerance * float(exact.std()))
    assert len(list(tmp_path.glob("*.engine"))) == 1
