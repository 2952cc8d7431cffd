"""Makes the products: the peers' and ours, each in processes of its own."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import msgspec
from rivals import environment, process

from edgeml.bundle import Bundle
from edgeml.digest import sha256_file
from edgeml_converters.results import ConvertResult

from .entry import Entry, Product

BUILD = Path(__file__).resolve().parents[1] / "rivals" / "build.py"
PROFILES = Path(__file__).resolve().parents[2] / "hardware_profiles"
PROFILE, ALONE = "cpu-x86-64", "cpu-x86-64-onnxruntime"
#: What a peer may take, and what keeps it from asking the network.
LIMIT_S = 1200.0
_QUIET = {"OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "CI": "true"}


def peers(entry: Entry, folder: Path, python: Path | None, lost: dict[str, str]) -> list[Product]:
    """Return the products of all peers; what fails goes to ``lost``, with its reason.

    Args:
        entry: The model.
        folder: Where they are kept: the same model is not converted twice.
        python: Of the peers' environment; None leaves out what needs it.
        lost: Way -> reason.
    """
    made = [Product("ort fp32", "onnxruntime", entry.plain)]
    made.append(Product("openvino", "openvino", entry.plain, {"INFERENCE_PRECISION_HINT": _own()}))
    key = sha256_file(entry.plain) + sha256_file(entry.calibration) + str(environment.PINS)
    for way in environment.NEEDS if python is not None else ():
        place = folder / re.sub(r"\W+", "-", way)
        record = place / "record.json"
        known = json.loads(record.read_text()) if record.is_file() else {}
        if known.get("key") != key:
            place.mkdir(parents=True, exist_ok=True)
            known = {"key": key, **_build(way, entry, place, python)}
            record.write_text(json.dumps(known))
        if known["error"]:
            lost[way] = known["error"]
            continue
        path = Path(known["path"])
        runtime = "openvino" if path.suffix == ".xml" else "onnxruntime"
        options = {"INFERENCE_PRECISION_HINT": _own()} if runtime == "openvino" else {}
        made.append(Product(way, runtime, path, options, known["seconds"], known["peak"]))
    return made


def _own() -> str:
    """Return the precision that OpenVINO chooses here when nobody asks for one."""
    import openvino

    kind = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
    return str(kind.get_type_name() if hasattr(kind, "get_type_name") else kind)


def _build(way: str, entry: Entry, place: Path, python: Path | None) -> dict[str, object]:
    command = [str(python), str(BUILD), way, str(entry.plain), str(entry.calibration), str(place)]
    done = process.run(command, LIMIT_S, {**_QUIET, "HOME": str(place)})
    error = "" if done.code == 0 else (done.error or f"exit {done.code}")
    path = done.out.strip().splitlines()[-1] if done.out.strip() else ""
    if not error and not Path(path).is_file():
        error = "it ended well, but there is no product"
    return {"error": error, "path": path, "seconds": done.seconds, "peak": done.peak_bytes}


def alone(folder: Path) -> Path:
    """Write the profile of a machine that has only onnxruntime; return its file."""
    text = (PROFILES / f"{PROFILE}.toml").read_text()
    text = text.replace(f'name = "{PROFILE}"', f'name = "{ALONE}"')
    text = re.sub(r"(?m)^runtimes = .*$", 'runtimes = ["onnxruntime"]', text)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{ALONE}.toml"
    path.write_text(text)
    return path


class Conversion(msgspec.Struct, frozen=True):
    """What ``edgeml convert`` printed, and what it took.

    Attributes:
        result: As printed.
        seconds: Wall time of the whole command.
        cpu: Processor time of all its processes.
        peak_bytes: Memory of the largest of them.
    """

    result: ConvertResult
    seconds: float
    cpu: float
    peak_bytes: int


def convert(
    entry: Entry, folder: Path, threads: int, profiles: list[str], extra: list[str]
) -> Conversion:
    """Run the command on a model.

    Raises:
        RuntimeError: It failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bundle = folder / f"threads-{threads}.edgeml"
    command = [sys.executable, "-m", "edgeml.cli", "convert", str(entry.model), "--json",
               "--threads", str(threads), "-o", str(bundle), *extra]  # fmt: skip
    for profile in profiles:
        command += ["--profile", profile]
    if entry.data is not None:
        command += ["--data", str(entry.data)]
    done = process.run(command, LIMIT_S)
    if done.code:
        raise RuntimeError(
            f"edgeml convert {entry.name}: exit {done.code}: {done.error or done.out}"
        )
    result = msgspec.json.decode(done.out, type=ConvertResult)
    return Conversion(result, done.seconds, done.cpu, done.peak_bytes)


def ours(conversion: Conversion, folder: Path, threads: int) -> list[Product]:
    """Return the winners of a conversion, from the bundle that it made."""
    bundle = Bundle.open(Path(conversion.result.bundle))
    place = folder / f"unpacked-{threads}"
    shutil.rmtree(place, ignore_errors=True)
    unpacked = bundle.unpack(place)
    products = []
    for result in conversion.result.results:
        name = f"{result.profile}.{result.winner.id}"
        winner = next(v for v in bundle.manifest.variants if v.id == name)
        way = "edgeml" if result.profile == PROFILE else "edgeml, onnxruntime alone"
        products.append(
            Product(
                way,
                winner.runtime,
                unpacked,
                seconds=result.seconds,
                peak_bytes=conversion.peak_bytes,
                variant=(winner, bundle.manifest),
                recipe=result.winner.id,
            )
        )
    return products
