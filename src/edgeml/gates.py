"""Gate: may a rollout go on? Every answer comes with reasons and numbers.

A gate sees an Observation (what the devices of the current wave did, and the counts of both arms
since the wave began) and returns a Verdict: ``pass``, ``fail``, ``wait``, or ``undecided`` when the
rollout may go on although nothing was seen that the gate could judge: that is not a pass, and is
said wherever a pass would be. A gate keeps nothing between two calls and reads no clock, so that a
verdict can be repeated from what was recorded.

The arms: *canary* is every device that the rollout has touched, counted on the new version only;
*control* is every other device of the fleet that runs another version of the same model at the
same time. Comparing them takes out whatever changes for everybody (weather, load, a network).

The gates here have fixed limits and minimum samples. They read the same numbers every second, so
their intervals are printed as a help to the reader, not as a test with a known error rate.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

import msgspec

from edgeml.stats.proportion import newcombe, wilson

#: What a limit may be; checked wherever gates are decoded.
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]

Answer = Literal["pass", "fail", "wait", "undecided"]


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A number that a verdict rests on.

    Attributes:
        value: The number.
        n: Size of the sample behind it.
        interval: Two-sided 95 % interval, where there is one.
    """

    value: float
    n: int
    interval: tuple[float, float] | None = None


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a gate says, why, and from which numbers."""

    gate: str
    state: Answer
    reasons: tuple[str, ...]
    evidence: dict[str, Figure] = {}


class WaveDevice(msgspec.Struct, frozen=True, omit_defaults=True):
    """One touched device, as a gate sees it.

    Attributes:
        device: Its id.
        state: ``sent`` (not heard of since), ``trying``, ``committed`` or ``failed``.
        wave: Index of the wave that touched it.
        online: Whether it can be reached now.
        offline_seconds: How long it has been away.
        health: ``ok``, ``degraded`` or ``failing``.
        degraded: Why the slot runs on a fallback, when it did not before the rollout.
        restarts: Boots since the rollout touched it.
        detail: The device's reason for a failure.
    """

    device: str
    state: Literal["sent", "trying", "committed", "failed"]
    wave: int = 0
    online: bool = True
    offline_seconds: float = 0.0
    health: str = "ok"
    degraded: str = ""
    restarts: int = 0
    detail: str = ""


class Arm(msgspec.Struct, frozen=True, omit_defaults=True):
    """Counts of one arm since the wave began.

    Attributes:
        devices: Devices in it.
        requests: Requests that were answered.
        errors: Requests that were not answered with a result.
        labelled: Predictions that a label came in for.
        correct: How many of them agreed.
    """

    devices: int = 0
    requests: int = 0
    errors: int = 0
    labelled: int = 0
    correct: int = 0


class Observation(msgspec.Struct, frozen=True):
    """What the gates of a wave look at.

    Attributes:
        age: Seconds since the wave was released.
        wave: Index of the current wave.
        devices: All devices touched so far.
        canary: Counts of touched devices on the new version.
        control: Counts of the other devices on other versions of the model.
    """

    age: float
    wave: int
    devices: tuple[WaveDevice, ...]
    canary: Arm = Arm()
    control: Arm = Arm()

    @property
    def current(self) -> tuple[WaveDevice, ...]:
        """The devices of the current wave."""
        return tuple(d for d in self.devices if d.wave == self.wave)


class Gate(Protocol):
    """Anything that can judge an Observation."""

    @property
    def name(self) -> str:
        """Short name, unique in a rollout."""
        ...

    def judge(self, seen: Observation) -> Verdict:
        """Return the verdict; the same observation always gives the same one."""
        ...


def _share(count: int, n: int) -> Figure:
    return Figure(count / n if n else 0.0, n, wilson(count, n))


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class InstallGate(msgspec.Struct, frozen=True, tag="install", forbid_unknown_fields=True):
    """Did the wave install? The denominator is the devices that attempted, never those planned.

    Attributes:
        max_failed: Largest share of failed attempts, in [0, 1].
        minimum: Ended attempts to see in all waves so far before a verdict (or all devices, when
            they are fewer); a later wave whose devices are all offline does not block.
        timeout: Seconds after which an attempt without an end, or a device that is online and
            does not answer, counts as failed.
    """

    max_failed: Share = 0.1
    minimum: Count = 1
    timeout: Seconds = 600.0
    name: Literal["install"] = "install"

    def judge(self, seen: Observation) -> Verdict:
        """Fail on too many failures, pass when all reachable devices have ended their attempt.

        A wave of which no device could be reached is undecided.
        """
        late = seen.age > self.timeout
        wave = seen.current
        good = [d for d in wave if d.state == "committed"]
        failed = [d for d in wave if d.state == "failed"]
        open_ = [d for d in wave if d.state == "trying" or (d.state == "sent" and d.online)]
        if late:
            failed, open_ = failed + open_, []
        away = len(wave) - len(good) - len(failed) - len(open_)
        ended = len(good) + len(failed)
        needed = min(self.minimum, len(seen.devices))
        so_far = ended + sum(
            d.state in ("committed", "failed") for d in seen.devices if d.wave != seen.wave
        )
        evidence = {"failed": _share(len(failed), ended)}
        reasons = [f"{len(good)} of {ended} attempts committed, {len(failed)} failed"]
        if away:
            reasons.append(f"{away} of {len(wave)} devices are offline and not counted")
        for device in failed[:3]:
            reasons.append(f"{device.device}: {device.detail or 'no answer in time'}")
        # Too many even if all that are still at it came through: one early failure is no share.
        if ended and so_far >= needed and len(failed) > self.max_failed * (ended + len(open_)):
            reasons.insert(0, f"failed share above {self.max_failed:.0%}")
            return Verdict(self.name, "fail", tuple(reasons), evidence)
        if open_ or so_far < needed:
            waiting = f"{len(open_)} still at it, {so_far} of at least {needed} ended"
            return Verdict(self.name, "wait", (waiting, *reasons), evidence)
        return Verdict(self.name, "pass" if ended else "undecided", tuple(reasons), evidence)


class HealthGate(msgspec.Struct, frozen=True, tag="health", forbid_unknown_fields=True):
    """Are the touched devices well? Errors, silence, restarts and fallbacks.

    Attributes:
        max_errors: Largest share of failed requests above the control's share, in [0, 1].
        min_requests: Requests to see before errors are judged.
        max_lost: Largest share of devices that installed and then went silent or kept restarting.
        silence: Seconds away after which a device counts as lost.
        max_restarts: Boots since the rollout that are still normal.
        max_degraded: Largest share that newly runs on a fallback, or says that it is failing.
        soak: Seconds that a wave must be watched before it passes.
    """

    max_errors: Share = 0.02
    min_requests: Count = 20
    max_lost: Share = 0.1
    silence: Seconds = 60.0
    max_restarts: Annotated[int, msgspec.Meta(ge=0)] = 2
    max_degraded: Share = 0.25
    soak: Seconds = 10.0
    name: Literal["health"] = "health"

    def judge(self, seen: Observation) -> Verdict:
        """Fail on the first kind of harm that is above its limit; pass after the soak."""
        installed = [d for d in seen.devices if d.state == "committed"]
        lost = [d.device for d in installed if self._is_lost(d)]
        worse = [
            d.device
            for d in installed
            if d.device not in lost and (d.degraded or d.health == "failing")
        ]
        reasons: list[str] = []
        if lost and len(lost) > self.max_lost * len(installed):
            reasons.append(f"silent or restarting after the install: {_listed(lost)}")
        if worse and len(worse) > self.max_degraded * len(installed):
            reasons.append(f"on a fallback or failing: {_listed(worse)}")
        excess, evidence = self._errors(seen)
        evidence["lost"] = _share(len(lost), len(installed))
        evidence["degraded"] = _share(len(worse), len(installed))
        total = seen.canary.requests + seen.canary.errors
        if total >= self.min_requests and excess > self.max_errors:
            reasons.append(
                f"{evidence['errors'].value:.1%} of {total} requests failed, "
                f"{excess:.1%} more than without it (limit {self.max_errors:.1%})"
            )
        if reasons:
            return Verdict(self.name, "fail", tuple(reasons), evidence)
        seen_errors = f"{seen.canary.errors} errors in {total} requests"
        if seen.age < self.soak:
            left = f"watched for {seen.age:.1f} of {self.soak:g} s"
            return Verdict(self.name, "wait", (left, seen_errors), evidence)
        return Verdict(self.name, "pass", (seen_errors,), evidence)

    def _is_lost(self, device: WaveDevice) -> bool:
        away = not device.online and device.offline_seconds >= self.silence
        return away or device.restarts > self.max_restarts

    def _errors(self, seen: Observation) -> tuple[float, dict[str, Figure]]:
        """Return the share of errors above the control's, and the figures."""
        n = seen.canary.requests + seen.canary.errors
        control_n = seen.control.requests + seen.control.errors
        canary, control = _share(seen.canary.errors, n), _share(seen.control.errors, control_n)
        excess = canary.value - control.value
        evidence = {"errors": canary}
        if control_n:
            evidence["errors_control"] = control
        return excess, evidence


