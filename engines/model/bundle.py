"""A model on disk: `bundle.json`, weights, card and parity crops. It loads whole, every file verified, or not at all.

    bundle.json          this file's `_Manifest`: what the model is, and the SHA-256 of every other file
    card.md              the model card: data, licence, intended use, evaluation
    3d_fullres/          one folder for each member, by its name:
      fold_0.safetensors   weights of one fold, each tensor once, float16 or float32; always computed in float32
      parity.npz           an input of the network and its float32 logits: the self-test of every backend
      source/              plans.json and dataset.json of the nnU-Net folder that it was made from, for audit

Most models have one member, a configuration of nnU-Net with its folds. An ensemble of configurations has several,
whose probabilities are averaged; a cascade has a member whose labels the next one sees.

Nothing in a bundle is executed: JSON, safetensors and arrays without pickles.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from engines.errors import BundleError
from engines.model.network import tensors
from engines.model.plan import Plan

MANIFEST = "bundle.json"
_PARITY = "parity.npz"
SHIPPED: Path = Path(__file__).resolve().parent.parent / "bundles"
"""The bundles that come with the program."""

Storage = Literal["float16", "float32"]


@dataclass(frozen=True)
class Limits:
    """What a scan must have for the model to be tried (ASM-38); None sets no limit. Axes are those of the patient."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    min_slices: int | None = None
    min_extent_mm: tuple[float, float, float] | None = None
    """Along left-right, anterior-posterior, superior-inferior."""
    max_extent_mm: tuple[float, float, float] | None = None
    max_step_mm: float | None = None
    """Largest distance between two slices."""
    min_age_years: float | None = None
    """Youngest patient that the model may be used for, where a card says so."""


@dataclass(frozen=True)
class Member:
    """One configuration of nnU-Net with its folds, whose logits are averaged."""

    name: str
    """The configuration, as 3d_fullres; where two have one name, told apart by a number behind it."""
    folder: Path
    plan: Plan
    folds: tuple[str, ...]
    mirroring_axes: tuple[int, ...]
    """Axes of the network's input over whose flips the answer is averaged; empty: none."""
    previous_stage: str | None
    """The member whose labels this one sees, where it is the second network of a cascade."""
    sha256: Mapping[str, str] = field(hash=False)
    """Of each file of the folder, hex, as the manifest said when the bundle was loaded. Files are read again whenever
    an engine is opened: what was copied over them meanwhile must not serve under this bundle's digest."""

    def weights(self, fold: str) -> dict[str, NDArray[np.float32]]:
        """The tensors of one fold, float32, by their key in nnU-Net's checkpoint.

        Raises
        ------
        BundleError
            Where the file has changed, or a tensor is missing, unknown or of another shape than the plan's network
            needs.
        """
        return _read_weights(*self._verified(_weights_name(fold)), self.plan)

    def parity(self) -> ParityCrop:
        """The stored self-test, of the first fold; raises BundleError as `weights`."""
        return _read_parity(*self._verified(_PARITY))

    def _verified(self, name: str) -> tuple[Path, bytes]:
        """A file, read once: what is hashed is what is used."""
        path = self.folder / name
        content = _content(path)
        _compare(path, hashlib.sha256(content).hexdigest(), self.sha256[name])
        return path, content


@dataclass(frozen=True)
class Bundle:
    """A verified model."""

    name: str
    version: str
    folder: Path
    digest: str
    """SHA-256, hex, over plan, labels, frame, mirroring, postprocessing and weights: what the result depends on."""
    modalities: tuple[str, ...]
    labels: Mapping[int, str]
    """Every label that the model gives, background left out."""
    unreported: tuple[int, ...]
    """Labels that the model gives but no result mentions, such as the body outline."""
    members: tuple[Member, ...]
    """In the order of computation: the first network of a cascade stands before the second."""
    orientation: str | None
    """Axis codes of the (D, H, W) array that the networks were trained on (`Grid.axis_codes`); None: any."""
    postprocessing: tuple[tuple[int, ...], ...]
    """Steps in order: of these labels together, only the largest connected piece is kept."""
    limits: Limits
    card: Path
    intended_use: str
    licence: str
    training_data: str
    evaluation: Mapping[str, float]
    """Measured figures by name, as the card explains them."""

    @property
    def averaged(self) -> tuple[Member, ...]:
        """The members whose probabilities are averaged: all but those that serve only as a first stage."""
        earlier = {member.previous_stage for member in self.members}
        return tuple(member for member in self.members if member.name not in earlier)

    @property
    def channels(self) -> tuple[str, ...]:
        """The images that the model needs, by nnU-Net's names."""
        return tuple(channel.name for channel in self.members[0].plan.channels)


