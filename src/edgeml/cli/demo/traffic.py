"""The demo's traffic: real digits to every agent, each answer checked, each label posted."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from typing import Any

import msgspec
import numpy as np

from edgeml.tensors import Array

_TIMEOUT_S = 20.0


class Counts(msgspec.Struct):
    """What became of the requests.

    Attributes:
        sent: Requests that were sent.
        answered: Answers with a result of the right shape.
        wrong_shape: Answers of another shape.
        lost: Requests without an answer, or with an error.
        right: Answers that named the right digit, per version.
        seen: Answers per version.
    """

    sent: int = 0
    answered: int = 0
    wrong_shape: int = 0
    lost: int = 0
    right: Counter[str] = msgspec.field(default_factory=Counter)
    seen: Counter[str] = msgspec.field(default_factory=Counter)


class Traffic:
    """One thread per agent sends digits at a steady rate until it is stopped."""

    def __init__(
        self, model: str, ports: dict[str, int], images: Array, labels: Array, per_second: float
    ) -> None:
        """Take the model, the port of each agent, images [N, 1, 8, 8] and their labels [N]."""
        self.model = model
        self.images = images.astype(np.float32)
        self.labels = labels
        self.pause = 1.0 / per_second
        self.counts = {device: Counts() for device in ports}
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(device, port, start), daemon=True)
            for start, (device, port) in enumerate(ports.items())
        ]

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop sending, after the answers in flight."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=2 * _TIMEOUT_S)

    def total(self) -> Counts:
        """Return the counts of all agents together."""
        total = Counts()
        for one in self.counts.values():
            total.sent += one.sent
            total.answered += one.answered
            total.wrong_shape += one.wrong_shape
            total.lost += one.lost
            total.right.update(one.right)
            total.seen.update(one.seen)
        return total

    def _run(self, device: str, port: int, start: int) -> None:
        counts = self.counts[device]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        index = start * 37
        while not self._stopping.is_set():
            began = time.monotonic()
            counts.sent += 1
            try:
                self._one(connection, counts, f"{device}-{counts.sent}", index % len(self.labels))
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                counts.lost += 1
                connection.close()
            index += 1
            self._stopping.wait(max(0.0, self.pause - (time.monotonic() - began)))
        connection.close()

    def _one(
        self, connection: http.client.HTTPConnection, counts: Counts, request_id: str, row: int
    ) -> None:
        """Send one digit, check the answer, post the label."""
        image = self.images[row : row + 1]
        answer = self._post(
            connection,
            "infer",
            {
                "id": request_id,
                "inputs": [
                    {
                        "name": "image",
                        "datatype": "FP32",
                        "shape": list(image.shape),
                        "data": image.ravel().tolist(),
                    }
                ],
            },
        )
        if answer is None:
            counts.lost += 1
            return
        output = answer["outputs"][0]
        if output["shape"] != [1, 10] or len(output["data"]) != 10:
            counts.wrong_shape += 1
            return
        counts.answered += 1
        version = str(answer.get("model_version", ""))
        counts.seen[version] += 1
        counts.right[version] += int(np.argmax(output["data"]) == self.labels[row])
        self._post(connection, "feedback", {"id": request_id, "label": int(self.labels[row])})

    def _post(
        self, connection: http.client.HTTPConnection, verb: str, body: dict[str, object]
    ) -> dict[str, Any] | None:
        """Post to the model; return the answer, or None for any status but 200."""
        connection.request(
            "POST",
            f"/v2/models/{self.model}/{verb}",
            body=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        reply = connection.getresponse()
        data = reply.read()
        if reply.status != 200:
            return None
        parsed: dict[str, Any] = json.loads(data) if data else {}
        return parsed
