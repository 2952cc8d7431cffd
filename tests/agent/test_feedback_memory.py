"""Labels that come late find their prediction, once, and are counted for who predicted."""

import asyncio
import json

import numpy as np
import pytest

from edgeml.errors import RequestError
from edgeml.messages.payloads import Ref
from edgeml_agent.serve.feedback import Memory
from edgeml_agent.serve.refused import Refused
from edgeml_agent.serve.window import Counts, is_empty

LABELS = ("cat", "dog")


def counts(version="1.0.0"):
    return Counts("m", Ref("m", version, "sha256:" + "0" * 64))


def scores(*classes):
    return {"y": np.eye(2, dtype=np.float32)[list(classes)]}


def label(memory, request_id, value):
    return memory.label(json.dumps({"id": request_id, "label": value}).encode())


def test_labels_are_counted_once_for_the_version_that_predicted():
    memory, old, new = Memory(10), counts("1.0.0"), counts("2.0.0")
    memory.keep("a", old, scores(0), LABELS)
    memory.keep("b", new, scores(1, 0), LABELS)
    assert label(memory, "a", "dog") == (1, 0)
    assert label(memory, "b", [1, "cat"]) == (2, 2)
    assert (old.labelled, old.correct, new.labelled, new.correct) == (1, 0, 2, 2)
    with pytest.raises(Refused) as refused:
        label(memory, "a", 0)
    assert refused.value.status == 404


def test_memory_is_bounded_and_the_oldest_goes_first():
    memory, mine = Memory(3), counts()
    for i in range(5):
        memory.keep(str(i), mine, scores(0), ())
    memory.keep("2", mine, scores(1), ())
    memory.keep("5", mine, scores(0), ())
    assert len(memory) == 3
    with pytest.raises(Refused):
        label(memory, "3", 0)
    assert label(memory, "2", 1) == (1, 1), "the same id again is the newer prediction"


def test_what_has_no_classes_is_not_remembered():
    memory = Memory(3)
    for output in (np.ones(3), np.ones((2, 1)), np.ones((1, 2, 2)), np.ones((300, 2))):
        memory.keep("a", counts(), {"y": output}, ())
    assert len(memory) == 0


@pytest.mark.parametrize("value", ["bird", -1, 1.5, True, None, [0, 1], [], {"a": 1}])
def test_a_wrong_label_is_told_and_may_be_sent_again(value):
    memory, mine = Memory(3), counts()
    memory.keep("a", mine, scores(1), LABELS)
    with pytest.raises(RequestError):
        label(memory, "a", value)
    assert mine.labelled == 0 and label(memory, "a", "dog") == (1, 1)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"id": 1, "label": 1}', b"\xff", b"[" * 9000])
def test_a_body_that_is_no_label(body):
    with pytest.raises(RequestError):
        Memory(3).label(body)


def test_windows_hold_what_came_since_the_last_one():
    mine = counts()
    mine.answered(0.001, fallback=False)
    mine.answered(0.1, fallback=True)
    mine.failed("device")
    first = asyncio.run(mine.take())
    assert (first.requests, first.fallbacks, first.errors) == (2, 1, {"device": 1})
    assert sum(first.latency) == 2 and first.seconds > 0
    assert is_empty(asyncio.run(mine.take()))
    mine.labels(3, 2)
    mine.failed("request")
    second = asyncio.run(mine.take())
    assert (second.requests, second.labelled, second.correct) == (0, 3, 2)
    assert second.errors == {"request": 1} and sum(second.latency) == 0
    assert mine.errors == {"device": 1, "request": 1}, "totals stay"