@dataclass(frozen=True, eq=False)
class ParityCrop:
    """What the network answered, in float32 by the reference backend, when the bundle was made.

    Attributes
    ----------
    image
        float32, (C, *patch), normalised units.
    logits
        float32, (outputs, ...): the answer of the first fold at every `step`-th voxel of each axis.
    """

    image: NDArray[np.float32]
    logits: NDArray[np.float32]
    step: int

    def kept(self, answer: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of an answer (outputs, *patch), the voxels that `logits` holds."""
        return answer[(slice(None), *(slice(None, None, self.step),) * (answer.ndim - 1))]

    def error(self, answer: NDArray[np.float32]) -> float:
        """Largest error of a logit of an answer (outputs, *patch), in standard deviations of `logits`."""
        return float(np.abs(self.kept(answer) - self.logits).max()) / max(float(self.logits.std()), 1e-12)


@dataclass(frozen=True, eq=False)
class MemberContents:
    """What a new member is made of."""

    name: str
    plan: Plan
    weights: Mapping[str, Mapping[str, NDArray[np.float32]]]
    """Tensors by key, by fold."""
    parity: ParityCrop
    source: Mapping[str, bytes]
    """Files to keep for audit, by name."""
    mirroring_axes: tuple[int, ...] = ()
    previous_stage: str | None = None


@dataclass(frozen=True, eq=False)
class Contents:
    """What a new bundle is made of, but for its files' digests."""

    name: str
    version: str
    modalities: tuple[str, ...]
    labels: Mapping[int, str]
    members: Sequence[MemberContents]
    card: str
    storage: Storage
    orientation: str | None = None
    postprocessing: tuple[tuple[int, ...], ...] = ()
    unreported: tuple[int, ...] = ()
    limits: Limits = Limits()
    intended_use: str = ""
    licence: str = ""
    training_data: str = ""
    evaluation: Mapping[str, float] = field(default_factory=dict)


def load_bundle(folder: Path) -> Bundle:
    """A bundle, every file of it verified.

    Raises
    ------
    BundleError
        Where anything is missing, changed, unknown or does not fit; the message names the file (SEC-10).
    """
    manifest = _read_manifest(folder)
    _verify_files(folder, manifest)
    bundle = Bundle(
        name=manifest.name,
        version=manifest.version,
        folder=folder,
        digest=_digest(manifest),
        modalities=manifest.modalities,
        labels=MappingProxyType(dict(manifest.labels)),
        unreported=manifest.unreported,
        members=tuple(
            Member(
                each.name,
                folder / each.name,
                each.plan,
                each.folds,
                each.mirroring_axes,
                each.previous_stage,
                _own_files(manifest, each.name),
            )
            for each in manifest.members
        ),
        orientation=manifest.orientation,
        postprocessing=manifest.postprocessing,
        limits=manifest.limits,
        card=folder / "card.md",
        intended_use=manifest.intended_use,
        licence=manifest.licence,
        training_data=manifest.training_data,
        evaluation=MappingProxyType(dict(manifest.evaluation)),
    )
    _check_consistency(bundle)
    return bundle


def find_bundles(folders: Sequence[Path]) -> dict[str, Bundle]:
    """Every bundle that lies directly in one of the folders, by name.

    Raises
    ------
    BundleError
        Where a folder is missing, a bundle does not load, or two have one name.
    """
    found: dict[str, Bundle] = {}
    for folder in folders:
        if not folder.is_dir():
            raise BundleError(f"{folder}: there is no such folder of models")
        if (folder / MANIFEST).is_file():
            raise BundleError(f"{folder}: is a bundle itself; name the folder that it lies in, {folder.parent}")
        for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
            bundle = load_bundle(manifest.parent)
            if bundle.name in found:
                raise BundleError(f"{bundle.folder} and {found[bundle.name].folder} are both named {bundle.name}")
            found[bundle.name] = bundle
    return found


def write_bundle(folder: Path, contents: Contents) -> Bundle:
    """Write a new bundle, all of it or nothing, and load it again.

    Raises
    ------
    BundleError
        Where the folder exists, weights do not fit the storage type, or the parts do not fit each other.
    """
    if folder.exists():
        raise BundleError(f"{folder}: exists already; choose another folder or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        draft = Path(scratch) / folder.name
        _write_files(draft, contents)
        text = json.dumps(_manifest(draft, contents).model_dump(mode="json"), indent=2, ensure_ascii=False)
        (draft / MANIFEST).write_text(text + "\n", encoding="utf-8")
        load_bundle(draft)
        draft.rename(folder)
    return load_bundle(folder)


def _write_files(folder: Path, contents: Contents) -> None:
    folder.mkdir(parents=True)
    (folder / "card.md").write_text(contents.card, encoding="utf-8")
    for member in contents.members:
        own = folder / _plain_name(member.name)
        (own / "source").mkdir(parents=True)
        for fold, tensors_of_fold in member.weights.items():
            save_file(stored_tensors(tensors_of_fold, contents.storage), own / _weights_name(fold))
            (own / _weights_name(fold)).chmod(0o644)  # safetensors writes for the owner alone
        write_parity(own / _PARITY, member.parity)
        for name, data in member.source.items():
            (own / "source" / name).write_bytes(data)


def _read_parity(path: Path, content: bytes) -> ParityCrop:
    """A stored self-test; pickled arrays are refused."""
    try:
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            image, logits = arrays["image"].astype(np.float32), arrays["logits"].astype(np.float32)
            return ParityCrop(image, logits, int(arrays["step"]))
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise BundleError(f"{path}: not a parity crop: {error}") from error


def write_parity(path: Path, crop: ParityCrop) -> None:
    """Store a self-test; the image must survive float16, in which it is kept."""
    image = crop.image.astype(np.float16)
    if not np.array_equal(image.astype(np.float32), crop.image):
        raise BundleError(f"{path}: the image of a parity crop must be exact in float16")
    np.savez_compressed(path, image=image, logits=crop.logits.astype(np.float32), step=np.int64(crop.step))


def _plain_name(name: str) -> str:
    """A file inside the bundle: no absolute path and no way out."""
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or any(part in ("..", "") for part in name.split("/")):
        raise ValueError(f"{name!r} does not name a file inside the bundle")
    return name


def _axis_codes(codes: str | None) -> str | None:
    if codes is not None and (len(codes) != 3 or any(not set(codes) & set(pair) for pair in ("LR", "PA", "SI"))):
        raise ValueError(f"{codes!r} does not name three patient axes, as in SPL")
    return codes


_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_FileName = Annotated[str, AfterValidator(_plain_name)]


class _MemberEntry(BaseModel):
    """One member in bundle.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
    folds: Annotated[tuple[Annotated[str, Field(pattern=r"^(all|[0-9]{1,2})$")], ...], Field(min_length=1)]
    mirroring_axes: tuple[int, ...] = ()
    previous_stage: str | None = None
    plan: Plan


class _Manifest(BaseModel):
    """bundle.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = 2
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,32}$")]
    modalities: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: dict[int, str]
    unreported: tuple[int, ...] = ()
    orientation: Annotated[str | None, AfterValidator(_axis_codes)] = None
    postprocessing: tuple[Annotated[tuple[int, ...], Field(min_length=1)], ...] = ()
    limits: Limits = Limits()
    intended_use: str
    licence: str
    training_data: str
    evaluation: dict[str, float] = {}
    members: Annotated[tuple[_MemberEntry, ...], Field(min_length=1)]
    files: dict[_FileName, _Sha256]


def _weights_name(fold: str) -> str:
    return f"fold_{fold}.safetensors"


def _read_manifest(folder: Path) -> _Manifest:
    path = folder / MANIFEST
    try:
        return _Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}: this folder is not a bundle") from error
    except ValidationError as error:
        for each in error.errors():
            if each["loc"] == ("format",):
                raise BundleError(f"{path}: {_other_format(each['input'])}") from error
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where}: {first['msg']} ({error.error_count()} in all)") from error


