"""What became of each layer of the source in a winner: for the report."""

from __future__ import annotations

import logging

import msgspec

from edgeml.digest import sha256_file
from edgeml_converters.cache import key_of
from edgeml_converters.candidates import Bench, Trial
from edgeml_converters.jobs import JobError
from edgeml_converters.results import Layer
from edgeml_converters.worker import LayersJob

logger = logging.getLogger(__name__)

_RUNTIMES = frozenset({"onnxruntime", "openvino", "litert"})
_INTEGER = frozenset({"int8", "mixed"})


def winner_layers(trial: Trial, bench: Bench, given: bool) -> tuple[Layer, ...]:
    """Return the layers of a winner that computes in 8 bits; nothing where they cannot be told.

    The same measurements give the same layers: they are kept beside them.

    Args:
        trial: The winner.
        bench: Of its search.
        given: Whether the data are real.
    """
    built, folder = trial.built, trial.folder
    known = trial.runtime in _RUNTIMES and trial.recipe.precision in _INTEGER
    if (
        built is None
        or folder is None
        or not (given and known and built.entry.endswith((".onnx", ".tflite")))
    ):
        return ()
    file = folder / built.entry
    options = trial.recipe.options[trial.runtime]
    job = LayersJob(
        str(bench.model),
        str(file),
        trial.runtime,
        bench.threads,
        options,
        bench.inputs,
        str(bench.calibration),
        trial.recipe.passes,
        bench.seed,
    )
    rounds = trial.measured.rounds_ms if trial.measured else ()
    bare = msgspec.structs.replace(job, model="", file="", calibration="")
    digests = [sha256_file(path) for path in (bench.model, file, bench.calibration)]
    key = key_of("layers", bench.context, digests, bare, rounds)
    if (kept := bench.cache.take(key, bench.work)) is not None:
        return msgspec.msgpack.decode(kept, type=tuple[Layer, ...])
    try:
        found = bench.pool.run(job, tuple[Layer, ...], "build")
    except JobError as error:
        logger.warning("the layers of %s cannot be told: %s", trial.id, error)
        return ()
    bench.cache.keep(key, msgspec.msgpack.encode(found))
    return found
