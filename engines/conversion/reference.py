"""nnunetv2's own predictor with the weights of a bundle: what our masks are held against.

Preprocessing, windows, export, cascade, ensemble and postprocessing are the package's own functions (extra `train`),
fed from the plans.json and dataset.json that the bundle keeps. It adds up in float16: that is how it behaves.
Image files are read by its own reader, the one that the plan names: what it sees owes nothing to our reader, nor to
what the bundle says of the orientation.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.errors import BackendUnavailable, BundleError, UnsuitableVolume
from engines.inference.passage import Clock
from engines.model.bundle import Bundle, Member
from engines.model.certificate import Turned
from engines.model.plan import PICTURES
from engines.nifti import read_label_map
from engines.volume import Grid, Reorientation, Volume

_MEND = "pip install 'hilum[train]'"
_WITHOUT_VOLUMES = (PICTURES, "Tiff3DIO")
"""Readers that open none of the files that volumes come in: such a model is handed what our reader makes of them."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """What nnunetv2 answered.

    Attributes
    ----------
    labels
        uint8 or uint16, (D, H, W), on the volume's own grid.
    seconds
        Of preprocess, network and labels, summed over the members, and the total.
    turned
        How the image had to be turned for the model, which nnunetv2 would not have done; None: it saw it as its own
        reader does.
    """

    labels: NDArray[Any]
    seconds: Mapping[str, float]
    turned: Turned | None = None


class NnunetPredictor:
    """A bundle as nnunetv2 runs it.

    Raises
    ------
    BackendUnavailable
        Where nnunetv2 is not installed, or cannot be imported.
    BundleError
        Where the bundle keeps no plans.json and dataset.json.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self.bundle = bundle
        self.name = nnunet_version()
        with _quiet():
            self._members = {member.name: _NnunetMember(member, device) for member in bundle.members}

    @property
    def compared_with(self) -> str:
        """Name and version, and whether it averages over flips, as certificates name it."""
        flips = any(member.mirroring_axes for member in self.bundle.members)
        return f"{self.name} {'with' if flips else 'without'} mirroring"

    def segment(self, volumes: Sequence[Volume]) -> Predicted:
        """Labels of one image in memory, its channels in the bundle's order, turned as the bundle says."""
        turn = self._turn(volumes[0].grid)
        image = np.stack([turn.apply(volume.voxels) for volume in volumes])
        found = self._predicted(image, turn.grid(volumes[0].grid).spacing_mm)
        return replace(found, labels=np.ascontiguousarray(turn.undo(found.labels)))

    def segment_files(self, files: Sequence[Path], volumes: Sequence[Volume]) -> Predicted:
        """Labels of one image that nnunetv2 reads itself, on the files' own grid.

        Only an image that lies otherwise than the bundle's orientation says is turned: as it lies, nnunetv2 would be
        shown another image than the bundle. A reader that turns every image itself is left to do so, and its labels
        are read back from the file that it writes.

        Parameters
        ----------
        files, volumes
            Of each channel, and what our reader made of it: only the grid is taken from that, unless the model's
            reader opens no volumes.

        Raises
        ------
        UnsuitableVolume
            Where nnunetv2's reader cannot read a file, or sees another shape in it than ours.
        """
        grid, name = volumes[0].grid, self._reader_name
        if name in _WITHOUT_VOLUMES:
            return replace(self.segment(volumes), turned=self._turned(grid))
        with _quiet():
            reader = self._members[self._reading.name].reader()
            image, properties = _read(reader, files)
        if not name.endswith("WithReorient"):
            return self._as_it_lies(image, properties["spacing"], grid, files[0])
        found = self._predicted(image, properties["spacing"])
        return replace(found, labels=_written_back(reader, found.labels, properties, grid, files[0]))

    def _as_it_lies(self, image: NDArray[np.float32], spacing: Sequence[float], grid: Grid, file: Path) -> Predicted:
        """Labels of what a reader gave that takes images as they lie, turned only where the bundle wants it so."""
        if image.shape[1:] != grid.shape:
            raise UnsuitableVolume(f"{file}: nnunetv2's {self._reader_name} reads {image.shape[1:]}, not {grid.shape}")
        turn = self._turn(grid)
        shown = np.stack([turn.apply(channel) for channel in image])
        found = self._predicted(shown, [spacing[axis] for axis in turn.axes])
        return replace(found, labels=np.ascontiguousarray(turn.undo(found.labels)), turned=self._turned(grid))

    def _turn(self, grid: Grid) -> Reorientation:
        return Reorientation.between(grid.axis_codes, self.bundle.orientation or grid.axis_codes)

    def _turned(self, grid: Grid) -> Turned | None:
        lies, shown = grid.axis_codes, self.bundle.orientation or grid.axis_codes
        return None if lies == shown else Turned(lies, shown)

    @property
    def _reading(self) -> Member:
        """Whose reader reads for all; of an ensemble's, one that turns nothing, where there is one."""
        members = self.bundle.members
        return next((each for each in members if not each.plan.reader.endswith("WithReorient")), members[0])

    @property
    def _reader_name(self) -> str:
        return self._reading.plan.reader

    def _predicted(self, image: NDArray[np.float32], spacing: Sequence[float]) -> Predicted:
        """Labels of an array (C, D, H, W) as the model wants it, in the same frame."""
        clock = Clock()
        with _quiet(), TemporaryDirectory(prefix="hilum-") as scratch:
            labels = self._labels(image, spacing, Path(scratch), clock)
            with clock.stage("labels"):
                labels = self._postprocessed(labels)
        return Predicted(labels, {**clock.spent, "total": sum(clock.spent.values())})

    def logits(self, member: str, patch: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the network of a member's first fold answers to one patch (C, *patch): float32, (outputs, *patch)."""
        with _quiet():
            return self._members[member].logits(patch)

    def _labels(
        self, image: NDArray[np.float32], spacing: Sequence[float], scratch: Path, clock: Clock
    ) -> NDArray[Any]:
        """Stage after stage; the probabilities of an ensemble's members are averaged as nnU-Net does, from files."""
        from nnunetv2.ensembling.ensemble import average_probabilities

        found: dict[str, NDArray[Any]] = {}
        averaged = [member.name for member in self.bundle.averaged]
        ensemble = len(averaged) > 1
        for member in self.bundle.members:
            previous = found[member.previous_stage][None].astype(np.float32) if member.previous_stage else None
            keep = scratch / f"{member.name}.npz" if ensemble and member.name in averaged else None
            found[member.name] = self._members[member.name].segment(image, spacing, previous, keep, clock)
        if not ensemble:
            return found[averaged[0]]
        with clock.stage("labels"):
            mean = average_probabilities([str(scratch / f"{name}.npz") for name in averaged])
            labels = self._members[averaged[0]].manager_of_labels.convert_probabilities_to_segmentation(mean)
            return np.asarray(labels)

    def _postprocessed(self, labels: NDArray[Any]) -> NDArray[Any]:
        from nnunetv2.postprocessing.remove_connected_components import (
            remove_all_but_largest_component_from_segmentation,
        )

        for step in self.bundle.postprocessing:
            labels = remove_all_but_largest_component_from_segmentation(labels, list(step))
        return labels


class _NnunetMember:
    """One configuration with its folds."""

    def __init__(self, member: Member, device: str) -> None:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        self._plans = PlansManager(_kept(member, "plans.json"))
        self._dataset = _kept(member, "dataset.json")
        self._configuration = self._plans.get_configuration(member.plan.configuration)
        self._is_of_pictures = member.plan.reader == PICTURES
        self.manager_of_labels = self._plans.get_label_manager(self._dataset)
        network = self._network(member)
        mirroring = member.mirroring_axes or None
        self._predictor = nnUNetPredictor(
            use_mirroring=mirroring is not None,
            perform_everything_on_device=device != "cpu",
            device=torch.device(device),
            allow_tqdm=False,
        )
        self._predictor.manual_initialization(
            network,
            self._plans,
            self._configuration,
            [_parameters(network, member, fold) for fold in member.folds],
            self._dataset,
            "nnUNetTrainer",
            mirroring,
        )

    def segment(
        self,
        image: NDArray[np.float32],
        spacing: Sequence[float],
        previous: NDArray[np.float32] | None,
        keep: Path | None,
        clock: Clock,
    ) -> NDArray[Any]:
        """Labels (D, H, W) of an image (C, D, H, W), and its probabilities into a file where one is named."""
        from nnunetv2.inference.data_iterators import PreprocessAdapterFromNpy
        from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

        with clock.stage("preprocess"):
            earlier = None if previous is None else [previous]
            properties = {"spacing": [999.0, 1.0, 1.0] if self._is_of_pictures else list(spacing)}
            feed = PreprocessAdapterFromNpy(
                [image], earlier, [properties], None, self._plans, self._dataset, self._configuration
            )
            case = next(feed)
        with clock.stage("network"):
            logits = self._predictor.predict_logits_from_preprocessed_data(case["data"]).cpu()
        with clock.stage("labels"):
            answer = convert_predicted_logits_to_segmentation_with_correct_shape(
                logits,
                self._plans,
                self._configuration,
                self.manager_of_labels,
                case["data_properties"],
                return_probabilities=keep is not None,
            )
            if keep is None:
                return np.asarray(answer)
            np.savez(keep, probabilities=answer[1])
            return np.asarray(answer[0])

    def reader(self) -> Any:
        """nnunetv2's own reader and writer of the files that the plan was made from."""
        return self._plans.image_reader_writer_class()

    def logits(self, patch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first fold's network on one patch."""
        network, device = self._predictor.network.eval(), self._predictor.device
        network.load_state_dict(self._predictor.list_of_parameters[0])
        with torch.inference_mode():
            answer = network.to(device)(torch.from_numpy(patch)[None].to(device))[0]
        return np.asarray(answer.cpu().numpy())

    def _network(self, member: Member) -> torch.nn.Module:
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        network: torch.nn.Module = get_network_from_plans(
            self._configuration.network_arch_class_name,
            self._configuration.network_arch_init_kwargs,
            self._configuration.network_arch_init_kwargs_req_import,
            member.plan.inputs,
            member.plan.outputs,
            deep_supervision=False,
        )
        return network


def nnunet_version() -> str:
    """`nnunetv2` and its version.

    Raises
    ------
    BackendUnavailable
        Where it is not installed, or cannot be imported; with the mend.
    """
    try:
        with _quiet():
            import nnunetv2.inference.predict_from_raw_data  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable(f"nnunetv2 cannot be imported ({error}); {_MEND}") from error
    except RuntimeError as error:  # "operator torchvision::nms does not exist"
        raise BackendUnavailable(
            f"nnunetv2 cannot be imported ({error}): a torchvision is installed that does not fit torch; nothing here "
            "needs it: pip uninstall torchvision"
        ) from error
    return f"nnunetv2 {metadata.version('nnunetv2')}"


def _kept(member: Member, name: str) -> Any:
    path = member.folder / "source" / name
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path}: nnunetv2 needs it, and it cannot be read ({error}); import the model again"
        ) from error