def _other_format(number: object) -> str:
    """What to do with a bundle whose format is not ours."""
    if number == 1:
        return "format 1, of an earlier Hilum: import the results folder again (`hilum-models import`)"
    return f"format {number!r:.20}; this Hilum reads format 2: was the bundle made by a later one?"


def _verify_files(folder: Path, manifest: _Manifest) -> None:
    """All but those that are verified whenever they are read, as they are when the bundle is checked."""
    read = {*(f"{member.name}/{_PARITY}" for member in manifest.members), *_weight_files(manifest)}
    unlisted = sorted({"card.md", *read} - set(manifest.files))
    if unlisted:
        raise BundleError(f"{folder / MANIFEST}: files: {unlisted[0]} is not listed")
    for name in sorted(set(manifest.files) - read):
        _compare(folder / name, _sha256(folder / name), manifest.files[name])


def _compare(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise BundleError(
            f"{path}: changed since the bundle was made, or loaded: copy the bundle again; where it was replaced by "
            "another one, restart what uses it"
        )


def _own_files(manifest: _Manifest, member: str) -> Mapping[str, str]:
    """The digests of the files of a member's folder, by their names in it."""
    found = {name: digest for name, digest in manifest.files.items() if name.startswith(f"{member}/")}
    return MappingProxyType({name.removeprefix(f"{member}/"): digest for name, digest in found.items()})


def _weight_files(manifest: _Manifest) -> list[str]:
    return [f"{member.name}/{_weights_name(fold)}" for member in manifest.members for fold in member.folds]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; copy the bundle again") from error


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; copy the bundle again") from error


def _digest(manifest: _Manifest) -> str:
    """Over everything that a label depends on, and nothing else: a new card leaves it as it is."""
    content: dict[str, Any] = {
        "members": [
            {
                "name": member.name,
                "plan": asdict(member.plan),
                "mirroring_axes": member.mirroring_axes,
                "previous_stage": member.previous_stage,
            }
            for member in manifest.members
        ],
        "labels": {str(label): name for label, name in sorted(manifest.labels.items())},
        "orientation": manifest.orientation,
        "postprocessing": manifest.postprocessing,
        "weights": {name: manifest.files[name] for name in _weight_files(manifest)},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_consistency(bundle: Bundle) -> None:
    """What single fields cannot say: labels, members, axes and parity crops fit each other, and so do the weights."""
    where = bundle.folder / MANIFEST
    if len(set(bundle.labels.values())) != len(bundle.labels):
        raise BundleError(f"{where}: labels: two have one name")
    if not set(bundle.unreported) <= set(bundle.labels):
        raise BundleError(f"{where}: unreported: {bundle.unreported} are not all labels")
    if not {label for step in bundle.postprocessing for label in step} <= set(bundle.labels):
        raise BundleError(f"{where}: postprocessing: {bundle.postprocessing} are not all labels")
    _check_members(where, bundle)
    for member in bundle.members:
        _check_member(f"{where}: {member.name}", member)


def _check_members(where: Path, bundle: Bundle) -> None:
    """The members see the same images in one order of axes and give the same labels; stages follow each other."""
    first, before = bundle.members[0].plan, set[str]()
    for member in bundle.members:
        plan = member.plan
        if member.name in before:
            raise BundleError(f"{where}: members: two are named {member.name}")
        if member.previous_stage is not None and member.previous_stage not in before:
            raise BundleError(f"{where}: {member.name}: previous_stage: {member.previous_stage} is not before it")
        if bool(member.previous_stage) != bool(plan.previous_labels):
            raise BundleError(f"{where}: {member.name}: previous_stage and the plan's previous_labels go together")
        if (plan.transpose_forward, plan.region_order) != (first.transpose_forward, first.region_order):
            raise BundleError(f"{where}: {member.name}: axes or regions are in another order than the first member's")
        if [channel.name for channel in plan.channels] != [channel.name for channel in first.channels]:
            raise BundleError(f"{where}: {member.name}: channels are not those of the first member")
        if sorted(bundle.labels) != list(plan.labels):
            raise BundleError(f"{where}: labels: {sorted(bundle.labels)} are not those of {member.name}, {plan.labels}")
        before.add(member.name)


def _check_member(where: str, member: Member) -> None:
    plan, crop = member.plan, member.parity()
    if not set(member.mirroring_axes) <= set(range(len(plan.patch_size))):
        raise BundleError(f"{where}: mirroring_axes: {member.mirroring_axes} are not axes of {plan.patch_size}")
    sampled = tuple(-(-size // crop.step) for size in plan.patch_size)
    if crop.image.shape != (plan.inputs, *plan.patch_size) or crop.logits.shape != (plan.outputs, *sampled):
        raise BundleError(f"{member.folder / _PARITY}: shapes do not fit the plan")
    for fold in member.folds:
        member.weights(fold)


def _read_weights(path: Path, content: bytes, plan: Plan) -> dict[str, NDArray[np.float32]]:
    try:
        stored = load(content)
    except SafetensorError as error:
        raise BundleError(f"{path}: not a safetensors file: {error}") from error
    check_weights(str(path), {key: tensor.shape for key, tensor in stored.items()}, plan)
    return {key: tensor.astype(np.float32) for key, tensor in stored.items()}


def check_weights(where: str, shapes: Mapping[str, tuple[int, ...]], plan: Plan) -> None:
    """Whether tensors are exactly those of the plan's network.

    Raises
    ------
    BundleError
        Naming the first tensor that is missing, unknown or of another shape.
    """
    needed = tensors(plan.architecture, plan.inputs, plan.outputs)
    for key, shape in needed.items():
        if key not in shapes:
            raise BundleError(f"{where}: {key} is missing: these are not the weights of the plan's network")
        if tuple(shapes[key]) != shape:
            raise BundleError(f"{where}: {key} has shape {tuple(shapes[key])}, the plan's network needs {shape}")
    unknown = sorted(set(shapes) - set(needed))
    if unknown:
        raise BundleError(f"{where}: {unknown[0]} is no tensor of the plan's network")


def stored_tensors(weights: Mapping[str, NDArray[np.float32]], storage: Storage) -> dict[str, NDArray[Any]]:
    """Tensors in the type that they are stored in.

    Raises
    ------
    BundleError
        Where a value is not finite, or too large for float16.
    """
    out = {}
    for key, tensor in weights.items():
        if not np.isfinite(tensor).all():
            raise BundleError(f"{key}: holds values that are not finite")
        if storage == "float16" and float(np.abs(tensor).max(initial=0)) > float(np.finfo(np.float16).max):
            raise BundleError(f"{key}: too large for float16; store float32")
        out[key] = np.ascontiguousarray(tensor, dtype=storage)
    return out


def _manifest(folder: Path, contents: Contents) -> _Manifest:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    try:
        return _Manifest(
            name=contents.name,
            version=contents.version,
            modalities=contents.modalities,
            labels=dict(contents.labels),
            unreported=contents.unreported,
            orientation=contents.orientation,
            postprocessing=contents.postprocessing,
            limits=contents.limits,
            intended_use=contents.intended_use,
            licence=contents.licence,
            training_data=contents.training_data,
            evaluation=dict(contents.evaluation),
            members=tuple(
                _MemberEntry(
                    name=member.name,
                    folds=tuple(member.weights),
                    mirroring_axes=member.mirroring_axes,
                    previous_stage=member.previous_stage,
                    plan=member.plan,
                )
                for member in contents.members
            ),
            files={path.relative_to(folder).as_posix(): _sha256(path) for path in files},
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
