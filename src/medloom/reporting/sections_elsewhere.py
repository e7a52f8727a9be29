"""Section of the report about later evaluations: other data sets, scored at the threshold of the run's validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medloom.reporting.recorded import Recorded
from medloom.reporting.sections_run import own_test_images, seen_images
from medloom.reporting.wording import grouped

COLUMNS = ("sensitivity", "specificity")


def elsewhere(found: Recorded) -> list[dict[str, Any]]:
    """One line for each question of each evaluation, with numbers of positives and negatives."""
    rows = []
    for name, content in found.evaluations.items():
        test = (content.get("splits") or {}).get("test") or {}
        points = test.get("operating_points") or [{}]
        for k, point in enumerate(points):
            path = f"evaluations/{name}: splits.test"
            at = point.get("metrics") or {}
            rows.append(
                {
                    "name": name,
                    "remark": remark(content) if k == 0 else "",
                    "question": str(point.get("class") or ""),
                    "n": test.get("n"),
                    "patients": test.get("patients"),
                    "positives": point.get("positives"),
                    "negatives": point.get("negatives"),
                    "first": k == 0,  # images and AUC are those of the whole set
                    "auc": (test.get("metrics") or {}).get("auc"),
                    "auc_path": f"{path}.metrics.auc",
                    "cells": [
                        {"entry": at.get(key), "name": key, "path": f"{path}.operating_points[{k}].metrics.{key}"}
                        for key in COLUMNS
                    ],
                    "reason": "" if at else str(point.get("reason") or "no threshold was chosen"),
                }
            )
    return rows


def remark(content: Mapping[str, Any]) -> str:
    """Why an evaluation is not external; empty where it is."""
    own, seen = own_test_images(content), seen_images(content)
    parts = [f"{grouped(own)} are this run's own test images"] if own else []
    parts += [f"{grouped(seen)} are images that it learnt from"] if seen else []
    return f"not external: {', '.join(parts)}" if parts else ""
