"""Trains the small CNN of the demo on scikit-learn's handwritten digits, with NumPy alone.

    python examples/train_digits.py --out build/digits            # all three versions, a minute
    edgeml convert build/digits/digits-1.0.0.onnx --profile cpu-x86-64 \
        --data build/digits/digits.npz --metric top1

Three versions come out, as in real life:

* 1.0.0 was trained for a short time;
* 2.0.0 was trained longer, and is slightly better;
* 3.0.0 was trained on the wrong pixels (dark ink on white paper, where the cameras see white ink
  on black). On its own evaluation data it looks as good as the others. On real digits it is poor:
  only labels from the field can tell.

The network: image [N, 1, 8, 8] (0 to 16, as scikit-learn has them) -> Conv 16 -> Conv 32 -> MaxPool
-> Conv 64 -> global average -> logits [N, 10]; 24,000 weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

Floats = npt.NDArray[np.float32]
Weights = dict[str, Floats]

TRAIN, CALIBRATION = 1100, 128  # of 1,797; the rest is the test part
CHANNELS = {"c1": (16, 1), "c2": (32, 16), "c3": (64, 32)}


def initial_weights(rng: np.random.Generator, channels: dict[str, tuple[int, int]]) -> Weights:
    """Return He-initialised weights: conv [out, in, 3, 3], bias [out], dense [out, 10]."""
    weights: Weights = {}
    for name, (out, inp) in channels.items():
        std = np.sqrt(2 / (inp * 9))
        weights[f"{name}.w"] = rng.normal(0, std, (out, inp, 3, 3)).astype(np.float32)
        weights[f"{name}.b"] = np.zeros(out, np.float32)
    last = channels["c3"][0]
    weights["fc.w"] = rng.normal(0, np.sqrt(1 / last), (last, 10)).astype(np.float32)
    weights["fc.b"] = np.zeros(10, np.float32)
    return weights


def patches(x: Floats) -> Floats:
    """Return the 3x3 neighbourhoods of x [N, C, H, W], zero-padded, as [N, H, W, C * 9]."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    view = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    n, c, h, w = x.shape
    return view.transpose(0, 2, 3, 1, 4, 5).reshape(n, h, w, c * 9)


def scatter(grad: Floats, channels: int) -> Floats:
    """Add gradients of patches [N, H, W, C * 9] back to their pixels: the adjoint of patches."""
    n, h, w, _ = grad.shape
    split = grad.reshape(n, h, w, channels, 3, 3)
    out = np.zeros((n, channels, h + 2, w + 2), np.float32)
    for i in range(3):
        for j in range(3):
            out[:, :, i : i + h, j : j + w] += split[..., i, j].transpose(0, 3, 1, 2)
    return out[:, :, 1:-1, 1:-1]


