"""From voxels in memory to the label map: seconds and memory of every engine, beside nnunetv2's own predictor.

    PYTHONPATH=. python tests/benchmark/engine.py --network small --page docs/performance.md

One machine, one run, the same weights, volume and threads on every side: a torso made of mathematics, and a network of
random weights that was fitted to it, written as a results folder of nnU-Net and imported (see torso.py). Each side runs
in a process of its own, so that its peak memory is its own; rounds are interleaved, A B C A B C, and medians reported.
Beside them stands arithmetic: what the network's multiplications, as nnU-Net writes them, would take at the rate of
this machine's fastest matrix product. An engine that needs fewer (OpenVINO's graph composes upsampling with the
convolution behind it), or multiplies faster, is quicker than that.

nnunetv2 (extra `train`) holds every class at the original size; where that has no room here it is left out, and the
table says so. `--tiny` is the whole program in seconds, for its test; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TINY = {"network": "tiny", "classes": 5, "shape": [40, 80, 80], "spacing": [5.0, 3.2, 3.2]}
NNUNET = "nnunetv2"
STAGES = ("preprocess", "network", "labels", "total")
LEAST_VOXELS = 1000
"""A label below this is too small for a Dice that means anything."""
_SHARE_OF_MEMORY = 0.85


@dataclass(frozen=True)
class Case:
    """What is segmented, by what."""

    network: str
    classes: int
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    threads: int

    @property
    def folder(self) -> str:
        """Where it is kept between runs: the name says all that the files depend on."""
        size = "x".join(map(str, self.shape))
        spacing = "x".join(f"{each:g}" for each in self.spacing_mm)
        return f"{self.network}-{self.classes}-{size}-{spacing}"

    @property
    def nnunet_bytes(self) -> float:
        """What nnU-Net's export needs at least: every class at the original size, in float64 while it resamples."""
        return 8.0 * self.classes * math.prod(self.shape)


# ---- one side, in a process of its own


def prepare(case: Case, folder: Path) -> dict[str, Any]:
    """Volume, results folder and bundle, unless they are there; and what the network costs."""
    import torch
    from torso import NETWORKS, Torso, make_bundle

    from engines.inference.sliding_window import windows
    from engines.model.bundle import load_bundle

    torch.set_num_threads(case.threads)
    if not (folder / "volume.npy").is_file():
        extent = tuple(n * s for n, s in zip(case.shape, case.spacing_mm, strict=True))
        torso = Torso(case.classes, extent)
        image = torso.image(case.shape)
        make_bundle(folder, NETWORKS[case.network], torso, image, case.spacing_mm)
        np.save(folder / "volume.npy", image.astype(np.int16))
    plan = load_bundle(folder / "bundle").members[0].plan
    resampled = [
        round(n * s / NETWORKS[case.network].spacing_mm) for n, s in zip(case.shape, case.spacing_mm, strict=True)
    ]
    padded = [max(n, p) for n, p in zip(resampled, plan.patch_size, strict=True)]
    count = len(windows(padded, plan.patch_size))
    return {"windows": count, "gflop": count * flop(plan) / 1e9, "resampled": resampled}


def flop(plan: Any) -> float:
    """Twice the multiplications of one patch: convolutions, up and down, and the head."""
    from engines.model.network import run

    counter = FlopCounter()
    run(plan.architecture, plan.outputs, counter, (plan.inputs, tuple(plan.patch_size)))
    return counter.flop


