"""DeviceFacts and HardwareProfile; which profile fits given facts."""

from __future__ import annotations

import msgspec


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
