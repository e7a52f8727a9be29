"""Tables of cases with known content, for the tests of what is made of them."""

from __future__ import annotations

import numpy as np

from medloom.evaluation.case_table import Case, CaseTable, case_table
from medloom.evaluation.segmentation import score_case, units

SPACING = (1.0, 1.0, 1.5)


def shapes(n: int, seed: int = 0, *, shift: int = 1, missing: float = 0.1) -> list[tuple[np.ndarray, np.ndarray]]:
    """``n`` small volumes with two boxes, and answers that are moved, now and then without a structure."""
    generator = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        truth = np.zeros((14, 18, 12), dtype=np.uint8)
        x, y = generator.integers(1, 4, 2)
        truth[x : x + 8, y : y + 6, 2:9] = 1
        if generator.random() > missing:
            truth[x : x + 8, y + 7 : y + 12, 2:9] = 2
        answer = np.roll(truth, int(generator.integers(0, shift + 1)), axis=int(generator.integers(0, 3)))
        if generator.random() < missing:
            answer = np.where(answer == 2, 0, answer).astype(np.uint8)
        out.append((truth, answer))
    return out


def table(
    n: int = 24,
    seed: int = 0,
    *,
    shift: int = 1,
    missing: float = 0.1,
    per_patient: int = 1,
    split: str = "test",
    trivial: bool = True,
) -> CaseTable:
    cases = []
    for i, (truth, answer) in enumerate(shapes(n, seed, shift=shift, missing=missing)):
        middle = np.zeros_like(truth)
        middle[3:11, 3:9, 3:8] = 1
        values = score_case(truth, answer, 2, SPACING, tolerance=1.0, trivial_S=middle if trivial else None)
        distance, size = units(3, SPACING)
        site = ("east", "west")[i % 2]
        cases.append(Case(f"case {i}", f"p{i // per_patient}", site, values, distance, size))
    return case_table(cases, ("anterior", "posterior"), split=split, tolerance=1.0)
