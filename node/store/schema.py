"""The journal's tables and their migrations: what is true of every instance, series, job and delivery.

Times are stored as whole microseconds since 1970 UTC: exact to compare, and the same in every data base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    inspect,
)

from node.errors import ConfigError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC time as microseconds since 1970."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Refuses a naive time: TypeError."""
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """An aware time."""
        return None if value is None else _EPOCH + timedelta(microseconds=int(value))


METADATA = MetaData()


def _sender() -> Sequence[Column[Any]]:
    names = ("sender_alias", "calling_ae_title", "called_ae_title", "address", "association_id")
    return [Column(name, Text, nullable=False, default="") for name in names]


def _work() -> Sequence[Column[Any]]:
    """The columns of a row that a station works on: the fencing token, how often it was begun, and who holds it."""
    return [
        Column("attempt", Integer, nullable=False, default=1),
        Column("starts", Integer, nullable=False, default=0),
        Column("lease_at", UtcTime),
    ]


schema_version = Table(
    "schema_version", METADATA, Column("version", Integer, primary_key=True), Column("at", UtcTime, nullable=False)
)

series = Table(
    "series",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("series_instance_uid", Text, nullable=False, unique=True),
    Column("study_instance_uid", Text, nullable=False),
    Column("patient_id", Text, nullable=False),
    *_sender(),
    Column("state", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    *_work(),
    Column("arrivals", Integer, nullable=False, default=0),
    Column("opened_at", UtcTime, nullable=False),
    Column("first_received_at", UtcTime, nullable=False),
    Column("last_received_at", UtcTime, nullable=False),
    Column("evidence", Text, nullable=False, default=""),
    Column("examine", Boolean, nullable=False, default=False),
    Column("gapped", Boolean, nullable=False, default=False),
    Column("conflict", Text, nullable=False, default=""),
    Column("settled_at", UtcTime),
    Column("completeness", Text, nullable=False, default=""),
    Column("wait_s", Float, nullable=False, default=0.0),
    Column("outcome", Text, nullable=False, default=""),
    Column("reason", Text, nullable=False, default=""),
    Index("series_by_state", "state", "last_received_at"),
)

instance = Table(
    "instance",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("series_id", Integer, ForeignKey("series.id"), nullable=False),
    Column("sop_instance_uid", Text, nullable=False),
    Column("sop_class_uid", Text, nullable=False),
    Column("transfer_syntax_uid", Text, nullable=False),
    Column("path", Text, nullable=False, unique=True),
    Column("length", BigInteger, nullable=False),
    Column("crc32", BigInteger, nullable=False),
    *_sender(),
    Column("move_originator", Text, nullable=False, default=""),
    Column("received_at", UtcTime, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("replaced_by", Integer, ForeignKey("instance.id")),
    Column("duplicates", Integer, nullable=False, default=0),
    Column("purged_at", UtcTime),
    UniqueConstraint("sop_instance_uid", "length", "crc32", "series_id"),
    Index("instance_by_series", "series_id", "state"),
    Index("instance_by_purge", "purged_at", "received_at"),
)

snapshot = Table(
    "snapshot",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("series_id", Integer, ForeignKey("series.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("completeness", Text, nullable=False),
    Column("wait_s", Float, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("series_id", "revision"),
)

member = Table(
    "member",
    METADATA,
    Column("snapshot_id", Integer, ForeignKey("snapshot.id"), primary_key=True),
    Column("instance_id", Integer, ForeignKey("instance.id"), primary_key=True),
    Index("member_by_instance", "instance_id"),
)

part = Table(
    "part",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("snapshot_id", Integer, ForeignKey("snapshot.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("volume_id", Text, nullable=False, default=""),
    Column("frames", Integer, nullable=False),
    Column("sop_instance_uids", JSON, nullable=False),
    Column("dropped", JSON, nullable=False),
    Column("split_keys", JSON, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("detail", Text, nullable=False, default=""),
    Column("rule", Text, nullable=False, default=""),
    Column("model", Text, nullable=False, default=""),
    Column("job_id", Integer, ForeignKey("job.id")),
    UniqueConstraint("snapshot_id", "number"),
)

job = Table(
    "job",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("series_id", Integer, ForeignKey("series.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("snapshot_id", Integer, ForeignKey("snapshot.id"), nullable=False),
    Column("volume_id", Text, nullable=False),
    Column("split_keys", JSON, nullable=False),
    Column("pixels", Integer, nullable=False),
    Column("rule", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("model_digest", Text, nullable=False),
    Column("config_digest", Text, nullable=False),
    Column("destinations", JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("state", Text, nullable=False),
    *_work(),
    Column("tries", Integer, nullable=False, default=0),
    Column("reason", Text, nullable=False, default=""),
    Column("detail", Text, nullable=False, default=""),
    Column("result", JSON, nullable=False, default=dict),
    Column("created_at", UtcTime, nullable=False),
    Column("due_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    UniqueConstraint("series_id", "revision", "volume_id", "model", "model_digest", "config_digest"),
    Index("job_by_state", "state", "due_at"),
    Index("job_by_snapshot", "snapshot_id"),
)

result_object = Table(
    "result_object",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("job_id", Integer, ForeignKey("job.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("variant", Text, nullable=False),
    Column("sop_class_uid", Text, nullable=False),
    Column("sop_instance_uid", Text, nullable=False),
    Column("transfer_syntax_uid", Text, nullable=False),
    Column("path", Text, nullable=False, unique=True),
    Column("sha256", Text, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("purged_at", UtcTime),
    UniqueConstraint("job_id", "kind", "variant"),
)

delivery = Table(
    "delivery",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("job_id", Integer, ForeignKey("job.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("destination", Text, nullable=False),
    Column("state", Text, nullable=False),
    *_work(),
    Column("tries", Integer, nullable=False, default=0),
    Column("reason", Text, nullable=False, default=""),
    Column("due_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Column("variant", Text, nullable=False, default=""),
    Column("sent_sop_instance_uid", Text, nullable=False, default=""),
    UniqueConstraint("job_id", "destination", "kind"),
    Index("delivery_by_state", "state", "destination", "due_at"),
)

event = Table(
    "event",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("entity", Text, nullable=False),
    Column("entity_id", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("event", Text, nullable=False),
    Column("from_state", Text, nullable=False),
    Column("to_state", Text, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Index("event_by_entity", "entity", "entity_id"),
)

listener = Table(
    "listener",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("started_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
    Column("open_associations", Integer, nullable=False, default=0),
)

arriving = Table(
    "arriving",
    METADATA,
    Column("listener_id", Text, ForeignKey("listener.id"), primary_key=True),
    Column("series_instance_uid", Text, primary_key=True),
    Column("open_associations", Integer, nullable=False),
    Column("last_byte_at", UtcTime),
)

refused_peer = Table(
    "refused_peer",
    METADATA,
    Column("calling_ae_title", Text, primary_key=True),
    Column("called_ae_title", Text, primary_key=True),
    Column("address", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("first_at", UtcTime, nullable=False),
    Column("last_at", UtcTime, nullable=False),
    Column("times", Integer, nullable=False, default=1),
)

role = Table(
    "role",
    METADATA,
    Column("executor_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
)

Migration = Callable[[Connection], None]

VERSION = 1
MIGRATIONS: Mapping[int, Migration] = MappingProxyType({})
"""Steps by the version that they lead to, from 2 on. The tables above are those of `VERSION`: a new journal is created
whole, an older one is led up step by step, and a test compares the two."""


def migrate(
    connection: Connection, now: datetime, version: int = VERSION, steps: Mapping[int, Migration] = MIGRATIONS
) -> int:
    """Create the tables of an empty data base, or lead an older one up to `version`; returns the version found.

    The caller's transaction holds all of it: an interrupted migration has not happened.

    Raises
    ------
    ConfigError
        Where the journal was written by a newer Hilum.
    """
    if not inspect(connection).has_table("schema_version"):
        METADATA.create_all(connection)
        connection.execute(schema_version.insert().values(version=version, at=now))
        return 0
    found = int(connection.exec_driver_sql("SELECT MAX(version) FROM schema_version").scalar_one())
    if found > version:
        raise ConfigError(
            f"the journal has schema version {found}, this Hilum knows {version}: start the newer Hilum again"
        )
    for number in range(found + 1, version + 1):
        steps[number](connection)
        connection.execute(schema_version.insert().values(version=number, at=now))
    return found
