"""nnU-Net's plans.json, read into the typed plan of one configuration, inheritance resolved.

Both styles of the file are understood. Whatever is not known is refused, naming what and where: a key that is skipped
could be one that changes the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from engines.conversion.dataset import Labels
from engines.errors import BundleError
from engines.model.plan import (
    PICTURES,
    Architecture,
    Channel,
    Intensities,
    NetworkName,
    Normalization,
    Plan,
    Resampling,
    ResamplingFunction,
)


def read_plan(plans: Mapping[str, Any], configuration: str, labels: Labels) -> Plan:
    """One configuration of an nnU-Net plans.json.

    Raises
    ------
    BundleError
        Where a key or a name is unknown, a value does not fit, or a kind of model is not taken.
    """
    _refuse_unknown("plans.json", plans, _PLAN_KEYS)
    settings = _resolve(plans, configuration)
    where = f"plans.json: configurations: {configuration}"
    _refuse_unknown(where, settings, _CONFIGURATION_KEYS)
    _expect(where, settings.get("preprocessor_name"), ("DefaultPreprocessor",), "preprocessor_name")
    _expect("plans.json", plans.get("label_manager", "LabelManager"), ("LabelManager",), "label_manager")
    _expect("plans.json", plans.get("image_reader_writer"), _READERS, "image_reader_writer")
    patch, spacing = _whole_numbers(where, settings, "patch_size"), _numbers(where, settings, "spacing")
    architecture = read_architecture(where, settings)
    if not len(patch) == len(spacing) == architecture.dimensions or len(patch) not in (2, 3):
        raise BundleError(f"{where}: patch_size {patch}, spacing {spacing} and kernels differ in dimensions")
    _check_patch(where, patch, architecture)
    _check_reader(where, str(plans["image_reader_writer"]), patch)
    forward, backward = _transposes(plans)
    cascaded = settings.get("previous_stage") is not None
    return Plan(
        dataset=str(plans.get("dataset_name", "")),
        configuration=configuration,
        reader=str(plans["image_reader_writer"]),
        transpose_forward=forward,
        transpose_backward=backward,
        patch_size=patch,
        spacing_mm=spacing,
        channels=_channels(where, settings, plans, labels.channels),
        resampling=_resampling(where, settings, "resampling_fn_data"),
        logit_resampling=_logit_resampling(where, settings),
        architecture=architecture,
        outputs=labels.outputs,
        ignore_label=labels.ignore_label,
        region_order=labels.region_order,
        previous_labels=labels.foreground if cascaded else (),
        label_resampling=_label_resampling(where, settings) if cascaded else None,
    )


def read_previous_stage(plans: Mapping[str, Any], configuration: str) -> str | None:
    """The configuration whose labels this one sees, where it is the second network of a cascade.

    Raises
    ------
    BundleError
        Where the configuration is not there.
    """
    earlier = _resolve(plans, configuration).get("previous_stage")
    return None if earlier is None else str(earlier)


def read_architecture(where: str, settings: Mapping[str, Any]) -> Architecture:
    """The network of a configuration, in the new style (`architecture`) or the old one (`UNet_class_name`)."""
    if "architecture" not in settings:
        return _old_style(where, settings)
    given = settings["architecture"]
    _refuse_unknown(f"{where}: architecture", given, {"network_class_name", "arch_kwargs", "_kw_requires_import"})
    network = _network_name(where, str(given.get("network_class_name", "")).rsplit(".", 1)[-1])
    arguments = given["arch_kwargs"]
    where = f"{where}: architecture: arch_kwargs"
    depth = "n_conv_per_stage" if network == "PlainConvUNet" else "n_blocks_per_stage"
    _refuse_unknown(where, arguments, _ARCHITECTURE_KEYS | {depth})
    _check_modules(where, arguments)
    stages = int(arguments["n_stages"])
    dimensions = 3 if str(arguments["conv_op"]).endswith("3d") else 2
    norm = arguments.get("norm_op_kwargs") or {}
    stem = arguments.get("stem_channels")
    return Architecture(
        network=network,
        features=_per_stage(where, arguments, "features_per_stage", stages),
        kernels=_sizes_per_stage(where, arguments, "kernel_sizes", stages, dimensions),
        strides=_sizes_per_stage(where, arguments, "strides", stages, dimensions),
        blocks=_per_stage(where, arguments, depth, stages),
        decoder_blocks=_per_stage(where, arguments, "n_conv_per_stage_decoder", stages - 1),
        bias=bool(arguments.get("conv_bias", False)),
        norm_eps=float(norm.get("eps", 1e-5)),
        norm_affine=bool(norm.get("affine", False)),
        negative_slope=_slope(arguments),
        stem_features=None if stem is None else int(stem),
    )


def _old_style(where: str, settings: Mapping[str, Any]) -> Architecture:
    """nnU-Net before 2.3 wrote the parts of its network beside each other; the rest was fixed."""
    missing = sorted(_OLD_STYLE_KEYS - set(settings) - {"num_pool_per_axis"})
    if missing:
        raise BundleError(f"{where}: neither `architecture` nor the older {', '.join(missing)}")
    kernels = settings["conv_kernel_sizes"]
    stages, dimensions = len(settings["n_conv_per_stage_encoder"]), len(settings["patch_size"])
    base, most = int(settings["UNet_base_num_features"]), int(settings["unet_max_num_features"])
    if len(kernels) != stages:
        raise BundleError(
            f"{where}: conv_kernel_sizes: {len(kernels)} stages, but n_conv_per_stage_encoder has {stages}"
        )
    return Architecture(
        network=_network_name(where, settings["UNet_class_name"]),
        features=tuple(min(base * 2**stage, most) for stage in range(stages)),
        kernels=_sizes_per_stage(where, settings, "conv_kernel_sizes", stages, dimensions),
        strides=_sizes_per_stage(where, settings, "pool_op_kernel_sizes", stages, dimensions),
        blocks=_per_stage(where, settings, "n_conv_per_stage_encoder", stages),
        decoder_blocks=_per_stage(where, settings, "n_conv_per_stage_decoder", stages - 1),
        bias=True,
        norm_eps=1e-5,
        norm_affine=True,
        negative_slope=0.01,
    )


_PLAN_KEYS = {
    "dataset_name",
    "plans_name",
    "original_median_spacing_after_transp",
    "original_median_shape_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "configurations",
    "experiment_planner_used",
    "label_manager",
    "foreground_intensity_properties_per_channel",
    "foreground_intensity_properties_by_modality",
    "continue_training",
}
_OLD_STYLE_KEYS = {
    "UNet_class_name",
    "UNet_base_num_features",
    "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder",
    "num_pool_per_axis",
    "pool_op_kernel_sizes",
    "conv_kernel_sizes",
    "unet_max_num_features",
}
_CONFIGURATION_KEYS = _OLD_STYLE_KEYS | {
    "data_identifier",
    "preprocessor_name",
    "batch_size",
    "patch_size",
    "median_image_size_in_voxels",
    "median_patient_size_in_voxels",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_seg",
    "resampling_fn_probabilities",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg_kwargs",
    "resampling_fn_probabilities_kwargs",
    "architecture",
    "batch_dice",
    "inherits_from",
    "next_stage",
    "previous_stage",
}
_ARCHITECTURE_KEYS = {
    "n_stages",
    "features_per_stage",
    "conv_op",
    "kernel_sizes",
    "strides",
    "n_conv_per_stage_decoder",
    "conv_bias",
    "norm_op",
    "norm_op_kwargs",
    "dropout_op",
    "dropout_op_kwargs",
    "nonlin",
    "nonlin_kwargs",
    "deep_supervision",
    "stem_channels",
}
_READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient", "Tiff3DIO", PICTURES)

# Keyword arguments that change nothing in inference are allowed beside those that are kept.
_RESAMPLING_KEYS: dict[ResamplingFunction, set[str]] = {
    "resample_data_or_seg_to_shape": {"is_seg", "order", "order_z", "force_separate_z"},
    "resample_torch_fornnunet": {"is_seg", "force_separate_z", "memefficient_seg_resampling", "num_threads"},
    "no_resampling_hack": set(),
}


def _resolve(plans: Mapping[str, Any], configuration: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A configuration with what it inherits, nearest first."""
    configurations = plans.get("configurations")
    if not isinstance(configurations, Mapping) or configuration not in configurations:
        known = ", ".join(configurations) if isinstance(configurations, Mapping) else "none"
        raise BundleError(f"plans.json: configurations: {configuration} is not there; known: {known}")
    if configuration in seen:
        raise BundleError(f"plans.json: configurations: inherits_from runs in a circle: {' > '.join(seen)}")
    own = dict(configurations[configuration])
    parent = own.get("inherits_from")
    return own if parent is None else {**_resolve(plans, str(parent), (*seen, configuration)), **own}


