"""serve, role: commands that run a node."""

from __future__ import annotations

import argparse
import logging
import os

from engines.errors import EngineError
from node import service, supervisor
from node.commands.configuration import required_path
from node.commands.terminal import status_of
from node.config import load_settings
from node.errors import HilumError
from node.monitor import logs

_log = logging.getLogger(__name__)


def serve(options: argparse.Namespace) -> int:
    """Run all roles until told to stop."""
    path = required_path(options)
    load_settings(path)
    return supervisor.serve(path)


def role(options: argparse.Namespace) -> int:
    """Run one role in this process; what ends it is a line of the log like any other."""
    roles = {
        "listener": service.run_listener,
        "worker": service.run_worker,
        "segmenter": service.run_segmenter,
    }
    path = required_path(options)
    # A role's own style takes the place of this one, once it has the key of the site.
    logs.configure(logs.LogStyle(options.role, os.urandom(32)))
    logs.catch_uncaught()
    try:
        return roles[options.role](load_settings(path))
    except (HilumError, EngineError) as error:
        _log.critical("role_failed", exc_info=error)
        return status_of(error)
