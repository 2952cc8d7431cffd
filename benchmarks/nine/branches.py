"""Inception with batch normalisation ("v2") and ShuffleNet, by their papers."""

from __future__ import annotations

from .builder import Net, Value
from .layers import BRANCH, average_pool, conv, max_pool, relu

#: Ioffe and Szegedy 2015, figure 5: 1x1; 3x3 reduce, 3x3; double 3x3 reduce, double 3x3; pool
#: and its projection. A block without a 1x1 branch has stride 2 and passes its pool through.
_INCEPTION = (
    (64, 64, 64, 64, 96, "avg", 32), (64, 64, 96, 64, 96, "avg", 64),
    (0, 128, 160, 64, 96, "max", 0), (224, 64, 96, 96, 128, "avg", 128),
    (192, 96, 128, 96, 128, "avg", 128), (160, 128, 160, 128, 160, "avg", 128),
    (96, 128, 192, 160, 192, "avg", 128), (0, 128, 192, 192, 256, "max", 0),
    (352, 192, 320, 160, 224, "avg", 128), (352, 192, 320, 192, 224, "max", 128),
)  # fmt: skip


def inception_v2(net: Net, x: Value) -> Value:
    """Add BN-Inception up to its last feature map."""
    x = max_pool(net, relu(net, conv(net, x, 64, 7, 2)))
    x = relu(net, conv(net, relu(net, conv(net, x, 64)), 192, 3))
    x = max_pool(net, x)
    for block in _INCEPTION:
        x = _inception(net, x, block)
    return x


def _inception(net: Net, x: Value, block: tuple[int, int, int, int, int, str, int]) -> Value:
    one, reduce3, three, reduce5, five, pool, project = block
    stride = 1 if one else 2
    ends = [relu(net, conv(net, x, one))] if one else []
    ends.append(relu(net, conv(net, relu(net, conv(net, x, reduce3)), three, 3, stride)))
    y = relu(net, conv(net, x, reduce5))
    y = relu(net, conv(net, y, five, 3))
    ends.append(relu(net, conv(net, y, five, 3, stride)))
    y = average_pool(net, x, stride) if pool == "avg" else max_pool(net, x, stride=stride)
    ends.append(relu(net, conv(net, y, project)) if project else y)
    return net.op("Concat", *ends, axis=1)


#: Groups, and table 1 of Zhang et al. 2018 for them: channels of a stage, and its blocks.
_GROUPS = 4
_SHUFFLE = ((136, 4), (272, 8), (544, 4))


def shufflenet(net: Net, x: Value) -> Value:
    """Add ShuffleNet (half the channels, four groups) up to its last feature map."""
    x = max_pool(net, relu(net, conv(net, x, 24, 3, 2)))
    for channels, blocks in _SHUFFLE:
        for block in range(blocks):
            x = _shuffled(net, x, channels, 2 if block == 0 else 1)
    return x


def _shuffled(net: Net, x: Value, channels: int, stride: int) -> Value:
    inside = channels if stride == 1 else channels - x.data.shape[1]
    y = relu(net, conv(net, x, inside, group=_GROUPS))
    side = y.data.shape[-1]
    y = net.shaped(y, 0, _GROUPS, inside // _GROUPS, side, side)
    y = net.shaped(net.op("Transpose", y, perm=[0, 2, 1, 3, 4]), 0, inside, side, side)
    y = conv(net, y, inside, 3, stride, group=inside)
    y = conv(net, y, inside, group=_GROUPS, gain=BRANCH if stride == 1 else 1.0)
    if stride == 1:
        return relu(net, net.op("Add", x, y))
    return relu(net, net.op("Concat", y, average_pool(net, x, stride), axis=1))
