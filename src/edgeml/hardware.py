"""DeviceFacts and HardwareProfile; which profile fits given facts.

A profile is data: one TOML file, decoded strictly. Every key is described in
``docs/reference/profile-keys.md``. A user's own file works like one that is shipped.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgeml.errors import ProfileError, nearest
from edgeml.plugins import table

_MAX_BYTES = 1 << 20
_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]*)`(?: - at `\$\.?(?P<where>[^`]*)`)?")

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
State = Literal["checked", "compiled", "emulated", "measured"]


class DeviceFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a machine is, as far as models care. Gathered by ``edgeml.runtime.facts``.

    Attributes:
        machine: ``x86_64``, ``aarch64``, ``armv7l``.
        system: ``Linux``, ``Darwin``.
        cpu: Model name of the processor.
        cores: Logical processors that may be used (affinity and cgroup counted in).
        memory_bytes: Memory that may be used (cgroup counted in).
        isa: Instruction sets that matter: ``avx2``, ``avx512``, ``vnni``, ``bf16``, ``amx_int8``,
            ``neon``, ``dotprod``, ``i8mm``, ``fp16``.
        accelerators: What was found: ``nvidia-gpu``, ``intel-gpu``, ``intel-npu``, ``edgetpu``, ...
        runtimes: Usable runtime -> its version.
        python: Version of Python.
        os: Pretty name of the system.
        devices: Usable runtime -> devices or providers that it offers, as it names them; empty
            when that is not known (an older release).
    """

    machine: str
    system: str
    cpu: str = ""
    cores: int = 1
    memory_bytes: int = 0
    isa: tuple[str, ...] = ()
    accelerators: tuple[str, ...] = ()
    runtimes: dict[str, str] = {}
    python: str = ""
    os: str = ""
    devices: dict[str, tuple[str, ...]] = {}


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which machines a profile is for.

    Attributes:
        machine: Machine types that fit; empty when the profile names no host (a microcontroller).
        isa: Instruction sets that must all be there.
        accelerator: Accelerator that must be there; empty for none.
    """

    machine: tuple[str, ...] = ()
    isa: tuple[str, ...] = ()
    accelerator: str = ""


class Int8Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to quantise to 8 bits; the first rule whose instruction sets are there counts.

    Attributes:
        isa: Instruction sets that must all be there; empty fits always.
        activations: Type of the activations.
        weights: Type of the weights.
        per_channel: Whether each output channel has a scale of its own.
        reduce_range: Whether weights use 7 bits only.
        reason: Why.
        source: Where that is known from.
    """

    isa: tuple[str, ...] = ()
    activations: Literal["uint8", "int8"] = "uint8"
    weights: Literal["int8"] = "int8"
    per_channel: bool = True
    reduce_range: bool = False
    reason: str = ""
    source: str = ""


class DeniedOp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An operator that the target does not run.

    Attributes:
        op: Its name in the profile's dialect.
        reason: Why.
        source: Where that is known from.
    """

    op: str
    reason: str
    source: str = ""


class Ops(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rules for operators.

    Attributes:
        dialect: Whose names these are.
        allowed: All operators that the target runs; empty when the compiler or runtime decides.
        denied: Operators that it does not run.
        source: Where the list of allowed ones is from.
    """

    dialect: Literal["onnx", "tflite"] = "onnx"
    allowed: tuple[str, ...] = ()
    denied: tuple[DeniedOp, ...] = ()
    source: str = ""

    def problem(self, op: str) -> str:
        """Return why the target does not run an operator; empty when no rule speaks against it."""
        for rule in self.denied:
            if rule.op == op:
                return rule.reason
        if self.allowed and op not in self.allowed:
            return f"{op} is not among the operators of the target"
        return ""


class Shapes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rules for shapes.

    Attributes:
        static: Whether every axis must be known when compiling.
        batch: The only batch size; 0 for any.
        max_rank: Most axes of a tensor; 0 for no limit.
    """

    static: bool = False
    batch: NotNegative = 0
    max_rank: NotNegative = 0


class Budgets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a variant may cost; a key that is left out is no limit.

    Attributes:
        memory_bytes: Peak memory of a run.
        latency_ms: Median latency of one sample.
        size_bytes: Size of all files of the variant.
    """

    memory_bytes: Positive | None = None
    latency_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    size_bytes: Positive | None = None


class Compiler(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The compiler of a target.

    Attributes:
        name: Its name; empty when the runtime compiles by itself.
        extra: Extra of the distribution that brings it; empty when none does.
        options: Options that it is always called with.
    """

    name: str = ""
    extra: str = ""
    options: dict[str, str] = {}


class EvidenceLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The highest evidence that can be had.

    Attributes:
        without_hardware: On a workstation that is not such a device.
        with_hardware: On such a device.
    """

    without_hardware: State = "checked"
    with_hardware: State = "measured"


class HardwareProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model must be to run well on one kind of hardware.

    Attributes:
        name: Lower-case letters, digits and ``-``.
        title: One line for people.
        description: What it is for.
        kind: What computes.
        target: Name of the converter's target that builds for it (plug-in kind ``targets``).
        runtimes: Runtimes to try; of equally good ones the first named wins.
        precisions: Precisions to try.
        match: Which machines it is for.
        int8: Rules for 8-bit quantisation, first match counts.
        ops: Rules for operators.
        shapes: Rules for shapes.
        budgets: What a variant may cost.
        devices: Runtime -> devices or providers to try; a runtime that is not named computes on
            its CPU.
        threads: The first is what a variant is chosen at and runs with; what may win is measured at
            the others too, as far as the host has cores.
        batch: Samples in a run: the first is what a variant is chosen at; what may win is measured
            at the others too.
        compiler: Its compiler.
        evidence: The highest evidence that can be had.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z")]
    title: str
    description: str
    kind: Literal["cpu", "gpu", "npu", "tpu-lite"]
    target: str
    runtimes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    precisions: Annotated[
        tuple[Literal["fp32", "fp16", "bf16", "int8"], ...], msgspec.Meta(min_length=1)
    ]
    match: Match = Match()
    int8: tuple[Int8Rule, ...] = ()
    ops: Ops = Ops()
    shapes: Shapes = Shapes()
    budgets: Budgets = Budgets()
    devices: dict[str, tuple[str, ...]] = {}
    threads: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1)] = (1,)
    batch: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1)] = (1,)
    compiler: Compiler = Compiler()
    evidence: EvidenceLimits = EvidenceLimits()

    def int8_rule(self, isa: Iterable[str]) -> Int8Rule | None:
        """Return the first 8-bit rule that fits these instruction sets; None when none does."""
        there = set(isa)
        return next((rule for rule in self.int8 if there.issuperset(rule.isa)), None)


