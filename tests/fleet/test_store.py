"""The store: migrations, stale messages, counts that are applied once, verified versions."""

import pytest
import sqlalchemy as sa

from edgeml.errors import InputError
from edgeml.fleet import auth, inventory, tables, telemetry
from edgeml.fleet.store import Store
from edgeml.hardware import DeviceFacts
from edgeml.messages.payloads import (
    Birth,
    Event,
    Ref,
    Reported,
    SlotReport,
    SlotTarget,
    State,
    Telemetry,
)

REFS = [Ref("kws", f"{i}.0.0", f"sha256:{i:064x}") for i in range(4)]


@pytest.fixture
def store(tmp_path):
    made = Store.at(tmp_path / "fleet.db")
    yield made
    made.close()


def reported(sequence, ref, boot="b1", generation=0):
    slot = SlotReport("idle", active=ref, last_verified=ref)
    return Reported("d", boot, sequence, generation, {"kws": slot})


def window(sequence, ref=REFS[0], device="d", **more):
    values = {"requests": 10, "labelled": 10, "correct": 9, **more}
    return Telemetry(device, "b1", sequence, "kws", ref, 0.0, 0.0, 1.0, **values)


def test_it_opens_again_and_refuses_a_newer_one(tmp_path):
    path = tmp_path / "fleet.db"
    first = Store.at(path)
    with first.write() as db:
        inventory.enrol(db, "d", "auto", {"site": "x"}, 1.0)
    first.close()
    again = Store.at(path)
    with again.read() as db:
        assert inventory.find_device(db, "d").tags == {"site": "x"}
    with again.write() as db:
        db.execute(tables.versions.insert(), {"version": 99, "at": 0.0})
    again.close()
    with pytest.raises(InputError, match="version 99"):
        Store.at(path)


def test_what_fails_is_not_kept(store):
    with pytest.raises(ZeroDivisionError), store.write() as db:
        inventory.enrol(db, "d", "auto", {}, 1.0)
        raise ZeroDivisionError
    with store.read() as db:
        assert inventory.all_devices(db) == {}


def test_stale_reports_change_nothing(store):
    with store.write() as db:
        assert inventory.apply_reported(db, reported(5, REFS[1]), 1.0)
        assert not inventory.apply_reported(db, reported(5, REFS[0]), 2.0)
        assert not inventory.apply_reported(db, reported(4, REFS[0]), 2.0)
        assert inventory.apply_reported(db, reported(1, REFS[2], boot="b2"), 3.0)
        assert not inventory.apply_reported(db, reported(9, REFS[0], boot="b1"), 4.0)
        assert inventory.find_device(db, "d").running("kws") == REFS[2]


def test_the_will_of_an_earlier_boot_is_ignored(store):
    facts = DeviceFacts("x86_64", "Linux")
    with store.write() as db:
        for boot in ("b1", "b2"):
            inventory.apply_birth(db, Birth("d", boot, "1", facts, "p"), 1.0)
            inventory.apply_state(db, State("d", boot, True), 1.0)
        assert not inventory.apply_state(db, State("d", "b1", False), 2.0)
        assert inventory.find_device(db, "d").online
        assert inventory.apply_state(db, State("d", "b2", False), 3.0)
        device = inventory.find_device(db, "d")
        assert (device.online, device.state_since, device.boots) == (False, 3.0, 2)


def test_generations_only_rise(store):
    with store.write() as db:
        target = SlotTarget(REFS[0])
        assert inventory.set_desired(db, "d", "kws", target) == 1
        assert inventory.set_desired(db, "d", "vww", target) == 2
        inventory.apply_reported(db, reported(1, REFS[0], generation=7), 1.0)
        assert inventory.set_desired(db, "d", "kws", None) == 8
        state = inventory.desired_of(db, "f", "d")
        assert (state.generation, set(state.slots)) == (8, {"vww"})


