"""Which configuration a command works with."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from node.commands.terminal import note
from node.config import Settings, load_settings, parse_settings
from node.errors import ConfigError

_HERE = Path("node.toml")

WITHOUT_FILE = """
[[rule]]
name = "hippocampus"
model = "hippocampus-mr"
when = [{ field = "Modality", op = "eq", value = "MR" }]
"""
"""What a command that works on a folder does where there is no configuration: the model's own limits decide."""


def configured_path(options: argparse.Namespace) -> Path | None:
    """--config, else $HILUM_CONFIG, else ./node.toml where there is one."""
    if options.config is not None:
        return Path(options.config)
    if named := os.environ.get("HILUM_CONFIG"):
        return Path(named)
    return _HERE if _HERE.is_file() else None


def settings_of(options: argparse.Namespace) -> Settings:
    """The configuration of the node.

    Raises
    ------
    ConfigError
        Where there is none, or it cannot be used.
    """
    return load_settings(required_path(options))


def required_path(options: argparse.Namespace) -> Path:
    """The path of the configuration; raises ConfigError where none is named and none lies here."""
    path = configured_path(options)
    if path is None:
        raise ConfigError(
            "there is no node.toml here; name one with --config or $HILUM_CONFIG, or write one with `hilum init`"
        )
    return path


def settings_or_default(options: argparse.Namespace) -> Settings:
    """The configuration, or the built-in one for work on folders."""
    path = configured_path(options)
    if path is not None:
        return load_settings(path)
    note("no configuration: the built-in rules are used")
    return parse_settings(WITHOUT_FILE, Path("(built-in)"))