#: Key of a profile -> the struct that it holds (for the nearest key in a message).
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "": HardwareProfile,
    "match": Match,
    "int8": Int8Rule,
    "ops": Ops,
    "ops.denied": DeniedOp,
    "shapes": Shapes,
    "budgets": Budgets,
    "compiler": Compiler,
    "evidence": EvidenceLimits,
}


def _folder() -> Path:
    """Return the folder of shipped profiles: inside a wheel, else of the checkout."""
    here = Path(__file__).resolve()
    inside = here.parent / "_profiles"
    return inside if inside.is_dir() else here.parents[2] / "hardware_profiles"


def profile_names() -> tuple[str, ...]:
    """Return the names of the shipped profiles, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


def load_profile(name_or_path: str) -> HardwareProfile:
    """Return a shipped profile by name, or a user's own by path.

    Args:
        name_or_path: A name; or a path, when it ends in ``.toml`` or holds a separator.

    Raises:
        ProfileError: Unknown name or key (the hint gives the nearest), or a file that is wrong.
    """
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        return _read(Path(name_or_path))
    names = profile_names()
    if name_or_path not in names:
        raise ProfileError(f"unknown profile '{name_or_path}'", nearest(name_or_path, names))
    return _read(_folder() / f"{name_or_path}.toml")


def _read(path: Path) -> HardwareProfile:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ProfileError(
            f"cannot read profile {path}: {error.strerror}",
            "check the path; 'edgeml profiles' lists the shipped ones",
        ) from error
    if len(data) > _MAX_BYTES:
        raise ProfileError(f"profile {path} has more than {_MAX_BYTES} bytes")
    try:
        return msgspec.convert(tomllib.loads(data.decode()), HardwareProfile)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProfileError(f"profile {path} is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise _wrong(path, str(error)) from error


def _wrong(path: Path, message: str) -> ProfileError:
    """Return the error for a file that is TOML but no profile; name the nearest key."""
    found = _UNKNOWN.search(message)
    if found is None:
        return ProfileError(f"profile {path}: {message}", "see docs/reference/profile-keys.md")
    section = re.sub(r"\[[^]]*\]", "", found["where"] or "")
    known = SECTIONS[section].__struct_fields__
    where = f" in [{section}]" if section else ""
    return ProfileError(
        f"profile {path}: unknown key '{found['key']}'{where}", nearest(found["key"], known)
    )


def fits(profile: HardwareProfile, facts: DeviceFacts) -> str:
    """Return why a profile does not fit a machine; empty when it does."""
    match = profile.match
    if facts.machine not in match.machine:
        wanted = ", ".join(match.machine) or "no machine that runs edgeml itself"
        return f"it is for {wanted}, this is {facts.machine}"
    absent = [isa for isa in match.isa if isa not in facts.isa]
    if absent:
        return f"the processor lacks {', '.join(absent)}"
    if match.accelerator and match.accelerator not in facts.accelerators:
        return f"no {match.accelerator} was found"
    if not set(profile.runtimes) & set(facts.runtimes):
        return f"none of its runtimes is usable: {', '.join(profile.runtimes)}"
    return _no_device(profile, facts)


def _no_device(profile: HardwareProfile, facts: DeviceFacts) -> str:
    """Return why no runtime reaches the profile's accelerator; empty when one does."""
    wanted = {name: names for name, names in profile.devices.items() if name in facts.runtimes}
    if not profile.devices or not facts.devices:
        return ""
    for name, names in wanted.items():
        offered = facts.devices.get(name, ())
        if any(have == one or have.startswith(f"{one}.") for one in names for have in offered):
            return ""
    told = "; ".join(f"{name}: {', '.join(names)}" for name, names in profile.devices.items())
    return f"no runtime here offers its devices ({told})"


def best_profile(facts: DeviceFacts, names: Iterable[str] | None = None) -> HardwareProfile:
    """Return the profile that fits a machine best.

    What can be built comes before what cannot, an accelerator before the processor, a profile for
    one machine type before one for many.

    Args:
        facts: The machine.
        names: Profiles to choose from (names or paths); the shipped ones when None.

    Raises:
        ProfileError: None fits; the hint says why, for each.
    """
    profiles = [load_profile(name) for name in (profile_names() if names is None else names)]
    reasons = {profile.name: fits(profile, facts) for profile in profiles}
    fitting = [profile for profile in profiles if not reasons[profile.name]]
    if not fitting:
        raise ProfileError(
            f"no profile fits this {facts.machine} machine",
            "; ".join(f"{name}: {reason}" for name, reason in reasons.items()),
        )
    built = table("targets")
    return min(
        fitting,
        key=lambda p: (
            p.target not in built,
            not p.match.accelerator,
            len(p.match.machine),
            p.name,
        ),
    )
