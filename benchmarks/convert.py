"""What converting brings: our winner beside everybody else's, in the same run.

    python benchmarks/convert.py [--models a,b] [--quick] [--threads 1,2] [--no-peers] [--resume]
                                 [--costs] [--json FILE]

The models are nine networks that the benchmark builds, and those of the measuring corpus when it
lies beside the checkout (``EDGEML_CORPUS``). The peers are onnxruntime (fp32; static and dynamic
quantisation by default; U8S8 per channel), OpenVINO by default, NNCF on OpenVINO and Olive's
automatic flow, in an environment of their own below ``build/bench``. Everybody makes files in
processes of their own; then all files are timed in the same rounds, and judged on the same
samples by the same metric. Prints a table, then one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import msgspec
import nine
from contest import costs, figures, products
from contest.compare import Table, compare
from contest.entry import enter
from contest.figures import Told
from rivals import environment

from edgeml.metrics import get_metric
from edgeml.runtime.facts import device_facts, host_line

ROOT = Path(__file__).resolve().parents[1]
CORPUS = Path(os.environ.get("EDGEML_CORPUS", ROOT.parent / "shared" / "corpus"))
WORK = ROOT / "build" / "bench"
MAX_DROP = 0.01
ROUNDS, QUICK_ROUNDS = 60, 20


def models(chosen: str) -> dict[str, tuple[Path, Path | None]]:
    """Return name -> (model, data) of what was chosen; everything when nothing was."""
    data = {path.stem: path for path in sorted((CORPUS / "eval").glob("*.npz"))}
    corpus = {
        name: (path, npz)
        for name, npz in data.items()
        if (path := CORPUS / "models" / f"{name}.onnx").is_file()
    }
    silero = CORPUS / "models" / "silero_vad.onnx"
    if silero.is_file():
        corpus["silero_vad"] = (silero, None)
    names = chosen.split(",") if chosen else [*nine.NAMES, *corpus]
    return {n: nine.make(n, WORK / "models") if n in nine.NAMES else corpus[n] for n in names}


def contest(name: str, paths: tuple[Path, Path | None], args: argparse.Namespace) -> Told:
    """Run one model through everything."""
    folder = WORK / "convert" / name
    entry = enter(name, *paths, folder)
    lost = dict(args.missing)
    made = products.peers(entry, folder / "peers", args.python, lost)
    tables: list[Table] = []
    metric = ""
    for threads in args.threads:
        profiles = [products.PROFILE, str(products.alone(WORK / "convert"))]
        extra = ["--effort", "quick" if args.quick else "normal", "--max-drop", str(MAX_DROP)]
        done = products.convert(entry, folder, threads, profiles, extra)
        score = done.result.results[0].baseline.metric
        metric = score.name if score else "agreement"
        (folder / f"candidates-{threads}.json").write_bytes(msgspec.json.encode(done.result))
        everybody = [*made, *products.ours(done, folder, threads)]
        rounds = QUICK_ROUNDS if args.quick else ROUNDS
        table = compare(entry, everybody, get_metric(metric), MAX_DROP, threads, rounds, lost)
        tables.append(table)
    return Told(name, metric, tuple(tables))


def main() -> int:
    """Run it."""
    args = _arguments()
    args.python, args.missing = None, {}
    if args.peers:
        args.python, missing = environment.ensure(WORK / "peers")
        needs = environment.NEEDS.items()
        pins = environment.PINS
        args.missing = {way: missing[pins[i]] for way, i in needs if pins[i] in missing}
    found: list[Told] = []
    for name, paths in models(args.models).items():
        kept = WORK / "convert" / f"{name}.json"
        if args.resume and kept.is_file():
            found.append(msgspec.json.decode(kept.read_bytes(), type=Told))
            continue
        print(f"{name} ...", file=sys.stderr)
        found.append(contest(name, paths, args))
        kept.write_bytes(msgspec.json.encode(found[-1]))
        print("\n".join(figures.lines(found[-1:], ())), file=sys.stderr)
    print("\n".join(figures.lines(found, nine.NAMES)))
    summary = {"host": host_line(device_facts()), "models": msgspec.to_builtins(found)}
    if args.costs:
        summary["costs"] = costs.measure(nine.make("mobilenetv2", WORK / "models"), WORK)
        print("\n".join(costs.lines(summary["costs"])))
    text = json.dumps(summary, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="", help="names, with commas; all when not given")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, quick conversions")
    parser.add_argument("--threads", default="1,2", type=lambda t: [int(n) for n in t.split(",")])
    parser.add_argument("--no-peers", dest="peers", action="store_false",
                        help="leave out those that need an environment of their own")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="keep models that are finished")
    parser.add_argument("--costs", action="store_true", help="what converting MobileNetV2 costs")
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
