"""hilum: the command line. It parses; what a command does lives in `node.commands`, imported when it is asked for.

Exit status: 0 done; 1 it ran, and the answer is no (a check failed, nothing could be segmented); 2 the command line or
the configuration is wrong; 3 what was asked for does not exist, or its state does not allow it; 4 a peer, device or
disk cannot serve now; 130 interrupted. A fault of Hilum's own ends with a traceback and status 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from engines.errors import EngineError
from node.commands.terminal import DONE, INTERRUPTED, UNAVAILABLE, note, sentence, status_of
from node.errors import HilumError

_STATUSES = """exit status: 0 done, 1 it ran and the answer is no, 2 command line or configuration wrong,
3 no such thing or its state does not allow it, 4 peer, device or disk cannot serve now, 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = parser().parse_args(arguments)
    module, _, function = options.run.partition(":")
    try:
        status: int = getattr(importlib.import_module(f"node.commands.{module}"), function)(options)
        sys.stdout.flush()
    except (HilumError, EngineError) as error:
        note(f"hilum {options.command}: {sentence(error)}")
        return status_of(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        note(f"hilum {options.command}: {error.filename or 'system'}: {error.strerror or error}")
        return UNAVAILABLE
    except KeyboardInterrupt:
        note(f"hilum {options.command}: interrupted")
        return INTERRUPTED
    return status


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="hilum",
        description="CT and MR series in over DICOM; organ segmentations (DICOM SEG) and volume reports (SR, PDF) out.",
        epilog=f"{_STATUSES}\n\nto try it: hilum demo; on a new machine: hilum init && hilum check && hilum serve",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for add in (_try_out, _set_up, _run, _watch, _intervene, _explain, _segment, _send):
        add(commands)
    return top


def _try_out(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = _command(
        commands,
        "demo",
        "trial:demo",
        "Start a node and a small archive on loopback, send the standard patient, compare the result with the truth.",
        "hilum demo --out demo",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("hilum-demo"),
        metavar="DIR",
        help="folder for the files (default: %(default)s)",
    )
    selftest = _command(
        commands,
        "selftest",
        "trial:selftest",
        "Send the standard patient through this node to a configured destination and read the result back from there.",
        "hilum selftest --destination pacs",
        config=True,
    )
    selftest.add_argument("--destination", required=True, metavar="NAME", help="name of a [[destination]]")
    selftest.add_argument(
        "--out", type=Path, default=Path("hilum-selftest"), metavar="DIR", help="folder for the files"
    )


def _set_up(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    init = _command(
        commands,
        "init",
        "setup:init",
        "Write a commented node.toml and make the data folders. Never overwrites.",
        "hilum init --folder /srv/hilum --ae-title HILUM",
    )
    init.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="where node.toml goes (default: here)")
    init.add_argument("--ae-title", default="HILUM", metavar="AET", help="AE title of this node (default: %(default)s)")
    check = _command(
        commands,
        "check",
        "check:check",
        "Check configuration, disk, decoders, models, device and peers, and list who was refused. Sends no images.",
        "hilum check --config /srv/hilum/node.toml",
        config=True,
    )
    check.add_argument("--offline", action="store_true", help="do not call the destinations")
    models = _command(
        commands,
        "models",
        "models:models",
        "List the models: version, digest, labels, and on what each of them would run here, and why.",
        "hilum models --json",
        config=True,
    )
    models.add_argument("name", nargs="?", metavar="NAME", help="show this one only, with its card")
    models.add_argument(
        "--test", action="store_true", help="try each engine on each model: is its answer the stored one, and how fast?"
    )
    _command(commands, "version", "setup:version", "Print the version.", "hilum version --json")


def _run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _command(
        commands,
        "serve",
        "serving:serve",
        "Run the node: starts listener, worker and segmenter, and starts again what dies. Stops on SIGTERM or Ctrl-C.",
        "hilum serve --config /srv/hilum/node.toml",
        config=True,
    )
    role = _command(
        commands,
        "role",
        "serving:role",
        "Run one role of the node in this process; `hilum serve` does it for you.",
        "hilum role listener --config /srv/hilum/node.toml",
        config=True,
    )
    role.add_argument("role", choices=("listener", "worker", "segmenter"))


def _watch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    series = _command(
        commands,
        "series",
        "records:series",
        "List the series, newest first; or show one, with its history.",
        "hilum series --state open",
        config=True,
    )
    series.add_argument("series", nargs="?", metavar="SERIES", help="number or Series Instance UID: show this one")
    series.add_argument("--state", choices=("open", "settled"), help="only those in this state")
    series.add_argument(
        "--limit", type=_positive, default=50, metavar="N", help="at most so many (default: %(default)s)"
    )
    jobs = _command(
        commands,
        "jobs",
        "records:jobs",
        "List the jobs, newest first; or show one, with its history.",
        "hilum jobs --state failed",
        config=True,
    )
    jobs.add_argument("job", nargs="?", type=_positive, metavar="JOB", help="number: show this one")
    jobs.add_argument(
        "--state",
        choices=("queued", "running", "composed", "done", "rejected", "cancelled", "failed"),
        help="only those in this state; failed: also those that a destination did not take",
    )
    jobs.add_argument("--model", metavar="NAME", help="only those of this model")
    jobs.add_argument("--limit", type=_positive, default=50, metavar="N", help="at most so many (default: %(default)s)")


def _intervene(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    retry = _command(
        commands,
        "retry",
        "records:retry",
        "Start again a job, or a delivery, that has failed or was cancelled; or send a result again.",
        "hilum retry 17",
        config=True,
    )
    cancel = _command(
        commands,
        "cancel",
        "records:cancel",
        "Cancel a job with all that it has not yet sent, or one delivery.",
        "hilum cancel 17",
        config=True,
    )
    retry.add_argument(
        "--series", type=_positive, metavar="N", help="number of a series: judge it anew by today's rules"
    )
    retry.add_argument(
        "--accept",
        choices=("newest", "oldest"),
        help="with --series, where its images are of two patients or studies: keep those of the newest, or oldest, "
        "image, and set the others aside",
    )
    for command in (retry, cancel):
        command.add_argument("job", nargs="?", type=_positive, metavar="JOB", help="number of a job")
        command.add_argument("--delivery", type=_positive, metavar="N", help="number of a delivery, instead of a job")


def _explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    explain = _command(
        commands,
        "explain",
        "explain:explain",
        "Show the stacks of a folder, or of a received series, and what each rule says of them. Changes nothing.",
        "hilum explain /data/scan",
        config=True,
    )
    explain.add_argument(
        "source", metavar="FOLDER|SERIES", help="folder of DICOM files; or number or UID of a received series"
    )
    explain.add_argument("--sender", default="", metavar="NAME", help="judge as if this peer had sent it")
    explain.add_argument("--called", default="", metavar="AET", help="judge as if this AE title had been called")


def _segment(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    segment = _command(
        commands,
        "segment",
        "segment:segment",
        "Segment the scans of a folder without any network: SEG, SR, PDF, NIfTI with ITK-SNAP labels, a picture.",
        "hilum segment /data/scan --out results",
        config=True,
    )
    segment.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder of DICOM files; several series may lie in it"
    )
    segment.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the results; one more is made in it for each scan",
    )
    segment.add_argument(
        "--model", metavar="NAME", help="use this model for each scan that it takes, whatever the rules say"
    )


def _send(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    send = _command(
        commands,
        "send",
        "send:send",
        "Send the DICOM files of a folder by C-STORE.",
        "hilum send /data/scan --to pacs",
        config=True,
    )
    send.add_argument("folder", type=Path, metavar="FOLDER", help="folder, or one file")
    send.add_argument("--to", metavar="NAME", help="name of a [[destination]]")
    send.add_argument("--host", metavar="HOST", help="instead of --to: host name or address")
    send.add_argument(
        "--port", type=_positive, default=104, metavar="N", help="with --host: TCP port (default: %(default)s)"
    )
    send.add_argument(
        "--ae-title", default="ANY-SCP", metavar="AET", help="with --host: AE title to call (default: %(default)s)"
    )
    send.add_argument("--calling", metavar="AET", help="AE title to call with (default: node.ae_title)")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: str,
    what: str,
    example: str,
    *,
    config: bool = False,
) -> argparse.ArgumentParser:
    """One command, in the one shape that all have."""
    command = commands.add_parser(
        name,
        help=what.partition(". ")[0].partition(";")[0].rstrip("."),
        description=what,
        epilog=f"example: {example}\n\n{_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print one JSON document, for programs")
    if config:
        command.add_argument(
            "--config", type=Path, metavar="FILE", help="configuration (default: $HILUM_CONFIG, else ./node.toml)"
        )
    return command


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
