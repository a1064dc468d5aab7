"""Engines by name, and the backends behind them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engines.backends.base import Engine
from engines.backends.catalogue import backend_class
from engines.errors import BackendUnavailable


@pytest.mark.parametrize("engine", [Engine("openvino", "bfloat16"), Engine("torch"), Engine("tensorrt", "float16")])
def test_an_engine_reads_what_it_writes(engine: Engine) -> None:
    assert Engine.parse(str(engine)) == engine


def test_a_backend_alone_is_in_float32() -> None:
    assert str(Engine.parse("openvino")) == "openvino float32"


@pytest.mark.parametrize("text", ["", "onnx", "torch float8", "torch float32 float16"])
def test_unknown_engines_are_refused(text: str) -> None:
    with pytest.raises(BackendUnavailable, match="there is no such"):
        Engine.parse(text)


@pytest.mark.parametrize("name", ["torch", "openvino", "tensorrt"])
def test_every_backend_is_found_by_its_name(name: str) -> None:
    assert backend_class(name).name == name


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="known: torch, openvino, tensorrt"):
        backend_class("mps")


def test_a_backend_is_imported_when_it_is_asked_for() -> None:
    code = """
import sys
from engines.backends.catalogue import backend_class
backend_class("torch"), backend_class("tensorrt")
sys.exit(any(name.split(".")[0] in ("openvino", "tensorrt", "tensorrt_rtx", "onnx") for name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
