"""What a model must beat: constants, shuffled answers, and what age, sex, view or site alone would say.

Reference: Zech et al. 2018, PLoS Med. 15 (sorting by hospital alone gave an AUC of 0.861).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from medloom.config import EvaluationConfig
from medloom.evaluation import metrics as m
from medloom.evaluation.intervals import bootstrap, entry, not_estimable, patient_codes
from medloom.evaluation.predictions import Predictions
from medloom.evaluation.questions import answers, questions

Array = np.ndarray
_RESAMPLES = 500  # a warning light, not a result
COVARIATES = ("age", "sex", "view", "device", "scanner", "site")


def trivial(predictions: Predictions) -> dict[str, float]:
    """The number that needs no image, for each name in ``scoring.score``.

    Accuracy, F1, precision and recall: always the commonest class (labels: none at all). Per class: the model's own
    answers dealt out at random. AUC: a half; average precision: the prevalence. All computed on the same images, so
    they are the best of their kind in hindsight. Macro precision is averaged as the model's is, over the classes that
    were answered at all: here one.
    """
    truth = predictions.positives.astype(np.float64)
    k = truth.shape[1]
    share, said = truth.mean(axis=0), answers(predictions).mean(axis=0)
    asked = [q.column for q in questions(predictions)]
    out: dict[str, float] = {}
    for j in range(k):
        out[f"auc/{j}"], out[f"average_precision/{j}"] = 0.5, float(share[j])
        out[f"recall/{j}"], out[f"specificity/{j}"] = float(said[j]), float(1 - said[j])
        out[f"precision/{j}"] = float(share[j])
        out[f"f1/{j}"] = float(2 * share[j] * said[j] / (share[j] + said[j])) if share[j] + said[j] else 0.0
    out |= {"auc": 0.5, "average_precision": float(share[asked].mean())}
    if predictions.multi_label:
        out |= {"accuracy": float((1 - share).mean()), "exact_match": float((truth.sum(axis=1) == 0).mean())}
        out |= {"balanced_accuracy": 0.5, "recall": 0.0, "precision": float(share.mean()), "f1": 0.0}
    else:
        top = float(share.max())
        out |= {"accuracy": top, "balanced_accuracy": 1 / k, "recall": 1 / k, "precision": top}
        out["f1"] = 2 * top / (1 + top) / k
    return out


def covariate_only(predictions: Predictions, config: EvaluationConfig, seed: int = 0) -> list[dict[str, Any]]:
    """AUC that each known column reaches without any pixel, and all of them together; empty without columns.

    A logistic regression is fitted and scored on the same split in five folds of patients, each with about the same
    mixture of labels and columns: leaving out a fold with more positives of one site would make that site look
    innocent, and a column that says nothing would score well below a half. Each row: ``columns``, and ``auc``, an
    entry. A high value says that the images' labels can be guessed from who was imaged, and where.
    """
    columns = {name: encoded for name, encoded in _columns(predictions).items() if encoded is not None}
    trials = [(name,) for name in columns] + ([tuple(columns)] if len(columns) > 1 else [])
    rows = []
    for names in trials:
        x = np.concatenate([columns[name] for name in names], axis=1)
        rows.append({"columns": list(names), "auc": _cross_validated_auc(predictions, x, config, seed)})
    return rows


def _cross_validated_auc(predictions: Predictions, x_ND: Array, config: EvaluationConfig, seed: int) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    codes, patients = patient_codes(predictions.groups)
    usable = [q for q in questions(predictions) if q.missing(config.min_positives) is None]
    if not usable or patients < 5:
        return not_estimable("too few images of a class", n=len(predictions), patients=patients)
    rankings = []
    for q in usable:
        score = np.zeros(len(predictions))
        fold_N = _folds(codes, q.positive, x_ND, seed)
        for fold in range(5):
            train, test = fold_N != fold, fold_N == fold
            share = q.positive[train].mean()
            # Scores of different folds are compared, so each fold's offset from its own prevalence is taken out.
            if 0 < share < 1 and test.any():
                fitted = LogisticRegression(max_iter=1000).fit(x_ND[train], q.positive[train])
                score[test] = fitted.decision_function(x_ND[test]) - np.log(share / (1 - share))
        rankings.append(m.rank(q.positive, score))
    draws = bootstrap(
        lambda weight: {"auc": np.mean([m.auc(r, weight) for r in rankings], axis=0)},
        predictions.groups,
        resamples=min(config.resamples, _RESAMPLES),
        seed=seed,
    )
    bounds = draws.interval("auc", config.confidence)
    return entry(float(draws.value["auc"]), bounds, n=len(predictions), patients=patients, baseline=0.5)


def _folds(codes_N: Array, positive_N: Array, x_ND: Array, seed: int) -> Array:
    """Fold 0 to 4 of each image: patients in the order of label and columns, dealt out one by one."""
    patients, first = np.unique(codes_N, return_index=True)
    label_P = np.zeros(len(patients), dtype=bool)
    np.logical_or.at(label_P, codes_N, positive_N)
    chance_P = np.random.default_rng((seed, 2)).permutation(len(patients))
    fold_P = np.empty(len(patients), dtype=int)
    fold_P[np.lexsort((chance_P, *x_ND[first].T, label_P))] = np.arange(len(patients)) % 5
    return fold_P[codes_N]


def covariates(predictions: Predictions) -> dict[str, tuple[str, ...]]:
    """Known columns by lower-case name, site among them where it is known and differs."""
    found = {name.lower(): tuple(v.strip() for v in values) for name, values in predictions.covariates.items()}
    if any(predictions.sites):
        found["site"] = tuple(s or "" for s in predictions.sites)
    return {name: found[name] for name in COVARIATES if name in found and len(set(found[name])) > 1}


def years(text: str) -> float | None:
    """Age in years from ``63``, ``63.5``, or DICOM's ``063Y``, ``018M``, ``002W``, ``010D``; None when unreadable."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*([YMWD]?)", text.strip().upper())
    if match is None:
        return None
    return float(match[1]) / {"": 1, "Y": 1, "M": 12, "W": 52.18, "D": 365.25}[match[2]]


def _columns(predictions: Predictions) -> dict[str, Array | None]:
    out: dict[str, Array | None] = {}
    for name, values in covariates(predictions).items():
        if name == "age":
            ages = np.array([np.nan if (y := years(v)) is None else y for v in values])
            if np.isfinite(ages).sum() < 2:
                continue
            unknown = ~np.isfinite(ages)
            centred = (np.where(unknown, np.nanmedian(ages), ages) - np.nanmean(ages)) / (np.nanstd(ages) or 1.0)
            out[name] = np.stack([centred, centred**2, unknown.astype(float)], axis=1)
        else:
            kinds = sorted(set(values))
            # A column that names nearly every image (a serial number) would only memorise.
            out[name] = (np.array(values)[:, None] == np.array(kinds)).astype(float) if len(kinds) <= 50 else None
    return out
