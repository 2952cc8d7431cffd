"""edgeml: gets machine-learning models onto edge devices and keeps them healthy there.

Stable API: what this module exports, and what ``docs/reference`` lists. ``edgeml.convert`` is
found on first use, so that importing the core stays light.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "convert"]


def __getattr__(name: str) -> Any:
    """Load the converter when ``edgeml.convert`` is first used."""
    if name == "convert":
        from edgeml.plugins import load_object

        return load_object("edgeml_converters.api:convert", extra="convert")
    raise AttributeError(f"module 'edgeml' has no attribute '{name}'")
