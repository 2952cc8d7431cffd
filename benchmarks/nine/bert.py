"""Six layers of BERT (Devlin et al. 2019), 384 wide, on token sequences of 128 about ten topics."""

from __future__ import annotations

import numpy as np
import onnx

from . import head
from .builder import Array, Net, Value, session_of
from .layers import dense
from .transformer import attention, feed_forward, linear, norm

LAYERS, WIDTH, HEADS, INNER, LENGTH, WORDS = 6, 384, 12, 1536, 128, 7000
TOPICS, TRAIN, CALIBRATION, TEST, STATISTICS = 10, 800, 64, 400, 8
#: Share of a text's words that come from its topic, and words that a topic has of its own.
_ON_TOPIC, _OWN = 0.5, 40
#: How sharply the attention looks.
_SHARP = 1.5
_SEED = 106
Texts = dict[str, Array]


def texts() -> dict[str, Texts]:
    """Return the texts ``train``, ``calib`` and ``test``: ids, mask and labels.

    Words follow Zipf's law; every topic has some words of its own. Texts differ in length.
    """
    dice = np.random.default_rng(21)
    zipf = 1.0 / np.arange(1, WORDS)
    zipf /= zipf.sum()
    own = [dice.choice(np.arange(100, WORDS), _OWN, replace=False) for _ in range(TOPICS)]
    found = {}
    for part, size in (("train", TRAIN), ("calib", CALIBRATION), ("test", TEST)):
        labels = dice.permutation(np.arange(size) % TOPICS)
        ids = dice.choice(np.arange(1, WORDS), (size, LENGTH), p=zipf)
        topical = np.stack([dice.choice(own[label], LENGTH) for label in labels])
        ids = np.where(dice.random(ids.shape) < _ON_TOPIC, topical, ids)
        mask = np.arange(LENGTH) < dice.integers(LENGTH // 2, LENGTH + 1, (size, 1))
        found[part] = {
            "input_ids": np.where(mask, ids, 0).astype(np.int64),
            "attention_mask": mask.astype(np.int64),
            "labels": labels.astype(np.int64),
        }
    return found


def make() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return the network and its evaluation data."""
    parts = texts()
    train = parts["train"]
    net, pooled = _body(train, "N")
    run = session_of(net.model({"features": pooled}, "N"))
    found = [run(_inputs(train, slice(i, i + 8))) for i in range(0, TRAIN, 8)]
    weight, bias = head.fit(np.concatenate(found), train["labels"], TOPICS)
    net, pooled = _body(train, 1)
    model = net.model({"logits": dense(net, pooled, weight, bias)})
    data = {f"{part}/{k}": v for part in ("calib", "test") for k, v in _inputs(parts[part]).items()}
    return model, {**data, "test/labels": parts["test"]["labels"]}


def _inputs(part: Texts, rows: slice = slice(None)) -> Texts:
    return {key: part[key][rows] for key in ("input_ids", "attention_mask")}


def _body(train: Texts, batch: int | str) -> tuple[Net, Value]:
    """Return the network up to the average of its last states, after BERT's pooler."""
    net = Net("bert6", _SEED)
    some = _inputs(train, slice(STATISTICS))
    ids = net.input("input_ids", some["input_ids"], batch)
    mask = net.input("attention_mask", some["attention_mask"], batch)
    words = net.parameter(net.dice.standard_normal((WORDS, WIDTH)) * 0.05)
    places = net.parameter(net.dice.standard_normal((LENGTH, WIDTH)) * 0.02)
    x = norm(net, net.op("Add", net.op("Gather", words, ids, axis=0), places))
    seen = net.op("Cast", net.shaped(mask, 0, 1, 1, LENGTH), to=onnx.TensorProto.FLOAT)
    hidden = net.op("Sub", net.number(1.0), seen)
    bias = net.op("Mul", hidden, net.number(-10000.0))
    for _ in range(LAYERS):
        x = norm(net, net.op("Add", attention(net, x, HEADS, bias, _SHARP), x))
        x = norm(net, net.op("Add", feed_forward(net, x, INNER), x))
    mean = net.op("ReduceMean", x, axes=[1], keepdims=0)
    return net, net.op("Tanh", linear(net, mean, WIDTH, 0.5))
