"""DeviceFacts of this machine, from what the system says of itself.

Reading is one thing and understanding another: everything that understands is a pure function
over text, so that machines which are not at hand are tested from samples. Everything that reads
takes the root of the file system, for the same reason.
"""

from __future__ import annotations

import math
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgeml.hardware import DeviceFacts
from edgeml.runtime import get_runtime, runtime_names
from edgeml.runtime.base import Availability

_ROOT = Path("/")
_PROBE = (
    "import sys, msgspec; from edgeml.runtime import get_runtime; "
    "sys.stdout.write(msgspec.json.encode(get_runtime(sys.argv[1]).check()).decode())"
)

#: Flag or feature in /proc/cpuinfo -> our name. x86 flags: Linux, arch/x86/include/asm/
#: cpufeatures.h; Arm features: Linux, Documentation/arch/arm64/elf_hwcaps.rst.
_ISA: dict[str, str] = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
    "avx512_bf16": "bf16",
    "amx_bf16": "bf16",
    "amx_int8": "amx_int8",
    "avx512_fp16": "fp16",
    "neon": "neon",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "asimdhp": "fp16",
}
#: Arm's "CPU part" -> name; implementer 0x41 (Arm Ltd), Main ID Register.
_ARM_PARTS: dict[str, str] = {
    "0xc07": "Cortex-A7",
    "0xc08": "Cortex-A8",
    "0xc09": "Cortex-A9",
    "0xc0f": "Cortex-A15",
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}
#: PCI vendor -> the graphics processor's name here.
_GPU_VENDORS = {"0x8086": "intel-gpu", "0x1002": "amd-gpu", "0x10de": "nvidia-gpu"}
#: USB vendor and product of the Coral accelerator, before and after its firmware is loaded.
_EDGETPU_USB = {("1a6e", "089a"), ("18d1", "9302")}


class CpuInfo(msgspec.Struct, frozen=True):
    """What /proc/cpuinfo says.

    Attributes:
        model: Name of the processor; on Arm its cores, and the board in brackets if it is named.
        flags: All flags or features.
    """

    model: str
    flags: frozenset[str]


def parse_cpuinfo(text: str) -> CpuInfo:
    """Understand /proc/cpuinfo of x86 or Arm."""
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), []).append(value.strip())
    flags = " ".join(fields.get("flags", []) + fields.get("Features", []))
    names = fields.get("model name", [])
    parts = [_ARM_PARTS[part] for part in fields.get("CPU part", []) if part in _ARM_PARTS]
    cores = " + ".join(dict.fromkeys(parts)) or (names[0] if names else "")
    board = next(iter(fields.get("Model", fields.get("Hardware", []))), "")
    model = f"{cores} ({board})" if cores and board else cores or board
    return CpuInfo(" ".join(model.split()), frozenset(flags.split()))


def isa_of(flags: frozenset[str], machine: str) -> tuple[str, ...]:
    """Return the instruction sets that matter, in a fixed order.

    Args:
        flags: From ``parse_cpuinfo``.
        machine: ``aarch64`` has NEON always, whether the kernel lists it or not.
    """
    found = {name for flag, name in _ISA.items() if flag in flags}
    if machine == "aarch64":
        found.add("neon")
    return tuple(name for name in dict.fromkeys(_ISA.values()) if name in found)


