"""What a profile allows: the profile is checked before any work, and then every built file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import onnx

from edgeml.errors import MissingPackageError, ProfileError, nearest
from edgeml.hardware import Compiler, HardwareProfile, Int8Rule
from edgeml.manifest import Binding
from edgeml.plugins import table
from edgeml_converters.source.checks import count_ops
from edgeml_converters.source.external import all_graphs
from edgeml_converters.source.files import outline
from edgeml_converters.source.stored import is_large
from edgeml_converters.worker import Traits

#: Targets whose files a device beside the processor runs.
_WITH_DEVICE = ("gpu", "openvino-device")
#: What the TFLite quantisation specification leaves to choose: nothing.
_TFLITE = (("int8", "int8"), True, False)


def check_profile(profile: HardwareProfile) -> None:
    """Check that there is something that builds for a profile, and that it can do as told.

    Raises:
        MissingPackageError: Its target is not built yet.
        ProfileError: It asks for what its target does not do; nothing is ignored.
    """
    built = table("targets")
    compiler = profile.compiler
    if profile.target not in built:
        by = f" by the compiler '{compiler.name}'" if compiler.name else ""
        raise MissingPackageError(
            f"profile '{profile.name}' needs the target '{profile.target}'{by}, which is not built "
            f"yet (built: {', '.join(sorted(built))})",
            "choose a profile whose target is built: see 'edgeml profiles'",
        )
    known = table("runtimes")
    for name in profile.runtimes:
        if name not in known:
            raise ProfileError(
                f"profile '{profile.name}': unknown runtime '{name}'", nearest(name, known)
            )
    for name in profile.devices:
        if name not in profile.runtimes:
            raise ProfileError(
                f"profile '{profile.name}': [devices] names '{name}', which is not in 'runtimes'",
                nearest(name, profile.runtimes),
            )
    if profile.target in _WITH_DEVICE and not profile.devices:
        raise ProfileError(
            f"profile '{profile.name}': the target '{profile.target}' needs [devices]",
            "name the device of each runtime, as the shipped profiles for GPUs do",
        )
    if compiler != Compiler():
        raise ProfileError(
            f"profile '{profile.name}': [compiler] is given, but for the target "
            f"'{profile.target}' the runtime compiles by itself",
            "leave [compiler] out, or its keys empty",
        )
    if profile.target.startswith("tflite"):
        for rule in profile.int8:
            _check_tflite(profile.name, rule)


def _check_tflite(name: str, rule: Int8Rule) -> None:
    """Refuse a rule that the TFLite specification does not allow."""
    if ((rule.activations, rule.weights), rule.per_channel, rule.reduce_range) != _TFLITE:
        raise ProfileError(
            f"profile '{name}': [[int8]] has {rule.activations} activations, {rule.weights} "
            f"weights, per_channel {rule.per_channel}, reduce_range {rule.reduce_range}; TFLite "
            "has int8, int8, true, false",
            "leave [[int8]] out: there is nothing to choose",
        )


def traits(model: onnx.ModelProto, file: Path) -> Traits:
    """Return what is to be known of a file and of the model that it was written from."""
    written: tuple[str, ...] = ()
    if file.suffix == ".tflite":
        from edgeml_converters.inspect import tflite_ops

        written = tuple(sorted(tflite_ops(file.read_bytes())))
    return Traits(tuple(sorted(count_ops(model))), written, _rank(model))


def _rank(model: onnx.ModelProto) -> int:
    """Return the most axes of any tensor whose shape is known or can be inferred."""
    # When that fails, what is written in the model itself still counts.
    model = outline(model)[0] if is_large(model) else model
    with suppress(onnx.shape_inference.InferenceError, ValueError):
        model = onnx.shape_inference.infer_shapes(model)
    ranks = [0]
    for graph in all_graphs(model.graph):
        infos = [*graph.input, *graph.output, *graph.value_info]
        ranks += [len(info.type.tensor_type.shape.dim) for info in infos]
        ranks += [len(tensor.dims) for tensor in graph.initializer]
    return max(ranks)


def problem(profile: HardwareProfile, found: Traits, inputs: tuple[Binding, ...]) -> str:
    """Return why a profile does not allow a file; empty when it does.

    Args:
        profile: Its ``[ops]`` and ``[shapes]`` count.
        found: Of the file.
        inputs: As the file itself wants them.
    """
    ops = found.tflite if profile.ops.dialect == "tflite" else found.onnx
    for op in ops:
        reason = profile.ops.problem(op)
        if reason:
            return f"the profile does not allow {op}: {reason}"
    shapes = profile.shapes
    for binding in inputs:
        dims = list(binding.shape)
        if shapes.static and any(n < 0 for n in dims):
            return f"the profile wants fixed shapes, input '{binding.name}' has {dims}: use --shape"
        if shapes.batch and dims and dims[0] != shapes.batch:
            return (
                f"the profile wants a batch of {shapes.batch}, input '{binding.name}' has {dims}: "
                "use --shape"
            )
    if shapes.max_rank and found.rank > shapes.max_rank:
        return f"a tensor has {found.rank} axes, the profile allows {shapes.max_rank}"
    return ""
