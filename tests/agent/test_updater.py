"""The table, alone and under hypothesis; and the engine with acts that say what they are told."""

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgeml.errors import DeviceError, InternalError
from edgeml.messages.payloads import DesiredState, Ref, SlotTarget
from edgeml_agent import transitions
from edgeml_agent.state import StateStore, read_state
from edgeml_agent.transitions import (
    COUNTED,
    MAX_RESUMES,
    QUARANTINE,
    TABLE,
    DeviceState,
    Happening,
    Phase,
    advance,
)
from edgeml_agent.updater import Result, Stopping, Updater

H, P = Happening, Phase
BUSY = [phase for phase in Phase if phase is not P.IDLE]


def ref(number):
    return Ref("m", f"{number}.0.0", f"sha256:{number:064x}")


def desired(generation, number, quarantined=()):
    slots = {"main": SlotTarget(ref(number))}
    return DesiredState("f", "d", generation, slots, quarantined=quarantined)


def ordered(state, number, quarantined=()):
    """The state after a new order was accepted."""
    generation = state.generation + 1
    order = desired(generation, number, quarantined)
    return msgspec.structs.replace(state, generation=generation, desired=order)


def test_every_phase_can_be_resumed_and_every_attempt_can_end():
    for phase in Phase:
        assert (phase, H.RESUMED) in TABLE
    for phase in BUSY:
        reached, todo = set(), [phase]
        while todo:
            now = todo.pop()
            if now not in reached:
                reached.add(now)
                todo += [to for (start, _), to in TABLE.items() if start is now]
        assert P.IDLE in reached, phase
    assert set(COUNTED) <= set(TABLE)
    assert set(QUARANTINE) <= set(TABLE)
    for phase, _ in COUNTED:
        assert (phase, H.EXHAUSTED) in TABLE


def test_the_printed_table_is_the_table():
    lines = transitions.__doc__.splitlines()
    head = next(i for i, line in enumerate(lines) if line.strip().startswith("phase "))
    columns = [(m.group(), m.start()) for m in re.finditer(r"\S+", lines[head])][1:]
    printed = {}
    for line in lines[head + 4 :]:
        cells = line.split()
        if not cells or cells[0] not in set(Phase):
            break
        for (name, _), cell in zip(columns, cells[1:], strict=True):
            if cell != "-":
                printed[(P(cells[0]), H(name))] = cell
    plain = {key: P(cell.rstrip("!+")) for key, cell in printed.items()}
    assert plain == {k: v for k, v in TABLE.items() if k[0] is not P.IDLE}
    assert {k for k, cell in printed.items() if "+" in cell} == set(COUNTED)
    assert {k for k, cell in printed.items() if "!" in cell} == {
        key for key in QUARANTINE if key[0] is not P.IDLE
    }


def test_a_transition_that_is_not_in_the_table_is_a_bug():
    with pytest.raises(InternalError, match="no transition for 'done' in 'idle'"):
        advance(DeviceState(), "main", H.DONE)


