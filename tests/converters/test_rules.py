"""What a profile allows is held: nothing in it is read and ignored."""

import msgspec
import pytest

from edgeml.errors import MissingPackageError, ProfileError
from edgeml.hardware import (
    Compiler,
    DeniedOp,
    Int8Rule,
    Ops,
    Shapes,
    load_profile,
    profile_names,
)
from edgeml.manifest import Binding
from edgeml.plugins import table
from edgeml_converters.rules import check_profile, problem, traits
from edgeml_converters.worker import Traits
from tests.support import models

CPU = load_profile("cpu-x86-64")
TFLITE = load_profile("tpu-lite-generic")
INT8 = Int8Rule(activations="int8")


def but(profile, **changes):
    return msgspec.structs.replace(profile, **changes)


@pytest.mark.parametrize("name", profile_names())
def test_a_shipped_profile_can_be_used_or_says_that_it_is_not_built(name):
    profile = load_profile(name)
    if profile.target in table("targets"):
        check_profile(profile)
        return
    with pytest.raises(MissingPackageError, match="not built yet") as caught:
        check_profile(profile)
    assert profile.compiler.name in caught.value.message


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        (but(CPU, runtimes=("onnxruntim",)), "unknown runtime 'onnxruntim'"),
        (but(CPU, compiler=Compiler(name="vela")), "compiles by itself"),
        (but(CPU, compiler=Compiler(options={"a": "b"})), "compiles by itself"),
        (but(TFLITE, int8=(but(INT8, activations="uint8"),)), "uint8 activations"),
        (but(TFLITE, int8=(but(INT8, reduce_range=True),)), "reduce_range True"),
        (but(TFLITE, int8=(but(INT8, per_channel=False),)), "per_channel False"),
    ],
)
def test_what_a_target_does_not_do_is_an_error(profile, says):
    with pytest.raises(ProfileError, match=says) as caught:
        check_profile(profile)
    assert caught.value.hint


def rules(**changes):
    return but(CPU, **changes)


FREE = (Binding("x", "x", "float32", (-1, 4)),)
ONE = (Binding("x", "x", "float32", (1, 4)),)
FOUND = Traits(("Gemm", "Relu"), ("FULLY_CONNECTED",), 3)


@pytest.mark.parametrize(
    ("profile", "inputs", "says"),
    [
        (rules(), FREE, ""),
        (rules(ops=Ops(denied=(DeniedOp("Relu", "it is broken"),))), FREE, "Relu: it is broken"),
        (rules(ops=Ops(allowed=("Gemm",))), FREE, "not allow Relu"),
        (rules(ops=Ops(allowed=("Gemm", "Relu"))), FREE, ""),
        (rules(ops=Ops("tflite", allowed=("CONV_2D",))), FREE, "not allow FULLY_CONNECTED"),
        (rules(ops=Ops("tflite", allowed=("FULLY_CONNECTED",))), FREE, ""),
        (rules(shapes=Shapes(static=True)), FREE, "fixed shapes"),
        (rules(shapes=Shapes(static=True)), ONE, ""),
        (rules(shapes=Shapes(batch=1)), FREE, "batch of 1"),
        (rules(shapes=Shapes(batch=1)), ONE, ""),
        (rules(shapes=Shapes(max_rank=2)), ONE, "3 axes"),
        (rules(shapes=Shapes(max_rank=3)), ONE, ""),
    ],
)
def test_rules_for_a_file(profile, inputs, says):
    found = problem(profile, FOUND, inputs)
    assert says in found
    assert bool(found) == bool(says)


def test_traits_of_a_model(tmp_path):
    found = traits(models.cnn(), tmp_path / "model.onnx")
    assert {"Conv", "Relu"} <= set(found.onnx)
    assert found.rank == 4
    assert found.tflite == ()
