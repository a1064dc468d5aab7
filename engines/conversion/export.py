"""A bundle's networks as ONNX files, each held against torch before it is kept."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.backends.base import Placement, Weights
from engines.backends.onnx_graph import INPUT, GraphForm, GraphPrecision, import_onnx, onnx_graph
from engines.backends.torch import TorchBackend
from engines.errors import EngineError
from engines.model.bundle import Bundle, Member

TOLERANCES: dict[GraphPrecision, float] = {"float32": 1e-3, "float16": 5e-2}
"""Largest error of a logit on the parity crop, in standard deviations of the crop's logits."""


@dataclass(frozen=True)
class Exported:
    """One file: the network of one member and fold, patch in, logits out."""

    path: Path
    member: str
    fold: str
    precision: GraphPrecision
    error: float | None
    """Largest error of a logit beside torch in float32, in standard deviations; None: ONNX Runtime was not there."""


def export(bundle: Bundle, folder: Path, form: GraphForm) -> list[Exported]:
    """Write one ONNX file for each member and fold into a new folder, all of them or none.

    Each file says of which bundle, member and fold it is. Where onnxruntime is installed, each answers the bundle's
    parity crop first.

    Raises
    ------
    BackendUnavailable
        Where the onnx package is missing.
    EngineError
        Where the folder exists or cannot be written, or a file answers unlike torch, or ONNX Runtime cannot run it.
    """
    if folder.exists():
        raise EngineError(f"{folder}: exists already; choose another folder or remove it first")
    import_onnx()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            draft = Path(scratch) / folder.name
            draft.mkdir()
            made = list(_written(bundle, draft, form))
            draft.rename(folder)
    except OSError as error:
        raise EngineError(
            f"{folder}: cannot be written: {error.strerror or error}; choose another folder (--out)"
        ) from error
    return [Exported(folder / each.path.name, each.member, each.fold, each.precision, each.error) for each in made]


def _written(bundle: Bundle, folder: Path, form: GraphForm) -> Iterator[Exported]:
    onnx = import_onnx()
    for member in bundle.members:
        for fold in member.folds:
            weights = member.weights(fold)
            model = onnx_graph(member.plan, weights, form)
            onnx.helper.set_model_props(model, _properties(bundle, member, fold, form))
            onnx.checker.check_model(model, full_check=True)
            path = folder / f"{member.name}.fold_{fold}.{form.precision}.onnx"
            path.write_bytes(model.SerializeToString())
            yield Exported(path, member.name, fold, form.precision, _error(path, member, weights, form))


def _properties(bundle: Bundle, member: Member, fold: str, form: GraphForm) -> dict[str, str]:
    return {
        "bundle": f"{bundle.name} {bundle.version}",
        "bundle_digest": bundle.digest,
        "member": member.name,
        "fold": fold,
        "precision": form.precision,
        "licence": bundle.licence,
        "intended_use": bundle.intended_use,
    }


def _error(path: Path, member: Member, weights: Weights, form: GraphForm) -> float | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    image = member.parity().image
    reference = TorchBackend.open(member.plan, weights, Placement(threads=torch.get_num_threads(), answer=form.answer))
    expected = next(iter(reference.answers([torch.from_numpy(image)]))).numpy()
    error = float(np.abs(_answer(path, image, form) - expected).max()) / max(float(expected.std()), 1e-12)
    if not error <= TOLERANCES[form.precision]:  # so that what is not a number fails too
        raise EngineError(f"{path.name}: logits are off by {error:.2g} standard deviations from torch's; nothing kept")
    return error


def _answer(path: Path, image: NDArray[np.float32], form: GraphForm) -> NDArray[np.float32]:
    """ONNX Runtime's answer to one patch."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    images = np.repeat(image[None].astype(form.precision), form.batch or 1, axis=0)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, {INPUT: images})
    except _own_errors(state) as error:
        said = " ".join(str(error).split())
        raise EngineError(
            f"{path.name}: ONNX Runtime {onnxruntime.__version__} cannot run it ({said}); nothing kept; install "
            "another onnxruntime, or none, to write the files without comparing them"
        ) from error
    return np.asarray(answer[0], dtype=np.float32)


def _own_errors(state: Any) -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: each kind of its errors is a class by itself, without a base of their own."""
    return tuple(each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception))
