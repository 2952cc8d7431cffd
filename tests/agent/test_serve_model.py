"""What a loaded bundle finds out about itself: which variants fit, and how it is batched."""

import contextlib

import numpy as np
import pytest

from edgeml.bundle import Bundle
from edgeml.errors import BundleError, RequestError
from edgeml.tensors import TensorSpec
from edgeml_agent.serve.engine import Engine
from edgeml_agent.serve.model import Model, fitting
from edgeml_agent.serve.oip import InferRequest
from tests.support.bundles import PROFILE, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.open(make_bundle(tmp_path_factory.mktemp("model")))


@pytest.fixture
def model(bundle, tmp_path):
    return Model(bundle, PROFILE, tmp_path)


class Stream:
    """A session, an opened variant and a program in one, around a function."""

    def __init__(self, function):
        self.run = function
        self.program = self

    def session(self):
        return self

    def close(self):
        pass


def test_a_real_model_is_batched_and_a_mixing_one_is_not(model):
    opened = model.open(model.variants[0])
    with contextlib.closing(opened):
        assert model.plan(opened, 16).hard == 16
        assert model.plan(opened, 1).batch == 1

    def mixing(feed):
        rows = feed["x"][:, :3]
        return {"y": rows - rows.mean(axis=0)}

    plan = model.plan(Stream(mixing), 16)
    assert (plan.batch, plan.hard) == (1, 0), "rows that change each other never share a run"

    def one_row(feed):
        if len(feed["x"]) > 1:
            raise RequestError("only one row")
        return {"y": feed["x"][:, :3]}

    assert model.plan(Stream(one_row), 16).batch == 1


def test_which_variants_fit(bundle):
    assert [v.recipe for v in fitting(bundle.manifest, PROFILE)] == ["main", "fp32"]
    assert len(fitting(bundle.manifest, "")) == 2
    with pytest.raises(BundleError, match=f"holds variants for: {PROFILE}"):
        fitting(bundle.manifest, "tpu-lite-generic")


def test_a_bundle_that_lacks_its_fallback_serves_all_the_same(bundle, tmp_path):
    """A device fetches what it needs; what it did not fetch cannot be its fallback."""
    lean = make_bundle(tmp_path, version="2.0.0", broken=("fp32",))
    missing = Bundle.open(lean).manifest.variants[1].files[0]
    (lean / "blobs" / "sha256" / missing.digest.removeprefix("sha256:")).unlink()
    model = Model(Bundle.open(lean), PROFILE, tmp_path / "cache")
    first, second = model.variants
    with contextlib.closing(model.open(first)) as opened:
        model.check(opened, first)
    with pytest.raises(BundleError, match="is not in"):
        model.open(second)


SPECS = (TensorSpec("a", "float32", (-1, 2)), TensorSpec("b", "float32", (-1,)),
         TensorSpec("scale", "float32", (1,)))  # fmt: skip


def request(rows_a, rows_b, value=1.0):
    feed = {
        "b": np.ones(rows_b, np.float32),
        "scale": np.full(1, value, np.float32),
        "a": np.ones((rows_a, 2), np.float32),
    }
    return InferRequest("", feed, (), False, 0.0)


def test_inputs_must_agree_on_their_rows_and_come_in_the_contract_s_order():
    engine = Engine(None, 1.0, allow_nonfinite=False)
    assert list(engine._checked(SPECS, request(3, 3))) == ["a", "b", "scale"]
    for wrong, word in [
        (request(3, 2), "same number"),
        (request(0, 0), "0 rows"),
        (request(1, 1, np.inf), "scale"),
    ]:
        with pytest.raises(RequestError, match=word):
            engine._checked(SPECS, wrong)
    assert Engine(None, 1.0, allow_nonfinite=True)._checked(SPECS, request(1, 1, np.nan))
