"""QuantizeMixed: static 8 bits, but for layers that are slower or too inexact in them.

Everything is quantised once; then two things are measured, never guessed. On the runtime itself:
the time of each operator in float and in 8 bits, conversions around it included; groups of
operators that lose go back to float when the whole model really gets faster by it. On calibration
data: the noise that each operator adds by itself; while the outputs are less exact than asked for,
the operators that add most noise per microsecond of gain go back to float.

What was decided is in ``options`` after a run, as ``keep``. With ``keep`` nothing is measured: so
the lineage of a model tells how to make the same bytes again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import onnx

from edgeml.errors import ModelError, UsageError, nearest
from edgeml.runtime import get_runtime
from edgeml.runtime.base import ProgramOptions
from edgeml.runtime.measure import COPIES, interleave, speedup
from edgeml.tensors import Array
from edgeml_converters.layers.latency import node_micros
from edgeml_converters.layers.sensitivity import local_noise
from edgeml_converters.layers.sqnr import whole_model
from edgeml_converters.layers.taps import feeds
from edgeml_converters.passes.base import (
    CALIBRATION,
    FLOAT,
    INT8,
    OPSET13,
    SIGNATURE,
    STANDARD,
    PassContext,
    PassResult,
)
from edgeml_converters.passes.correct_bias import bias_shifts, corrected
from edgeml_converters.passes.quantize_static import QuantizeStatic
from edgeml_converters.quantizer.prepare import prepared
from edgeml_converters.source.files import save_model

_RUNTIMES = frozenset({"onnxruntime", "openvino"})
#: An operator counts as slower in 8 bits when it takes this much longer, in both measures.
_SLOWER, _SLOWER_US = 1.05, 1.0
#: What goes back to float must make the whole model faster by this factor, and beyond the noise.
_FASTER = 1.02
_ROUNDS, _BUDGET_S = 15, 6.0
#: Calibration samples that are looked at for noise, and the most tries to reach the exactness.
_SAMPLES, _TRIES = 16, 6


class QuantizeMixed:
    """Static 8 bits with layers left float by measurement; see the module."""

    name = "quantize_mixed"
    needs = frozenset({CALIBRATION, FLOAT, OPSET13})
    promises = frozenset({SIGNATURE, STANDARD, INT8})

    def __init__(
        self,
        runtime: str = "onnxruntime",
        runtime_options: Mapping[str, str] | None = None,
        static: Mapping[str, Any] | None = None,
        least_db: float = 0.0,
        latency: bool = True,
        correct: bool = False,
        budget_s: float = 60.0,
        keep: Iterable[str] | None = None,
    ) -> None:
        """Choose what is measured.

        Args:
            runtime: Where time is measured: ``onnxruntime`` or ``openvino``.
            runtime_options: Its options (``Recipe.options``).
            static: Options of ``quantize_static``; its ``exclude`` stays float in any case.
            least_db: SQNR that the worst output must reach on calibration data; 0 for any.
            latency: Whether to look for layers that are slower in 8 bits.
            correct: Whether biases are corrected too (``correct_bias``).
            budget_s: After this long no further number of layers is tried.
            keep: Names of nodes that stay float; with it nothing is measured.

        Raises:
            UsageError: An option has a value that it cannot have.
        """
        if runtime not in _RUNTIMES:
            raise UsageError(f"unknown runtime '{runtime}'", nearest(runtime, _RUNTIMES))
        if not 0 <= least_db <= 100:
            raise UsageError(f"least_db is {least_db:g}, expected 0 to 100")
        self._runtime, self._settings = runtime, dict(runtime_options or {})
        self._static = dict(static or {})
        self._least_db, self._latency = float(least_db), latency
        self._correct, self._budget_s = correct, float(budget_s)
        self._keep = None if keep is None else tuple(keep)
        QuantizeStatic(**self._static)  # its options are checked before any work

    @property
    def options(self) -> dict[str, Any]:
        """All that was chosen; after a run also what it decided to keep float."""
        return {
            "runtime": self._runtime,
            "runtime_options": self._settings,
            "static": self._static,
            "least_db": self._least_db,
            "latency": self._latency,
            "correct": self._correct,
            "budget_s": self._budget_s,
            "keep": None if self._keep is None else list(self._keep),
        }

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: No calibration data, nothing to quantise, or the exactness that was asked
                for cannot be reached.
        """
        ready = prepared(model)
        work = _Work(ready, context, self._runtime, self._settings, self._static, self._correct)
        if self._keep is not None:
            product = work.quantise(self._keep)
            return PassResult(product, True, (f"{len(self._keep)} operators stay float",))
        end = time.monotonic() + self._budget_s
        keep: tuple[str, ...] = ()
        notes: list[str] = []
        if self._latency:
            keep, note = work.faster()
            notes.append(note)
        if self._least_db:
            keep, note = work.exacter(keep, self._least_db, end)
            notes.append(note)
        self._keep = keep
        return PassResult(work.quantise(keep), True, tuple(notes))


