"""The ONNX graph: what the format's own checker says of it, and what ONNX Runtime answers with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from engines.backends.base import Answer, Placement
from engines.backends.onnx_graph import GraphForm, GraphPrecision, onnx_graph
from engines.backends.torch import TorchBackend
from engines.errors import BackendUnavailable
from engines.model.plan import Plan

Weights = Callable[[Plan], dict[str, np.ndarray]]


def run(model: Any, images: np.ndarray) -> np.ndarray:
    """ONNX Runtime's answer."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"image": images})
    return np.asarray(answer)


def reference(plan: Plan, weights: dict[str, np.ndarray], images: np.ndarray, answer: Answer) -> np.ndarray:
    backend = TorchBackend.open(plan, weights, Placement(answer=answer))
    return np.stack([each.numpy().copy() for each in backend.answers(torch.from_numpy(images))])


def noise(plan: Plan, count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, plan.inputs, *plan.patch_size)).astype(np.float32)


@pytest.mark.parametrize("answer", ["logits", "features"])
def test_the_graph_answers_as_torch(any_plan: Plan, random_weights: Weights, answer: Answer) -> None:
    plan = any_plan
    weights, images = random_weights(plan), noise(plan, 2)
    model = onnx_graph(plan, weights, GraphForm(answer=answer))
    onnx.checker.check_model(model, full_check=True)
    expected = reference(plan, weights, images, answer)
    found = run(model, images)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("norms", ["float32", "float16"])
def test_float16_is_written_into_every_tensor(any_plan: Plan, random_weights: Weights, norms: GraphPrecision) -> None:
    plan = any_plan
    weights, images = random_weights(plan), noise(plan, 1)
    model = onnx_graph(plan, weights, GraphForm("float16", norms, batch=1))
    onnx.checker.check_model(model, full_check=True)
    found = run(model, images.astype(np.float16))
    expected = reference(plan, weights, images, "logits")
    assert found.dtype == np.float16
    assert np.abs(found - expected).max() < 5e-2 * expected.std()
    wide = {each.name for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT}
    assert all(".norm." in name for name in wide)
    assert bool(wide) == (norms == "float32")


def test_the_batch_is_fixed_or_open(plan: Plan, random_weights: Weights) -> None:
    weights = random_weights(plan)
    batches = [
        onnx_graph(plan, weights, GraphForm(batch=batch)).graph.input[0].type.tensor_type.shape.dim[0]
        for batch in (None, 3)
    ]
    assert (batches[0].dim_param, batches[1].dim_value) == ("batch", 3)


def test_a_missing_package_is_said(plan: Plan, random_weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendUnavailable, match=r"hilum\[onnx\]"):
        onnx_graph(plan, random_weights(plan))


def test_onnx_opens_no_connection() -> None:
    """Neither package may speak to the network when it is imported and used."""
    code = """
import socket, sys
def refuse(*_, **__): raise SystemExit("a connection was tried")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import numpy as np, onnx, onnxruntime
from onnx import helper
kind = onnx.TensorProto.FLOAT
node = helper.make_node("Relu", ["x"], ["y"])
value = [helper.make_tensor_value_info(name, kind, [1]) for name in "xy"]
graph = helper.make_graph([node], "g", value[:1], value[1:])
model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
session.run(None, {"x": np.zeros(1, np.float32)})
sys.exit(any("telemetry" in name for name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
