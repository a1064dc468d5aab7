"""What a training run may cost, and what it departs from nnU-Net in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """What one training run may cost; counted in steps, so that a busy machine only makes it later."""

    epochs: int
    """Counted from the start of the run, earlier stretches included."""
    iterations_per_epoch: int = 60
    validation_iterations: int = 10
    adam_rate: float | None = None
    """Start rate of AdamW instead of nnU-Net's SGD; it learns easy images in fewer steps."""
    foreground_share: float = 0.33
    """Of the patches that are centred on a labelled voxel."""
    mirror: bool = True
    """False where left and right are labels of their own: a mirrored patient would teach the wrong side."""
    augment: bool = True
    """False for a last stretch on the images as they are, which sharpens the borders."""
