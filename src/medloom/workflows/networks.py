"""The network of a run, and the teacher that its recipe names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medloom.config import Recipe
from medloom.data.preprocess import Preprocess
from medloom.data.records import Dataset, read_csv
from medloom.deployment.bundle import Bundle, load_classifier
from medloom.deployment.export import restore_model
from medloom.errors import DataError, UsageError
from medloom.files import RunDirectory, sha256_file
from medloom.models.registry import create_model
from medloom.models.weights import load_weights
from medloom.training.added_losses import check_attention
from medloom.training.token_stages import check_stages
from medloom.workflows.prepare import Prepared


def build(recipe: Recipe, architecture: dict[str, Any], told: Callable[[str], object] = lambda text: None) -> nn.Module:
    """A run's model, from the recipe's seed, or from the weights that it names.

    Args:
        architecture: what ``create_model`` takes.
        told: is given a sentence for everything that was converted, left out or started fresh in named weights.
    """
    torch.manual_seed(recipe.train.seed)
    model = create_model(**architecture, pretrained=recipe.model.pretrained)
    if recipe.model.weights is not None:
        for text in load_weights(model, recipe.model.weights, new_head=recipe.model.new_head):
            told(text)
    return model


def architecture_of(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What ``create_model`` takes to build this run's network again."""
    return {
        "name": recipe.model.name,
        "num_classes": len(prepared.dataset.classes),
        "in_chans": prepared.preprocess.in_chans,
        "image_size": list(prepared.preprocess.size),
        **recipe.model.options,
    }


def check_learning(recipe: Recipe, model: nn.Module | None) -> None:
    """Refuse before the data are read what does not depend on them: stages that are the whole run, and the teacher.

    Args:
        model: as the recipe describes it, with or without memory; None where it could not be made so.

    Raises:
        UsageError: U227; U225, the teacher sees another input, or its attention cannot teach the scores. What a bundle
            is refused for.
    """
    if model is not None:
        check_stages(recipe, model, 1)
    named, preprocess, teacher = recipe.distill.teacher, Preprocess.from_config(recipe.preprocess), None
    bundle = None if named is None else load_classifier(named)
    if bundle is not None:
        _check_input(bundle, preprocess, f"distill.teacher {named}")
    if model is None or recipe.tokens.attention_weight == 0:
        return
    # A network that cannot be made or run without memory is judged when it is built.
    with contextlib.suppress(RuntimeError), torch.device("meta"):
        if bundle is not None:
            teacher = create_model(**bundle.document["architecture"]).eval()
        check_attention(model, teacher, preprocess)


def load_teacher(recipe: Recipe, prepared: Prepared, device: torch.device) -> tuple[nn.Module | None, str]:
    """The network of ``distill.teacher``, frozen, and the hash of its weights; nothing where the recipe names none.

    It must answer the same question about the same input, or what it teaches means something else.

    Raises:
        UsageError: U225, it knows other classes or sees another input. What a bundle is refused for.
        DataError: D117, it has learnt from test images.
    """
    if recipe.distill.teacher is None:
        return None, ""
    bundle = load_classifier(recipe.distill.teacher)
    place = f"distill.teacher {recipe.distill.teacher}"
    classes = tuple(prepared.dataset.classes)
    if bundle.classes != classes:
        told = f"it knows the classes {', '.join(bundle.classes)}, and these data have {', '.join(classes)}"
        raise UsageError("U225", place, told, "Choose a teacher of the same classes, in the same order")
    _check_input(bundle, prepared.preprocess, place)
    home = RunDirectory(Path(recipe.distill.teacher))
    refuse_taught_test_images(home, prepared.dataset, ("test",), recipe.data.accept)
    model = restore_model(bundle).to(device).requires_grad_(False)
    return model, sha256_file(Path(bundle.root) / "model.safetensors")


def _check_input(bundle: Bundle, preprocess: Preprocess, place: str) -> None:
    """Refuse a teacher of another input (U225); statistics are compared once they are known."""
    theirs, ours = bundle.preprocess.as_dict(), preprocess.as_dict()
    unknown = () if preprocess.mean else ("mean", "std")
    other = sorted(key for key in ours if key not in unknown and ours[key] != theirs.get(key))
    if other:
        told = f"it sees other input ({', '.join(f'preprocess.{key}' for key in other)})"
        raise UsageError("U225", place, told, "Train student and teacher with the same preprocess part")


def refuse_taught_test_images(
    home: RunDirectory, dataset: Dataset, splits: Sequence[str], accept: Sequence[str]
) -> None:
    """Refuse a teacher that has learnt from images that its student is judged by, as far as its run tells.

    Args:
        home: the teacher's run directory; a bare bundle tells nothing.
        splits: of ``dataset``, that must be new to it.

    Raises:
        DataError: D117.
    """
    if not home.records.exists() or "D117" in accept:
        return
    learnt = {r.pixel_hash for r in read_csv(home.records, home.root).records if r.split == "train"}
    seen = sum(r.pixel_hash in learnt for r in dataset.records if r.split in splits)
    if seen:
        told = f"it was trained on {seen} of the images in {' and '.join(splits)}, and would pass its memory on"
        raise DataError("D117", home.root, told, "Train teacher and student on one split")
