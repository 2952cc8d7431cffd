"""Brings what the tests need and pip cannot: mosquitto, skopeo, a Chromium.

``python -m tests.support.tools`` installs what is missing when it may (apt as root, or by sudo
without a password; Playwright's own installer where apt has no real Chromium), and otherwise says
in one line what to install. With ``CI=true`` a missing tool ends in exit 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def mosquitto() -> str | None:
    """Return the path of mosquitto; Debian keeps it in /usr/sbin."""
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def chromium() -> str | None:
    """Return the path of a Chromium that starts (Ubuntu's package may be an empty shell)."""
    found = [shutil.which(name) for name in CHROMIUM_NAMES]
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache/ms-playwright"))
    found += [str(p) for p in sorted(cache.glob("chromium*/chrome-linux*/*chrome*"))]
    found += [str(p) for p in sorted(cache.glob("chromium*/chrome-linux*/headless_shell"))]
    for path in found:
        if path and os.access(path, os.X_OK) and _starts(path):
            return path
    return None


def _starts(path: str) -> bool:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _apt() -> list[str] | None:
    """Return the words that run apt-get with the rights to install; None when we may not."""
    if shutil.which("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return ["apt-get"]
    if shutil.which("sudo"):
        able = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
        if able.returncode == 0:
            return ["sudo", "-n", "apt-get"]
    return None


_updated = False


def _apt_install(package: str) -> None:
    global _updated
    apt = _apt()
    if apt is None:
        return
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if not _updated:
        subprocess.run([*apt, "update", "-qq"], env=env, check=False, stdout=subprocess.DEVNULL)
        _updated = True
    say(f"installing {package} ...")
    subprocess.run(
        [*apt, "install", "-y", "-qq", "--no-install-recommends", package],
        env=env,
        check=False,
        stdout=subprocess.DEVNULL,
    )


def _playwright_install(_: str) -> None:
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)


def say(line: str) -> None:
    """Write a line for people."""
    sys.stderr.write(line + "\n")


Finder = Callable[[], str | None]
Installer = Callable[[str], None]
TOOLS: list[tuple[str, Finder, list[Installer]]] = [
    ("mosquitto", mosquitto, [_apt_install]),
    ("skopeo", lambda: shutil.which("skopeo"), [_apt_install]),
    ("chromium", chromium, [_apt_install, _playwright_install]),
]


def main() -> int:
    """Install what is missing; return the exit code."""
    absent = []
    for package, find, installers in TOOLS:
        for install in installers:
            if find():
                break
            install(package)
        if not find():
            absent.append(package)
    if absent:
        say(f"missing: {', '.join(absent)}; install them: apt-get install {' '.join(absent)}")
        return 1 if os.environ.get("CI") == "true" else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
