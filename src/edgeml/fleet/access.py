"""The way back in, on the server's own machine: who may write its folder may set a password.

Works on the database itself, whether the server runs or not, and needs no login.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from edgeml.errors import InputError
from edgeml.fleet import auth
from edgeml.fleet.store import Store


class NewPassword(msgspec.Struct, frozen=True):
    """A password that was just set.

    Attributes:
        token_file: Where the token for the command line is; written anew when it was missing.
    """

    user: str
    password: str
    token_file: str


def new_password(data: Path, user: str) -> NewPassword:
    """Give a user of the server in ``data`` a new password, and end the user's sessions.

    Raises:
        InputError: There is no server's database in the folder, or no such user in it.
    """
    path = data / "fleet.db"
    if not path.is_file():
        raise InputError(f"{data} holds no fleet", "give the folder of 'edgeml fleet serve'")
    token_file = data / auth.TOKEN_FILE
    store = Store.at(path)
    try:
        with store.write() as db:
            password = auth.set_password(db, user)
            if not token_file.exists():
                auth.write_token(db, token_file, time.time())
    except OSError as error:
        raise InputError(f"cannot write {token_file}: {error.strerror}") from error
    finally:
        store.close()
    return NewPassword(user, password, str(token_file))
