"""The rollout against devices that lose power, leave, and speak over a network that loses much.

What a rollout believes of a device must be true of it; what it asks for must follow from what the
gates and people said; and when everything is well again, nobody runs what is quarantined.
"""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgeml.fleet import rollout as m
from edgeml.messages.payloads import SlotReport
from tests.fleet.test_rollout import NEW, OLD, Shell, verdicts

NAMES = tuple(f"d{i}" for i in range(3))
JUDGED = (
    ("pass", "pass", "pass"),
    ("pass", "pass", "undecided"),
    ("wait", "wait", "wait"),
    ("pass", "wait", "wait"),
    ("pass", "pass", "fail"),
    ("fail", "wait", "wait"),
)
_DEVICE = st.sampled_from(NAMES)
_ENDED = {"committed", "failed"}
_WORKS = st.sampled_from(["good", "full disk", "faulty"])


class Device:
    """What is on a device's disk, and what it has ever done."""

    def __init__(self, own):
        self.seen = 0
        self.slot = SlotReport("idle", active=own, last_verified=own, outcome="committed")
        self.begun = True
        self.faulty = False  # whether it found the new version itself at fault
        self.online = True
        self.done = {}  # generation -> how the attempt ended


class Fleet(RuleBasedStateMachine):
    """Any order of orders, attempts, power cuts, lost, doubled and late reports, and people."""

    @initialize(waves=st.integers(1, 3))
    def begin(self, waves):
        self.shell = Shell([NAMES[i::waves] for i in range(waves)])
        self.devices = {d: Device(self.shell.verified[d]) for d in NAMES}
        self.wire = []
        self.now = 0.0
        self.before = self.shell.rollout
        self.told = dict.fromkeys(NAMES, 0)
        self.shell.feed(m.Start(self.now))

    # -- devices --------------------------------------------------------------------------------

    @rule(d=_DEVICE, works=_WORKS, heard=st.booleans())
    def work(self, d, works, heard):
        """A device does the next thing that is to do; what it says may be heard at once."""
        device = self.devices[d]
        if device.slot.candidate is not None:
            self.finish(d, works)
        elif not device.begun:
            self.attempt(d)
        else:
            self.accept(d)
        if heard:
            self.shell.feed(m.DeviceReported(self.now, d, *self.state_of(d)))

    @rule(d=_DEVICE, works=_WORKS)
    def work_and_tell(self, d, works):
        """It does all of it, and the network works."""
        self.accept(d)
        self.attempt(d)
        self.finish(d, works)
        self.shell.feed(m.DeviceReported(self.now, d, *self.state_of(d)))

    def accept(self, d):
        """A device that is there takes its order up, and says so before it has begun."""
        device = self.devices[d]
        generation, _ = self.shell.desired[d]
        if device.online and generation > device.seen:
            device.seen, device.begun = generation, False
            device.slot = msgspec.structs.replace(
                device.slot, phase="idle", candidate=None, active=device.slot.last_verified
            )
            self.say(d)

    def attempt(self, d):
        """It begins: from now on its report is about this generation."""
        device = self.devices[d]
        if not device.begun:
            device.begun = True
            device.slot = msgspec.structs.replace(
                device.slot,
                phase="fetch",
                candidate=self.order(d),
                attempted=device.seen,
                outcome="",
            )
            self.say(d)

    def finish(self, d, works):
        """It commits, or goes back by itself; its own version always works."""
        device = self.devices[d]
        if device.slot.candidate is None:
            return
        ref, keeps = device.slot.candidate, device.slot.last_verified
        good = ref != NEW or (works == "good" and not device.faulty)
        device.faulty = device.faulty or (not good and works == "faulty")
        device.done[device.seen] = "committed" if good else "rolled_back"
        ref = ref if good else keeps
        device.slot = SlotReport(
            "idle",
            active=ref,
            last_verified=ref,
            attempted=device.seen,
            outcome=device.done[device.seen],
        )
        self.say(d)

    @rule(d=_DEVICE)
    def power_cut(self, d):
        """What was under way is begun anew; what is verified stays."""
        device = self.devices[d]
        if device.slot.candidate is not None:
            device.begun = False
            device.slot = msgspec.structs.replace(device.slot, phase="idle", candidate=None)

    @rule(d=_DEVICE)
    def leave_or_return(self, d):
        self.devices[d].online = not self.devices[d].online

    def order(self, d):
        return self.shell.desired[d][1]

    def say(self, d):
        self.wire.append((d, *self.state_of(d)))

    # -- the network ----------------------------------------------------------------------------

    @rule(pick=st.integers(0, 10_000), how=st.sampled_from(["once", "doubled", "lost"]))
    def deliver(self, pick, how):
        if self.wire:
            index = pick % len(self.wire)
            d, *said = self.wire[index]
            if how != "doubled":
                self.wire.pop(index)
            if how != "lost":
                self.shell.feed(m.DeviceReported(self.now, d, *said))

    # -- gates and people -----------------------------------------------------------------------

    @rule(states=st.sampled_from(JUDGED))
    def tick(self, states):
        self.now += 1
        before, banned = self.shell.rollout, set(self.shell.quarantined)
        going = before.state in {m.State.RUNNING, m.State.HOLDING, m.State.PAUSED}
        self.shell.feed(m.Tick(self.now, verdicts(*states) if going else (), self.online()))
        after = self.shell.rollout
        if going and "fail" in states:
            assert after.state is m.State.ROLLING_BACK
            blamed = "fail" in states[1:] or any(p.faulty for p in before.parts.values())
            assert self.shell.quarantined == (banned | {NEW.digest} if blamed else banned)
        elif before.state is m.State.PAUSED:
            assert after == before
        elif going and "wait" not in states:
            last = before.wave + 1 == len(before.wave_sizes)
            assert after.wave == before.wave + (not last)
            assert after.state is (m.State.DONE if last else m.State.RUNNING)
        else:
            assert after.wave == before.wave
        if before.state is m.State.ROLLING_BACK:
            late = {d for d in after.touched if not after.parts[d].restored}
            assert (after.state is m.State.ROLLED_BACK) == (not late & self.online())

    def online(self):
        return frozenset(d for d in NAMES if self.devices[d].online)

    @rule(event=st.sampled_from([m.Pause, m.Resume, m.Resume, m.Abort, m.RollBack]))
    def people(self, event):
        self.shell.feed(event(self.now))

    # -- what always holds ----------------------------------------------------------------------

    @invariant()
    def what_is_believed_is_true(self):
        for d, part in self.shell.rollout.parts.items():
            device = self.devices[d]
            if part.state != "waiting":
                assert part.generation
                assert part.wave <= self.shell.rollout.wave
                assert part.before == self.shell.verified[d]
            if part.state == "trying":
                assert device.seen >= part.generation
            if part.state == "committed":
                assert device.done[part.generation] == "committed"
            if part.state == "failed":
                assert device.done[part.generation] == "rolled_back"
            if part.restored:
                assert device.seen >= part.back > 0
                assert device.slot.last_verified == part.before
            assert device.faulty or not part.faulty

    @invariant()
    def an_end_stays_and_generations_rise(self):
        for d, old in self.before.parts.items():
            now = self.shell.rollout.parts[d]
            if old.state in _ENDED:
                assert now.state == old.state
            assert self.shell.desired[d][0] >= self.told[d]
            self.told[d] = self.shell.desired[d][0]
        self.before = self.shell.rollout

    @invariant()
    def orders_follow_from_the_state(self):
        rollout, banned = self.shell.rollout, self.shell.quarantined
        back = rollout.state in {m.State.ROLLING_BACK, m.State.ROLLED_BACK}
        assert banned <= {NEW.digest}
        if banned:
            assert back or rollout.state is m.State.ABORTED
        for d, part in rollout.parts.items():
            generation, ref = self.shell.desired[d]
            if not part.generation:
                assert generation == 0
            elif back or banned or (rollout.state is m.State.ABORTED and part.state != "committed"):
                assert (generation, ref) == (part.back, part.before)
                assert part.back
            elif not part.back:
                assert (generation, ref) == (part.generation, NEW)

    @invariant()
    def every_device_has_a_verified_version(self):
        for d in NAMES:
            assert self.devices[d].slot.last_verified in {self.shell.verified[d], NEW}

    def teardown(self):
        """Everything is well again: late reports first, then everybody does what was asked."""
        if not hasattr(self, "shell"):
            return
        for d, *said in reversed(self.wire):
            self.shell.feed(m.DeviceReported(self.now, d, *said))
        self.wire.clear()
        for d in NAMES:
            self.devices[d].online = True
            self.accept(d)
            self.attempt(d)
            self.finish(d, "good")
            self.shell.feed(m.DeviceReported(self.now, d, *self.state_of(d)))
        self.shell.feed(m.Tick(self.now, (), self.online()))
        self.what_is_believed_is_true()
        rollout = self.shell.rollout
        for d, part in rollout.parts.items():
            held = self.devices[d].slot.last_verified
            assert held in {*OLD, NEW}
            if part.generation and not part.back:
                assert part.state in _ENDED
            back = self.shell.quarantined or rollout.state is m.State.ROLLED_BACK
            if back or not part.generation:
                assert held == self.shell.verified[d]
            if back and part.generation:
                assert part.restored
        if self.shell.quarantined:
            assert rollout.state in {m.State.ROLLED_BACK, m.State.ABORTED}

    def state_of(self, d):
        return self.devices[d].seen, self.devices[d].slot, self.devices[d].faulty


Fleet.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestFleet = Fleet.TestCase
