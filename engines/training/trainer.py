"""nnU-Net's own trainer with a time budget: the learning rate falls over the hours that were granted, not over epochs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


@dataclass(frozen=True)
class Budget:
    """What one training run may cost."""

    hours: float
    """Wall clock; the run ends at the first epoch that starts after it."""
    iterations_per_epoch: int = 60
    validation_iterations: int = 10
    mirror: bool = True
    """False where left and right are labels of their own: a mirrored patient would teach the wrong side."""


class BudgetTrainer(nnUNetTrainer):  # type: ignore[misc]  # nnunetv2 ships no types
    """nnUNetTrainer whose polynomial learning rate follows the share of the time budget already spent.

    Architecture, loss, augmentation, sampling and optimiser are nnU-Net's. The weights are written after each epoch,
    so that a run which is stopped leaves what it has learnt.
    """

    budget: Budget
    started: float

    def grant(self, budget: Budget) -> None:
        """Set the budget; call before `run_training`."""
        self.budget = budget
        self.started = time.monotonic()
        self.num_epochs = 1_000_000
        self.num_iterations_per_epoch = budget.iterations_per_epoch
        self.num_val_iterations_per_epoch = budget.validation_iterations
        self.save_every = 1

    @property
    def spent(self) -> float:
        """Share of the budget that has passed, 0 to 1."""
        return min(1.0, (time.monotonic() - self.started) / (3600 * self.budget.hours))

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802  (nnU-Net's own spelling)
        """nnU-Net's augmentation set-up, without mirroring where sides are labels."""
        rotation, dummy_2d, patch, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.budget.mirror:
            mirror_axes = None
            self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, patch, mirror_axes

    def on_train_epoch_start(self) -> None:
        """Start an epoch at the learning rate that is due now (polynomial, exponent 0.9, as nnU-Net's)."""
        super().on_train_epoch_start()
        rate = self.initial_lr * (1 - self.spent) ** 0.9
        for group in self.optimizer.param_groups:
            group["lr"] = max(rate, 1e-6)

    def run_training(self) -> None:
        """Train until the budget is spent; the last checkpoint is `checkpoint_final.pth`."""
        self.on_train_start()
        epoch = 0
        while self.spent < 1:
            self.on_epoch_start()
            self.on_train_epoch_start()
            losses = [self.train_step(next(self.dataloader_train)) for _ in range(self.num_iterations_per_epoch)]
            self.on_train_epoch_end(losses)
            with torch.no_grad():
                self.on_validation_epoch_start()
                checks = [
                    self.validation_step(next(self.dataloader_val)) for _ in range(self.num_val_iterations_per_epoch)
                ]
                self.on_validation_epoch_end(checks)
            self.on_epoch_end()
            epoch += 1
        self.on_train_end()
