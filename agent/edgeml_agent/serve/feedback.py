"""Labels that come late: joined to the prediction that was made for the same request id."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

from edgeml.errors import RequestError
from edgeml.tensors import Array
from edgeml_agent.serve.refused import Refused
from edgeml_agent.serve.window import Counts

#: Rows of one request beyond which its prediction is not remembered.
_MAX_ROWS = 256


class _Label(msgspec.Struct):
    id: str
    label: Any


_decoder = msgspec.json.Decoder(_Label)


class Memory:
    """The last predictions of one slot by request id; the oldest are forgotten first."""

    def __init__(self, most: int) -> None:
        """Remember at most ``most`` predictions."""
        self._most = most
        self._known: OrderedDict[str, tuple[Counts, list[int], tuple[str, ...]]] = OrderedDict()

    def __len__(self) -> int:
        """How many predictions are remembered."""
        return len(self._known)

    def keep(
        self, request_id: str, counts: Counts, outputs: dict[str, Array], labels: tuple[str, ...]
    ) -> None:
        """Remember what was predicted: per row the class with the highest score.

        Args:
            request_id: The id in the reply.
            counts: Of the version that predicted.
            outputs: Its outputs; the first one holds the scores.
            labels: Names of the classes, if they have any.
        """
        scores = next(iter(outputs.values()))
        if scores.ndim != 2 or scores.shape[1] < 2 or scores.shape[0] > _MAX_ROWS:
            return
        if scores.dtype.kind not in "fiu":
            return
        classes: list[int] = scores.argmax(axis=1).tolist()
        self._known.pop(request_id, None)
        self._known[request_id] = (counts, classes, labels)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def label(self, body: bytes) -> tuple[int, int]:
        """Join a label to its prediction, and count it for the version that predicted.

        Args:
            body: ``{"id": ..., "label": ...}``; the label is a class number or, when the model
                names its classes, a name; a list of them for a request with several rows.

        Returns:
            Labels, and how many agreed with the prediction.

        Raises:
            RequestError: The body or the label is not of that form.
            Refused: No prediction with this id is remembered, or it was labelled already.
        """
        try:
            given = _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(f"the body is not {{'id', 'label'}}: {error}") from error
        known = self._known.get(given.id)
        if known is None:
            raise Refused(
                f"no prediction with id '{given.id[:80]}' waits for a label",
                "it is unknown, too old, labelled already, or has no classes",
                status=404,
                kind="not_found",
            )
        counts, classes, names = known
        labels = given.label if isinstance(given.label, list) else [given.label]
        if len(labels) != len(classes):
            raise RequestError(f"{len(labels)} labels, expected {len(classes)}: one per row")
        numbers = [_class_number(label, names) for label in labels]
        del self._known[given.id]
        correct = sum(a == b for a, b in zip(numbers, classes, strict=True))
        counts.labels(len(numbers), correct)
        return len(numbers), correct


def _class_number(label: Any, names: tuple[str, ...]) -> int:
    if isinstance(label, str) and label in names:
        return names.index(label)
    if type(label) is not int or label < 0:
        expected = "a class number" + (" or name" if names else "")
        raise RequestError(f"label {str(label)[:40]!r}, expected {expected}")
    return label
