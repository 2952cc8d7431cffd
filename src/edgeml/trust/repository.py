"""The server's side of TUF: makes, signs and hands out metadata.

::

    folder/keys/<role>/<key id>.pem     private keys, readable by the owner only
    folder/metadata/<n>.<role>.json     consistent snapshots; nothing is ever rewritten
    folder/metadata/timestamp.json      the one file that is replaced, and always the last

A key may be taken away (an offline root): only what needs it then refuses. A crash between two
files leaves versions that no timestamp names; the next change picks them up.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgeml.errors import NotTrustedError, UsageError
from edgeml.trust.files import write_atomic

logger = logging.getLogger(__name__)

#: The delegated role whose key signs desired states.
DIRECTOR: Final = "director"
#: Role -> how long its metadata is valid. Short where the key is online and used often.
LIFETIME: Final = {
    "root": timedelta(days=730),
    "targets": timedelta(days=365),
    DIRECTOR: timedelta(days=365),
    "snapshot": timedelta(days=30),
    "timestamp": timedelta(days=14),
}
_TOP: Final = ("root", "targets", "snapshot", "timestamp")
_SERVED = re.compile(r"timestamp\.json|[1-9][0-9]{0,9}\.(root|targets|snapshot|director)\.json")


class TrustRepository:
    """A TUF repository in a folder. Safe from any thread; one process at a time.

    Args:
        folder: Where ``create`` made it.
        now: The present, for expiry dates.

    Raises:
        UsageError: There is no repository.
    """

    def __init__(self, folder: Path, now: Callable[[], datetime] | None = None) -> None:
        """Open a repository that ``create`` has made."""
        self._folder = folder
        self._now = now or (lambda: datetime.now(UTC))
        self._lock = threading.RLock()
        if not (self._metadata / "timestamp.json").is_file():
            raise UsageError(
                f"no trust repository in {folder}", "make one with `edgeml trust init`"
            )

    @classmethod
    def create(cls, folder: Path, now: Callable[[], datetime] | None = None) -> TrustRepository:
        """Make keys and the first metadata of every role.

        An earlier attempt that broke off before its end is begun anew; a finished repository is
        refused.

        Raises:
            UsageError: The folder holds a repository already.
            OSError: The folder cannot be written.
        """
        present = now or (lambda: datetime.now(UTC))
        metadata, keys = folder / "metadata", folder / "keys"
        if (metadata / "timestamp.json").exists():
            raise UsageError(f"there is a trust repository in {folder} already", "open it instead")
        metadata.mkdir(parents=True, exist_ok=True)
        keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        for stale in [*keys.glob("*/*.pem"), *metadata.glob("*.json")]:
            stale.unlink()
        signers = {role: _new_key(keys / role) for role in (*_TOP, DIRECTOR)}
        made = _first_metadata({role: signer.public_key for role, signer in signers.items()})
        for role, signed in made.items():
            signed.expires = _expiry(role, present())
            document: Metadata[Any] = Metadata(signed)
            document.sign(signers[role])
            write_atomic(metadata / _file_name(role, 1), document.to_bytes())
        return cls(folder, now)

    @property
    def _metadata(self) -> Path:
        return self._folder / "metadata"

    @property
    def root_bytes(self) -> bytes:
        """The newest root metadata: what a device is given when it is enrolled."""
        with self._lock:
            return self._path("root").read_bytes()

    @property
    def director_signer(self) -> Signer:
        """The key that signs desired states.

        Raises:
            NotTrustedError: The key is not here.
        """
        return self._signers(DIRECTOR)[0]

    def add_target(self, path: str, data: bytes) -> None:
        """List bytes as something that may run.

        Args:
            path: Target path, for example ``bundles/kws/1.2.0``.
            data: The bytes; only their length and digest are kept.

        Raises:
            UsageError: The path belongs to the director, or is listed with other bytes.
            NotTrustedError: A key that must sign is not here.
        """
        if path.startswith(f"{DIRECTOR}/"):
            raise UsageError(f"target '{path}' is in the director's part", "choose another path")
        target = TargetFile.from_data(path, data, ["sha256"])
        with self._lock:
            document = self._open("targets")
            listed = document.signed.targets.get(path)
            if listed is not None and listed != target:
                raise UsageError(
                    f"target '{path}' is listed with other bytes"
                    f" ({listed.hashes['sha256'][:12]}, got {target.hashes['sha256'][:12]})",
                    "a version never changes: give the new bytes a new version",
                )
            if listed is None:
                document.signed.targets[path] = target
                self._save("targets", document)
            # Also when it was listed: an earlier attempt may have broken off right after.
            self._publish()

    def refresh(self) -> None:
        """Sign snapshot and timestamp anew, and what is past half of its life as well.

        Raises:
            NotTrustedError: A key that must sign is not here.
        """
        with self._lock:
            for role in ("root", "targets", DIRECTOR):
                document = self._open(role)
                if document.signed.expires - self._now() > LIFETIME[role] / 2:
                    continue
                if role == "root" and not self._key_files(role):
                    logger.warning("root metadata ages, and its key is not here to sign it anew")
                    continue
                self._save(role, document)
            self._publish(force=True)

    def outnumber(self, least: int) -> None:
        """Sign everything but the root anew, with versions of at least ``least``.

        After an old copy was restored: clients that have seen newer metadata refuse a lower
        version. The root is left out, because clients take its versions one after the other.

        Raises:
            NotTrustedError: A key that must sign is not here.
        """
        with self._lock:
            for role in ("targets", DIRECTOR):
                self._save(role, self._open(role), least)
            self._publish(force=True, least=least)

    def metadata(self, name: str) -> bytes:
        """Return a metadata file, for example ``1.root.json`` or ``timestamp.json``.

        Raises:
            FileNotFoundError: There is no such file.
        """
        if not _SERVED.fullmatch(name):
            raise FileNotFoundError(name)
        return (self._metadata / name).read_bytes()

    def _path(self, role: str) -> Path:
        """Return the file of a role's newest version."""
        if role == "timestamp":
            return self._metadata / "timestamp.json"
        versions = [int(p.name.split(".")[0]) for p in self._metadata.glob(f"[0-9]*.{role}.json")]
        return self._metadata / _file_name(role, max(versions))

    def _open(self, role: str) -> Metadata[Any]:
        return Metadata.from_bytes(self._path(role).read_bytes())

    def _save(self, role: str, document: Metadata[Any], least: int = 0) -> None:
        """Sign a changed document as the role's next version and store it."""
        document.signed.version = max(document.signed.version + 1, least)
        document.signed.expires = _expiry(role, self._now())
        document.signatures.clear()
        for signer in self._signers(role):
            document.sign(signer, append=True)
        write_atomic(
            self._metadata / _file_name(role, document.signed.version), document.to_bytes()
        )

    def _publish(self, force: bool = False, least: int = 0) -> None:
        """Bring snapshot and timestamp up to the newest versions of the rest."""
        snapshot = self._open("snapshot")
        newest = {f"{role}.json": self._meta_file(role) for role in ("targets", DIRECTOR)}
        if force or snapshot.signed.meta != newest:
            snapshot.signed.meta = newest
            self._save("snapshot", snapshot, least)
        timestamp = self._open("timestamp")
        meta = self._meta_file("snapshot")
        if force or timestamp.signed.snapshot_meta != meta:
            timestamp.signed.snapshot_meta = meta
            self._save("timestamp", timestamp, least)

    def _meta_file(self, role: str) -> MetaFile:
        data = self._path(role).read_bytes()
        version = Metadata.from_bytes(data).signed.version
        return MetaFile.from_data(version, data, ["sha256"])

    def _key_files(self, role: str) -> list[Path]:
        return sorted((self._folder / "keys" / role).glob("*.pem"))

    def _signers(self, role: str) -> list[CryptoSigner]:
        """Return the signers of a role whose private keys are here and still count."""
        delegator = self._open("targets" if role == DIRECTOR else "root").signed
        allowed = delegator.get_delegated_role(role).keyids
        found = [_load_key(path) for path in self._key_files(role)]
        signers = [signer for signer in found if signer.public_key.keyid in allowed]
        if not signers:
            raise NotTrustedError(
                f"no private key for the role '{role}' in {self._folder / 'keys' / role}",
                "put the key back, or rotate it",
            )
        return signers


