"""Preprocess and Postprocess: what is done before and after a model becomes a part of it."""

from __future__ import annotations

from typing import Any

import onnx

from edgeml_converters.passes.base import OPSET13, STANDARD, WEIGHTS, PassContext, PassResult
from edgeml_converters.processing import after, before
from edgeml_converters.processing.spec import Postprocess, Preprocess, from_options, options_of


class PreprocessPass:
    """Put resizing, cropping, normalising and turning in front of an input."""

    name = "preprocess"
    needs: frozenset[str] = frozenset({OPSET13})
    promises: frozenset[str] = frozenset({STANDARD, WEIGHTS})

    def __init__(self, **options: Any) -> None:
        """Take the keys of ``processing.spec.Preprocess``.

        Raises:
            msgspec.ValidationError: They are not such keys.
        """
        self.spec = from_options(Preprocess, options)

    @property
    def options(self) -> dict[str, Any]:
        """What is not left as it is by default."""
        return options_of(self.spec)

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: It does not fit the model.
        """
        return PassResult(before.build(model, self.spec), True)


class PostprocessPass:
    """Put softmax, the best classes or non-maximum suppression behind an output."""

    name = "postprocess"
    needs: frozenset[str] = frozenset({OPSET13})
    promises: frozenset[str] = frozenset({STANDARD, WEIGHTS})

    def __init__(self, **options: Any) -> None:
        """Take the keys of ``processing.spec.Postprocess``.

        Raises:
            msgspec.ValidationError: They are not such keys.
        """
        self.spec = from_options(Postprocess, options)

    @property
    def options(self) -> dict[str, Any]:
        """What is not left as it is by default."""
        return options_of(self.spec)

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: It does not fit the model.
        """
        made = after.build(model, self.spec)
        if len(made.graph.node) == len(model.graph.node):
            return PassResult(model, False, ("labels only",))
        return PassResult(made, True)
