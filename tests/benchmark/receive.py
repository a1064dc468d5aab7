"""Receive throughput, side by side in one run: our listener, storescp, Orthanc; and memory for one huge object.

    PYTHONPATH=. python tests/benchmark/receive.py [--rounds 5] [--huge-mb 1000] [--json FILE] [--page FILE.md]

Rounds are interleaved, so that foreign load on the machine meets all servers alike; only ratios of medians mean
something. All servers get TCP_NODELAY and PDUs of 128 KiB; without these storescp and Orthanc are bound by Nagle's
algorithm and would be easy to beat. The program runs itself again in a network namespace of its own (it needs root),
since storescp and Orthanc listen on every address. Images are computed, 512 x 512, 16 bit.

`durable` means: bytes and journal row flushed before the answer. Orthanc flushes its files, not its index; storescp
flushes nothing. What is not durable is compared with what is not.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import described, flush_ms, machine, table, write_section
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import build_context

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
PDU_BYTES = 131072
ASSOCIATIONS = (1, 4, 8)
EXPECTED = {1: 1.5, 4: 2.5, 8: 2.5}
"""Of `hilum / orthanc`: what a prototype without product around it reached on a quiet machine of two cores."""
UID_DIGITS = 40
INSIDE = "HILUM_BENCHMARK_NAMESPACE"


# --- what is sent -----------------------------------------------------------------------------------------------------


def uid(number: int) -> bytes:
    """Return a UID of constant length, so that it can be written over another one."""
    return b"2.25." + str(10 ** (UID_DIGITS - 6) + number).encode("ascii").ljust(UID_DIGITS - 5, b"0")


def image(shade: int = 0) -> bytes:
    """Return a CT data set, Explicit VR Little Endian: a phantom of rings in noise-free grey."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CT, uid(0).decode()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(1).decode(), uid(2).decode()
    ds.PatientID, ds.PatientName, ds.Modality = "HILUM-BENCHMARK", "BENCHMARK", "CT"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, shade], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness, ds.InstanceNumber = [0.8, 0.8], 1.0, shade
    ds.Rows = ds.Columns = 512
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope = -1024, 1
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    ds.PixelData = (1000 * np.cos(20 * np.hypot(x, y)) + shade).astype("<i2").tobytes()
    ds["PixelData"].VR = "OW"
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = False, True
    write_dataset(out, ds)
    return out.getvalue()


def huge(pixels: int) -> tuple[bytes, int]:
    """Return the head of a data set whose pixel data of that length follows, and the length."""
    whole = image()
    head = whole[: -(512 * 512 * 2)]
    return head[:-4] + struct.pack("<I", pixels), pixels


def command(instance: bytes) -> bytes:
    """Return a C-STORE-RQ."""
    fields = (
        (0x0002, CT.encode() + b"\0" * (len(CT) % 2)),
        (0x0100, struct.pack("<H", 1)),
        (0x0110, struct.pack("<H", 1)),
        (0x0700, struct.pack("<H", 0)),
        (0x0800, struct.pack("<H", 1)),
        (0x1000, instance),
    )
    body = b"".join(struct.pack("<HHI", 0, tag, len(value)) + value for tag, value in fields)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def p_data(data: bytes, is_command: bool, is_last: bool) -> bytes:
    return struct.pack(">BxIIBB", 4, len(data) + 6, len(data) + 2, 1, is_command + 2 * is_last) + data


