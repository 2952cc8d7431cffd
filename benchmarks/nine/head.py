"""A classifier's last layer, fitted by least squares to real labels.

A network of chance gives features; the ridge regression of the labels on them makes it a
classifier with an accuracy that can be measured, and lost.
"""

from __future__ import annotations

import numpy as np

from .builder import Array

#: Outputs of a network that was made for ImageNet, and how far below the known classes the
#: outputs lie that no label ever names.
OUTPUTS, BELOW = 1000, 2.0


def fit(features: Array, labels: Array, classes: int, ridge: float = 1.0) -> tuple[Array, Array]:
    """Return weight (classes, C) and bias of the best linear classifier.

    Args:
        features: (N, C).
        labels: (N,), class numbers.
        classes: How many there are.
        ridge: Penalty, as a share of the features' mean variance.
    """
    x = features.astype(np.float64)
    mean = x.mean(0)
    centred = x - mean
    target = np.eye(classes)[labels] - 1.0 / classes
    gram = centred @ centred.T
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / len(gram) / 10.0
    weight = (centred.T @ np.linalg.solve(gram, target)).T * 8.0
    return weight, -weight @ mean


def widen(weight: Array, bias: Array, seed: int) -> tuple[Array, Array]:
    """Return the layer with as many outputs as ImageNet has classes.

    The further outputs are mixtures of the real ones, lower by ``BELOW``: they cost what they
    cost in the original and never win.
    """
    dice = np.random.default_rng(seed)
    more = OUTPUTS - len(weight)
    mix = dice.dirichlet(np.ones(len(weight)), more)
    return (
        np.concatenate([weight, mix @ weight]),
        np.concatenate([bias, mix @ bias - BELOW]),
    )
