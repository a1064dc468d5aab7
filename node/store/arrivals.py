"""The short way into the journal, for what nearly every object is: a new image of a series that is open already.

Two statements for a whole batch, compiled once: Core takes several times longer to look up and bind a statement than
SQLite to run it, and all of that time stands before an answer to a sender (NET-2). Whatever is not so plain (the first
image of a series, a known UID, another patient, a held class) takes the long way of Reception.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Dialect,
    Insert,
    Update,
    bindparam,
    case,
    exists,
    insert,
    literal_column,
    select,
    update,
)

from node.domain.instance import InstanceState, ReceivedInstance, Sender
from node.domain.series import SeriesState
from node.errors import HilumError
from node.store import schema as t

MULTI_FRAME_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("2.1", "2.2", "4.1", "4.4"))
"""Enhanced and legacy converted CT and MR: one object may be a whole series (ASM-9)."""


class NotPlain(HilumError):
    """One of the batch needs a closer look; what was written of the batch must be rolled back."""


class Arrivals:
    """Keeps batches of plain images.

    Parameters
    ----------
    dialect
        Of the data base that the connections lead to.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._arrive = _Prepared(_ARRIVE, dialect)
        self._keep = _Prepared(_KEEP, dialect)

    def keep(self, connection: Connection, batch: Sequence[ReceivedInstance]) -> None:
        """Keep a batch of which every instance is new, and of a series that is open and the same patient's.

        The series come first: from then on their rows are locked, and what was true of them stays so.

        Raises
        ------
        NotPlain
            It is not so.
        """
        if not all(_may_be_plain(instance) for instance in batch):
            raise NotPlain("class or state")
        latest: dict[tuple[str, str, str], list[datetime]] = defaultdict(list)
        for each in batch:
            latest[each.series_instance_uid, each.study_instance_uid, each.patient_id].append(each.received_at)
        series = [
            {"of_series": uid, "of_study": study, "of_patient": patient, "count": len(times), "last": max(times)}
            for (uid, study, patient), times in latest.items()
        ]
        if self._arrive.run(connection, series) != len(series):
            raise NotPlain("series")
        rows = [{"of_series": each.series_instance_uid, **instance_columns(each)} for each in batch]
        if self._keep.run(connection, rows) != len(rows):
            raise NotPlain("known UID")


def instance_columns(instance: ReceivedInstance) -> dict[str, Any]:
    """The columns of an instance's row, those left out that the journal decides."""
    return {
        "sop_instance_uid": instance.sop_instance_uid,
        "sop_class_uid": instance.sop_class_uid,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
        "path": str(instance.path),
        "length": instance.length,
        "crc32": instance.crc32,
        **sender_columns(instance.sender),
        "move_originator": instance.move_originator,
        "received_at": instance.received_at,
        "state": instance.state,
        "reason": instance.reason,
    }


def sender_columns(sender: Sender) -> dict[str, str]:
    """The columns that say who sent something, of a series and of an instance."""
    return {
        "sender_alias": sender.alias,
        "calling_ae_title": sender.calling_ae_title,
        "called_ae_title": sender.called_ae_title,
        "address": sender.address,
        "association_id": sender.association_id,
    }


def _may_be_plain(instance: ReceivedInstance) -> bool:
    return instance.state is InstanceState.KEPT and instance.sop_class_uid not in MULTI_FRAME_CLASSES


def _arrive_statement() -> Update:
    s = t.series.c
    last = bindparam("last", type_=s.last_received_at.type)
    return (
        update(t.series)
        .where(
            s.series_instance_uid == bindparam("of_series"),
            s.study_instance_uid == bindparam("of_study"),
            s.patient_id == bindparam("of_patient"),
            s.state == literal_column(f"'{SeriesState.OPEN}'"),
        )
        .values(
            arrivals=s.arrivals + bindparam("count"),
            last_received_at=case((s.last_received_at < last, last), else_=s.last_received_at),
            evidence=literal_column("''"),
            gapped=literal_column("FALSE"),
            starts=literal_column("0"),
        )
    )


def _keep_statement() -> Insert:
    """Insert by selecting from the series: that finds its number, and nothing at all where the UID is known."""
    i, s = t.instance.c, t.series.c
    names = (*_INSTANCE_COLUMNS, "duplicates")
    values = (*(bindparam(name, type_=i[name].type) for name in _INSTANCE_COLUMNS), literal_column("0"))
    known = exists().where(i.sop_instance_uid == bindparam("sop_instance_uid", type_=i.sop_instance_uid.type))
    of_series = select(s.id, *values).where(s.series_instance_uid == bindparam("of_series"), ~known)
    return insert(t.instance).from_select(["series_id", *names], of_series, include_defaults=False)


_INSTANCE_COLUMNS = tuple(
    column.name
    for column in t.instance.c
    if column.name not in ("id", "series_id", "replaced_by", "duplicates", "purged_at")
)
_ARRIVE, _KEEP = _arrive_statement(), _keep_statement()


class _Prepared:
    """A statement as text for the driver, its parameters in order and converted as Core would."""

    def __init__(self, statement: Insert | Update, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self._text = compiled.string
        self._order: Sequence[str] | None = compiled.positiontup
        converters = {
            name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in compiled.binds.items()
        }
        self._converters = {name: convert for name, convert in converters.items() if convert is not None}

    def run(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        """Run it for each row; returns how many rows of the table were hit."""
        return connection.exec_driver_sql(self._text, [self._parameters(row) for row in rows]).rowcount

    def _parameters(self, row: Mapping[str, Any]) -> Any:
        values = dict(row)
        for name, convert in self._converters.items():
            values[name] = convert(values[name])
        return values if self._order is None else tuple(values[name] for name in self._order)