class FlopCounter:
    """The network's operations on (channels, size) alone."""

    def __init__(self) -> None:
        self.flop = 0.0

    def convolution(self, x: Any, layer: Any) -> Any:
        """Every output voxel meets the whole kernel."""
        size = tuple(-(-n // s) for n, s in zip(x[1], layer.stride, strict=True))
        self.flop += 2.0 * x[0] * layer.features * math.prod(layer.kernel) * math.prod(size)
        return layer.features, size

    def upsampling(self, x: Any, layer: Any) -> Any:
        """Every input voxel meets the whole kernel."""
        self.flop += 2.0 * x[0] * layer.features * math.prod(layer.kernel) * math.prod(x[1])
        return layer.features, tuple(n * s for n, s in zip(x[1], layer.stride, strict=True))

    def normalization(self, x: Any, _key: str) -> Any:
        """No matrix product."""
        return x

    def activation(self, x: Any) -> Any:
        """No matrix product."""
        return x

    def pooling(self, x: Any, stride: Sequence[int]) -> Any:
        """No matrix product."""
        return x[0], tuple(n // s for n, s in zip(x[1], stride, strict=True))

    def concatenation(self, first: Any, second: Any) -> Any:
        """Channels of both."""
        return first[0] + second[0], first[1]

    def addition(self, first: Any, _second: Any) -> Any:
        """As the first."""
        return first


def gemm_rates(threads: int, size: int = 3072, tries: int = 7) -> dict[str, float]:
    """The fastest matrix product seen here, GFLOP/s by precision; without bf16 units that rate means little."""
    import torch

    torch.set_num_threads(threads)
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        times = []
        for _ in range(tries):
            began = time.perf_counter()
            torch.mm(a, b)
            times.append(time.perf_counter() - began)
        rates[name] = 2 * size**3 / min(times) / 1e9
    return rates


def run_side(name: str, case: Case, folder: Path) -> dict[str, Any]:
    """One segmentation: seconds by stage, seconds of processor, and the memory it took beyond the volume."""
    import torch

    from engines.model.bundle import load_bundle
    from engines.volume import Grid, Volume

    torch.set_num_threads(case.threads)
    warnings.filterwarnings("ignore", module="nnunetv2")
    voxels = np.load(folder / "volume.npy").astype(np.float32)
    affine = np.diag([*reversed(case.spacing_mm), 1.0])[:, [2, 1, 0, 3]]
    volume = Volume(Grid(case.shape, affine), voxels, "CT")
    bundle = load_bundle(folder / "bundle")
    before = _reset_peak()
    began = time.perf_counter()
    from inference import nnunet_side, our_side  # what its libraries take is part of a side

    segment = nnunet_side(bundle) if name == NNUNET else our_side(bundle, name, case.threads)
    opened = time.perf_counter() - began
    _warm(segment, volume)
    processor, began = _processor_s(), time.perf_counter()
    seconds, labels = segment(volume)
    wall = time.perf_counter() - began
    np.save(folder / f"labels-{name.replace(' ', '-')}.npy", labels)
    return {
        "seconds": {**{k: float(v) for k, v in seconds.items()}, "total": wall},
        "open_s": opened,
        "processor_s": _processor_s() - processor,
        "peak_bytes": _peak() - before,
    }


def _warm(segment: Callable[[Any], Any], volume: Any) -> None:
    """What a process does once (compiling, first allocations) belongs to its start, not to a case."""
    from engines.volume import Grid, Volume

    part = tuple(slice(n // 4, n // 4 + max(n // 8, 8)) for n in volume.grid.shape)
    voxels = volume.voxels[part]
    segment(Volume(Grid(voxels.shape, volume.grid.affine), np.ascontiguousarray(voxels), volume.modality))


def _reset_peak() -> int:
    """Bytes that this process holds now; from here on the kernel's peak counts anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def _processor_s() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


# ---- all sides


def sides_here(case: Case, wanted: Sequence[str] | None) -> tuple[list[str], str]:
    """The sides to run, nnunetv2 first, and what is left out and why."""
    from engines.backends.base import Engine
    from engines.inference.segmenter import availability

    known = [Engine("torch"), Engine("openvino"), Engine("openvino", "bfloat16")]
    ours = [str(engine) for engine in known if availability(engine).available]
    if wanted:
        return list(wanted), ""
    available = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
    if case.nnunet_bytes > _SHARE_OF_MEMORY * available:
        said = (
            f"nnunetv2 is left out: every class at the original size is at least {case.nnunet_bytes / 1e9:.0f} GB, "
            f"and {available / 1e9:.0f} GB are free"
        )
        return ours, said
    return [NNUNET, *ours], ""


def child(name: str, case: Case, folder: Path) -> dict[str, Any]:
    """One side in a process of its own."""
    job = json.dumps({"side": name, "folder": str(folder), **vars(case)})
    threads = str(case.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "nnUNet_def_n_proc": threads}
    done = subprocess.run(
        [sys.executable, __file__, "--job", job], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name}: its process ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(case: Case, folder: Path, sides: Sequence[str], rounds: int) -> dict[str, Any]:
    """Every side, interleaved; medians, ratios to the first, and how its labels differ from the first's."""
    cost = child("prepare", case, folder)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    rates = []
    for number in range(rounds):
        rates.append(child("products", case, folder))
        for name in sides:
            runs[name].append(child(name, case, folder))
            seconds = runs[name][-1]["seconds"]["total"]
            print(f"round {number + 1}/{rounds} {name:18} {seconds:8.2f} s", file=sys.stderr, flush=True)
    medians = {name: _medians(taken) for name, taken in runs.items()}
    first = medians[sides[0]]["seconds"]
    reference = _labels(folder, sides[0])
    report = {
        name: {
            **medians[name],
            "times_faster": {s: first[s] / max(own, 1e-9) for s, own in medians[name]["seconds"].items() if s in first},
            "outside_times_faster": _outside(first) / max(_outside(medians[name]["seconds"]), 1e-9),
            **agreement(_labels(folder, name), reference, case.classes),
        }
        for name in sides
    }
    rates.append(child("products", case, folder))
    cost["gemm_gflops"] = {key: max(each[key] for each in rates) for key in rates[0]}
    return {"cost": cost, "sides": report, "runs": runs}


def _medians(taken: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    stages = {s: statistics.median(each["seconds"][s] for each in taken) for s in taken[0]["seconds"]}
    rest = {key: statistics.median(each[key] for each in taken) for key in ("open_s", "processor_s")}
    return {"seconds": stages, **rest, "peak_bytes": max(each["peak_bytes"] for each in taken)}


def _outside(seconds: Mapping[str, float]) -> float:
    """All but the network."""
    return seconds["total"] - seconds["network"]


def _labels(folder: Path, name: str) -> NDArray[Any]:
    labels: NDArray[Any] = np.load(folder / f"labels-{name.replace(' ', '-')}.npy")
    return labels


def agreement(labels: NDArray[Any], reference: NDArray[Any], classes: int) -> dict[str, float]:
    """Equal voxels; Dice and volume of each label of a thousand voxels or more in the reference."""
    joint = np.bincount(reference.reshape(-1).astype(np.int64) * classes + labels.reshape(-1), minlength=classes**2)
    joint = joint.reshape(classes, classes)
    true, found = joint.sum(axis=1), joint.sum(axis=0)
    large = [label for label in range(1, classes) if true[label] >= LEAST_VOXELS]
    dice = [2 * joint[n, n] / (true[n] + found[n]) for n in large] or [math.nan]
    volume = [abs(found[n] - true[n]) / true[n] for n in large] or [math.nan]
    return {
        "equal_voxels": float(joint.trace() / joint.sum()),
        "labels": len(large),
        "dice_mean": float(np.mean(dice)),
        "dice_min": float(np.min(dice)),
        "volume_difference_max": float(np.max(volume)),
    }


# ---- the page


def show(report: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    from machine import described, table

    sides, cost, case = report["sides"], report["cost"], report["case"]
    resampled = 4 * math.prod(cost["resampled"])
    extra = [s for own in sides.values() for s in own["seconds"] if s not in STAGES]
    rows: list[list[str]] = [
        [f"`{stage}`, s", *(_cell(own["seconds"].get(stage), ".2f") for own in sides.values())]
        for stage in dict.fromkeys((*STAGES[:-1], *extra, "total"))
    ]
    rows += [
        ["**times faster**", *(f"**{own['times_faster']['total']:.2f}**" for own in sides.values())],
        ["times faster, network", *(f"{own['times_faster']['network']:.2f}" for own in sides.values())],
        ["times faster, all but the network", *(f"{own['outside_times_faster']:.1f}" for own in sides.values())],
        ["processor, s", *(f"{own['processor_s']:.1f}" for own in sides.values())],
        ["opening the model, s", *(f"{own['open_s']:.1f}" for own in sides.values())],
        ["nnU-Net's multiplications as a matrix product, s", *(_cell(floor(name, cost), ".1f") for name in sides)],
        [
            "that, of the network's time",
            *(f"{100 * floor(n, cost) / o['seconds']['network']:.0f} %" for n, o in sides.items()),
        ],
        ["peak memory, GB", *(f"{max(own['peak_bytes'] - resampled, 0) / 1e9:.2f}" for own in sides.values())],
        ["equal voxels", *(f"{100 * own['equal_voxels']:.3f} %" for own in sides.values())],
        ["Dice, mean and least", *(f"{own['dice_mean']:.4f}, {own['dice_min']:.4f}" for own in sides.values())],
        ["volume, largest difference", *(f"{100 * own['volume_difference_max']:.2f} %" for own in sides.values())],
    ]
    rates = cost["gemm_gflops"]
    first = next(iter(sides))
    text = (
        f"Network `{case['network']}`, {case['classes']} classes, volume {case['shape']} at {case['spacing_mm']} mm, "
        f"{cost['windows']} windows, {cost['gflop'] / 1000:.1f} TFLOP; {case['threads']} threads, "
        f"{report['rounds']} round{'s' if report['rounds'] > 1 else ''}. Ratios and agreement are to {first}; Dice and "
        f"volume over the {sides[first]['labels']} labels of {LEAST_VOXELS} voxels or more. Peak memory is beyond the "
        f"volume and its resampled copy, the model included. Fastest matrix product seen: "
        f"{rates['float32']:.0f} GFLOP/s in float32, {rates['bfloat16']:.0f} in bfloat16."
    )
    return "\n\n".join(
        part
        for part in (
            described(report["machine"]),
            text,
            report["left_out"] and f"{report['left_out']}.",
            table(["", *sides], rows),
        )
        if part
    )


def floor(side: str, cost: Mapping[str, Any]) -> float:
    """Seconds that the network's products take at the rate of this machine's fastest matrix product."""
    rate = cost["gemm_gflops"]["bfloat16" if side.endswith("bfloat16") else "float32"]
    return float(cost["gflop"] / rate)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def main() -> None:
    """Measure, print the table, and write it where asked."""
    if sys.argv[1:2] == ["--job"]:
        job = json.loads(sys.argv[2])
        side, folder = job.pop("side"), Path(job.pop("folder"))
        case = Case(**{**job, "shape": tuple(job["shape"]), "spacing_mm": tuple(job["spacing_mm"])})
        if side == "prepare":
            done: Mapping[str, Any] = prepare(case, folder)
        else:
            done = gemm_rates(case.threads) if side == "products" else run_side(side, case, folder)
        print("\n" + json.dumps(done))
        return
    arguments = _arguments()
    from machine import machine, write_section

    case = Case(
        arguments.network,
        arguments.classes,
        tuple(arguments.shape),
        tuple(arguments.spacing),
        arguments.threads,
    )
    folder = arguments.work / case.folder
    folder.mkdir(parents=True, exist_ok=True)
    sides, left_out = sides_here(case, arguments.sides)
    report = {
        "machine": machine(folder, ("torch", "openvino", "nnunetv2", "numpy", "scipy", "numba")),
        "case": vars(case),
        "rounds": arguments.rounds,
        "left_out": left_out,
        **measure(case, folder, sides, arguments.rounds),
    }
    print(show(report))
    if arguments.page is not None:
        write_section(arguments.page, f"engine-{case.network}-{case.classes}", show(report))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("small", "standard", "tiny"), default="small")
    parser.add_argument("--classes", type=int, default=25, help="background included; 2 to 250")
    parser.add_argument("--shape", type=int, nargs=3, default=[150, 512, 512], metavar=("D", "H", "W"))
    parser.add_argument("--spacing", type=float, nargs=3, default=[2.5, 0.8, 0.8], metavar=("D", "H", "W"), help="mm")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--sides", nargs="+", metavar="SIDE", help=f"{NNUNET}, or an engine as 'openvino bfloat16'; all by default"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for weights and labels, kept for the next run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="put the table into this Markdown page, as docs/performance.md")
    parser.add_argument("--tiny", action="store_true", help="all of it in seconds; the figures mean nothing")
    arguments = parser.parse_args()
    if arguments.tiny:
        vars(arguments).update(TINY)
    return arguments


if __name__ == "__main__":
    main()
