"""Results folders as nnU-Net writes them, its own predictor opened on them, and real volumes to compare on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from engines.conversion.dataset import read_labels
from engines.conversion.nnunet import Description, Selection, import_results_folders
from engines.conversion.plans import read_plan
from engines.measures import dice
from engines.model.bundle import Bundle
from engines.nifti import read_volume
from engines.volume import Volume

CT = {"mean": -20.0, "std": 180.0, "percentile_00_5": -600.0, "percentile_99_5": 700.0, "min": -1000.0, "max": 2000.0}


@dataclass(frozen=True)
class Recipe:
    """A model to be: what differs from one test to the next."""

    name: str = "small"
    """Of the configuration."""
    network: str = "PlainConvUNet"
    patch: tuple[int, ...] = (16, 24, 24)
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    strides: tuple[tuple[int, ...], ...] = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    transpose: tuple[int, int, int] = (0, 1, 2)
    normalization: str = "ZScoreNormalization"
    use_mask: bool = False
    torch_resampling: bool = False
    classes: int = 4
    folds: int = 1
    mirroring: tuple[int, ...] = ()
    orientation: str = "any"
    modality: str = "MR"
    channels: tuple[tuple[str, str, bool], ...] = ()
    """Name, normalisation and mask of each image, where there are several."""
    regions: tuple[tuple[int, ...], ...] = ()
    """The labels of each region, where the network gives regions; the n-th paints the label n + 1."""
    reader: str = "SimpleITKIO"
    previous_stage: bool = False
    """Whether it is the second network of a cascade, after `first`."""

    @property
    def outputs(self) -> int:
        """Channels of the network's answer."""
        return len(self.regions) or self.classes

    @property
    def inputs(self) -> int:
        """Channels of the network's input."""
        return max(1, len(self.channels)) + (self.classes - 1 if self.previous_stage else 0)


def plans_of(recipe: Recipe) -> dict[str, Any]:
    """plans.json: the configuration inherits all but its name from `3d_fullres`."""
    dim = len(recipe.patch)
    stages = len(recipe.strides)
    channels = recipe.channels or (("", recipe.normalization, recipe.use_mask),)
    depth = "n_conv_per_stage" if recipe.network == "PlainConvUNet" else "n_blocks_per_stage"
    function = "resample_torch_fornnunet" if recipe.torch_resampling else "resample_data_or_seg_to_shape"

    def arguments(order: int, is_seg: bool) -> dict[str, Any]:
        if recipe.torch_resampling:
            return {"is_seg": is_seg, "force_separate_z": None, "memefficient_seg_resampling": False}
        return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}

    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(recipe.patch),
        "median_image_size_in_voxels": [50.0] * dim,
        "spacing": list(recipe.spacing),
        "normalization_schemes": [normalization for _, normalization, _ in channels],
        "use_mask_for_norm": [use_mask for _, _, use_mask in channels],
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_probabilities": function,
        "resampling_fn_data_kwargs": arguments(3, False),
        "resampling_fn_seg_kwargs": arguments(1, True),
        "resampling_fn_probabilities_kwargs": arguments(1, False),
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{recipe.network}",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": [8 * 2**i for i in range(stages)],
                "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
                "kernel_sizes": [[3] * dim] * stages,
                "strides": [list(s) for s in recipe.strides],
                depth: [2] * stages,
                "n_conv_per_stage_decoder": [1] * (stages - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    small: dict[str, Any] = {"inherits_from": "3d_fullres", "batch_size": 1}
    if recipe.previous_stage:
        small["previous_stage"] = "first"
    backward = [recipe.transpose.index(axis) for axis in range(3)]
    return {
        "dataset_name": "Dataset900_Parity",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [50, 50, 50],
        "image_reader_writer": recipe.reader,
        "transpose_forward": list(recipe.transpose),
        "transpose_backward": backward,
        "configurations": {"3d_fullres": configuration, recipe.name: small},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(index): CT for index in range(len(channels))},
    }


