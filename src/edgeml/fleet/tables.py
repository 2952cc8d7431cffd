"""The tables of the fleet's database, and their migrations.

Structs are kept as JSON text in one column each, with the columns beside them that queries need:
a message of a newer agent is stored whole, and read as far as this release understands it.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

metadata = sa.MetaData()

_NAME = sa.String(64)
_DIGEST = sa.String(80)

versions = sa.Table(
    "schema_version",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
)

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("device", _NAME, primary_key=True),
    sa.Column("profile", _NAME, nullable=False, default=""),
    sa.Column("tags", sa.Text, nullable=False, default="{}"),
    sa.Column("agent_version", _NAME, nullable=False, default=""),
    sa.Column("facts", sa.Text, nullable=False, default=""),
    sa.Column("boot", _NAME, nullable=False, default=""),
    # JSON list of boots that came before: what still arrives from them is stale.
    sa.Column("past_boots", sa.Text, nullable=False, default="[]"),
    sa.Column("boots", sa.Integer, nullable=False, default=0),
    sa.Column("online", sa.Boolean, nullable=False, default=False),
    sa.Column("state_since", sa.Float, nullable=False, default=0.0),
    sa.Column("enrolled", sa.Float, nullable=False, default=0.0),
    sa.Column("seen", sa.Float, nullable=False, default=0.0),
    sa.Column("reported", sa.Text, nullable=False, default=""),
    sa.Column("reported_boot", _NAME, nullable=False, default=""),
    sa.Column("reported_sequence", sa.Integer, nullable=False, default=-1),
)

#: What each device should run. The generation only ever grows.
desired = sa.Table(
    "desired",
    metadata,
    sa.Column("device", _NAME, primary_key=True),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("slots", sa.Text, nullable=False),
    sa.Column("quarantined", sa.Text, nullable=False, default="[]"),
)

#: Every version that a device has ever verified in a slot, the order it did so in.
verified = sa.Table(
    "verified",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("device", _NAME, nullable=False),
    sa.Column("slot", _NAME, nullable=False),
    sa.Column("digest", _DIGEST, nullable=False),
    sa.Column("ref", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Index("verified_by_slot", "device", "slot", "id"),
)

quarantine = sa.Table(
    "quarantine",
    metadata,
    sa.Column("digest", _DIGEST, primary_key=True),
    sa.Column("model", _NAME, nullable=False),
    sa.Column("version", _NAME, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("version", _NAME, primary_key=True),
    sa.Column("digest", _DIGEST, nullable=False, index=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("pushed", sa.Float, nullable=False),
    sa.Column("author", _NAME, nullable=False, default=""),
    sa.Column("manifest", sa.Text, nullable=False),
)

aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("alias", _NAME, primary_key=True),
    sa.Column("version", _NAME, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", _NAME, primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("slot", _NAME, nullable=False),
    sa.Column("state", _NAME, nullable=False, index=True),
    sa.Column("digest", _DIGEST, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)

#: Every decision of every rollout, with the verdicts that it rests on.
decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("rollout", _NAME, nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("kind", _NAME, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("verdicts", sa.Text, nullable=False, default="[]"),
)

windows = sa.Table(
    "windows",
    metadata,
    sa.Column("device", _NAME, primary_key=True),
    sa.Column("boot", _NAME, primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("slot", _NAME, nullable=False),
    sa.Column("model", _NAME, nullable=False),
    sa.Column("version", _NAME, nullable=False),
    sa.Column("digest", _DIGEST, nullable=False),
    sa.Column("began", sa.Float, nullable=False),
    sa.Column("received", sa.Float, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("requests", sa.Integer, nullable=False),
    sa.Column("errors", sa.Integer, nullable=False),
    sa.Column("error_kinds", sa.Text, nullable=False, default="{}"),
    sa.Column("latency", sa.Text, nullable=False, default="[]"),
    sa.Column("fallbacks", sa.Integer, nullable=False),
    sa.Column("labelled", sa.Integer, nullable=False),
    sa.Column("correct", sa.Integer, nullable=False),
    sa.Column("drift", sa.LargeBinary, nullable=False, default=b""),
    sa.Column("gauges", sa.Text, nullable=False, default="{}"),
    sa.Index("windows_by_slot", "slot", "began"),
    sa.Index("windows_by_time", "received"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("device", _NAME, nullable=False),
    sa.Column("boot", _NAME, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("kind", _NAME, nullable=False),
    sa.Column("severity", _NAME, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("wall", sa.Float, nullable=False),
    sa.Column("received", sa.Float, nullable=False),
    sa.Column("data", sa.Text, nullable=False, default="{}"),
    sa.UniqueConstraint("device", "boot", "sequence"),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("password_hash", sa.Text, nullable=False),
    sa.Column("role", _NAME, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)

#: Only the digest of a token is kept: who reads the database cannot log in with it.
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("user", _NAME, nullable=False),
    sa.Column("purpose", _NAME, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
)

#: Candidates that are measured, or were, on devices of the fleet.
measurements = sa.Table(
    "measurements",
    metadata,
    sa.Column("id", _NAME, primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("state", _NAME, nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
)


def _add_measurements(db: sa.Connection) -> None:
    """Add the table of version 2; a database that is made now has it already."""
    measurements.create(db, checkfirst=True)


#: Step n of the list takes a database from version n to n + 1; a step is never changed.
MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (metadata.create_all, _add_measurements)
