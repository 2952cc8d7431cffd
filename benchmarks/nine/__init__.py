"""Nine networks that stand for what people convert, built here: no download is needed.

Six large ones of chance (their last layer is fitted to real labels, so they have an accuracy) and
three small ones that are trained. ``make`` writes a network and its evaluation data.
"""

from __future__ import annotations

from pathlib import Path

NAMES = (
    "resnet50", "mobilenetv2", "squeezenet", "inception_v2", "shufflenet", "bert6",
    "cnn_digits", "mbv2_digits", "vit_digits",
)  # fmt: skip


def make(name: str, folder: Path) -> tuple[Path, Path]:
    """Return the files of a network and of its data; made at the first call.

    Args:
        name: One of NAMES.
        folder: Where they are kept.
    """
    model, data = folder / f"{name}.onnx", folder / f"{name}.npz"
    if not (model.is_file() and data.is_file()):
        _make(name, model, data)
    return model, data


def _make(name: str, model: Path, data: Path) -> None:
    import numpy as np
    import onnx

    from . import bert, digits, photos

    if name in photos.BODIES:
        network, arrays = photos.make(name)
    elif name == "bert6":
        network, arrays = bert.make()
    else:
        network, arrays = digits.make(name)
    model.parent.mkdir(parents=True, exist_ok=True)
    np.savez(data, **arrays)
    onnx.save(network, model.with_suffix(".part"))
    model.with_suffix(".part").rename(model)
