"""How much goes where: the least error per multiplication saved.

The error curve of a cluster is about the layers that read it. How much such an error matters at
the model's outputs is measured: each cluster is pruned alone by about a quarter, and the error at
the outputs is set against the one at the layers (``sensitivities``). Time saved is reckoned in
multiplications, channels rounded up to the multiple that the processor computes in: going from 20
to 17 saves nothing where 16 are computed at once, so it is not done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from edgeml.tensors import Array
from edgeml_converters.pruning.importance import Curve, Moments, folded
from edgeml_converters.pruning.remove import Fate, removed
from edgeml_converters.pruning.tap import lockstep
from edgeml_converters.pruning.trace import Ids, Layer, Trace

#: A depthwise convolution is bound by memory: one of its multiplications takes this many times
#: as long.
_DEPTHWISE = 4.0
#: The share of a cluster that is pruned to see how much its errors matter.
_PROBE = 0.25
#: At most this many multiplications are spent on that.
_PROBE_MACS = 4e10
#: Models of at most this many bytes in all are run side by side for it.
_PROBE_BYTES = 64 << 20


class Cost:
    """What a run of the model costs, in multiplications, as channels go."""

    def __init__(self, trace: Trace, multiple: int) -> None:
        """Take the graph and the multiple that channels are rounded up to."""
        self._multiple = multiple
        self._layers = [
            (_weight(layer), _roots(trace, layer.ids_in), _roots(trace, layer.ids_out))
            for layer in trace.layers
        ]

    def of(self, alive: Array) -> float:
        """Return the cost.

        Args:
            alive: For every atom, whether its set stays (by root).
        """
        return sum(
            weight * self._share(alive[inputs]) * self._share(alive[outputs])
            for weight, inputs, outputs in self._layers
        )

    def touched(self, classes: Sequence[int]) -> Cost:
        """Return the cost of only those layers that some classes are a part of."""
        part = Cost.__new__(Cost)
        part._multiple = self._multiple
        part._layers = [
            row for row in self._layers
            if np.isin(row[1], classes).any() or np.isin(row[2], classes).any()
        ]  # fmt: skip
        return part

    def _share(self, stays: Array) -> float:
        if len(stays) < 2:
            return 1.0
        step = self._multiple
        return -(-int(stays.sum()) // step) / -(-len(stays) // step)


def _weight(layer: Layer) -> float:
    return layer.macs * (_DEPTHWISE if layer.op == "Depthwise" else 1.0)


def _roots(trace: Trace, ids: Ids | None) -> Ids:
    return np.zeros(1, np.int64) if ids is None else trace.atoms.roots(ids)


def choose(
    trace: Trace, curves: Sequence[Curve], weights: Sequence[float], amount: float, multiple: int
) -> tuple[frozenset[int], float]:
    """Choose what goes until a share of all multiplications is saved.

    Args:
        trace: The graph.
        curves: One per cluster.
        weights: How much an error of each cluster matters.
        amount: The share to save.
        multiple: Channels are computed in multiples of this.

    Returns:
        The roots of the classes that go, and the share that this saves.
    """
    cost = Cost(trace, multiple)
    size = 1 + max((c for curve in curves for c in curve.cluster.classes), default=0)
    size = max(size, 1 + max((int(layer.ids_out.max()) for layer in trace.layers), default=0))
    alive = np.ones(size, bool)
    total = cost.of(alive)
    parts = [cost.touched(curve.cluster.classes) for curve in curves]
    at = [0] * len(curves)
    rates: dict[int, tuple[float, int]] = {}
    while cost.of(alive) > (1.0 - amount) * total:
        for number, curve in enumerate(curves):
            if number not in rates:
                rates[number] = _best(curve, weights[number], at[number], parts[number], alive)
        number = min(rates, key=lambda n: (rates[n][0], n), default=-1)
        if number < 0 or not np.isfinite(rates[number][0]):
            break
        until = rates[number][1]
        for step in curves[number].steps[at[number] : until]:
            alive[list(step)] = False
        at[number] = until
        near = {id(row[1]) for row in parts[number]._layers}
        rates = {
            n: rate for n, rate in rates.items()
            if n != number and not near & {id(row[1]) for row in parts[n]._layers}
        }  # fmt: skip
    gone = frozenset(c for n, curve in enumerate(curves) for s in curve.steps[: at[n]] for c in s)
    return gone, 1.0 - cost.of(alive) / total


def _best(curve: Curve, weight: float, at: int, part: Cost, alive: Array) -> tuple[float, int]:
    """Return the least error per multiplication saved by going on from a step, and until which."""
    before, errors = part.of(alive), curve.errors
    start = errors[at - 1] if at else 0.0
    trial = alive.copy()
    best = (float("inf"), at)
    for until in range(at, len(curve.steps)):
        trial[list(curve.steps[until])] = False
        saved = before - part.of(trial)
        if saved > 0:
            rate = weight * (errors[until] - start) / saved
            if rate < best[0]:
                best = (rate, until + 1)
    return best


def sensitivities(
    trace: Trace, curves: Sequence[Curve], moments: list[Moments], data: Mapping[str, Array],
    samples: int, threads: int,
) -> list[float]:  # fmt: skip
    """Measure how much an error of each cluster matters at the outputs.

    Returns:
        For each curve, the error at the outputs over the error at the layers that read the
        cluster, both relative; the number of samples follows from the size of the model.
    """
    macs = sum(layer.macs for layer in trace.layers)
    count = int(min(samples, 64, max(4.0, _PROBE_MACS / (max(len(curves), 1) * macs + 1.0))))
    names = scored_tensors(trace)
    if not names:
        return [1.0] * len(curves)
    weights = [1.0] * len(curves)
    size = sum(array.nbytes for array in trace.view.weights.values())
    together = int(np.clip(_PROBE_BYTES // max(size, 1), 1, 8))
    probes = [(n, *_probe(curve)) for n, curve in enumerate(curves)]
    probes = [probe for probe in probes if probe[2] >= 1e-9]
    for start in range(0, len(probes), together):
        group = probes[start : start + together]
        pruned = [removed(trace, folded(trace, moments, gone), gone) for _, gone, _ in group]
        errors = output_errors(trace, pruned, names, data, count, threads)
        for (number, _, local), error in zip(group, errors, strict=True):
            weights[number] = max(error, 1e-9) / local
    return weights


def _probe(curve: Curve) -> tuple[frozenset[int], float]:
    """Return what goes of a cluster to see how much it matters, and the error at its readers."""
    wanted = max(1, round(_PROBE * len(curve.cluster.classes)))
    gone: list[int] = []
    local = 0.0
    for step, error in zip(curve.steps, curve.errors, strict=True):
        gone.extend(step)
        local = error
        if len(gone) >= wanted:
            break
    return frozenset(gone), local


def output_errors(
    trace: Trace, pruned: Sequence[onnx.ModelProto], names: Sequence[str],
    data: Mapping[str, Array], samples: int, threads: int,
) -> list[float]:  # fmt: skip
    """Return the mean square error at the outputs, relative to their spread; the worst output.

    Args:
        trace: Of the original.
        pruned: Pruned models; one figure comes back for each.
        names: What to compare; all models have it.
        data: Calibration data.
        samples: How many are run.
        threads: Threads of the runs.
    """
    errors = np.zeros((len(pruned), len(names)))
    sums = np.zeros((3, len(names)))  # of values, of their squares, and how many
    models = [(trace.view.model, names), *((one, names) for one in pruned)]
    for want, *found in lockstep(models, data, samples, threads):
        for at, name in enumerate(names):
            a = want[name].astype(np.float64)
            sums[:, at] += a.sum(), (a * a).sum(), a.size
            for number, got in enumerate(found):
                errors[number, at] += float(((a - got[name]) ** 2).sum())
    spread = sums[1] - sums[0] ** 2 / np.maximum(sums[2], 1.0)
    relative = errors / np.maximum(spread, 1e-12)
    return [float(row.max(initial=0.0)) for row in relative]


def scored_tensors(trace: Trace) -> list[str]:
    """Return the float outputs, each Softmax or Sigmoid at the end left out: it hides errors."""
    found: list[str] = []
    for output in trace.view.model.graph.output:
        if output.type.tensor_type.elem_type != 1:
            continue
        name = output.name
        maker = trace.view.makers.get(name)
        if maker is not None:
            node = trace.view.model.graph.node[maker]
            if node.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
                name = node.input[0]
        if name in trace.view.makers:
            found.append(name)
    return sorted(set(found))


def kept_shares(trace: Trace, curves: Sequence[Curve], gone: frozenset[int]) -> list[str]:
    """Return a note per cluster that lost something: its name, and how much of it is left."""
    fate = Fate(trace, gone)
    notes: list[str] = []
    for curve in curves:
        classes = np.array(curve.cluster.classes, np.int64)
        left = int(fate.kept(classes).sum())
        if left < len(classes):
            notes.append(f"{curve.cluster.name}: {left} of {len(classes)} {curve.cluster.kind}")
    return notes
