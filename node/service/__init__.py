"""The only place that builds things: from Settings to the objects that a role runs. One module for each role.

Each role is imported when it is run: the listener's process holds no engine, torch, highdicom or durable queues.
"""

from __future__ import annotations

from typing import NoReturn

from node.config import Settings


def run_listener(settings: Settings) -> int:
    """Receive until told to stop; returns the exit status."""
    from node.service import listener

    return listener.run(settings)


def run_worker(settings: Settings) -> NoReturn:
    """Assemble, deliver, purge and sweep until told to stop, then end the process."""
    from node.service import worker

    worker.run(settings)


def run_segmenter(settings: Settings) -> NoReturn:
    """Segment until told to stop, then end the process."""
    from node.service import segmenter

    segmenter.run(settings)
