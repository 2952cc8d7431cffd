"""Which channels matter: the error of going without, after the rest has made up for it.

For a layer ``y = W x`` with second moments ``G = E[x x^T]`` of its inputs, going without the inputs
``S``, with the best change of the other weights, costs ``W_S (H_SS)^-1 W_S^T`` with ``H = G^-1``
(Hassibi and Stork 1993, Optimal Brain Surgeon; for blocks and layer by layer: Frantar and Alistarh
2022, Optimal Brain Compression). So a channel that others repeat costs nothing, however large its
weights are. The moments are those of the calibration data. For a convolution they are taken
between channels at one position, and each kernel position counts as a layer of its own: small
enough for any model, and exact for kernels of size 1. A constant 1 is an input too where the layer
has a bias: what a channel holds on average goes there.
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

#: Added to the moments' diagonal, as a share of its mean: a sum that repeats has no inverse.
_RIDGE = 1e-6
#: At most this many steps from a whole cluster to what has to stay of it.
_STEPS = 48
#: Least rows that moments are taken from, where the data hold as many.
_ROWS = 4096


@dataclass(eq=False)
class Moments:
    """Second moments of the inputs of one layer.

    Attributes:
        layer: The layer.
        sums: Per group, [inputs + 1, inputs + 1]: moments with a constant 1 as the last input.
        biased: Whether the constant may be used.
    """

    layer: Layer
    sums: list[Matrix]
    biased: bool

    def ridged(self, group: int) -> Matrix:
        """Return the moments with their ridge; without the constant where it cannot be used."""
        size = len(self.sums[group]) - (0 if self.biased else 1)
        moments = self.sums[group][:size, :size].copy()
        inputs = len(self.sums[group]) - 1
        mean = np.trace(self.sums[group][:inputs, :inputs]) / max(inputs, 1)
        moments[np.diag_indices(size)] += _RIDGE * mean + 1e-20
        return moments

    def spread(self, group: int) -> Matrix:
        """Return the covariance of the inputs."""
        mean = self.sums[group][:-1, -1]
        return self.sums[group][:-1, :-1] - np.outer(mean, mean)


def rows_of(layer: Layer, x: Array) -> Array:
    """Return what a layer reads as [rows, inputs]."""
    if layer.op in ("Conv", "ConvTranspose"):
        return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    return x.reshape(-1, x.shape[-1])


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
    sums: dict[int, list[Matrix]] = {}
    counts: dict[int, int] = {}
    rows_left = min([samples, *(len(a) for a in data.values())])
    for (found,) in lockstep([(trace.view.model, names)], data, samples, threads):
        for layer in layers:
            rows = rows_of(layer, found[layer.x])
            inputs = rows.shape[1]
            most = -(-max(_ROWS, 4 * inputs) * len(found[layer.x]) // max(rows_left, 1))
            if len(rows) > most:
                rows = rows[np.sort(dice.choice(len(rows), most, replace=False))]
            ones = np.ones((len(rows), 1), np.float32)
            for group, part in enumerate(np.split(rows, layer.group, axis=1)):
                full = np.concatenate([part, ones], axis=1)
                mine = sums.setdefault(layer.node, [])
                if len(mine) <= group:
                    mine.append(np.zeros((full.shape[1],) * 2))
                mine[group] += full.T @ full
            counts[layer.node] = counts.get(layer.node, 0) + len(rows)
    return [
        Moments(
            layer, [s / counts[layer.node] for s in sums[layer.node]], bool(layer.bias)
        )
        for layer in layers
    ]  # fmt: skip


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


def curve(trace: Trace, cluster: Cluster, moments: list[Moments], keep: int) -> Curve:
    """Order the classes of a cluster by what going without them costs.

    Args:
        trace: The graph.
        cluster: The cluster.
        moments: Of the layers of the graph.
        keep: At least this many classes stay.
    """
    mine = set(cluster.classes)
    parts: list[_Part] = []
    for one in moments:
        assert one.layer.ids_in is not None
        roots = trace.atoms.roots(one.layer.ids_in)
        if not mine & set(roots.tolist()):
            continue
        node = trace.view.model.graph.node[one.layer.node]
        weight = trace.view.weights[one.layer.weight].astype(np.float64)
        matrices = to_matrices(one.layer, node, weight)
        size = matrices.shape[2]
        for group in range(one.layer.group):
            places = roots[group * size : (group + 1) * size]
            parts.append(_Part(one, group, matrices[group], places))
    vectors = _vectors(trace, mine)
    alive, steps, errors, total = list(cluster.classes), [], [], 0.0
    stride = max(1, (len(alive) - keep) // _STEPS)
    while len(alive) > keep:
        scores = sum((part.scores(alive) for part in parts), np.zeros(len(alive)))
        order = [alive[i] for i in np.argsort(scores, kind="stable")]
        chosen = _allowed(order, vectors, min(stride, len(alive) - keep))
        if not chosen:
            break
        total += sum(part.eliminate(chosen) for part in parts)
        alive = [one for one in alive if one not in chosen]
        steps.append(chosen)
        errors.append(total)
    return Curve(cluster, tuple(steps), tuple(errors))


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
    ``W' = (W G)_R (G_RR)^-1``; what goes keeps its old weights and is cut away later.
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
        matrices = to_matrices(layer, node, old.astype(np.float64)).copy()
        size = matrices.shape[2]
        taps = matrices.shape[1] * layer.group // len(layer.ids_out)
        shift = np.zeros((layer.group, matrices.shape[1] // taps))
        for group in range(layer.group):
            ridged = one.ridged(group)
            kept = np.flatnonzero(stays[group * size : (group + 1) * size])
            rest = np.append(kept, size) if one.biased else kept
            wanted = matrices[group] @ ridged[:size][:, rest]
            fresh = np.linalg.solve(ridged[np.ix_(rest, rest)], wanted.T).T
            matrices[group][:, kept] = fresh[:, : len(kept)]
            if one.biased:
                shift[group] = fresh[:, -1].reshape(-1, taps).sum(axis=1)
        values[layer.weight] = from_matrices(layer, node, matrices, old)
        if one.biased:
            bias = trace.view.weights[layer.bias]
            values[layer.bias] = (bias + shift.reshape(bias.shape)).astype(bias.dtype)
    return values