def dataset_of(recipe: Recipe) -> dict[str, Any]:
    """dataset.json."""
    labels: dict[str, Any] = {"background": 0, **{f"organ {n}": n for n in range(1, recipe.classes)}}
    names = [name for name, _, _ in recipe.channels] or [recipe.modality]
    channels = {str(index): name for index, name in enumerate(names)}
    dataset = {"channel_names": channels, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    if recipe.regions:
        dataset["labels"] = {"background": 0, **{f"region {n}": list(r) for n, r in enumerate(recipe.regions, 1)}}
        dataset["regions_class_order"] = list(range(1, len(recipe.regions) + 1))
    return dataset


class NnunetPlan:
    """One recipe as nnU-Net's objects understand it, and as ours do."""

    def __init__(self, recipe: Recipe) -> None:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        self.recipe = recipe
        self.plans, self.dataset = plans_of(recipe), dataset_of(recipe)
        self.manager = PlansManager(self.plans)
        self.configuration = self.manager.get_configuration(recipe.name)
        self.label_manager = self.manager.get_label_manager(self.dataset)
        self.plan = read_plan(self.plans, recipe.name, read_labels(self.dataset))

    def preprocessed(
        self, image: NDArray[np.float32], spacing: tuple[float, ...], previous: NDArray[np.int16] | None = None
    ) -> tuple[NDArray[np.float32], dict]:
        """nnU-Net's own preprocessing of an array (D, H, W) or (C, D, H, W), and its properties.

        `previous` is what the first network of a cascade gave, (D, H, W).
        """
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
        from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

        properties = {"spacing": list(spacing)}
        several = image if image.ndim == 4 else image[None]
        earlier = None if previous is None else previous[None]
        data, labels, properties = DefaultPreprocessor(verbose=False).run_case_npy(
            several, earlier, properties, self.manager, self.configuration, self.dataset
        )
        if previous is not None:
            foreground = self.label_manager.foreground_labels
            data = np.vstack((data, convert_labelmap_to_one_hot(labels[0], foreground, data.dtype)))
        return data, properties

    def labels(self, logits: NDArray[np.float16], properties: dict) -> NDArray[np.uint8]:
        """nnU-Net's own way back from logits."""
        from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

        return np.asarray(
            convert_predicted_logits_to_segmentation_with_correct_shape(
                logits, self.manager, self.configuration, self.label_manager, properties
            )
        )


class NnunetModel(NnunetPlan):
    """A results folder of one recipe, its weights fitted to an image, and our bundle of it."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        image: NDArray[np.float32],
        spacing: tuple[float, ...],
        previous: NDArray[np.int16] | None = None,
    ) -> None:
        super().__init__(recipe)
        data = self.preprocessed(image, spacing, previous)[0]
        self.parameters = [self._fitted(seed, data) for seed in range(recipe.folds)]
        self.results = folder / f"nnUNetTrainer__nnUNetPlans__{recipe.name}"
        self._write()
        card = folder / "card.md"
        card.write_text("# A model of random weights\n")
        self.bundle = self.imported(self.results)

    def imported(self, *folders: Path) -> Bundle:
        """A bundle of results folders, told what this recipe says."""
        recipe, beside = self.recipe, self.results.parent
        return import_results_folders(
            folders,
            beside / f"bundle-{len(list(beside.glob('bundle-*')))}",
            Description("parity", "1", [recipe.modality], beside / "card.md", recipe.orientation),
            Selection(storage="float32", mirroring=bool(recipe.mirroring)),
        )

    def predictor(self) -> Any:
        """nnU-Net's predictor on the processor, opened with these weights."""
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(
            use_mirroring=bool(self.recipe.mirroring),
            perform_everything_on_device=False,
            device=torch.device("cpu"),
            allow_tqdm=False,
        )
        axes = self.recipe.mirroring or None
        network = self._network()
        predictor.manual_initialization(
            network, self.manager, self.configuration, self.parameters, self.dataset, "nnUNetTrainer", axes
        )
        return predictor

    def predicted(
        self,
        image: NDArray[np.float32],
        spacing: tuple[float, ...],
        previous: NDArray[np.int16] | None = None,
        *,
        wide: bool = False,
    ) -> NDArray[np.uint8]:
        """nnU-Net's labels of an array (D, H, W) or (C, D, H, W).

        wide: its sums held in float32, as those of every engine but the reference are. At the rim of a volume the
        Gaussian is so small that nnU-Net's float16 sums keep a digit or two of a logit, and on volumes as small as
        these that rim is a good part of the whole.
        """
        return self.labels(*self.logits(image, spacing, previous, wide=wide))

    def logits(
        self,
        image: NDArray[np.float32],
        spacing: tuple[float, ...],
        previous: NDArray[np.int16] | None = None,
        *,
        wide: bool = False,
    ) -> tuple[NDArray[np.float16], dict]:
        """What the labels are made of, and the properties of the image."""
        data, properties = self.preprocessed(image, spacing, previous)
        predictor = self.predictor()
        with pytest.MonkeyPatch.context() as patch:
            if wide:
                patch.setattr(torch, "half", torch.float32)
            logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
        return logits.half().numpy(), properties

    def probabilities(
        self, image: NDArray[np.float32], spacing: tuple[float, ...], *, wide: bool = False
    ) -> NDArray[np.float32]:
        """What nnU-Net averages over the configurations of an ensemble: (outputs, D, H, W) on the image's grid."""
        from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

        logits, properties = self.logits(image, spacing, wide=wide)
        _, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, self.manager, self.configuration, self.label_manager, properties, return_probabilities=True
        )
        return np.asarray(probabilities)

    def _network(self) -> torch.nn.Module:
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_network_from_plans(
                self.configuration.network_arch_class_name,
                self.configuration.network_arch_init_kwargs,
                self.configuration.network_arch_init_kwargs_req_import,
                self.recipe.inputs,
                self.recipe.outputs,
                deep_supervision=False,
            ).eval()

    def _fitted(self, seed: int, data: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        """Random weights whose last layer is fitted, so that labels are coherent as a trained model's are."""
        torch.manual_seed(seed)
        network = self._network()
        patch = _centre(data, self.recipe.patch)
        features: list[torch.Tensor] = []
        hook = network.decoder.stages[-1].register_forward_hook(lambda _m, _i, out: features.append(out))
        with torch.inference_mode():
            network(torch.from_numpy(patch)[None])
        hook.remove()
        x = features[0][0].reshape(features[0].shape[1], -1).numpy().T
        smooth = ndimage.gaussian_filter(patch[0], 1.5)
        bins = np.digitize(smooth, np.quantile(smooth, np.linspace(0, 1, self.recipe.classes + 1)[1:-1])).reshape(-1)
        x1 = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        target = np.eye(self.recipe.classes)[bins] * 10
        if self.recipe.regions:
            target = np.stack([np.isin(bins, region) for region in self.recipe.regions], axis=1) * 10.0 - 5
        solution = np.linalg.solve(x1.T @ x1 + 1e-2 * len(x) * np.eye(x1.shape[1]), x1.T @ target).astype(np.float32)
        head = network.decoder.seg_layers[-1]
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(solution[:-1].T.reshape(head.weight.shape).copy()))
            head.bias.copy_(torch.from_numpy(solution[-1].copy()))
        return {key: value.clone() for key, value in network.state_dict().items()}

    def _write(self) -> None:
        for fold, parameters in enumerate(self.parameters):
            target = self.results / f"fold_{fold}"
            target.mkdir(parents=True)
            checkpoint = {
                "network_weights": parameters,
                "logging": {"mean_fg_dice": [np.float64(0.5)]},
                "current_epoch": 1,
                "init_args": {
                    "plans": self.plans,
                    "configuration": self.recipe.name,
                    "fold": fold,
                    "dataset_json": self.dataset,
                },
                "trainer_name": "nnUNetTrainer",
                "inference_allowed_mirroring_axes": self.recipe.mirroring or None,
            }
            torch.save(checkpoint, target / "checkpoint_final.pth")
        (self.results / "plans.json").write_text(json.dumps(self.plans))
        (self.results / "dataset.json").write_text(json.dumps(self.dataset))


