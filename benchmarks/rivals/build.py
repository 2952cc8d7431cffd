"""One peer makes its file: run in the environment of the peers.

    python build.py WAY MODEL.onnx CALIBRATION.npz FOLDER

The calibration file holds, for each input, ``[runs, *shape of one run]``. The last line printed is
the path of the product.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Feed = dict[str, np.ndarray]


def feeds(path: Path) -> list[Feed]:
    """Return the feed of each run."""
    with np.load(path) as archive:
        arrays = {key: archive[key] for key in archive.files}
    runs = len(next(iter(arrays.values())))
    return [{key: array[i] for key, array in arrays.items()} for i in range(runs)]


class Rows:
    """Calibration rows, as onnxruntime's quantiser reads them."""

    def __init__(self, path: Path) -> None:
        """Take the calibration file."""
        self._feeds = iter(feeds(path))

    def get_next(self) -> Feed | None:
        """Return the next feed; None at the end."""
        return next(self._feeds, None)


def ort_static(model: Path, calibration: Path, folder: Path) -> Path:
    """Quantise as ``quantize_static`` does by default."""
    from onnxruntime.quantization import quantize_static

    quantize_static(str(model), str(folder / "model.onnx"), Rows(calibration))
    return folder / "model.onnx"


def ort_u8s8(model: Path, calibration: Path, folder: Path) -> Path:
    """Quantise as its documentation advises for x86: prepared, U8S8, a scale per channel."""
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    target = folder / "model.onnx"
    quantize_static(str(prepared), str(target), Rows(calibration), per_channel=True, **kinds)
    prepared.unlink()
    return target


def ort_dynamic(model: Path, calibration: Path, folder: Path) -> Path:
    """Quantise as ``quantize_dynamic`` does by default."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(model), str(folder / "model.onnx"))
    return folder / "model.onnx"


def nncf(model: Path, calibration: Path, folder: Path) -> Path:
    """Quantise as ``nncf.quantize`` does by default."""
    import nncf as library
    import openvino

    core = openvino.Core()
    dataset = library.Dataset(feeds(calibration))
    made = library.quantize(core.read_model(model), dataset)
    openvino.save_model(made, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def olive(model: Path, calibration: Path, folder: Path) -> Path:
    """Run Olive's automatic flow for a processor and 8 bits; it takes no calibration data."""
    command = [str(Path(sys.executable).parent / "olive"), "auto-opt", "-m", str(model),
               "-o", str(folder), "--device", "cpu", "--provider", "CPUExecutionProvider",
               "--precision", "int8"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(folder.rglob("*.onnx"))
    if done.returncode or not found:
        told = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"exit {done.returncode}: {told[-1] if told else 'it said nothing'}")
    return found[0]


WAYS: dict[str, Callable[[Path, Path, Path], Path]] = {
    "ort static": ort_static,
    "ort U8S8": ort_u8s8,
    "ort dynamic": ort_dynamic,
    "nncf on openvino": nncf,
    "olive": olive,
}


def main(arguments: list[str]) -> Any:
    """Run it."""
    way, *paths = arguments
    model, calibration, folder = map(Path, paths)
    print(WAYS[way](model, calibration, folder))


if __name__ == "__main__":
    main(sys.argv[1:])
