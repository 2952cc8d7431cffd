"""A bundle that ``edgeml convert`` made is served, and gives the right classes to real clients."""

import subprocess
import sys

import numpy as np
import pytest

from tests.support.corpus import corpus_file
from tests.support.serving import address, served

EDGEML = "from edgeml.cli import main; main()"


@pytest.mark.corpus
def test_known_images_get_the_right_class_from_a_converted_bundle(tmp_path):
    import tritonclient.http as http_client

    model, data = corpus_file("models/digits_cnn.onnx"), corpus_file("eval/digits_cnn.npz")
    bundle = tmp_path / "digits-1.0.0.edgeml"
    done = subprocess.run(
        [sys.executable, "-c", EDGEML, "convert", str(model), "--profile", "cpu-x86-64",
         "--data", str(data), "--metric", "top1", "--effort", "quick", "--name", "digits",
         "-o", str(bundle)],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(data) as arrays:
        images, labels = arrays["test/image"][:50].astype(np.float32), arrays["test/labels"][:50]
    right = {True: 0, False: 0}
    with served(bundle) as (_, ready):
        client = http_client.InferenceServerClient(address(ready))
        for binary in right:
            for image, label in zip(images, labels, strict=True):
                tensor = http_client.InferInput("image", (1, *image.shape), "FP32")
                tensor.set_data_from_numpy(image[np.newaxis], binary_data=binary)
                scores = client.infer("digits", [tensor]).as_numpy("logits")
                right[binary] += int(scores.argmax() == label)
        client.close()
    assert right[True] == right[False] >= 47
