"""ResNet-50, MobileNetV2 and SqueezeNet 1.1, by their papers."""

from __future__ import annotations

from .builder import Net, Value
from .layers import BRANCH, conv, max_pool, relu, relu6


def resnet50(net: Net, x: Value) -> Value:
    """Add ResNet-50 (He et al. 2016, table 1) up to its last feature map.

    As in version 1.5, the stride lies on the 3x3 convolution.
    """
    x = max_pool(net, relu(net, conv(net, x, 64, 7, 2)))
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            x = _bottleneck(net, x, 64 << stage, stride)
    return x


def _bottleneck(net: Net, x: Value, width: int, stride: int) -> Value:
    y = relu(net, conv(net, x, width))
    y = relu(net, conv(net, y, width, 3, stride))
    y = conv(net, y, width * 4, gain=BRANCH)
    if x.data.shape[1] != width * 4:
        x = conv(net, x, width * 4, 1, stride)
    return relu(net, net.op("Add", y, x))


#: Table 2 of Sandler et al. 2018: expansion, channels, repeats, stride.
_MOBILE = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
    (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def mobilenet_v2(net: Net, x: Value) -> Value:
    """Add MobileNetV2 1.0 up to its last feature map; normalisation is folded, as exports do."""
    x = relu6(net, conv(net, x, 32, 3, 2, norm="folded"))
    for expansion, channels, repeats, first in _MOBILE:
        for repeat in range(repeats):
            x = _inverted(net, x, expansion, channels, first if repeat == 0 else 1)
    return relu6(net, conv(net, x, 1280, norm="folded"))


def _inverted(net: Net, x: Value, expansion: int, channels: int, stride: int) -> Value:
    wide = x.data.shape[1] * expansion
    y = relu6(net, conv(net, x, wide, norm="folded")) if expansion > 1 else x
    y = relu6(net, conv(net, y, wide, 3, stride, group=wide, norm="folded"))
    keeps = stride == 1 and x.data.shape[1] == channels
    y = conv(net, y, channels, norm="folded", gain=BRANCH if keeps else 1.0)
    return net.op("Add", x, y) if keeps else y


def squeezenet(net: Net, x: Value) -> Value:
    """Add SqueezeNet 1.1 (Iandola et al. 2016) up to its last feature map."""
    x = max_pool(net, relu(net, conv(net, x, 64, 3, 2, pads=0, norm="folded")), pads=0)
    for number, width in enumerate((16, 16, 32, 32, 48, 48, 64, 64)):
        if number in (2, 4):
            x = max_pool(net, x, pads=0)
        x = relu(net, conv(net, x, width, norm="folded"))
        sides = [relu(net, conv(net, x, 4 * width, kernel, norm="folded")) for kernel in (1, 3)]
        x = net.op("Concat", *sides, axis=1)
    return x
