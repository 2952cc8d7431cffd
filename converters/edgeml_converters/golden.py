"""Golden samples: a few inputs, what each variant gave for them here, and how near is near enough.

**Which.** Samples of as many classes as there are, taken in turn: a fault that shows in one class
only is still met.

**How near.** A device runs the same file, perhaps on another processor, with other rounding and
another order of sums. It may differ from what was recorded here by less than quantisation itself
changed the model: the tolerance is the QUANTILE of the error of this variant against the source
over all test samples, relative to the largest value of the output, and never below what the
precision itself costs (FLOORS). A device that is further off computes something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeml.manifest import Tolerance
from edgeml.tensors import Array, TensorSpec
from edgeml_converters.samples import Stacked

#: How many golden samples a bundle holds, where the batch is variable.
GOLDEN_SAMPLES = 8
#: Quantile of the errors that counts as the error of a variant.
QUANTILE = 0.999
#: Precision -> the least relative tolerance: other orders of summation (fp32); 8 bits of
#: mantissa through some layers (bf16); a few steps of 1/255 of a tensor's range (int8).
FLOORS = {"fp32": 1e-3, "fp16": 0.01, "bf16": 0.03, "int8": 0.03}
#: No tolerance is wider than this share of the output's largest value.
CEILING = 0.25
#: Share of the elements that must be within the tolerance; one of many may sit on an edge.
SHARE = {"fp32": 1.0, "fp16": 0.98, "bf16": 0.98, "int8": 0.98}


def pick(classes: Array | None, runs: int, most: int = GOLDEN_SAMPLES) -> list[int]:
    """Return the positions of the golden samples.

    Args:
        classes: Class of each sample, by label or by the source's own answer; None for none.
        runs: Number of samples.
        most: Largest number to take.
    """
    if classes is None or len(classes) != runs:
        return list(range(min(most, runs)))
    queues = {int(c): list(np.flatnonzero(classes == c)) for c in np.unique(classes)}
    taken: list[int] = []
    while len(taken) < min(most, runs):
        for queue in queues.values():
            if queue and len(taken) < most:
                taken.append(int(queue.pop(0)))
    return sorted(taken)


def classes_of(labels: Array | None, outputs: Mapping[str, Array], runs: int) -> Array | None:
    """Return a class per sample: its label, or the largest value of the first wide output."""
    if (
        labels is not None
        and labels.ndim == 1
        and labels.dtype.kind in "iu"
        and len(labels) >= runs
    ):
        return labels[:runs]
    for output in outputs.values():
        if output.ndim == 2 and output.shape[1] > 1 and len(output) == runs:
            return np.asarray(np.argmax(output, axis=1))
    return None


def golden_feed(
    samples: Stacked, inputs: Sequence[TensorSpec], chosen: Sequence[int]
) -> dict[str, Array]:
    """Return the one feed that holds the golden samples.

    With a batch on axis 0 of every input, all chosen samples make one batch; else the model takes
    one sample in a run, and the first is the only one.
    """
    if all(spec.batched for spec in inputs):
        return {name: np.concatenate([a[i] for i in chosen]) for name, a in samples.items()}
    return {name: np.asarray(a[chosen[0]]) for name, a in samples.items()}


def tolerance(
    precision: str, outputs: Mapping[str, Array], reference: Mapping[str, Array]
) -> Tolerance:
    """Return how far a device may be from the recorded outputs; see the module.

    Args:
        precision: Of the variant.
        outputs: What the variant gave for the test samples.
        reference: What the source gave for them.
    """
    floor = FLOORS[precision]
    errors = [_error(outputs[name], want) for name, want in reference.items() if name in outputs]
    relative = min(max([floor, *errors]), CEILING)
    return Tolerance(atol=1e-6, rtol=float(f"{relative:.3g}"), share=SHARE[precision])


def _error(got: Array, want: Array) -> float:
    """Return the quantile of the error, relative to the largest value."""
    if want.dtype.kind != "f" or got.shape != want.shape or want.size == 0:
        return 0.0
    top = float(np.max(np.abs(want)))
    if not np.isfinite(top) or top == 0.0:
        return 0.0
    return float(np.quantile(np.abs(got.astype(np.float64) - want), QUANTILE)) / top