class Machine(RuleBasedStateMachine):
    """Any order of happenings that the table allows, with power cuts between them."""

    @initialize()
    def begin(self):
        self.state = DeviceState()
        self.previous = self.state

    @rule(number=st.integers(1, 4), quarantine=st.booleans())
    def order(self, number, quarantine):
        self.previous = self.state
        self.state = ordered(self.state, number, (ref(9).digest,) if quarantine else ())

    @rule(happening=st.sampled_from(list(Happening)))
    def happen(self, happening):
        slot = self.state.slot("main")
        if (slot.phase, happening) not in TABLE or happening is H.EXHAUSTED:
            return
        target = None
        if slot.phase is P.IDLE and happening is not H.RESUMED:
            if self.state.desired is None:
                return
            target = self.state.desired.slots["main"]
            blocked = target.ref.digest in self.state.quarantined
            satisfied = target.ref == slot.last_verified
            allowed = H.SATISFIED if satisfied else H.REFUSED if blocked else H.TARGET
            if happening is not allowed:
                return
        self.previous = self.state
        self.state = advance(self.state, "main", happening, target=target, detail="why")

    @invariant()
    def holds(self):
        before, now = self.previous.slot("main"), self.state.slot("main")
        assert self.state.generation >= self.previous.generation
        assert set(self.previous.quarantined) <= set(self.state.quarantined)
        if now.last_verified != before.last_verified:
            assert (before.phase, now.phase) == (P.TRIAL, P.COMMIT)
            assert now.last_verified == before.candidate
        if now.phase is not P.TRIAL:
            assert now.active == now.last_verified
        else:
            assert now.active == now.candidate
        if now.phase in (P.FETCH, P.VERIFY, P.STAGE, P.WARMUP, P.TRIAL):
            assert now.candidate is not None
            assert now.candidate.digest not in self.state.quarantined
        if now.last_verified is not None:
            assert now.last_verified.digest not in self.state.quarantined or before.phase is P.IDLE
        if now.phase is P.IDLE:
            assert now.candidate is None
            assert now.resumes == 0
        assert now.resumes <= MAX_RESUMES
        assert set(now.kept()) >= {r for r in (now.active, now.last_verified) if r}


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@given(st.integers(0, 2**32))
def test_endless_reboots_end(seed):
    state = ordered(DeviceState(), 1)
    state = advance(state, "main", H.TARGET, target=state.desired.slots["main"])
    for _ in range(50):  # a long download on a device that is switched off every evening
        state = advance(state, "main", H.RESUMED)
    assert state.slot("main").phase is P.FETCH
    state = advance(state, "main", H.DONE)
    count = 0
    while state.slot("main").phase is not P.ROLLBACK:
        step = H.RESUMED if seed >> count % 32 & 1 or count > 20 else H.DONE
        if state.slot("main").phase is P.COMMIT:
            return
        state = advance(state, "main", step)
        count += 1
    assert count <= 40


class Script:
    """Acts that answer from a list."""

    def __init__(self, tmp_path, **answers):
        self.store = StateStore(tmp_path)
        self.answers = {P(name): list(results) for name, results in answers.items()}
        self.done, self.told = [], []
        acts = {phase: self._act(phase) for phase in BUSY}
        self.updater = Updater(self.store, acts, self._listen, backoff=0.001)

    def _act(self, phase):
        def act(_name, slot, stopped):
            assert read_state(self.store.path) == self.store.state  # stored before its act
            assert slot.phase is phase
            self.done.append(phase.value)
            answers = self.answers.get(phase)
            result = answers.pop(0) if answers else Result(H.DONE)
            return result(stopped) if callable(result) else result

        return act

    def _listen(self, _name, before, happening, slot, _detail):
        self.told.append((before.value, happening.value, slot.phase.value))

    def order(self, number, quarantined=()):
        self.store.update(lambda state: ordered(state, number, quarantined))

    def go(self, number, quarantined=()):
        self.order(number, quarantined)
        while self.updater.step():
            pass
        return self.store.state.slot("main")


def test_the_good_way(tmp_path):
    script = Script(tmp_path)
    slot = script.go(1)
    assert script.done == ["fetch", "verify", "stage", "warmup", "trial", "commit"]
    assert (slot.active, slot.last_verified, slot.outcome) == (ref(1), ref(1), "committed")
    slot = script.go(2)
    assert (slot.last_verified, slot.previous) == (ref(2), ref(1))
    script.done.clear()
    slot = script.go(2)
    assert (script.done, slot.attempted, slot.outcome) == ([], 3, "committed")


