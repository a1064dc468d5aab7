"""nnU-Net's intensity normalisation of one channel, before any resampling."""

from __future__ import annotations

import torch

from engines.errors import BundleError, UnsuitableVolume
from engines.model.plan import Channel

_LEAST = 1e-8
"""No division by less; nnU-Net's value for float32."""


def normalize(image: torch.Tensor, channel: Channel, inside: torch.Tensor | None) -> None:
    """Bring a channel to the units that the network was trained on, in place.

    Parameters
    ----------
    image
        float32, (D, H, W): the crop, in the image's own units (HU for CT).
    inside
        bool, (D, H, W): the nonzero region with its holes filled. Needed where `channel.use_mask` is set.

    Raises
    ------
    UnsuitableVolume
        Where RGBTo01Normalization meets a value outside 0 to 255.
    BundleError
        Where CTNormalization has no statistics.
    """
    match channel.normalization:
        case "CTNormalization":
            _ct(image, channel)
        case "ZScoreNormalization":
            _zscore(image, inside if channel.use_mask else None)
        case "RescaleTo01Normalization":
            image.sub_(image.min())
            image.div_(max(float(image.max()), _LEAST))
        case "RGBTo01Normalization":
            if image.min() < 0 or image.max() > 255:
                raise UnsuitableVolume(
                    f"values from {image.min():g} to {image.max():g}; the model was made for 0 to 255"
                )
            image.div_(255)
        case "NoNormalization":
            pass


def _ct(image: torch.Tensor, channel: Channel) -> None:
    """Clip to the training foreground's percentiles, then scale by its mean and deviation."""
    known = channel.intensities
    if known is None:
        raise BundleError(f"channel {channel.name}: CTNormalization without intensity statistics")
    image.clamp_(known.percentile_00_5, known.percentile_99_5).sub_(known.mean).div_(max(known.std, _LEAST))


def _zscore(image: torch.Tensor, inside: torch.Tensor | None) -> None:
    """Mean 0 and deviation 1, of the whole crop or of the inside alone; outside stays as it is."""
    if inside is None:
        mean, deviation = image.mean(), image.std(correction=0)
        image.sub_(mean).div_(max(float(deviation), _LEAST))
        return
    values = image[inside]
    if len(values):
        image[inside] = (values - values.mean()) / max(float(values.std(correction=0)), _LEAST)
