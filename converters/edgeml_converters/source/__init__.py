"""Source models: what a file is, whether it is whole, and the checked model in memory."""

from edgeml_converters.source.model import Source
from edgeml_converters.source.sniff import read_model_file, sniff

__all__ = ["Source", "read_model_file", "sniff"]
