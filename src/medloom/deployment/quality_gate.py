"""Whether a smaller or coarser model may take the place of the one it came from: the one gate of ``quantize`` and
``prune``.

Its answers are not equal to the old ones, so parity is statistical (X604): how much AUC is lost, how far probabilities
moved, and whose decision turned over. No torch. Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medloom.errors import GateError
from medloom.evaluation.comparison import aligned, paired_difference
from medloom.evaluation.predictions import Predictions
from medloom.evaluation.questions import questions

LISTED_FLIPS = 1000


@dataclass(frozen=True)
class Limits:
    """What a compressed model may lose at most.

    Attributes:
        auc_loss: AUC (macro mean where classes are many) of the model before, less that of the model after.
        mean_shift: mean absolute change of the calibrated probabilities.
        flips: share of the decisions that turn over.
    """

    auc_loss: float = 0.005
    mean_shift: float = 0.02
    flips: float = 0.005


def quality_gate(
    before: Predictions,
    after: Predictions,
    *,
    thresholds: Mapping[str, float] | None = None,
    limits: Limits = Limits(),
    resamples: int = 1000,
    min_positives: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two models' answers on the same images with the limits.

    Args:
        before, after: tables of the same ids, labels and classes, in any order.
        thresholds: by class, frozen with the model before; without one the most probable class, or one half.
        min_positives: with fewer of either side an AUC is not estimable, and what cannot be judged does not pass.

    Returns:
        ``split, n, limits, passed, reasons`` (sentences, empty where it passed)``, auc`` ({before, after, loss,
        difference (entry: after minus before, with interval), p})``, shift`` ({mean, largest, id})``, flips``
        ({count, decisions, share, listed: [{id, class, truth, before, after}]}).

    Raises:
        DataError: D116, the tables are not about the same images.
    """
    after = aligned(before, after)
    paired = paired_difference(after, before, "auc", resamples=resamples, min_positives=min_positives, seed=seed)
    loss = None if paired["a"] is None or paired["b"] is None else paired["b"] - paired["a"]
    columns = [question.column for question in questions(before)]
    moved_NK = np.abs(after.probabilities - before.probabilities)[:, columns]
    mean, worst = (float(moved_NK.mean()), int(moved_NK.max(axis=1).argmax())) if len(before) else (0.0, 0)
    flips = flipped(before, after, thresholds or {})
    decisions = len(before) * (len(before.classes) if before.multi_label else 1)
    share = len(flips) / max(decisions, 1)
    reasons = []
    if loss is None:
        reasons.append(f"the AUC on {before.split} is not estimable ({paired['difference']['note']})")
    elif loss > limits.auc_loss:
        reasons.append(f"the AUC falls by {loss:.4f}, at most {limits.auc_loss} is allowed")
    if mean > limits.mean_shift:
        reasons.append(f"probabilities move by {mean:.4f} on average, at most {limits.mean_shift} is allowed")
    if share > limits.flips:
        told = f"{len(flips)} of {decisions} decisions turn over ({share:.2%})"
        reasons.append(f"{told}, at most {limits.flips:.2%} is allowed")
    return {
        "split": before.split,
        "n": len(before),
        "limits": asdict(limits),
        "passed": not reasons,
        "reasons": reasons,
        "auc": {
            "before": paired["b"],
            "after": paired["a"],
            "loss": loss,
            "difference": paired["difference"],
            "p": paired["p"],
        },
        "shift": {
            "mean": mean,
            "largest": float(moved_NK.max(initial=0.0)),
            "id": before.ids[worst] if len(before) else None,
        },
        "flips": {"count": len(flips), "decisions": decisions, "share": share, "listed": flips[:LISTED_FLIPS]},
    }


def require(report: Mapping[str, Any], place: object, remedy: str) -> None:
    """Go on only where the gate passed.

    Raises:
        GateError: X604 with the reasons.
    """
    if not report["passed"]:
        raise GateError("X604", place, f"on {report['split']}, {'; '.join(report['reasons'])}", remedy)


def flipped(before: Predictions, after: Predictions, thresholds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each decision that turned over, by id: the class that was answered before and after (of labels: which, and
    whether it was found), and the truth. ``after`` is in the order of ``before``.
    """
    old_NK, new_NK = decisions_of(before, thresholds), decisions_of(after, thresholds)
    classes, out = before.classes, []
    if before.multi_label:
        for n, k in np.argwhere(old_NK != new_NK):
            values = {"truth": before.labels[n, k], "before": old_NK[n, k], "after": new_NK[n, k]}
            out.append({"id": before.ids[n], "class": classes[k], **{key: bool(v) for key, v in values.items()}})
        return out
    old_N, new_N = old_NK.argmax(axis=1), new_NK.argmax(axis=1)
    for n in np.flatnonzero(old_N != new_N):
        truth, first, second = (classes[int(k)] for k in (before.labels[n], old_N[n], new_N[n]))
        out.append({"id": before.ids[n], "class": None, "truth": truth, "before": first, "after": second})
    return out


def decisions_of(table: Predictions, thresholds: Mapping[str, float]) -> np.ndarray:
    """``(N, K)`` bool as a bundle decides: the positive one of two classes, and every label, at its threshold."""
    if table.multi_label:
        limits = np.array([thresholds.get(name, 0.5) for name in table.classes])
        return np.asarray(table.probabilities >= limits)
    positive = table.classes[-1]
    if len(table.classes) == 2 and positive in thresholds:
        answer_N = (table.probabilities[:, 1] >= thresholds[positive]).astype(np.int64)
    else:
        answer_N = table.probabilities.argmax(axis=1)
    return np.asarray(answer_N[:, None] == np.arange(len(table.classes)))
