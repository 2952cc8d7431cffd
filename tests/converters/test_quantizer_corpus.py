"""Every model in which the usual quantisers crashed, did nothing or did harm, by our own.

What they did is in the corpus' ``ptq_baseline.json``: shape inference that fails on stale shapes
(dynamic), ambiguous truth values and invalid graphs (static, on old operator sets), files that
are larger for nothing, scores that drop.
"""

import json

import numpy as np
import onnx
import pytest

from edgeml.errors import ModelError
from edgeml_converters.model import run_model, signature
from edgeml_converters.passes.base import PassContext
from edgeml_converters.passes.opset import UpgradeOpset
from edgeml_converters.passes.quantize_dynamic import QuantizeDynamic
from edgeml_converters.passes.quantize_static import QuantizeStatic
from edgeml_converters.passes.simplify import Simplify
from edgeml_converters.source.checks import count_ops
from tests.support.corpus import corpus_file

pytestmark = pytest.mark.corpus

#: Model -> the least SQNR in dB that static and dynamic quantisation must reach here.
NETWORKS = {
    "ad_fcae_fp32": (25, 25),
    "bc_autoencoder": (15, 20),
    "cifar10_mobilenetv2_small": (10, 20),
    "diabetes_mlp": (25, 30),
    "digits_cnn": (25, 30),
    "ic_resnet8_fp32": (20, 30),
    "kws_dscnn_fp32": (12, 30),
    "mnist-8": (25, 30),
    "sst2_transformer": (10, 10),
    "ultraface_RFB_320": (15, 20),
}
ROWS = 100


def opened(name):
    """The model as the recipes prepare it, and calibration and test data of its types."""
    model = onnx.load(corpus_file(f"models/{name}.onnx"))
    with np.load(corpus_file(f"eval/{name}.npz")) as arrays:
        parts = {"calib": {}, "test": {}}
        for key in arrays.files:
            part, _, value = key.partition("/")
            if part in parts and value != "labels":
                array = arrays[key][:ROWS]
                parts[part][value] = array.astype(np.float32) if array.dtype == "uint8" else array
    context = PassContext(parts["calib"])
    for one in (UpgradeOpset(), Simplify()):
        model = one.run(model, context).model
    return model, context, parts["test"]


def sqnr(model, product, feed):
    """Signal to noise of the worst output in dB."""
    found = []
    want, got = run_model(model, feed), run_model(product, feed)
    for name, array in want.items():
        noise = float(((got[name] - array).astype(np.float64) ** 2).sum())
        found.append(
            10 * np.log10(float((array.astype(np.float64) ** 2).sum()) / max(noise, 1e-30))
        )
    return min(found)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_no_network_crashes_a_quantiser(name):
    model, context, test = opened(name)
    static, dynamic = NETWORKS[name]
    if name == "bc_autoencoder":
        test = context.calibration  # it is tested with anomalies, far outside of what is normal
    for placement in ("onnxruntime", "openvino"):
        product = QuantizeStatic(placement=placement).run(model, context).model
        onnx.checker.check_model(product, full_check=True)
        assert signature(product) == signature(model)
        assert sqnr(model, product, test) >= static
    if {"MatMul", "Gemm"} & set(count_ops(model)):
        product = QuantizeDynamic().run(model, PassContext()).model
        onnx.checker.check_model(product, full_check=True)
        assert sqnr(model, product, test) >= dynamic


def test_all_networks_of_the_baseline_are_here():
    table = json.loads(corpus_file("ptq_baseline.json").read_text())
    assert set(table) - set(NETWORKS) == {"lgbm_classifier", "silero_vad"}


def test_trees_are_not_touched():
    model, context, _ = opened("lgbm_classifier")
    for one in (QuantizeStatic(), QuantizeStatic(placement="openvino"), QuantizeDynamic()):
        with pytest.raises(ModelError, match="nothing to quantise"):
            one.run(model, context)


def test_a_recurrent_network_with_a_state_is_left_alone_or_really_quantised():
    model = onnx.load(corpus_file("models/silero_vad.onnx"))
    with pytest.raises(ModelError, match="nothing to quantise"):
        QuantizeDynamic().run(model, PassContext())
    with pytest.raises(ModelError, match=r"calibration data for input|nothing to quantise"):
        QuantizeStatic().run(model, PassContext())
