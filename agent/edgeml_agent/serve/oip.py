"""Bodies of the Open Inference Protocol, version 2: the request and the reply of ``infer``.

Both may carry tensors as JSON or, behind the JSON, as raw bytes (binary tensor data extension):
the header ``Inference-Header-Content-Length`` says where the JSON ends.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgeml.errors import RequestError, nearest
from edgeml.tensors import Array, TensorSpec
from edgeml_agent.serve import oip_tensors

#: Parameters that change what is computed and that we do not have: refused, not ignored.
_UNSUPPORTED = (
    "sequence_id", "sequence_start", "sequence_end", "classification",
    "shared_memory_region",
)  # fmt: skip


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw(b"")


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Body(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Output] = []


class Wanted(msgspec.Struct, frozen=True):
    """One output that a request wants.

    Attributes:
        name: Its name.
        binary: Whether as raw bytes.
    """

    name: str
    binary: bool


class InferRequest(msgspec.Struct, frozen=True):
    """A decoded request.

    Attributes:
        id: The client's id; empty when it gave none.
        feed: The inputs.
        outputs: The outputs that it wants, in its order; empty for all.
        binary: Whether outputs that do not say are wanted as raw bytes.
        timeout: Seconds within which it wants to be run; 0 for the server's own limit.
    """

    id: str
    feed: dict[str, Array]
    outputs: tuple[Wanted, ...]
    binary: bool
    timeout: float


_decoder = msgspec.json.Decoder(_Body)


def decode_request(body: bytes, header_length: bytes | None) -> InferRequest:
    """Decode the body of an ``infer`` request.

    Args:
        body: The whole body.
        header_length: Value of ``Inference-Header-Content-Length``; None without it.

    Raises:
        RequestError: The body is not what the protocol says; the first thing that is wrong.
    """
    end = len(body)
    if header_length is not None:
        if not header_length.isdigit() or int(header_length[:18]) > end:
            raise RequestError(
                f"Inference-Header-Content-Length is {header_length[:20].decode('latin-1')}, "
                f"expected at most the {end} bytes of the body"
            )
        end = int(header_length)
    view = memoryview(body)
    try:
        head = _decoder.decode(view[:end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not an inference request: {error}") from error
    _supported(head.parameters)
    binary = _flag(head.parameters, "binary_data_output", False)
    return InferRequest(
        id=head.id,
        feed=_inputs(head.inputs, view[end:]),
        outputs=_outputs(head.outputs, binary),
        binary=binary,
        timeout=_timeout(head.parameters),
    )


def _inputs(inputs: list[_Input], rest: memoryview) -> dict[str, Array]:
    """Return the feed; the raw bytes follow the JSON in the order of the inputs."""
    feed: dict[str, Array] = {}
    offset = 0
    for given in inputs:
        if given.name in feed:
            raise RequestError(f"input '{given.name}' is given twice")
        if given.parameters:
            _supported(given.parameters)
        size = given.parameters.get("binary_data_size")
        if size is None:
            if not len(given.data):
                raise RequestError(f"input '{given.name}' has neither data nor binary_data_size")
            array = oip_tensors.from_json(
                given.name, given.datatype, given.shape, bytes(given.data)
            )
        else:
            if type(size) is not int or not 0 <= size <= len(rest) - offset:
                raise RequestError(
                    f"binary_data_size of input '{given.name}' is {str(size)[:20]}, "
                    f"expected at most the {len(rest) - offset} bytes that are left"
                )
            if len(given.data):
                raise RequestError(f"input '{given.name}' has both data and binary_data_size")
            raw = rest[offset : offset + size]
            array = oip_tensors.from_raw(given.name, given.datatype, given.shape, raw)
            offset += size
        feed[given.name] = array
    if offset != len(rest):
        raise RequestError(f"{len(rest) - offset} bytes of binary data belong to no input")
    return feed


def _outputs(outputs: list[_Output], default: bool) -> tuple[Wanted, ...]:
    names = [output.name for output in outputs]
    if len(set(names)) != len(names):
        raise RequestError("an output is asked for twice")
    for output in outputs:
        _supported(output.parameters)
    return tuple(Wanted(o.name, _flag(o.parameters, "binary_data", default)) for o in outputs)


def _supported(parameters: dict[str, Any]) -> None:
    for name in _UNSUPPORTED:
        if name in parameters:
            raise RequestError(f"parameter '{name}' is not supported")


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"parameter '{name}' is {str(value)[:20]}, expected true or false")
    return value


def _timeout(parameters: dict[str, Any]) -> float:
    """Return seconds; the parameter ``timeout`` counts microseconds, as in Triton."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or value < 0:
        raise RequestError(f"parameter 'timeout' is {str(value)[:20]}, expected microseconds")
    return value * 1e-6


def check_wanted(specs: tuple[TensorSpec, ...], request: InferRequest) -> None:
    """Check that a model has the outputs that a request wants.

    Raises:
        RequestError: An output that the model does not have.
    """
    if request.outputs:
        names = [spec.name for spec in specs]
        for wanted in request.outputs:
            if wanted.name not in names:
                raise RequestError(f"unknown output '{wanted.name}'", nearest(wanted.name, names))


def encode_reply(
    model: str, version: str, request: InferRequest, request_id: str, outputs: dict[str, Array]
) -> tuple[bytes, int | None]:
    """Encode the reply of ``infer``.

    Returns:
        The body, and the length of its JSON when raw bytes follow it (else None).

    Raises:
        RequestError: JSON was asked for, and cannot carry the values.
    """
    wanted = request.outputs or tuple(Wanted(name, request.binary) for name in outputs)
    heads: list[dict[str, Any]] = []
    raws: list[bytes] = []
    for want in wanted:
        array = outputs[want.name]
        head: dict[str, Any] = {
            "name": want.name,
            "shape": array.shape,
            "datatype": oip_tensors.datatype_of(array),
        }
        if want.binary:
            raw = oip_tensors.to_raw(array)
            head["parameters"] = {"binary_data_size": len(raw)}
            raws.append(raw)
        else:
            head["data"] = oip_tensors.to_json(want.name, array)
        heads.append(head)
    text = msgspec.json.encode(
        {"model_name": model, "model_version": version, "id": request_id, "outputs": heads}
    )
    if not raws:
        return text, None
    return b"".join((text, *raws)), len(text)
