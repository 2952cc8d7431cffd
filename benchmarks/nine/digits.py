"""Three small networks for scikit-learn's handwritten digits; ``training.py`` trains them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from .builder import Array, Net, Value
from .layers import conv, dense, global_pool, relu, relu6
from .transformer import attention, feed_forward, norm

CALIBRATION = 128
#: Share of the 1797 images that nothing is trained on: 719.
_TEST = 0.4
_SEED = 30


def cnn_digits(net: Net, image: Value) -> Value:
    """Add two convolutions and two dense layers on 8 x 8 pixels."""
    x = relu(net, conv(net, image, 32, 3, norm="biased"))
    x = net.op("MaxPool", relu(net, conv(net, x, 64, 3, norm="biased")), **_HALF)
    x = net.op("Flatten", x, axis=1)
    return _dense(net, relu(net, _dense(net, x, 32)), 10)


_HALF = {"kernel_shape": [2, 2], "strides": [2, 2]}
#: Expansion, channels at width 0.5, repeats and stride for 32 x 32 pixels.
_MOBILE = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2),
           (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))  # fmt: skip


def mbv2_digits(net: Net, image: Value) -> Value:
    """Add MobileNetV2 with half the channels, for 32 x 32 pixels."""
    x = relu6(net, conv(net, image, 16, 3, 2))
    for expansion, channels, repeats, first in _MOBILE:
        for repeat in range(repeats):
            x = _inverted(net, x, expansion, channels, first if repeat == 0 else 1)
    x = relu6(net, conv(net, x, 640))
    return _dense(net, global_pool(net, x), 10)


def _inverted(net: Net, x: Value, expansion: int, channels: int, stride: int) -> Value:
    wide = x.data.shape[1] * expansion
    y = relu6(net, conv(net, x, wide)) if expansion > 1 else x
    y = relu6(net, conv(net, y, wide, 3, stride, group=wide))
    y = conv(net, y, channels)
    keeps = stride == 1 and x.data.shape[1] == channels
    return net.op("Add", x, y) if keeps else y


def vit_digits(net: Net, image: Value) -> Value:
    """Add a vision transformer: 16 patches of 2 x 2 pixels, three layers, 128 wide."""
    width, patches = 128, 16
    x = conv(net, image, width, 2, 2, pads=0, norm="biased")
    x = net.op("Transpose", net.shaped(x, 0, width, patches), perm=[0, 2, 1])
    x = net.op("Add", x, net.parameter(net.dice.normal(0.0, 0.02, (patches, width))))
    for _ in range(3):
        x = net.op("Add", x, attention(net, norm(net, x), 4))
        x = net.op("Add", x, feed_forward(net, norm(net, x), 2 * width))
    return _dense(net, net.op("ReduceMean", norm(net, x), axes=[1], keepdims=0), 10)


NETWORKS: dict[str, Callable[[Net, Value], Value]] = {
    "cnn_digits": cnn_digits,
    "mbv2_digits": mbv2_digits,
    "vit_digits": vit_digits,
}
_SIDES = {"cnn_digits": 8, "mbv2_digits": 32, "vit_digits": 8}


def _dense(net: Net, x: Value, outputs: int) -> Value:
    weight = net.dice.standard_normal((outputs, x.data.shape[1])) / np.sqrt(x.data.shape[1])
    return dense(net, x, weight, np.zeros(outputs))


def images(name: str) -> dict[str, Array]:
    """Return ``train``, ``calib`` and ``test`` images (N, 1, S, S), and their labels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    side = _SIDES[name]
    x = pixels.reshape(-1, 1, 8, 8).astype(np.float32) / np.float32(16.0)
    x = np.repeat(np.repeat(x, side // 8, axis=2), side // 8, axis=3)
    order = np.random.default_rng(_SEED).permutation(len(x))
    cut = int(len(x) * _TEST) + 1
    test, train = order[:cut], order[cut:]
    return {
        "train": x[train],
        "train labels": labels[train],
        "calib": x[train[:CALIBRATION]],
        "test": x[test],
        "test labels": labels[test].astype(np.int64),
    }


def untrained(name: str) -> onnx.ModelProto:
    """Return a network as training begins with it."""
    net = Net(name, _SEED)
    image = net.input("image", images(name)["train"][:16], "N")
    return net.model({"logits": NETWORKS[name](net, image)}, "N")


def data(name: str) -> dict[str, Array]:
    """Return the evaluation data of a network."""
    parts = images(name)
    return {
        "calib/image": parts["calib"],
        "test/image": parts["test"],
        "test/labels": parts["test labels"],
    }


#: Epochs and learning rate of each.
TRAINING = {"cnn_digits": (60, 2e-3), "mbv2_digits": (60, 2e-3), "vit_digits": (140, 2e-3)}
#: What training found: one array of float16 per parameter.
TRAINED = Path(__file__).parent / "trained"


def make(name: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a trained network and its evaluation data."""
    model = untrained(name)
    with np.load(TRAINED / f"{name}.npz") as found:
        for one in model.graph.initializer:
            if one.name in found:
                array = found[one.name].astype(np.float32)
                one.CopyFrom(numpy_helper.from_array(array, one.name))
    return model, data(name)


def retrain(python: Path) -> None:
    """Train all three anew, with an interpreter that has torch (2.13.0 was used)."""
    for name, (epochs, rate) in TRAINING.items():
        with tempfile.TemporaryDirectory() as folder:
            graph, pixels = Path(folder) / "model.onnx", Path(folder) / "images.npz"
            onnx.save(untrained(name), graph)
            parts = images(name)
            np.savez(pixels, x=parts["train"], y=parts["train labels"])
            target = TRAINED / f"{name}.npz"
            command = [str(python), "-m", "nine.training", str(graph), str(pixels), str(target)]
            place = Path(__file__).parents[1]
            subprocess.run([*command, str(epochs), str(rate)], cwd=place, check=True)
