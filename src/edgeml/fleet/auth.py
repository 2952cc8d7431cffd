"""Who may use the fleet: users with scrypt hashes, and tokens of which only a digest is kept.

A token is a session (a cookie, twelve hours) or a key for the command line (until it is taken
away). Passwords and tokens are compared in constant time, and an unknown user costs as much time
as a wrong password.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path

import msgspec
import sqlalchemy as sa

from edgeml.errors import InputError, nearest
from edgeml.fleet import tables

#: scrypt's cost: 16 MiB and some tens of milliseconds per try.
_N, _R, _P = 1 << 14, 8, 1
SESSION_SECONDS = 12 * 3600.0
ADMIN = "admin"
#: Token for the command line, in the data folder of the server.
TOKEN_FILE = "admin-token"


class User(msgspec.Struct, frozen=True):
    """Who asks. ``role`` is ``admin`` (may change things) or ``viewer``."""

    name: str
    role: str

    @property
    def may_change(self) -> bool:
        """Whether this user may change the fleet."""
        return self.role == "admin"


def hash_password(password: str) -> str:
    """Return ``scrypt$n$r$p$salt$hash`` of a password."""
    salt = os.urandom(16)
    return _hashed(password, salt, _N, _R, _P)


def _hashed(password: str, salt: bytes, n: int, r: int, p: int) -> str:
    made = hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, dklen=32)
    parts = (base64.b64encode(part).decode() for part in (salt, made))
    return "$".join(("scrypt", str(n), str(r), str(p), *parts))


def check_password(password: str, stored: str) -> bool:
    """Tell whether a password is the one that was hashed."""
    name, n, r, p, salt, _made = stored.split("$")
    if name != "scrypt":
        return False
    again = _hashed(password, base64.b64decode(salt), int(n), int(r), int(p))
    return hmac.compare_digest(again, stored)


_NOBODY = hash_password(secrets.token_urlsafe(16))


def add_user(db: sa.Connection, name: str, password: str, role: str, now: float) -> None:
    """Add a user, or give a known one a new password and role."""
    values = {"password_hash": hash_password(password), "role": role, "created": now}
    mine = tables.users.c.name == name
    if db.execute(tables.users.update().where(mine).values(values)).rowcount == 0:
        db.execute(tables.users.insert().values(name=name, **values))


def set_password(db: sa.Connection, name: str) -> str:
    """Give a user a new password, and end the user's sessions.

    Returns:
        The password, which is kept nowhere.

    Raises:
        InputError: There is no such user; the hint gives the nearest.
    """
    users, tokens = tables.users, tables.tokens
    password = secrets.token_urlsafe(12)
    mine = users.c.name == name
    if (
        db.execute(
            users.update().where(mine).values(password_hash=hash_password(password))
        ).rowcount
        == 0
    ):
        raise InputError(
            f"no user '{name}'", nearest(name, db.scalars(sa.select(users.c.name)).all())
        )
    db.execute(tokens.delete().where(tokens.c.user == name, tokens.c.purpose == "session"))
    return password


def login(db: sa.Connection, name: str, password: str) -> User | None:
    """Return the user when name and password fit."""
    row = db.execute(sa.select(tables.users).where(tables.users.c.name == name)).first()
    fits = check_password(password, row.password_hash if row else _NOBODY)
    return User(row.name, row.role) if row and fits else None


def new_token(db: sa.Connection, user: str, purpose: str, now: float, seconds: float = 0) -> str:
    """Make a token; it ends after ``seconds``, or never when that is 0."""
    token = secrets.token_urlsafe(32)
    row = {
        "hash": _digest(token),
        "user": user,
        "purpose": purpose,
        "created": now,
        "expires": now + seconds if seconds else 0.0,
    }
    db.execute(tables.tokens.insert(), row)
    return token


def end_token(db: sa.Connection, token: str, now: float) -> None:
    """Forget a token, and all that have ended."""
    table = tables.tokens
    ended = sa.and_(table.c.expires > 0, table.c.expires < now)
    db.execute(table.delete().where(sa.or_(table.c.hash == _digest(token), ended)))


def who(db: sa.Connection, token: str, now: float) -> User | None:
    """Return whose token this is, or None when it is unknown or has ended."""
    query = (
        sa.select(tables.users.c.name, tables.users.c.role, tables.tokens.c.expires)
        .join(tables.tokens, tables.tokens.c.user == tables.users.c.name)
        .where(tables.tokens.c.hash == _digest(token))
    )
    row = db.execute(query).first()
    if row is None or (row.expires and row.expires < now):
        return None
    return User(row.name, row.role)


def first_admin(db: sa.Connection, token_file: Path, now: float) -> str:
    """Make the first user when there is none.

    The token for the command line is written to ``token_file``, readable by its owner only.

    Returns:
        The password, which is shown once and kept nowhere; empty when there are users already.
    """
    if db.scalar(sa.select(sa.func.count()).select_from(tables.users)):
        return ""
    password = secrets.token_urlsafe(12)
    add_user(db, ADMIN, password, "admin", now)
    write_token(db, token_file, now)
    return password


def write_token(db: sa.Connection, token_file: Path, now: float) -> None:
    """Make a token of the first admin, and write it to a file that its owner alone can read."""
    token = new_token(db, ADMIN, "command line", now)
    temporary = token_file.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(token + "\n")
    temporary.replace(token_file)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
