"""Networks of every kind that a plan can ask for, and weights that nobody trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engines.model.network import tensors
from engines.model.plan import Plan

VARIANTS: dict[str, dict[str, Any]] = {
    "plain 3d": {},
    "no affine, no bias, plain rectifier": {"norm_affine": False, "bias": False, "negative_slope": 0.0},
    "residual 3d, anisotropic": {
        "network": "ResidualEncoderUNet",
        "blocks": (1, 2),
        "kernels": ((1, 3, 3), (3, 3, 3)),
        "strides": ((1, 1, 1), (1, 2, 2)),
    },
    "plain 2d": {"kernels": ((3, 3), (3, 3)), "strides": ((1, 1), (2, 2))},
}


@pytest.fixture(params=VARIANTS)
def any_plan(request: pytest.FixtureRequest, plan: Plan) -> Plan:
    """The small plan with each kind of network."""
    changed = replace(plan, architecture=replace(plan.architecture, **VARIANTS[request.param]))
    return replace(changed, patch_size=(8, 12), spacing_mm=(1.0, 1.0)) if "2d" in request.param else changed


@pytest.fixture
def random_weights() -> Callable[[Plan], dict[str, np.ndarray]]:
    """Every tensor of a plan's network."""

    def make(plan: Plan) -> dict[str, np.ndarray]:
        source = np.random.default_rng(0)
        shapes = tensors(plan.architecture, plan.inputs, plan.outputs)
        return {key: source.standard_normal(shape).astype(np.float32) * 0.3 for key, shape in shapes.items()}

    return make
