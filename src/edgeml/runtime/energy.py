"""The energy that the processor has used, where the kernel counts it.

Linux offers the counters of Intel's and AMD's processors as files (Documentation/power/powercap):
one folder per package, ``energy_uj`` in microjoules, which starts again at 0 after
``max_energy_range_uj``. Most systems let only root read it. The counter is of the whole package:
what else runs is counted too, so only interleaved figures compare.
"""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/")


class EnergyCounter:
    """Sums the counters of all packages."""

    def __init__(self, packages: list[tuple[Path, int]]) -> None:
        """Take the counters.

        Args:
            packages: For each package its counter and the value after which that starts again.

        Raises:
            OSError: One cannot be read.
        """
        self._packages = packages
        self._last = [_number(path) for path, _ in packages]
        self._sum = 0

    @classmethod
    def find(cls, root: Path = _ROOT) -> EnergyCounter | None:
        """Return a counter of this machine; None where there is none that may be read.

        Args:
            root: Root of the file system, for tests.
        """
        packages = []
        for folder in sorted(root.glob("sys/class/powercap/*:*")):
            if folder.name.count(":") != 1:
                continue  # a part of a package, which the package counts already
            try:
                if not (folder / "name").read_text().startswith("package"):
                    continue  # psys and others count the same once more
                span = _number(folder / "max_energy_range_uj")
                _number(folder / "energy_uj")
            except (OSError, ValueError):
                continue  # not there, or only for root
            packages.append((folder / "energy_uj", span))
        return cls(packages) if packages else None

    def joules(self) -> float:
        """Return the energy used since the counter was made, in joules.

        Raises:
            OSError: A counter cannot be read any more.
        """
        for index, (path, span) in enumerate(self._packages):
            now = _number(path)
            step = now - self._last[index]
            self._sum += step if step >= 0 else step + span
            self._last[index] = now
        return self._sum / 1e6


def _number(path: Path) -> int:
    return int(path.read_text())
