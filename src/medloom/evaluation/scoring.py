"""Every metric of one split with its interval and its trivial baseline, from one pass over the resamples.

Shapes: N images, K classes, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medloom.config import EvaluationConfig
from medloom.evaluation import metrics as m
from medloom.evaluation.baselines import trivial
from medloom.evaluation.intervals import Draws, Interval, bootstrap, entry, newcombe_auc, not_estimable, wilson
from medloom.evaluation.predictions import Predictions
from medloom.evaluation.probability_scores import probability_scores
from medloom.evaluation.questions import Question, answers, question_of, questions

Array = np.ndarray
PER_CLASS = ("recall", "precision", "f1", "specificity")
RANKED = ("auc", "average_precision")


def score(predictions: Predictions, config: EvaluationConfig, seed: int = 0) -> dict[str, Any]:
    """``metrics``, ``per_class``, ``confusion`` and ``decision`` of metrics.json for one split.

    Answers are the most probable class, or every label with probability of at least one half; thresholds from
    validation are applied by ``operating_results`` instead.
    """
    asked, answer = questions(predictions), answers(predictions)
    every = [question_of(predictions, k) for k in range(len(predictions.classes))]
    missing = [q.missing(config.min_positives) for q in every]
    draws = bootstrap(
        _Statistic(predictions, [m.rank(q.positive, q.score) for q in asked], missing),
        predictions.groups,
        resamples=config.resamples,
        seed=seed,
    )
    groups = predictions.groups
    baseline = trivial(predictions)
    write = _Writer(draws, len(predictions), config.confidence)
    per_class = {}
    for k, q in enumerate(every):
        row: dict[str, Any] = {"positives": q.positives, "negatives": q.negatives}
        sides = (_patients(groups, q.positive), _patients(groups, ~q.positive))
        for name in RANKED:
            if q.column in [a.column for a in asked]:
                both = sides if name == "auc" else None
                row[name] = write(f"{name}/{k}", baseline[f"{name}/{k}"], missing[k], trials=sides[0], sides=both)
        called = _patients(groups, answer[:, k])
        trials = {"recall": sides[0], "precision": called, "f1": min(sides), "specificity": sides[1]}
        for name in PER_CLASS:
            reason = missing[k] or (None if called or name != "precision" else "no image was called this")
            row[name] = write(f"{name}/{k}", baseline[f"{name}/{k}"], reason, trials=trials[name])
        per_class[q.name] = row
    summary = _summary_metrics(predictions, asked, missing, write, baseline, groups)
    return {
        "decision": "probability >= 0.5" if predictions.multi_label else "most probable class",
        "metrics": summary | probability_scores(predictions, config, seed),
        "per_class": per_class,
        "confusion": _confusions(predictions, answer),
    }


class _Statistic:
    """All metrics of a table under many weightings; names as in ``per_class`` with ``/k`` for the class."""

    def __init__(self, predictions: Predictions, rankings: list[m.Ranking], missing: list[str | None]) -> None:
        self.multi_label = predictions.multi_label
        self.n_classes = len(predictions.classes)
        self.truth = predictions.positives
        self.answer = answers(predictions)
        self.estimable = [k for k, reason in enumerate(missing) if reason is None]
        self.columns = [q.column for q in questions(predictions)]
        self.rankings = dict(zip(self.columns, rankings))

    def __call__(self, weight: Array) -> dict[str, Array]:
        out: dict[str, Array] = {}
        for k in self.columns:
            if k in self.estimable:
                out[f"auc/{k}"] = m.auc(self.rankings[k], weight)
                out[f"average_precision/{k}"] = m.average_precision(self.rankings[k], weight)
        for name in RANKED:
            out[name] = self._macro([out[f"{name}/{k}"] for k in self.columns if k in self.estimable], weight)
        return out | self._decisions(weight)

    def _decisions(self, weight: Array) -> dict[str, Array]:
        out: dict[str, Array] = {}
        if self.multi_label:
            tables = [
                m.decisions(m.confusion(self.truth[:, k].astype(int), self.answer[:, k].astype(int), 2, weight))
                for k in range(self.n_classes)
            ]
            by_class = {name: [table[name][..., 1] for table in tables] for name in PER_CLASS}
            same = self.truth == self.answer
            out["accuracy"] = m.mean_over_images(same.mean(axis=1), weight)
            out["exact_match"] = m.mean_over_images(same.all(axis=1), weight)
            balanced = [(by_class["recall"][k] + by_class["specificity"][k]) / 2 for k in range(self.n_classes)]
        else:
            table = m.decisions(
                m.confusion(self.truth.argmax(axis=1), self.answer.argmax(axis=1), self.n_classes, weight)
            )
            by_class = {name: [table[name][..., k] for k in range(self.n_classes)] for name in PER_CLASS}
            out["accuracy"] = table["accuracy"]
            balanced = by_class["recall"]
        out["balanced_accuracy"] = self._macro([balanced[k] for k in self.estimable], weight)
        for name in PER_CLASS:
            out |= {f"{name}/{k}": value for k, value in enumerate(by_class[name])}
        for name in ("recall", "precision", "f1"):
            # A class that was never answered has no precision to average; whether it is left out is decided on the
            # sample itself, so that every resample averages the same classes.
            kept = [by_class[name][k] for k in self.estimable if name != "precision" or self.answer[:, k].any()]
            out[name] = self._macro(kept, weight)
        return out

    @staticmethod
    def _macro(values: list[Array], weight: Array) -> Array:
        return np.mean(values, axis=0) if values else np.full(weight.shape[:-1], np.nan)


class _Writer:
    """Entries from draws; bounds that collapse at 0 or 1 come from score intervals over patients instead."""

    def __init__(self, draws: Draws, n: int, confidence: float) -> None:
        self.draws, self.n, self.confidence = draws, n, confidence

    def __call__(
        self,
        name: str,
        baseline: float,
        reason: str | None = None,
        *,
        note: str | None = None,
        trials: int | None = None,
        sides: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        patients = self.draws.patients
        if reason is not None or name not in self.draws.value:
            return not_estimable(reason or "no class has enough images", n=self.n, patients=patients)
        value = float(self.draws.value[name])
        bounds = self.draws.interval(name, self.confidence)
        if value in (0.0, 1.0) and bounds.low == bounds.high:
            bounds = self._collapsed(value, trials or patients, sides, bounds)
        return entry(value, bounds, n=self.n, patients=patients, baseline=baseline, note=note)

    def _collapsed(self, value: float, trials: int, sides: tuple[int, int] | None, bounds: Interval) -> Interval:
        if sides is not None:
            return newcombe_auc(value, sides[0], sides[1], self.confidence)
        return wilson(value * trials, trials, self.confidence) if trials else bounds


def _summary_metrics(
    predictions: Predictions,
    asked: tuple[Question, ...],
    missing: list[str | None],
    write: _Writer,
    baseline: Mapping[str, float],
    groups: Array,
) -> dict[str, Any]:
    k_all, multi = len(predictions.classes), predictions.multi_label
    noun = "labels" if multi else "classes"
    said = set(np.flatnonzero(answers(predictions).any(axis=0)).tolist())
    lost = [reason for reason in missing if reason is not None]
    rarest = min((_patients(groups, q.positive) for q in asked if q.positives), default=0)
    # Two classes stand or fall together; of more, the estimable ones are averaged and counted (D123).
    nothing = lost[0] if len(lost) == k_all else None
    if len(asked) == 1:
        nothing = missing[asked[0].column]
    macro = f"mean of {k_all - len(lost)} of {k_all} {noun}" if lost and nothing is None else None
    out = {"accuracy": write("accuracy", baseline["accuracy"])}
    if multi:
        out["exact_match"] = write("exact_match", baseline["exact_match"])
    for name in ("balanced_accuracy", "recall", "precision", "f1"):
        lacking = [c for k, c in enumerate(predictions.classes) if k not in said and missing[k] is None]
        note, reason = macro, nothing
        if name == "precision" and lacking:
            kept = k_all - len(lost) - len(lacking)
            note = f"mean of {kept} of {k_all} {noun}: nobody was called {', '.join(lacking[:3])}"
            reason = nothing or (None if kept else "nobody was called any of them")
        out[name] = write(name, baseline[name], reason, note=note, trials=rarest)
    for name in RANKED:
        sides = None
        if len(asked) == 1 and name == "auc":
            sides = (_patients(groups, asked[0].positive), _patients(groups, ~asked[0].positive))
        out[name] = write(name, baseline[name], nothing, note=macro, trials=rarest, sides=sides)
    return out


def _confusions(predictions: Predictions, answer: Array) -> Any:
    truth, k = predictions.positives, len(predictions.classes)
    if not predictions.multi_label:
        return m.confusion(truth.argmax(axis=1), answer.argmax(axis=1), k).astype(int).tolist()
    return {
        c: m.confusion(truth[:, j].astype(int), answer[:, j].astype(int), 2).astype(int).tolist()
        for j, c in enumerate(predictions.classes)
    }


def _patients(groups: Array, mask: Array) -> int:
    return len(set(groups[mask]))
