"""Losses beside the classification: what a model rebuilds, which tokens it chooses, how many, what a teacher says.

Each is a sum over images, so that micro-batches and processes add up to the whole step; each is in the epoch's log
under its name, as a mean per image and before its weight.

Shape suffixes: B images of a micro-batch, C channels, H height, W width, K classes, N tokens of the grid.

Reference: distillation: Hinton et al., arXiv 1503.02531; multiple instances: Ilse et al., arXiv 1802.04712; kept
shares: Rao et al., arXiv 2106.02034.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medloom.config import Recipe
from medloom.data.preprocess import Preprocess
from medloom.errors import UsageError
from medloom.training.batches import Batch
from medloom.training.losses import Loss
from medloom.training.reconstruction import reconstruction_error, reconstructs

COVERED = 0.125
"""Share of a token's area from which on the finding is in it."""

TEACHER_BLOCKS = 3
"""The teacher's last blocks, whose CLS attention the scores learn from: earlier ones look at edges."""


@dataclass(frozen=True)
class AddedLoss:
    """One loss beside the classification.

    Attributes:
        name: in the log.
        weight: in the sum that is minimised.
        total: ``(outputs of the model, batch)`` to the scalar sum over the images.
    """

    name: str
    weight: float
    total: Callable[[dict[str, Tensor], Batch], Tensor]


def scores_tokens(model: nn.Module) -> bool:
    """Whether the model chooses its tokens by a score that it must learn."""
    return hasattr(model, "scorer")


def predicts_tokens(model: nn.Module) -> bool:
    """Whether predictors between the blocks draw which tokens go on, and must learn how many."""
    return hasattr(model, "predictors")


def chooses_tokens(model: nn.Module) -> bool:
    """Whether the model has a keep rate at all, by whatever it chooses."""
    return hasattr(model, "set_keep")


