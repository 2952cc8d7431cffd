"""PruneHidden: whole attention heads, and hidden units of feed-forward blocks, are removed.

A head goes from the projections of queries, keys and values, from the numbers in the Reshapes
between, and from the projection that reads it; see ``edgeml_converters.pruning``. The stream that
the blocks add to keeps its width: its normalisation mixes all of it.
"""

from __future__ import annotations

from edgeml_converters.passes.prune_channels import PruneChannels
from edgeml_converters.pruning.remove import HEADS, UNITS


class PruneHidden(PruneChannels):
    """Remove heads and units; see the module."""

    name = "prune_hidden"
    _kinds = frozenset({HEADS, UNITS})
