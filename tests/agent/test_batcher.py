"""The batcher: every request gets its own answer, whatever its neighbours do."""

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.errors import DeviceError, EdgemlError
from edgeml_agent.serve.batcher import Batcher, Item
from edgeml_agent.serve.refused import Refused


class Model:
    """y = 2 x + 1 per row; fails on a row that holds 666; notes the batches it saw."""

    def __init__(self):
        self.batches = []
        self.enter = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def run(self, feed):
        x = feed["x"]
        self.batches.append(len(x))
        self.enter.set()
        assert self.go.wait(10)
        if (x == 666).any():
            raise DeviceError("poison")
        if (x == 667).any():
            raise ZeroDivisionError("a third party's surprise")
        return {"y": x * 2 + 1, "row": x[:, :1].copy()}


def feed(rows, start=0.0, width=3):
    values = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    return {"x": values + np.float32(start)}


def later(seconds=30.0):
    return time.perf_counter() + seconds


async def ask(batcher, given, deadline=None):
    """Submit, and wait for the outcome."""
    future = asyncio.get_running_loop().create_future()
    item = Item(given, deadline or later(), future.set_result)
    batcher.submit(item)
    return await asyncio.wait_for(future, 10)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    limit=st.integers(1, 8),
    hard=st.integers(0, 5),
    inline=st.booleans(),
)
def test_batched_is_unbatched_row_by_row(rows, limit, hard, inline):
    model = Model()

    async def main():
        loop = asyncio.get_running_loop()
        batcher = Batcher(loop, model.run, limit=limit, hard=hard, inline=inline)
        feeds = [feed(n, start=100.0 * i) for i, n in enumerate(rows)]
        outcomes = await asyncio.gather(*(ask(batcher, f) for f in feeds))
        await batcher.drained()
        batcher.close()
        return feeds, outcomes

    feeds, outcomes = asyncio.run(main())
    for given_feed, outcome in zip(feeds, outcomes, strict=True):
        np.testing.assert_array_equal(outcome["y"], given_feed["x"] * 2 + 1)
        np.testing.assert_array_equal(outcome["row"], given_feed["x"][:, :1])
    longest = max(max(rows) if not hard else min(hard, max(rows)), limit)
    assert max(model.batches) <= longest


@pytest.mark.parametrize("poison", [666, 667])
@pytest.mark.parametrize("inline", [True, False])
def test_one_bad_request_harms_no_other(inline, poison):
    model = Model()

    async def main():
        batcher = Batcher(asyncio.get_running_loop(), model.run, limit=8, inline=inline)
        feeds = [feed(1, i) for i in range(5)]
        feeds[2]["x"][0, 1] = poison
        first = await asyncio.gather(*(ask(batcher, f) for f in feeds))
        again = await ask(batcher, feed(1, 7))
        batcher.close()
        return feeds, first, again

    feeds, outcomes, again = asyncio.run(main())
    assert isinstance(outcomes[2], DeviceError)
    for i in (0, 1, 3, 4):
        np.testing.assert_array_equal(outcomes[i]["y"], feeds[i]["x"] * 2 + 1)
    np.testing.assert_array_equal(again["y"], feed(1, 7)["x"] * 2 + 1)
    assert 5 in model.batches, "they were tried together first"


def _sum(given_feed):
    return {"y": given_feed["x"].sum(axis=0, keepdims=True)}


def test_a_model_that_mixes_rows_is_run_one_by_one():
    async def main():
        batcher = Batcher(asyncio.get_running_loop(), _sum, limit=4, inline=True)
        return await asyncio.gather(*(ask(batcher, feed(1, i)) for i in range(3)))

    outcomes = asyncio.run(main())
    for i, outcome in enumerate(outcomes):
        np.testing.assert_array_equal(outcome["y"], _sum(feed(1, i))["y"])


