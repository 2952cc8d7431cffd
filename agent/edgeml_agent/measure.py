"""The child of a measurement: ``python -m edgeml_agent.measure FOLDER``.

It reads a ``Task`` from FOLDER/task, does it with the very code that the converter measures with
(``edgeml.runtime.measure``), and leaves its figures in FOLDER/outcome. It is the one that may
crash, hang or eat memory: it gives way to what serves (nice), is the first that the kernel ends
when memory is short, and stays on processors of its own where the device has some to spare.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec

from edgeml.bundle import Bundle
from edgeml.errors import EdgemlError
from edgeml.manifest import Variant
from edgeml.messages.measuring import Figures
from edgeml.runtime import get_runtime
from edgeml.runtime.base import Session
from edgeml.runtime.bind import open_variant
from edgeml.runtime.golden import golden_check, load_arrays
from edgeml.runtime.measure import interleave, speedup
from edgeml.runtime.memory import peak_resident
from edgeml.tensors import Array, TensorSpec
from edgeml_agent.measurement import Outcome, Task

_NICE = 10


def check(task: Task) -> dict[str, Figures]:
    """Run one variant on the golden samples.

    Raises:
        EdgemlError: It does not run here.
    """
    bundle = Bundle.open(Path(task.bundle))
    variant = bundle.manifest.variant(task.variants[0])
    folder = _unpacked(bundle, variant, Path(task.files))
    inputs, outputs = bundle.manifest.inputs, bundle.manifest.outputs
    golden, recorded = bundle.manifest.golden, variant.golden
    version = get_runtime(variant.runtime).check().version  # loads the library too
    base, opened = peak_resident(), time.perf_counter()
    with closing(open_variant(folder, variant, inputs, outputs)) as program, closing(
        program.session()
    ) as session:  # fmt: skip
        feed = load_arrays(bundle.read(golden)) if golden else {}
        session.run(one_run(feed, inputs))
        load_ms = 1e3 * (time.perf_counter() - opened)
        error = ""
        if recorded is not None:
            found = golden_check(
                session, feed, load_arrays(bundle.read(recorded)), variant.tolerance
            )
            error = "" if found.ok else f"gives other values here: {found.reason}"
        memory, placement = peak_resident() - base, program.placement
    return {
        variant.id: Figures(
            load_ms=round(load_ms, 3),
            memory_bytes=memory,
            placement=placement,
            version=version,
            error=error,
        )
    }


def measure(task: Task) -> dict[str, Figures]:
    """Measure variants side by side, one sample in a run.

    Raises:
        EdgemlError: One does not run here.
    """
    bundle = Bundle.open(Path(task.bundle))
    inputs, outputs = bundle.manifest.inputs, bundle.manifest.outputs
    golden = bundle.manifest.golden
    feed = one_run(load_arrays(bundle.read(golden)) if golden else {}, inputs)
    with ExitStack() as stack:
        runs: dict[str, Callable[[], object]] = {}
        for name in task.variants:
            variant = bundle.manifest.variant(name)
            folder = _unpacked(bundle, variant, Path(task.files))
            program = stack.enter_context(closing(open_variant(folder, variant, inputs, outputs)))
            runs[name] = _run(stack.enter_context(closing(program.session())), feed)
        timings = interleave(runs, rounds=task.rounds, budget_s=task.budget_s)
    found: dict[str, Figures] = {}
    for name, timing in timings.items():
        ratio = speedup(timings[task.baseline], timing)
        found[name] = Figures(
            rounds_ms=tuple(round(float(s) * 1e3, 6) for s in timing.wall),
            p50=timing.p50 * 1e3,
            p95=timing.p95 * 1e3,
            p99=timing.p99 * 1e3,
            speedup=(ratio.value, ratio.low, ratio.high),
            clock=ratio.clock,
        )
    return found


def _run(session: Session, feed: Mapping[str, Array]) -> Callable[[], object]:
    return lambda: session.run(feed)


def one_run(feed: Mapping[str, Array], inputs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Return the feed of one run from golden samples: one row, or the batch that is fixed."""
    whole = not all(spec.batched for spec in inputs)
    if not feed or whole:
        return dict(feed) or {spec.name: spec.zeros() for spec in inputs}
    return {s.name: feed[s.name][: s.shape[0] if s.shape[0] > 0 else 1] for s in inputs}


def _unpacked(bundle: Bundle, variant: Variant, files: Path) -> Path:
    folder = files / variant.id
    return folder if folder.exists() else bundle.unpack(folder, variant.id)


def give_way(threads: int) -> None:
    """Let what serves go first; see the module. What the system does not allow is left out."""
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        if threads < len(cores):
            os.sched_setaffinity(0, cores[-threads:])


def do(task: Task) -> Outcome:
    """Do a task; what goes wrong is an outcome too."""
    try:
        return Outcome(check(task) if task.kind == "check" else measure(task))
    except EdgemlError as error:
        return Outcome(error=error.message)
    except OSError as error:
        return Outcome(error=f"cannot write: {error.strerror}")


def main() -> int:
    """Do the task in the folder that the command line names; return the exit code."""
    folder = Path(sys.argv[1])
    task = msgspec.json.decode((folder / "task").read_bytes(), type=Task)
    manifest = Bundle.open(Path(task.bundle)).manifest
    give_way(max(manifest.variant(name).threads for name in task.variants))
    outcome = do(task)
    (folder / "outcome").write_bytes(msgspec.json.encode(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main())
