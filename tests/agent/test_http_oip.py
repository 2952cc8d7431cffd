"""Bodies of the Open Inference Protocol: tensors there and back, and ways to get them wrong."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.errors import RequestError
from edgeml.tensors import DATATYPES
from edgeml_agent.serve.oip import InferRequest, Wanted, decode_request, encode_reply
from edgeml_agent.serve.oip_tensors import datatype_of, from_json, from_raw, to_json, to_raw

NUMBERS = [name for name in DATATYPES if name not in ("object", "float16")]


@st.composite
def arrays(draw, names=(*NUMBERS, "float16", "object")):
    dtype = draw(st.sampled_from(names))
    shape = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    size = int(np.prod(shape))
    if dtype == "object":
        flat = np.empty(size, dtype=object)
        flat[:] = [draw(st.text(max_size=5)) for _ in range(size)]
    elif dtype == "bool":
        flat = rng.random(size) > 0.5
    elif dtype.startswith("float"):
        flat = rng.normal(size=size).astype(dtype)
    else:
        bounds = np.iinfo(dtype)
        flat = rng.integers(bounds.min, bounds.max, size, dtype=dtype, endpoint=True)
    return flat.reshape(shape)


def same(got, want):
    assert got.shape == want.shape and got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@settings(max_examples=150, deadline=None)
@given(arrays(), st.integers(0, 3))
def test_raw_there_and_back_at_any_offset(array, offset):
    raw = memoryview(b"x" * offset + to_raw(array))[offset:]
    got = from_raw("x", datatype_of(array), list(array.shape), raw)
    same(got, array)
    assert got.flags.aligned


@settings(max_examples=150, deadline=None)
@given(arrays(names=(*NUMBERS, "object")), st.booleans())
def test_json_there_and_back_flat_and_nested(array, nested):
    values = array.tolist() if nested else to_json("x", array)
    got = from_json("x", datatype_of(array), list(array.shape), json.dumps(values).encode())
    same(got, array)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "match"),
    [
        ("FP32", [2], "[1, 2, 3]", "3 values, expected 2"),
        ("FP32", [2, 2], "[[1, 2], [3]]", "expected a list of 2"),
        ("FP32", [2, 1], "[[1], 2]", "expected a list of 1"),
        ("FP32", [1], '["a"]', "not FP32"),
        ("FP32", [1], "[true]", "not FP32"),
        ("FP32", [1], "[NaN]", "not FP32"),
        ("FP32", [1], "{}", "not FP32"),
        ("FP99", [1], "[1]", "FP99"),
        ("FP16", [1], "[1]", "FP16 in JSON"),
        ("UINT8", [1], "[256]", "does not fit"),
        ("INT8", [1], "[-129]", "does not fit"),
        ("INT32", [1], "[1.5]", "not INT32"),
        ("INT64", [1], "[9223372036854775808]", "does not fit"),
        ("BOOL", [1], "[1]", "not BOOL"),
        ("BYTES", [1], "[1]", "not BYTES"),
        ("FP32", [-1], "[1]", "none below 0"),
        ("FP32", [1] * 17, "[1]", "16 axes"),
        ("FP32", [1, 1], "[" * 5000 + "]" * 5000, "not FP32"),
    ],
)
def test_wrong_json_is_told(datatype, shape, data, match):
    with pytest.raises(RequestError, match=match):
        from_json("x", datatype, shape, data.encode())


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "match"),
    [
        ("FP32", [2], b"1234567", "7 bytes"),
        ("FP32", [1 << 62, 8], b"", "0 bytes"),
        ("BOOL", [2], b"\x00\x02", "other than 0 and 1"),
        ("BYTES", [1], struct.pack("<I", 9) + b"abc", "inside string 0"),
        ("BYTES", [2], struct.pack("<I", 2) + b"ab" + b"\x01\x00\x00", "inside string 1"),
        ("BYTES", [1 << 40], b"", "expected 1099511627776 strings"),
        ("BYTES", [1], struct.pack("<I", 1) + b"\xff", "UTF-8"),
        ("BYTES", [1], struct.pack("<I", 0) + b"x", "1 bytes after"),
    ],
)
def test_wrong_raw_data_is_told(datatype, shape, data, match):
    with pytest.raises(RequestError, match=match):
        from_raw("x", datatype, shape, memoryview(data))


def body(**changes):
    head = {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}
    return json.dumps({**head, **changes}).encode()


def binary(size, raw, **changes):
    parameters = {"binary_data_size": size}
    tensor = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": parameters}
    head = json.dumps({"inputs": [{**tensor, **changes}]}).encode()
    return head + raw, str(len(head)).encode()


def test_a_request_is_decoded_whole():
    request = decode_request(
        body(id="7", parameters={"timeout": 1_500_000, "binary_data_output": True},
             outputs=[{"name": "y"}, {"name": "z", "parameters": {"binary_data": False}}]),
        None,
    )  # fmt: skip
    assert request.id == "7" and request.timeout == 1.5 and request.binary
    assert request.outputs == (Wanted("y", True), Wanted("z", False))
    same(request.feed["x"], np.array([1, 2], np.float32))
    raw = np.array([3, 4], np.float32)
    same(decode_request(*binary(8, raw.tobytes())).feed["x"], raw)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ((b"", None), "not an inference request"),
        ((b"[]", None), "not an inference request"),
        ((b"{}", None), "inputs"),
        ((b"\xff{}", None), "not an inference request"),
        ((body(id=7), None), "id"),
        ((body(), b"9999"), "at most"),
        ((body(), b"-1"), "at most"),
        ((body(), b"10"), "not an inference request"),
        ((body(parameters={"sequence_id": 1}), None), "sequence_id"),
        ((body(parameters={"timeout": "soon"}), None), "microseconds"),
        ((body(parameters={"binary_data_output": 1}), None), "true or false"),
        ((body(outputs=[{"name": "y"}, {"name": "y"}]), None), "twice"),
        ((body(outputs=[{"name": "y", "parameters": {"classification": 2}}]), None), "classif"),
        ((body(inputs=[{"name": "x", "shape": [1], "datatype": "FP32"}]), None), "neither"),
        (binary(8, b"1234"), "4 bytes that are left"),
        (binary(4, b"1234"), "4 bytes of binary data"),
        (binary(8, b"123456789"), "1 bytes of binary data belong to no input"),
        (binary("8", b"12345678"), "binary_data_size"),
        (binary(8, b"12345678", data=[1, 2]), "both"),
    ],
)
def test_wrong_requests_are_told(given, match):
    with pytest.raises(RequestError, match=match):
        decode_request(*given)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.one_of(st.none(), st.binary(max_size=4)))
def test_any_body_is_a_request_or_an_error(data, length):
    with contextlib.suppress(RequestError):
        decode_request(data, length)


def ask(*outputs, binary=False):
    return InferRequest("", {}, outputs, binary, 0.0)


def test_replies_in_both_forms_and_mixed():
    outputs = {"y": np.array([[1.5, 2]], np.float32), "s": np.array(["é"], dtype=object)}
    text, length = encode_reply("m", "1.0.0", ask(), "id-1", outputs)
    assert length is None
    assert json.loads(text) == {
        "model_name": "m", "model_version": "1.0.0", "id": "id-1",
        "outputs": [
            {"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2]},
            {"name": "s", "shape": [1], "datatype": "BYTES", "data": ["é"]},
        ],
    }  # fmt: skip
    request = ask(Wanted("s", True), Wanted("y", False))
    mixed, length = encode_reply("m", "1.0.0", request, "i", outputs)
    head = json.loads(mixed[:length])
    assert [o["name"] for o in head["outputs"]] == ["s", "y"]
    assert mixed[length:] == struct.pack("<I", 2) + "é".encode()
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 6}


def test_json_cannot_carry_everything():
    half = {"y": np.ones(1, np.float16)}
    wild = {"y": np.array([np.inf], np.float32)}
    for outputs in (half, wild):
        with pytest.raises(RequestError, match="is FP16|not finite"):
            encode_reply("m", "1", ask(), "i", outputs)
        assert encode_reply("m", "1", ask(binary=True), "i", outputs)[1] is not None
