"""The systemd unit: what it starts exists, and systemd understands every line."""

import re
import shutil
import subprocess
from pathlib import Path

from edgeml_agent.cli import COMMANDS

UNIT = Path(__file__).parents[2] / "agent" / "edgeml-agent.service"


def test_it_starts_a_command_that_exists_and_is_sandboxed():
    keys = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.M))
    _, program, command, *options = keys["ExecStart"].split()
    assert (program, command in COMMANDS) == ("edgeml-agent", True)
    assert options[0] == "--config"
    wanted = {
        "DynamicUser": "yes",
        "StateDirectory": "edgeml-agent",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "CapabilityBoundingSet": "",
        "Restart": "always",
    }
    assert {key: keys[key] for key in wanted} == wanted


def test_systemd_understands_it():
    tool = shutil.which("systemd-analyze")
    if tool is None:  # not a machine with systemd: the unit is not for it
        return
    done = subprocess.run([tool, "verify", UNIT], capture_output=True, text=True, check=False)
    about_it = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert about_it == []
