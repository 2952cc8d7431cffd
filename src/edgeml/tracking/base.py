"""Tracker, and the Record that it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import msgspec


class Record(msgspec.Struct, frozen=True):
    """One conversion, as a tracker keeps it.

    Attributes:
        name: Of the model.
        version: SemVer of the bundle.
        bundle: The bundle's file or folder.
        digest: The bundle's digest.
        params: What was asked for, and what won.
        metrics: Dotted name -> number. The unit is in the name (``_ms``, ``_bytes``, ``_db``).
        tags: What the version is known by: digests, profiles, precisions, evidence.
        lineage: Where the bundle comes from (``edgeml.manifest.Lineage`` as plain values).
        files: File name -> bytes: the report and its pictures.
    """

    name: str
    version: str
    bundle: Path
    digest: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    lineage: dict[str, Any]
    files: dict[str, bytes] = {}


class Tracker(Protocol):
    """A place where records are kept (plug-in kind ``trackers``)."""

    name: ClassVar[str]

    @classmethod
    def open(cls, address: str) -> Self:
        """Return the tracker at an address, checked so far that keeping something may work.

        Args:
            address: What stands behind ``NAME:`` in ``--track``; may be empty.

        Raises:
            UsageError: The address is no place of this kind.
            UnreachableError: Nobody answers there.
        """
        ...

    def keep(self, record: Record) -> str:
        """Keep a record.

        Returns:
            Where it can be seen: a path or an address.

        Raises:
            UsageError: The place refuses it.
            UnreachableError: Nobody answers there any more.
        """
        ...
