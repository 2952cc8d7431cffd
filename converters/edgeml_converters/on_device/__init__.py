"""Candidates measured on devices of a fleet, instead of on this machine."""

from edgeml_converters.on_device.bench import DeviceBench, benches_on

__all__ = ["DeviceBench", "benches_on"]
