"""The fleet's side of measuring on devices: who is asked, how often, and how it ends."""

import msgspec
import pytest

from edgeml.bundle import Bundle
from edgeml.errors import InputError, UnreachableError, UsageError
from edgeml.fleet.measurement import MeasureRequest
from edgeml.fleet.measuring import REPEAT
from edgeml.fleet.store import Store
from edgeml.messages import topics
from edgeml.messages.measuring import Figures, MeasureStatus
from edgeml.messages.payloads import Rpc, decode, encode
from edgeml.trust.measuring import verify
from tests.support.fleet_simulator import FLEET, SimFleet
from tests.support.fleetlet import PROFILE, tiny_bundle

REQUEST = MeasureRequest("all", "cpu.tiny", limit_s=100.0)


class Bench:
    """What the devices of a simulated fleet were asked, and a way to answer for them."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.asked = {name: [] for name in fleet.devices}
        self.cancelled = {name: [] for name in fleet.devices}
        for name, device in fleet.devices.items():
            before = device.receive

            def receive(message, name=name, before=before):
                if topics.parse(message.topic).kind == "rpc":
                    call = decode(message.payload, Rpc)
                    if call.method == "measure":
                        self.asked[name].append(call.params["envelope"].encode())
                    elif call.method == "measure_cancel":
                        self.cancelled[name].append(call.id)
                before(message)

            device.link.subscribe(topics.all_down(FLEET, name), receive)
        fleet.settle()

    def order(self, name):
        context = {"fleet": FLEET, "device": name, "seen": 0, "now": self.fleet.clock()}
        return verify(self.asked[name][-1], self.fleet.keys, **context)

    def answer(self, name, state, **more):
        order = self.order(name)
        said = MeasureStatus(order.id, order.number, state, **more)
        self.say(name, Rpc(id=order.id, result=msgspec.to_builtins(said)))

    def say(self, name, reply):
        link = self.fleet.devices[name].link
        link.publish(topics.up(FLEET, name, "rpc"), encode(reply))
        self.fleet.settle()


@pytest.fixture
def bench(tmp_path):
    fleet = SimFleet(tmp_path, devices=2)
    yield Bench(fleet)
    fleet.close()


@pytest.fixture
def bundle(tmp_path):
    return tiny_bundle(tmp_path / "made", "candidates", "0.0.0-x", seed=3).path


def begin(bench, bundle, request=REQUEST):
    made = bench.fleet.services.measure(bundle, request, "tests")
    bench.fleet.settle()
    return made


def test_every_device_is_asked_again_until_its_last_word(bench, bundle):
    made = begin(bench, bundle)
    assert set(made.parts) == {"d000", "d001"}
    order = bench.order("d000")
    assert (order.id, order.profile, order.baseline) == (made.id, PROFILE, "cpu.tiny")
    assert order.ref.digest == Bundle.open(bundle).digest
    bench.answer("d000", "done", figures={"cpu.tiny": Figures((1.0,), 1.0)})
    asked = {name: len(orders) for name, orders in bench.asked.items()}
    bench.fleet.run(3 * REPEAT, traffic=False)
    assert len(bench.asked["d000"]) == asked["d000"]
    assert len(bench.asked["d001"]) > asked["d001"]
    assert len(set(bench.asked["d001"])) == 1  # to the byte, so that it is done once
    bench.answer("d001", "measuring", detail="checking cpu.tiny")
    now = bench.fleet.services.measurement(made.id)
    assert (now.state, now.parts["d001"].detail) == ("running", "checking cpu.tiny")
    bench.answer("d001", "failed", detail="no")
    now = bench.fleet.services.measurement(made.id)
    assert (now.state, now.parts["d000"].figures["cpu.tiny"].p50) == ("done", 1.0)
    bench.answer("d001", "done")  # a last word is a last word
    assert bench.fleet.services.measurement(made.id) == now
    assert bench.fleet.services.measurements() == [now]


def test_candidates_are_fetched_while_they_are_measured_and_then_gone(bench, bundle):
    begin(bench, bundle)
    opened = Bundle.open(bundle)
    assert bench.fleet.scratch.piece(opened.digest, 0, 1 << 20)[1] == opened.oci_manifest
    for name in ("d000", "d001"):
        bench.answer(name, "done")
    bench.fleet.run(2 * REPEAT, traffic=False)
    with pytest.raises(FileNotFoundError):
        bench.fleet.scratch.piece(opened.digest, 0, 1)
    assert bench.fleet.services.versions() == []


def test_nobody_who_cannot_answer_holds_it_up_for_ever(bench, bundle):
    made = begin(bench, bundle)
    bench.answer("d000", "done")
    bench.fleet.run(REQUEST.limit_s + 10, traffic=False, step=5.0)
    now = bench.fleet.services.measurement(made.id)
    assert now.state == "done"
    assert (now.parts["d001"].state, now.parts["d001"].detail) == ("failed", "no answer in time")
    assert bench.cancelled == {"d000": [], "d001": bench.cancelled["d001"]}
    assert made.id in bench.cancelled["d001"]


def test_cancelling_tells_the_devices(bench, bundle):
    made = begin(bench, bundle)
    ended = bench.fleet.services.cancel_measurement(made.id, "tests")
    bench.fleet.settle()
    assert ended.state == "cancelled"
    assert made.id in bench.cancelled["d000"]
    assert bench.fleet.services.cancel_measurement(made.id, "tests") == ended
    asked = len(bench.asked["d000"])
    bench.fleet.run(3 * REPEAT, traffic=False)
    assert len(bench.asked["d000"]) == asked
    again = begin(bench, bundle)
    assert again.numbers["d000"] > made.numbers["d000"]


def test_an_agent_that_cannot_measure_refuses(bench, bundle):
    made = begin(bench, bundle)
    bench.say("d000", Rpc(id=made.id, error="unknown method 'measure'"))
    now = bench.fleet.services.measurement(made.id)
    assert (now.parts["d000"].state, now.parts["d000"].detail) == (
        "refused", "unknown method 'measure'",
    )  # fmt: skip


def test_what_was_not_asked_for_changes_nothing(bench, bundle):
    made = begin(bench, bundle)
    before = bench.fleet.services.measurement(made.id)
    order = bench.order("d000")
    wrong = MeasureStatus(order.id, order.number - 1, "done")
    for reply in (
        Rpc(id=order.id, result=msgspec.to_builtins(wrong)),
        Rpc(id=order.id, result={"id": 5}),
        Rpc(id=order.id, result="done"),
        Rpc(id="other", error="no"),
    ):
        bench.say("d000", reply)
    bench.fleet.devices["d001"].link.publish(topics.up(FLEET, "d001", "rpc"), b"\xff")
    bench.fleet.settle()
    assert bench.fleet.services.measurement(made.id) == before


def test_who_takes_part(bench, bundle):
    begin(bench, bundle, msgspec.structs.replace(REQUEST, selector="device=d000"))
    second = begin(bench, bundle)
    assert set(second.parts) == {"d001"}
    assert second.skipped == {"d000": "measures already"}
    with pytest.raises(UsageError, match="measures already"):
        begin(bench, bundle)
    with pytest.raises(UsageError, match="fits no device"):
        begin(bench, bundle, msgspec.structs.replace(REQUEST, selector="device=nobody"))
    with pytest.raises(UsageError, match="no variant"):
        begin(bench, bundle, msgspec.structs.replace(REQUEST, baseline="other"))
    with pytest.raises(InputError, match="no measurement"):
        bench.fleet.services.measurement("nothing")
    bench.fleet.devices["d001"].link.close()
    bench.fleet.settle()
    with pytest.raises((UsageError, UnreachableError)):
        begin(bench, bundle, msgspec.structs.replace(REQUEST, selector="device=d001"))


def test_a_fleet_that_starts_again_goes_on(bench, bundle):
    made = begin(bench, bundle)
    bench.fleet.close()
    bench.fleet.open()
    asked = len(bench.asked["d000"])
    bench.fleet.run(3 * REPEAT, traffic=False)
    assert len(bench.asked["d000"]) > asked
    bench.answer("d000", "done")
    assert bench.fleet.services.measurement(made.id).parts["d000"].state == "done"


def test_a_database_of_the_release_before_gets_the_table(tmp_path):
    import sqlalchemy as sa

    from edgeml.fleet import tables

    store = Store.at(tmp_path / "fleet.db")
    with store.write() as db:
        tables.measurements.drop(db)
        db.execute(tables.versions.delete().where(tables.versions.c.version > 1))
    store.close()
    again = Store.at(tmp_path / "fleet.db")
    with again.read() as db:
        assert "measurements" in sa.inspect(db).get_table_names()
    again.close()
