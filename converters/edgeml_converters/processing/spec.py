"""What a user asks to be done before and after a model, decoded strictly.

Two forms mean the same: a TOML file, or its short form, words with blanks between them::

    imagenet color=bgr size=480x640
    softmax top=5 labels=labels.txt
    nms boxes=boxes scores=scores iou=0.5

A word ``key=value`` sets a key; numbers are joined by ``,``, sizes as ``HEIGHTxWIDTH``, and
``1/255`` is a number. A word alone is a preset (``imagenet``), an activation, ``argmax`` or
``nms``. An unknown key is an error that names the nearest.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import msgspec

from edgeml.errors import UsageError, nearest

_MAX_BYTES = 1 << 16
_MAX_LABELS = 1 << 22


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is done with one input before the model gets it.

    In this order: to float, resize, crop, order of colours, ``(x * scale - mean) / std``, order
    of axes. Sizes are (height, width).

    Attributes:
        input: Which input; may be empty when the model has one.
        dtype: What comes in.
        layout: Order of the axes that come in; the batch is in front of both.
        size: Size of what comes in; empty: any when it is resized, else the model's own.
        color: Order of colours of what comes in.
        model_layout: Order of axes that the model was trained with; empty: found by its shape.
        model_color: Order of colours that the model was trained with; empty: ``rgb``, or ``gray``
            when it takes one channel.
        resize: Size to resize to, or one number: of both sides, or of the shorter one.
        fit: ``stretch`` to the size; the ``shorter`` side to the number; ``letterbox``: the whole
            image in the middle of the size, the rest filled with ``pad``.
        pad: Value that fills, as it would come in.
        interpolation: ``linear`` and ``cubic`` as OpenCV does them, or ``nearest``.
        crop: Size of the middle part that is kept.
        scale: Factor.
        mean: One per channel of the model, or one for all, after ``scale``.
        std: The same.
    """

    input: str = ""
    dtype: Literal["uint8", "int8", "int16", "uint16", "float32"] = "uint8"
    layout: Literal["hwc", "chw"] = "hwc"
    size: tuple[int, ...] = ()
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    model_layout: Literal["", "hwc", "chw"] = ""
    model_color: Literal["", "rgb", "bgr", "gray"] = ""
    resize: tuple[int, ...] = ()
    fit: Literal["stretch", "shorter", "letterbox"] = "stretch"
    pad: float = 0.0
    interpolation: Literal["linear", "nearest", "cubic"] = "linear"
    crop: tuple[int, ...] = ()
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: A number is out of range, or keys contradict each other.
        """
        for name in ("size", "resize", "crop"):
            numbers = getattr(self, name)
            few = (0, 2) if name == "size" else (0, 1, 2)
            if len(numbers) not in few or any(n < 1 or n > 1 << 16 for n in numbers):
                raise ValueError(f"{name} is {list(numbers)}, expected HEIGHTxWIDTH")
        if self.fit != "stretch" and not self.resize:
            raise ValueError(f"fit is '{self.fit}' without resize, expected both")
        if self.fit == "shorter" and len(self.resize) != 1:
            raise ValueError("fit is 'shorter' with two numbers in resize, expected one")
        if self.fit != "stretch" and not self.size:
            raise ValueError(f"fit is '{self.fit}', which needs the size of what comes in")
        if not all(map(_finite, (self.scale, self.pad, *self.mean, *self.std))) or self.scale == 0:
            raise ValueError("scale, pad, mean and std must be finite, and scale not 0")
        if any(value == 0 for value in self.std):
            raise ValueError("std holds 0")

    @property
    def image(self) -> bool:
        """Whether anything is asked for that only an image has."""
        return bool(self.size or self.resize or self.crop or self.model_layout or self.model_color)


class Nms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Non-maximum suppression: of boxes that overlap, the one with the best score stays.

    Attributes:
        boxes: The output with the boxes; both names empty: one output holds four numbers of the
            box and then the scores.
        scores: The output with one score per class.
        format: ``corners`` (two corners) or ``center`` (middle, width, height).
        iou: Boxes of a class that overlap more than this are one.
        score: Boxes with a lower score are dropped.
        max: How many boxes are given; the rest is filled with class -1.
        skip: So many first classes are background.
    """

    boxes: str = ""
    scores: str = ""
    format: Literal["corners", "center"] = "corners"
    iou: float = 0.5
    score: float = 0.25
    max: int = 100
    skip: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: A number is out of range, or one name is missing.
        """
        if bool(self.boxes) != bool(self.scores):
            raise ValueError("nms has one of boxes and scores, expected both or none")
        if not 0 < self.iou <= 1 or not _finite(self.score):
            raise ValueError(f"nms has iou {self.iou} and score {self.score}, iou is in (0, 1]")
        if not 1 <= self.max <= 1 << 16 or self.skip < 0:
            raise ValueError(f"nms has max {self.max} and skip {self.skip}, expected 1 and 0 up")


class Postprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is done with an output of the model.

    Attributes:
        output: Which output; may be empty when the model has one, or with ``nms``.
        activation: ``softmax`` over the classes, or ``sigmoid``.
        axis: The axis of the classes.
        top: So many best classes with their scores, best first: ``classes`` and ``scores``.
        argmax: Only the number of the best class: ``class``.
        labels: Names of the classes, for the manifest: a file with one per line, or the names.
        nms: Boxes of objects instead of raw ones: ``boxes``, ``scores``, ``classes``.
    """

    output: str = ""
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    axis: int = -1
    top: int = 0
    argmax: bool = False
    labels: tuple[str, ...] = ()
    nms: Nms | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: Keys contradict each other, or nothing is asked for.
        """
        if self.top < 0:
            raise ValueError(f"top is {self.top}, expected 1 or more")
        asked = [n for n, v in (("top", self.top), ("argmax", self.argmax), ("nms", self.nms)) if v]
        if len(asked) > 1:
            raise ValueError(f"{' and '.join(asked)} are given, expected one of them")
        if not asked and self.activation == "none" and not self.labels:
            raise ValueError("nothing is asked for: expected activation, top, argmax, nms, labels")


#: Presets by name: keys of ``Preprocess`` that others override.
PRESETS: dict[str, dict[str, Any]] = {
    # What the models of torchvision and timm were trained with on ImageNet.
    "imagenet": {
        "scale": 1 / 255,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    # What the models of Keras applications in mode "tf" (MobileNet, Inception) were trained with.
    "tf": {"scale": 1 / 127.5, "mean": [1.0]},
    # 0 to 1.
    "unit": {"scale": 1 / 255},
}

_SIZES = frozenset({"size", "resize", "crop"})
_LISTS = frozenset({"mean", "std"})
_FRACTION = re.compile(r"\s*([-+.\deE]+)\s*/\s*([-+.\deE]+)\s*")
_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]*)`(?: - at `\$\.?(?P<where>[^`]*)`)?")
_CHOICE = re.compile(r"Invalid enum value '(?P<word>.*)' - at `\$\.(?P<where>[\w.]+)`", re.DOTALL)
T = TypeVar("T", Preprocess, Postprocess)


def read_preprocess(text: str) -> Preprocess:
    """Decode what is to be done before the model.

    Args:
        text: The path of a TOML file, or the short form.

    Raises:
        UsageError: It is wrong; the hint gives the nearest key.
    """
    keys, where = _keys(text, "--preprocess", _preprocess_word)
    preset = keys.pop("preset", None)
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(f"{where}: unknown preset '{preset}'", nearest(str(preset), PRESETS))
        keys = {**PRESETS[preset], **keys}
    return _decode(keys, Preprocess, where, frozenset({"preset"}))


def read_postprocess(text: str) -> Postprocess:
    """Decode what is to be done after the model; see ``read_preprocess``.

    Raises:
        UsageError: It is wrong, or the file of labels is.
    """
    keys, where = _keys(text, "--postprocess", _postprocess_word)
    labels = keys.get("labels")
    if isinstance(labels, str):
        path = Path(text).parent / labels if where != "--postprocess" else Path(labels)
        keys["labels"] = _labels(path, where)
    return _decode(keys, Postprocess, where, frozenset())


def _keys(
    text: str, option: str, word: Callable[[str, str], tuple[str, Any]]
) -> tuple[dict[str, Any], str]:
    """Return keys and values of either form, and what a message calls their source."""
    if text.endswith(".toml"):
        return _file(Path(text)), f"'{text}'"
    keys: dict[str, Any] = {}
    for one in text.split():
        key, value = word(one, option)
        place = keys
        *outer, last = key.split(".")
        for name in outer:
            inner = place.setdefault(name, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{option}: '{one}' and '{name}' contradict each other")
            place = inner
        if value == {} and isinstance(place.get(last), dict):
            continue  # nms, after a key of it
        if last in place:
            raise UsageError(f"{option}: '{key}' is given twice", "give it once")
        place[last] = value
    if not keys:
        example = "softmax" if option == "--postprocess" else "scale=1/255"
        raise UsageError(f"{option} is empty", f"give a file .toml, or words such as {example}")
    return keys, option


def _file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"'{path}' cannot be read: {said}", "check the path") from error
    if len(data) > _MAX_BYTES:
        raise UsageError(f"'{path}' has more than {_MAX_BYTES} bytes")
    try:
        keys = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"'{path}' is not TOML: {error}") from error
    return {key: _plain(key, value) for key, value in keys.items()}


def _plain(key: str, value: object) -> object:
    """Return a TOML value with fractions as numbers and single numbers as lists."""
    if isinstance(value, list):
        return [_plain("", one) for one in value]
    if isinstance(value, str) and key not in ("labels", "input", "output", "preset"):
        fraction = _fraction(value)
        value = value if fraction is None else fraction
    if key in _SIZES | _LISTS and isinstance(value, int | float) and not isinstance(value, bool):
        return [value]
    return value


def _fraction(text: str) -> float | None:
    """Return ``1/255`` as a number; None when the text is none."""
    match = _FRACTION.fullmatch(text)
    try:
        return float(Fraction(match[1]) / Fraction(match[2])) if match else None
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _preprocess_word(word: str, option: str) -> tuple[str, Any]:
    """Return key and value of a word before the model."""
    key, equals, value = word.partition("=")
    if not equals:
        known = Preprocess.__struct_fields__
        hint = nearest(word, PRESETS) if word not in known else f"{word}=VALUE is meant"
        if word not in PRESETS:
            raise UsageError(f"{option}: '{word}' means nothing alone", hint)
        return "preset", word
    return key, _value(key, value, option)


def _postprocess_word(word: str, option: str) -> tuple[str, Any]:
    """Return key and value of a word after the model."""
    key, equals, value = word.partition("=")
    if not equals:
        alone: dict[str, tuple[str, Any]] = {
            "softmax": ("activation", "softmax"),
            "sigmoid": ("activation", "sigmoid"),
            "argmax": ("argmax", True),
            "nms": ("nms", {}),
        }
        if word not in alone:
            raise UsageError(f"{option}: '{word}' means nothing alone", nearest(word, alone))
        return alone[word]
    if key in set(Nms.__struct_fields__) and key not in Postprocess.__struct_fields__:
        key = f"nms.{key}"
    return key, _value(key.rpartition(".")[2], value, option)


def _value(key: str, value: str, option: str) -> object:
    """Return the value of a word of the short form."""
    if key in _SIZES:
        parts = re.split("[x,]", value)
        if not all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts):
            raise UsageError(f"{option}: {key}={value} is no size", f"{key}=480x640 is meant")
        return [int(part) for part in parts]
    if key in _LISTS:
        return [_number(part, key, option) for part in value.split(",")]
    if key in ("input", "output", "boxes", "scores", "labels"):
        return value
    if value in ("true", "false"):
        return value == "true"
    try:
        return int(value)
    except ValueError:
        pass
    fraction = _fraction(value)
    if fraction is not None:
        return fraction
    try:
        return float(value)
    except ValueError:
        return value


def _number(text: str, key: str, option: str) -> float:
    fraction = _fraction(text)
    try:
        return float(text) if fraction is None else fraction
    except ValueError as error:
        raise UsageError(
            f"{option}: {key} holds '{text}', expected a number", f"{key}=0.5,0.5,0.5 is meant"
        ) from error


def _labels(path: Path, where: str) -> list[str]:
    """Return the lines of a file of labels."""
    try:
        data = path.read_bytes()
        text = data.decode()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{where}: labels '{path}' cannot be read: {said}", "a text file, one label per line"
        ) from error
    names = [line.strip() for line in text.splitlines()]
    while names and not names[-1]:
        names.pop()
    if not names or len(data) > _MAX_LABELS:
        raise UsageError(f"{where}: labels '{path}' holds {len(names)} labels, expected some")
    return names


def _decode(keys: Mapping[str, Any], kind: type[T], where: str, more: frozenset[str]) -> T:
    try:
        return msgspec.convert(dict(keys), kind)
    except msgspec.ValidationError as error:
        found = _UNKNOWN.search(str(error))
        wrong = _CHOICE.search(str(error))
        if wrong is not None:
            holder: Any = Nms if wrong["where"].startswith("nms.") else kind
            key = wrong["where"].rpartition(".")[2]
            raise UsageError(
                f"{where}: {key} is '{wrong['word']}'",
                nearest(wrong["word"], get_args(get_type_hints(holder)[key])),
            ) from error
        if found is None:
            said = str(error).replace("`$.", "`")
            raise UsageError(f"{where}: {said}", "see docs/reference/processing.md") from error
        inner = found["where"] == "nms"
        fields: tuple[str, ...] = Nms.__struct_fields__ if inner else kind.__struct_fields__
        known = {*fields} if inner else {*fields, *more}
        raise UsageError(
            f"{where}: unknown key '{found['key']}'{' in nms' if inner else ''}",
            nearest(found["key"], known),
        ) from error


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def options_of(spec: Preprocess | Postprocess) -> dict[str, Any]:
    """Return what was chosen as JSON values, for the lineage."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(spec))
    return found


def from_options(kind: type[T], options: Mapping[str, Any]) -> T:
    """Return the inverse of ``options_of``."""
    return msgspec.convert(dict(options), kind)
