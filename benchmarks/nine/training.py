"""Trains an ONNX graph with torch: the graph is the definition, its float initializers move.

    python -m nine.training MODEL.onnx IMAGES.npz TRAINED.npz EPOCHS RATE

Runs in an environment of its own: ``digits.retrain`` starts it, and nothing else has torch.
Every node is one line of ``OPS``; one thread and one seed make the same bytes on the same machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper

BATCH, SEED = 64, 0
T = torch.Tensor
Attributes = dict[str, Any]


def _conv(a: Attributes, x: T, w: T, b: T | None = None) -> T:
    pads = a.get("pads", [0] * 4)[0]
    return F.conv2d(x, w, b, a.get("strides", 1), pads, groups=a.get("group", 1))


def _reshape(a: Attributes, x: T, shape: T) -> T:
    wanted = [x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape.tolist())]
    return x.reshape(wanted)


OPS: dict[str, Callable[..., T]] = {
    "Add": lambda a, x, y: x + y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: x / y,
    "MatMul": lambda a, x, y: x @ y,
    "Erf": lambda a, x: torch.erf(x),
    "Relu": lambda a, x: F.relu(x),
    "Clip": lambda a, x, low, high: torch.clamp(x, low, high),
    "Softmax": lambda a, x: torch.softmax(x, a["axis"]),
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Reshape": _reshape,
    "Flatten": lambda a, x: x.flatten(a["axis"]),
    "ReduceMean": lambda a, x: x.mean(a["axes"]),
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "MaxPool": lambda a, x: F.max_pool2d(x, a["kernel_shape"], a["strides"]),
    "Conv": _conv,
    "Gemm": lambda a, x, w, b: F.linear(x, w, b),
    "LayerNormalization": lambda a, x, w, b: F.layer_norm(x, w.shape, w, b, a["epsilon"]),
}


class Graph(torch.nn.Module):
    """An ONNX graph as a module."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Take the initializers as they are; running statistics and constants do not move."""
        super().__init__()
        self.nodes = list(model.graph.node)
        self.first, self.last = model.graph.input[0].name, model.graph.output[0].name
        still = {n for node in self.nodes if node.op_type == "BatchNormalization"
                 for n in node.input[3:]}  # fmt: skip
        for one in model.graph.initializer:
            value = torch.from_numpy(numpy_helper.to_array(one).copy())
            if one.name.startswith("p") and one.name not in still:
                self.register_parameter(one.name, torch.nn.Parameter(value))
            else:
                self.register_buffer(one.name, value)

    def forward(self, image: T) -> T:
        """Run the nodes in order."""
        values: dict[str, T] = {self.first: image}
        for node in self.nodes:
            inputs = [values[n] if n in values else getattr(self, n) for n in node.input]
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            values[node.output[0]] = self._run(node.op_type, attributes, inputs)
        return values[self.last]

    def _run(self, kind: str, attributes: Attributes, inputs: list[T]) -> T:
        if kind == "BatchNormalization":
            x, scale, shift, mean, var = inputs
            epsilon = attributes["epsilon"]
            return F.batch_norm(x, mean, var, scale, shift, self.training, 0.1, epsilon)
        return OPS[kind](attributes, *inputs)


def moved(x: T, dice: torch.Generator) -> T:
    """Return images shifted by up to an eighth of their side, alike for the batch, with noise."""
    most = x.shape[-1] // 8
    down, right = (int(v) for v in torch.randint(-most, most + 1, (2,), generator=dice))
    padded = F.pad(x, (most,) * 4)
    top, left = most + down, most + right
    cut = padded[:, :, top : top + x.shape[-1], left : left + x.shape[-1]]
    return cut + 0.05 * torch.randn(x.shape, generator=dice)


def train(graph: Graph, x: T, y: T, epochs: int, rate: float) -> None:
    """Train with AdamW; the rate rises and falls once."""
    dice = torch.Generator().manual_seed(SEED)
    steps = epochs * (len(x) // BATCH)
    tuner = torch.optim.AdamW(graph.parameters(), rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(tuner, rate, steps)
    graph.train()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=dice)
        for rows in order[: len(x) // BATCH * BATCH].split(BATCH):
            loss = F.cross_entropy(graph(moved(x[rows], dice)), y[rows], label_smoothing=0.05)
            tuner.zero_grad()
            loss.backward()
            tuner.step()
            schedule.step()
    graph.eval()


def main() -> None:
    """Run it."""
    source, data, target, epochs, rate = sys.argv[1:]
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model = onnx.load(source)
    graph = Graph(model)
    with np.load(data) as arrays:
        train(
            graph,
            torch.from_numpy(arrays["x"]),
            torch.from_numpy(arrays["y"]),
            int(epochs),
            float(rate),
        )
    state = {name: value.numpy() for name, value in graph.state_dict().items()}
    floats = {n: v.astype(np.float16) for n, v in state.items() if n.startswith("p")}
    np.savez_compressed(target, **floats)


if __name__ == "__main__":
    main()