def _file_name(role: str, version: int) -> str:
    return "timestamp.json" if role == "timestamp" else f"{version}.{role}.json"


def _expiry(role: str, now: datetime) -> datetime:
    # TUF's dates have whole seconds.
    return (now + LIFETIME[role]).replace(microsecond=0)


def _new_key(folder: Path) -> CryptoSigner:
    """Make an Ed25519 key and store it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    signer = CryptoSigner.generate_ed25519()
    write_atomic(folder / f"{signer.public_key.keyid}.pem", signer.private_bytes, 0o600)
    return signer


def _load_key(path: Path) -> CryptoSigner:
    key = load_pem_private_key(path.read_bytes(), None)
    return CryptoSigner(cast(Any, key))  # the two libraries name the same union differently


def _first_metadata(keys: dict[str, Key]) -> dict[str, Any]:
    """Return version 1 of every role, timestamp last, without dates and signatures."""
    root = Root(consistent_snapshot=True)
    for role in _TOP:
        root.add_key(keys[role], role)
    director = DelegatedRole(DIRECTOR, [], 1, True, paths=[f"{DIRECTOR}/*"])
    targets = Targets(delegations=Delegations({}, {DIRECTOR: director}))
    targets.add_key(keys[DIRECTOR], DIRECTOR)
    meta = {f"{role}.json": MetaFile(1) for role in ("targets", DIRECTOR)}
    return {
        "root": root,
        "targets": targets,
        DIRECTOR: Targets(),
        "snapshot": Snapshot(meta=meta),
        "timestamp": Timestamp(),
    }
