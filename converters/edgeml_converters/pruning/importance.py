"""Which channels matter: the error of going without, after the rest has made up for it.

For a layer ``y = W x`` with second moments ``G = E[x x^T]`` of its inputs, going without the inputs
``S``, with the best change of the other weights, costs ``W_S (H_SS)^-1 W_S^T`` with ``H = G^-1``
(Hassibi and Stork 1993, Optimal Brain Surgeon; for blocks and layer by layer: Frantar and Alistarh
2022, Optimal Brain Compression). So a channel that others repeat costs nothing, however large its
weights are. The moments are those of the calibration data. For a convolution, and for a dense layer
after a Flatten, they are taken between channels at one position, and each kernel position counts
as a layer of its own: small enough for any model, and exact for kernels of size 1. A constant 1 is
an input too where the layer has a bias: what a channel holds on average goes there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeml.tensors import Array
from edgeml_converters.pruning.matrices import from_matrices, to_matrices
from edgeml_converters.pruning.remove import Cluster, Fate
from edgeml_converters.pruning.tap import lockstep
from edgeml_converters.pruning.trace import Ids, Layer, Trace

Matrix = npt.NDArray[np.float64]

#: Added to the moments' diagonal, as shares of it; which of them is found by validation.
_RIDGES = (1e-7, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: The share of the inputs that the validation leaves out.
_LEFT_OUT = 0.3
#: A layer with more inputs than this is left alone: its moments would be too large.
MOST_INPUTS = 4096
#: At most this many steps from a whole cluster to what has to stay of it.
_STEPS = 48
#: Least rows that moments are taken from, where the data hold as many.
_ROWS = 4096


@dataclass(eq=False)
class Moments:
    """Second moments of the inputs of one layer.

    Attributes:
        layer: The layer.
        weights: Its weights as matrices (``matrices.to_matrices``).
        sums: Per group, [inputs + 1, inputs + 1]: moments with a constant 1 as the last input.
        ridge: What is added to the diagonal, as a share of it.
    """

    layer: Layer
    weights: Matrix
    sums: list[Matrix]
    ridge: float = _RIDGES[0]

    @property
    def biased(self) -> bool:
        """Whether the constant may be used: the layer has a bias that can take it."""
        return bool(self.layer.bias)

    def ridged(self, group: int) -> Matrix:
        """Return the moments with their ridge; without the constant where it cannot be used."""
        return _ridged(self.sums[group], self.ridge, self.biased)

    def spread(self, group: int) -> Matrix:
        """Return the covariance of the inputs."""
        mean = self.sums[group][:-1, -1]
        return self.sums[group][:-1, :-1] - np.outer(mean, mean)


def _ridged(sums: Matrix, ridge: float, biased: bool) -> Matrix:
    size = len(sums) - (0 if biased else 1)
    moments = sums[:size, :size].copy()
    diagonal = moments.diagonal()
    moments[np.diag_indices(size)] += ridge * diagonal + 1e-8 * diagonal.mean() + 1e-20
    return moments


def _best_ridge(
    weights: Matrix, first: Matrix, second: Matrix, biased: bool, dice: np.random.Generator
) -> float:
    """Return the ridge with which one half of the data tells most about the other.

    Some inputs are left out, the others make up for them as one half says, and the error is
    taken on the other half: with fewer samples than inputs, anything seems to repeat.
    """
    inputs = weights.shape[1]
    out = np.sort(dice.choice(inputs, max(1, round(_LEFT_OUT * inputs)), replace=False))
    rest = np.setdiff1d(np.arange(inputs + (1 if biased else 0)), out)
    best, least = _RIDGES[-1], float("inf")
    for ridge in _RIDGES:
        error = 0.0
        for fit, judge in ((first, second), (second, first)):
            change = -_moved(weights, _ridged(fit, ridge, biased), rest, out)
            full = np.zeros((len(weights), len(judge)))
            full[:, out], full[:, rest] = weights[:, out], change
            error += float(((full @ judge) * full).sum())
        if error < least * 0.999:
            best, least = ridge, error
    return best


def _moved(weights: Matrix, ridged: Matrix, rest: Ids, out: Ids) -> Matrix:
    """Return what the weights of ``out`` become on ``rest``, by least squares."""
    wanted = weights[:, out] @ ridged[np.ix_(out, rest)]
    return np.asarray(np.linalg.solve(ridged[np.ix_(rest, rest)], wanted.T).T, np.float64)


def rows_of(layer: Layer, x: Array) -> Array:
    """Return what a layer reads as [rows, inputs]."""
    if layer.op in ("Conv", "ConvTranspose"):
        return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    channels = x.shape[-1] // layer.block
    return np.moveaxis(x.reshape(-1, channels, layer.block), 1, -1).reshape(-1, channels)


def gather(
    trace: Trace, layers: list[Layer], data: Mapping[str, Array], samples: int, seed: int,
    threads: int,
) -> list[Moments]:  # fmt: skip
    """Take the moments of the inputs of layers, streaming.

    Raises:
        ModelError: The model does not run, or the data do not fit it.
        DataError: There is not one whole batch.
    """
    if not layers:
        return []
    names = sorted({layer.x for layer in layers})
    dice = np.random.default_rng(seed)
    sums: dict[int, Matrix] = {}  # [half, group, inputs + 1, inputs + 1]
    total = min([samples, *(len(a) for a in data.values())])
    for turn, (found,) in enumerate(lockstep([(trace.view.model, names)], data, samples, threads)):
        for layer in layers:
            rows = rows_of(layer, found[layer.x])
            most = -(-max(_ROWS, 4 * rows.shape[1]) * len(found[layer.x]) // max(total, 1))
            if len(rows) > most:
                rows = rows[np.sort(dice.choice(len(rows), most, replace=False))]
            middle = len(rows) // 2 if len(found[layer.x]) > 1 else len(rows) * (turn % 2)
            ones = np.ones((len(rows), 1), np.float32)
            for group, part in enumerate(np.split(rows, layer.group, axis=1)):
                full = np.concatenate([part, ones], axis=1)
                size = full.shape[1]
                mine = sums.setdefault(layer.node, np.zeros((2, layer.group, size, size)))
                mine[0, group] += full[:middle].T @ full[:middle]
                mine[1, group] += full[middle:].T @ full[middle:]
    return [_moments(trace, layer, sums[layer.node], dice) for layer in layers]


def _moments(trace: Trace, layer: Layer, sums: Matrix, dice: np.random.Generator) -> Moments:
    """Put both halves together, with the ridge that they agree on."""
    node = trace.view.model.graph.node[layer.node]
    weights = to_matrices(layer, node, trace.view.weights[layer.weight].astype(np.float64))
    whole = sums.sum(axis=0)
    counts = whole[0, -1, -1]
    found = Moments(layer, weights, list(whole / max(counts, 1.0)))
    if sums[0, 0, -1, -1] and sums[1, 0, -1, -1]:
        first, second = (half[0] / half[0, -1, -1] for half in sums)
        found.ridge = _best_ridge(weights[0], first, second, found.biased, dice)
    return found


@dataclass(frozen=True, eq=False)
class Curve:
    """In which order the classes of a cluster can go, and what that costs.

    Attributes:
        cluster: The cluster.
        steps: The classes that go in each step.
        errors: After each step, the sum over the layers that read them of the error relative to
            what the layer gives.
    """

    cluster: Cluster
    steps: tuple[tuple[int, ...], ...]
    errors: tuple[float, ...]


class _Part:
    """One group of one layer, on the way down."""

    def __init__(self, moments: Moments, group: int, weights: Matrix, roots: Ids) -> None:
        self.inverse = np.linalg.inv(moments.ridged(group))
        ones = len(self.inverse) - weights.shape[1]
        self.weights = np.concatenate([weights, np.zeros((len(weights), ones))], axis=1)
        spread = moments.spread(group)
        self.energy = float(np.einsum("oi,ij,oj->", weights, spread, weights, optimize=True))
        # A layer that says nothing new has nothing to lose; it must not divide by zero either.
        self.energy = max(self.energy, 1e-12)
        self.roots = roots

    def scores(self, classes: list[int]) -> Matrix:
        """Return the relative error of going without each class, one at a time."""
        where = [np.flatnonzero(self.roots == one) for one in classes]
        if all(len(places) == 1 for places in where):
            at = np.concatenate(where)
            squares = (self.weights[:, at] ** 2).sum(axis=0)
            found = squares / np.maximum(self.inverse[at, at], 1e-300)
            return np.asarray(found / self.energy)
        errors = np.zeros(len(classes))
        for number, places in enumerate(where):
            if len(places):
                mine = self.weights[:, places]
                block = self.inverse[np.ix_(places, places)]
                errors[number] = float((mine * np.linalg.solve(block, mine.T).T).sum())
        return errors / self.energy

    def eliminate(self, classes: tuple[int, ...]) -> float:
        """Go without some classes; return the relative error that this adds."""
        places = np.flatnonzero(np.isin(self.roots, classes))
        if not len(places):
            return 0.0
        mine = self.weights[:, places]
        block = np.linalg.solve(self.inverse[np.ix_(places, places)], self.inverse[places])
        lost = float((mine * np.linalg.solve(self.inverse[np.ix_(places, places)], mine.T).T).sum())
        self.weights -= mine @ block
        self.inverse -= self.inverse[:, places] @ block
        self.weights[:, places] = 0.0
        self.inverse[places] = 0.0
        self.inverse[:, places] = 0.0
        # A diagonal that is not zero keeps later solves of other blocks untouched.
        self.inverse[places, places] = 1.0
        return max(lost, 0.0) / self.energy


def curve(
    trace: Trace, cluster: Cluster, moments: list[Moments], keep: int, multiple: int
) -> Curve:
    """Order the classes of a cluster by what going without them costs.

    Args:
        trace: The graph.
        cluster: The cluster.
        moments: Of the layers of the graph.
        keep: At least this many classes stay.
        multiple: Channels are computed in multiples of this: steps must meet them.
    """
    mine = set(cluster.classes)
    parts: list[_Part] = []
    for one in moments:
        assert one.layer.ids_in is not None
        roots = trace.atoms.roots(one.layer.ids_in)
        if not mine & set(roots.tolist()):
            continue
        size = one.weights.shape[2]
        for group in range(one.layer.group):
            places = roots[group * size : (group + 1) * size]
            parts.append(_Part(one, group, one.weights[group], places))
    vectors = _vectors(trace, mine)
    alive, steps, errors, total = list(cluster.classes), [], [], 0.0
    stride = _stride(len(alive) - keep, multiple)
    while len(alive) > keep:
        scores = sum((part.scores(alive) for part in parts), np.zeros(len(alive)))
        order = [alive[i] for i in np.argsort(scores, kind="stable")]
        # The first step takes what is over, so that multiples are met from then on.
        count = len(alive) % stride or stride
        chosen = _allowed(order, vectors, min(count, len(alive) - keep))
        if not chosen:
            break
        total += sum(part.eliminate(chosen) for part in parts)
        alive = [one for one in alive if one not in chosen]
        steps.append(chosen)
        errors.append(total)
    return Curve(cluster, tuple(steps), tuple(errors))


def _stride(classes: int, multiple: int) -> int:
    """Return how many classes go in one step: a divisor of the multiple, or multiples of it."""
    least = max(1, classes // _STEPS)
    return next(
        (n for n in range(least, multiple) if multiple % n == 0), -(-least // multiple) * multiple
    )


def _vectors(trace: Trace, classes: set[int]) -> list[dict[int, int]]:
    """Return, for each tensor that holds only channels of a cluster, class -> how often."""
    found: dict[tuple[int, ...], dict[int, int]] = {}
    for label in trace.labels.values():
        roots = trace.atoms.roots(label.ids).tolist()
        if len(roots) and set(roots) <= classes:
            found[tuple(sorted(set(roots)))] = {root: 1 for root in roots}
    return list(found.values())


def _allowed(order: list[int], vectors: list[dict[int, int]], count: int) -> tuple[int, ...]:
    """Take the first classes whose going empties no tensor; update the vectors."""
    chosen: list[int] = []
    for one in order:
        if len(chosen) == count:
            break
        if any(one in vector and len(vector) == 1 for vector in vectors):
            continue
        for vector in vectors:
            vector.pop(one, None)
        chosen.append(one)
    return tuple(chosen)


def folded(trace: Trace, moments: list[Moments], gone: frozenset[int]) -> dict[str, Array]:
    """Return new weights and biases of the layers that lose inputs, in their full shape.

    Each is the least-squares answer of what is left to the layer's old output on the moments:
    ``W'_R = W_R + W_S G_SR (G_RR)^-1``; what goes keeps its old weights and is cut away later.
    """
    fate = Fate(trace, gone)
    values: dict[str, Array] = {}
    for one in moments:
        layer = one.layer
        assert layer.ids_in is not None
        stays = fate.kept(layer.ids_in)
        if stays.all() or not stays.any():
            continue
        node = trace.view.model.graph.node[layer.node]
        old = trace.view.weights[layer.weight]
        matrices = one.weights.copy()
        size = matrices.shape[2]
        taps = matrices.shape[1] * layer.group // len(layer.ids_out)
        shift = np.zeros((layer.group, matrices.shape[1] // taps))
        for group in range(layer.group):
            here = stays[group * size : (group + 1) * size]
            kept, out = np.flatnonzero(here), np.flatnonzero(~here)
            rest = np.append(kept, size) if one.biased else kept
            moved = _moved(matrices[group], one.ridged(group), rest, out)
            matrices[group][:, kept] += moved[:, : len(kept)]
            if one.biased:
                shift[group] = moved[:, -1].reshape(-1, taps).sum(axis=1)
        values[layer.weight] = from_matrices(layer, node, matrices, old)
        if one.biased:
            bias = trace.view.weights[layer.bias]
            values[layer.bias] = (bias + shift.reshape(bias.shape)).astype(bias.dtype)
    return values