def added_losses(
    model: nn.Module,
    recipe: Recipe,
    preprocess: Preprocess,
    loss: Loss,
    *,
    teacher: nn.Module | None = None,
    masks: bool = False,
) -> tuple[AddedLoss, ...]:
    """What the recipe adds for this model.

    Args:
        loss: of the classification, for heads beside the main one.
        masks: whether there are masks for the scores to learn from.
        teacher: frozen and on the device, of the same classes and input; None where the recipe names none.

    Raises:
        UsageError: U225, the recipe wants a teacher's attention, and there is none to have.
    """
    added = []
    if reconstructs(model):
        added.append(
            AddedLoss(
                "reconstruction",
                recipe.loss.reconstruction,
                lambda outputs, batch: reconstruction_error(outputs["reconstruction"], batch.x_BCHW, preprocess),
            )
        )
    if scores_tokens(model):
        added.append(
            AddedLoss(
                "scorer",
                recipe.tokens.scorer_weight,
                lambda outputs, batch: loss.total(outputs["scorer_logits"].float(), batch.target),
            )
        )
        if masks and recipe.tokens.mask_weight > 0:
            added.append(AddedLoss("masks", recipe.tokens.mask_weight, mask_error))
    if predicts_tokens(model):
        added.append(
            AddedLoss("keep_ratio", recipe.tokens.ratio_weight, lambda outputs, batch: keep_ratio_error(outputs))
        )
    if teacher is not None:
        temperature = recipe.distill.temperature

        def distillation(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
            with torch.no_grad():
                taught_BK = teacher(batch.x_BCHW)
            student_BK = outputs.get("distillation", outputs["logits"])
            return soft_error(student_BK, taught_BK, temperature, many=batch.target.ndim == 2)

        added.append(AddedLoss("distillation", recipe.distill.weight, distillation))
    if recipe.tokens.attention_weight > 0:
        added.append(AddedLoss("attention", recipe.tokens.attention_weight, _attention(model, teacher, preprocess)))
    return tuple(added)


def check_attention(model: nn.Module, teacher: nn.Module | None, preprocess: Preprocess) -> None:
    """Refuse ``tokens.attention_weight`` where the scores cannot learn from the teacher's attention.

    The teacher is shown one empty image; either network may be without memory (device ``meta``).

    Args:
        preprocess: of both.

    Raises:
        UsageError: U225.
    """
    place, remedy = "tokens.attention_weight", "Name a vit, deit or token_pruned run in distill.teacher, or set it to 0"
    if teacher is None or not scores_tokens(model):
        raise UsageError("U225", place, "it needs a model that scores its tokens, and a teacher", remedy)
    taps: dict[str, Any] = {}
    device = next(teacher.parameters()).device
    with torch.no_grad():
        teacher(torch.zeros(1, preprocess.in_chans, *preprocess.size, device=device), taps)
    maps, cells = _last_maps(taps), math.prod(model.grid)  # type: ignore[arg-type]
    if not maps or any(tap.value.shape[-1] - tap.prefix != cells for tap in maps):
        raise UsageError("U225", place, "the teacher's attention is not on the grid of the scores", remedy)


def for_stage(added: tuple[AddedLoss, ...], *, scorer_alone: bool) -> tuple[AddedLoss, ...]:
    """The same losses with the weights of a stage: while the scorer learns alone, only what teaches it counts."""
    if not scorer_alone:
        return added
    kept = ("attention", "masks")
    return tuple(
        replace(one, weight=1.0 if one.name == "scorer" else one.weight if one.name in kept else 0.0) for one in added
    )


def soft_error(logits_BK: Tensor, taught_BK: Tensor, temperature: float, *, many: bool) -> Tensor:
    """Divergence of the student's answers from the teacher's, softened, times the temperature squared; summed over B.

    Args:
        many: several labels per image: one Bernoulli divergence per label, mean over the labels.
    """
    student_BK, teacher_BK = logits_BK.float() / temperature, taught_BK.float() / temperature
    if not many:
        return temperature**2 * F.kl_div(
            student_BK.log_softmax(1), teacher_BK.log_softmax(1), reduction="sum", log_target=True
        )
    p_BK = teacher_BK.sigmoid()
    # Cross-entropy less the teacher's own entropy: zero where both agree.
    error_BK = F.binary_cross_entropy_with_logits(student_BK, p_BK, reduction="none")
    own_BK = F.binary_cross_entropy_with_logits(teacher_BK, p_BK, reduction="none")
    return temperature**2 * (error_BK - own_BK).mean(dim=1).sum()


def mask_error(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    """Cross-entropy of the scores against "the finding is in this token", both sides of equal weight; summed over B.

    Images without a mask count nothing. A token belongs to the finding from an eighth of its area on.
    """
    score_BN = outputs["token_score"].float()
    assert batch.mask_BHW is not None
    assert batch.masked_B is not None
    height, width = batch.mask_BHW.shape[1:]
    side = round((height * width / score_BN.shape[1]) ** 0.5)
    share_BN = F.avg_pool2d(batch.mask_BHW[:, None], side).flatten(1)
    inside_BN = (share_BN >= COVERED).float()
    error_BN = F.binary_cross_entropy_with_logits(score_BN, inside_BN, reduction="none")
    sides = []
    for side_BN in (inside_BN, 1.0 - inside_BN):
        sides.append((error_BN * side_BN).sum(dim=1) / side_BN.sum(dim=1).clamp_min(1.0))
    return ((sides[0] + sides[1]) * batch.masked_B).sum()


def keep_ratio_error(outputs: dict[str, Tensor]) -> Tensor:
    """Squared distance of the shares that were kept from those that should be, mean over the cuts; summed over B.

    Reference: Rao et al., DynamicViT, arXiv 2106.02034, section 3.3.
    """
    return (outputs["kept_share"].float() - outputs["kept_goal"]).square().mean(dim=1).sum()


def _last_maps(taps: Mapping[str, Any]) -> list[Any]:
    """The taps of the attention of a network's last blocks; none of one without attention."""
    names = sorted((k for k in taps if k.startswith("attention.")), key=lambda k: int(k.partition(".")[2]))
    return [taps[name] for name in names[-TEACHER_BLOCKS:]]


def _attention(
    model: nn.Module, teacher: nn.Module | None, preprocess: Preprocess
) -> Callable[[dict[str, Tensor], Batch], Tensor]:
    check_attention(model, teacher, preprocess)
    assert teacher is not None

    def total(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        taps: dict[str, Any] = {}
        with torch.no_grad():
            teacher(batch.x_BCHW, taps)
        score_BN = outputs["token_score"].float()
        maps_BN = [tap.value[:, :, 0, tap.prefix :].float().mean(1) for tap in _last_maps(taps)]
        looks_BN = torch.stack(maps_BN).mean(0)
        looks_BN = looks_BN / looks_BN.sum(dim=1, keepdim=True)
        return F.kl_div(score_BN.log_softmax(1), looks_BN, reduction="sum")

    return total
