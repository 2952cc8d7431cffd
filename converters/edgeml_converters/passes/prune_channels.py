"""PruneChannels: whole channels of convolutions, and units of dense layers, are really removed.

What is left makes up for what went, by least squares on calibration data; see
``edgeml_converters.pruning``. It saves time on any processor, and it costs accuracy: the gates
decide.
"""

from __future__ import annotations

from typing import Any

import onnx

from edgeml.errors import UsageError
from edgeml_converters.passes.base import (
    CALIBRATION,
    FLOAT,
    OPSET13,
    SIGNATURE,
    SMALLER,
    STANDARD,
    PassContext,
    PassResult,
)
from edgeml_converters.pruning import Plan, prune
from edgeml_converters.pruning.remove import CHANNELS, UNITS


def checked_plan(
    kinds: frozenset[str], amount: float, multiple: int, samples: int, reconstruct: bool
) -> Plan:
    """Return the plan of a structured pass.

    Raises:
        UsageError: An option has a value that it cannot have.
    """
    if not 0.0 < amount < 1.0:
        raise UsageError(f"amount {amount}, expected more than 0 and less than 1")
    if multiple < 1 or samples < 1:
        raise UsageError(f"multiple {multiple} and samples {samples}, expected at least 1")
    return Plan(kinds, amount, multiple, samples=samples, fit=reconstruct)


class PruneChannels:
    """Remove channels and units; see the module."""

    name = "prune_channels"
    needs = frozenset({CALIBRATION, OPSET13, FLOAT})
    promises = frozenset({SIGNATURE, STANDARD, SMALLER})
    _kinds = frozenset({CHANNELS, UNITS})

    def __init__(
        self,
        amount: float = 0.3,
        multiple: int = 8,
        samples: int = 256,
        reconstruct: bool = True,
    ) -> None:
        """Choose how far.

        Args:
            amount: The share of the multiplications to save.
            multiple: Channels are computed in multiples of this on the device.
            samples: At most this many calibration samples are used.
            reconstruct: Whether layers are fitted anew on what is left.

        Raises:
            UsageError: An option has a value that it cannot have.
        """
        self._plan = checked_plan(self._kinds, amount, multiple, samples, reconstruct)

    @property
    def options(self) -> dict[str, Any]:
        """All that was chosen."""
        plan = self._plan
        return {
            "amount": plan.amount,
            "multiple": plan.multiple,
            "samples": plan.samples,
            "reconstruct": plan.fit,
        }

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: No calibration data, nothing that can be pruned, a quantised model.
            DataError: The calibration data hold less than one batch of the model.
        """
        pruned, report = prune(model, context, self._plan)
        return PassResult(pruned, True, report.notes)
