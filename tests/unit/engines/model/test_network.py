"""The two U-Nets: their tensors by name and shape, counted against what nnU-Net's own networks hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.model.network import tensors
from engines.model.plan import Architecture

RESENC_M = Architecture(
    network="ResidualEncoderUNet",
    features=(32, 64, 128, 256, 320, 320),
    kernels=((3, 3, 3),) * 6,
    strides=((1, 1, 1), *((2, 2, 2),) * 5),
    blocks=(1, 3, 4, 6, 6, 6),
    decoder_blocks=(1, 1, 1, 1, 1),
    bias=True,
    norm_eps=1e-5,
    norm_affine=True,
    negative_slope=0.01,
)
PLAIN = replace(RESENC_M, network="PlainConvUNet", blocks=(2,) * 6, decoder_blocks=(2,) * 5)


def test_plain_unet_of_the_default_plan() -> None:
    found = tensors(PLAIN, 1, 25)
    assert len(found) == 100
    assert found["encoder.stages.0.0.convs.0.conv.weight"] == (32, 1, 3, 3, 3)
    assert found["decoder.transpconvs.0.weight"] == (320, 320, 2, 2, 2)
    assert found["decoder.stages.4.convs.0.conv.weight"] == (32, 64, 3, 3, 3)
    assert found["decoder.seg_layers.4.weight"] == (25, 32, 1, 1, 1)
    assert not any("seg_layers.3" in key for key in found)


def test_residual_unet_has_projections_only_where_features_change() -> None:
    found = tensors(RESENC_M, 1, 25)
    assert found["encoder.stem.convs.0.conv.weight"] == (32, 1, 3, 3, 3)
    assert found["encoder.stages.1.blocks.0.skip.1.conv.weight"] == (64, 32, 1, 1, 1)
    assert "encoder.stages.1.blocks.0.skip.1.conv.bias" not in found
    assert not any(key.startswith("encoder.stages.5.blocks.0.skip") for key in found)
    assert not any(key.startswith("encoder.stages.1.blocks.1.skip") for key in found)


def test_projection_without_stride_comes_first_in_the_skip() -> None:
    found = tensors(replace(RESENC_M, stem_features=16), 1, 3)
    assert found["encoder.stages.0.blocks.0.skip.0.conv.weight"] == (32, 16, 1, 1, 1)


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_keys_and_shapes_equal_nnunets_own_network(network: str) -> None:
    """Key for key, against the package that nnU-Net builds its networks with."""
    from dynamic_network_architectures.architectures import unet
    from torch import nn

    ours = replace(
        RESENC_M,
        network=network,
        features=(4, 8, 8),
        kernels=((1, 3), (3, 3), (3, 3)),
        strides=((1, 1), (1, 2), (2, 2)),
        blocks=(1, 2, 2),
        decoder_blocks=(2, 1),
    )
    depth = "n_conv_per_stage" if network == "PlainConvUNet" else "n_blocks_per_stage"
    arguments = {
        "n_stages": 3,
        "features_per_stage": ours.features,
        "conv_op": nn.Conv2d,
        "kernel_sizes": ours.kernels,
        "strides": ours.strides,
        depth: ours.blocks,
        "n_conv_per_stage_decoder": ours.decoder_blocks,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm2d,
        "norm_op_kwargs": {"affine": True},
        "nonlin": nn.LeakyReLU,
    }
    theirs = getattr(unet, network)(1, num_classes=3, **arguments).state_dict()
    unused = ("all_modules", "decoder.encoder", "seg_layers.0")
    kept = {key: tuple(each.shape) for key, each in theirs.items() if not any(word in key for word in unused)}
    assert tensors(ours, 1, 3) == kept
