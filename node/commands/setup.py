"""init and version: what is done once on a new machine."""

from __future__ import annotations

import argparse
import os
import re
import uuid
from functools import partial
from pathlib import Path

from node.commands.terminal import DONE, document, note, say
from node.config import SHIPPED_CONFIG, Settings, parse_settings, software_version
from node.errors import ConfigError


def init(options: argparse.Namespace) -> int:
    """Write node.toml, with a serial of its own, and make the data folders; all for their owner only."""
    target = options.folder / "node.toml"
    text = example(options.ae_title, serial=uuid.uuid4().hex[:12])
    settings = parse_settings(text, target)
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        with open(target, "x", encoding="utf-8", opener=partial(os.open, mode=0o600)) as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"{target}: exists already and is left as it is; choose another --folder, or remove it"
        ) from None
    folders = _make_folders(settings)
    if options.json:
        say(document({"config": target.absolute(), "folders": folders}))
        return DONE
    say(f"wrote {target}")
    for folder in folders:
        say(f"made  {folder}")
    note(f"next: name a [[peer]] and a [[destination]] in it, then: hilum check --config {target}")
    return DONE


def version(options: argparse.Namespace) -> int:
    """Print the version."""
    number = software_version()
    say(document({"version": number}) if options.json else f"hilum {number}")
    return DONE


def example(ae_title: str, serial: str) -> str:
    """The commented example file, with this AE title and serial."""
    text = (SHIPPED_CONFIG / "node.toml").read_text(encoding="utf-8")
    for key, value in (("ae_title", ae_title), ("serial", serial)):
        line = f"{key} = {_quoted(value)}"
        # With the spaces behind it, so that the remarks stay below one another.
        text = re.sub(rf'^{key} = ".*?" +', partial(_in_place, line), text, count=1, flags=re.MULTILINE)
    return text


def _in_place(line: str, old: re.Match[str]) -> str:
    """A line as wide as the one whose place it takes, or a space longer than itself."""
    return f"{line} ".ljust(len(old[0]))


def _quoted(value: str) -> str:
    """The value as a TOML basic string."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'


def _make_folders(settings: Settings) -> list[Path]:
    """Data folder and its rooms, readable by their owner only: they hold patients' images."""
    folders = [settings.node.data_dir, settings.spool_folder, settings.engines_folder]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folders
