"""Which labels of a model have their codes in the table that comes with the program (dicom_config/segments.csv)."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from importlib.resources import files

from engines.errors import BundleError
from engines.model.bundle import Bundle

_TABLE = "segments.csv"


def coded_names() -> dict[str, str]:
    """What each name that has a row means: codes are found by the bare name, whatever the model is of.

    Raises
    ------
    BundleError
        Where the table does not lie beside the program.
    """
    try:
        text = files("dicom_config").joinpath(_TABLE).read_text(encoding="utf-8")
    except (ModuleNotFoundError, OSError) as error:
        raise BundleError(f"dicom_config/{_TABLE}: not there: {error}; install the program again") from error
    return {row["name"]: _meaning(row) for row in csv.DictReader(text.splitlines())}


def _meaning(row: Mapping[str, str]) -> str:
    """Type and modifier, as `Hippocampus, Anterior`."""
    return ", ".join(part for part in (row["type_meaning"], row["modifier_meaning"]) if part)


def uncoded_labels(bundle: Bundle, coded: Collection[str]) -> list[str]:
    """The labels that results mention and no row describes, in the order of their numbers."""
    reported = [name for label, name in sorted(bundle.labels.items()) if label not in bundle.unreported]
    return [name for name in reported if name not in coded]
