"""Labels and sentences of the report."""

from __future__ import annotations

from typing import Any

METRICS = {
    "auc": "AUC-ROC",
    "average_precision": "Average precision",
    "accuracy": "Accuracy",
    "exact_match": "Exact match",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "npv": "Negative predictive value",
    "recall": "Recall",
    "f1": "F1",
    "brier": "Brier score",
    "brier_skill": "Brier skill",
    "log_loss": "Log loss",
    "ece": "Expected calibration error",
    "slope": "Calibration slope",
    "intercept": "Calibration intercept",
}
LABEL_METRICS = {
    "auc": "AUC-ROC, mean",
    "average_precision": "Average precision, mean",
    "accuracy": "Label-wise accuracy",
    "exact_match": "Exact match of all labels",
}
"""Where labels are many, what a metric is called that another task calls otherwise."""
RULES = {
    "youden": "largest sum of sensitivity and specificity",
    "balanced_accuracy": "largest balanced accuracy",
    "accuracy": "largest accuracy",
    "sensitivity": "highest threshold that keeps the wanted sensitivity",
}
SPLITS = {"train": "training", "val": "validation", "test": "test"}
NOT_A_DEVICE = "Research software, not a medical device"
NOT_EXTERNAL = "NOT EXTERNALLY VALIDATED"


def grouped(count: int) -> str:
    """``5 216``, with a narrow no-break space."""
    return f"{count:,}".replace(",", "\u202f")


def plural(count: int, noun: str, many: str | None = None) -> str:
    """``1 image``, ``624 images``."""
    return f"{grouped(count)} {noun if count == 1 else many or noun + 's'}"


def per_cent(value: float) -> str:
    """``95 %`` of a round share."""
    return f"{100 * value:g}\u202f%"


def brief(value: Any) -> str:
    """A setting as a person writes it: ``0.0001``, ``1e-05``, ``0.55 to 1``."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and len(value) == 2:
        return f"{brief(value[0])} to {brief(value[1])}"
    return str(value)


def asked_of(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """The essentials of a recipe, one line each; the whole of it stands at the end of the page."""
    data, pre, model, train = (recipe.get(k) or {} for k in ("data", "preprocess", "model", "train"))
    imbalance, evaluation = recipe.get("imbalance") or {}, recipe.get("evaluation") or {}
    size = pre.get("size")
    side = " × ".join(map(str, size)) if isinstance(size, list) else f"{size} × {size}"
    rows = [
        (
            "Data",
            f"{data.get('path')}; patient from: {data.get('patient')}; site from: {data.get('site') or 'unknown'}",
        ),
        (
            "Input",
            f"{side} pixels ({pre.get('resize')}), channels: {pre.get('channels')}, intensity: {pre.get('intensity')}, "
            f"standardised by: {pre.get('statistics')}",
        ),
        ("Model", _options(str(model.get("name")), model)),
        ("Augmentation", _augmentation(recipe.get("augment") or {})),
        ("Loss", _loss(recipe.get("loss") or {})),
        ("Imbalance", _imbalance(imbalance)),
        (
            "Training",
            f"{_length(train)}, batch {train.get('batch_size')}"
            f"{' × ' + str(train.get('accumulate')) if train.get('accumulate', 1) != 1 else ''}, "
            f"{train.get('optimizer')} at {brief(train.get('learning_rate'))}, {train.get('schedule')} schedule, "
            f"weight decay {brief(train.get('weight_decay'))}{_training_options(train)}, seed {train.get('seed')}",
        ),
        (
            "Kept epoch",
            "lowest loss on validation" if train.get("monitor") == "val_loss" else "highest AUC on validation",
        ),
        (
            "Evaluation",
            f"threshold from validation: {RULES.get(str(evaluation.get('threshold')), evaluation.get('threshold'))}; "
            f"calibration: {evaluation.get('calibration')}; {evaluation.get('resamples')} resamples for the intervals"
            f"{'; mean over an image and its mirror' if evaluation.get('flip_average') else ''}",
        ),
    ]
    if data.get("accept"):
        rows.append(("Accepted", ", ".join(data["accept"])))
    return rows


def _length(train: dict[str, Any]) -> str:
    """What ends the run: a number of steps, where one is set, ends it before the epochs do."""
    steps = train.get("max_steps")
    epochs = f"{train.get('epochs')} epochs"
    return f"{plural(steps, 'step')} (at most {epochs})" if steps else epochs


def _training_options(train: dict[str, Any]) -> str:
    words = {
        "warmup_epochs": "warm-up over {} epochs",
        "layer_decay": "layer decay {}",
        "freeze_epochs": "epochs with a frozen trunk: {}",
        "label_smoothing": "label smoothing {}",
        "clip_norm": "gradients clipped at norm {}",
        "ema_decay": "EMA of the weights {}",
        "patience": "patience {} epochs",
    }
    neutral = {"layer_decay": (1, None)}
    told = [w.format(brief(train[k])) for k, w in words.items() if train.get(k) not in neutral.get(k, (0, None))]
    return "".join(f", {text}" for text in told)


def _options(name: str, model: dict[str, Any]) -> str:
    options = "; ".join(f"{k} = {v}" for k, v in (model.get("options") or {}).items())
    start = "pretrained weights" if model.get("pretrained") else model.get("weights") or "random start"
    return f"{name}{' (' + options + ')' if options else ''}, {start}"


def _loss(values: dict[str, Any]) -> str:
    name = str(values.get("name") or "auto")
    if name == "focal":
        alpha = values.get("alpha")
        return f"focal, gamma {brief(values.get('gamma'))}" + (f", alpha {brief(alpha)}" if alpha is not None else "")
    if name == "asymmetric":
        gammas = f"gamma {brief(values.get('gamma_positive'))} and {brief(values.get('gamma_negative'))}"
        return f"asymmetric, {gammas} (positives, negatives), margin {brief(values.get('margin'))}"
    words = {
        "auto": "cross-entropy, one sigmoid each where labels are many",
        "bce": "binary cross-entropy of each label",
        "weighted_bce": "binary cross-entropy of each label, positives weighted",
    }
    return words.get(name, name.replace("_", "-"))


def _imbalance(values: dict[str, Any]) -> str:
    method = str(values.get("method")).replace("_", " ")
    if values.get("method") == "class_weights":
        weights = values.get("weights")
        if isinstance(weights, dict):
            return f"{method}: " + ", ".join(f"{k} {brief(v)}" for k, v in weights.items())
        return f"{method}: {str(weights).replace('_', ' ')}"
    return f"{method}, gamma {brief(values.get('gamma'))}" if method == "focal" else method


def _augmentation(values: dict[str, Any]) -> str:
    neutral: tuple[Any, ...] = (0, 0.0, None, [1.0, 1.0], [1, 1])
    used = [f"{k.replace('_', ' ')} {brief(v)}" for k, v in values.items() if v not in neutral]
    return ", ".join(used) or "none"
