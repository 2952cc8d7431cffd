"""Engine: checks a request against the model's contract, queues it, and accounts for the reply."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable

import numpy as np

from edgeml.errors import EdgemlError, RequestError
from edgeml.tensors import Array, TensorSpec, check_feed
from edgeml_agent.serve.batcher import Item, Outcome
from edgeml_agent.serve.generation import Generation
from edgeml_agent.serve.oip import InferRequest, check_wanted
from edgeml_agent.serve.refused import Refused, kind_of
from edgeml_agent.serve.slots import Slots

#: Called with what answers: the generation, the request's id, and the outputs or the error.
Done = Callable[[Generation, str, Outcome], None]


class Engine:
    """What every door (HTTP today) hands its requests to. Lives on the loop.

    Args:
        slots: The models.
        deadline_seconds: A request that waited longer is dropped.
        allow_nonfinite: Whether NaN and infinity are let into a model.

    Attributes:
        slots: The models.
        deadline: Seconds after which a request is dropped.
    """

    def __init__(self, slots: Slots, deadline_seconds: float, allow_nonfinite: bool) -> None:
        """Remember the models and the rules."""
        self.slots = slots
        self.deadline = deadline_seconds
        self._allow_nonfinite = allow_nonfinite
        self._prefix = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def infer(self, model: str, version: str, request: InferRequest, done: Done) -> Item:
        """Queue a request; ``done`` is called later, once, on the loop.

        Args:
            model: Name of the slot.
            version: The version that must serve there; empty for any.
            request: The decoded request.
            done: Takes the outcome.

        Returns:
            The place in the queue; set its ``gone`` when nobody waits any more.

        Raises:
            RequestError: The request does not fit the model.
            Refused: No such model, or the queue is full.
        """
        slot, generation = self.slots.find(model, version)
        counts = generation.counts
        try:
            feed = self._checked(generation.manifest.inputs, request)
            check_wanted(generation.manifest.outputs, request)
            seconds = min(request.timeout or self.deadline, self.deadline)
            request_id = request.id or f"{self._prefix}-{next(self._numbers):x}"

            def finish(outcome: Outcome) -> None:
                if not generation.nonfinite and not isinstance(outcome, EdgemlError):
                    outcome = _finite(outcome)
                if isinstance(outcome, EdgemlError):
                    counts.failed(kind_of(outcome))
                else:
                    counts.answered(time.perf_counter() - item.arrived, generation.on_fallback)
                    slot.memory.keep(request_id, counts, outcome, generation.manifest.labels)
                    if counts.drift is not None:
                        counts.drift.add(feed, outcome)
                done(generation, request_id, outcome)

            item = Item(feed, time.perf_counter() + seconds, finish)
            generation.batcher.submit(item)
        except EdgemlError as error:
            counts.failed(kind_of(error))
            raise
        return item

    def _checked(self, specs: tuple[TensorSpec, ...], request: InferRequest) -> dict[str, Array]:
        """Return the feed in the order of the contract.

        Raises:
            RequestError: A type, a shape, a length on axis 0, or a value that is not finite.
        """
        check_feed(specs, request.feed)
        feed = request.feed
        if len(specs) > 1:
            feed = {spec.name: feed[spec.name] for spec in specs}
        rows = {feed[spec.name].shape[0] for spec in specs if spec.batched}
        if len(rows) > 1:
            raise RequestError(f"the inputs have {sorted(rows)} rows, expected the same number")
        if 0 in rows:
            raise RequestError("the request has 0 rows, expected at least 1")
        if not self._allow_nonfinite:
            for name, array in feed.items():
                if not is_finite(array):
                    raise RequestError(
                        f"input '{name}' holds values that are not finite (NaN or infinity)",
                        "replace missing values before the request",
                    )
        return feed


def is_finite(array: Array) -> bool:
    """Tell whether an array holds neither NaN nor infinity."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _finite(outputs: dict[str, Array]) -> Outcome:
    """Return outputs whose values are all finite, or the error that says which are not."""
    for name, array in outputs.items():
        if not is_finite(array):
            return Refused(
                f"output '{name}' holds values that are not finite (NaN or infinity)",
                "the model failed on this request",
                status=500,
                kind="nonfinite",
            )
    return outputs
