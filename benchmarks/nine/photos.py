"""The five image networks of chance, each with a head that was fitted to the photographs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from . import branches, chains, head, images
from .builder import Array, Net, Value, session_of
from .layers import dense, global_pool, relu

#: Images whose statistics normalise the layers.
STATISTICS = 8
BODIES: dict[str, Callable[[Net, Value], Value]] = {
    "resnet50": chains.resnet50,
    "mobilenetv2": chains.mobilenet_v2,
    "squeezenet": chains.squeezenet,
    "inception_v2": branches.inception_v2,
    "shufflenet": branches.shufflenet,
}
#: Those that are right on less than 0.99 of the images.
MANY = ("mobilenetv2",)
_SEEDS = {name: 100 + number for number, name in enumerate(BODIES)}
_CLASSES = 2 * images.PLACES


def make(name: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a network and its evaluation data."""
    parts = images.photos()
    train = parts["train"]
    net, last = _body(name, train, "N")
    pooled = global_pool(net, last)
    weight, bias = head.fit(_features(net, pooled, train), train.labels, _CLASSES)
    wide = head.widen(weight, bias, _SEEDS[name])
    net, last = _body(name, train)
    finish = _convolved if name == "squeezenet" else _pooled
    model = net.model({"logits": finish(net, last, *wide)})
    tests = [parts["test"], *([parts["more"]] if name in MANY else [])]
    data: dict[str, Array] = {
        "calib/image": parts["calib"].pixels,
        "test/image": np.concatenate([part.pixels for part in tests]),
        "test/labels": np.concatenate([part.labels for part in tests]),
        "scale/image": np.float32(images.SCALE),
        "zero_point/image": np.int32(images.ZERO),
    }
    return model, data


def _body(name: str, train: images.Images, batch: int | str = 1) -> tuple[Net, Value]:
    """Return the network up to its last feature map; the same each time."""
    net = Net(name, _SEEDS[name])
    image = net.input("image", train.floats(slice(STATISTICS)), batch)
    return net, BODIES[name](net, image)


def _features(net: Net, pooled: Value, train: images.Images) -> Array:
    """Return the pooled features of all training images."""
    run = session_of(net.model({"features": pooled}, batch="N"))
    found = [
        run({"image": train.floats(slice(start, start + STATISTICS))})
        for start in range(0, len(train.labels), STATISTICS)
    ]
    features: Array = np.concatenate(found)
    return features


def _pooled(net: Net, last: Value, weight: Array, bias: Array) -> Value:
    return dense(net, global_pool(net, last), weight, bias)


def _convolved(net: Net, last: Value, weight: Array, bias: Array) -> Value:
    """Add a classifier that is a convolution, a ReLU and the average over all positions.

    The bias is raised, alike for all classes, so far that the ReLU cuts almost nothing: the
    average then is what the fitted head gives.
    """
    spread = float(np.einsum("oc,nchw->nohw", weight[:_CLASSES], last.data).std())
    weights = net.parameter(weight[:, :, None, None]), net.parameter(bias + 3.0 * spread)
    y = net.op("Conv", last, *weights, kernel_shape=[1, 1])
    return global_pool(net, relu(net, y))
