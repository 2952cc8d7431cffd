"""The rollout's state machine: waves, gates, people, going back."""

import msgspec

from edgeml.fleet import rollout as m
from edgeml.gates import Verdict
from edgeml.messages.payloads import Ref, SlotReport

OLD = [Ref("kws", f"1.{i}.0", f"sha256:{i:064x}") for i in range(3)]
NEW = Ref("kws", "2.0.0", "sha256:" + "f" * 64)
GATES = ("install", "health", "labels")


def verdicts(*states):
    return tuple(Verdict(g, s, (f"{g} says {s}",)) for g, s in zip(GATES, states, strict=False))


def make(waves):
    parts = {d: m.Part(wave=i) for i, wave in enumerate(waves) for d in wave}
    sizes = tuple(len(wave) for wave in waves)
    return m.Rollout("r1", NEW, "kws", "all", "canary", sizes, parts, ())


class Shell:
    """Carries commands out as the controller does, for devices that obey or not."""

    def __init__(self, waves):
        self.rollout = make(waves)
        self.generation = dict.fromkeys(self.rollout.parts, 0)
        self.desired = {d: (0, None) for d in self.rollout.parts}
        self.quarantined = set()
        self.verified = {d: OLD[i % 3] for i, d in enumerate(sorted(self.rollout.parts))}
        self.notes = []

    def feed(self, event):
        pending = [event]
        while pending:
            self.rollout, commands = m.step(self.rollout, pending.pop(0))
            for command in commands:
                match command:
                    case m.SendOut(device=d):
                        pending.append(self.issue(d, NEW, "out"))
                    case m.SendBack(device=d, to=to):
                        pending.append(self.issue(d, to, "back"))
                    case m.Quarantine(ref=ref):
                        self.quarantined.add(ref.digest)
                    case m.Note():
                        self.notes.append(command)

    def issue(self, device, ref, way):
        self.generation[device] += 1
        self.desired[device] = (self.generation[device], ref)
        before = self.verified[device] if way == "out" else ref
        return m.Issued(0.0, device, self.generation[device], way, before)

    def report(self, device, outcome="committed", ref=NEW, faulty=False):
        slot = SlotReport(
            "idle",
            active=ref,
            last_verified=ref,
            attempted=self.generation[device],
            outcome=outcome,
        )
        self.feed(m.DeviceReported(0.0, device, self.generation[device], slot, faulty))


def test_waves_pass_to_the_end():
    shell = Shell([["a"], ["b", "c"]])
    shell.feed(m.Start(1.0))
    assert shell.rollout.state is m.State.RUNNING
    assert shell.rollout.touched == ("a",)
    shell.report("a")
    shell.feed(m.Tick(2.0, verdicts("pass", "wait", "wait")))
    assert shell.rollout.state is m.State.HOLDING
    shell.feed(m.Tick(3.0, verdicts("pass", "pass", "pass")))
    assert set(shell.rollout.touched) == {"a", "b", "c"}
    assert shell.rollout.wave_since == 3.0
    shell.feed(m.Tick(4.0, verdicts("pass", "pass", "pass")))
    assert shell.rollout.state is m.State.DONE
    assert [n.kind for n in shell.notes] == ["running", "holding", "running", "done"]
    assert shell.notes[-1].verdicts


def test_a_failed_gate_sends_the_touched_back_to_their_own_version():
    shell = Shell([["a", "b"], ["c"]])
    shell.feed(m.Start(1.0))
    shell.report("a")
    shell.feed(m.Tick(2.0, verdicts("pass", "pass", "fail"), frozenset("ab")))
    assert shell.rollout.state is m.State.ROLLING_BACK
    assert shell.rollout.reason == "labels gate: labels says fail"
    assert shell.quarantined == {NEW.digest}
    assert shell.desired["a"] == (2, OLD[0])
    assert shell.desired["b"] == (2, OLD[1])
    assert shell.desired["c"] == (0, None)
    shell.report("a", ref=OLD[0])
    shell.feed(m.Tick(3.0, (), frozenset("ab")))
    assert shell.rollout.state is m.State.ROLLING_BACK
    shell.feed(m.Tick(4.0, (), frozenset("a")))  # b is offline and finds its order later
    assert shell.rollout.state is m.State.ROLLED_BACK
    assert shell.notes[-1].kind == "offline"


def test_what_another_order_committed_is_no_success_of_this_one():
    shell = Shell([["a"], ["b"]])
    shell.feed(m.Start(1.0))
    shell.issue("a", OLD[1], "out")
    shell.report("a", ref=OLD[1])
    assert shell.rollout.parts["a"].state == "failed"