def _refuse_unknown(where: str, given: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise BundleError(f"{where}: unknown key: {', '.join(unknown)}")


def _expect(where: str, value: object, known: Sequence[object], key: str) -> None:
    if value not in known:
        raise BundleError(f"{where}: {key}: {value!r} is not taken; known: {', '.join(map(str, known))}")


def _network_name(where: str, name: str) -> NetworkName:
    for known in get_args(NetworkName):
        if name == known:
            return known  # type: ignore[no-any-return]  # get_args gives the literals of NetworkName
    raise BundleError(f"{where}: network {name!r} is not taken; known: {', '.join(get_args(NetworkName))}")


def _check_modules(where: str, arguments: Mapping[str, Any]) -> None:
    """Only the modules that nnU-Net's own planners choose; their names are compared, never imported."""
    for key, kinds in (("conv_op", ("Conv2d", "Conv3d")), ("norm_op", ("InstanceNorm2d", "InstanceNorm3d"))):
        _expect(where, str(arguments.get(key)).rsplit(".", 1)[-1], kinds, key)
    _expect(where, str(arguments.get("nonlin")).rsplit(".", 1)[-1], ("LeakyReLU", "ReLU"), "nonlin")
    # Dropout does nothing once training is over.
    _expect(
        where, str(arguments.get("dropout_op")).rsplit(".", 1)[-1], ("None", "Dropout2d", "Dropout3d"), "dropout_op"
    )
    _refuse_unknown(f"{where}: norm_op_kwargs", arguments.get("norm_op_kwargs") or {}, {"eps", "affine"})
    _refuse_unknown(f"{where}: nonlin_kwargs", arguments.get("nonlin_kwargs") or {}, {"inplace", "negative_slope"})


def _slope(arguments: Mapping[str, Any]) -> float:
    if str(arguments["nonlin"]).endswith(".ReLU"):
        return 0.0
    return float((arguments.get("nonlin_kwargs") or {}).get("negative_slope", 0.01))


def _per_stage(where: str, given: Mapping[str, Any], key: str, stages: int) -> tuple[int, ...]:
    value = given.get(key)
    values = [value] * stages if isinstance(value, int) else value
    if not isinstance(values, list | tuple) or len(values) != stages or not all(_is_positive(v) for v in values):
        raise BundleError(f"{where}: {key}: {value!r} is not a positive whole number for each of {stages} stages")
    return tuple(int(v) for v in values)


def _sizes_per_stage(
    where: str, given: Mapping[str, Any], key: str, stages: int, dimensions: int
) -> tuple[tuple[int, ...], ...]:
    value = given.get(key)
    if not isinstance(value, list | tuple) or len(value) != stages:
        raise BundleError(f"{where}: {key}: {value!r} has not one entry for each of {stages} stages")
    sizes = [[entry] * dimensions if isinstance(entry, int) else entry for entry in value]
    if not all(len(size) == dimensions and all(_is_positive(n) for n in size) for size in sizes):
        raise BundleError(f"{where}: {key}: {value!r} has not {dimensions} positive whole numbers for each stage")
    return tuple(tuple(int(n) for n in size) for size in sizes)


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_patch(where: str, patch: Sequence[int], architecture: Architecture) -> None:
    """Each stage must halve evenly, or the decoder's maps do not fit the encoder's."""
    for axis, size in enumerate(patch):
        total = 1
        for stride in architecture.strides:
            total *= stride[axis]
        if size < total or size % total:
            raise BundleError(f"{where}: patch_size {tuple(patch)} is not a multiple of the strides' product, {total}")
    if any(n % 2 == 0 for kernel in architecture.kernels for n in kernel):
        raise BundleError(f"{where}: kernel_sizes {architecture.kernels}: even kernels do not keep the size")


def _check_reader(where: str, reader: str, patch: Sequence[int]) -> None:
    if reader == PICTURES and len(patch) != 2:
        raise BundleError(f"{where}: image_reader_writer: {PICTURES} reads single pictures, patch_size {patch} is 3D")


def _transposes(plans: Mapping[str, Any]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    forward, backward = plans.get("transpose_forward"), plans.get("transpose_backward")
    if (
        not isinstance(forward, list)
        or not isinstance(backward, list)
        or sorted(forward) != [0, 1, 2]
        or [forward.index(axis) for axis in range(3)] != backward
    ):
        raise BundleError(f"plans.json: transpose_forward {forward} and transpose_backward {backward} are no inverses")
    return (forward[0], forward[1], forward[2]), (backward[0], backward[1], backward[2])


def _whole_numbers(where: str, settings: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = settings.get(key)
    if not isinstance(value, list) or not all(_is_positive(n) for n in value):
        raise BundleError(f"{where}: {key}: {value!r} is not a list of positive whole numbers")
    return tuple(value)


def _numbers(where: str, settings: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = settings.get(key)
    if not isinstance(value, list) or not all(isinstance(n, int | float) and n > 0 for n in value):
        raise BundleError(f"{where}: {key}: {value!r} is not a list of positive numbers")
    return tuple(float(n) for n in value)


def _channels(
    where: str, settings: Mapping[str, Any], plans: Mapping[str, Any], names: Sequence[str]
) -> tuple[Channel, ...]:
    schemes, masks = settings.get("normalization_schemes", []), settings.get("use_mask_for_norm", [])
    if not len(schemes) == len(masks) == len(names):
        raise BundleError(f"{where}: normalization_schemes and use_mask_for_norm do not fit {len(names)} channels")
    table = plans.get("foreground_intensity_properties_per_channel")
    table = plans.get("foreground_intensity_properties_by_modality") if table is None else table
    channels = []
    for index, (name, scheme, mask) in enumerate(zip(names, schemes, masks, strict=True)):
        _expect(where, scheme, get_args(Normalization), "normalization_schemes")
        _expect(where, mask, (True, False), "use_mask_for_norm")
        statistics = (table or {}).get(str(index))
        intensities = _intensities(statistics)
        if intensities is None and scheme == "CTNormalization":
            raise BundleError(f"plans.json: foreground_intensity_properties_per_channel: nothing for channel {index}")
        channels.append(Channel(name, scheme, bool(mask), intensities))
    return tuple(channels)


def _intensities(statistics: Mapping[str, Any] | None) -> Intensities | None:
    """None where there are none, or where training found no foreground to measure."""
    if statistics is None:
        return None
    try:
        values = [float(statistics[key]) for key in ("mean", "std", "percentile_00_5", "percentile_99_5")]
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"plans.json: foreground_intensity_properties_per_channel: {error!r}") from error
    return Intensities(*values) if all(math.isfinite(value) for value in values) else None


def _resampling(where: str, settings: Mapping[str, Any], key: str, of_labels: bool = False) -> Resampling:
    name, arguments = settings.get(key), settings.get(f"{key}_kwargs") or {}
    _expect(where, name, get_args(ResamplingFunction), key)
    function: ResamplingFunction = name  # type: ignore[assignment]  # one of the literals, just checked
    _refuse_unknown(f"{where}: {key}_kwargs", arguments, _RESAMPLING_KEYS[function])
    if function != "no_resampling_hack":
        _expect(f"{where}: {key}_kwargs", bool(arguments.get("is_seg")), (of_labels,), "is_seg")
    force = arguments.get("force_separate_z")
    if force not in (None, False, True):
        raise BundleError(f"{where}: {key}_kwargs: force_separate_z: {force!r} is not null, false or true")
    if function != "resample_data_or_seg_to_shape":
        return Resampling(function, order=1, order_z=0, force_separate_z=force)
    # The defaults of nnU-Net's function, where its plan leaves them out.
    order, order_z = arguments.get("order", 3), arguments.get("order_z", 0)
    for argument, value in (("order", order), ("order_z", order_z)):
        _expect(f"{where}: {key}_kwargs", value, range(6), argument)
    force = arguments.get("force_separate_z", False)
    return Resampling(function, int(order), int(order_z), force)


def _logit_resampling(where: str, settings: Mapping[str, Any]) -> Resampling:
    key = "resampling_fn_probabilities"
    resampling = _resampling(where, settings, key)
    if resampling.order > 1 or resampling.order_z > 1:
        raise BundleError(f"{where}: {key}_kwargs: the way back interpolates by order 0 or 1, not {resampling.order}")
    return resampling


def _label_resampling(where: str, settings: Mapping[str, Any]) -> Resampling:
    """Of a cascade: as nnU-Net's planners choose it, each label interpolated linearly and the largest taken."""
    key = "resampling_fn_seg"
    resampling = _resampling(where, settings, key, of_labels=True)
    if resampling.order > 1 or resampling.order_z > 0:
        told = f"order {resampling.order} and order_z {resampling.order_z}"
        raise BundleError(f"{where}: {key}_kwargs: labels are resampled by order 0 or 1 and order_z 0, not {told}")
    if (settings.get(f"{key}_kwargs") or {}).get("memefficient_seg_resampling"):
        raise BundleError(f"{where}: {key}_kwargs: memefficient_seg_resampling: true is not taken")
    if (resampling.function == "no_resampling_hack") != (settings["resampling_fn_data"] == "no_resampling_hack"):
        raise BundleError(f"{where}: {key}: image and labels must both be resampled, or neither")
    return resampling
