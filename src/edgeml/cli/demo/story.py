"""The story that the demo tells, in five chapters; every step is checked."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import sys
import time
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

import click
import msgspec
import numpy as np

from edgeml.cli.demo.account import (
    Account,
    ConvertSummary,
    DeviceSummary,
    RequestSummary,
    RolloutSummary,
    Summary,
)
from edgeml.cli.demo.fleet import EDGEML, MODEL, DemoFleet, Ready
from edgeml.cli.demo.processes import Processes
from edgeml.cli.demo.traffic import Traffic
from edgeml.errors import GateError, UsageError
from edgeml.fleet.views import RolloutDetail

VERSIONS = {
    "1.0.0": "digits.npz",
    "2.0.0": "digits.npz",
    # Version 3 was trained, and is evaluated, on inverted pixels: the workstation cannot see it.
    "3.0.0": "digits-inverted.npz",
}
_PER_SECOND = 20.0
_MARKER = "made-by-edgeml-demo"


class Demo:
    """One run of the demo below one folder."""

    def __init__(self, out: Path, as_json: bool = False) -> None:
        """Take the folder; an earlier demo in it is replaced, anything else is left alone.

        Raises:
            UsageError: The folder holds something else.
        """
        self.out = out.absolute()
        self.as_json = as_json
        self.account = Account(quiet=as_json)
        self.winners: list[ConvertSummary] = []
        self.rollouts: list[RolloutSummary] = []
        if self.out.exists() and any(self.out.iterdir()):
            if not (self.out / _MARKER).exists():
                raise UsageError(
                    f"{out} is not empty, and not an earlier demo", "choose another --out"
                )
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / _MARKER).touch()

    def run(self, serve: bool = False) -> None:
        """Tell the story; with ``serve``, keep everything up until Ctrl-C.

        Raises:
            GateError: A step did not happen as it must.
            EdgemlError: Something could not be done.
        """
        # Ctrl-C or a plain `kill`, in the background too: both end the children as well.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        with Processes(self.out / "logs") as processes:
            profiles = self._profiles()
            self._convert(profiles, processes)
            fleet = DemoFleet(self.out, processes)
            ready = self._start(fleet, profiles)
            traffic = self._roll_out(fleet)
            summary = self._summary(fleet, traffic, ready)
            if serve:
                self._serve(ready)
            rough = processes.stop()
        if rough:
            raise GateError(f"these did not end by themselves: {', '.join(rough)}")
        self.account.good("everything that was started has ended")
        if self.as_json:
            click.echo(msgspec.json.encode(summary).decode())

    def _profiles(self) -> tuple[str, str]:
        """Return the profile of this machine's processor, and the smallest one."""
        from edgeml.hardware import best_profile, profile_names
        from edgeml.runtime.facts import device_facts

        cpus = [name for name in profile_names() if name.startswith("cpu-")]
        return best_profile(device_facts(), cpus).name, "tpu-lite-generic"

    def _convert(self, profiles: tuple[str, str], processes: Processes) -> None:
        """Chapter 1: three versions, two profiles each."""
        self.account.chapter("Convert: every candidate is built, checked and measured")
        data = resources.files("edgeml.cli.demo") / "data"
        with resources.as_file(data) as folder:
            for version, evaluation in VERSIONS.items():
                words = [*EDGEML, "convert", str(folder / f"{MODEL}-{version}.onnx"), "--json"]
                for profile in profiles:
                    words += ["--profile", profile]
                words += ["--data", str(folder / evaluation), "--metric", "top1"]
                words += ["--max-drop", "0.02", "--effort", "quick"]
                words += ["--name", MODEL, "--version", version, "-o", str(self._bundle(version))]
                found = msgspec.json.decode(processes.run(words))
                for result in found["results"]:
                    self._winner(version, result)

    def _bundle(self, version: str) -> Path:
        return self.out / f"{MODEL}-{version}.edgeml"

    def _winner(self, version: str, result: dict[str, Any]) -> None:
        """Keep and tell one winner."""
        winner = result["winner"]
        found = ConvertSummary(
            version,
            result["profile"],
            winner["runtime"],
            winner["recipe"],
            winner["precision"],
            winner["latency_ms"]["p50"],
            result["speedup"]["value"],
            winner["size_bytes"],
            winner["metric"]["value"],
        )
        self.winners.append(found)
        self.account.good(
            f"{MODEL} {version} for {found.profile}: {found.precision} on {found.runtime}, "
            f"{found.p50_ms * 1000:.0f} us, {found.speedup:.1f} times as fast as onnxruntime's "
            f"fp32, {found.size_bytes / 1024:.0f} KiB, {found.metric:.1%} right on its own data"
        )

    def _start(self, fleet: DemoFleet, profiles: tuple[str, str]) -> Ready:
        """Chapter 2: broker, fleet and four agents."""
        self.account.chapter("Start: a broker, a fleet and four agents, all on loopback")
        ready = fleet.start()
        self.account.line(f"{ready.broker or 'broker'} on {ready.mqtt}, dashboard on {ready.url}")
        for number in range(1, 5):
            profile = profiles[(number - 1) % 2]
            fleet.enrol(f"camera-{number}", profile, {"site": "demo"})
        fleet.wait_online()
        self.account.good("4 devices enrolled and online")
        for version in VERSIONS:
            fleet.client.push(self._bundle(version))
        self.account.good(f"{len(VERSIONS)} signed versions in the registry")
        return ready

    def _roll_out(self, fleet: DemoFleet) -> Traffic:
        """Chapters 3 to 5: a first version, a better one, and one that must not stay."""
        self.account.chapter("Roll out 1.0.0 to all four")
        self._expect(fleet, "1.0.0", "all-at-once", "done")
        fleet.wait_serving("1.0.0")
        images, labels = self._digits()
        traffic = Traffic(MODEL, fleet.ports, images, labels, _PER_SECOND)
        traffic.start()
        try:
            end = time.monotonic() + 30
            while traffic.total().answered < 4 * len(fleet.ports) and time.monotonic() < end:
                time.sleep(0.05)
            self.account.line("real digits go to all four now, and their labels come back")

            self.account.chapter("Roll out 2.0.0, slightly better: canary, then the rest")
            self._expect(fleet, "2.0.0", "canary", "done")
            fleet.wait_serving("2.0.0")

            self.account.chapter("Roll out 3.0.0: installs, passes its own golden samples ...")
            self._expect(fleet, "3.0.0", "canary", "rolled_back")
            fleet.wait_serving("2.0.0")
            self.account.good("every device is back on its own last verified version, 2.0.0")
            time.sleep(1.0)  # a last look at what is served after the rollback
        finally:
            traffic.stop()
        return traffic

    def _digits(self) -> tuple[Any, Any]:
        """Return real digits [N, 1, 8, 8] and their labels, from the package."""
        data = (resources.files("edgeml.cli.demo") / "data" / "digits.npz").read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return arrays["test/image"], arrays["test/labels"]

    def _expect(self, fleet: DemoFleet, version: str, strategy: str, outcome: str) -> None:
        """Roll a version out, tell what happened, and insist on the outcome.

        Raises:
            GateError: It ended in another way.
        """
        detail, seconds = fleet.roll_out(version, strategy, first=version == "1.0.0")
        row = detail.row
        self.rollouts.append(RolloutSummary(version, row.state, row.reason, round(seconds, 1)))
        for text in _evidence(detail):
            self.account.line(text)
        say = self.account.good if row.state == "done" else self.account.bad
        say(f"{version} {row.state.replace('_', ' ')} after {seconds:.0f} s: {row.reason}")
        if row.state != outcome:
            raise GateError(
                f"rollout of {version} ended '{row.state}' ({row.reason}), expected '{outcome}'",
                f"read the logs in {self.out / 'logs'}",
            )

    def _summary(self, fleet: DemoFleet, traffic: Traffic, ready: Ready) -> Summary:
        """Check the figures, write summary.json and tell them.

        Raises:
            GateError: A request was lost or answered wrongly, or a bad digest may still run.
        """
        self.account.chapter("The account")
        total = traffic.total()
        serving = fleet.variants()
        accuracy = {v: total.right[v] / n for v, n in sorted(total.seen.items())}
        summary = Summary(
            tuple(self.winners),
            tuple(self.rollouts),
            RequestSummary(total.sent, total.answered, total.wrong_shape, total.lost),
            {version: round(share, 4) for version, share in accuracy.items()},
            tuple(DeviceSummary(d, *found) for d, found in sorted(serving.items())),
            ready.broker,
            round(time.monotonic() - self.account.began, 1),
        )
        (self.out / "summary.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"
        )
        self.account.good(
            f"{total.sent} requests, {total.answered} answered, {total.lost} lost, "
            f"{total.wrong_shape} of the wrong shape"
        )
        for version, share in accuracy.items():
            self.account.line(
                f"{version} was right on {share:.1%} of {total.seen[version]} real digits"
            )
        for device in summary.devices:
            self.account.line(f"{device.id} serves {device.version} by {device.variant}")
        bad = [r.version for r in fleet.client.versions(MODEL) if r.quarantined]
        if total.lost or total.wrong_shape or total.answered != total.sent or bad != ["3.0.0"]:
            raise GateError(
                f"{total.lost} requests lost, {total.wrong_shape} of the wrong shape, "
                f"quarantined: {bad}; expected none, none and ['3.0.0']",
                f"read the logs in {self.out / 'logs'}",
            )
        self.account.good(
            "3.0.0 is quarantined by its digest: no rollout brings it back until people lift that"
        )
        self.account.line(f"{self.out / 'summary.json'}, {summary.seconds:.0f} s in all")
        return summary

    def _serve(self, ready: Ready) -> None:
        """Keep everything up until Ctrl-C."""
        self.account.chapter("Look around; Ctrl-C ends it")
        self.account.line(f"dashboard: {ready.url}")
        self.account.line(f"login: {ready.user}, password: {ready.password}")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _evidence(detail: RolloutDetail) -> list[str]:
    """Return what the gates said last, one line each."""
    judged = [d.verdicts for d in detail.decisions if d.verdicts] or [detail.verdicts]
    # The verdicts that let the canary pass tell most: later waves have nobody to compare with.
    passed = [found for found in judged if all(v.state in {"pass", "undecided"} for v in found)]
    chosen = passed[0] if passed and detail.row.state == "done" else judged[-1]
    return [f"gate {v.gate}: {v.state}, {'; '.join(v.reasons)}" for v in chosen]