class Sender:
    """One association that sends computed images as fast as it is answered; its own cost is a memory write."""

    def __init__(self, port: int, called: str) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=120)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.sendall(_associate_rq(called))
        kind, body = self._read()
        if kind != 2:
            raise RuntimeError(f"association refused: PDU {kind} {body!r}")

    def send(self, numbers: Sequence[int], series: int) -> None:
        """Send one image for each number; raise where one is not answered with success."""
        data, room = image().replace(uid(2), uid(series)), PDU_BYTES - 6
        parts = [data[i : i + room] for i in range(0, len(data), room)]
        stream = bytearray(p_data(command(uid(0)), True, True))
        for n, part in enumerate(parts, start=1):
            stream += p_data(part, False, n == len(parts))
        places = [match.start() for match in re.finditer(re.escape(uid(0)), stream)]
        for number in numbers:
            for place in places:
                stream[place : place + UID_DIGITS] = uid(number)
            self._sock.sendall(stream)
            self._expect_success()

    def send_huge(self, head: bytes, length: int, number: int) -> None:
        """Send one object of any size, from a few kilobytes of memory."""
        self._sock.sendall(p_data(command(uid(number)), True, True))
        self._sock.sendall(p_data(head.replace(uid(0), uid(number)), False, False))
        piece = bytes(PDU_BYTES - 6)
        while length > len(piece):
            self._sock.sendall(p_data(piece, False, False))
            length -= len(piece)
        self._sock.sendall(p_data(piece[:length], False, True))
        self._expect_success()

    def close(self) -> None:
        self._sock.sendall(struct.pack(">BxIxxxx", 5, 4))
        self._read()
        self._sock.close()

    def _expect_success(self) -> None:
        kind, body = self._read()
        status = body.find(b"\0\0\0\x09\2\0\0\0")
        if kind != 4 or status < 0 or body[status + 8 : status + 10] != b"\0\0":
            raise RuntimeError(f"not stored: PDU {kind} {body!r}")

    def _read(self) -> tuple[int, bytes]:
        kind, length = struct.unpack(">BxI", self._exactly(6))
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._sock.recv(count - len(data))
            if not more:
                raise RuntimeError("the server closed the connection")
            data += more
        return data


def _associate_rq(called: str) -> bytes:
    rq = A_ASSOCIATE()
    rq.application_context_name = "1.2.840.10008.3.1.1.1"
    rq.calling_ae_title, rq.called_ae_title = "BENCHMARK", called
    rq.presentation_context_definition_list = [build_context(CT, [EXPLICIT])]
    rq.presentation_context_definition_list[0].context_id = 1
    length, class_uid = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, class_uid.implementation_class_uid = PDU_BYTES, "1.2.3"
    rq.user_information = [length, class_uid]
    return A_ASSOCIATE_RQ(rq).encode()


# --- who receives -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    durable: bool
    port: int
    pid: int
    ae_title: str = "HILUM"


def serve_ours(folder: Path, durable: bool) -> None:
    """Be our listener with real spool, journal and metrics; nothing is flushed without `durable`, to compare only."""
    from sqlalchemy import event
    from sqlalchemy.pool import Pool

    from node.dicom.scp import Limits, Peer, Scp
    from node.dicom.storage_classes import storage_contexts
    from node.monitor import metrics
    from node.service.listener import Observer
    from node.stations.receive import Receiver
    from node.store import spool as spool_module
    from node.store.journal import Journal
    from node.store.spool import Spool

    if not durable:
        spool_module._flush_folder = lambda folder: None
        event.listen(Pool, "checkout", lambda connection, *_: connection.execute("PRAGMA synchronous=OFF"))
    folder.mkdir(parents=True)
    spool = Spool(folder / "spool", 0) if durable else Spool(folder / "spool", 0, flush=lambda fd: None)
    journal = Journal.open(f"sqlite:///{folder}/journal.db")
    metrics.initialise(metrics.Role.LISTENER, metrics.Vocabulary(version="", model_set="", senders=["benchmark"]))
    peer = Peer("benchmark", "BENCHMARK", (ipaddress.ip_network("127.0.0.0/8"),), max_associations=100)
    scp = Scp(
        "127.0.0.1",
        0,
        ["HILUM"],
        [peer],
        Limits(),
        contexts=storage_contexts(()),
        sink_factory=Receiver(spool, journal).open,
        observer=Observer(journal),
    )
    signal.signal(signal.SIGTERM, lambda *_: scp.stop(1))
    sys.stdout.write(f"{scp.port}\n")
    sys.stdout.flush()
    scp.serve_forever()
    spool.close()
    journal.close()


@contextlib.contextmanager
def ours(folder: Path, durable: bool) -> Iterator[Server]:
    arguments = [sys.executable, __file__, "--serve", str(folder), *(["--durable"] if durable else [])]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield Server("hilum" if durable else "hilum, no flush", durable, port, process.pid)
        finally:
            process.terminate()
            process.wait(20)


