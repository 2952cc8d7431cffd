"""Refit: layers are fitted anew to what they gave before, on what they read now.

Channel by channel of depth, a layer's new input ``x'`` (of the pruned model) is set against its
old output ``y`` (of the original): ``min E|y - W' x' - b'|^2 + r |W' - W|^2``, whose answer is
``W' = W + C_ex (C_xx + r I)^-1`` with the covariances of the input and of the error
``e = y - W x'`` (channel pruning by reconstruction: He, Zhang and Sun 2017, equation 4, there
without the pull towards ``W``; ThiNet: Luo, Wu and Lin 2017). The pull ``r`` is chosen by
two-fold validation, and a layer that gains nothing on the other fold stays. The sums are taken in
a stream, a *wave* of layers per pass over the data, from the input to the output, so that each
makes up for what the ones before it could not. Memory is bounded by the sums of one wave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edgeml.tensors import Array
from edgeml_converters.pruning.matrices import dense
from edgeml_converters.pruning.patches import Window, window_of
from edgeml_converters.pruning.remove import Fate
from edgeml_converters.pruning.tap import lockstep
from edgeml_converters.pruning.trace import Layer, Trace

Matrix = npt.NDArray[np.float64]

#: Pulls towards the old weights, as a share of the mean variance of an input.
_PULLS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: Bytes of the sums of one wave.
_WAVE_BYTES = 256 << 20
#: At most this many waves, unless their sums are too large.
_MOST_WAVES = 12
#: Rows per input of a layer, and at least.
_ROWS_PER_INPUT, _LEAST_ROWS = 6, 4096
#: A layer with more inputs than this keeps its folded weights: its sums would be too large.
_MOST_INPUTS = 4608
#: At least this share of the error on the other fold has to go.
_LEAST_GAIN = 0.005


@dataclass(frozen=True, eq=False)
class Task:
    """One layer to fit.

    Attributes:
        layer: As it was.
        window: How a convolution reads its input.
        inputs: Numbers that one output reads now.
        kept: The places of the outputs that are left among those that were.
    """

    layer: Layer
    window: Window | None
    inputs: int
    kept: npt.NDArray[np.intp]

    @property
    def outputs(self) -> int:
        """How many outputs are left."""
        return len(self.kept)

    @property
    def size(self) -> int:
        """Bytes of its sums."""
        return 2 * 8 * (self.inputs + 1) * (self.inputs + 1 + self.outputs)


@dataclass(eq=False)
class _Fold:
    """Sums over one half of the samples; the last input is a constant 1."""

    xx: Matrix
    xe: Matrix
    ee: float = 0.0

    def add(self, other: _Fold) -> _Fold:
        """Return the sums over both."""
        return _Fold(self.xx + other.xx, self.xe + other.xe, self.ee + other.ee)


def refit(
    trace: Trace, pruned: onnx.ModelProto, gone: frozenset[int], data: Mapping[str, Array],
    samples: int, work: float, seed: int, threads: int,
) -> tuple[onnx.ModelProto, int]:  # fmt: skip
    """Fit the layers of a pruned model to those of the original.

    Args:
        trace: Of the original.
        pruned: What is left of it; not changed.
        gone: The classes that were removed.
        data: Calibration data.
        samples: At most this many are used.
        work: At most about this many multiplications are spent on runs of the models.
        seed: Of the rows that are taken.
        threads: Threads of the runs.

    Returns:
        The fitted model, and how many layers changed.

    Raises:
        ModelError: A model does not run.
        DataError: There is not one whole batch.
    """
    model = onnx.ModelProto()
    model.CopyFrom(pruned)
    tasks = _tasks(trace, model, Fate(trace, gone))
    macs = sum(layer.macs for layer in trace.layers)
    rows = min([samples, *(len(a) for a in data.values())])
    passes = int(np.clip(work / (2.0 * macs * rows + 1.0), 1, _MOST_WAVES))
    changed = 0
    for number, wave in enumerate(_waves(tasks, passes)):
        dice = np.random.default_rng((seed, number))
        folds = _sums(trace, model, wave, data, rows, dice, threads)
        for task, (first, second) in zip(wave, folds, strict=True):
            changed += _apply(trace, model, task, first, second)
    return model, changed


def _tasks(trace: Trace, model: onnx.ModelProto, fate: Fate) -> list[Task]:
    """Return the layers that can be fitted, from the input to the output."""
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    tasks: list[Task] = []
    for layer in trace.layers:
        if layer.op not in ("Conv", "Gemm", "MatMul") or layer.group != 1:
            continue
        if layer.x in {i.name for i in model.graph.input}:
            continue  # its input is what it was
        node = trace.view.model.graph.node[layer.node]
        shape = shapes[layer.weight]
        window = window_of(node, shape) if layer.op == "Conv" else None
        if layer.op == "Conv":
            inputs = int(np.prod(shape[1:]))
        else:
            inputs = dense(layer, node, np.broadcast_to(np.float32(0), shape)).shape[1]
        if inputs <= _MOST_INPUTS:
            kept = np.flatnonzero(fate.kept(layer.ids_out))
            tasks.append(Task(layer, window, inputs, kept))
    return tasks


def _waves(tasks: Sequence[Task], passes: int) -> list[list[Task]]:
    """Cut the tasks into waves: about as many as asked for, none with too large sums."""
    waves: list[list[Task]] = []
    length = -(-len(tasks) // max(passes, 1))
    for task in tasks:
        last = waves[-1] if waves else []
        if not last or len(last) == length or sum(t.size for t in last) + task.size > _WAVE_BYTES:
            waves.append([task])
        else:
            last.append(task)
    return waves


def _sums(
    trace: Trace, model: onnx.ModelProto, wave: Sequence[Task], data: Mapping[str, Array],
    samples: int, dice: np.random.Generator, threads: int,
) -> list[tuple[_Fold, _Fold]]:  # fmt: skip
    """Run both models and sum up what the fits of one wave need."""
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    old = [_matrix(trace, task, weights) for task in wave]
    folds = [
        [_Fold(np.zeros((t.inputs + 1,) * 2), np.zeros((t.inputs + 1, t.outputs))) for _ in "ab"]
        for t in wave
    ]
    pair = [
        (trace.view.model, sorted({t.layer.y for t in wave})),
        (model, sorted({t.layer.x for t in wave})),
    ]
    for turn, (want, got) in enumerate(lockstep(pair, data, samples, threads)):
        for number, task in enumerate(wave):
            x, y = _rows(task, got[task.layer.x], want[task.layer.y], samples, dice)
            y = y[:, task.kept]
            ones = np.ones((len(x), 1), np.float32)
            x = np.concatenate([x, ones], axis=1)
            error = y - x @ old[number].T.astype(np.float32)
            # Samples take turns, so that both folds see all of the data; a chunk of many is cut.
            middle = len(x) // 2 if len(got[task.layer.x]) > 1 else len(x) * (turn % 2)
            for fold, part in zip(
                folds[number], (slice(0, middle), slice(middle, None)), strict=True
            ):
                fold.xx += x[part].T @ x[part]
                fold.xe += x[part].T @ error[part]
                fold.ee += float((error[part] ** 2).sum())
    return [(first, second) for first, second in folds]


def _matrix(trace: Trace, task: Task, weights: Mapping[str, Array]) -> Matrix:
    """Return a layer's weights and bias as [outputs, inputs + 1]."""
    layer = task.layer
    weight = weights[layer.weight].astype(np.float64)
    if layer.op == "Conv":
        flat = weight.reshape(len(weight), -1)
    else:
        flat = dense(layer, trace.view.model.graph.node[layer.node], weight)
    bias = weights[layer.bias].reshape(-1, 1) if layer.bias else np.zeros((len(flat), 1))
    return np.concatenate([flat, bias], axis=1)


