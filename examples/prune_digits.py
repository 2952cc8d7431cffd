"""Prunes a network that is larger than its task: faster, smaller, and as good as before.

    python examples/prune_digits.py build/digits

Trains a wide version of the network of train_digits.py (48, 96 and 128 channels where 16, 32 and
64 do), removes the channels that matter least until a share of all multiplications is gone, fits
what is left to what the layers gave before, and quantises both versions to 8 bits. All four run
side by side, in turns; no training framework is needed, and no label: the 128 calibration images
are enough. ``edgeml convert`` does the same by itself from effort ``normal`` on, where accuracy
allows it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import onnx
from sklearn.datasets import load_digits
from train_digits import CALIBRATION, TRAIN, export, train, write_data

from edgeml.plugins import load
from edgeml.runtime import get_runtime
from edgeml.runtime.base import ProgramOptions
from edgeml.runtime.measure import interleave, speedup
from edgeml_converters.passes.base import PassContext

WIDE = {"c1": (48, 1), "c2": (96, 48), "c3": (128, 96)}


def source(folder: Path, epochs: int) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """Return the trained network, and held-out images and labels; train it if it is not there."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = digits.images[order].astype(np.uint8)[:, None]
    labels = digits.target[order].astype(np.int64)
    path = folder / "digits-wide.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pixels = images[:TRAIN].astype(np.float32)
        export(train(pixels, labels[:TRAIN], epochs, 1, WIDE), path)
        write_data(folder / "digits.npz", images[TRAIN:], labels[TRAIN:])
    return onnx.load(path), images[TRAIN:].astype(np.float32), labels[TRAIN:]


def versions(model: onnx.ModelProto, context: PassContext, amount: float) -> dict[str, bytes]:
    """Return the network in float and in 8 bits, each as it was and pruned."""

    def applied(given: onnx.ModelProto, name: str, **options: float) -> onnx.ModelProto:
        result = load("passes", name)(**options).run(given, context)
        for note in result.notes:
            print(f"  {name}: {note}")
        return result.model

    whole = applied(model, "simplify")
    pruned = applied(whole, "prune_channels", amount=amount, multiple=16)
    made = {"float": whole, "float, pruned": pruned}
    made["int8"] = applied(whole, "quantize_static")
    made["int8, pruned"] = applied(pruned, "quantize_static")
    return {name: one.SerializeToString() for name, one in made.items()}


def main() -> None:
    """Prune, and print what it gained and what it cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to write to, and to find the network in")
    parser.add_argument("--amount", type=float, default=0.7, help="of the multiplications to save")
    parser.add_argument("--epochs", type=int, default=8, help="of the training")
    args = parser.parse_args()

    model, images, labels = source(args.folder, args.epochs)
    context = PassContext({"image": images[:CALIBRATION]})
    test, wanted = images[CALIBRATION:], labels[CALIBRATION:]
    runs: dict[str, Callable[[], object]] = {}
    right: dict[str, float] = {}
    sizes: dict[str, int] = {}
    with ExitStack() as stack:
        for name, content in versions(model, context, args.amount).items():
            path = args.folder / f"digits-wide-{name.replace(', ', '-')}.onnx"
            path.write_bytes(content)
            program = get_runtime("onnxruntime").prepare(path, ProgramOptions(threads=1))
            session = stack.enter_context(closing(stack.enter_context(closing(program)).session()))
            runs[name] = lambda session=session: session.run({"image": test[:1]})
            answers = session.run({"image": test})["logits"].argmax(axis=1)
            right[name], sizes[name] = float((answers == wanted).mean()), len(content)
        timings = interleave(runs, rounds=40)
    for name, timing in timings.items():
        print(f"{name:14s} {timing.p50 * 1e3:7.3f} ms {sizes[name] / 1024:7.0f} KiB "
              f"{right[name]:.4f} right")  # fmt: skip
    for name in ("float", "int8"):
        gain = speedup(timings[name], timings[f"{name}, pruned"])
        drop = right[name] - right[f"{name}, pruned"]
        print(
            f"{name}: pruning gains {gain.value:.2f} x [{gain.low:.2f}, {gain.high:.2f}], "
            f"and costs {100 * drop:.2f} points"
        )


if __name__ == "__main__":
    main()
