"""From a recipe to the loss that it asks for; what contradicts itself, or the data, is refused before training.

``loss.name`` says which function, ``imbalance`` which images are shown how often and how much a class weighs. The two
may not say the same thing twice: a focal or asymmetric loss brings its own weights.
"""

from __future__ import annotations

import numpy as np

from medloom.config import Recipe
from medloom.errors import UsageError
from medloom.training.losses import Loss, asymmetric_loss, make_loss

ALPHA = 0.25
"""Of the focal loss where labels are many and the recipe names none (Lin et al. 2017, their best)."""


def check_objective(recipe: Recipe, *, multi_label: bool, n_classes: int) -> None:
    """Refuse a loss that the labels or the rest of the recipe contradict.

    Args:
        multi_label: whether an image may bear several labels.
        n_classes: how many there are.

    Raises:
        UsageError: U223 loss and recipe, or loss and data, contradict each other; U221 undersampling of many labels.
    """
    name, method, smoothing = recipe.loss.name, recipe.imbalance.method, recipe.train.label_smoothing
    if multi_label and method == "undersample":
        _refuse("imbalance.method", "undersample needs one label per image, and these images have several",
                "Choose oversample, class_weights or none", code="U221")  # fmt: skip
    if name == "auto":
        return
    if name == "cross_entropy" and multi_label:
        _refuse("loss.name", "cross_entropy wants one label per image, and these images have several",
                "Choose bce, weighted_bce, focal or asymmetric")  # fmt: skip
    if name in ("bce", "weighted_bce", "asymmetric") and not multi_label:
        _refuse("loss.name", f"{name} is for images with several labels, and these have one each",
                "Choose cross_entropy or focal, or set data.multi_label")  # fmt: skip
    if method == "focal":
        _refuse("imbalance.method", f"focal contradicts loss.name={name}", "Set imbalance.method=none")
    if name == "weighted_bce" and method != "class_weights":
        _refuse("imbalance.method", f"{method} gives weighted_bce no weights", "Set imbalance.method=class_weights")
    if name in ("bce", "focal", "asymmetric") and method == "class_weights":
        other = "choose weighted_bce" if name == "bce" else "leave loss.name=auto"
        _refuse("imbalance.method", f"class_weights contradicts loss.name={name}, which takes none",
                f"Set imbalance.method=none, or {other}")  # fmt: skip
    if name == "asymmetric" and smoothing:
        _refuse("train.label_smoothing", "the asymmetric loss has none", "Set it to 0")
    if name == "focal" and recipe.loss.alpha is not None and not multi_label and n_classes != 2:
        _refuse("loss.alpha", f"one weight cannot serve {n_classes} exclusive classes",
                "Leave it out, or use imbalance.weights with cross_entropy")  # fmt: skip


def objective(recipe: Recipe, *, multi_label: bool, class_weights: np.ndarray | None = None) -> Loss:
    """The recipe's loss, after ``check_objective``.

    Args:
        class_weights: ``(K,)`` of ``data.sampling.class_weights``: ones unless the recipe asks for weights.
    """
    loss, smoothing = recipe.loss, recipe.train.label_smoothing
    if loss.name == "asymmetric":
        return asymmetric_loss(
            gamma_positive=loss.gamma_positive, gamma_negative=loss.gamma_negative, margin=loss.margin
        )
    if loss.name == "focal":
        alpha = ALPHA if loss.alpha is None and multi_label else loss.alpha
        weights = None
        if alpha is not None and not multi_label:
            weights, alpha = np.array([1.0 - alpha, alpha]), None
        return make_loss(
            multi_label=multi_label,
            class_weights=weights,
            label_smoothing=smoothing,
            focal_gamma=loss.gamma,
            focal_alpha=alpha,
        )
    return make_loss(
        multi_label=multi_label,
        class_weights=class_weights,
        label_smoothing=smoothing,
        focal_gamma=recipe.imbalance.gamma if recipe.imbalance.method == "focal" else None,
    )


def _refuse(place: str, problem: str, remedy: str, code: str = "U223") -> None:
    raise UsageError(code, place, problem, remedy)