def test_a_wave_that_nothing_was_known_of_is_told():
    shell = Shell([["a"], ["b"]])
    shell.feed(m.Start(1.0))
    shell.report("a")
    shell.feed(m.Tick(2.0, verdicts("pass", "pass", "undecided")))
    assert (
        shell.rollout.reason
        == "wave 2 of 2: 1 device; labels gate undecided: labels says undecided"
    )
    shell.report("b")
    shell.feed(m.Tick(3.0, verdicts("pass", "pass", "undecided")))
    assert shell.rollout.state is m.State.DONE
    assert shell.rollout.reason.startswith("2 of 2 devices committed 2.0.0; labels gate undecided")


def test_people_pause_resume_abort():
    shell = Shell([["a", "b"], ["c"]])
    shell.feed(m.Start(1.0))
    shell.feed(m.Pause(2.0))
    shell.feed(m.Tick(3.0, verdicts("pass", "pass", "pass")))
    assert shell.rollout.state is m.State.PAUSED
    shell.feed(m.Resume(4.0))
    shell.report("a")
    shell.feed(m.Abort(5.0, "enough"))
    assert shell.rollout.state is m.State.ABORTED
    assert shell.desired["a"] == (1, NEW)  # committed: stays
    assert shell.desired["b"] == (2, OLD[1])  # not yet: never gets it
    assert not shell.quarantined
    shell.feed(m.RollBack(6.0))
    assert shell.desired["a"] == (2, OLD[0])
    assert shell.quarantined == {NEW.digest}


def test_harm_does_not_wait_for_people():
    shell = Shell([["a"], ["b"]])
    shell.feed(m.Start(1.0))
    shell.feed(m.Pause(2.0))
    shell.feed(m.Tick(3.0, verdicts("pass", "fail", "wait")))
    assert shell.rollout.state is m.State.ROLLING_BACK


def test_a_device_that_was_unknown_when_it_was_told():
    shell = Shell([["a"]])
    shell.verified["a"] = None
    shell.feed(m.Start(1.0))
    held = SlotReport("idle", active=OLD[2], last_verified=OLD[2])
    shell.feed(m.DeviceReported(2.0, "a", 0, held))
    shell.feed(m.RollBack(3.0))
    assert shell.desired["a"] == (2, OLD[2])


def test_a_device_without_an_earlier_version_does_not_hold_the_slot_for_ever():
    shell = Shell([["a"]])
    shell.verified["a"] = None
    shell.feed(m.Start(1.0))
    shell.report("a")
    shell.feed(m.RollBack(2.0))
    shell.report("a", outcome="refused")  # accepted the order, and still runs it
    assert shell.rollout.state is m.State.ROLLED_BACK
    assert shell.rollout.parts["a"].stranded
    assert not shell.rollout.parts["a"].restored
    assert shell.notes[-1].kind == "stranded"


def test_allowed_is_what_changes_something():
    for state in m.State:
        base = msgspec.structs.replace(make([["a"]]), state=state)
        events = {
            "start": m.Start(1.0),
            "pause": m.Pause(1.0),
            "resume": m.Resume(1.0),
            "abort": m.Abort(1.0),
            "rollback": m.RollBack(1.0),
        }
        for name, event in events.items():
            assert (m.step(base, event)[0] != base) == (name in m.allowed(state)), (state, name)


def test_only_a_bundle_at_fault_is_quarantined():
    for faulty in (False, True):
        shell = Shell([["a", "b"], ["c"]])
        shell.feed(m.Start(1.0))
        shell.report("a", "rolled_back", OLD[0], faulty)
        shell.feed(m.Tick(2.0, verdicts("fail", "wait", "wait"), frozenset("ab")))
        assert shell.rollout.state is m.State.ROLLING_BACK
        assert shell.quarantined == ({NEW.digest} if faulty else set())
        assert ("kept" in {n.kind for n in shell.notes}) is not faulty


def test_a_device_is_restored_when_its_old_version_is_verified_and_serves():
    shell = Shell([["a"], ["b"]])
    shell.feed(m.Start(1.0))
    shell.report("a")
    shell.feed(m.RollBack(2.0))
    trying = SlotReport("trial", active=OLD[0], last_verified=NEW, candidate=OLD[0], attempted=2)
    left = SlotReport("idle", active=OLD[0], last_verified=NEW, attempted=2)
    ended = SlotReport("idle", active=OLD[0], last_verified=OLD[0], attempted=2)
    for slot, restored in ((trying, False), (left, False), (ended, True)):
        shell.feed(m.DeviceReported(3.0, "a", 2, slot))
        assert shell.rollout.parts["a"].restored is restored