class _Work:
    """One run over one model; quantised forms and times are kept."""

    def __init__(
        self,
        model: onnx.ModelProto,
        context: PassContext,
        runtime: str,
        settings: dict[str, str],
        static: dict[str, Any],
        correct: bool,
    ) -> None:
        self.model, self.context, self.correct = model, context, correct
        self.runtime, self.settings, self.static = runtime, settings, static
        self.order = [node.name for node in model.graph.node]
        self._made: tuple[tuple[str, ...], onnx.ModelProto] | None = None
        self._gain: dict[str, float] | None = None
        self._slow: set[str] = set()
        self._shifts: dict[str, Array] | None = None

    def quantise(self, keep: Iterable[str]) -> onnx.ModelProto:
        """Return the quantised model with these nodes left float."""
        key = tuple(keep)
        if self._made is None or self._made[0] != key:
            always = [str(name) for name in self.static.get("exclude", ())]
            exclude = [*always, *(name for name in key if name not in always)]
            options = {**self.static, "exclude": exclude}
            model = self.model
            if self.correct:
                model, _ = corrected(model, self._bias_shifts(), key)
            self._made = key, QuantizeStatic(**options).run(model, self.context).model
        return self._made[1]

    def _bias_shifts(self) -> dict[str, Array]:
        """Return the shifts of all products; they are the same whatever else stays float."""
        if self._shifts is None:
            whole = QuantizeStatic(**self.static).run(self.model, self.context).model
            self._shifts = bias_shifts(self.model, whole, self.context)
        return self._shifts

    def gains(self) -> dict[str, float]:
        """Return node -> microseconds that 8 bits save there; below 0 where they cost."""
        if self._gain is None:
            integer = self._times(self.quantise(()))
            plain = self._times(self.model)
            names = set(plain) | set(integer)
            self._gain = {n: plain.get(n, 0.0) - integer.get(n, 0.0) for n in names}
            self._slow = {n for n in names if _slower(integer.get(n, 0.0), plain.get(n, 0.0))}
        return self._gain

    def _times(self, model: onnx.ModelProto) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="edgeml-") as folder:
            file = Path(folder) / "model.onnx"
            save_model(model, file)
            feed = self._feed()
            threads = self.context.threads
            return node_micros(file, self.model, self.runtime, feed, threads, self.settings)

    def _feed(self) -> dict[str, Array]:
        return next(feeds(self.model, self.context.calibration, 1))

    def faster(self) -> tuple[tuple[str, ...], str]:
        """Return which nodes to leave float for speed, and what to say of it."""
        groups = self._slow_groups()
        if not groups:
            return (), "no operator is slower in 8 bits"
        sizes = sorted({1, -(-len(groups) // 2), len(groups)})
        choices = [self._ordered(n for group in groups[:size] for n in group) for size in sizes]
        models: dict[tuple[str, ...], onnx.ModelProto] = {(): self.quantise(())}
        for choice in choices:
            try:
                models[choice] = self.quantise(choice)
            except ModelError:
                continue  # nothing would be left in 8 bits
        best, gain = self._fastest(models)
        if not best:
            return (), "operators that are slower in 8 bits make nothing faster in float"
        return best, f"{len(best)} operators stay float, {gain:.3g} times as fast by that"

    def _slow_groups(self) -> list[list[str]]:
        """Return operators that are slower in 8 bits, neighbours together, the worst first."""
        gains = self.gains()
        slow = self._slow & _rounded(self.quantise(()))
        makers = {name: n.name for n in self.model.graph.node for name in n.output}
        group: dict[str, list[str]] = {}
        for node in self.model.graph.node:
            if node.name not in slow:
                continue
            mine = group.setdefault(node.name, [node.name])
            for name in node.input:
                other = group.get(makers.get(name, ""))
                if other is not None and other is not mine:
                    other += mine
                    for member in mine:
                        group[member] = other
                    mine = other
        unique = {id(members): members for members in group.values()}
        return sorted(unique.values(), key=lambda g: (sum(gains[n] for n in g), g))

    def _ordered(self, names: Iterable[str]) -> tuple[str, ...]:
        chosen = set(names)
        return tuple(name for name in self.order if name in chosen)

    def _fastest(
        self, models: Mapping[tuple[str, ...], onnx.ModelProto]
    ) -> tuple[tuple[str, ...], float]:
        """Measure quantised models side by side; return which is fastest, and by how much."""
        runtime = get_runtime(self.runtime)
        options = ProgramOptions(self.context.threads, extra=self.settings)
        feed = self._feed()
        with tempfile.TemporaryDirectory(prefix="edgeml-") as folder, ExitStack() as stack:
            runs = {}
            for index, model in enumerate(models.values()):
                file = Path(folder) / f"{index}.onnx"
                save_model(model, file)
                program = stack.enter_context(closing(runtime.prepare(file, options)))
                session = stack.enter_context(closing(program.session()))
                runs[str(index)] = lambda session=session: session.run(feed)
            timings = interleave(runs, rounds=_ROUNDS, budget_s=_BUDGET_S, seed=self.context.seed)
        ratios = [speedup(timings["0"], timing) for timing in timings.values()]
        best = max(range(len(ratios)), key=lambda i: ratios[i].value)
        ratio = ratios[best]
        if ratio.value < _FASTER or ratio.low * (1 + COPIES) <= 1.0:
            return (), 1.0
        return list(models)[best], ratio.value

    def exacter(
        self, keep: tuple[str, ...], least_db: float, end: float
    ) -> tuple[tuple[str, ...], str]:
        """Leave more nodes float until the outputs are exact enough.

        Raises:
            ModelError: They never are, or not in this time.
        """
        reached = self._db(keep) or 0.0
        if reached >= least_db:
            return keep, f"{reached:.1f} dB, asked for {least_db:.1f}"
        ranked = self._ranked(keep)
        low, high = 0, len(ranked)
        found: tuple[str, ...] | None = None
        size = max(1, len(ranked) // 8)
        for _ in range(_TRIES):
            choice = self._ordered((*keep, *ranked[:size]))
            value = self._db(choice)
            if value is not None and value < least_db:
                low = size
            else:
                high = size
                if value is not None:
                    found, reached = choice, value
            # Twice as many while none was enough, then the middle of what is left.
            size = min(2 * low, high - 1) if found is None and high == len(ranked) else 0
            size = max(size, (low + high) // 2)
            late = time.monotonic() > end
            if high - low <= max(1, high // 8) or late:
                break
        if found is None:
            raise ModelError(
                f"{least_db:.1f} dB are not reached with {low} of {len(ranked)} operators float",
                "keep the model in float, or allow more noise",
            )
        more = len(found) - len(keep)
        return found, f"{more} more operators stay float: {reached:.1f} dB"

    def _ranked(self, keep: tuple[str, ...]) -> list[str]:
        """Return the rounded operators, most noise per microsecond of gain first."""
        context = self.context
        noise = local_noise(
            self.model, self.quantise(keep), context.calibration, _SAMPLES, context.threads
        )
        gains = self._gain or {}
        left = [name for name in noise if name not in keep and noise[name] > 0]
        return sorted(left, key=lambda n: (-noise[n] / max(gains.get(n, 1.0), 0.1), n))

    def _db(self, keep: tuple[str, ...]) -> float | None:
        """Return the SQNR of the worst output; None when nothing is left in 8 bits."""
        try:
            product = self.quantise(keep)
        except ModelError:
            return None
        context = self.context
        return whole_model(self.model, product, context.calibration, _SAMPLES, context.threads)


def _slower(integer: float, plain: float) -> bool:
    """Tell whether an operator is slower in 8 bits than in float, beyond what timing can err."""
    return integer > max(plain * _SLOWER, plain + _SLOWER_US)


def _rounded(model: onnx.ModelProto) -> set[str]:
    """Return the nodes of a quantised model that read rounded tensors."""
    made = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return {n.name for n in model.graph.node if made & set(n.input)}
