"""Makes the golden bundle of a format; run once per released format, then kept for ever.

``python -m tests.golden.make_bundle 0.1.0`` writes ``tests/golden/bundle-0.1.0.edgeml``.
"""

import io
import sys
from pathlib import Path

import numpy as np

from edgeml.bundle import blob_ref, pack
from edgeml.manifest import (
    Binding,
    Evidence,
    EvidenceState,
    Lineage,
    Manifest,
    Score,
    Step,
    Tolerance,
    Variant,
)
from edgeml.tensors import TensorSpec

HERE = Path(__file__).parent


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def sample(name="golden", version="0.1.0", model=b"a model"):
    """A small manifest with two variants, and its files."""
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    files = {
        "variants/fp32/model.onnx": model,
        "variants/int8/model.onnx": model[::-1],
        "variants/int8/golden.npz": npz(y=np.zeros((2, 3), np.float32)),
        "golden.npz": npz(x=x),
        "drift.bin": b"reference",
        "report/index.html": b"<p>report</p>",
        "measurements.json": b"{}",
    }
    refs = {path: blob_ref(path, data) for path, data in files.items()}

    def variant(precision, golden=None):
        path = f"variants/{precision}/model.onnx"
        return Variant(
            id=f"cpu-x86-64.onnxruntime.{precision}",
            profile="cpu-x86-64",
            runtime="onnxruntime",
            precision=precision,
            recipe=precision,
            files=(refs[path],),
            entry=path,
            inputs=(Binding("x", "x", "float32", (-1, 4)),),
            outputs=(Binding("y", "y", "float32", (-1, 3)),),
            evidence=Evidence(EvidenceState.MEASURED, "onnxruntime 1.20.0", "a processor"),
            tolerance=Tolerance(1e-3, 1e-3),
            golden=golden,
        )

    manifest = Manifest(
        name=name,
        version=version,
        inputs=(TensorSpec("x", "float32", (-1, 4)),),
        outputs=(TensorSpec("y", "float32", (-1, 3)),),
        variants=(variant("int8", refs["variants/int8/golden.npz"]), variant("fp32")),
        lineage=Lineage(
            source="mlp.onnx",
            source_digest=blob_ref("mlp.onnx", model).digest,
            data_digest="",
            seed=0,
            tools={"onnxruntime": "1.20.0"},
            steps={
                "cpu-x86-64.onnxruntime.int8": (
                    Step("quantise", {"scheme": "u8s8"}, "sha256:a", "sha256:b"),
                )
            },
        ),
        score=Score("top1", 0.9, 100, (0.8, 0.95)),
        labels=("a", "b", "c"),
        golden=refs["golden.npz"],
        drift=refs["drift.bin"],
        report=(refs["report/index.html"],),
        measurements=refs["measurements.json"],
    )
    return manifest, files


if __name__ == "__main__":
    from tests.support.models import mlp

    wanted = HERE / f"bundle-{sys.argv[1]}.edgeml"
    assert not wanted.exists(), "a golden bundle is never made twice"
    pack(*sample(model=mlp().SerializeToString()), wanted)
