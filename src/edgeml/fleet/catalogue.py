"""Catalogue: which versions the registry has, in the database; the bytes are in ``registry``.

A version never changes: the same name and version with another digest is refused. An alias is a
name that people move (``@prod``); a version is what it was at the moment when it was resolved.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from edgeml.errors import InputError, UsageError, nearest
from edgeml.fleet import tables
from edgeml.fleet.inventory import text
from edgeml.fleet.views import VariantRow, VersionDetail, VersionRow
from edgeml.manifest import Manifest
from edgeml.messages.payloads import Ref
from edgeml.messages.topics import check_name

_models = tables.models
_aliases = tables.aliases


def check_new(db: sa.Connection, ref: Ref) -> bool:
    """Tell whether a version is new; False when it is there with the same digest.

    Raises:
        UsageError: It is there with another digest.
    """
    here = sa.and_(_models.c.name == ref.model, _models.c.version == ref.version)
    digest = db.scalar(sa.select(_models.c.digest).where(here))
    if digest is None:
        return True
    if digest != ref.digest:
        raise UsageError(
            f"{ref.model} {ref.version} is in the registry with digest {digest[:19]}, "
            f"got {ref.digest[:19]}",
            "a version never changes: give the new bytes a new version",
        )
    return False


def add(
    db: sa.Connection, ref: Ref, manifest: Manifest, size: int, author: str, now: float
) -> None:
    """Enter a version; the same one again changes nothing.

    Raises:
        UsageError: It is there with another digest.
    """
    if not check_new(db, ref):
        return
    row = {
        "name": ref.model,
        "version": ref.version,
        "digest": ref.digest,
        "size": size,
        "pushed": now,
        "author": author,
        "manifest": text(manifest),
    }
    db.execute(_models.insert(), row)


def resolve(db: sa.Connection, model: str, version: str) -> tuple[Ref, Manifest]:
    """Return what ``version`` (SemVer, or ``@alias``) of a model is now.

    Raises:
        InputError: There is no such model, version or alias; the hint gives the nearest.
    """
    known = {row.name for row in db.execute(sa.select(_models.c.name).distinct())}
    if model not in known:
        hint = nearest(model, known) if known else "push one with 'edgeml registry push FILE'"
        raise InputError(f"no model '{model}' in the registry", hint)
    wanted = version
    if version.startswith("@"):
        aliases = aliases_of(db, model)
        if version[1:] not in aliases:
            names = [f"@{name}" for name in aliases]
            hint = nearest(version, names) if names else "this model has no alias"
            raise InputError(f"model '{model}' has no alias '{version}'", hint)
        wanted = aliases[version[1:]]
    mine = sa.and_(_models.c.name == model, _models.c.version == wanted)
    row = db.execute(sa.select(_models).where(mine)).first()
    if row is None:
        query = sa.select(_models.c.version).where(_models.c.name == model)
        raise InputError(
            f"model '{model}' has no version '{wanted}'", nearest(wanted, db.scalars(query).all())
        )
    manifest = msgspec.json.decode(row.manifest, type=Manifest)
    return Ref(row.name, row.version, row.digest), manifest


def aliases_of(db: sa.Connection, model: str) -> dict[str, str]:
    """Return alias -> version."""
    rows = db.execute(sa.select(_aliases).where(_aliases.c.name == model))
    return {row.alias: row.version for row in rows}


def set_alias(db: sa.Connection, model: str, alias: str, version: str, now: float) -> None:
    """Point an alias at a version.

    Raises:
        InputError: There is no such version.
        UsageError: The alias is not a name.
    """
    if check_name(alias, "alias")[0].isdigit():  # whoever names it would mean a version
        raise UsageError(f"alias '{alias}' begins like a version", "begin it with a letter")
    ref, _ = resolve(db, model, version)
    values = {"version": ref.version, "at": now}
    mine = sa.and_(_aliases.c.name == model, _aliases.c.alias == alias)
    if db.execute(_aliases.update().where(mine).values(values)).rowcount == 0:
        db.execute(_aliases.insert().values(name=model, alias=alias, **values))


def rows(
    db: sa.Connection, banned: dict[str, str], serving: dict[str, int], model: str = ""
) -> list[VersionRow]:
    """Return the versions, newest first.

    Args:
        db: Open transaction.
        banned: Digest -> why it must not run.
        serving: Digest -> devices that it serves on.
        model: Only of this model, when one is given.
    """
    query = sa.select(_models).order_by(_models.c.pushed.desc(), _models.c.version.desc())
    if model:
        query = query.where(_models.c.name == model)
    found = []
    for row in db.execute(query):
        aliases = sorted(a for a, v in aliases_of(db, row.name).items() if v == row.version)
        found.append(_row(row, aliases, banned.get(row.digest, ""), serving.get(row.digest, 0)))
    return found


def _row(row: Any, aliases: list[str], banned: str, serving: int) -> VersionRow:
    manifest = msgspec.json.decode(row.manifest, type=Manifest)
    score = manifest.score
    return VersionRow(
        model=row.name,
        version=row.version,
        digest=row.digest,
        size=row.size,
        pushed=row.pushed,
        profiles=tuple(sorted({variant.profile for variant in manifest.variants})),
        aliases=tuple(aliases),
        quarantined=banned,
        devices=serving,
        author=row.author,
        score=f"{score.name} {score.value:.4g} on {score.n}" if score else "",
    )


def detail(row: VersionRow, manifest: Manifest) -> VersionDetail:
    """Return a version with its variants and its lineage."""
    variants = tuple(
        VariantRow(
            id=v.id,
            profile=v.profile,
            runtime=v.runtime,
            precision=v.precision,
            recipe=v.recipe,
            size=v.size,
            evidence=v.evidence.state.value,
            by=v.evidence.by,
        )
        for v in manifest.variants
    )
    lineage = manifest.lineage
    return VersionDetail(
        row=row,
        variants=variants,
        source=lineage.source,
        source_digest=lineage.source_digest,
        data_digest=lineage.data_digest,
        tools=lineage.tools,
        parents=lineage.parents,
        labels=manifest.labels,
    )
