"""A bundle on this device: its variants opened, warmed up, checked, and calibrated."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from edgeml.bundle import Bundle
from edgeml.drift.reference import DriftReference, decode
from edgeml.errors import BundleError, DeviceError, EdgemlError, UsageError
from edgeml.manifest import Manifest, Tolerance, Variant
from edgeml.runtime import get_runtime
from edgeml.runtime.base import Program
from edgeml.runtime.bind import open_variant
from edgeml.runtime.golden import golden_check, load_arrays
from edgeml.runtime.measure import calibrate_batch
from edgeml.tensors import Array
from edgeml_agent.serve.files import unpacked

logger = logging.getLogger(__name__)

#: A larger batch must raise the rows per second by at least this share.
_MIN_GAIN = 0.10
#: A row may differ by this much when others are in its batch; more means that it must run alone.
_SAME = Tolerance(atol=1e-5, rtol=1e-3)


class GoldenError(DeviceError):
    """A variant runs, and its golden samples come out wrong."""


class OpenedVariant:
    """A variant that is loaded on this device, with one stream.

    Attributes:
        placement: The provider that really runs it.
        program: What is compiled.
    """

    def __init__(self, program: Program) -> None:
        """Open a stream."""
        self.program = program
        self.placement = program.placement
        self._session = program.session()

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run it once; see ``Session.run``."""
        return self._session.run(feed)

    def close(self) -> None:
        """Give back what it holds. Safe to call twice."""
        self._session.close()
        self.program.close()


class Plan(msgspec.Struct, frozen=True):
    """How a generation is batched.

    Attributes:
        batch: Most rows of one batch.
        hard: Most rows of one run; 0 when rows cannot be told apart.
        seconds: Of one run at that batch.
    """

    batch: int
    hard: int
    seconds: float


class Model:
    """The blocking part of a generation: everything that happens on a thread.

    Args:
        bundle: The bundle; it may hold only some of its variants.
        profile: Profile of the device; empty for any.
        cache: Folder of this process, for unpacked and compiled forms.
    """

    def __init__(self, bundle: Bundle, profile: str, cache: Path) -> None:
        """Unpack the variants that may run here, and read the golden samples.

        Raises:
            EdgemlError: No variant may run here, or the bundle is damaged.
        """
        manifest = self.manifest = bundle.manifest
        self._cache = cache / "compiled"
        self.variants = fitting(manifest, profile)
        self._golden = load_arrays(bundle.read(manifest.golden)) if manifest.golden else {}
        self._recorded = {v.id: load_arrays(bundle.read(v.golden)) for v in self.variants
                          if v.golden and bundle.has(v.golden)}  # fmt: skip
        #: A model that was recorded with NaN or infinity means them.
        self.nonfinite = any(
            not np.isfinite(array).all()
            for recorded in self._recorded.values()
            for array in recorded.values()
            if array.dtype.kind == "f"
        )
        self.drift: DriftReference | None = None
        if manifest.drift is not None and bundle.has(manifest.drift):
            self.drift = decode(bundle.read(manifest.drift))
        # All of them now: when a fallback is needed, the disk may be full.
        self._folders: dict[str, Path | EdgemlError] = {}
        for variant in self.variants:
            try:
                self._folders[variant.id] = unpacked(bundle, variant, cache)
            except BundleError as error:
                self._folders[variant.id] = error

    def open(self, variant: Variant) -> OpenedVariant:
        """Load a variant.

        Raises:
            EdgemlError: It does not load here.
        """
        manifest, folder = self.manifest, self._folders[variant.id]
        if isinstance(folder, EdgemlError):
            raise folder
        program = open_variant(folder, variant, manifest.inputs, manifest.outputs, self._cache)
        return OpenedVariant(program)

    def check(self, opened: OpenedVariant, variant: Variant) -> None:
        """Warm a variant up, and compare its golden samples with what was recorded.

        Raises:
            GoldenError: They differ.
            EdgemlError: It does not run.
        """
        recorded = self._recorded.get(variant.id)
        if not self._golden or recorded is None:
            opened.run({spec.name: spec.zeros() for spec in self.manifest.inputs})
            return
        result = golden_check(opened, self._golden, recorded, variant.tolerance)
        if not result.ok:
            raise GoldenError(
                f"golden samples of variant '{variant.id}' come out wrong: {result.reason}",
                "this device computes something else than the workstation recorded",
            )

    def plan(self, opened: OpenedVariant, most: int) -> Plan:
        """Find out how this model is batched best on this device, now.

        Args:
            opened: The variant that serves.
            most: Most rows of one run.
        """
        row, other = self._row(0), self._row(1)
        sizes = [1]
        splits = self._splittable(opened, row, other)
        while splits and sizes[-1] * 2 <= most:
            sizes.append(sizes[-1] * 2)
        batched = [spec.name for spec in self.manifest.inputs if spec.batched]
        found = calibrate_batch(
            opened.program.session, row, tuple(sizes), min_gain=_MIN_GAIN, batched=batched
        )
        return Plan(found.batch, most if splits else 0, found.seconds[found.batch])

    def _row(self, index: int) -> dict[str, Array]:
        """Return one golden sample as a feed of one row; zeros where there is no such sample."""
        feed: dict[str, Array] = {}
        for spec in self.manifest.inputs:
            array = self._golden.get(spec.name)
            if array is None or array.shape[0] <= index or not spec.batched:
                feed[spec.name] = spec.zeros()
            else:
                feed[spec.name] = array[index : index + 1]
        return feed

    def _splittable(
        self, opened: OpenedVariant, row: dict[str, Array], other: dict[str, Array]
    ) -> bool:
        """Tell whether rows can share a run without changing each other's answers."""
        manifest = self.manifest
        if not all(spec.batched for spec in (*manifest.inputs, *manifest.outputs)):
            return False
        if any(row[name].shape != other[name].shape for name in row):
            return False
        both = {name: np.concatenate([row[name], other[name]]) for name in row}
        first, second = opened.run(row), opened.run(other)
        apart = {name: np.concatenate([first[name], second[name]]) for name in first}
        result = golden_check(opened, both, apart, _SAME)
        if not result.ok:
            logger.info("%s is not batched: %s", manifest.name, result.reason)
        return result.ok


def fitting(manifest: Manifest, profile: str) -> tuple[Variant, ...]:
    """Return the variants that may run here, in order of preference.

    What stands before the first one whose runtime works here was made for better equipped
    devices of the profile; what comes after it is its fallback.

    Raises:
        BundleError: There is none.
    """
    fits = [v for v in manifest.variants if not profile or v.profile == profile]
    reasons: list[str] = []
    for i, variant in enumerate(fits):
        try:
            found = get_runtime(variant.runtime).check()
        except UsageError as error:  # a runtime that this release does not know
            reasons.append(error.message)
            continue
        if found.usable:
            return tuple(fits[i:])
        reasons.append(f"{variant.runtime}: {found.reason}")
    profiles = ", ".join(sorted({v.profile for v in manifest.variants})) or "none"
    why = "; ".join(dict.fromkeys(reasons)) or f"it holds variants for: {profiles}"
    raise BundleError(
        f"bundle {manifest.name} {manifest.version} has no variant for profile "
        f"'{profile or 'any'}' that runs here ({why})",
        "convert it for this profile, or install the runtime",
    )