def forward(x: Floats, weights: Weights) -> tuple[Floats, dict[str, Floats]]:
    """Return the logits [N, 10] and what the backward pass needs."""
    kept: dict[str, Floats] = {}
    for name in CHANNELS:
        out = len(weights[f"{name}.w"])
        kept[f"{name}.in"] = patches(x)
        flat = kept[f"{name}.in"] @ weights[f"{name}.w"].reshape(out, -1).T + weights[f"{name}.b"]
        x = np.maximum(flat, 0).transpose(0, 3, 1, 2)
        kept[f"{name}.out"] = x
        if name == "c2":
            n, c, h, w = x.shape
            blocks = x.reshape(n, c, h // 2, 2, w // 2, 2)
            x = blocks.max(axis=(3, 5))
            kept["pool.mask"] = (blocks == x[:, :, :, None, :, None]).astype(np.float32)
    kept["mean"] = x.mean(axis=(2, 3))
    return kept["mean"] @ weights["fc.w"] + weights["fc.b"], kept


def backward(error: Floats, weights: Weights, kept: dict[str, Floats]) -> Weights:
    """Return the gradient of every weight for the gradient of the logits."""
    grads: Weights = {"fc.w": kept["mean"].T @ error, "fc.b": error.sum(axis=0)}
    shape = kept["c3.out"].shape
    flow = (error @ weights["fc.w"].T)[:, :, None, None] / (shape[2] * shape[3])
    flow = np.broadcast_to(flow, shape)
    for name in reversed(CHANNELS):
        out, inp = weights[f"{name}.w"].shape[:2]
        if name == "c2":
            spread = kept["pool.mask"] * flow[:, :, :, None, :, None]
            flow = spread.reshape(kept["c2.out"].shape)
        local = (flow * (kept[f"{name}.out"] > 0)).transpose(0, 2, 3, 1).reshape(-1, out)
        rows = kept[f"{name}.in"].reshape(-1, inp * 9)
        grads[f"{name}.w"] = (local.T @ rows).reshape(out, inp, 3, 3)
        grads[f"{name}.b"] = local.sum(axis=0)
        back = local @ weights[f"{name}.w"].reshape(out, -1)
        flow = scatter(back.reshape(kept[f"{name}.in"].shape), inp)
    return grads


def batches(n: int, rng: np.random.Generator, size: int = 50) -> Iterator[npt.NDArray[np.intp]]:
    """Yield the shuffled indices of one epoch."""
    order = rng.permutation(n)
    for start in range(0, n, size):
        yield order[start : start + size]


def train(
    x: Floats,
    y: npt.NDArray[np.int64],
    epochs: int,
    seed: int,
    channels: dict[str, tuple[int, int]] = CHANNELS,
) -> Weights:
    """Minimise the cross-entropy with Adam (Kingma and Ba, 2015), learning rate 0.002."""
    rng = np.random.default_rng(seed)
    weights = initial_weights(rng, channels)
    first = {k: np.zeros_like(v) for k, v in weights.items()}
    second = {k: np.zeros_like(v) for k, v in weights.items()}
    step = 0
    for _ in range(epochs):
        for rows in batches(len(x), rng):
            logits, kept = forward(x[rows], weights)
            shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
            error = shifted / shifted.sum(axis=1, keepdims=True)
            error[np.arange(len(rows)), y[rows]] -= 1
            step += 1
            for key, grad in backward(error / len(rows), weights, kept).items():
                first[key] += 0.1 * (grad - first[key])
                second[key] += 0.001 * (grad * grad - second[key])
                mean = first[key] / (1 - 0.9**step)
                scale = np.sqrt(second[key] / (1 - 0.999**step)) + 1e-8
                weights[key] -= (0.002 * mean / scale).astype(np.float32)
    return weights


def export(weights: Weights, path: Path) -> None:
    """Write the network as ONNX, opset 17, with a variable batch."""
    nodes, source = [], "image"
    for name in CHANNELS:
        nodes.append(
            helper.make_node(
                "Conv",
                [source, f"{name}.w", f"{name}.b"],
                [f"{name}.y"],
                name=f"conv_{name}",
                kernel_shape=[3, 3],
                pads=[1, 1, 1, 1],
            )
        )
        nodes.append(helper.make_node("Relu", [f"{name}.y"], [f"{name}.r"], name=f"relu_{name}"))
        source = f"{name}.r"
        if name == "c2":
            nodes.append(
                helper.make_node(
                    "MaxPool",
                    [source],
                    ["pooled"],
                    name="pool",
                    kernel_shape=[2, 2],
                    strides=[2, 2],
                )
            )
            source = "pooled"
    nodes += [
        helper.make_node("GlobalAveragePool", [source], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["logits"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    model = helper.make_model(
        graph, producer_name="edgeml examples", opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 9
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_data(path: Path, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> None:
    """Write evaluation data as ``edgeml convert --data`` takes it; pixels as stored integers."""
    np.savez_compressed(
        path,
        **{
            "calib/image": images[:CALIBRATION],
            "test/image": images[CALIBRATION:],
            "test/labels": labels[CALIBRATION:],
            "classes": np.array([str(d) for d in range(10)]),
        },
    )


def main() -> None:
    """Train the three versions and write them with their evaluation data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=30, help="of version 2.0.0")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = digits.images[order].astype(np.uint8)[:, None]
    labels = digits.target[order].astype(np.int64)
    held, held_labels = images[TRAIN:], labels[TRAIN:]
    write_data(args.out / "digits.npz", held, held_labels)
    write_data(args.out / "digits-inverted.npz", 16 - held, held_labels)

    short = max(1, args.epochs // 5)
    plan = [("1.0.0", short, False), ("2.0.0", args.epochs, False), ("3.0.0", args.epochs, True)]
    for version, epochs, inverted in plan:

        def pixels(x: npt.NDArray[np.uint8], flip: bool = inverted) -> Floats:
            return (16 - x if flip else x).astype(np.float32)

        weights = train(pixels(images[:TRAIN]), labels[:TRAIN], epochs, seed=1)
        export(weights, args.out / f"digits-{version}.onnx")
        real = float((forward(held.astype(np.float32), weights)[0].argmax(1) == held_labels).mean())
        own = float((forward(pixels(held), weights)[0].argmax(1) == held_labels).mean())
        print(f"digits {version}: {real:.3f} right on real digits, {own:.3f} on its own test data")


if __name__ == "__main__":
    main()
