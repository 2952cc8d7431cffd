"""What a search says to people."""

from __future__ import annotations

from edgeml.hardware import DeviceFacts, HardwareProfile
from edgeml_converters.candidates import Bench
from edgeml_converters.recipes import PRECISIONS
from edgeml_converters.results import Candidate, Standing
from edgeml_converters.source import Source


def advice(source: Source, has_data: bool) -> str:
    """Return what to do when onnxruntime cannot run the source."""
    varying = [spec for spec in source.inputs if -1 in spec.shape[1:]]
    if has_data or not varying:
        return "check the model with 'edgeml inspect', and give --data with inputs that it accepts"
    shapes = " ".join(
        f"--shape {spec.name}={','.join(str(n) if n > 0 else 'N' for n in spec.shape)}"
        for spec in varying
    )
    return f"axes that vary were set to 1: give real numbers by {shapes}, or real inputs by --data"


def warnings(
    profile: HardwareProfile, misfit: str, has_data: bool, bench: Bench, facts: DeviceFacts
) -> tuple[str, ...]:
    """Return what a reader must know of the machine, the data and what was not tried."""
    found: list[str] = []
    if misfit:
        found.append(
            f"this machine is no {profile.name} ({misfit}): values were checked here, but no "
            "latency was measured, so nothing is claimed to be faster"
        )
        if profile.budgets.latency_ms is not None:
            found.append("the profile's budget latency_ms could not be checked here")
    if not has_data:
        found.append(
            "no evaluation data: accuracy cannot be judged, so only the source itself was tried; "
            "it was run on random inputs; give --data to get int8"
        )
    if bench.threads > facts.cores:
        found.append(f"{bench.threads} threads on {facts.cores} cores: they wait for one another")
    absent = sorted(set(profile.precisions) - PRECISIONS)
    if absent:
        found.append(f"no recipe gives {', '.join(absent)} yet, so it was not tried")
    return tuple(found)


def doubts(winner: Candidate) -> tuple[str, ...]:
    """Return what is not known of an undecided winner."""
    if winner.verdict != Standing.UNDECIDED:
        return ()
    doubt = winner.reason
    if winner.drop is not None:
        doubt = (
            f"it may lose up to {winner.drop.upper:.4g}, allowed is {winner.drop.limit:g}; "
            "more test samples would decide it"
        )
    return (f"the winner {winner.id} is undecided: {doubt}",)
