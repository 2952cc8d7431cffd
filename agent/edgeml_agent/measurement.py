"""A measurement on this device: each candidate checked alone, then all of them side by side.

Everything runs in child processes with bounds on time and memory. One that crashes, hangs or goes
over a bound costs its candidate; the agent and what serves go on.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeml.bundle import Bundle
from edgeml.errors import DeviceError, EdgemlError
from edgeml.messages.measuring import Conditions, Figures, MeasureOrder
from edgeml_agent import child, durable

logger = logging.getLogger(__name__)

_POLL = 0.05
#: A child may take this share of the memory that is free when it starts.
_MEMORY_SHARE = 0.5
#: Loading and checking one candidate takes at most so many seconds.
_CHECK_SECONDS = 120.0
Stopped = Callable[[], bool]
Tell = Callable[[str], None]


class Task(msgspec.Struct, frozen=True):
    """What to do.

    Attributes:
        kind: ``check`` (one variant: does it run, and right?) or ``measure``.
        bundle: Path of the bundle.
        files: Folder for unpacked files.
        variants: Ids.
        baseline: Id of the one that the others are compared with.
        rounds: Of the interleaved measurement.
        budget_s: Seconds after which no new round starts.
    """

    kind: str
    bundle: str
    files: str
    variants: tuple[str, ...]
    baseline: str = ""
    rounds: int = 0
    budget_s: float = 0.0


class Outcome(msgspec.Struct, frozen=True):
    """What came of it: figures by variant, or why there are none."""

    figures: dict[str, Figures] = {}
    error: str = ""


class MeasurementStopped(EdgemlError):
    """It was asked to stop."""


class _LostError(EdgemlError):
    """A child ended without an outcome."""


def run(
    order: MeasureOrder, bundle: Path, work: Path, stopped: Stopped, tell: Tell
) -> dict[str, Figures]:
    """Measure the variants of a bundle.

    Args:
        order: What was asked for.
        bundle: The bundle.
        work: A folder for unpacked files and tasks; emptied first.
        stopped: Asked all the time; True ends the measurement.
        tell: Takes what it is at.

    Returns:
        Variant id -> figures, or why there are none.

    Raises:
        MeasurementStopped: ``stopped`` said so.
        DeviceError: The baseline does not run here, or nothing can be written.
        EdgemlError: The bundle is broken.
    """
    try:
        shutil.rmtree(work, ignore_errors=True)
        durable.private_folder(work / "files")
        names = [variant.id for variant in Bundle.open(bundle).manifest.variants]
        return _Run(order, bundle, work, stopped, tell).all(names)
    except OSError as error:
        raise DeviceError(f"cannot write in {work}: {error.strerror}") from error


class _Run:
    """One measurement, while it runs."""

    def __init__(
        self, order: MeasureOrder, bundle: Path, work: Path, stopped: Stopped, tell: Tell
    ) -> None:
        self._order, self._bundle, self._work = order, bundle, work
        self._stopped, self._tell = stopped, tell

    def all(self, names: list[str]) -> dict[str, Figures]:
        """Check each, then measure what runs."""
        found = {}
        for name in names:
            self._tell(f"checking {name}")
            found[name] = self._check(name)
        base = self._order.baseline
        if base not in found or found[base].error:
            why = found[base].error if base in found else "it is not in the bundle"
            raise DeviceError(f"the baseline {base} does not run here: {why}")
        alive = [name for name in names if not found[name].error]
        self._tell(f"measuring {len(alive)} side by side, {self._order.rounds} rounds")
        timings = self._measure(alive)
        for name in alive:
            timed = timings.get(name, Figures(error="could not be measured: nothing was said"))
            known = found[name]
            found[name] = msgspec.structs.replace(
                timed,
                load_ms=known.load_ms,
                memory_bytes=known.memory_bytes,
                placement=known.placement,
                version=known.version,
            )
        return found

    def _check(self, name: str) -> Figures:
        try:
            found = self._child("check", (name,), _CHECK_SECONDS)
            return found.get(name, Figures(error="does not run: the check said nothing"))
        except _LostError as error:
            return Figures(error=f"does not run: {error.message}")

    def _measure(self, names: list[str]) -> dict[str, Figures]:
        """Measure together; when that process is lost, each beside the baseline alone."""
        base, limit = self._order.baseline, self._order.limit_s
        try:
            return self._child("measure", tuple(names), limit)
        except _LostError as error:
            logger.warning("measuring together failed: %s", error)
        found: dict[str, Figures] = {}
        for name in names:
            self._tell(f"measuring {name} alone")
            try:
                found |= self._child("measure", tuple(dict.fromkeys((base, name))), limit)
            except _LostError as error:
                found[name] = Figures(error=f"could not be measured: {error.message}")
        return found

    def _child(self, kind: str, names: tuple[str, ...], seconds: float) -> dict[str, Figures]:
        """Run a task in a child.

        Raises:
            _LostError: It crashed, hung, went over a bound, or said that it cannot.
            MeasurementStopped: It was stopped.
        """
        folder = durable.private_folder(self._work / "task")
        (folder / "outcome").unlink(missing_ok=True)
        order = self._order
        task = Task(
            kind,
            str(self._bundle),
            str(self._work / "files"),
            names,
            order.baseline,
            order.rounds,
            order.budget_s,
        )
        (folder / "task").write_bytes(msgspec.json.encode(task))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                child.command("edgeml_agent.measure", str(folder)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(folder)},
                start_new_session=True,
            )
            try:
                self._watch(process, seconds)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
        return _outcome(folder, process.returncode)

    def _watch(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        bound = max(int(available_memory() * _MEMORY_SHARE), 64 << 20)
        end = time.monotonic() + seconds
        while True:
            try:
                process.wait(_POLL)
                return
            except subprocess.TimeoutExpired:
                used = resident_bytes(process.pid)
            if self._stopped():
                raise MeasurementStopped("the measurement was stopped")
            if used > bound:
                raise _LostError(
                    f"took {used >> 20} MiB of memory, more than the bound of {bound >> 20} MiB"
                )
            if time.monotonic() > end:
                raise _LostError(f"took longer than the bound of {seconds:.0f} s")


def _outcome(folder: Path, code: int) -> dict[str, Figures]:
    path = folder / "outcome"
    if code == 0 and path.exists():
        try:
            outcome = msgspec.json.decode(path.read_bytes(), type=Outcome)
        except msgspec.DecodeError as error:
            raise _LostError(f"what it found cannot be read: {error}") from error
        if outcome.error:
            raise _LostError(outcome.error)
        return outcome.figures
    text = (folder / "log").read_bytes()[-4000:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    how = f"exit {code}" if code >= 0 else f"killed by {_signal_name(-code)}"
    raise _LostError(f"the process crashed ({how}): {lines[-1][:300] if lines else 'silently'}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def available_memory() -> int:
    """Return the bytes that a process may take now; 4 GiB where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return 4 << 30


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 when it has just ended, or nobody tells."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def throttled(root: Path = Path("/sys")) -> int:
    """Return how often the processors slowed down for their temperature, since the boot."""
    counts = root.glob("devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
    return sum(_number(path) for path in counts)


def temperature(root: Path = Path("/sys")) -> float:
    """Return the hottest sensor in degrees Celsius; 0 when there is none."""
    found = [_number(path) for path in root.glob("class/thermal/thermal_zone*/temp")]
    return max(found, default=0) / 1000.0


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


class Watch:
    """What else the device does while it measures.

    Args:
        requests: Returns the requests answered so far.
    """

    def __init__(self, requests: Callable[[], int]) -> None:
        """Begin to watch."""
        self._requests = requests
        self._before = (os.getloadavg()[0], requests(), throttled())

    def conditions(self, cut_off: int) -> Conditions:
        """Return what happened since the beginning."""
        load, requests, slowed = self._before
        return Conditions(
            load=(round(load, 2), round(os.getloadavg()[0], 2)),
            # A data plane that was started again counts from 0.
            requests=max(self._requests() - requests, 0),
            throttled=throttled() - slowed,
            temperature_c=temperature(),
            cut_off=cut_off,
        )
