"""demo, selftest: commands that try out a whole node with the standard patient."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from node.commands.configuration import settings_of
from node.commands.terminal import ANSWER_IS_NO, DONE, NotThere, document, note, say
from node.selftest.demo import Outcome, run_demo, run_selftest


def demo(options: argparse.Namespace) -> int:
    """Try out the whole road on loopback; status 1 where an organ differs from the truth."""
    return _ended(run_demo(options.out, _steps()), as_json=options.json)


def selftest(options: argparse.Namespace) -> int:
    """Try out the road into a configured destination; status 1 where an organ differs from the truth."""
    settings = settings_of(options)
    if options.destination not in settings.destinations():
        known = ", ".join(settings.destinations()) or "none"
        raise NotThere(f"there is no [[destination]] named {options.destination!r}; there are: {known}")
    return _ended(run_selftest(settings, options.destination, options.out, _steps()), as_json=options.json)


def _ended(outcome: Outcome, *, as_json: bool) -> int:
    if as_json:
        verdict = outcome.verdict
        files = {str(path): what for path, what in outcome.files.items()}
        say(
            document(
                {"passed": outcome.passed, "organs": verdict.rows, "violations": verdict.violations, "files": files}
            )
        )
    else:
        say("\n".join(outcome.lines()))
    return DONE if outcome.passed else ANSWER_IS_NO


def _steps() -> Callable[[str], None]:
    """What says each step, with the seconds since the start."""
    started = time.monotonic()
    return lambda step: note(f"[{time.monotonic() - started:5.0f} s] {step}")