def parse_meminfo(text: str) -> int:
    """Return MemTotal of /proc/meminfo in bytes; 0 when it is not there."""
    for line in text.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def parse_cgroup(text: str) -> dict[str, str]:
    """Return controller -> path from /proc/self/cgroup; version 2 has the controller ``""``."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            for controller in controllers.split(","):
                paths[controller] = path
    return paths


def parse_cpu_max(text: str) -> float:
    """Return the processors that ``cpu.max`` (cgroup 2) allows; infinite when there is no limit."""
    quota, _, period = text.strip().partition(" ")
    return parse_cfs(quota, period)


def parse_cfs(quota: str, period: str) -> float:
    """Return the processors that a quota per period, both in microseconds, allows."""
    # isdecimal and not isdigit: int() takes no superscripts.
    if not quota.strip().isdecimal() or not period.strip().isdecimal() or int(period) == 0:
        return math.inf  # "max" in version 2, -1 in version 1
    return int(quota) / int(period)


def parse_bytes(text: str) -> float:
    """Return a limit in bytes; infinite when there is none.

    Version 1 writes "no limit" as the largest multiple of a page, far above any memory.
    """
    word = text.strip()
    return float(word) if word.isdecimal() and int(word) < 1 << 60 else math.inf


def _read(path: Path) -> str:
    """Return a file's text; empty when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _folders(base: Path, path: str) -> list[Path]:
    """Return a control group's folder and all above it: each may set a limit."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [base.joinpath(*parts[:n]) for n in range(len(parts) + 1)]


def cgroup_limits(root: Path = _ROOT) -> tuple[float, float]:
    """Return how many processors and how many bytes the control groups of this process allow."""
    paths = parse_cgroup(_read(root / "proc/self/cgroup"))
    tree = root / "sys/fs/cgroup"
    processors = memory = math.inf
    for base in (tree, tree / "unified"):
        for folder in _folders(base, paths.get("", "")):
            processors = min(processors, parse_cpu_max(_read(folder / "cpu.max")))
            memory = min(memory, parse_bytes(_read(folder / "memory.max")))
    for folder in _folders(tree / "cpu", paths.get("cpu", "")):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        processors = min(processors, parse_cfs(quota, period))
    for folder in _folders(tree / "memory", paths.get("memory", "")):
        memory = min(memory, parse_bytes(_read(folder / "memory.limit_in_bytes")))
    return processors, memory


def find_accelerators(root: Path = _ROOT) -> tuple[str, ...]:
    """Return the accelerators whose device nodes are there."""
    found: set[str] = set()
    dev = root / "dev"
    if any(dev.glob("nvidia[0-9]*")) or (dev / "nvhost-gpu").exists():
        found.add("nvidia-gpu")
    for node in dev.glob("dri/renderD*"):
        vendor = _read(root / "sys/class/drm" / node.name / "device/vendor").strip()
        found.update({_GPU_VENDORS[vendor]} if vendor in _GPU_VENDORS else ())
    for node in dev.glob("accel/accel*"):
        if _read(root / "sys/class/accel" / node.name / "device/vendor").strip() == "0x8086":
            found.add("intel-npu")
    if any(dev.glob("apex_[0-9]*")) or _has_usb_edgetpu(root):
        found.add("edgetpu")
    if any(dev.glob("ethosu[0-9]*")):
        found.add("ethos-u")
    if any(dev.glob("fastrpc-cdsp*")):
        found.add("qualcomm-htp")
    if "rockchip,rk3588" in _read(root / "proc/device-tree/compatible"):
        found.add("rockchip-npu")
    return tuple(sorted(found))


def _has_usb_edgetpu(root: Path) -> bool:
    """Whether a Coral accelerator is on USB."""
    return any(
        (_read(vendor).strip(), _read(vendor.with_name("idProduct")).strip()) in _EDGETPU_USB
        for vendor in root.glob("sys/bus/usb/devices/*/idVendor")
    )


def machine_name(machine: str, bits: int) -> str:
    """Return ``x86_64``, ``aarch64``, ``armv7l``, ... for what the system calls itself.

    Args:
        machine: As the kernel says.
        bits: Of this process: a 32-bit system often runs on a 64-bit kernel.
    """
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())
    return {"aarch64": "armv7l", "x86_64": "i686"}.get(name, name) if bits == 32 else name


def probe_runtimes(timeout_s: float = 60.0) -> dict[str, Availability]:
    """Try every runtime in a process of its own.

    A library that was built for another processor ends the process that tries it, and one that
    was only tried should not stay in the memory of a supervisor.
    """
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", _PROBE, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for name in runtime_names()
    }
    found: dict[str, Availability] = {}
    for name, process in running.items():
        try:
            output, _ = process.communicate(timeout=timeout_s)
            found[name] = msgspec.json.decode(output, type=Availability)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            found[name] = Availability(False, reason=f"the probe took over {timeout_s} s")
        except msgspec.DecodeError:
            reason = f"the probe ended with {process.returncode} and said nothing"
            hint = "built for another processor?" if process.returncode < 0 else ""
            found[name] = Availability(False, reason=reason, hint=hint)
    return found


def check_runtimes() -> dict[str, Availability]:
    """Try every runtime in this process, where they are loaded anyway."""
    return {name: get_runtime(name).check() for name in runtime_names()}


def _usable_cores() -> int:
    """Return the processors that this process may be put on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _os_name() -> str:
    """Return the pretty name of the system."""
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return f"{platform.system()} {platform.release()}"


def device_facts(
    runtimes: Mapping[str, Availability] | None = None, root: Path = _ROOT
) -> DeviceFacts:
    """Return what this machine is.

    Args:
        runtimes: What is known of its runtimes; None tries each in a process of its own.
        root: Root of the file system, for tests.
    """
    machine = machine_name(platform.machine(), 8 * struct.calcsize("P"))
    cpu = parse_cpuinfo(_read(root / "proc/cpuinfo"))
    processors, limit = cgroup_limits(root)
    total = parse_meminfo(_read(root / "proc/meminfo"))
    if not total and hasattr(os, "sysconf"):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    tried = probe_runtimes() if runtimes is None else runtimes
    return DeviceFacts(
        machine=machine,
        system=platform.system(),
        cpu=cpu.model or platform.processor(),
        cores=max(1, int(min(_usable_cores(), math.ceil(min(processors, 1 << 20))))),
        memory_bytes=int(min(total, limit)),
        isa=isa_of(cpu.flags, machine),
        accelerators=find_accelerators(root),
        runtimes={name: state.version for name, state in tried.items() if state.usable},
        python=platform.python_version(),
        os=_os_name(),
        devices={name: state.devices for name, state in tried.items() if state.devices},
    )


def host_line(facts: DeviceFacts) -> str:
    """Return one line that names the machine, for ``Evidence.host``."""
    cores = "1 core" if facts.cores == 1 else f"{facts.cores} cores"
    parts = [facts.cpu or "unknown processor", cores, f"{facts.memory_bytes / 2**30:.1f} GiB"]
    parts += [" ".join(facts.isa)] if facts.isa else []
    parts += [" ".join(facts.accelerators)] if facts.accelerators else []
    parts += [f"{facts.os or facts.system} {facts.machine}"]
    return ", ".join(parts)
