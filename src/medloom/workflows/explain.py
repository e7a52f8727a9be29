"""``medloom explain``: the bundle's answer for each image, and what its network did with the tokens of it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from medloom.blocks.selection import check_keep
from medloom.deployment.bundle import Bundle, load_classifier
from medloom.deployment.export import restore_model
from medloom.deployment.runtime import Pipeline, Prediction
from medloom.errors import DataError, ModelError, UsageError
from medloom.explanation.token_maps import MODELS_WITH_MAPS, TokenMaps, token_maps
from medloom.files import atomic_directory, write_bytes
from medloom.reporting.pictures import Picture
from medloom.reporting.token_page import MEANING, token_html
from medloom.reporting.token_views import drawn_scales, panel
from medloom.workflows.keep_rate import set_rate
from medloom.workflows.outcome import Outcome
from medloom.workflows.predict import EXCLUDE_LIMIT, NOTICE, find_images
from medloom.workflows.progress import Progress, Report

PAGE, VALUES = "tokens.html", "tokens.json"
LIMIT = 50
SAME = 1e-3
"""Logits further apart than this, relative above 1, are not those of one network: top-k may then differ as well."""


@dataclass(frozen=True)
class Explained:
    """One image: the bundle's answer, the maps, and what the restored network answers at the rate that is shown."""

    answer: Prediction
    pixels_HWC: np.ndarray
    maps: TokenMaps
    network: Prediction
    off: float


def explain(
    bundle: str | Path | Bundle,
    paths: Sequence[str | Path],
    *,
    out: str | Path = "tokens",
    keep: float | None = None,
    limit: int = LIMIT,
    threads: int | None = None,
    exclude_limit: float = EXCLUDE_LIMIT,
    progress: Report | None = None,
    quiet: bool = True,
) -> Outcome:
    """Write ``tokens.html``, ``tokens.json`` and one PNG per image into a new folder.

    The answer comes from the bundle's runtime; the maps come from the network that the bundle's weights restore, on the
    same pixels. The folder appears whole or not at all. Images that cannot be used have their code in place of maps.

    Args:
        out: folder; it must not be there yet, or be empty.
        keep: another keep rate for the maps, in a model that prunes its tokens; the answer stays the bundle's, and
            what the network answers at that rate is told beside it.
        limit: images that are shown at most, in their order; how many more there are is told.
        exclude_limit: share of refused images above which ``exit_code`` is 3.

    Raises:
        UsageError: U208 ``keep`` outside (0, 1], or of a model that keeps all its tokens; ``limit`` below 1; U212
            ``out`` holds something; U214 a path that is not there.
        ModelError: C514 a model without tokens to show; what ``medloom.load`` refuses.
        DataError: D114, D115 nothing to read.
        ResourceError: T404, T405 ``out`` cannot be written.
    """
    if keep is not None:
        check_keep(keep)
    if limit < 1:
        raise UsageError("U208", "option limit", f"{limit} images are none", "Give a number from 1 on")
    out = Path(out)
    _check_free(out)
    opened = bundle if isinstance(bundle, Bundle) else load_classifier(bundle, threads=threads)
    model = restore_model(opened)
    own = getattr(model, "keep_rate", None)
    if keep is not None:
        set_rate(model, f"model {opened.document['architecture']['name']}", keep)
    _check_maps(model, opened)
    files, passed_over = find_images(paths)
    rows: list[Explained | Prediction] = []
    with Progress("explaining", quiet=quiet) as step:
        for file in files[:limit]:
            rows.append(_explained(model, opened.pipeline, file))
            (progress or step)(len(rows), min(len(files), limit))
    values = {
        "notice": NOTICE,
        "meaning": MEANING,
        "model": opened.name,
        "model_hash": opened.hash,
        "architecture": opened.document["architecture"],
        "classes": list(opened.classes),
        "keep_rate": None if own is None else {"bundle": own, "shown": own if keep is None else float(keep)},
        "found": len(files),
        "shown": sum(isinstance(row, Explained) for row in rows),
        "refused": sum(isinstance(row, Prediction) for row in rows),
        "passed_over": passed_over,
        "images": [_entry(row, opened.classes, k, keep) for k, row in enumerate(rows)],
    }
    _write(out, opened, rows, values, keep)
    exit_code = 3 if values["refused"] > exclude_limit * len(rows) else 0
    lines = [f"{values['shown']} of {len(rows)} images explained by {opened.name}. {NOTICE}", MEANING]
    lines += [f"refused[{r.error}] {r.id}: {r.problem}" for r in rows if isinstance(r, Prediction)][:20]
    if len(files) > limit:
        lines.append(f"{len(files) - limit} further images are not shown; --limit {len(files)} shows all")
    return Outcome({**values, "folder": str(out)}, (*lines, f"open {out / PAGE}"), exit_code)


def _check_free(out: Path) -> None:
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UsageError("U212", out, "something is already there", "Name another folder with --out")


@torch.inference_mode()
def _check_maps(model: nn.Module, bundle: Bundle) -> None:
    taps: dict[str, Any] = {}
    model(torch.zeros(1, bundle.preprocess.in_chans, *bundle.preprocess.size), taps=taps)
    if not token_maps(taps):
        raise ModelError(
            "C514",
            f"model {bundle.document['architecture']['name']}",
            "it neither weighs nor chooses its tokens, so there is nothing to show",
            f"Models that do: {', '.join(MODELS_WITH_MAPS)}",
        )