@contextlib.contextmanager
def storescp(folder: Path) -> Iterator[Server]:
    folder.mkdir(parents=True)
    port = _free_port()
    arguments = [
        "--fork",
        "--bit-preserving",
        "--max-pdu",
        str(PDU_BYTES),
        "--output-directory",
        str(folder),
        str(port),
    ]
    process = subprocess.Popen(["/usr/bin/storescp", *arguments], env={**os.environ, "TCP_NODELAY": "1"})
    with _ended(process, port):
        yield Server("storescp", False, port, process.pid)


@contextlib.contextmanager
def orthanc(folder: Path, durable: bool) -> Iterator[Server]:
    folder.mkdir(parents=True)
    port = _free_port()
    settings = {
        "StorageDirectory": str(folder / "files"),
        "IndexDirectory": str(folder / "index"),
        "DicomAet": "HILUM",
        "DicomPort": port,
        "DicomThreadsCount": 16,
        "DicomAlwaysAllowStore": True,
        "MaximumPduLength": PDU_BYTES,
        "HttpServerEnabled": False,
        "SyncStorageArea": durable,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["/usr/sbin/Orthanc", str(folder / "orthanc.json")],
            env={**os.environ, "TCP_NODELAY": "1"},
            stdout=log,
            stderr=log,
        )
        with _ended(process, port):
            yield Server("orthanc" if durable else "orthanc, no flush", durable, port, process.pid)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes], port: int) -> Iterator[None]:
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(20)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


# --- measuring --------------------------------------------------------------------------------------------------------


class Numbers:
    """Numbers for UIDs, none twice."""

    def __init__(self) -> None:
        self._next = 1000

    def take(self, count: int) -> range:
        self._next += count
        return range(self._next - count, self._next)


def rate(server: Server, associations: int, images: int, numbers: Numbers) -> float:
    """Return images a second over several associations at once, from the first byte to the last answer."""
    senders = [Sender(server.port, server.ae_title) for _ in range(associations)]
    shares = [numbers.take(images // associations) for _ in senders]
    series = numbers.take(associations)
    errors: list[BaseException] = []

    def run(sender: Sender, share: range, of: int) -> None:
        try:
            sender.send(share, of)
        except (OSError, RuntimeError) as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=work) for work in zip(senders, shares, series, strict=True)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    if errors:
        raise errors[0]
    for sender in senders:
        sender.close()
    return sum(map(len, shares)) / seconds


def cpu_ms(server: Server) -> float:
    """Return the processor time that a server and the children that it has reaped have used."""
    fields = Path(f"/proc/{server.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return 1000 * sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def compare(folder: Path, rounds: int, images: int) -> dict[str, Any]:
    """Return rates of every server in interleaved rounds, their medians, and the ratios that the targets are about."""
    rates: dict[str, dict[int, list[float]]] = {}
    work: dict[str, float] = {}
    flushes, loads = [], []
    numbers = Numbers()
    makers: list[Callable[[], contextlib.AbstractContextManager[Server]]] = [
        lambda: ours(folder / "ours", durable=True),
        lambda: orthanc(folder / "orthanc", durable=True),
        lambda: ours(folder / "ours-no-flush", durable=False),
        lambda: storescp(folder / "storescp"),
        lambda: orthanc(folder / "orthanc-no-flush", durable=False),
    ]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(make()) for make in makers]
        for server in servers:
            rate(server, 1, 5, numbers)  # warm
            work[server.name] = -cpu_ms(server)
        for turn in range(rounds):
            flushes.append(flush_ms(folder))
            loads.append(round(os.getloadavg()[0], 1))
            for associations in ASSOCIATIONS:
                for server in servers:
                    got = rate(server, associations, images * (1 if associations == 1 else 2), numbers)
                    rates.setdefault(server.name, {}).setdefault(associations, []).append(got)
                    sys.stderr.write(f"round {turn + 1}: {associations} x {server.name}: {got:.0f}/s\n")
        sent = rounds * images * (1 + 2 * (len(ASSOCIATIONS) - 1))
        for server in servers:
            work[server.name] = round((work[server.name] + cpu_ms(server)) / sent, 2)
    medians = {name: {n: statistics.median(found) for n, found in of.items()} for name, of in rates.items()}
    pairs = (
        ("hilum", "orthanc"),
        ("hilum", "storescp"),
        ("hilum, no flush", "storescp"),
        ("hilum, no flush", "orthanc, no flush"),
    )
    ratios = {f"{a} / {b}": {n: round(medians[a][n] / medians[b][n], 2) for n in ASSOCIATIONS} for a, b in pairs}
    by_round = {
        f"{a} / {b}": {n: [x / y for x, y in zip(rates[a][n], rates[b][n], strict=True)] for n in ASSOCIATIONS}
        for a, b in pairs
    }
    return {
        "rates": rates,
        "medians": medians,
        "ratios": ratios,
        "ratios_by_round": by_round,
        "cpu_ms_per_image": work,
        "flush_ms": flushes,
        "load": loads,
    }


def memory_of_a_huge_object(folder: Path, megabytes: int) -> dict[str, float]:
    """Return by how many megabytes the listener's peak grows when one object of that size comes in."""
    with ours(folder / "huge", durable=True) as server:
        sender = Sender(server.port, server.ae_title)
        sender.send(range(10, 20), 5)
        before = _peak_kb(server.pid)
        began = time.monotonic()
        sender.send_huge(*huge(megabytes * 1_000_000), 99)
        seconds = time.monotonic() - began
        grown = _peak_kb(server.pid) - before
        sender.close()
    return {"object_mb": megabytes, "growth_mb": round(grown / 1024, 2), "seconds": round(seconds, 2)}


def _peak_kb(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1])


