"""What figures were measured on, and tables for docs/performance.md."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine(folder: Path, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Processor, cores, memory, disk under `folder`, kernel, versions, and how busy it all was."""
    information = _text("/proc/cpuinfo")
    models = sorted(set(re.findall(r"model name\s*:\s*(.*)", information))) or [platform.processor()]
    memory = re.search(r"MemTotal:\s+(\d+)", _text("/proc/meminfo"))
    return {
        "processor": ", ".join(models),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(memory[1]) / 1e6, 1) if memory else None,
        "disk": _disk(folder),
        "fdatasync_ms": round(flush_ms(folder), 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: found for name in packages if (found := _version(name))},
        "load_before": round(os.getloadavg()[0], 2),
    }


def flush_ms(folder: Path, tries: int = 20) -> float:
    """Return the median time of fdatasync after half a megabyte into a new file."""
    times = []
    for _ in range(tries):
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(bytes(524288))
            file.flush()
            began = time.monotonic()
            os.fdatasync(file.fileno())
            times.append(1000 * (time.monotonic() - began))
    return statistics.median(times)


def described(found: Mapping[str, Any]) -> str:
    """The machine as one paragraph of Markdown."""
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    return (
        f"{found['processor']}, {found['cores']} cores, {found['memory_gb']} GB; {found['disk']}, fdatasync of 0.5 MB "
        f"{found['fdatasync_ms']} ms (median); Linux {found['kernel']}; Python {found['python']}"
        + (f"; {packages}" if packages else "")
        + f"; load before: {found['load_before']}."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, its first column text and all others numbers."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write_section(page: Path, name: str, text: str) -> None:
    """Put the text between `<!-- name -->` and `<!-- /name -->` of a Markdown page, in place of what stands there."""
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(first)
    _, ended, after = rest.partition(last)
    if not found or not ended:
        raise SystemExit(f"{page}: no section {first} ... {last}")
    page.write_text(f"{before}{first}\n{text}\n{last}{after}", encoding="utf-8")


def _disk(folder: Path) -> str:
    """File system and device, as the kernel names them."""
    found = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", str(folder)], capture_output=True, text=True, check=False
    )
    kind, _, source = found.stdout.strip().partition(" ")
    device = Path("/sys/class/block") / Path(source.strip()).name
    model = _text(device / "device/model").strip() or _text(device / "../device/model").strip()
    turning = _text(device / "queue/rotational").strip() or _text(device / "../queue/rotational").strip()
    word = (
        "virtual" if device.name.startswith(("vd", "xvd")) else {"0": "solid state", "1": "rotating"}.get(turning, "")
    )
    return ", ".join(part for part in (f"{kind} on {source.strip()}", model, word) if part)


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