def test_shapes_that_differ_do_not_share_a_run():
    model = Model()

    async def main():
        batcher = Batcher(asyncio.get_running_loop(), model.run, limit=8, inline=True)
        feeds = [feed(1, 1, 3), feed(2, 2, 3), feed(1, 3, 4), feed(1, 4, 4)]
        return feeds, await asyncio.gather(*(ask(batcher, f) for f in feeds))

    feeds, outcomes = asyncio.run(main())
    assert model.batches == [3, 2]
    for given_feed, outcome in zip(feeds, outcomes, strict=True):
        np.testing.assert_array_equal(outcome["y"], given_feed["x"] * 2 + 1)


def test_gone_and_late_requests_are_dropped_before_the_run():
    model = Model()

    async def main():
        batcher = Batcher(asyncio.get_running_loop(), model.run, limit=4, inline=False)
        model.go.clear()
        first = asyncio.create_task(ask(batcher, feed(1)))
        await asyncio.to_thread(model.enter.wait, 10)
        loop = asyncio.get_running_loop()
        gone, late, live = loop.create_future(), loop.create_future(), loop.create_future()
        item = Item(feed(1), later(), gone.set_result)
        batcher.submit(item)
        batcher.submit(Item(feed(1), time.perf_counter(), late.set_result))
        batcher.submit(Item(feed(1, 5), later(), live.set_result))
        item.gone = True
        model.go.set()
        outcomes = [await first, await gone, await late, await live]
        batcher.close()
        return outcomes

    first, gone, late, live = asyncio.run(main())
    assert "y" in first and "y" in live
    assert isinstance(gone, Refused) and gone.kind == "cancelled"
    assert isinstance(late, Refused) and late.kind == "deadline" and late.status == 504
    assert model.batches == [1, 1]


def test_a_full_queue_refuses_and_says_when_to_come_back():
    model = Model()

    async def main():
        batcher = Batcher(asyncio.get_running_loop(), model.run, limit=4, inline=False, max_queue=2)
        model.go.clear()
        first = asyncio.create_task(ask(batcher, feed(1)))
        await asyncio.to_thread(model.enter.wait, 10)
        waiting = [asyncio.create_task(ask(batcher, feed(1))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            batcher.submit(Item(feed(1), later(), lambda outcome: None))
        model.go.set()
        await asyncio.gather(first, *waiting)
        await batcher.drained()
        batcher.close()
        batcher.close()
        return refused.value

    error = asyncio.run(main())
    assert (error.status, error.kind) == (503, "overload") and error.retry_after >= 1


def test_a_wait_beyond_the_deadline_is_refused_at_once():
    async def main():
        batcher = Batcher(asyncio.get_running_loop(), Model().run, limit=1, inline=True)
        batcher._batch_seconds = 1.0
        batcher.submit(Item(feed(1), later(), lambda outcome: None))
        assert batcher.predicted_wait() == 1.0
        with pytest.raises(Refused, match="longer than the deadline"):
            batcher.submit(Item(feed(1), later(0.5), lambda outcome: None))
        await batcher.drained()

    asyncio.run(main())


def test_a_slow_run_leaves_the_loop():
    def slow(given_feed):
        time.sleep(0.02)
        return {"y": given_feed["x"]}

    async def main():
        batcher = Batcher(asyncio.get_running_loop(), slow, inline=True)
        for _ in range(3):
            outcome = await ask(batcher, feed(1))
            assert not isinstance(outcome, EdgemlError)
        assert not batcher.inline
        batcher.close()

    asyncio.run(main())


def test_nobody_waits_for_a_run_that_hangs():
    model = Model()

    async def main():
        batcher = Batcher(asyncio.get_running_loop(), model.run, limit=1, inline=False)
        model.go.clear()
        outcomes = await asyncio.gather(
            ask(batcher, feed(1), later(0.3)), ask(batcher, feed(1, 1), later(0.3))
        )
        hung = batcher.running_seconds
        model.go.set()
        again = await ask(batcher, feed(1, 2))
        batcher.close()
        return outcomes, hung, again

    outcomes, hung, again = asyncio.run(main())
    assert [outcome.kind for outcome in outcomes] == ["deadline", "deadline"]
    assert hung >= 0.3 and "y" in again
