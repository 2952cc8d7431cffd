"""Paths of the Open Inference Protocol, its statistics, feedback and metrics, to their answers."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import msgspec

from edgeml import __version__
from edgeml.errors import EdgemlError, RequestError
from edgeml_agent.serve import describe, metrics
from edgeml_agent.serve.batcher import Outcome
from edgeml_agent.serve.engine import Engine
from edgeml_agent.serve.generation import Generation
from edgeml_agent.serve.http import Exchange
from edgeml_agent.serve.oip import decode_request, encode_reply
from edgeml_agent.serve.refused import Refused, kind_of, status_of

logger = logging.getLogger(__name__)

_BINARY = b"application/octet-stream"
_NAME = "edgeml-agent"
_EXTENSIONS = ("binary_tensor_data", "statistics", "model_configuration")

Answer = Callable[[Exchange, str, str], None]


class Routes:
    """The handler of every exchange.

    Args:
        engine: What infers.
        max_body: Most bytes of a body after decompression.
    """

    def __init__(self, engine: Engine, max_body: int) -> None:
        """Build the tables: path or last word of a path -> method -> answer."""
        self._engine = engine
        self._slots = engine.slots
        self._max_body = max_body
        self._fixed: dict[str, dict[str, Answer]] = {
            "/v2": {"GET": self._server},
            "/v2/health/live": {"GET": self._live},
            "/v2/health/ready": {"GET": self._ready},
            "/v2/models/stats": {"GET": self._statistics},
            "/v2/repository/index": {"POST": self._index},
            "/metrics": {"GET": self._metrics},
        }
        self._model: dict[str, dict[str, Answer]] = {
            "": {"GET": self._metadata},
            "ready": {"GET": self._model_ready},
            "config": {"GET": self._config},
            "stats": {"GET": self._statistics},
            "infer": {"POST": self._infer},
            "feedback": {"POST": self._feedback},
        }

    def handle(self, exchange: Exchange) -> None:
        """Answer an exchange, now or later; never raises."""
        try:
            self._route(exchange)
        except EdgemlError as error:
            _fail(exchange, error)
        except Exception:
            # A boundary: whatever goes wrong with one request is that request's answer, and
            # must not take the connection's neighbours with it.
            logger.exception("internal error at %s %s", exchange.method, exchange.path)
            exchange.fail(500, "internal error")

    def _route(self, exchange: Exchange) -> None:
        path = exchange.path
        answers = self._fixed.get(path)
        model = version = ""
        if answers is None:
            model, version, action = _split(path)
            answers = self._model.get(action) if model else None
            if answers is None or (action == "feedback" and version):
                raise Refused(f"there is no path '{path[:80]}'", status=404, kind="not_found")
        answer = answers.get(exchange.method)
        if answer is None:
            allow = ", ".join(answers).encode()
            message = f"{exchange.method} is not for '{path[:80]}'"
            exchange.fail(405, message, (b"Allow: " + allow,))
            return
        answer(exchange, model, version)

    def _infer(self, exchange: Exchange, model: str, version: str) -> None:
        _, generation = self._slots.find(model, version)
        length = exchange.headers.get(b"inference-header-content-length")
        try:
            request = decode_request(self._body(exchange), length)
        except EdgemlError as error:
            generation.counts.failed(kind_of(error))
            raise

        def done(generation: Generation, request_id: str, outcome: Outcome) -> None:
            if isinstance(outcome, EdgemlError):
                _fail(exchange, outcome)
                return
            try:
                body, length = encode_reply(
                    model, generation.ref.version, request, request_id, outcome
                )
            except EdgemlError as error:
                _fail(exchange, error)
                return
            if length is None:
                exchange.send(200, body)
            else:
                line = b"Inference-Header-Content-Length: %d" % length
                exchange.send(200, body, _BINARY, (line,))

        item = self._engine.infer(model, version, request, done)

        def gone() -> None:
            item.gone = True

        exchange.on_gone = gone

    def _feedback(self, exchange: Exchange, model: str, version: str) -> None:
        slot, _ = self._slots.find(model)
        labelled, correct = slot.memory.label(self._body(exchange))
        _reply(exchange, {"labelled": labelled, "correct": correct})

    def _server(self, exchange: Exchange, model: str, version: str) -> None:
        _reply(exchange, {"name": _NAME, "version": __version__, "extensions": _EXTENSIONS})

    def _live(self, exchange: Exchange, model: str, version: str) -> None:
        _reply(exchange, {"live": True, "ready": bool(self._slots.serving())})

    def _ready(self, exchange: Exchange, model: str, version: str) -> None:
        serving = self._slots.serving()
        hung = [g.slot for g in serving if g.batcher.running_seconds > self._engine.deadline]
        ready = bool(serving) and not hung
        body: dict[str, Any] = {"live": True, "ready": ready}
        body["models"] = {g.slot: g.ref.version for g in serving}
        body["degraded"] = {g.slot: g.chain.degraded for g in serving if g.on_fallback}
        if not ready:
            names = ", ".join(hung)
            body["reason"] = f"no answer from: {names}" if hung else "no model serves"
        _reply(exchange, body, 200 if ready else 503)

    def _metadata(self, exchange: Exchange, model: str, version: str) -> None:
        _reply(exchange, describe.metadata(self._slots.find(model, version)[1]))

    def _model_ready(self, exchange: Exchange, model: str, version: str) -> None:
        self._slots.find(model, version)
        _reply(exchange, {"name": model, "ready": True})

    def _config(self, exchange: Exchange, model: str, version: str) -> None:
        _reply(exchange, describe.config(self._slots.find(model, version)[1]))

    def _statistics(self, exchange: Exchange, model: str, version: str) -> None:
        chosen = [self._slots.find(model, version)[1]] if model else self._slots.serving()
        _reply(exchange, {"model_stats": [describe.statistics(g) for g in chosen]})

    def _index(self, exchange: Exchange, model: str, version: str) -> None:
        _reply(exchange, [
            {"name": g.slot, "version": g.ref.version, "state": "READY", "reason": ""}
            for g in self._slots.serving()
        ])  # fmt: skip

    def _metrics(self, exchange: Exchange, model: str, version: str) -> None:
        page = metrics.render(self._slots.totals(), self._slots.serving())
        exchange.send(200, page, metrics.CONTENT_TYPE)

    def _body(self, exchange: Exchange) -> bytes:
        """Return the body, decompressed within the limit.

        Raises:
            RequestError: It is damaged.
            Refused: Unknown encoding, or too large.
        """
        encoding = exchange.headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding in (b"identity", b""):
            return exchange.body
        if encoding not in (b"gzip", b"deflate"):
            raise Refused(
                f"Content-Encoding '{encoding.decode('latin-1')[:40]}' is not supported",
                "gzip and deflate are", status=415, kind="request",
            )  # fmt: skip
        unpacker = zlib.decompressobj(wbits=47)  # tells gzip and zlib apart by itself
        try:
            body = unpacker.decompress(exchange.body, self._max_body + 1)
        except zlib.error as error:
            raise RequestError(f"the body is not {encoding.decode()}: {error}") from error
        if len(body) > self._max_body:
            message = f"the body unpacks to more than {self._max_body} bytes"
            raise Refused(message, status=413, kind="request")
        if not unpacker.eof:
            raise RequestError(f"the body ends inside its {encoding.decode()} data")
        return body


@lru_cache(maxsize=256)
def _split(path: str) -> tuple[str, str, str]:
    """Return model, version and last word of ``/v2/models/M[/versions/V][/word]``."""
    parts = path.split("/")
    if parts[:3] != ["", "v2", "models"] or len(parts) < 4:
        return "", "", ""
    model, rest, version = unquote(parts[3]), parts[4:], ""
    if len(rest) >= 2 and rest[0] == "versions":
        version, rest = unquote(rest[1]), rest[2:]
    if len(rest) > 1 or (rest and not rest[0]):
        return "", "", ""
    return model, version, rest[0] if rest else ""


def _reply(exchange: Exchange, body: Any, status: int = 200) -> None:
    exchange.send(status, msgspec.json.encode(body))


def _fail(exchange: Exchange, error: EdgemlError) -> None:
    headers: tuple[bytes, ...] = ()
    if isinstance(error, Refused) and error.retry_after:
        headers = (b"Retry-After: %d" % error.retry_after,)
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    exchange.fail(status_of(error), message, headers)
