"""Pruning of ONNX models, without a training framework.

What belongs together is found by following every channel through the graph (``trace`` and the
rules); what may go is ranked by the error that its removal causes on calibration data after the
rest has made up for it (``importance``); how much of it goes where is chosen by the error per
multiplication saved (``amounts``); it is really removed (``remove``), and the layers that lost
inputs are fitted anew by least squares (``refit``).
"""

from edgeml_converters.pruning.engine import Plan, Report, prune

__all__ = ["Plan", "Report", "prune"]
