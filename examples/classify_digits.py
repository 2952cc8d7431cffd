"""Sends handwritten digits to an agent over the Open Inference Protocol, and posts their labels.

    edgeml-agent serve build/digits-1.0.0.edgeml --http 127.0.0.1:8500 &
    python examples/classify_digits.py --data build/digits/digits.npz

Standard library and NumPy only; any client of the protocol (``tritonclient``, ``kserve``) does the
same.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post JSON and return the JSON reply."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        answer: dict[str, Any] = json.loads(reply.read() or b"{}")
        return answer


def main() -> None:
    """Classify, count, and tell the agent what was right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="digits.npz of train_digits.py")
    parser.add_argument("--server", default="http://127.0.0.1:8500", help="address of the agent")
    parser.add_argument("--model", default="digits", help="name of the model")
    parser.add_argument("--count", type=int, default=100, help="how many digits to send")
    args = parser.parse_args()

    model = f"{args.server}/v2/models/{args.model}"
    with np.load(args.data) as arrays:
        images = arrays["test/image"][: args.count].astype(np.float32)
        labels = arrays["test/labels"][: args.count]
    right = 0
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        tensor = {
            "name": "image",
            "datatype": "FP32",
            "shape": [1, *image.shape],
            "data": image.ravel().tolist(),
        }
        answer = post(f"{model}/infer", {"id": f"digit-{number}", "inputs": [tensor]})
        right += int(np.argmax(answer["outputs"][0]["data"]) == label)
        post(f"{model}/feedback", {"id": f"digit-{number}", "label": int(label)})
    print(f"{right} of {len(labels)} right")


if __name__ == "__main__":
    main()
