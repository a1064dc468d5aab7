"""Of commands that compute: the options that say on what, and a bundle opened so."""

from __future__ import annotations

import argparse
from typing import Any

from engines.commands.numbers import positive
from engines.commands.terminal import say
from engines.model.bundle import Bundle


def add_placement(command: argparse.ArgumentParser) -> None:
    """Engine, device, threads, and the form of the answer."""
    command.add_argument("--engine", help="such as 'openvino bfloat16'; left out: the fastest that is certified")
    command.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (%(default)s: the processor)")
    command.add_argument("--threads", type=positive, help="processor threads; left out: all that this process may use")
    command.add_argument("--json", action="store_true", help="for programs")


def opened(bundle: Bundle, arguments: argparse.Namespace) -> Any:
    """A segmenter with the engine that was named, or the fastest that is certified."""
    from engines.backends.base import REFERENCE, Engine, Placement
    from engines.backends.cards import cautions
    from engines.inference.choice import Policy
    from engines.inference.fastest import open_fastest
    from engines.inference.segmenter import Segmenter
    from engines.inference.trial import device_name

    placement = Placement.told(arguments.device, arguments.threads)
    engine = None if arguments.engine is None else Engine.parse(arguments.engine)
    if placement.device != "cpu":
        for caution in cautions({(engine or REFERENCE).backend}, device_name(placement.device)):
            say(str(caution))
    return open_fastest(bundle, Policy(), placement) if engine is None else Segmenter.open(bundle, engine, placement)