@pytest.mark.parametrize("phase", ["verify", "stage", "warmup", "trial"])
def test_a_faulty_bundle_is_rolled_back_and_never_tried_again(tmp_path, phase):
    script = Script(tmp_path)
    script.go(1)
    script.answers = {P(phase): [Result(H.FAULTY, "golden: wrong")]}
    slot = script.go(2)
    assert (slot.active, slot.last_verified, slot.outcome) == (ref(1), ref(1), "rolled_back")
    assert script.store.state.quarantined == {ref(2).digest: "golden: wrong"}
    script.done.clear()
    slot = script.go(2)
    assert (script.done, slot.outcome) == ([], "refused")
    assert "golden: wrong" in slot.detail


def test_the_network_is_tried_again_and_puts_nothing_into_quarantine(tmp_path):
    script = Script(tmp_path, fetch=[Result(H.RETRY, "no answer")] * 5)
    slot = script.go(1)
    assert script.done.count("fetch") == 6
    assert slot.outcome == "committed"
    script.answers = {P.FETCH: [Result(H.FAILED, "disk")]}
    slot = script.go(2)
    assert (slot.outcome, slot.detail) == ("refused", "disk")
    assert not script.store.state.quarantined


def test_crashes_are_counted(tmp_path):
    script = Script(tmp_path, trial=[Result(H.CRASHED, "gone")] * 2)
    assert script.go(1).outcome == "committed"
    script.answers = {P.TRIAL: [Result(H.CRASHED, "gone")] * 9}
    slot = script.go(2)
    assert slot.outcome == "rolled_back"
    assert ref(2).digest in script.store.state.quarantined
    assert len(script.answers[P.TRIAL]) == 9 - MAX_RESUMES - 1


def test_a_newer_order_breaks_off_what_is_in_flight(tmp_path):
    script = Script(tmp_path)
    script.go(1)

    def other_wish(stopped):
        assert not stopped()
        script.order(3)
        assert stopped()
        return Result(H.DONE)

    script.answers = {P.WARMUP: [other_wish]}
    slot = script.go(2)
    assert slot.last_verified == ref(3)
    assert ("warmup", "superseded", "rollback") in script.told
    assert not script.store.state.quarantined


def test_after_a_restart_it_goes_on(tmp_path):
    def power_cut(_stopped):
        raise KeyboardInterrupt

    script = Script(tmp_path, trial=[power_cut])
    with pytest.raises(KeyboardInterrupt):
        script.go(1)
    again = Script(tmp_path)
    again.updater.resume()
    assert again.store.state.slot("main").phase is P.WARMUP
    assert again.store.state.slot("main").active is None
    while again.updater.step():
        pass
    assert again.done == ["warmup", "trial", "commit"]


def test_a_stop_that_was_asked_for_is_not_counted(tmp_path):
    state = ordered(DeviceState(), 1)
    state = advance(state, "main", H.TARGET, target=state.desired.slots["main"])
    for _ in range(3):
        state = advance(state, "main", H.DONE)
    assert state.slot("main").phase is P.WARMUP
    for _ in range(20):
        state = advance(state, "main", H.RESUMED, counted=False)
    assert (state.slot("main").phase, state.slot("main").resumes) == (P.WARMUP, 0)
    script = Script(tmp_path)
    script.store.update(lambda _s: state)
    script.updater.resume(clean=True)
    assert script.store.state.slot("main").resumes == 0
    script.updater.resume()
    assert script.store.state.slot("main").resumes == 1


def test_stopping_leaves_it_where_it_was(tmp_path):
    script = Script(tmp_path)
    script.answers = {P.FETCH: [lambda _s: (script.updater.stop(), Result(H.RETRY, ""))[1]]}
    script.order(1)
    with pytest.raises(Stopping):
        script.go(1)
    assert script.store.state.slot("main").phase is P.FETCH


def test_a_full_disk_moves_nothing(tmp_path, monkeypatch):
    script = Script(tmp_path)
    script.go(1)
    before = script.store.state

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DeviceError, match="No space left"):
        script.order(2)
    assert script.store.state == before == read_state(script.store.path)
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
