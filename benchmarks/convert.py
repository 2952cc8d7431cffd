"""What converting brings: our winner beside what others do by default, in the same run.

    python benchmarks/convert.py [NAME=MODEL.onnx:DATA.npz ...] [--json FILE]

Without models, those of the measuring corpus when it lies beside the checkout, else the example
of the demo. Every candidate of ``edgeml convert`` is there, and one more: the default of
onnxruntime's own ``quantize_static``. Prints a table, then one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import onnx

from edgeml.bundle import Bundle
from edgeml.errors import ModelError
from edgeml.runtime import ProgramOptions, get_runtime
from edgeml.runtime.bind import open_variant
from edgeml.runtime.facts import device_facts, host_line
from edgeml.runtime.measure import interleave, speedup
from edgeml_converters.api import convert
from edgeml_converters.data import EvaluationData
from edgeml_converters.source import Source

ROOT = Path(__file__).resolve().parents[1]
CORPUS = Path(os.environ.get("EDGEML_CORPUS", ROOT.parent / "shared" / "corpus"))
NAMES = ("ic_resnet8_fp32", "kws_dscnn_fp32", "digits_cnn", "sst2_transformer")
ROUNDS = 60


def models(given: list[str]) -> dict[str, tuple[Path, Path]]:
    """Return name -> (model, data)."""
    if given:
        pairs = [word.partition("=") for word in given]
        split = {name: rest.rpartition(":") for name, _, rest in pairs}
        return {name: (Path(model), Path(data)) for name, (model, _, data) in split.items()}
    if CORPUS.is_dir():
        return {n: (CORPUS / "models" / f"{n}.onnx", CORPUS / "eval" / f"{n}.npz") for n in NAMES}
    demo = ROOT / "src" / "edgeml" / "cli" / "demo" / "data"
    return {"digits": (demo / "digits-1.0.0.onnx", demo / "digits.npz")}


class Rows:
    """Calibration rows, as onnxruntime's quantiser reads them."""

    def __init__(self, calibration: dict[str, np.ndarray]) -> None:
        """Take input -> array, samples on axis 0."""
        runs = len(next(iter(calibration.values())))
        self._feeds = iter([{k: a[i : i + 1] for k, a in calibration.items()} for i in range(runs)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next feed; None at the end."""
        return next(self._feeds, None)


def peers(
    source: Source, data: EvaluationData, folder: Path, lost: dict[str, str]
) -> dict[str, Path]:
    """Return what onnxruntime's quantisers make by their defaults; what fails goes to ``lost``."""
    from onnxruntime import quantization

    plain, static, dynamic = (folder / f"{n}.onnx" for n in ("plain", "static", "dynamic"))
    onnx.save(source.model, plain)
    ways: dict[str, tuple[Path, Callable[[], object]]] = {
        "ort static, default": (
            static,
            lambda: quantization.quantize_static(str(plain), str(static), Rows(data.calibration)),
        ),
        "ort dynamic, default": (
            dynamic,
            lambda: quantization.quantize_dynamic(str(plain), str(dynamic)),
        ),
    }
    made = {"ort fp32": plain}
    for way, (path, make) in ways.items():
        try:
            make()
            made[way] = path
        except Exception as error:  # whatever a peer raises is its result
            lost[way] = " ".join(str(error).split())[:200]
    return made


def measure(name: str, model: Path, data_path: Path) -> dict[str, object]:
    """Convert a model, and measure the winner beside the peers."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        source = Source.open(model)
        data = EvaluationData.open(data_path, source.inputs, 0)
        result = convert(model, "cpu-x86-64", data=data_path, out=folder / "made.edgeml")
        bundle = Bundle.open(folder / "made.edgeml")
        unpacked = bundle.unpack(folder / "unpacked")
        manifest = bundle.manifest
        feed = {k: a[:1] for k, a in data.test.items()}
        runs: dict[str, Callable[[], object]] = {}
        lost: dict[str, str] = {}
        for peer, path in peers(source, data, folder, lost).items():
            try:
                program = get_runtime("onnxruntime").prepare(path, ProgramOptions(threads=1))
            except ModelError as error:
                lost[peer] = error.message
                continue
            session = stack.enter_context(closing(program.session()))
            runs[peer] = lambda session=session: session.run(feed)
        winner = manifest.variants[0]
        program = open_variant(unpacked, winner, manifest.inputs, manifest.outputs)
        session = stack.enter_context(closing(program.session()))
        runs["edgeml"] = lambda: session.run(feed)
        timings = interleave(runs, rounds=ROUNDS)
        told = result.results[0]
        rows = {}
        for key, timing in timings.items():
            ratio = speedup(timings["ort fp32"], timing)
            rows[key] = {"p50_ms": timing.p50 * 1e3, "times": ratio.value,
                         "interval": [ratio.low, ratio.high]}  # fmt: skip
        return {"model": name, "winner": winner.id, "reason": told.reason, "rows": rows,
                "drop": told.winner.drop.value if told.winner.drop else None,
                "lost": lost, "seconds": told.seconds}  # fmt: skip


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="NAME=MODEL:DATA")
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    found = [measure(name, *paths) for name, paths in models(args.models).items()]
    print(f"{'model':18}{'way':22}{'p50 ms':>10}{'times':>8}  interval")
    for one in found:
        for way, row in one["rows"].items():
            low, high = row["interval"]
            times = f"{row['times']:8.2f}  [{low:.2f}, {high:.2f}]"
            note = f"  {one['winner']}" if way == "edgeml" else ""
            print(f"{one['model']:18}{way:22}{row['p50_ms']:10.4f}{times}{note}")
        for way, reason in one["lost"].items():
            print(f"{one['model']:18}{way:22}  failed: {reason[:70]}")
    best = [one["rows"]["edgeml"]["times"] for one in found]
    summary = {
        "host": host_line(device_facts()),
        "models": found,
        "geomean": float(np.exp(np.mean(np.log(best)))),
    }
    text = json.dumps(summary, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
