"""Rollouts on disk, and every decision that was taken about them."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from edgeml.fleet import tables
from edgeml.fleet.inventory import text
from edgeml.fleet.rollout import ACTIVE, Note, Rollout
from edgeml.gates import Verdict

_rollouts = tables.rollouts
_decisions = tables.decisions


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that was decided about a rollout.

    Attributes:
        id: Rises with every decision.
        rollout: Id of the rollout.
        at: Unix seconds.
        kind: The state that was entered, or what else happened.
        message: Why.
        verdicts: What the gates said at that moment, with their figures.
    """

    id: int
    rollout: str
    at: float
    kind: str
    message: str
    verdicts: tuple[Verdict, ...] = ()


def save(db: sa.Connection, rollout: Rollout) -> None:
    """Write a rollout, new or changed."""
    values = {
        "created": rollout.created,
        "slot": rollout.slot,
        "state": rollout.state.value,
        "digest": rollout.ref.digest,
        "body": text(rollout),
    }
    mine = _rollouts.c.id == rollout.id
    if db.execute(_rollouts.update().where(mine).values(values)).rowcount == 0:
        db.execute(_rollouts.insert().values(id=rollout.id, **values))


def find(db: sa.Connection, rollout: str) -> Rollout | None:
    """Return a rollout, or None."""
    body = db.scalar(sa.select(_rollouts.c.body).where(_rollouts.c.id == rollout))
    return msgspec.json.decode(body, type=Rollout) if body else None


def active(db: sa.Connection) -> list[Rollout]:
    """Return the rollouts that still do something, oldest first."""
    states = [state.value for state in ACTIVE]
    query = (
        sa.select(_rollouts.c.body)
        .where(_rollouts.c.state.in_(states))
        .order_by(_rollouts.c.created)
    )
    return [msgspec.json.decode(body, type=Rollout) for body in db.scalars(query)]


def newest(db: sa.Connection, limit: int = 100) -> list[Rollout]:
    """Return rollouts, newest first."""
    query = sa.select(_rollouts.c.body).order_by(_rollouts.c.created.desc()).limit(limit)
    return [msgspec.json.decode(body, type=Rollout) for body in db.scalars(query)]


def record(db: sa.Connection, rollout: str, note: Note, now: float) -> None:
    """Write a decision down."""
    row = {
        "rollout": rollout,
        "at": now,
        "kind": note.kind,
        "message": note.message,
        "verdicts": text(note.verdicts),
    }
    db.execute(_decisions.insert(), row)


def decisions(db: sa.Connection, rollout: str) -> list[Decision]:
    """Return what was decided about a rollout, oldest first."""
    query = sa.select(_decisions).where(_decisions.c.rollout == rollout).order_by(_decisions.c.id)
    return [
        Decision(
            id=row.id,
            rollout=row.rollout,
            at=row.at,
            kind=row.kind,
            message=row.message,
            verdicts=msgspec.json.decode(row.verdicts, type=tuple[Verdict, ...]),
        )
        for row in db.execute(query)
    ]
