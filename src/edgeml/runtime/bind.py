"""Make a variant's file speak the public contract of its manifest.

A file may want another order of axes, stored integers, another element type, or one fixed batch.
Callers of a bundle see none of that: whatever variant runs, they give and get what
``Manifest.inputs`` and ``Manifest.outputs`` say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeml.errors import ModelError, RequestError, nearest
from edgeml.manifest import Binding, Variant
from edgeml.runtime import get_runtime
from edgeml.runtime.base import Program, ProgramOptions, Session, TrustingSession
from edgeml.tensors import Array, TensorSpec, check_feed

Convert = Callable[[Array], Array]


def binding_identity(spec: TensorSpec) -> Binding:
    """Return the binding of a tensor that the file holds just as the public contract says."""
    return Binding(name=spec.name, tensor=spec.name, dtype=spec.dtype, shape=spec.shape)


def open_variant(
    folder: Path,
    variant: Variant,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    cache: Path | None = None,
    device: str = "",
) -> Program:
    """Compile a variant, bound to the public contract.

    Args:
        folder: The folder that ``edgeml unpack`` makes; ``variant.entry`` is relative to it.
        variant: What to open.
        inputs: Manifest.inputs.
        outputs: Manifest.outputs.
        cache: Folder for compiled forms; None for none.
        device: Device or provider, as the runtime names it; empty for what the variant says.

    Returns:
        A program whose specifications are ``inputs`` and ``outputs``.

    Raises:
        MissingPackageError: The runtime's library is not installed.
        ModelError: The file is broken, or is not what the bindings say.
        DeviceError: The device is not there.
    """
    entry = folder / variant.entry
    if not entry.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"entry '{variant.entry}' of variant '{variant.id}' leaves its folder")
    options = ProgramOptions(
        threads=variant.threads,
        device=device or variant.device,
        extra=variant.options,
        cache=cache,
    )
    program = get_runtime(variant.runtime).prepare(entry, options)
    try:
        return BoundProgram(program, variant, inputs, outputs)
    except ModelError:
        program.close()
        raise


class BoundProgram:
    """A program behind its bindings."""

    def __init__(
        self,
        program: Program,
        variant: Variant,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        """Check that bindings, public contract and file fit together.

        Raises:
            ModelError: They do not.
        """
        self.runtime = program.runtime
        self.placement = program.placement
        self.inputs = inputs
        self.outputs = outputs
        self._program = program
        pairs_in = _pair(variant.inputs, inputs, program.inputs, "input", variant.id)
        pairs_out = _pair(variant.outputs, outputs, program.outputs, "output", variant.id)
        self._to_file = {b.name: (b.tensor, _to_file(b, s)) for b, s in pairs_in}
        self._from_file = {b.name: (b.tensor, _from_file(b, s)) for b, s in pairs_out}
        fixed = {n for b, s in pairs_in if (n := _fixed_batch(b, s, program.inputs))}
        if len(fixed) > 1:
            raise ModelError(f"variant '{variant.id}' has inputs of different fixed batches")
        self._pad = fixed.pop() if fixed else 0
        self._chunk = self._pad or variant.max_batch

    def session(self) -> Session:
        """Open one stream."""
        return BoundSession(
            self._program.session(),
            self.inputs,
            self.outputs,
            self._to_file,
            self._from_file,
            self._chunk,
            self._pad,
        )

    def close(self) -> None:
        """Close the program behind it."""
        self._program.close()


class BoundSession:
    """A session behind its bindings."""

    def __init__(
        self,
        session: Session,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        to_file: Mapping[str, tuple[str, Convert | None]],
        from_file: Mapping[str, tuple[str, Convert | None]],
        chunk: int,
        pad: int,
    ) -> None:
        """Take the file's session, and name -> (tensor, conversion) for both directions.

        Args:
            session: Speaks the file's contract.
            inputs: Public contract.
            outputs: Public contract.
            to_file: For every input.
            from_file: For every output.
            chunk: Largest batch of one run of the file; 0 for any.
            pad: The only batch that the file takes; 0 when it takes others.
        """
        self._session = session
        # The public contract is checked here; the file's follows from it by the conversions.
        self._execute = session.execute if isinstance(session, TrustingSession) else session.run
        self._inputs = inputs
        self._outputs = outputs
        self._to_file = to_file
        self._from_file = from_file
        self._chunk = chunk
        self._pad = pad
        self._batched = [spec.name for spec in inputs if spec.batched]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once, in as many runs of the file as its batch asks for.

        Raises:
            RequestError: The feed does not fit, or holds what the file cannot store.
            DeviceError: The runtime failed.
        """
        check_feed(self._inputs, feed)
        if not self._batched:
            return self._once(feed)
        batch = self._batch(feed)
        if self._chunk == 0 or (batch <= self._chunk and self._pad in (0, batch)):
            return self._once(feed)
        whole = [spec.name for spec in self._outputs if not spec.batched]
        if whole and batch > self._chunk:
            raise RequestError(
                f"a batch of {batch} takes several runs of at most {self._chunk}, and output "
                f"'{whole[0]}' has no batch axis to put their results together on",
                f"send at most {self._chunk} at a time",
            )
        parts = [self._part(piece, size) for piece, size in self._pieces(feed, batch)]
        if len(parts) == 1:
            return parts[0]
        return {s.name: np.concatenate([part[s.name] for part in parts]) for s in self._outputs}

    def _batch(self, feed: Mapping[str, Array]) -> int:
        """Return the number of samples in a feed.

        Raises:
            RequestError: None, or not the same in every input.
        """
        sizes = {name: feed[name].shape[0] for name in self._batched}
        batch = int(sizes[self._batched[0]])
        if batch == 0 or any(size != batch for size in sizes.values()):
            raise RequestError(f"the inputs hold {sizes} samples, expected the same, and not 0")
        return batch

    def _pieces(
        self, feed: Mapping[str, Array], batch: int
    ) -> Iterator[tuple[dict[str, Array], int]]:
        """Yield pieces of a feed that the file can take, and how many samples of each count."""
        for start in range(0, batch, self._chunk):
            size = min(self._chunk, batch - start)
            # The last sample is repeated, so that padding holds nothing that a model never sees.
            rows = np.minimum(np.arange(start, start + (self._pad or size)), batch - 1)
            piece = {n: a[rows] if n in self._batched else a for n, a in feed.items()}
            yield piece, size

    def _part(self, piece: Mapping[str, Array], size: int) -> dict[str, Array]:
        """Run one piece and drop what padding added."""
        results = self._once(piece)
        return {s.name: results[s.name][:size] if s.batched else results[s.name]
                for s in self._outputs}  # fmt: skip

    def _once(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Convert, run the file once, and convert back."""
        inner: dict[str, Array] = {}
        for name, (tensor, convert) in self._to_file.items():
            inner[tensor] = convert(feed[name]) if convert else feed[name]
        results = self._execute(inner)
        return {
            name: convert(results[tensor]) if convert else results[tensor]
            for name, (tensor, convert) in self._from_file.items()
        }

    def close(self) -> None:
        """Close the session behind it."""
        self._session.close()


def _pair(
    bindings: tuple[Binding, ...],
    public: tuple[TensorSpec, ...],
    file: tuple[TensorSpec, ...],
    what: str,
    variant: str,
) -> list[tuple[Binding, TensorSpec]]:
    """Return each binding with its public tensor, in the order of the public contract.

    Raises:
        ModelError: A tensor is missing on one side, or does not fit.
    """
    by_name = {binding.name: binding for binding in bindings}
    in_file = {spec.name: spec for spec in file}
    pairs: list[tuple[Binding, TensorSpec]] = []
    if set(by_name) != {spec.name for spec in public}:
        raise ModelError(f"variant '{variant}' does not bind exactly the {what}s of its manifest")
    for spec in public:
        binding = by_name[spec.name]
        real = in_file.get(binding.tensor)
        if real is None:
            raise ModelError(
                f"variant '{variant}' binds {what} '{spec.name}' to '{binding.tensor}', "
                "which the file does not have",
                nearest(binding.tensor, in_file),
            )
        if real.dtype != binding.dtype:
            raise ModelError(
                f"{what} '{binding.tensor}' of variant '{variant}' is {real.dtype} in the file, "
                f"expected {binding.dtype}"
            )
        integer = np.dtype(binding.dtype).kind in "iu"
        if binding.scale and not integer:
            raise ModelError(f"{what} '{spec.name}' has a scale, but is stored as {real.dtype}")
        if not binding.scale and integer != (np.dtype(spec.dtype).kind in "iu"):
            raise ModelError(
                f"{what} '{spec.name}' is {spec.dtype}, is stored as {real.dtype}, and has no scale"
            )
        if binding.perm and sorted(binding.perm) != list(range(len(spec.shape))):
            raise ModelError(f"{what} '{spec.name}' cannot be permuted by {list(binding.perm)}")
        pairs.append((binding, spec))
    if what == "input" and len(in_file) != len(pairs):
        raise ModelError(f"variant '{variant}' leaves inputs of its file without a value")
    return pairs


def _fixed_batch(binding: Binding, spec: TensorSpec, file: tuple[TensorSpec, ...]) -> int:
    """Return the only batch that the file takes for this input; 0 when it takes others."""
    if not spec.batched:
        return 0
    axis = binding.perm.index(0) if binding.perm else 0
    shape = next(real.shape for real in file if real.name == binding.tensor)
    return max(shape[axis], 0) if axis < len(shape) else 0


def _to_file(binding: Binding, spec: TensorSpec) -> Convert | None:
    """Return the conversion of an input, or None when there is nothing to do."""
    dtype = np.dtype(binding.dtype)
    perm = binding.perm
    if not binding.scale:
        if not perm and binding.dtype == spec.dtype:
            return None

        def cast(array: Array) -> Array:
            moved = array.transpose(perm) if perm else array
            return np.ascontiguousarray(_cast(moved, dtype, spec.name))

        return cast
    limits = np.iinfo(dtype)
    # float32 has no 2147483647: work in float64 where the type is that wide.
    work = np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
    scale, zero = np.float32(binding.scale), work.type(binding.zero_point)
    low, high = work.type(limits.min), work.type(limits.max)

    def store(array: Array) -> Array:
        # In place, and with plain ufuncs: for a small model this costs as much as the model.
        steps = np.divide(array, scale, dtype=work)
        np.rint(steps, out=steps)
        np.add(steps, zero, out=steps)
        np.minimum(steps, high, out=steps)
        np.maximum(steps, low, out=steps)
        # All values are bounded now, so only NaN makes the sum differ from itself.
        total = steps.sum()
        if total != total:
            raise RequestError(f"input '{spec.name}' holds NaN, which {dtype} cannot store")
        moved = steps.transpose(perm) if perm else steps
        return moved.astype(dtype, order="C")

    return store


def _cast(array: Array, dtype: np.dtype[Any], name: str) -> Array:
    """Return an array in another type of the same kind.

    Raises:
        RequestError: An integer does not fit.
    """
    if dtype.kind in "iu" and array.size and not np.can_cast(array.dtype, dtype):
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise RequestError(f"input '{name}' holds integers that do not fit into {dtype}")
    with np.errstate(over="ignore"):  # beyond float16 is infinity, as in the model
        return array.astype(dtype, copy=False)


def _from_file(binding: Binding, spec: TensorSpec) -> Convert | None:
    """Return the conversion of an output, or None when there is nothing to do."""
    if not binding.scale and not binding.perm and binding.dtype == spec.dtype:
        return None
    back = tuple(int(axis) for axis in np.argsort(binding.perm))
    scale, zero = np.float32(binding.scale), np.float32(binding.zero_point)
    public = np.dtype(spec.dtype)

    def load(array: Array) -> Array:
        if binding.scale:
            value = np.subtract(array, zero, dtype=np.float32)
            np.multiply(value, scale, out=value)
        else:
            value = array
        if back:
            value = value.transpose(back)
        return value.astype(public, order="C", copy=False)

    return load
