"""Small real bundles for tests: two variants, golden samples, class names."""

import numpy as np

from edgeml.bundle import blob_ref, pack
from edgeml.drift.reference import build
from edgeml.manifest import (
    Evidence,
    EvidenceState,
    Lineage,
    Manifest,
    Tolerance,
    Variant,
)
from edgeml.runtime.bind import binding_identity
from edgeml.runtime.golden import save_arrays
from edgeml.tensors import TensorSpec
from tests.support.models import cnn, mlp

PROFILE = "cpu-x86-64"


def _run(model, feed):
    """Run a model with onnxruntime itself, not with the code under test."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def _variant(profile, recipe, files, inputs, outputs):
    entry, golden = f"variants/{recipe}/model.onnx", f"golden/{recipe}.npz"
    return Variant(
        id=f"{profile}.onnxruntime.{recipe}",
        profile=profile,
        runtime="onnxruntime",
        precision="fp32",
        recipe=recipe,
        files=(blob_ref(entry, files[entry]),),
        entry=entry,
        inputs=tuple(map(binding_identity, inputs)),
        outputs=tuple(map(binding_identity, outputs)),
        evidence=Evidence(EvidenceState.CHECKED, "tests"),
        tolerance=Tolerance(atol=1e-4, rtol=1e-3),
        golden=blob_ref(golden, files[golden]),
    )


def make_bundle(
    folder,
    name="demo",
    version="1.0.0",
    seed=0,
    kind="mlp",
    *,
    profile=PROFILE,
    fallback=True,
    wrong_golden=(),
    broken=(),
    packed=False,
    drift=True,
):
    """Make a bundle and return its path.

    Args:
        folder: Where it goes, as ``NAME-VERSION`` (or ``NAME-VERSION.edgeml`` when packed).
        name: The model's name.
        version: SemVer.
        seed: Of the weights: another seed gives other answers.
        kind: ``mlp`` (x [-1, 4] -> y [-1, 3]) or ``cnn`` (image [-1, 1, 8, 8] -> logits [-1, 10]).
        profile: Profile of its variants.
        fallback: Whether a second variant follows the first.
        wrong_golden: Recipes (``main``, ``fp32``) whose recorded outputs are wrong.
        broken: Recipes whose file is not a model.
        packed: Whether to make one file instead of a folder.
        drift: Whether it holds a drift reference (of standard normal inputs).
    """
    model = mlp(seed=seed) if kind == "mlp" else cnn(seed=seed)
    shape, outputs = ((4,), ("y", 3)) if kind == "mlp" else ((1, 8, 8), ("logits", 10))
    tensor = "x" if kind == "mlp" else "image"
    rng = np.random.default_rng(1000 + seed)
    golden = {tensor: rng.normal(size=(4, *shape)).astype(np.float32)}
    recorded = _run(model, golden)
    public_in = (TensorSpec(tensor, "float32", (-1, *shape)),)
    public_out = (TensorSpec(outputs[0], "float32", (-1, outputs[1])),)
    files = {"golden/inputs.npz": save_arrays(golden)}
    variants = []
    for recipe in ("main", "fp32") if fallback else ("main",):
        data = b"not a model" if recipe in broken else model.SerializeToString()
        outs = {k: v + 1 for k, v in recorded.items()} if recipe in wrong_golden else recorded
        files[f"variants/{recipe}/model.onnx"] = data
        files[f"golden/{recipe}.npz"] = save_arrays(outs)
        variants.append(_variant(profile, recipe, files, public_in, public_out))
    if drift:
        seen = {tensor: rng.normal(size=(200, *shape)).astype(np.float32)}
        files["drift.bin"] = build(seen, _run(model, seen)).encode()
    manifest = Manifest(
        name=name,
        version=version,
        inputs=public_in,
        outputs=public_out,
        variants=tuple(variants),
        lineage=Lineage("test.onnx", "sha256:" + "0" * 64, "", seed, {}, {}),
        labels=tuple(f"class{i}" for i in range(outputs[1])),
        golden=blob_ref("golden/inputs.npz", files["golden/inputs.npz"]),
        drift=blob_ref("drift.bin", files["drift.bin"]) if drift else None,
    )
    out = folder / f"{name}-{version}{'.edgeml' if packed else ''}"
    pack(manifest, files, out)
    return out


def reference(seed=0, kind="mlp"):
    """Return a function from a feed to the right outputs of the bundle with this seed."""
    model = mlp(seed=seed) if kind == "mlp" else cnn(seed=seed)
    return lambda feed: _run(model, feed)
