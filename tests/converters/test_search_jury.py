"""Whose accuracy is judged: who may win, the likeliest first, and who is left out says why."""

from types import SimpleNamespace

import pytest

from edgeml_converters.candidates import Measured, Trial
from edgeml_converters.results import Standing
from edgeml_converters.search import jury
from edgeml_converters.search.jury import Jury
from edgeml_converters.search.progress import Progress


def trial(name, low, high):
    made = Trial(SimpleNamespace(name=name), "r", checked=object())
    made.measured = Measured((1.0,), 1.0, 1.0, 1.0, ((low + high) / 2, low, high), "wall")
    return made


@pytest.fixture
def asked(monkeypatch):
    """Return a function that judges trials, with who passes; it returns whose test was run."""
    ran = []

    def check(one, _bench, _progress, few=0):
        ran.append(one.recipe.name)
        one.results = one.recipe.name

    monkeypatch.setattr(jury, "check", check)
    monkeypatch.setattr(Trial, "recall", lambda _: {})

    def ask(trials, passing="", everyone=False, progress=None):
        def judge(many, _base):
            for one in many:
                one.sqnr_db = 1.0
                good = one.recipe.name in passing
                one.verdict = Standing.PASSED if good else Standing.UNDECIDED

        stop = SimpleNamespace(set=lambda: None)
        bench = SimpleNamespace(jobs=1, pool=SimpleNamespace(stop=stop))
        ran.clear()
        told = progress or Progress(lambda _: None)
        one = Jury(bench, SimpleNamespace(judge=judge), told, None, everyone=everyone)
        one.judge(trials, trials)
        return "".join(ran)

    return ask


def test_who_cannot_gain_is_not_judged_and_says_so(asked):
    a, b, c = trial("a", 1.4, 1.5), trial("b", 0.5, 0.6), trial("c", 0.9, 1.01)
    assert asked([b, c, a]) == "a"
    assert b.verdict == c.verdict == Standing.SKIPPED
    assert b.reason == ("slower than the source: 0.55 x [0.50, 0.60]; its accuracy was not judged")
    assert c.reason.startswith("no gain over the source")
    assert b.waits
    assert b.sqnr_db is None


def test_the_likeliest_comes_first_and_who_is_surely_behind_one_that_passed_is_left_out(asked):
    trials = [trial("a", 1.1, 1.2), trial("b", 1.5, 1.6), trial("c", 1.9, 2.0)]
    assert asked(trials, passing="b") == "cb"  # c cannot be told: b still counts
    assert trials[0].reason.startswith("surely slower than r.b, which passed: 1.15 x [1.10, 1.20]")


def test_who_overlaps_with_the_best_is_judged(asked):
    assert asked([trial("a", 1.4, 1.6), trial("b", 1.5, 1.7)], passing="ab") == "ba"


def test_when_the_faster_one_does_not_hold_the_next_is_judged(asked):
    a, b = trial("a", 1.4, 1.5), trial("b", 1.9, 2.0)
    assert asked([a, b], passing="ab") == "b"
    b.fail(Standing.FAILED, "measured again")
    assert asked([a, b], passing="ab") == "a"
    assert a.verdict == Standing.PASSED


def test_where_speed_does_not_decide_all_are_judged(asked):
    trials = [trial("a", 0.4, 0.5), trial("b", 1.9, 2.0)]
    assert asked(trials, passing="ab", everyone=True) == "ba"


def test_without_figures_all_are_judged(asked):
    a = trial("a", 1.0, 1.0)
    a.measured = None
    assert asked([a], passing="a") == "a"


def test_when_the_budget_is_over_nothing_more_is_judged(asked):
    a = trial("a", 1.4, 1.5)
    assert asked([a], progress=Progress(lambda _: None, budget_s=1e-9)) == ""
    assert "no time left" in a.reason