def in_a_namespace_of_our_own() -> None:
    """Run again where no other machine can reach the servers."""
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", "-n", sys.executable, *sys.argv])


def show(found: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    heads = [f"{n} association{'s' * (n > 1)}" for n in ASSOCIATIONS]
    rates = [
        [name, *(f"{of[n]:.0f}" for n in ASSOCIATIONS), found["cpu_ms_per_image"][name]]
        for name, of in found["medians"].items()
    ]
    ratios = [[name, *(f"{of[n]:.2f}" for n in ASSOCIATIONS)] for name, of in found["ratios"].items()]
    ratios.insert(1, ["expected of it", *(f"{EXPECTED[n]:.2f}" for n in ASSOCIATIONS)])
    spread = [
        [name, *(f"{min(of[n]):.2f} to {max(of[n]):.2f}" for n in ASSOCIATIONS)]
        for name, of in found["ratios_by_round"].items()
    ]
    huge = found["huge"]
    return "\n\n".join(
        (
            described(found["machine"]),
            table(["ratio of medians", *heads], ratios),
            table(["lowest and highest ratio of one round", *heads], spread),
            table(["images a second, median", *heads, "processor, ms for each image"], rates),
            f"{found['rounds']} rounds; fdatasync of 0.5 MB between them, median "
            f"{statistics.median(found['flush_ms']):.2f} ms; load at their beginnings: "
            + ", ".join(str(load) for load in found["load"])
            + ".",
            f"One object of {huge['object_mb']} MB: received in {huge['seconds']} s, the peak memory of the listener "
            f"grew by {huge['growth_mb']} MB.",
        )
    )


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=80, help="for one association; twice as many for several")
    parser.add_argument("--huge-mb", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="on the disk to measure on; default: the temporary one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="put the tables into this Markdown page, as docs/performance.md")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--durable", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_ours(options.serve, options.durable)
        return
    if INSIDE not in os.environ:
        in_a_namespace_of_our_own()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        found = {"machine": machine(folder, ("pynetdicom", "sqlalchemy")), "rounds": options.rounds}
        found |= compare(folder, options.rounds, options.images)
        found["huge"] = memory_of_a_huge_object(folder, options.huge_mb)
    finally:
        shutil.rmtree(folder)
    print(show(found))
    if options.page:
        write_section(options.page, "receive", show(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
