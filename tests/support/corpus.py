"""Finds the measuring corpus beside the checkout; tests that use it carry the marker `corpus`."""

import os
from pathlib import Path

_DEFAULT = Path(__file__).resolve().parents[2].parent / "shared" / "corpus"
CORPUS = Path(os.environ.get("EDGEML_CORPUS", _DEFAULT))


def corpus_file(name: str) -> Path:
    """Return the path of a file of the corpus, for example ``models/digits_cnn.onnx``."""
    path = CORPUS / name
    assert path.exists(), f"{path} is missing from the corpus"
    return path