def _parameters(network: torch.nn.Module, member: Member, fold: str) -> dict[str, torch.Tensor]:
    """A whole state of the network: nnU-Net's networks hold some tensors under several names, a bundle under one."""
    own = {key: torch.from_numpy(value) for key, value in member.weights(fold).items()}
    unexpected = network.load_state_dict(own, strict=False).unexpected_keys
    if unexpected:
        raise BundleError(
            f"{member.name}, fold {fold}: nnunetv2's network has no tensor {unexpected[0]} ({len(unexpected)} such): "
            "it is another network than ours; import the model again"
        )
    return {key: value.clone() for key, value in network.state_dict().items()}


def _read(reader: Any, files: Sequence[Path]) -> tuple[NDArray[np.float32], Mapping[str, Any]]:
    """The array (C, D, H, W) that nnunetv2 sees, and what its reader keeps of the files."""
    from nibabel.filebasedimages import ImageFileError

    try:
        image, properties = reader.read_images([str(path) for path in files])
    except (OSError, RuntimeError, ValueError, AssertionError, ImageFileError) as error:
        said, taken = " ".join(str(error).split()), ", ".join(reader.supported_file_endings)
        raise UnsuitableVolume(
            f"{files[0]}: nnunetv2's {type(reader).__name__} cannot read it ({said}); it takes {taken}"
        ) from error
    return image, properties


def _written_back(
    reader: Any, labels: NDArray[Any], properties: Mapping[str, Any], grid: Grid, file: Path
) -> NDArray[Any]:
    """Labels on the file's own grid, as nnunetv2's reader and writer brings them back to it."""
    with _quiet(), TemporaryDirectory(prefix="hilum-") as scratch:
        path = Path(scratch) / "labels.nii.gz"
        reader.write_seg(labels, str(path), properties)
        back = read_label_map(path, {})
    if not back.grid.same_as(grid, tolerance_mm=0.1):
        raise UnsuitableVolume(
            f"{file}: nnunetv2's {type(reader).__name__} writes labels on another grid than the file's"
        )
    return np.asarray(back.labels)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the package prints on devices and folders, and its libraries' deprecations."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