def _rows(
    task: Task, x: Array, y: Array, samples: int, dice: np.random.Generator
) -> tuple[Array, Array]:
    """Return inputs [rows, inputs] and outputs [rows, outputs] of a layer at some places."""
    most = max(_LEAST_ROWS, _ROWS_PER_INPUT * task.inputs) / max(samples, 1)
    if task.window is not None:
        places = int(np.prod(y.shape[2:]))
        count = min(places, max(1, round(most)))
        chosen = np.sort(dice.choice(places, count, replace=False))
        return task.window.rows(x, y, chosen)
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    count = min(len(x), max(1, round(most * max(1, len(x) // samples))))
    if count < len(x):
        chosen = np.sort(dice.choice(len(x), count, replace=False))
        x, y = x[chosen], y[chosen]
    return x, y


def _apply(
    trace: Trace, model: onnx.ModelProto, task: Task, first: _Fold, second: _Fold
) -> bool:  # fmt: skip
    """Fit one layer and write it into the model; tell whether it changed."""
    biased = bool(task.layer.bias)
    best, gain = 0.0, _LEAST_GAIN
    whole = first.add(second)
    if whole.ee <= 1e-12 * max(float(np.trace(whole.xx)), 1.0):
        return False
    for pull in _PULLS:
        left = sum(_left(_solve(a, pull, biased), b) for a, b in ((first, second), (second, first)))
        share = 1.0 - left / whole.ee
        if share > gain:
            best, gain = pull, share
    if not best:
        return False
    change = _solve(whole, best, biased)
    layer, node = task.layer, trace.view.model.graph.node[task.layer.node]
    tensors = {i.name: i for i in model.graph.initializer}
    weight = numpy_helper.to_array(tensors[layer.weight])
    if layer.op == "Conv":
        fresh = weight + change[:, :-1].reshape(weight.shape)
    else:
        fresh = weight + dense(layer, node, change[:, :-1])
    _write(tensors[layer.weight], fresh)
    if biased:
        bias = numpy_helper.to_array(tensors[layer.bias])
        _write(tensors[layer.bias], bias + change[:, -1].reshape(bias.shape))
    return True


def _write(tensor: onnx.TensorProto, values: Array) -> None:
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))


def _solve(fold: _Fold, pull: float, biased: bool) -> Matrix:
    """Return the change of weights and bias, [outputs, inputs + 1]."""
    size = len(fold.xx) - 1
    change = np.zeros((fold.xe.shape[1], size + 1))
    count = max(fold.xx[-1, -1], 1.0)
    mean = fold.xx[:-1, -1] / count * (1.0 if biased else 0.0)
    shift = fold.xe[-1] / count * (1.0 if biased else 0.0)
    xx = fold.xx[:-1, :-1] - count * np.outer(mean, mean)
    xe = fold.xe[:-1] - count * np.outer(mean, shift)
    variance = max(float(np.trace(xx)) / size, 1e-12)
    xx[np.diag_indices(size)] += pull * variance
    change[:, :-1] = np.linalg.solve(xx, xe).T
    if biased:
        change[:, -1] = shift - change[:, :-1] @ mean
    return change


def _left(change: Matrix, fold: _Fold) -> float:
    """Return the squared error that a change leaves on a fold."""
    return fold.ee - 2.0 * float((change * fold.xe.T).sum()) + float(
        ((change @ fold.xx) * change).sum()
    )  # fmt: skip
