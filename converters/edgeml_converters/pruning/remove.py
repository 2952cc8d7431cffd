"""Clusters of channels that can go, and their removal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edgeml.errors import ModelError
from edgeml.tensors import Array
from edgeml_converters.pruning.trace import PINNED, Ids, Layer, Trace
from edgeml_converters.pruning.view import restore

#: Kinds of clusters: channels of convolutions, units of dense layers, heads of attention.
CHANNELS, UNITS, HEADS = "channels", "units", "heads"
_MAKERS = {"Conv": CHANNELS, "ConvTranspose": CHANNELS, "Gemm": UNITS, "MatMul": UNITS}


@dataclass(frozen=True, eq=False)
class Cluster:
    """Channels that the same layers make; any of them can go, each with what is tied to it.

    Attributes:
        kind: CHANNELS, UNITS or HEADS.
        makers: Names of the layers.
        classes: The sets of atoms, each by its root.
    """

    kind: str
    makers: tuple[str, ...]
    classes: tuple[int, ...]

    @property
    def name(self) -> str:
        """What a note calls it."""
        more = f" and {len(self.makers) - 1} more" if len(self.makers) > 1 else ""
        return f"{self.makers[0]}{more}"


def clusters_of(trace: Trace) -> list[Cluster]:
    """Return the clusters of a traced graph, those of one class left out: it has to stay."""
    heads = {trace.atoms.root(atom) for atom in trace.heads}
    found: list[tuple[set[int], list[Layer]]] = []
    for layer in trace.layers:
        if layer.op not in _MAKERS:
            continue
        mine = set(trace.atoms.roots(layer.ids_out).tolist()) - {PINNED}
        if not mine:
            continue
        layers = [layer]
        for one in [one for one in found if one[0] & mine]:
            found.remove(one)
            mine |= one[0]
            layers = one[1] + layers
        found.append((mine, layers))
    clusters = []
    for classes, layers in found:
        kind = CHANNELS if any(_MAKERS[m.op] == CHANNELS for m in layers) else UNITS
        if kind == UNITS and classes & heads:
            kind = HEADS
        if len(classes) > 1:
            names = tuple(layer.name for layer in layers)
            clusters.append(Cluster(kind, names, tuple(sorted(classes))))
    return clusters


class Fate:
    """Which atoms are gone."""

    def __init__(self, trace: Trace, gone: frozenset[int]) -> None:
        """Take the roots of the classes that go."""
        self._trace, self._gone = trace, np.array(sorted(gone), np.int64)

    def kept(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Tell for each position whether it stays."""
        stays: npt.NDArray[np.bool_] = ~np.isin(self._trace.atoms.roots(ids), self._gone)
        return stays


def removed(trace: Trace, weights: dict[str, Array], gone: frozenset[int]) -> onnx.ModelProto:
    """Return the model without some classes of channels.

    Args:
        trace: Of the model.
        weights: Stored tensors that are to have other values first, in their full shape.
        gone: Roots of the classes that go.

    Raises:
        ModelError: A stored tensor would lose all positions of an axis.
    """
    model = onnx.ModelProto()
    model.CopyFrom(trace.view.model)
    del model.graph.value_info[:]
    fate = Fate(trace, gone)
    values = dict(weights)
    for site in trace.sites:
        stays = fate.kept(site.ids)
        if not stays.any():
            raise ModelError(f"pruning would leave nothing of '{site.tensor}'")
        if not stays.all():
            full = values.get(site.tensor, trace.view.weights[site.tensor])
            values[site.tensor] = np.compress(stays, full, site.axis)
    for count in trace.counts:
        number = int(fate.kept(count.ids).sum())
        if number == len(count.ids):
            continue
        if count.attribute:
            for one in model.graph.node[count.node].attribute:
                if one.name == count.attribute:
                    one.i = number
        else:
            full = np.array(values.get(count.tensor, trace.view.weights[count.tensor]))
            full.reshape(-1)[count.index] = number
            values[count.tensor] = full
    for tensor in model.graph.initializer:
        if tensor.name in values:
            array = np.ascontiguousarray(values[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    restore(trace.view, model)
    return model
