"""docs/reference/processing.md names every key and preset, and its examples decode."""

import re
import tomllib
from pathlib import Path

import pytest

from edgeml_converters.processing import Nms, Postprocess, Preprocess, read_preprocess
from edgeml_converters.processing.spec import PRESETS, read_postprocess

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "processing.md"
TEXT = PAGE.read_text()


def keys(heading):
    """Return the keys of the table under a heading, or with a first cell."""
    part = TEXT.split(heading, 1)[1].split("\n## ")[0].split("| key of")[0]
    return set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE))


def test_every_key_is_documented():
    assert keys("## Before the model") == {*Preprocess.__struct_fields__, "preset"}
    assert keys("## After the model") == {*Postprocess.__struct_fields__}
    assert keys("| key of `nms` |") == {*Nms.__struct_fields__}
    for preset in PRESETS:
        assert f"`{preset}`" in TEXT


def test_the_examples_decode(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("labels.txt").write_text("".join(f"{i}\n" for i in range(5)))
    (before,) = re.findall(r"--preprocess '([^']*)'", TEXT)
    (after,) = re.findall(r"--postprocess '([^']*)'", TEXT)
    assert read_preprocess(before).size == (480, 640)
    assert read_postprocess(after).top == 5
    blocks = re.findall(r"```toml\n# (\S+)\n(.*?)```", TEXT, re.DOTALL)
    for name, block in blocks:
        tomllib.loads(block)
        Path(name).write_text(block)
    assert read_preprocess("camera.toml").color == "bgr"
    assert read_postprocess("boxes.toml").nms.skip == 1


@pytest.mark.parametrize("kind", [Preprocess, Nms, Postprocess])
def test_every_choice_is_documented(kind):
    for field, choices in kind.__annotations__.items():
        for word in re.findall(r"\"(\w+)\"", str(choices)):
            assert f"`{word}`" in TEXT, (field, word)
