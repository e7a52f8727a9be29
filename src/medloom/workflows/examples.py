"""Which test images the report shows, what the model rebuilt of them, and the weights that it gave their tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from medloom.data.cache import DevicePixels, finish
from medloom.data.preprocess import Preprocess
from medloom.evaluation.predictions import Predictions
from medloom.explanation.token_maps import token_maps
from medloom.reporting.pictures import Picture
from medloom.training.reconstruction import reconstruction_error

RIGHT_PER_CLASS, WRONG_PER_CLASS = 2, 4


def choose(table: Predictions, answers: np.ndarray) -> list[int]:
    """Rows to show: the most confident mistakes of each class, and typical (median) right answers.

    Picking the surest mistakes shows what a reader should fear, and medians keep the right ones from being a
    collection of easy cases.
    """
    if table.multi_label:
        return _choose_of_labels(table, answers)
    confidence = table.probabilities[np.arange(len(table)), answers]
    right = answers == table.labels
    groups = [table.labels == k for k in range(len(table.classes))]
    rows: list[int] = []
    for group in groups:
        wrong = np.flatnonzero(group & ~right)
        rows += wrong[np.argsort(-confidence[wrong], kind="stable")][:WRONG_PER_CLASS].tolist()
        fine = np.flatnonzero(group & right)
        fine = fine[np.argsort(-confidence[fine], kind="stable")]
        middle = len(fine) // 2
        rows += fine[middle : middle + RIGHT_PER_CLASS].tolist()
    return rows


def _choose_of_labels(table: Predictions, answers: np.ndarray) -> list[int]:
    """The surest false calls, the findings missed with the lowest probability, and right answers with and without
    findings.
    """
    truth, called = table.labels == 1, answers == 1
    false_N = np.where(called & ~truth, table.probabilities, 0.0).max(axis=1)
    missed_N = np.where(truth & ~called, 1.0 - table.probabilities, 0.0).max(axis=1)
    right_N = (truth == called).all(axis=1)
    rows: list[int] = []
    for worst_N in (false_N, missed_N):
        order = np.argsort(-worst_N, kind="stable")
        rows += [int(i) for i in order if worst_N[i] > 0 and i not in rows][:WRONG_PER_CLASS]
    for fine in (np.flatnonzero(right_N & truth.any(axis=1)), np.flatnonzero(right_N & ~truth.any(axis=1))):
        order = fine[np.argsort(-table.probabilities[fine].max(axis=1), kind="stable")]
        rows += order[len(order) // 2 :][:RIGHT_PER_CLASS].tolist()
    return rows


def _told_label(table: Predictions, answers: np.ndarray, i: int) -> int:
    """The label whose probability says most about an answer: the surest false call, else the lowest miss."""
    p_K, truth, called = table.probabilities[i], table.labels[i] == 1, answers[i] == 1
    if (called & ~truth).any():
        return int(np.where(called & ~truth, p_K, -1.0).argmax())
    if (truth & ~called).any():
        return int(np.where(truth & ~called, p_K, 2.0).argmin())
    return int(p_K.argmax())


@torch.inference_mode()
def pictures(
    model: nn.Module,
    pixels: DevicePixels,
    preprocess: Preprocess,
    rows: np.ndarray,
    table: Predictions,
    answers: np.ndarray,
    device: torch.device,
    *,
    rebuild: bool = False,
) -> list[Picture]:
    """The chosen examples with token weights, where the model has them.

    Args:
        rows: cache rows of the table.
        rebuild: show what the model rebuilds of them; it must have ``train_outputs``.
    """
    model.eval()
    chosen = []
    for i in choose(table, answers):
        x_u8_1CHW = pixels.gather(rows[i : i + 1])
        x_1CHW = finish(x_u8_1CHW.to(device).float() / 255.0, preprocess)
        taps: dict = {}
        model(x_1CHW, taps=taps)
        maps = token_maps(taps)
        image_HWC = x_u8_1CHW[0].permute(1, 2, 0).cpu().numpy()
        image = image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC
        found = replace(_picture(table, answers, i, image, maps.weights), kept=maps.kept)
        chosen.append(_rebuilt(found, model, x_1CHW, preprocess) if rebuild else found)
    return chosen


def _rebuilt(entry: Picture, model: nn.Module, x_1CHW: Tensor, preprocess: Preprocess) -> Picture:
    """The entry with what the model makes of its tokens; grey where the image is, whatever channels the model has."""
    reconstruction_1CHW = model.train_outputs(x_1CHW)["reconstruction"]  # type: ignore[operator]
    error = float(reconstruction_error(reconstruction_1CHW, x_1CHW, preprocess))
    rebuilt_HWC = (255 * reconstruction_1CHW[0].float().permute(1, 2, 0)).cpu().numpy()
    rebuilt = rebuilt_HWC.mean(axis=2) if entry.image.ndim == 2 else rebuilt_HWC
    return replace(entry, rebuilt=np.rint(rebuilt).astype(np.uint8), rebuilt_error=error)


def _picture(
    table: Predictions, answers: np.ndarray, i: int, image: np.ndarray, weights: dict[str, np.ndarray]
) -> Picture:
    if table.multi_label:
        label = ", ".join(c for c, y in zip(table.classes, table.labels[i], strict=True) if y) or "none"
        predicted = ", ".join(c for c, y in zip(table.classes, answers[i], strict=True) if y) or "none"
        of = _told_label(table, answers, i)
    else:
        label, predicted = table.classes[table.labels[i]], table.classes[answers[i]]
        of = len(table.classes) - 1 if len(table.classes) == 2 else int(answers[i])
    return Picture(
        id=table.ids[i],
        label=label,
        predicted=predicted,
        correct=label == predicted,
        probability=float(table.probabilities[i, of]),
        of=table.classes[of],
        image=image,
        weights=weights,
    )
