"""The file of ``edgeml sweep``: which models, with which options.

::

    out = "build"                      # bundles, reports and the index; relative to this file

    [defaults]                         # for every model that does not say otherwise
    profile = ["cpu-x86-64", "cpu-arm64"]
    effort = "quick"
    max-drop = 0.01

    [[model]]
    path = "digits.onnx"
    data = "digits.npz"
    metric = "top1"

    [[model]]
    path = "detector.onnx"
    name = "detector-small"
    shape = { image = [1, 3, 320, 320] }

An unknown key is an error that names the nearest one. Paths are relative to the file's folder.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgeml.errors import UsageError, nearest
from edgeml.hardware import load_profile
from edgeml_converters.rules import check_profile
from edgeml_converters.words import read_seconds

_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]*)`(?: - at `\$\.?(?P<where>[^`]*)`)?")
_MAX_BYTES = 1 << 20
Share = Annotated[float, msgspec.Meta(ge=0.0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """What may be said of every model; None leaves it to ``edgeml convert``.

    Attributes:
        profile: Names or paths of hardware profiles.
        data: Evaluation data: a path, or ``module:function``.
        metric: What counts as good.
        max_drop: Most that may be lost.
        objective: What the winner is best at.
        shape: Input -> shape to fix it to.
        effort: Test samples and rounds of measurement.
        threads: Threads of every run.
        seed: Of everything random.
        version: SemVer of the bundle.
        budget: Time for one model, for example ``10m``.
        preprocess: What is built in before the model, as ``--preprocess`` takes it.
        postprocess: What is built in after it.
    """

    profile: tuple[str, ...] | str | None = None
    data: str | None = None
    metric: str | None = None
    max_drop: Share | None = None
    objective: Literal["latency", "size", "memory", "energy"] | None = None
    shape: dict[str, tuple[int, ...]] | None = None
    effort: Literal["quick", "normal", "thorough"] | None = None
    threads: Positive | None = None
    seed: int | None = None
    version: str | None = None
    budget: str | None = None
    preprocess: tuple[str, ...] | None = None
    postprocess: tuple[str, ...] | None = None


class Model(Options, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True):
    """One model: the options, its ``path``, and the ``name`` it gets (from the path when None)."""

    path: str
    name: str | None = None


class Sweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The whole file; the module's text shows one."""

    model: Annotated[tuple[Model, ...], msgspec.Meta(min_length=1)]
    defaults: Options = Options()
    out: str = "sweep"


class Entry(msgspec.Struct, frozen=True):
    """One conversion that is to be done.

    Attributes:
        name: Of the model.
        path: Its file, or ``module:function``.
        profiles: Names or paths.
        options: What ``edgeml.convert`` is given besides.
    """

    name: str
    path: str
    profiles: tuple[str, ...]
    options: dict[str, Any]


def read_sweep(path: Path) -> tuple[Path, tuple[Entry, ...]]:
    """Read and check a sweep.

    Returns:
        The folder of what comes out, and the conversions.

    Raises:
        UsageError: It is not there, not TOML, has an unknown key, or names what is not there.
        ProfileError: A profile is unknown or wrong.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read sweep '{path}': {error.strerror}", "check the path"
        ) from error
    if len(data) > _MAX_BYTES:
        raise UsageError(f"sweep '{path}' has more than {_MAX_BYTES} bytes")
    try:
        sweep = msgspec.convert(tomllib.loads(data.decode()), Sweep)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"sweep '{path}' is not TOML: {error}", "mend that line") from error
    except msgspec.ValidationError as error:
        raise _wrong(path, str(error)) from error
    entries = tuple(_entry(one, sweep.defaults, path) for one in sweep.model)
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"sweep '{path}': two models are called '{name}'", "give one another 'name'"
            )
    return path.parent / sweep.out, entries


def _wrong(path: Path, message: str) -> UsageError:
    """Return the error for a file that is TOML but no sweep; name the nearest key."""
    found = _UNKNOWN.search(message)
    if found is None:
        return UsageError(f"sweep '{path}': {message}", "see docs/how-to/compare-and-sweep.md")
    where = found["where"] or ""
    kind = Model if where.startswith("model") else Options if where == "defaults" else Sweep
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    place = f" in [{where}]" if where else ""
    return UsageError(
        f"sweep '{path}': unknown key '{found['key']}'{place}", nearest(found["key"], known)
    )


def _entry(one: Model, defaults: Options, file: Path) -> Entry:
    """Return a model with the defaults filled in.

    Raises:
        UsageError: A file is not there, or there is no profile.
        ProfileError: A profile is unknown or wrong.
    """
    given: dict[str, Any] = {}
    for field in msgspec.structs.fields(Options):
        own = getattr(one, field.name)
        value = own if own is not None else getattr(defaults, field.name)
        if value is not None:
            given[field.name] = value
    where = f"sweep '{file}', model '{one.name or one.path}'"
    chosen = given.pop("profile", ())
    profiles = (chosen,) if isinstance(chosen, str) else chosen
    if not profiles:
        raise UsageError(f"{where} has no profile", "write profile = ['NAME'] in [defaults]")
    resolved = tuple(_profile(name, file.parent) for name in profiles)
    for name in resolved:
        check_profile(load_profile(name))
    if "data" in given:
        given["data"] = _place(given["data"], file.parent, f"{where}: data")
    for key in ("preprocess", "postprocess"):
        if key in given:
            files = (v if not v.endswith(".toml") else str(file.parent / v) for v in given[key])
            given[key] = tuple(files)
    if "budget" in given:
        text = given.pop("budget")
        given["budget_s"] = read_seconds(text)
        if not given["budget_s"]:
            raise UsageError(f"{where}: budget '{text}' is no time", "write for example 90s or 10m")
    path = _place(one.path, file.parent, f"{where}: path")
    return Entry(one.name or _name(one.path), path, resolved, given)


def _profile(name: str, folder: Path) -> str:
    """Return a profile as ``load_profile`` takes it: a path relative to the sweep's folder."""
    own = name.endswith(".toml") or "/" in name
    return str(folder / name) if own else name


def _place(value: str, folder: Path, what: str) -> str:
    """Return a path relative to the sweep's folder; ``module:function`` stays as it is.

    Raises:
        UsageError: There is no such file.
    """
    path = folder / value
    if path.is_file():
        return str(path)
    if ":" in value:
        return value
    near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
    raise UsageError(
        f"{what}: there is no file '{path}'", nearest(path.name, near) if near else "check the path"
    )


def _name(path: str) -> str:
    """Return a model's name from its path, as ``edgeml convert`` does."""
    stem = path.rpartition(":")[2] if ":" in path else Path(path).stem
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:100] or "model"
