"""What a machine says of itself, from samples of several machines."""

import math
import platform

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edgeml.hardware import DeviceFacts
from edgeml.runtime import facts
from edgeml.runtime.base import Availability

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_int8

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_int8
"""
ALDER = "model name\t: 12th Gen Intel(R)  Core(TM) i5-1240P\nflags\t\t: sse4_2 avx avx2 avx_vnni\n"
ROCKCHIP = """processor\t: 0
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd05

processor\t: 4
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""
GRAVITON = """processor\t: 0
Features\t: fp asimd fphp asimdhp asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""
PI_32 = """processor\t: 0
model name\t: ARMv7 Processor rev 3 (v7l)
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32
CPU implementer\t: 0x41
CPU part\t: 0xd08

Hardware\t: BCM2711
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""


@pytest.mark.parametrize(
    ("text", "machine", "model", "isa"),
    [
        (
            X86,
            "x86_64",
            "Intel(R) Xeon(R) Platinum 8480+",
            ("avx2", "avx512", "vnni", "bf16", "amx_int8", "fp16"),
        ),
        (ALDER, "x86_64", "12th Gen Intel(R) Core(TM) i5-1240P", ("avx2", "vnni")),
        (ROCKCHIP, "aarch64", "Cortex-A55 + Cortex-A76", ("fp16", "neon", "dotprod")),
        (GRAVITON, "aarch64", "Neoverse-V1", ("bf16", "fp16", "neon", "dotprod", "i8mm")),
        (PI_32, "armv7l", "Cortex-A72 (Raspberry Pi 4 Model B Rev 1.4)", ("neon",)),
        ("", "aarch64", "", ("neon",)),
        ("", "x86_64", "", ()),
    ],
)
def test_processors(text, machine, model, isa):
    cpu = facts.parse_cpuinfo(text)
    assert cpu.model == model
    assert sorted(facts.isa_of(cpu.flags, machine)) == sorted(isa)


def test_memory():
    assert facts.parse_meminfo("MemTotal:        3884320 kB\nMemFree: 1 kB\n") == 3884320 * 1024
    assert facts.parse_meminfo("") == 0


@pytest.mark.parametrize(
    ("text", "processors"),
    [("max 100000\n", math.inf), ("150000 100000", 1.5), ("", math.inf), ("5 0", math.inf)],
)
def test_quota_of_version_2(text, processors):
    assert facts.parse_cpu_max(text) == processors


def test_limits_in_bytes():
    assert facts.parse_bytes("max\n") == math.inf
    assert facts.parse_bytes("9223372036854771712") == math.inf
    assert facts.parse_bytes("536870912\n") == 2**29


@given(st.text(max_size=200))
def test_any_text_is_understood_or_ignored(text):
    facts.parse_cpuinfo(text)
    facts.parse_cgroup(text)
    facts.parse_cpu_max(text)
    facts.parse_bytes(text)


@pytest.mark.parametrize(
    ("machine", "bits", "name"),
    [
        ("x86_64", 64, "x86_64"),
        ("AMD64", 64, "x86_64"),
        ("arm64", 64, "aarch64"),
        ("aarch64", 32, "armv7l"),
        ("armv7l", 32, "armv7l"),
    ],
)
def test_machines(machine, bits, name):
    assert facts.machine_name(machine, bits) == name


def write(root, **files):
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def test_limits_of_version_2_count_on_every_level(tmp_path):
    write(
        tmp_path,
        **{
            "proc/self/cgroup": "0::/system.slice/agent.service\n",
            "sys/fs/cgroup/system.slice/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/system.slice/memory.max": "1073741824\n",
            "sys/fs/cgroup/system.slice/agent.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/system.slice/agent.service/memory.max": "max\n",
        },
    )
    assert facts.cgroup_limits(tmp_path) == (4.0, 2**30)


def test_limits_of_version_1(tmp_path):
    write(
        tmp_path,
        **{
            "proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "268435456\n",
        },
    )
    assert facts.cgroup_limits(tmp_path) == (0.5, 2**28)
    assert facts.cgroup_limits(tmp_path / "nothing") == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"dev/nvidia0": "", "dev/nvidiactl": ""}, ("nvidia-gpu",)),
        ({"dev/nvidiactl": ""}, ()),
        (
            {"dev/dri/renderD128": "", "sys/class/drm/renderD128/device/vendor": "0x8086\n"},
            ("intel-gpu",),
        ),
        ({"dev/dri/renderD128": "", "sys/class/drm/renderD128/device/vendor": "0x1af4\n"}, ()),
        (
            {"dev/accel/accel0": "", "sys/class/accel/accel0/device/vendor": "0x8086\n"},
            ("intel-npu",),
        ),
        ({"dev/apex_0": ""}, ("edgetpu",)),
        (
            {
                "sys/bus/usb/devices/1-1/idVendor": "1a6e\n",
                "sys/bus/usb/devices/1-1/idProduct": "089a\n",
            },
            ("edgetpu",),
        ),
        (
            {
                "sys/bus/usb/devices/1-1/idVendor": "18d1\n",
                "sys/bus/usb/devices/1-1/idProduct": "4ee7\n",
            },
            (),
        ),
        ({"proc/device-tree/compatible": "radxa,rock-5b\0rockchip,rk3588\0"}, ("rockchip-npu",)),
    ],
)
def test_accelerators(tmp_path, files, found):
    write(tmp_path, **files)
    assert facts.find_accelerators(tmp_path) == found


def test_facts_of_a_small_device(tmp_path):
    write(
        tmp_path,
        **{
            "proc/cpuinfo": PI_32,
            "proc/meminfo": "MemTotal:  1000000 kB\n",
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/memory.max": "104857600\n",
        },
    )
    known = {"a": Availability(True, "1.0"), "b": Availability(False, "2.0", "broken")}
    found = facts.device_facts(known, tmp_path)
    assert (found.cores, found.memory_bytes) == (1, 104857600)
    assert found.runtimes == {"a": "1.0"}
    assert found.cpu.startswith("Cortex-A72")


def test_facts_of_this_machine():
    found = facts.device_facts()
    assert set(found.runtimes) == {"onnxruntime", "openvino", "litert"}
    assert found.cores >= 1
    assert found.memory_bytes > 2**26
    assert found.python == platform.python_version()
    assert facts.check_runtimes().keys() == found.runtimes.keys()


def test_a_probe_that_dies_or_hangs_is_not_usable(monkeypatch):
    monkeypatch.setattr(facts, "runtime_names", lambda: ("onnxruntime",))
    monkeypatch.setattr(facts, "_PROBE", "import os; os.kill(os.getpid(), 4)")
    found = facts.probe_runtimes()["onnxruntime"]
    assert not found.usable
    assert "-4" in found.reason
    assert found.hint
    monkeypatch.setattr(facts, "_PROBE", "import time; time.sleep(60)")
    assert "took over" in facts.probe_runtimes(timeout_s=0.2)["onnxruntime"].reason


def test_the_host_line():
    known = DeviceFacts(
        machine="aarch64",
        system="Linux",
        cpu="Cortex-A76",
        cores=4,
        memory_bytes=8 * 2**30,
        isa=("neon", "dotprod"),
        accelerators=("edgetpu",),
        os="Debian 12",
    )
    line = facts.host_line(known)
    assert line == "Cortex-A76, 4 cores, 8.0 GiB, neon dotprod, edgetpu, Debian 12 aarch64"
    assert "1 core, " in facts.host_line(DeviceFacts(machine="x86_64", system="Linux"))
