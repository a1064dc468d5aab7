"""nnU-Net's two U-Nets, 2D and 3D, written down once: each backend brings its own operations, none its own network.

The layers carry the names of nnU-Net's checkpoints, so a weight is found by the key under which it was trained. The
deep supervision heads, which only training uses, and the second names that nnU-Net gives to its tensors are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from engines.model.plan import Architecture

T = TypeVar("T")


@dataclass(frozen=True)
class Convolution:
    """A convolution that keeps the size but for its stride: its weights are `{key}.weight` and `{key}.bias`."""

    key: str
    features: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    bias: bool


class Operations(Protocol[T]):
    """What a backend must be able to do; `T` is its own kind of feature map, (B, C, *size)."""

    def convolution(self, x: T, layer: Convolution) -> T:
        """Convolve with padding (kernel - 1) / 2."""
        ...

    def upsampling(self, x: T, layer: Convolution) -> T:
        """Convolve transposed, kernel equal to stride, weights (C_in, C_out, *kernel)."""
        ...

    def normalization(self, x: T, key: str) -> T:
        """Bring each channel of each image to mean 0 and variance 1; scale and shift it where the plan says affine."""
        ...

    def activation(self, x: T) -> T:
        """Leaky rectifier."""
        ...

    def pooling(self, x: T, stride: tuple[int, ...]) -> T:
        """Average over blocks."""
        ...

    def concatenation(self, first: T, second: T) -> T:
        """Join channels."""
        ...

    def addition(self, first: T, second: T) -> T:
        """Add element by element."""
        ...


def run(net: Architecture, outputs: int, ops: Operations[T], image: T) -> T:
    """Logits (B, outputs, *patch) of an image (B, C, *patch)."""
    return head(net, outputs, ops, features(net, ops, image))


def features(net: Architecture, ops: Operations[T], image: T) -> T:
    """What the head sees: the last feature map, (B, net.features[0], *patch), of an image (B, C, *patch)."""
    return _UNet(net, ops).features(image)


def head(net: Architecture, outputs: int, ops: Operations[T], x: T) -> T:
    """Logits (B, outputs, *patch) of the last feature map: one matrix for every voxel, `head_key` in the weights."""
    one = (1,) * net.dimensions
    return ops.convolution(x, Convolution(head_key(net), outputs, one, one, bias=True))


def head_key(net: Architecture) -> str:
    """The layer that turns features into logits."""
    return f"decoder.seg_layers.{len(net.decoder_blocks) - 1}"


def tensors(net: Architecture, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that the network needs, by its key in nnU-Net's checkpoints."""
    inventory = _Inventory(net)
    run(net, outputs, inventory, inputs)
    return inventory.shapes


@dataclass(frozen=True)
class _UNet(Generic[T]):
    net: Architecture
    ops: Operations[T]

    def features(self, image: T) -> T:
        """Encoder and decoder."""
        net, ops = self.net, self.ops
        skips = self.plain_encoder(image) if net.network == "PlainConvUNet" else self.residual_encoder(image)
        x = skips.pop()
        for stage, blocks in enumerate(net.decoder_blocks):
            level = len(net.features) - 2 - stage
            stride = net.strides[level + 1]
            up = Convolution(f"decoder.transpconvs.{stage}", net.features[level], stride, stride, net.bias)
            x = ops.concatenation(ops.upsampling(x, up), skips.pop())
            for block in range(blocks):
                x = self.convolve(x, self.layer(f"decoder.stages.{stage}.convs.{block}", level))
        return x

    def plain_encoder(self, x: T) -> list[T]:
        """The map of every stage; the first convolution of a stage strides."""
        skips = []
        for level, blocks in enumerate(self.net.blocks):
            for block in range(blocks):
                stride = self.net.strides[level] if block == 0 else self.one
                x = self.convolve(x, self.layer(f"encoder.stages.{level}.0.convs.{block}", level, stride))
            skips.append(x)
        return skips

    def residual_encoder(self, x: T) -> list[T]:
        """A stem, then the map of every stage; the first block of a stage strides."""
        width = self.net.stem_features or self.net.features[0]
        stem = Convolution("encoder.stem.convs.0", width, self.net.kernels[0], self.one, self.net.bias)
        x = self.convolve(x, stem)
        skips = []
        for level, blocks in enumerate(self.net.blocks):
            for block in range(blocks):
                stride = self.net.strides[level] if block == 0 else self.one
                x = self.residual_block(x, self.layer(f"encoder.stages.{level}.blocks.{block}", level, stride), width)
                width = self.net.features[level]
            skips.append(x)
        return skips

    def residual_block(self, x: T, layer: Convolution, width: int) -> T:
        """nnU-Net's BasicBlockD: two convolutions, and beside them the mean over the stride and a 1x1 projection."""
        beside, place = x, 0
        if layer.stride != self.one:
            beside, place = self.ops.pooling(beside, layer.stride), 1
        if width != layer.features:
            key = f"{layer.key}.skip.{place}"
            beside = self.normalized(beside, Convolution(key, layer.features, self.one, self.one, bias=False))
        through = self.convolve(x, replace(layer, key=f"{layer.key}.conv1"))
        through = self.normalized(through, replace(layer, key=f"{layer.key}.conv2", stride=self.one))
        return self.ops.activation(self.ops.addition(through, beside))

    def convolve(self, x: T, layer: Convolution) -> T:
        """Convolution, instance norm and leaky rectifier."""
        return self.ops.activation(self.normalized(x, layer))

    def normalized(self, x: T, layer: Convolution) -> T:
        """Convolution and instance norm, which nnU-Net names `conv` and `norm` below the block's key."""
        x = self.ops.convolution(x, replace(layer, key=f"{layer.key}.conv"))
        return self.ops.normalization(x, f"{layer.key}.norm")

    def layer(self, key: str, level: int, stride: tuple[int, ...] | None = None) -> Convolution:
        """A convolution of one level of the U."""
        net = self.net
        return Convolution(key, net.features[level], net.kernels[level], stride or self.one, net.bias)

    @property
    def one(self) -> tuple[int, ...]:
        """Size or stride of one."""
        return (1,) * self.net.dimensions


@dataclass
class _Inventory:
    """Operations on the number of channels alone: they leave the list of tensors behind."""

    net: Architecture
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def convolution(self, x: int, layer: Convolution) -> int:
        self._record(layer, (layer.features, x, *layer.kernel))
        return layer.features

    def upsampling(self, x: int, layer: Convolution) -> int:
        self._record(layer, (x, layer.features, *layer.kernel))
        return layer.features

    def normalization(self, x: int, key: str) -> int:
        if self.net.norm_affine:
            self.shapes[f"{key}.weight"] = self.shapes[f"{key}.bias"] = (x,)
        return x

    def activation(self, x: int) -> int:
        return x

    def pooling(self, x: int, stride: Sequence[int]) -> int:
        return x

    def concatenation(self, first: int, second: int) -> int:
        return first + second

    def addition(self, first: int, second: int) -> int:
        return first

    def _record(self, layer: Convolution, shape: tuple[int, ...]) -> None:
        self.shapes[f"{layer.key}.weight"] = shape
        if layer.bias:
            self.shapes[f"{layer.key}.bias"] = (layer.features,)
