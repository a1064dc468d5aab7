"""Bundles as ONNX files."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.backends.onnx_graph import GraphForm
from engines.cli import main
from engines.conversion import export as module
from engines.conversion.export import export
from engines.errors import EngineError
from engines.model.bundle import SHIPPED, Bundle, load_bundle


@pytest.mark.parametrize("name", ["phantom", "hippocampus-mr"])
@pytest.mark.parametrize(("form", "most"), [(GraphForm(), 1e-3), (GraphForm("float16", batch=2), 5e-2)])
def test_every_shipped_bundle_is_exported_and_answers_as_torch(
    tmp_path: Path, name: str, form: GraphForm, most: float
) -> None:
    bundle = load_bundle(SHIPPED / name)
    (made,) = export(bundle, tmp_path / "out", form)
    assert made.path.name == f"3d_small.fold_0.{form.precision}.onnx"
    assert made.error is not None
    assert 0 < made.error <= most
    model = onnx.load(made.path)
    assert {each.key: each.value for each in model.metadata_props}["bundle_digest"] == bundle.digest
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]] == list(
        bundle.members[0].plan.patch_size
    )


def test_a_file_unlike_torch_is_not_kept(
    make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = module.onnx_graph

    def wrong(plan: Any, weights: Any, form: GraphForm) -> Any:
        return graph(plan, {key: np.roll(value, 1) for key, value in weights.items()}, form)

    monkeypatch.setattr(module, "onnx_graph", wrong)
    with pytest.raises(EngineError, match="standard deviations from torch's; nothing kept"):
        export(make_bundle(), tmp_path / "out", GraphForm())
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".onnx"]


def test_a_folder_that_exists_is_left_alone(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="exists already"):
        export(make_bundle(), tmp_path, GraphForm())


def test_the_command_says_what_was_compared(
    make_bundle: Callable[..., Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = make_bundle()
    options = ["export", str(bundle.folder), "--out"]
    assert main([*options, str(tmp_path / "one"), "--precision", "float16", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["precision"], told["fold"]) == ("float16", "0")
    assert told["error"] < 5e-2
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert main([*options, str(tmp_path / "two")]) == 0
    assert "not compared with torch" in capsys.readouterr().out
    assert (tmp_path / "two" / "small.fold_0.float32.onnx").is_file()


def test_what_onnx_runtime_raises_is_said_in_our_words(
    make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime that is too old for the graph's opset, for one."""
    graph = module.onnx_graph

    def from_the_future(plan: Any, weights: Any, form: GraphForm) -> Any:
        model = graph(plan, weights, form)
        model.ir_version = 999
        return model

    monkeypatch.setattr(module, "onnx_graph", from_the_future)
    monkeypatch.setattr(onnx.checker, "check_model", lambda *_, **__: None)
    with pytest.raises(EngineError, match=r"float32\.onnx: ONNX Runtime .* cannot run it .*nothing kept"):
        export(make_bundle(), tmp_path / "out", GraphForm())
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EngineError, match=r"file/out: cannot be written: File exists; .*--out"):
        export(make_bundle(), tmp_path / "file/out", GraphForm())