@torch.inference_mode()
def _explained(model: nn.Module, pipeline: Pipeline, file: Path) -> Explained | Prediction:
    """Answer and maps of one image, from one decoding; or its refusal."""
    try:
        pixels_HWC = pipeline.preprocess.to_uint8(pipeline.open(file, str(file)))
    except DataError as refusal:
        return Prediction(str(file), error=refusal.code, problem=refusal.problem)
    z_1K = pipeline.logits(pixels_HWC[None])
    x_1CHW = torch.from_numpy(pipeline.preprocess.normalise(pixels_HWC[None]))
    taps: dict[str, Any] = {}
    own_1K = model(x_1CHW, taps=taps)
    if pipeline.flip_average:
        own_1K = (own_1K + model(x_1CHW.flip(-1))) / 2
    own_1K = own_1K.numpy()
    off = float((np.abs(own_1K - z_1K) / np.maximum(1.0, np.abs(z_1K))).max())
    answer, network = pipeline.answer([str(file)], z_1K)[0], pipeline.answer([str(file)], own_1K)[0]
    return Explained(answer, pixels_HWC, token_maps(taps), network, off)


def _told_class(answer: Prediction, classes: Sequence[str]) -> str:
    """The class whose probability is told: the positive one of two, else the most probable."""
    return classes[-1] if len(classes) == 2 else max(answer.probabilities, key=lambda name: answer.probabilities[name])


def _entry(row: Explained | Prediction, classes: Sequence[str], k: int, keep: float | None) -> dict[str, Any]:
    """One image of ``tokens.json``; cells are ``[row, column]`` from the upper left."""
    if isinstance(row, Prediction):
        return {"id": row.id, "file": None, "answer": None, "error": row.error, "problem": row.problem}
    of, maps = _told_class(row.answer, classes), row.maps
    grids = [m.shape for m in (*maps.weights.values(), *([] if maps.kept is None else [maps.kept]))]
    score = maps.weights.get("token_score")
    return {
        "id": row.answer.id,
        "file": _file_name(k),
        "answer": row.answer.label,
        "decision": row.answer.decision,
        "of": of,
        "probability": row.answer.probabilities[of],
        "probability_at_keep": None if keep is None else row.network.probabilities[of],
        "network_off": None if keep is not None else row.off,
        "grid": list(grids[0]),
        "kept": maps.kept_cells(),
        "score": None if score is None else score.tolist(),
        "weights": {name: m.tolist() for name, m in maps.weights.items() if name != "token_score"},
        "error": None,
        "problem": None,
    }


def _file_name(k: int) -> str:
    return f"tokens_{k + 1:04d}.png"


def _picture(row: Explained, classes: Sequence[str]) -> Picture:
    of, answer = _told_class(row.answer, classes), row.answer
    label = "nothing (no operating point)" if answer.label is None else answer.label.replace("|", ", ") or "none"
    image = row.pixels_HWC[:, :, 0] if row.pixels_HWC.shape[2] == 1 else row.pixels_HWC
    return Picture(
        answer.id, "", label, True, answer.probabilities[of], of, image, row.maps.weights, kept=row.maps.kept
    )


def _write(
    out: Path, bundle: Bundle, rows: Sequence[Explained | Prediction], values: Mapping[str, Any], keep: float | None
) -> None:
    explained = [(k, row) for k, row in enumerate(rows) if isinstance(row, Explained)]
    shown = [_picture(row, bundle.classes) for _, row in explained]
    notes = []
    for _, row in explained:
        of = _told_class(row.answer, bundle.classes)
        other = row.network.probabilities[of]
        notes.append([] if keep is None else [f"with {keep:g} of the tokens the network gives {of} {other:.3f}"])
    apart = max((row.off for _, row in explained), default=0.0) if keep is None else 0.0
    warnings = []
    if apart > SAME:
        warnings.append(f"The restored network's logits differ from the bundle's by up to {apart:.1e}")
    refused = [row for row in values["images"] if row["error"]]
    flips = bundle.pipeline.flip_average
    page = token_html(bundle.name, shown, refused, _facts(values), notes=notes, warnings=warnings, flip_average=flips)
    scales = drawn_scales(shown)
    with atomic_directory(out) as stage:
        for (k, _), entry in zip(explained, shown):
            buffer = io.BytesIO()
            Image.fromarray(panel(entry, scales)).save(buffer, "PNG", optimize=True)
            write_bytes(stage / _file_name(k), buffer.getvalue())
        text = json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
        # A file name need not be UTF-8: its bytes pass through unchanged.
        write_bytes(stage / VALUES, text.encode("utf-8", "surrogateescape"))
        write_bytes(stage / PAGE, page.encode("utf-8"))


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    rate = values["keep_rate"]
    told = [("Model", f"{values['architecture']['name']}, bundle {str(values['model_hash'])[:12]}")]
    told.append(("Answers", "of the bundle, through its own runtime, as medloom predict gives them"))
    told.append(("Maps", "of the network that its weights restore, on the same pixels"))
    if rate is not None:
        told.append(("Keep rate", f"{rate['bundle']:g} in the bundle, {rate['shown']:g} in the maps"))
    if values["found"] > len(values["images"]):
        told.append(("Shown", f"the first {len(values['images'])} of {values['found']} images"))
    told.append(("Values", f"{VALUES}: per image the answer, the kept cells as [row, column], and every weight"))
    return told
