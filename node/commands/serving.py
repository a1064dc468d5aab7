"""serve, role: commands that run a node."""

from __future__ import annotations

import argparse

from node import service, supervisor
from node.commands.configuration import required_path, settings_of
from node.config import load_settings


def serve(options: argparse.Namespace) -> int:
    """Run all roles until told to stop."""
    path = required_path(options)
    load_settings(path)
    return supervisor.serve(path)


def role(options: argparse.Namespace) -> int:
    """Run one role in this process."""
    roles = {
        "listener": service.run_listener,
        "worker": service.run_worker,
        "segmenter": service.run_segmenter,
    }
    return roles[options.role](settings_of(options))
