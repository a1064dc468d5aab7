"""One member of a bundle, open: its networks, what makes logits of their answers, and the self-test that it passed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from engines.backends.base import REFERENCE, Answer, Backend, Engine, Placement, Precision, Weights
from engines.backends.catalogue import backend_class
from engines.errors import BackendUnavailable
from engines.inference.arithmetic import Head
from engines.inference.estimate import activation_bytes
from engines.inference.memory import fitting_batch
from engines.inference.sliding_window import Windowing
from engines.model.bundle import Member, ParityCrop
from engines.model.network import head_key
from engines.model.plan import Plan

_SLICES_TOGETHER, _VOLUMES_TOGETHER = 16, 2
"""Patches in a batch on a card. Not measured on one yet."""


@dataclass(frozen=True)
class Tolerance:
    """How far a backend's answer on the parity crop may lie from the stored one."""

    error: float
    """Largest error of a logit, in standard deviations of the crop's logits."""
    agreement: float
    """Least share of the crop's voxels whose largest class is the reference's."""


TOLERANCES: Mapping[Precision, Tolerance] = MappingProxyType(
    {"float32": Tolerance(0.01, 0.999), "float16": Tolerance(0.5, 0.97), "bfloat16": Tolerance(0.5, 0.97)}
)
"""The self-test finds what is broken. Whether 16 bits are enough for a model, its certificate says."""


@dataclass(frozen=True, eq=False)
class OpenMember:
    """A member with its networks, one for each fold, and what makes logits of what they answer."""

    member: Member
    networks: tuple[Backend, ...]
    answer: Answer
    head: Head | None
    """Where features are summed."""
    as_nnunet: bool
    """Whether sums are kept in float16, of each fold by itself, as nnU-Net keeps them: the reference's way."""
    tested_s: float = 0.0
    """What a patch took after the self-test, by itself."""

    @property
    def windowing(self) -> Windowing:
        """How the networks are moved."""
        plan = self.member.plan
        features = self.answer == "features"
        return Windowing(
            plan.patch_size,
            plan.architecture.features[0] if features else plan.outputs,
            self.answer,
            self.member.mirroring_axes,
            sums=torch.float16 if self.as_nnunet else torch.float32,
            side_by_side=features or self.as_nnunet,
        )

    @property
    def folds(self) -> int:
        """Of which logits lie side by side."""
        return len(self.networks) if self.as_nnunet else 1


def open_member(member: Member, engine: Engine, placement: Placement) -> OpenMember:
    """Open every fold, and let the first pass the member's self-test.

    Raises
    ------
    BackendUnavailable
        Where the engine cannot run here, or fails the self-test, with the reason.
    BundleError
        Where the weights do not fit the plan.
    """
    plan, weights = member.plan, [member.weights(fold) for fold in member.folds]
    answer = answer_of(member, engine)
    channels = plan.architecture.features[0] if answer == "features" else plan.outputs
    placement = replace(placement, answer=answer, batch=_batch(plan, placement, channels))
    networks: list[Backend] = []
    try:
        for tensors in weights:
            networks.append(backend_class(engine.backend).open(plan, tensors, placement))
        head = head_of(plan, weights) if answer == "features" else None
        return _self_tested(OpenMember(member, tuple(networks), answer, head, engine == REFERENCE), engine)
    except BaseException:
        _close(networks)
        raise


def answer_of(member: Member, engine: Engine) -> Answer:
    """What an engine is asked for: features instead of logits where they are fewer.

    The head is one matrix, and sums are linear. The reference sums as nnU-Net does, whose float16 rounds what it was to
    be compared in.
    """
    fewer = member.plan.architecture.features[0] * len(member.folds) < member.plan.outputs
    return "features" if fewer and engine != REFERENCE else "logits"


def _batch(plan: Plan, placement: Placement, channels: int) -> int:
    """On a card, as many patches together as its free memory takes, up to a few: slices are small, volumes are not."""
    if placement.device == "cpu":
        return placement.batch
    one = activation_bytes(plan, replace(placement, batch=1), channels)
    return fitting_batch(_SLICES_TOGETHER if plan.is_2d else _VOLUMES_TOGETHER, one, placement.device)


def close_members(members: Iterable[OpenMember]) -> None:
    """Give back what the device holds."""
    for each in members:
        _close(each.networks)


def _close(networks: Iterable[Backend]) -> None:
    for network in networks:
        network.close()


def disagreement(opened: OpenMember, crop: ParityCrop) -> str | None:
    """How a member's answer on its parity crop differs from the stored one by more than it may; None where not."""
    network = opened.networks[0]
    tensor = next(network.answers([torch.from_numpy(crop.image)])).float().cpu()
    if opened.answer == "features":
        head = head_of(opened.member.plan, [opened.member.weights(opened.member.folds[0])])
        tensor = (head.matrix @ tensor.flatten(1) + head.bias[:, None]).reshape(-1, *tensor.shape[1:])
    answer = tensor.numpy()
    error = crop.error(answer)
    agreement = float((crop.kept(answer).argmax(axis=0) == crop.logits.argmax(axis=0)).mean())
    # Written so that an answer which is not a number fails too.
    allowed = TOLERANCES[network.precision]
    if error <= allowed.error and agreement >= allowed.agreement:
        return None
    return f"self-test failed: logits off by {error:.2g} standard deviations, {100 * agreement:.2f} % of classes equal"


def _self_tested(opened: OpenMember, engine: Engine) -> OpenMember:
    crop = opened.member.parity()
    if fault := disagreement(opened, crop):
        raise BackendUnavailable(f"{engine}: {fault}")
    begin = time.monotonic()  # the first answer also paid for what is done once
    next(opened.networks[0].answers([torch.from_numpy(crop.image)])).float().cpu()
    return replace(opened, tested_s=time.monotonic() - begin)


def head_of(plan: Plan, folds: Sequence[Weights]) -> Head:
    """Of folds side by side: the mean of their logits."""
    key = head_key(plan.architecture)
    matrices = [torch.from_numpy(each[f"{key}.weight"].reshape(plan.outputs, -1)) for each in folds]
    biases = [torch.from_numpy(each[f"{key}.bias"]) for each in folds]
    return Head(torch.cat(matrices, dim=1) / len(folds), torch.stack(biases).mean(0))
