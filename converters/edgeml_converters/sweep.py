"""``edgeml sweep``: many models with many options; one that fails stops no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgeml.errors import EdgemlError, GateError, UsageError, nearest
from edgeml.report import write
from edgeml_converters.api import NOTHING_TO_RESUME, convert
from edgeml_converters.results import ProfileResult
from edgeml_converters.sweep_file import Entry, read_sweep
from edgeml_converters.sweep_report import overview

logger = logging.getLogger(__name__)

#: What is known of every model of a sweep, also of those that a later call leaves out.
STATE = "sweep.json"


class Done(msgspec.Struct, frozen=True):
    """What became of one model.

    Attributes:
        name: Of the model.
        path: Its file, or ``module:function``.
        state: ``done``, ``gate`` (a gate said no) or ``error``.
        bundle: Path of the bundle; empty when there is none.
        digest: The bundle's digest.
        report: Path of its report; empty when there is none.
        results: One per profile; see ``edgeml convert --json``.
        error: Why there is no bundle, in one line.
        hint: What to do about it.
        exit_code: What ``edgeml convert`` would have ended with.
        seconds: How long it took.
    """

    name: str
    path: str
    state: str
    bundle: str = ""
    digest: str = ""
    report: str = ""
    results: tuple[ProfileResult, ...] = ()
    error: str = ""
    hint: str = ""
    exit_code: int = 0
    seconds: float = 0.0


class SweepResult(msgspec.Struct, frozen=True):
    """What ``edgeml sweep --json`` prints.

    Attributes:
        index: Path of the page that leads to every report.
        models: What became of each model, in the order of the file.
    """

    index: str
    models: tuple[Done, ...]

    @property
    def exit_code(self) -> int:
        """1 when a gate said no; else the code of the first error; else 0."""
        codes = [one.exit_code for one in self.models if one.exit_code]
        return 1 if 1 in codes else codes[0] if codes else 0


def sweep(
    path: str | Path,
    *,
    only: Sequence[str] = (),
    jobs: int = 2,
    fresh: bool = False,
    track: str | None = None,
    progress: Callable[[str], None] = logger.info,
) -> SweepResult:
    """Convert every model that a file names.

    Files and measurements that a run with the same inputs made on this machine are taken again, by
    ``edgeml.convert``. The state and the index are written after each model, so that what is done
    is kept when the rest is interrupted.

    Args:
        path: The file; ``edgeml_converters.sweep_file`` shows one.
        only: Names of the models to convert; all when empty. What is known of the others stays.
        jobs: Candidates built at the same time.
        fresh: Measure anew, also what was measured before.
        track: Where records are kept, as ``edgeml.convert`` takes it.
        progress: Takes lines that say what is being done.

    Returns:
        What became of the models that were converted now.

    Raises:
        UsageError: The file is wrong, or there is no such model.
        ProfileError: A profile is unknown or wrong.
    """
    out, entries = read_sweep(Path(path))
    names = [entry.name for entry in entries]
    for name in only:
        if name not in names:
            raise UsageError(f"sweep '{path}' has no model '{name}'", nearest(name, names))
    known = {name: one for name, one in _earlier(out).items() if name in names}
    wanted = [entry for entry in entries if not only or entry.name in only]
    title = Path(path).stem
    now: list[Done] = []
    for number, entry in enumerate(wanted, 1):
        progress(f"[{number}/{len(wanted)}] {entry.name}")
        done = _convert(entry, out, jobs, fresh, track, progress)
        if done.error:
            progress(f"{entry.name}: {done.error}")
        now.append(done)
        known[entry.name] = done
        _keep(out, title, [known[name] for name in names if name in known])
    return SweepResult(str(out / "report.html"), tuple(now))


def _convert(
    entry: Entry,
    out: Path,
    jobs: int,
    fresh: bool,
    track: str | None,
    progress: Callable[[str], None],
) -> Done:
    """Convert one model; whatever is wrong with it is told, and stops no other."""
    version = entry.options.get("version", "1.0.0")
    bundle, report = out / f"{entry.name}-{version}.edgeml", out / entry.name
    started = time.monotonic()
    try:
        result = convert(
            entry.path,
            list(entry.profiles),
            name=entry.name,
            out=bundle,
            report=report,
            jobs=jobs,
            resume=not fresh,
            fresh=fresh,
            track=track,
            progress=lambda line: None if line == NOTHING_TO_RESUME else progress(line),
            **entry.options,
        )
    except EdgemlError as error:
        return Done(
            entry.name,
            entry.path,
            "gate" if isinstance(error, GateError) else "error",
            error=error.message,
            hint=error.hint,
            exit_code=error.exit_code,
            seconds=round(time.monotonic() - started, 2),
        )
    return Done(
        entry.name,
        entry.path,
        "done",
        str(bundle),
        result.digest,
        str(report / "report.html"),
        result.results,
        seconds=round(time.monotonic() - started, 2),
    )


def _earlier(out: Path) -> dict[str, Done]:
    """Return what an earlier call left; nothing where there is none that can be read."""
    try:
        kept = msgspec.json.decode((out / STATE).read_bytes(), type=tuple[Done, ...])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        logger.warning("what an earlier sweep left in %s cannot be read: %s", out / STATE, error)
        return {}
    return {one.name: one for one in kept}


def _keep(out: Path, title: str, known: Sequence[Done]) -> None:
    """Write state and index, each file whole or not at all.

    Raises:
        UsageError: They cannot be written.
    """
    rows = [(one.name, one.state, one.error, one.results, one.seconds) for one in known]
    try:
        write(overview(title, rows), out)
        temporary = out / f".{STATE}.new"
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(known), indent=1))
        temporary.replace(out / STATE)
    except OSError as error:
        raise UsageError(
            f"cannot write the index of the sweep to '{out}': {error.strerror}",
            "name another folder by 'out' in the sweep's file",
        ) from error
