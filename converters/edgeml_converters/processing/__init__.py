"""Processing in the graph: what is done before and after a model becomes a part of it.

A device then gives the model what its camera or sensor gives, and gets what its user wants. What
the training saw is written down once, where the model is converted, and every variant, runtime
and device does the same.
"""

from edgeml_converters.processing.spec import (
    Nms,
    Postprocess,
    Preprocess,
    read_postprocess,
    read_preprocess,
)

__all__ = ["Nms", "Postprocess", "Preprocess", "read_postprocess", "read_preprocess"]
