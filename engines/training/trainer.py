"""nnU-Net's own trainer with a budget of its own: fewer, shorter epochs, and a run that a kill does not lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from engines.training.budget import Budget


class BudgetTrainer(nnUNetTrainer):  # type: ignore[misc]  # nnunetv2 ships no types
    """nnUNetTrainer under a budget.

    Architecture, loss, augmentation, sampling and the polynomial learning rate are nnU-Net's. The weights
    are written after each epoch, and `resume` goes on from there.
    """

    budget: Budget

    def grant(self, budget: Budget) -> None:
        """Set the budget; call before `resume` and `run_training`."""
        self.budget = budget
        self.num_epochs = budget.epochs
        self.num_iterations_per_epoch = budget.iterations_per_epoch
        self.num_val_iterations_per_epoch = budget.validation_iterations
        self.oversample_foreground_percent = budget.foreground_share
        self.save_every = 1

    def configure_optimizers(self) -> tuple[Any, Any]:
        """nnU-Net's optimiser and schedule, or AdamW under the same schedule."""
        if self.budget.adam_rate is None:
            optimizer, schedule = super().configure_optimizers()
            return optimizer, schedule
        self.initial_lr = self.budget.adam_rate
        adam = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return adam, PolyLRScheduler(adam, self.initial_lr, self.num_epochs)

    def resume(self) -> bool:
        """Go on from this run's own latest checkpoint; False where there is none.

        nnU-Net unpickles the checkpoint: point it at a folder that this run wrote, at nothing else.
        """
        for name in ("checkpoint_latest.pth", "checkpoint_final.pth"):
            checkpoint = Path(self.output_folder) / name
            if checkpoint.is_file():
                self.load_checkpoint(str(checkpoint))
                return True
        return False

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802  (nnU-Net's own spelling)
        """nnU-Net's augmentation set-up, without mirroring where sides are labels."""
        rotation, dummy_2d, patch, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.budget.mirror:
            mirror_axes = None
            self.inference_allowed_mirroring_axes = None
        if not self.budget.augment:
            patch = self.configuration_manager.patch_size
        return rotation, dummy_2d, patch, mirror_axes

    def get_training_transforms(self, *arguments: Any, **named: Any) -> Any:
        """nnU-Net's augmentation, or none: then training sees what validation sees."""
        if self.budget.augment:
            return super().get_training_transforms(*arguments, **named)
        return self.get_validation_transforms(
            named.get("deep_supervision_scales", arguments[2] if len(arguments) > 2 else None),
            is_cascaded=named.get("is_cascaded", False),
            foreground_labels=named.get("foreground_labels"),
            regions=named.get("regions"),
            ignore_label=named.get("ignore_label"),
        )