class LabelGate(msgspec.Struct, frozen=True, tag="labels", forbid_unknown_fields=True):
    """Is the new version as right as the old one, by labels that came in from the field?

    Attributes:
        max_drop: Largest drop of the accuracy against the control, absolute, in [0, 1].
        minimum: Labels per arm before anything is said.
        patience: Seconds to wait for them.
        required: What happens then: hold until people decide (True), or go on undecided (False).
    """

    max_drop: Share = 0.05
    minimum: Count = 50
    patience: Seconds = 300.0
    required: bool = False
    name: Literal["labels"] = "labels"

    def judge(self, seen: Observation) -> Verdict:
        """Compare the accuracies once both arms have enough labels; else it is undecided."""
        canary, control = seen.canary, seen.control
        if not control.devices:
            reason = "no other device runs another version: nothing to compare with"
            return Verdict(self.name, "undecided", (reason,), self._figures(canary, control))
        if canary.labelled < self.minimum or control.labelled < self.minimum:
            return self._too_few(seen)
        drop = control.correct / control.labelled - canary.correct / canary.labelled
        interval = newcombe(control.correct, control.labelled, canary.correct, canary.labelled)
        evidence = self._figures(canary, control)
        evidence["drop"] = Figure(drop, canary.labelled + control.labelled, interval)
        told = (
            f"accuracy {evidence['accuracy'].value:.1%} on {canary.labelled} labels, the others "
            f"{evidence['accuracy_control'].value:.1%} on {control.labelled}: drop {drop:.1%} "
            f"(95 % interval {interval[0]:.1%} to {interval[1]:.1%}, limit {self.max_drop:.1%})"
        )
        return Verdict(self.name, "fail" if drop > self.max_drop else "pass", (told,), evidence)

    def _too_few(self, seen: Observation) -> Verdict:
        counts = (
            f"{seen.canary.labelled} labels, the others {seen.control.labelled}, "
            f"expected {self.minimum} each"
        )
        evidence = self._figures(seen.canary, seen.control)
        if seen.age < self.patience or self.required:
            return Verdict(self.name, "wait", (counts,), evidence)
        reason = f"not judged after {self.patience:.0f} s: {counts}"
        return Verdict(self.name, "undecided", (reason,), evidence)

    @staticmethod
    def _figures(canary: Arm, control: Arm) -> dict[str, Figure]:
        return {
            "accuracy": _share(canary.correct, canary.labelled),
            "accuracy_control": _share(control.correct, control.labelled),
        }


#: The gates that can be stored in a rollout.
AnyGate = InstallGate | HealthGate | LabelGate
