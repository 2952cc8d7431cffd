"""Converts a model from Python, and looks at what was tried.

python examples/train_digits.py --out build/digits
python examples/convert_from_python.py build/digits
"""

from __future__ import annotations

import sys
from pathlib import Path

import edgeml


def main() -> None:
    """Convert the digits for this machine's processor, and print every candidate."""
    folder = Path(sys.argv[1])
    result = edgeml.convert(
        folder / "digits-1.0.0.onnx",
        profile="cpu-x86-64",
        data=folder / "digits.npz",
        metric="top1",
        max_drop=0.01,
        name="digits",
        version="1.0.0",
        out=folder / "digits-1.0.0.edgeml",
        effort="quick",
    )
    (found,) = result.results
    for candidate in found.candidates:
        print(f"{candidate.id:32} {candidate.verdict:10} {candidate.reason}")
    print(f"winner: {found.winner.id}, {found.speedup.value:.2f} times as fast, {result.bundle}")


if __name__ == "__main__":
    main()
