"""Recipe and Plan: what may be tried, and what it is chosen by."""

from __future__ import annotations

import msgspec

from edgeml.hardware import HardwareProfile, Int8Rule
from edgeml_converters.results import Candidate
from edgeml_converters.worker import PassCall

#: The recipe that leaves the source as it is; on onnxruntime it is the baseline.
SOURCE = "fp32"
BASELINE = f"onnxruntime.{SOURCE}"

#: What every recipe that changes the graph begins with.
PREPARE = (PassCall("upgrade_opset"), PassCall("simplify"))
ONE = PassCall("fix_batch", {"batch": 1})
#: OpenVINO computes fp32 models in bf16 where it can, and says so nowhere: it is told not to.
F32 = {"INFERENCE_PRECISION_HINT": "f32"}

#: What there is a recipe for.
PRECISIONS = frozenset({"fp32", "fp16", "bf16", "int8"})
#: How much work a search does, from little to much.
EFFORTS = ("quick", "normal", "thorough")


class Recipe(msgspec.Struct, frozen=True):
    """One way to prepare a model.

    Attributes:
        name: Unique; part of a variant's id.
        precision: For example ``fp32``, ``bf16`` or ``int8``.
        summary: What it does, for the report.
        options: Runtime -> its options. The runtimes named here are those that it is for.
        passes: In order.
        target: What writes the files.
        effort: The least effort at which it is tried.
        devices: Runtime -> the device that must run it; a runtime that is not named uses its CPU.
    """

    name: str
    precision: str
    summary: str
    options: dict[str, dict[str, str]]
    passes: tuple[PassCall, ...] = ()
    target: str = "cpu"
    effort: str = "quick"
    devices: dict[str, str] = {}


class Plan(msgspec.Struct, frozen=True):
    """What recipes are chosen by.

    Attributes:
        profile: What it is for: runtimes, precisions, rules, target.
        rule: How the profile quantises to 8 bits on the processor at hand.
        isa: Instruction sets of the device.
        ops: Operators of the model.
        has_data: Without evaluation data nothing can be judged that changes values.
        effort: How much work may be done.
        objective: What to be best at.
        seen: What is known of the candidates so far: nothing in the first stage. A family that
            builds on results (of which layer may stay float, of which recipe to prune for)
            returns nothing while this is empty.
        tried: The recipes of ``seen``.
    """

    profile: HardwareProfile
    rule: Int8Rule = Int8Rule()
    isa: tuple[str, ...] = ()
    ops: frozenset[str] = frozenset()
    has_data: bool = True
    effort: str = "normal"
    objective: str = "latency"
    seen: tuple[Candidate, ...] = ()
    tried: tuple[Recipe, ...] = ()

    @property
    def scheme(self) -> str:
        """``u8s8`` or ``s8s8``: types of activations and weights."""
        return {"uint8": "u8", "int8": "s8"}[self.rule.activations] + "s8"