def _centre(data: NDArray[np.float32], patch: tuple[int, ...]) -> NDArray[np.float32]:
    """The middle patch of (C, D, H, W), zero-padded where the image is smaller; a slice where the patch is 2D."""
    if len(patch) == 2:
        data = data[:, data.shape[1] // 2]
    gaps = [max(0, p - n) for n, p in zip(data.shape[1:], patch, strict=True)]
    data = np.pad(data, [(0, 0), *((gap // 2, gap - gap // 2) for gap in gaps)])
    starts = [(n - p) // 2 for n, p in zip(data.shape[1:], patch, strict=True)]
    cut = data[(slice(None), *(slice(s, s + p) for s, p in zip(starts, patch, strict=True)))]
    return np.ascontiguousarray(cut, dtype=np.float32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other crawl on a busy machine, and these networks are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nnunet_model(tmp_path: Path) -> Callable[..., NnunetModel]:
    """Makes a results folder, fitted to an image, and our bundle of it."""

    def make(
        recipe: Recipe,
        image: NDArray[np.float32],
        spacing: tuple[float, ...],
        previous: NDArray[np.int16] | None = None,
    ) -> NnunetModel:
        return NnunetModel(tmp_path, recipe, image, spacing, previous)

    return make


@pytest.fixture(scope="session")
def nnunet_plan() -> Callable[[Recipe], NnunetPlan]:
    """The objects of a recipe, where no network is needed."""
    return NnunetPlan


@pytest.fixture(scope="session")
def recipe() -> Callable[..., Recipe]:
    """A recipe that departs from the plain one."""
    return lambda **changes: replace(Recipe(), **changes)


@pytest.fixture(scope="session")
def hippocampus(test_data: Path) -> Volume:
    """A real MR crop, 1 mm, about 36 x 52 x 35."""
    return read_volume(sorted((test_data / "train-mr-hippocampus/imagesTr").glob("*.nii.gz"))[2], "MR")


@pytest.fixture(scope="session")
def body_ct(test_data: Path) -> Volume:
    """A real CT of the trunk, 112 x 101 x 122 at 3 mm, in HU."""
    return read_volume(test_data / "nifti-examples/example_ct.nii.gz", "CT")


def _agree(labels: NDArray[Any], expected: NDArray[Any], *, exact: bool) -> None:
    """In a map that is no trivial one: all but two voxels and one in 10,000; or 99.95 %, and Dice 0.99 for each label.

    The first is for the reference, which sums as nnU-Net does; each voxel that still differs hangs by the last digit
    of a resampled logit.
    """
    assert labels.shape == expected.shape
    found = np.unique(expected)
    assert len(found) > 2
    different = int((labels != expected).sum())
    if exact:
        assert different <= 2 + expected.size / 10_000
    assert different <= 0.0005 * expected.size
    assert min(dice(labels == label, expected == label) for label in found) >= 0.99


@pytest.fixture(scope="session")
def assert_agree() -> Callable[..., None]:
    """How near a map must be to nnU-Net's."""
    return _agree
