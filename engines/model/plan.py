"""The nnU-Net plan of one configuration, typed: what preprocessing, network and way back need, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Normalization = Literal[
    "CTNormalization",
    "ZScoreNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
]
ResamplingFunction = Literal["resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack"]
NetworkName = Literal["PlainConvUNet", "ResidualEncoderUNet"]

PICTURES = "NaturalImage2DIO"
"""nnU-Net's reader of pictures, which know no millimetres: to it, every pixel is 1 wide and every slice 999 thick."""
_STRICT = {"extra": "forbid"}
"""Read by pydantic in `bundle.py`, so that a plan with a key too many does not load."""


@dataclass(frozen=True)
class Intensities:
    """Voxel statistics of the foreground of the training set, in the units of the image."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class Channel:
    """One input image of the network."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    name: str
    normalization: Normalization
    use_mask: bool
    """Whether statistics are those of the nonzero region, which alone is then normalised."""
    intensities: Intensities | None


@dataclass(frozen=True)
class Resampling:
    """One of nnU-Net's resampling functions with its keyword arguments."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    function: ResamplingFunction
    order: int
    """Degree of the spline, in-plane where the axis of largest spacing is resampled separately."""
    order_z: int
    """Degree along that axis."""
    force_separate_z: bool | None
    """None: decided from the spacings."""


@dataclass(frozen=True)
class Architecture:
    """One of nnU-Net's two U-Nets; every tuple of stages runs from full resolution downwards."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    network: NetworkName
    features: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    blocks: tuple[int, ...]
    """Convolutions (PlainConvUNet) or residual blocks (ResidualEncoderUNet) of each encoder stage."""
    decoder_blocks: tuple[int, ...]
    """Convolutions of each decoder stage, in the order of computation: lowest resolution first."""
    bias: bool
    norm_eps: float
    norm_affine: bool
    negative_slope: float
    """Of the leaky rectifier; 0 is the plain one."""
    stem_features: int | None = None
    """Of ResidualEncoderUNet; None: the features of the first stage."""

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.kernels[0])


@dataclass(frozen=True)
class Plan:
    """One configuration of plans.json, inheritance resolved. Spacings and sizes are in the transposed axis order."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    dataset: str
    configuration: str
    reader: str
    transpose_forward: tuple[int, int, int]
    transpose_backward: tuple[int, int, int]
    patch_size: tuple[int, ...]
    """Three numbers, or two where the network sees single slices."""
    spacing_mm: tuple[float, ...]
    """As many as `patch_size`."""
    channels: tuple[Channel, ...]
    resampling: Resampling
    """Of the image."""
    logit_resampling: Resampling
    """Of the network's answer, on the way back."""
    architecture: Architecture
    outputs: int
    """Channels of the network's answer: background and the labels, or the regions."""
    ignore_label: int | None = None
    """A label of the training set that the network never gives."""
    region_order: tuple[int, ...] = ()
    """For a network of regions, which may overlap: the label that each output paints where it is more likely than not,
    in order, later over earlier (nnU-Net's `regions_class_order`). Empty: each output is a class, the largest wins."""
    previous_labels: tuple[int, ...] = ()
    """For the second network of a cascade: the labels of the first, which it sees as further channels, one for each."""
    label_resampling: Resampling | None = None
    """Of the earlier network's labels; given where `previous_labels` are."""

    @property
    def is_2d(self) -> bool:
        """Whether the network sees single slices."""
        return len(self.patch_size) == 2

    @property
    def inputs(self) -> int:
        """Channels of the network's input: the images, and the labels of a cascade's first network."""
        return len(self.channels) + len(self.previous_labels)

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels that the network gives, in rising order, background left out."""
        return tuple(sorted(self.region_order)) if self.region_order else tuple(range(1, self.outputs))