def test_the_last_good_version_is_the_devices_own(store):
    with store.write() as db:
        for sequence, ref in enumerate((REFS[0], REFS[1], REFS[1], REFS[2]), 1):
            inventory.apply_reported(db, reported(sequence, ref), 1.0)
        assert inventory.last_good(db, "d", "kws") == REFS[2]
        assert inventory.last_good(db, "d", "kws", REFS[2].digest) == REFS[1]
        inventory.add_quarantine(db, REFS[1], "bad", 2.0)
        inventory.add_quarantine(db, REFS[1], "again", 3.0)
        assert inventory.quarantined(db) == {REFS[1].digest: "bad"}
        assert inventory.last_good(db, "d", "kws", REFS[2].digest) == REFS[0]
        assert inventory.last_good(db, "other", "kws") is None


def test_no_version_is_blamed_for_what_callers_do(store):
    kinds = {"request": 40, "cancelled": 3, "not_found": 2, "device": 1, "deadline": 1}
    with store.write() as db:
        assert telemetry.apply_window(db, window(1, errors=kinds), 100.0)
        (counts,) = telemetry.by_version(db, 0.0)
    assert counts.errors == 2


def test_windows_and_events_count_once(store):
    event = Event("d", "b1", 3, "fallback", "warning", "no GPU", 0.0, 0.0)
    with store.write() as db:
        assert [telemetry.apply_window(db, window(n), 100.0) for n in (1, 2, 1)] == [
            True, True, False,
        ]  # fmt: skip
        assert telemetry.apply_event(db, event, 100.0)
        assert not telemetry.apply_event(db, event, 101.0)
        telemetry.add_event(db, "rollout", "info", "one", 102.0)
        telemetry.add_event(db, "rollout", "info", "two", 103.0)
        counts = telemetry.by_version(db, 0.0)
        assert [(c.requests, c.labelled, c.correct, c.devices) for c in counts] == [(20, 20, 18, 1)]
        assert [e.message for e in telemetry.list_events(db)] == ["two", "one", "no GPU"]
        newest = telemetry.list_events(db)[0].id
        assert telemetry.list_events(db, after=newest) == []
        assert telemetry.prune(db, 200.0) == 2
        assert telemetry.by_version(db, 0.0) == []


def test_arms(store):
    with store.write() as db:
        telemetry.apply_window(db, window(1, REFS[1], errors={"timeout": 2}), 100.0)
        telemetry.apply_window(db, window(2, REFS[0]), 100.0)  # the canary before it was one
        telemetry.apply_window(db, window(1, REFS[0], device="e"), 100.0)
        telemetry.apply_window(db, window(2, REFS[0], device="e"), 50.0)  # too early
        digest = REFS[1].digest
        canary = telemetry.arm(db, "kws", 90.0, digest, ["d"], new=True)
        control = telemetry.arm(db, "kws", 90.0, digest, ["e"], new=False)
        assert (canary.requests, canary.errors, canary.devices) == (10, 2, 1)
        assert (control.labelled, control.correct) == (10, 9)


def test_passwords_and_tokens(store, tmp_path):
    with store.write() as db:
        password = auth.first_admin(db, tmp_path / "token", 1.0)
        assert auth.first_admin(db, tmp_path / "token", 2.0) == ""
        token = (tmp_path / "token").read_text().strip()
        assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
        assert auth.who(db, token, 1e12).may_change
        assert auth.login(db, "admin", password).name == "admin"
        assert auth.login(db, "admin", password + "x") is None
        assert auth.login(db, "nobody", password) is None
        session = auth.new_token(db, "admin", "session", 10.0, 60.0)
        assert auth.who(db, session, 69.0) is not None
        assert auth.who(db, session, 71.0) is None
        auth.end_token(db, token, 11.0)
        assert auth.who(db, token, 11.0) is None
        rows = [db.execute(sa.select(t)).all() for t in (tables.tokens, tables.users)]
        stored = str(rows)
        assert password not in stored
        assert session not in stored
