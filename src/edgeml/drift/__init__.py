"""DriftReference, DriftWindow, DriftVerdict."""
