"""What counts as harm."""

import pytest

from edgeml.messages.payloads import Ref
from edgeml_agent.control import SlotStatus
from edgeml_agent.trial import Judgement, Trial

REF = Ref("m", "1.0.0", "sha256:" + "0" * 64)


def status(requests=0, degraded="", **errors):
    return SlotStatus(REF, "v", "cpu", degraded=degraded, requests=requests, errors=errors)


@pytest.mark.parametrize(
    ("seen", "elapsed", "probes", "expected"),
    [
        (status(5), 1.0, 9, Judgement.GOING),
        (status(20), 1.0, 9, Judgement.PASSED),
        (status(20), 1.0, 1, Judgement.GOING),
        (status(0), 10.0, 9, Judgement.PASSED),
        (status(0, device=2), 10.0, 9, Judgement.PASSED),
        (status(0, device=3), 1.0, 9, Judgement.HARMED),
        (status(100, device=11), 1.0, 9, Judgement.PASSED),
        (status(98, device=12), 1.0, 9, Judgement.HARMED),
        (status(1, request=90, overload=90), 10.0, 9, Judgement.PASSED),
        (status(20, degraded="no npu"), 1.0, 9, Judgement.HARMED),
    ],
)
def test_judge(seen, elapsed, probes, expected):
    judgement, reason = Trial(20, 10.0).judge(seen, elapsed, probes)
    assert judgement is expected
    assert bool(reason) == (expected is Judgement.HARMED)


def test_a_fallback_is_no_harm_when_the_version_before_ran_on_one_too():
    judgement, _ = Trial(20, 10.0, was_degraded=True).judge(status(20, degraded="no npu"), 1.0, 9)
    assert judgement is Judgement.PASSED
