"""Images: crops of the two photographs that scikit-learn carries, and its handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from .builder import Array

#: Classes: so many places in each of the two photographs.
PLACES, SIDE, CROP = 5, 224, 144
#: How far, in pixels, a crop may lie from its place.
AROUND = 12
TRAIN, CALIBRATION, TEST = 800, 64, 400
#: Further test images, for a network on which 400 cannot tell a drop of 0.01 from none.
MORE = 600
#: A stored integer q means (q - ZERO) * SCALE.
SCALE, ZERO = 1.0 / 64.0, 114


@dataclass(frozen=True, eq=False)
class Images:
    """Images as integers (N, 3, 224, 224), and their class numbers."""

    pixels: Array
    labels: Array

    def floats(self, part: slice = slice(None)) -> Array:
        """Return some images as a network sees them."""
        return (self.pixels[part].astype(np.float32) - ZERO) * np.float32(SCALE)


@cache
def photos() -> dict[str, Images]:
    """Return the images ``train``, ``calib``, ``test`` and ``more``."""
    from sklearn.datasets import load_sample_images

    pictures = [np.asarray(p, np.float32) for p in load_sample_images().images]
    dice = np.random.default_rng(20)
    places = [_places(dice, picture.shape) for picture in pictures]
    parts = {"train": TRAIN, "calib": CALIBRATION, "test": TEST, "more": MORE}
    return {name: _draw(dice, pictures, places, size) for name, size in parts.items()}


def _places(dice: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return the upper left corners of the places of one photograph, spread over its width."""
    rows = dice.integers(AROUND, shape[0] - CROP - AROUND, PLACES)
    columns = np.linspace(AROUND, shape[1] - CROP - AROUND, PLACES).astype(int)
    return np.stack([rows, columns], axis=1)


def _draw(
    dice: np.random.Generator, pictures: list[Array], places: list[Array], size: int
) -> Images:
    labels = dice.permutation(np.arange(size) % (2 * PLACES))
    pixels = np.empty((size, 3, SIDE, SIDE), np.uint8)
    for i, label in enumerate(labels):
        picture, place = pictures[label // PLACES], places[label // PLACES][label % PLACES]
        top, left = place + dice.integers(-AROUND, AROUND + 1, 2)
        crop = _enlarge(picture[top : top + CROP, left : left + CROP])
        if dice.random() < 0.5:
            crop = crop[:, ::-1]
        light = (crop - 128.0) * dice.uniform(0.8, 1.2) + 128.0 + dice.normal(0.0, 8.0)
        noisy = light + dice.normal(0.0, 3.0, light.shape)
        pixels[i] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8).transpose(2, 0, 1)
    return Images(pixels, labels.astype(np.int64))


def _enlarge(crop: Array) -> Array:
    """Return a crop enlarged to SIDE by linear interpolation."""
    at = (np.arange(SIDE) + 0.5) * CROP / SIDE - 0.5
    low = np.clip(np.floor(at), 0, CROP - 2).astype(int)
    share = np.clip(at - low, 0.0, 1.0).astype(np.float32)
    rows = crop[low] * (1 - share)[:, None, None] + crop[low + 1] * share[:, None, None]
    enlarged: Array = rows[:, low] * (1 - share)[:, None] + rows[:, low + 1] * share[:, None]
    return enlarged
