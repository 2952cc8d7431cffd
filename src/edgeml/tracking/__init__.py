"""Trackers: where an account of each conversion is kept, when somebody asks for it.

Nothing is tracked, and nobody is called, unless a place is named: by ``--track``, by
``EDGEML_TRACK``, or in the settings.
"""

from __future__ import annotations

from edgeml.tracking.base import Record, Tracker
from edgeml.tracking.places import open_tracker

__all__ = ["Record", "Tracker", "open_tracker"]
