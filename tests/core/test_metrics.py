"""Metrics against known values, and the verdicts on a drop."""

import numpy as np
import pytest

from edgeml.errors import DataError, UsageError
from edgeml.metrics import get_metric, paired_bounds, verdict


def one_hot(classes, count=10):
    return {"logits": np.eye(count, dtype=np.float32)[classes]}


def test_equal_answers_prove_only_the_rule_of_three():
    labels = np.arange(500) % 10
    outputs = one_hot(labels)
    found = get_metric("top1").drop(outputs, outputs, labels, 0.01)
    assert found.state == "ok"
    assert found.drop == 0
    assert found.upper == pytest.approx(0.00597, abs=1e-4)
    assert get_metric("top1").drop(outputs, outputs, labels, 0.005).state == "undecided"


def test_top1_counts_pairs_and_has_wilsons_interval():
    labels = np.zeros(100, np.int64)
    score = get_metric("top1").score(one_hot(np.repeat([0, 1], [90, 10])), labels, {})
    assert score.value == 0.9
    assert score.n == 100
    assert score.interval == pytest.approx((0.8256, 0.9448), abs=1e-4)


def test_a_large_drop_fails_and_a_gain_is_ok():
    labels = np.zeros(400, np.int64)
    good, poor = one_hot(labels), one_hot(np.repeat([0, 1], [360, 40]))
    assert get_metric("top1").drop(good, poor, labels, 0.01).state == "fails"
    found = get_metric("top1").drop(poor, good, labels, 0.01)
    assert (found.state, found.drop) == ("ok", -0.1)


def test_scores_that_are_not_finite_are_wrong_answers():
    labels = np.zeros(10, np.int64)
    broken = {"logits": np.full((10, 3), np.nan, np.float32)}
    assert get_metric("top1").score(broken, labels, {}).value == 0


@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 50), (5, 2, 200), (1, 0, 500), (0, 9, 300)])
def test_bounds_hold_the_estimate_and_mirror(b, c, n):
    lower, upper = paired_bounds(b, c, n)
    assert lower < (b - c) / n < upper
    assert paired_bounds(c, b, n) == pytest.approx((-upper, -lower))


def test_the_bound_covers_the_true_drop_in_95_of_100():
    rng = np.random.default_rng(3)
    n, loss, gain = 300, 0.03, 0.01
    draws = rng.multinomial(n, [loss, gain, 1 - loss - gain], size=600)
    covered = np.mean([paired_bounds(int(b), int(c), n)[1] >= loss - gain for b, c, _ in draws])
    assert 0.925 <= covered <= 0.98


def test_the_rule_of_the_verdict():
    assert verdict(0.0, -0.01, 0.01, 0.01).state == "ok"
    assert verdict(0.005, 0.0, 0.02, 0.01).state == "undecided"
    assert verdict(0.015, 0.0, 0.03, 0.01).state == "fails"
    assert verdict(float("nan"), 0.0, float("inf"), 0.01).state == "fails"


def test_auc_of_known_scores():
    labels = np.array([0, 0, 1, 1])
    outputs = {"score": np.array([0.1, 0.4, 0.35, 0.8], np.float32)}
    assert get_metric("auc").score(outputs, labels, {}).value == pytest.approx(0.75)
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    good = {"s": (labels + rng.normal(0, 0.3, 400)).astype(np.float32)}
    poor = {"s": rng.normal(size=400).astype(np.float32)}
    assert get_metric("auc").drop(good, poor, labels, 0.01).state == "fails"
    assert get_metric("auc").drop(good, good, labels, 0.01).state == "ok"
    with pytest.raises(DataError, match="labels 0 and 1"):
        get_metric("auc").score(good, labels + 1, {})


def test_errors_are_relative():
    labels = np.zeros(100, np.float32)
    rng = np.random.default_rng(0)
    before = {"y": rng.normal(size=(100, 1)).astype(np.float32)}
    after = {"y": before["y"] * 1.1}
    found = get_metric("mae").drop(before, after, labels, 0.2)
    assert found.drop == pytest.approx(0.1, abs=1e-6)
    assert found.state == "ok"
    assert get_metric("mse").drop(before, after, labels, 0.2).state == "fails"
    assert get_metric("r2").score({"y": labels + 1}, np.arange(100.0), {}).value < 0


def test_agreement_of_classes_and_of_values():
    metric = get_metric("agreement")
    reference = {"p": np.tile(np.float32([0.7, 0.3]), (50, 1))}
    other = {"p": reference["p"].copy()}
    other["p"][:5] = [0.4, 0.6]
    assert metric.score(other, None, reference).value == pytest.approx(0.9)
    rng = np.random.default_rng(0)
    values = {"y": rng.normal(size=(50, 8)).astype(np.float32) * 3}
    noisy = {"y": values["y"] * np.float32(1.01)}
    assert 0.999 < metric.score(noisy, None, values).value < 1
    assert metric.drop(values, noisy, None, 0.01).state == "ok"
    assert metric.drop(values, {"y": -values["y"]}, None, 0.01).state == "fails"


def test_labels_that_do_not_fit():
    outputs = one_hot(np.zeros(4, np.int64), 3)
    with pytest.raises(DataError, match="needs labels"):
        get_metric("top1").score(outputs, None, {})
    with pytest.raises(DataError, match="3 labels for 4 samples"):
        get_metric("top1").score(outputs, np.zeros(3), {})
    with pytest.raises(DataError, match="expected 0 to 2"):
        get_metric("top1").score(outputs, np.array([0, 1, 2, 3]), {})
    with pytest.raises(DataError, match="no output has the shape"):
        get_metric("mse").score(outputs, np.zeros(4), {})


def test_a_users_own_metric(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_metric_for_test.py").write_text(
        "def largest(outputs, labels):\n    return outputs['y'].max()\n"
        "largest.higher_is_better = False\n"
    )
    metric = get_metric("my_metric_for_test:largest")
    y = {"y": np.arange(1.0, 11.0)}
    assert metric.score(y, None, y).value == 10
    assert metric.drop(y, {"y": y["y"] * 2}, None, 0.5).drop == pytest.approx(1.0)
    with pytest.raises(UsageError, match="no function 'smallest'"):
        get_metric("my_metric_for_test:smallest")
    with pytest.raises(UsageError, match="no module 'not_there_at_all'"):
        get_metric("not_there_at_all:f")
    with pytest.raises(UsageError) as caught:
        get_metric("topp1")
    assert "top1" in caught.value.hint


def test_what_a_users_own_metric_does_wrong_names_it(tmp_path, monkeypatch):
    (tmp_path / "wrong_metrics.py").write_text(
        "def boom(outputs, labels):\n    raise KeyError('logits')\n"
        "def nan(outputs, labels):\n    return float('nan')\n"
    )
    (tmp_path / "no_python.py").write_text("def nan(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="'no_python:nan' failed: SyntaxError"):
        get_metric("no_python:nan")
    outputs = {"y": np.ones((4, 2), np.float32)}
    with pytest.raises(UsageError, match=r"'wrong_metrics:boom' failed: KeyError: 'logits'"):
        get_metric("wrong_metrics:boom").score(outputs, None, outputs)
    with pytest.raises(DataError, match="is nan on these 4 samples"):
        get_metric("wrong_metrics:nan").score(outputs, None, outputs)
