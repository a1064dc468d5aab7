"""TensorRT engines: a network compiled by NVIDIA's builder, and the folder in which compiled ones are kept.

TensorRT serves data-centre cards, TensorRT-RTX workstation cards. Both have one interface, and one file serves both.
TensorRT-RTX compiles on a machine without any card, which is how every shipped network is proven to pass its parser.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from engines.backends.base import Weights
from engines.backends.onnx_graph import GraphForm, onnx_graph
from engines.errors import BackendUnavailable
from engines.model.plan import Plan

LibraryName = Literal["tensorrt", "tensorrt_rtx"]
LIBRARIES: tuple[LibraryName, ...] = ("tensorrt", "tensorrt_rtx")
"""In order: where both are installed, the one that measures its choices on the card itself."""


_ENGINE_NAME = re.compile(
    r"(?P<digest>[0-9a-f]{32})-float(16|32)-norms-float(16|32)-(logits|features)-batch-\d+"
    r"-(?P<library>tensorrt|tensorrt_rtx)-(?P<version>[\w.+]+)-(?P<card>[0-9A-Za-z-]+-sm\d+)-driver-(?P<driver>\d+)\.engine"
)


@dataclass(frozen=True)
class Library:
    """One of the two, imported."""

    name: LibraryName
    module: Any

    @property
    def version(self) -> str:
        """Library and version."""
        return f"{self.name} {self.module.__version__}"

    def serves(self, capability: str) -> bool:
        """Whether engines can be made for a compute capability such as `89`; TensorRT says so only when it builds."""
        kinds = getattr(self.module, "ComputeCapability", None)
        return kinds is None or hasattr(kinds, f"SM{capability}")


@dataclass(frozen=True)
class Card:
    """What an engine depends on besides network and library.

    Cards of one compute capability differ in units, memory and clock: what was measured on one is slow on another.
    """

    name: str
    """As its driver names it."""
    capability: str
    """Compute capability, `89` for 8.9."""
    driver: str
    """Version of CUDA that the driver speaks."""

    def __str__(self) -> str:
        """For names of files."""
        return f"{re.sub('[^0-9A-Za-z]+', '-', self.name)}-sm{self.capability}-driver-{self.driver}"


def import_libraries() -> tuple[list[Library], list[str]]:
    """Those that are installed, and why the others are not. Not to be called where there is no driver but to build.

    Without a driver TensorRT's runtime has been seen to end the process; building with TensorRT-RTX is safe.
    """
    found, said = [], []
    for name in LIBRARIES:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: the front is installed, the library behind it is not
            said.append(f"{name} cannot be imported ({error}); pip install 'hilum[{name.replace('_', '-')}]'")
            continue
        if not hasattr(module, "Builder"):
            said.append(f"{name} is installed without its library")
            continue
        found.append(Library(name, module))
    return found, said


def logger_of(library: Library) -> Any:
    """A logger that keeps what went wrong in `errors` and says nothing."""

    class Logger(library.module.ILogger):  # type: ignore[misc, name-defined]  # known when it is imported
        def __init__(self) -> None:
            library.module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.module.ILogger.Severity.ERROR, library.module.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def build(
    library: Library,
    plan: Plan,
    weights: Weights,
    form: GraphForm,
    *,
    card: Card | None = None,
    timing: Path | None = None,
) -> bytes:
    """An engine of a network.

    Parameters
    ----------
    form
        With a fixed batch.
    card
        To build for; None, with TensorRT-RTX alone: for every kind that it serves, with no card at hand.
    timing
        File of what was measured in earlier builds, read and written.

    Raises
    ------
    BackendUnavailable
        Where the parser or the builder refuses, with its words.
    """
    trt, logger = library.module, logger_of(library)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only way from TensorRT 11 on
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_graph(plan, weights, form).SerializeToString()):
        faults = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise BackendUnavailable(f"{library.version}: the graph is refused: {_words(faults)}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 shall mean float32
    if card is not None and hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{card.capability}"), 0)
    if timing is not None:
        known = timing.read_bytes() if timing.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BackendUnavailable(f"{library.version}: no engine can be built: {_words(logger.errors)}")
    if timing is not None:
        keep(timing, bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def engine_path(folder: Path, library: Library, card: Card, form: GraphForm, digest: str) -> Path:
    """Where an engine is kept: whatever it depends on is in the name, so that it is never taken for another."""
    kind = f"{digest[:32]}-{form.precision}-norms-{form.norms}-{form.answer}-batch-{form.batch}"
    return folder / f"{kind}-{library.version.replace(' ', '-')}-{card}.engine"


def remove_superseded(path: Path) -> None:
    """Delete engines of the same network, library and card for another version or driver: none is read again.

    Parameters
    ----------
    path
        The engine that was just written. What does not bear a name of `engine_path`'s is let alone.
    """
    own = _ENGINE_NAME.fullmatch(path.name)
    if own is None:
        return
    for other in path.parent.iterdir():
        found = _ENGINE_NAME.fullmatch(other.name)
        if found is None or other.is_symlink() or not other.is_file():
            continue
        alike = all(found[part] == own[part] for part in ("digest", "library", "card"))
        if alike and (found["version"], found["driver"]) != (own["version"], own["driver"]):
            other.unlink(missing_ok=True)


def timing_path(folder: Path, library: Library, card: Card) -> Path:
    """Where a library keeps what it measured on a card."""
    return folder / f"{library.version.replace(' ', '-')}-{card}.timing"


def network_digest(plan: Plan, weights: Weights) -> str:
    """SHA-256, hex, over plan and weights: an engine is of one network alone."""
    digest = hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode())
    for key in sorted(weights):
        tensor = weights[key]
        digest.update(f"{key} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def keep(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; the folder is its owner's alone, for engines are programs."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:64]}.", delete=False) as draft:
        draft.write(content)
    Path(draft.name).rename(path)


def _words(faults: Sequence[str]) -> str:
    return "; ".join(fault.strip() for fault in faults[:3]) or "without a reason"
